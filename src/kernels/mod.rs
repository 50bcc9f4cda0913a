//! Kernels: the formats, and the operations that are generic in them.

pub mod activations;
pub mod catalogue;
pub mod dequantize;
pub mod dot;
pub mod floats;
pub mod formats;
pub mod int8;
pub mod launch;
#[cfg(feature = "llvm")]
mod llvm;
pub mod matmul;
pub mod matvec;
pub mod product;
mod repack;
pub mod target;
pub mod tune;
pub mod weights;
