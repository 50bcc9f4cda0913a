//! Kernels: the formats, and the operations that are generic in them.

pub mod accuracy;
pub mod activations;
pub mod arch;
pub mod catalogue;
pub mod decoder;
pub mod dequantize;
pub mod epilogue;
pub mod floats;
pub mod formats;
pub mod hardware;
pub mod lanes;
pub mod launch;
mod matmul;
pub mod matvec;
pub mod ops;
pub mod quantize;
mod repack;
pub mod routing;
pub mod tune;
pub mod vector;
pub mod weights;
