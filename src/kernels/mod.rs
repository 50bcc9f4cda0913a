//! Kernels: the formats, and the operations that are generic in them.

pub mod activations;
pub mod dequantize;
pub mod floats;
pub mod formats;
mod launch;
pub mod matmul;
pub mod matvec;
pub mod product;
mod repack;
pub mod weights;

pub(crate) use launch::is_rasterizer;
