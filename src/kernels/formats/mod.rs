//! The formats: what a GGUF block holds, how it lies on the device, and how it becomes numbers.
//!
//! A family of formats is one file. A format is a `FORMAT` constant (the block, the device [`Layout`], the host's decoder)
//! and two `#[cube]` functions for a chunk of 32 values: `load`, which does its memory loads and nothing else, and `decode`,
//! which makes values of what was loaded, so that the one can be done long before the other. Plain floats have one, `vector`.
//! The registry has one table that names every format; nothing outside this folder names any.

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
mod low_bits;
mod prefetched;
mod raw;
mod registry;
mod view;

pub use format::{Codes, Format, Traits, Vectors};
pub use layout::{ComponentOffsets, Layout, MAX_COMPONENTS};
pub use prefetched::Prefetched;
pub use registry::{FORMATS, chunk, dense_vector, format, traits, values, vectors_per_chunk};
pub use view::{At, CHUNK, Chunk, MatrixView, MatrixViewLaunch};
