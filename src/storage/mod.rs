//! Tensors on devices: [`Device`], the framework-free [`DeviceTensor`], and Candle's quantized surface over it.

#[cfg(feature = "burn")]
pub mod burn;
#[cfg(feature = "candle")]
pub mod candle;
mod device;
mod quantize;
#[cfg(feature = "hip")]
mod rocm;
mod tensor;
mod wgpu;

pub use device::{Backend, CubeDevice, Device};
pub use quantize::quantize_only;
pub use tensor::DeviceTensor;
