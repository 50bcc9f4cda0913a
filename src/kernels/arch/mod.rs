//! What a compiler's target offers beyond CubeCL's own operations.

pub mod dot;
#[cfg(feature = "llvm")]
mod llvm;
pub mod permute;
pub mod reciprocal;
pub mod schedule;
pub mod target;
