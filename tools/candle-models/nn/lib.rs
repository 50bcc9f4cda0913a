//! `candle_nn` with this crate for what its `moe` has of quantized tensors.

pub use candle_nn::*;

/// `candle_nn::moe`.
pub mod moe {
    pub use candle_nn::moe::*;
    pub use cube_gguf::candle::moe::moe_gemm_gguf;
}
