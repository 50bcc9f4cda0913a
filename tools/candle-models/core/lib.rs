//! `candle_core` with this crate for its `quantized`.

pub use cube_gguf::candle::core::*;
