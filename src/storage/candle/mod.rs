//! Replacement for `candle_core::quantized`, with weights on any device that CubeCL reaches.
//!
//! ```no_run
//! # fn main() -> candle_core::Result<()> {
//! // use candle_core::quantized::{QMatMul, gguf_file};
//! use cube_gguf::candle::{QMatMul, gguf_file};
//! use candle_core::{DType, Device, Module, Tensor};
//!
//! let device = Device::Cpu;
//! let mut file = std::fs::File::open("model.gguf")?;
//! let content = gguf_file::Content::read(&mut file)?;
//! let layer = QMatMul::from_qtensor(content.tensor(&mut file, "blk.0.ffn_up.weight", &device)?)?;
//! let y = layer.forward(&Tensor::ones((1, 4096), DType::F32, &device)?)?;
//! # Ok(())
//! # }
//! ```
//!
//! Inputs and outputs are Candle tensors, on the device that the model chose. Weights go to the device that Candle's
//! stands for: `Device::Cpu` stands for [`default_device`], which the environment variable `CUBE_GGUF_DEVICE` names.

#[cfg(feature = "candle-cuda")]
mod cuda;
mod experts;
pub mod ggml_file;
pub mod gguf_file;
mod guest;
mod host;
pub mod moe;
mod qmatmul;
mod qstorage;
mod qtensor;
mod transfer;
mod var_builder;
mod weight_device;

#[cfg(feature = "models")]
pub(crate) use guest::is_repacked;
#[cfg(all(test, feature = "models"))]
pub(crate) use host::noise;
pub use qmatmul::QMatMul;
pub use qstorage::{
    PlainBlock, QCpuStorage, QCubeStorage, QCudaStorage, QMetalStorage, QRocmStorage, QStorage, QVulkanStorage,
    QWgpuStorage, load_quantized,
};
pub use qtensor::{QTensor, qtensor_from_ggml};
pub use var_builder::VarBuilder;
pub use weight_device::{WeightDevice, default_device, set_default_device};

pub use candle_core::quantized::{GgmlType, QuantizedType, imatrix_file, k_quants};

pub use crate::GgmlDType;

/// `candle_core` with this module for its `quantized`: `use cube_gguf::candle::core as candle;` on top of a file that names
/// `candle::quantized` in its lines.
///
/// ```
/// use cube_gguf::candle::core as candle;
///
/// fn layer(weights: candle::quantized::QTensor) -> candle::Result<candle::quantized::QMatMul> {
///     candle::quantized::QMatMul::from_qtensor(weights)
/// }
/// ```
pub mod core {
    pub use candle_core::*;

    pub use crate::candle as quantized;
}

/// An error of this crate as Candle's.
fn candle_error(error: impl Into<crate::Error>) -> candle_core::Error {
    error.into().into()
}
