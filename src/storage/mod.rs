//! Tensors on devices: [`Device`], the framework-free [`DeviceTensor`], and Candle's quantized surface over it.

mod device;
#[cfg(feature = "candle")]
mod host;
#[cfg(feature = "candle")]
mod place;
#[cfg(feature = "candle")]
mod qmatmul;
#[cfg(feature = "candle")]
mod qstorage;
#[cfg(feature = "candle")]
mod qtensor;
#[cfg(feature = "hip")]
mod rocm;
mod tensor;

pub use device::{Backend, CubeDevice, Device};
#[cfg(feature = "candle")]
pub use place::{Place, default_device, set_default_device};
#[cfg(feature = "candle")]
pub use qmatmul::QMatMul;
#[cfg(feature = "candle")]
pub use qstorage::{
    QCpuStorage, QCubeStorage, QCudaStorage, QMetalStorage, QRocmStorage, QStorage, QVulkanStorage, QWgpuStorage,
    load_quantized,
};
#[cfg(feature = "candle")]
pub use qtensor::{QTensor, qtensor_from_ggml};
pub use tensor::DeviceTensor;
