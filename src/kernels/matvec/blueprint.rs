//! The compile-time parameters of a matrix-vector kernel.

use super::problem::{ActivationType, Problem};
use super::settings::{MOST, Settings, decodes};
use crate::gguf::GgmlType;
use crate::kernels::activations::Activations;
use crate::kernels::arch::permute::NibbleOrder;
use crate::kernels::formats::{format, traits};
use crate::kernels::hardware::Hardware;
use crate::kernels::launch::used_bytes;
use crate::kernels::quantize::activations::shares_chunks;
use crate::kernels::quantize::staged::Staging;
use crate::kernels::weights::Weights;

/// The way that the lanes of a row add up their sums, by the device's abilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reduction {
    /// Lanes of a plane, by plane operations; several planes then through shared memory.
    Plane,
    /// Units of a cube, through shared memory.
    Shared,
    /// One unit a row.
    None,
}

/// Everything about the kernel that is fixed when it is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Blueprint {
    /// The format of the weights.
    pub ty: GgmlType,
    /// The type that the activations are multiplied as.
    pub operand: ActivationType,
    /// The way that the lanes of a group add up.
    pub reduction: Reduction,
    /// Chunks that a lane decodes together: the settings' span, or 1 where that does not divide the row's chunks.
    pub span: usize,
    /// Lanes that share a row, a power of two.
    pub lanes_per_row: u32,
    /// Groups of lanes in a cube.
    pub groups_per_cube: u32,
    /// Rows of weights a group of lanes multiplies, a power of two.
    pub rows_per_group: usize,
    /// Rows of activations that the kernel has sums for, a power of two; more are slices of a launch, or take more.
    pub tokens: usize,
    /// Spans whose loads a lane has under way together.
    pub unroll: usize,
    /// Cubes of a launch, which take rows until all are done; `None` for as many cubes as the rows need.
    pub cubes: Option<u32>,
    /// Shared memory for the int8 codes that each cube makes for itself; `None` where the activations come prepared.
    pub staging: Option<Staging>,
    /// Whether the loads of a step are under way while the step before is multiplied, the first while the cube stages.
    pub prefetch: bool,
    /// Words of the codebook that each cube copies to its shared memory; 0 for no copy.
    pub codebook: usize,
    /// Whether a row is whole steps of `unroll` spans of all lanes.
    pub whole: bool,
}

impl Blueprint {
    /// Whether its kernel is correct on the device, for any weights and activations that it is
    /// [clamped to](Self::clamped_to).
    pub fn is_supported(&self, hardware: &Hardware) -> bool {
        let Self { span, lanes_per_row: lanes, groups_per_cube: groups, rows_per_group, tokens, unroll, .. } = *self;
        let units = lanes.saturating_mul(groups);
        // CubeCL's CPU runtime makes a thread for each unit, however many cores it reports.
        let most = hardware.host_cores.map_or(hardware.max_units_per_cube, |_| MOST as u32);
        let reduces = match self.reduction {
            // Powers of two, so that more lanes than a plane has are whole planes.
            Reduction::Plane => hardware.plane.is_some(),
            Reduction::Shared => groups == 1,
            Reduction::None => lanes == 1,
        };
        [span, rows_per_group, tokens, unroll].iter().all(|count| (1..=MOST).contains(count))
            && (1..=most).contains(&units)
            && [lanes as usize, rows_per_group, tokens].iter().all(|count| count.is_power_of_two())
            && reduces
            && decodes(self.ty, span)
            && self.cubes != Some(0)
            && self.staging.is_none_or(|_| shares_chunks(hardware.plane, units))
    }

    /// The blueprint of a product by its settings.
    pub fn of(hardware: &Hardware, problem: Problem, settings: Settings) -> Self {
        let Settings { lanes_per_row, groups_per_cube, unroll, .. } = settings;
        let span = if problem.chunks.is_multiple_of(settings.span) { settings.span } else { 1 };
        let reduction = match hardware.plane {
            _ if lanes_per_row == 1 => Reduction::None,
            Some(_) => Reduction::Plane,
            None => Reduction::Shared,
        };
        let cubes = settings.persistent_cubes_per_core.and_then(|cubes| Some(hardware.cores? * cubes.get()));
        let tokens = settings.tokens.max(1);
        let traits = traits(problem.ty);
        let alternating = traits.lookup16.is_some()
            && traits.scales == 1
            && NibbleOrder::cheapest(&hardware.target) == Some(NibbleOrder::Sequential);
        let staging = Staging { tokens, chunks: staging_capacity(problem.chunks, span), span, alternating };
        // Cubes that take no further rows would each quantize for only a few.
        let staged = settings.stage
            && cubes.is_some()
            && problem.operand == ActivationType::Int8
            && shares_chunks(hardware.plane, lanes_per_row * groups_per_cube);
        let codebook = format(problem.ty).and_then(|format| format.codebook_on(&hardware.target));
        let codebook = codebook.filter(|_| settings.stage_codebook).map_or(0, |codebook| codebook().len());
        let fits = |bytes: usize| bytes <= hardware.shared_memory;
        let codebook = if fits(4 * codebook) { codebook } else { 0 };
        let staging = (staged && fits(staging.bytes() + 4 * codebook)).then_some(staging);
        Self {
            ty: problem.ty,
            operand: problem.operand,
            reduction,
            span,
            lanes_per_row,
            groups_per_cube,
            rows_per_group: settings.rows_per_group,
            tokens,
            unroll,
            cubes,
            staging,
            prefetch: settings.prefetch && staging.is_some(),
            codebook,
            whole: (problem.chunks / span).is_multiple_of(lanes_per_row as usize * unroll),
        }
    }

    /// Units of a cube.
    pub(super) fn units(&self) -> u32 {
        self.lanes_per_row * self.groups_per_cube
    }

    /// Sums that a lane has: one a row and token.
    pub(super) fn sums(&self) -> usize {
        self.rows_per_group * self.tokens
    }

    /// The index of the sum of a row and a token.
    pub(super) fn sum(&self, row: usize, token: usize) -> usize {
        row * self.tokens + token
    }

    /// The index, among the prefetched chunks, of chunk `place` of span `turn` of a step, in row `row` of the group.
    pub(super) fn prefetched(&self, turn: usize, place: usize, row: usize) -> usize {
        (turn * self.span + place) * self.rows_per_group + row
    }

    /// What the order of the terms of a row's sums depends on.
    pub(super) fn order(&self) -> (GgmlType, ActivationType, Reduction, usize, u32) {
        (self.ty, self.operand, self.reduction, self.span, self.lanes_per_row)
    }

    /// The blueprint for these weights and activations, with a replacement for each parameter that does not fit them.
    pub fn clamped_to(self, weights: &Weights, x: &Activations, operand: ActivationType) -> Self {
        let chunks = weights.chunks();
        let span = if chunks.is_multiple_of(self.span) { self.span } else { 1 };
        // The cubes read their activations in vectors of four.
        let stride = x.vector_stride();
        let staging = self.staging.filter(|staging| {
            let fits = staging.span == span && staging.chunks >= chunks && staging.tokens == self.tokens;
            fits && stride.is_some() && operand == ActivationType::Int8
        });
        let whole = (chunks / span).is_multiple_of(self.lanes_per_row as usize * self.unroll);
        let prefetch = self.prefetch && staging.is_some();
        let words = used_bytes(&weights.codebook) / 4;
        let codebook = if self.codebook == words { words } else { 0 };
        let ty = weights.ty();
        Self { ty, operand, span, tokens: self.tokens.max(1), staging, prefetch, codebook, whole, ..self }
    }
}

/// Chunks of a row that shared memory has room for: a power of two of spans, so that rows of similar length share a kernel.
fn staging_capacity(chunks: usize, span: usize) -> usize {
    (chunks / span).next_power_of_two() * span
}
