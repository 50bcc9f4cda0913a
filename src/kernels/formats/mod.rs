//! The formats: what a GGUF block holds, how it lies on the device, and how it becomes numbers.
//!
//! A family of formats is one file. A format is a [`Format`] constant (the block, the device [`Layout`], the host's
//! decoder) and one `#[cube]` function that decodes 32 values: `chunk` for block formats, `vector` for plain floats. The
//! registry has two tables that name every format, [`FORMATS`] and the decoders'; nothing outside this folder names any.

mod bits;
mod codebooks;
mod dense;
mod format;
mod host;
mod iq1;
mod iq2_iq3;
mod iq4;
mod k_quants;
mod layout;
mod legacy;
mod loads;
mod low_bits;
mod registry;
mod view;

pub use format::{Codes, Format, Traits, Vectors};
pub use layout::{ComponentOffsets, Layout, MAX_COMPONENTS};
pub use loads::Prefetched;
pub use registry::{FORMATS, chunk, dense_vector, format, traits, values, vectors_per_chunk};
pub use view::{At, CHUNK, Chunk, MatrixView, MatrixViewLaunch};
