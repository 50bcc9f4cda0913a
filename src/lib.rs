//! GGUF-quantized tensors on every GPU that CubeCL reaches, AMD first.
//!
//! - [`gguf`]: the file format: read, check, write. No GPU code.
//! - [`Device`], [`DeviceTensor`], [`Activations`]: tensors on devices, for any framework.
//! - [`tune`]: the settings of a product's kernel, tables of the fastest ones, and the search that finds them.
//! - [`QTensor`], [`QMatMul`], [`QStorage`] (feature `candle`): the API of `candle_core::quantized`; [`candle`] is the
//!   module to import in its place in models written for Candle.
//! - `burn` (feature `burn`): Burn modules over device tensors.
//! - `models` (feature `models`): language models.
//! - `text` (feature `text`): the tokenizer that a file holds, its chat template, and sampling.

#[cfg(all(doctest, feature = "burn", feature = "candle", feature = "cpu"))]
#[doc = include_str!("../README.md")]
struct Readme;

mod error;
pub mod gguf;
#[doc(hidden)]
pub mod internals;
#[cfg(feature = "kernel-cache")]
mod kernel_cache;
mod kernels;
#[cfg(feature = "models")]
pub mod models;
mod storage;
#[cfg(feature = "text")]
pub mod text;
pub mod tune;

pub use cubecl;
pub use error::{Error, Result};
pub use gguf::GgmlType;
#[cfg(feature = "kernel-cache")]
pub use kernel_cache::keep_kernels;
pub use kernels::accuracy::Accuracy;
pub use kernels::activations::Activations;
pub use kernels::floats::FloatType;
pub use kernels::ops::{Arithmetic, ParseArithmeticError};
pub use kernels::routing::Routing;
#[cfg(feature = "burn")]
pub use storage::burn;
#[cfg(feature = "candle")]
pub use storage::candle::{
    self, QCpuStorage, QCubeStorage, QCudaStorage, QMatMul, QMetalStorage, QRocmStorage, QStorage, QTensor,
    QVulkanStorage, QWgpuStorage, WeightDevice, default_device, load_quantized, qtensor_from_ggml, set_default_device,
};
pub use storage::{Backend, CubeDevice, Device, DeviceTensor};

/// Candle's name for [`GgmlType`].
pub use gguf::GgmlType as GgmlDType;
