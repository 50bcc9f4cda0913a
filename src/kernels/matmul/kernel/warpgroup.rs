//! The same on Hopper's warpgroups: products run while the lanes decode the next step's weights.
//!
//! Activations come in the order that the instruction reads them in (see [`pack_cores`](super::super::pack)), by copies to shared
//! memory that are under way [`STAGES`] steps ahead. A lane decodes weights as for `mma.sync`; an instruction takes them from
//! its registers, and all rows of activations of the cube at once from shared memory.
//!
//! ```text
//! start copying the first steps' activations; start loading the first step's weights
//! for each step:
//!     chunks = decode(loaded weights); start loading the next step's weights      while products run
//!     wait for the products of the step before, and for this step's activations
//!     start copying the activations of a later step, where those of the step before were
//!     for each instruction's depth of the chunk:
//!         weights = bf16(values of the chunks)
//!         start sums += weights * staged activations
//! ```

use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::{
    Blueprint, Extent, LaneChunks, Position, add_slices, decode_and_load, first_weights, store, weights_of, zeros,
};
use crate::kernels::arch::warpgroup::{
    CORE_ROWS, address, copy_async, descriptor, end_copies, multiply_add_async, wait_for_copies, wait_for_products,
};
use crate::kernels::formats::MatrixView;
use crate::kernels::matmul::pack::{CORES_PER_STEP, STEP_CHUNKS};
use crate::kernels::vector::Words;

/// Steps of activations in shared memory.
pub const STAGES: usize = 3;

/// Bytes of a vector.
const VECTOR: usize = 16;

/// `x`, rows of bf16 in core matrices, times the transpose of a matrix.
#[cube(launch_unchecked)]
pub fn multiply_warpgroups<O: Float, S: Size>(
    view: &MatrixView,
    x: &[Words],
    out: &mut [O],
    extent: Extent,
    #[comptime] blueprint: Blueprint,
    #[define(O)] _dtype: ElemType,
    #[define(S)] _size: usize,
) {
    let position = Position::new(extent, blueprint);
    let mut sums = zeros::<S>(blueprint);
    let stage = comptime!(blueprint.staged_vectors());
    let staged = Shared::<[Words]>::new_slice(comptime!(STAGES * stage));
    let (to, from) = (u32::cast_from(address(&staged, true)), address(x, false));
    let steps = position.steps();
    #[unroll]
    for step in 0..comptime!(STAGES - 1) {
        copy_activations(from, to, position, min(step.runtime(), steps - 1), step.runtime());
        end_copies();
    }
    let mut weights = first_weights(view, position);
    for step in 0..steps {
        let next = min(step + 1, steps - 1);
        let chunks = decode_and_load(view, &mut weights, position, step, next);
        wait(&mut sums, blueprint);
        wait_for_copies(comptime!(STAGES - 2));
        sync_cube();
        let later = step + comptime!(STAGES - 1);
        copy_activations(from, to, position, min(later, steps - 1), later % STAGES);
        end_copies();
        let first = step % STAGES * stage + position.slice * comptime!(stage / blueprint.slices);
        let first = to + u32::cast_from(first * VECTOR);
        multiply_step(&chunks, first, position, step, &mut sums);
    }
    wait(&mut sums, blueprint);
    if comptime!(blueprint.slices > 1) {
        add_slices(&mut sums, position);
    }
    if position.slice == 0 {
        store(&sums, out, position);
    }
}

/// Starts the products of a step.
#[cube]
fn multiply_step<S: Size>(
    chunks: &LaneChunks,
    first: u32,
    position: Position,
    step: usize,
    sums: &mut Array<Vector<f32, S>>,
) {
    let blueprint = comptime!(position.blueprint);
    let inside = comptime!(blueprint.whole) || position.chunk(step) < position.extent.chunks;
    // An instruction's depth is two core matrices.
    #[unroll]
    for instruction in 0..comptime!(CORES_PER_STEP / 2) {
        let x = descriptor(first + comptime!((2 * instruction * CORE_ROWS * VECTOR) as u32), CORES_PER_STEP);
        #[unroll]
        for tile in 0..blueprint.row_tiles {
            let weights = weights_of::<Const<4>>(chunks, inside, tile, instruction, blueprint);
            sums[tile] = multiply_add_async(weights, x, sums[tile]);
        }
    }
}

/// Waits for all products.
#[cube]
fn wait<S: Size>(sums: &mut Array<Vector<f32, S>>, #[comptime] blueprint: Blueprint) {
    #[unroll]
    for tile in 0..blueprint.row_tiles {
        sums[tile] = wait_for_products(sums[tile]);
    }
}

/// Starts to copy the unit's share of a step's activations to a stage.
#[cube]
fn copy_activations(from: u64, to: u32, position: Position, step: usize, stage: usize) {
    let (extent, blueprint) = (position.extent, comptime!(position.blueprint));
    let of_rows = comptime!(CORES_PER_STEP * CORE_ROWS);
    let steps = (extent.chunks + comptime!(STEP_CHUNKS - 1)) / STEP_CHUNKS;
    let last = (extent.tokens - 1) / CORE_ROWS;
    let (all, units) = comptime!((blueprint.staged_vectors(), blueprint.units()));
    #[unroll]
    for i in 0..comptime!(all.div_ceil(units)) {
        let vector = UNIT_POS as usize + comptime!(i * units);
        let of_slice = comptime!(all / blueprint.slices);
        let (slice, in_slice) = (vector / of_slice, vector % of_slice);
        let rows = min(position.token / CORE_ROWS + in_slice / of_rows, last);
        // Past the last step, weights are zeros.
        let of_step = min(step * comptime!(blueprint.slices) + slice, steps - 1);
        let source = (rows * steps + of_step) * of_rows + in_slice % of_rows;
        let in_stage = comptime!((i + 1) * units <= all) || vector < all;
        if in_stage {
            let target = to + u32::cast_from((stage * all + vector) * VECTOR);
            copy_async(target, from + u64::cast_from(source * VECTOR));
        }
    }
}
