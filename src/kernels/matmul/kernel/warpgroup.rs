//! The same on Hopper's warpgroups: products run while the lanes decode the next step's weights.
//!
//! Activations come in the order that the instruction reads them in (see [`pack_cores`](super::super::pack)), by copies to shared
//! memory that are under way some steps ahead. A lane decodes weights as for `mma.sync`; an instruction takes them from
//! its registers, and all rows of activations of the cube at once from shared memory.
//!
//! ```text
//! start copying the first steps' activations; start loading the first step's weights
//! for each step:                                      while products of the step before run
//!     chunks = decode(loaded weights); start loading the next step's weights
//!     wait for this step's activations
//!     start copying the activations of a later step, where those of the step before the last were
//!     for each group of instructions:
//!         wait for the products of this group of the step before, which read their weights from the same registers
//!         weights = bf16(values of the chunks)
//!         start sums += weights * staged activations
//! ```

use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::{
    Blueprint, Extent, LaneChunks, Position, add_slices, decode_and_load, first_weights, store, weights_of, zeros,
};
use crate::gguf::GgmlType;
use crate::kernels::arch::warpgroup::{
    CORE_ROWS, address, begin_products, copy_async, descriptor, end_copies, end_products, multiply_add_async,
    wait_for_copies, wait_for_products,
};
use crate::kernels::formats::MatrixView;
use crate::kernels::matmul::pack::{CORES_PER_STEP, STEP_CHUNKS};
use crate::kernels::vector::Words;

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
    let stages = comptime!(blueprint.stages());
    let staged = Shared::<[Words]>::new_slice(comptime!(stages * stage));
    let (to, from) = (u32::cast_from(address(&staged, true)), address(x, false));
    let (begin, end) = position.steps();
    #[unroll]
    for ahead in 0..comptime!(stages - 2) {
        copy_activations(from, to, position, min(begin + ahead, end - 1), (begin + ahead) % stages);
        end_copies();
    }
    let mut weights = first_weights(view, position, begin);
    for step in begin..end {
        let chunks = decode_and_load(view, &mut weights, position, step, min(step + 1, end - 1));
        wait_for_copies(comptime!(stages - 3));
        sync_cube();
        let later = step + comptime!(stages - 2);
        copy_activations(from, to, position, min(later, end - 1), later % stages);
        end_copies();
        let first = step % stages * stage + position.slice * comptime!(stage / blueprint.slices);
        let first = to + u32::cast_from(first * VECTOR);
        multiply_step(&chunks, first, position, step, &mut sums);
    }
    wait(&mut sums, 0usize, blueprint);
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
    // The loaded words of BF16 are operands as they are; chosen ones have other registers than those that are loaded next.
    let is_sure = comptime!(blueprint.whole && blueprint.ty != GgmlType::BF16);
    let inside = is_sure || position.chunk(step) < position.extent.chunks;
    let (tiles, groups) = comptime!((blueprint.row_tiles, blueprint.groups()));
    // An instruction's depth is two core matrices.
    let of_group = comptime!(CORES_PER_STEP / 2 / groups);
    #[unroll]
    for group in 0..groups {
        wait(sums, comptime!(groups - 1), blueprint);
        let mut weights = Sequence::<Words>::new();
        #[unroll]
        for i in 0..comptime!(of_group * tiles) {
            let (tile, instruction) = comptime!((i % tiles, group * of_group + i / tiles));
            weights.push(weights_of::<Const<4>>(chunks, inside, tile, instruction, blueprint));
        }
        begin_products();
        #[unroll]
        for i in 0..comptime!(of_group * tiles) {
            let (tile, instruction) = comptime!((i % tiles, group * of_group + i / tiles));
            let x = descriptor(first + comptime!((2 * instruction * CORE_ROWS * VECTOR) as u32), CORES_PER_STEP);
            sums[tile] = multiply_add_async(*weights.index(i), x, sums[tile]);
        }
        end_products();
    }
}

/// Waits for the products of all groups but the last `pending`.
#[cube]
fn wait<S: Size>(sums: &mut Array<Vector<f32, S>>, #[comptime] pending: usize, #[comptime] blueprint: Blueprint) {
    #[unroll]
    for tile in 0..blueprint.row_tiles {
        sums[tile] = wait_for_products(sums[tile], pending);
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
