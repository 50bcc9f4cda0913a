//! Vectors that kernels load and compute with.

use cubecl::prelude::*;

/// Four words, 16 bytes: the width of a load and of a decoding step.
pub type Words = Vector<u32, Const<4>>;
