//! The same on Hopper's warpgroups: products run while the lanes decode the next step's weights.
//!
//! Activations come in the order that the instruction reads them in (see [`pack_cores`](super::super::pack)), by bulk copies to
//! stages of shared memory that are under way some steps ahead. A lane decodes weights as for `mma.sync`; an instruction takes
//! them from its registers, and all rows of activations of the cube at once from shared memory.
//!
//! ```text
//! start copying the activations of the first steps; start loading the first step's weights
//! for each step:                                      while products of the step before run
//!     chunks = decode(loaded weights); start loading the next step's weights
//!     wait until this step's activations are there
//!     for each group of instructions:
//!         wait for the products of this group of the step before, which read their weights from the same registers
//!         weights = bf16(values of the chunks)
//!         start sums += weights * staged activations
//!     say that the activations of the step before are done with
//!     the first plane: when all planes have said so, start copying those of a later step to their stage
//! ```

use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::{
    Blueprint, Extent, LaneChunks, Position, add_slices, decode_and_load, first_weights, store, weights_of, zeros,
};
use crate::gguf::GgmlType;
use crate::kernels::arch::warpgroup::{
    CORE_ROWS, address, arrive, arrive_and_expect, begin_products, copy_async, descriptor, end_products, make_barrier,
    multiply_add_async, publish_barriers, wait_at, wait_for_products,
};
use crate::kernels::epilogue::Epilogue;
use crate::kernels::formats::MatrixView;
use crate::kernels::matmul::pack::{CORES_PER_STEP, GROUP_BYTES, STEP_CHUNKS};
use crate::kernels::routing::Tiles;
use crate::kernels::vector::Words;

/// Bytes of a vector, and from one barrier to the next.
const VECTOR: usize = 16;

/// `x`, rows of bf16 in core matrices, times the transpose of a matrix.
#[cube(launch_unchecked)]
pub fn multiply_warpgroups<O: Float, S: Size>(
    view: &MatrixView,
    x: &[Words],
    out: &mut [O],
    extent: Extent,
    epilogue: Epilogue,
    tiles: ComptimeOption<Tiles>,
    #[comptime] blueprint: Blueprint,
    #[define(O)] _dtype: ElemType,
    #[define(S)] _size: usize,
) {
    let position = Position::new(extent, &tiles, blueprint);
    let mut sums = zeros::<S>(blueprint);
    let stages = comptime!(blueprint.stages());
    let staged = Shared::<[Words]>::new_slice(comptime!(stages * blueprint.staged_vectors()));
    let barriers = Shared::<[Words]>::new_slice(comptime!(2 * stages));
    let (to, first_barrier) = (u32::cast_from(address(&staged, true)), u32::cast_from(address(&barriers, true)));
    let ring = Ring { to, from: address(x, false), barriers: first_barrier, stages };
    if UNIT_POS == 0 {
        #[unroll]
        for stage in 0..stages {
            make_barrier(ring.filled(stage.runtime()), 1usize);
            make_barrier(ring.emptied(stage.runtime()), comptime!(blueprint.planes()));
        }
        publish_barriers();
    }
    sync_cube();
    let (begin, end) = position.steps();
    let copies = UNIT_POS_Y == 0;
    if copies {
        #[unroll]
        for stage in 0..comptime!(stages - 1) {
            if begin + stage < end {
                ring.fill(stage.runtime(), position, begin + stage);
            }
        }
    }
    let mut weights = first_weights(view, position, begin);
    // The stage of a step, and the parity of the phase in which its copies come.
    let mut stage = 0usize;
    let mut parity = 0u32;
    for step in begin..end {
        let chunks = decode_and_load(view, &mut weights, position, step, min(step + 1, end - 1));
        wait_at(ring.filled(stage), parity);
        multiply_step(&chunks, ring, stage, position, step, &mut sums);
        // The products of the step before have been waited for.
        let is_first = step == begin;
        let before = select(stage == 0, comptime!(stages - 1).runtime(), stage - 1);
        if !is_first && position.lane == 0 {
            arrive(ring.emptied(before));
        }
        let later = step + comptime!(stages - 1);
        if copies && later < end {
            if !is_first {
                wait_at(ring.emptied(before), select(stage == 0, parity ^ 1, parity));
            }
            ring.fill(before, position, later);
        }
        let is_last = stage == comptime!(stages - 1);
        parity = select(is_last, parity ^ 1, parity);
        stage = select(is_last, 0usize.runtime(), stage + 1);
    }
    wait(&mut sums, 0usize, blueprint);
    if comptime!(blueprint.slices > 1) {
        add_slices(&mut sums, position);
    }
    if position.slice == 0 {
        store(&sums, out, position, &epilogue, &tiles);
    }
}

/// Starts the products of a step.
#[cube]
fn multiply_step<S: Size>(
    chunks: &LaneChunks,
    ring: Ring,
    stage: usize,
    position: Position,
    step: usize,
    sums: &mut Array<Vector<f32, S>>,
) {
    let blueprint = comptime!(position.blueprint);
    // The loaded words of BF16 are operands as they are; chosen ones have other registers than those that are loaded next.
    let is_sure = comptime!(blueprint.whole && blueprint.ty != GgmlType::BF16);
    let inside = is_sure || position.chunk(step) < position.extent.chunks;
    let (tiles, groups) = comptime!((blueprint.row_tiles, blueprint.groups()));
    let of_stage = comptime!(blueprint.staged_vectors());
    let first = stage * of_stage + position.slice * comptime!(of_stage / blueprint.slices);
    let first = ring.to + u32::cast_from(first * VECTOR);
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

/// The stages of activations, by addresses.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
struct Ring {
    /// The first stage.
    to: u32,
    /// The packed activations.
    from: u64,
    /// A barrier of each stage for copies, then one of each for planes.
    barriers: u32,
    #[cube(comptime)]
    stages: usize,
}

#[cube]
impl Ring {
    /// The barrier whose phase ends when the copies to a stage have come.
    fn filled(&self, stage: usize) -> u32 {
        self.barriers + u32::cast_from(stage * VECTOR)
    }

    /// The barrier that planes arrive at when they are done with a stage.
    fn emptied(&self, stage: usize) -> u32 {
        self.barriers + u32::cast_from((self.stages + stage) * VECTOR)
    }

    /// Starts to copy a step's activations to a stage, a slice's by one lane.
    fn fill(&self, stage: usize, position: Position, step: usize) {
        let (extent, blueprint) = (position.extent, comptime!(position.blueprint));
        let (slices, groups) = comptime!((blueprint.slices, blueprint.tokens() / CORE_ROWS));
        let barrier = self.filled(stage);
        if position.lane == 0 {
            arrive_and_expect(barrier, comptime!(slices * groups * GROUP_BYTES));
            #[unroll]
            for slice in 0..slices {
                let steps = (extent.chunks + comptime!(STEP_CHUNKS - 1)) / STEP_CHUNKS;
                // Past the last step, weights are zeros.
                let of_step = min(step * slices + slice, steps - 1);
                let of_row = (extent.tokens + comptime!(CORE_ROWS - 1)) / CORE_ROWS;
                let source = (of_step * of_row + position.token / CORE_ROWS) * GROUP_BYTES;
                let target = (stage * slices + slice) * comptime!(groups * GROUP_BYTES);
                let (to, from) = (self.to + u32::cast_from(target), self.from + u64::cast_from(source));
                copy_async(to, from, comptime!(groups * GROUP_BYTES), barrier);
            }
        }
    }
}
