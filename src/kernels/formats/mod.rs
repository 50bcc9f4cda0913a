//! The formats: what a GGUF block holds, how it lies on the device, and how it becomes numbers.
//!
//! A family of formats is one file. A format is a [`Format`] constant (the block, the device [`Layout`], the host's
//! decoder) and one `#[cube]` function that decodes 32 values: `unit` for block formats, `vector` for plain floats. The
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

pub use format::{Codes, Format, Traits};
pub use layout::{Layout, MAX_PLANES, Placements};
pub use loads::Loads;
pub use registry::{FORMATS, dense_vector, format, traits, unit, values, vectors_per_unit};
pub use view::{At, Planes, PlanesLaunch, UNIT, Unit};
