//! Candle's CUDA tensors over this crate's weights on the same GPU: `tests/gpu.rs` holds that nothing leaves it and that each side
//! waits for the other, `examples/speed.rs` measures both crates' products.

use candle_core::{DType, Device, Result, Tensor};

/// Values between -1 and 1 that differ by `seed`, on Candle's CPU device.
pub fn noise(seed: u64, shape: &[usize]) -> Result<Tensor> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut value = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    Tensor::from_vec((0..shape.iter().product()).map(|_| value()).collect(), shape, &Device::Cpu)
}

/// All values, as f32.
pub fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}
