//! The formats: their GGUF blocks, their layouts on the device, and their decoding to numbers.
//!
//! A family of formats is one file. A format is a `FORMAT` constant (the block, the device [`Layout`], the host's decoder)
//! and two `#[cube]` functions for a chunk of 32 values: `locate` tells where its words are, `decode` makes values of them.
//! They are apart so that a kernel can load a chunk long before it decodes it, and by the instruction that suits it. Plain
//! floats have one function, `four`. The registry's table names every format; no operation names one.

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

pub use bits::f16;
pub use codebooks::Grid;
pub use format::{Codes, Format, Traits, Vectors};
pub use iq4::{codes_of, half_of_e8m0, half_of_ue4m3};
pub use layout::{ComponentOffsets, Layout, MAX_COMPONENTS};
pub use prefetched::Prefetched;
pub use raw::Raw;
pub use registry::{
    FORMATS, decode, dense_four, format, indices, locate, traits, unsigned, unsigned_four, values, vectors_per_chunk,
};
pub use view::{At, CHUNK, Chunk, Components, ComponentsLaunch, MatrixView, MatrixViewLaunch};
