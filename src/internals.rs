//! Access to the kernels for this package's tests, tools and command alone. Not part of the API.

use cubecl::server::Handle;

pub use crate::kernels::arch::dot::{Bytes, dot16};
pub use crate::kernels::catalogue::{Entry as Launch, entries};
pub use crate::kernels::decoder::attention::{Attention, attend};
pub use crate::kernels::decoder::rotary::{Heads, KeyValues};
pub use crate::kernels::floats::has_buffers;
pub use crate::kernels::formats::{CHUNK, FORMATS, Format, MAX_COMPONENTS, Vectors, format, vectors_per_chunk};
pub use crate::kernels::hardware::Hardware;
pub use crate::kernels::launch::compiled;
pub use crate::kernels::matvec::{Blueprint, MAX_TOKENS, Problem, Reduction};
pub use crate::kernels::tune::{for_row, heuristic};
pub use crate::kernels::vector::Words;
pub use crate::storage::quantize_only;
use crate::{Activations, DeviceTensor, Result};

/// The product of each matrix with the activations, by one blueprint, clamped to each matrix and the activations.
///
/// # Errors
///
/// As [`DeviceTensor::matmul_many_on_device`]; [`Error::Device`](crate::Error::Device) where the device does not
/// support the blueprint.
pub fn matmul_by(matrices: &[&DeviceTensor], x: &Activations, blueprint: Blueprint) -> Result<Vec<Handle>> {
    DeviceTensor::matmul_many_by(matrices, x, blueprint)
}
