//! Candle's own models (`candle-transformers`), compiled twice from the same sources: with Candle's quantized tensors, and
//! with this crate's in their place. `tests/models.rs` compares what they compute, `examples/speed.rs` how fast.

pub use candle_transformers as theirs;
pub use candle_transformers_swapped as ours;
