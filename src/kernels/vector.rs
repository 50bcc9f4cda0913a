//! Vectors that kernels load and compute with.

use cubecl::prelude::*;

/// Four words, 16 bytes: what one load brings and one step of decoding works on.
pub type Words = Vector<u32, Const<4>>;
