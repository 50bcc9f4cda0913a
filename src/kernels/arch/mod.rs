//! Compile targets, and their instructions beyond CubeCL's own operations.

pub mod approximate;
#[expect(missing_docs, reason = "the module that `#[cube]` makes of a function")]
pub mod dot;
#[cfg(feature = "llvm")]
mod llvm;
pub mod matrix_unit;
pub mod permute;
pub mod schedule;
pub mod target;
pub mod warpgroup;
