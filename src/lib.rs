//! GGUF-quantized tensors on every GPU that CubeCL reaches, AMD first.
//!
//! - [`gguf`]: the file format: read, check, write. No GPU code.
//! - [`Device`], [`DeviceTensor`], [`Activations`]: tensors on devices, for any framework.
//! - [`tune`]: what may be chosen about a product, and the search for what is fastest.
//! - [`QTensor`], [`QMatMul`], [`QStorage`] (feature `candle`): the surface of `candle_core::quantized`; [`candle`] is the
//!   import that takes its place in models written for Candle.

#[cfg(all(doctest, feature = "candle"))]
#[doc = include_str!("../README.md")]
struct Readme;

mod error;
pub mod gguf;
#[doc(hidden)]
pub mod internals;
mod kernels;
mod storage;
pub mod tune;

pub use cubecl;
pub use error::{Error, Result};
pub use gguf::GgmlType;
pub use kernels::accuracy::Accuracy;
pub use kernels::activations::Activations;
pub use kernels::floats::FloatType;
pub use kernels::ops::{Arithmetic, ParseArithmeticError};
#[cfg(feature = "candle")]
pub use storage::candle::{
    self, QCpuStorage, QCubeStorage, QCudaStorage, QMatMul, QMetalStorage, QRocmStorage, QStorage, QTensor,
    QVulkanStorage, QWgpuStorage, WeightDevice, default_device, load_quantized, qtensor_from_ggml, set_default_device,
};
pub use storage::{Backend, CubeDevice, Device, DeviceTensor};

/// The name that Candle gives to a tensor's type.
pub type GgmlDType = GgmlType;
