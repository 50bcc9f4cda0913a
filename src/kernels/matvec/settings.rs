//! The settings of a product of few tokens: choices that do not change what it computes.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use super::problem::Problem;
use crate::gguf::GgmlType;
use crate::kernels::formats::{Format, Vectors, format};
use crate::kernels::hardware::Hardware;

/// Upper limit of any setting: a table entry beyond it is corrupt.
pub const MOST: usize = 1024;

/// The settings of a product of few tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Settings {
    /// Chunks that a lane decodes together.
    pub span: usize,
    /// Lanes that share a row, a power of two; 1 for no reduction.
    pub lanes_per_row: u32,
    /// Groups of lanes in a cube.
    pub groups_per_cube: u32,
    /// Rows of weights that a group multiplies at a time, a power of two.
    pub rows_per_group: usize,
    /// Rows of activations that the kernel has sums for, a power of two.
    pub tokens: usize,
    /// Spans whose loads a lane has under way together.
    pub unroll: usize,
    /// Cubes for each core of the device (a multiprocessor, a compute unit), which take rows until all are done; `None` for
    /// as many cubes as the rows need.
    pub persistent_cubes_per_core: Option<NonZeroU32>,
    /// Whether each cube quantizes the activations for itself, to its shared memory.
    pub stage: bool,
    /// Whether a lane loads a step while it multiplies the step before, and the first step while its cube quantizes.
    pub prefetch: bool,
    /// Whether each cube copies the format's codebook to its shared memory.
    pub stage_codebook: bool,
}

impl Settings {
    /// Whether the settings are consistent and at most `MOST`, on any device. Whether one has such a kernel shows at
    /// compilation.
    pub fn is_well_formed(&self) -> bool {
        let Self { span, lanes_per_row: lanes, groups_per_cube: groups, rows_per_group: rows, tokens, unroll, .. } =
            *self;
        let counts = [span, rows, tokens, unroll, groups as usize, lanes as usize];
        let (sums, units) = (rows.saturating_mul(tokens), lanes.saturating_mul(groups));
        counts.iter().all(|&count| (1..=MOST).contains(&count))
            && [lanes as usize, rows, tokens].iter().all(|count| count.is_power_of_two())
            && sums.saturating_mul(unroll).saturating_mul(span) <= MOST
            && units as usize <= MOST
            && self.persistent_cubes_per_core.is_none_or(|cubes| cubes.get() as usize <= MOST)
    }

    /// Whether the kernel of these settings is correct for the product on the device.
    pub fn is_supported(&self, hardware: &Hardware, problem: Problem) -> bool {
        let Self { span, lanes_per_row: lanes, groups_per_cube: groups, .. } = *self;
        // Lanes add up by plane operations, or else through shared memory, which serves one group.
        let reduces = hardware.plane.is_some() || lanes == 1 || groups == 1;
        self.is_well_formed()
            && reduces
            && lanes * groups <= hardware.max_units_per_cube
            && decodes(problem.ty, span)
            && problem.chunks.is_multiple_of(span)
    }
}

/// Whether a lane can decode `span` chunks of a format together.
pub(super) fn decodes(ty: GgmlType, span: usize) -> bool {
    let is_vectors = |format: &Format| [Vectors::All, Vectors::Widest].map(|v| format.vector_span(v)).contains(&span);
    span == 1 || format(ty).is_some_and(is_vectors)
}
