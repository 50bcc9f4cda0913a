//! Products with weights in blocks: a lane's spans one after the other, the next step's weights on their way meanwhile.

use cubecl::prelude::*;

use super::clamped;
use super::dot::{add_int8, dot_float};
use super::inputs::{CubeWork, Inputs, Matrix, Position};
use super::lookup::decode_chunk;
use crate::kernels::arch::schedule::{pin_after_barrier, schedule_barrier};
use crate::kernels::formats::{Chunk, Prefetched, Raw, locate, values};
use crate::kernels::matvec::blueprint::Blueprint;
use crate::kernels::matvec::problem::ActivationType;

/// What a lane takes in a step: `unroll` spans of the rows of its group, from the first of both on.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub(super) struct Step {
    pub(super) row: usize,
    pub(super) span: usize,
    /// Whether there is any.
    pub(super) any: bool,
}

#[cube]
impl Step {
    pub(super) fn none() -> Step {
        Step { row: 0usize.runtime(), span: 0usize.runtime(), any: false.runtime() }
    }

    /// The first of a group, which may be past the last.
    pub(super) fn first(group: usize, #[comptime] blueprint: Blueprint) -> Step {
        Step { row: group * blueprint.rows_per_group, span: UNIT_POS_X as usize, any: true }
    }

    /// A chunk of the step.
    fn position(&self, work: CubeWork, #[comptime] turn: usize, #[comptime] place: usize) -> Position {
        let lanes = comptime!(work.blueprint.lanes_per_row as usize);
        let span = clamped(self.span + comptime!(turn * lanes), work.extent.spans);
        Position { expert_row: work.expert_row, row: self.row, span, turn, place }
    }
}

/// Adds the products of the rows of a group, from `first_row` on, before the step `next` of the pass after this one.
#[cube]
pub(super) fn multiply_blocks(
    matrix: &Matrix,
    inputs: &Inputs,
    prefetched: &mut Sequence<Prefetched>,
    first_row: usize,
    next: Step,
    acc: &mut Array<f32>,
) {
    let blueprint = comptime!(inputs.work.blueprint);
    let spans = inputs.work.extent.spans;
    let lanes = comptime!(blueprint.lanes_per_row as usize);
    let step = comptime!(lanes * blueprint.unroll);
    for first in range_stepped(UNIT_POS_X as usize, spans, step) {
        let more = first + step < spans;
        let next = Step {
            row: select(more, first_row, next.row),
            span: select(more, first + step, next.span),
            any: more || next.any,
        };
        #[unroll]
        for turn in 0..blueprint.unroll {
            let span = first + comptime!(turn * lanes);
            // In the tail some lanes have no span; they compute a clamped one and discard it.
            let inside = span < spans;
            let sure = comptime!(blueprint.whole || turn == 0);
            let span = if sure { span } else { clamped(span, spans) };
            #[unroll]
            for place in 0..blueprint.span {
                let expert_row = inputs.work.expert_row;
                let position = Position { expert_row, row: first_row, span, turn, place };
                if sure {
                    add_chunk(matrix, inputs, prefetched, position, next, acc);
                } else {
                    let mut added = Array::<f32>::new(comptime!(blueprint.sums()));
                    #[unroll]
                    for i in 0..comptime!(blueprint.sums()) {
                        added[i] = acc[i];
                    }
                    add_chunk(matrix, inputs, prefetched, position, next, &mut added);
                    #[unroll]
                    for i in 0..comptime!(blueprint.sums()) {
                        acc[i] = select(inside, added[i], acc[i]);
                    }
                }
            }
        }
    }
}

/// Loads what a step takes, in place of what was loaded before.
#[cube]
pub(super) fn load_step(matrix: &Matrix, work: CubeWork, step: Step, prefetched: &mut Sequence<Prefetched>) {
    #[unroll]
    for turn in 0..work.blueprint.unroll {
        #[unroll]
        for place in 0..work.blueprint.span {
            load_chunks(matrix, step.position(work, turn, place), prefetched, work.blueprint);
        }
    }
}

/// Loads the chunks at a position of all rows.
#[cube]
fn load_chunks(
    matrix: &Matrix,
    position: Position,
    prefetched: &mut Sequence<Prefetched>,
    #[comptime] blueprint: Blueprint,
) {
    #[unroll]
    for r in 0..blueprint.rows_per_group {
        let at = position.of_row(matrix, r, blueprint);
        let i = comptime!(blueprint.prefetched(position.turn, position.place, r));
        if comptime!(i == prefetched.len()) {
            prefetched.push(Prefetched::of(&matrix.view, at, blueprint.ty));
        } else {
            prefetched.index_mut(i).replace(&matrix.view, at, blueprint.ty);
        }
    }
}

/// Loads the chunks at a position's place of the step `next`, if there is one.
#[cube]
fn load_next(matrix: &Matrix, work: CubeWork, position: Position, next: Step, prefetched: &mut Sequence<Prefetched>) {
    if next.any {
        let position = next.position(work, comptime!(position.turn), comptime!(position.place));
        load_chunks(matrix, position, prefetched, work.blueprint);
    }
}

/// Adds the products of the chunks at a position, of all rows and tokens, with the chunks there of the next step on their way
/// meanwhile.
#[cube]
fn add_chunk(
    matrix: &Matrix,
    inputs: &Inputs,
    prefetched: &mut Sequence<Prefetched>,
    position: Position,
    next: Step,
    acc: &mut Array<f32>,
) {
    let blueprint = comptime!(inputs.work.blueprint);
    let mut chunk = position.chunk(blueprint);
    if comptime!(position.place > 0) {
        if comptime!(blueprint.tokens >= 4) {
            chunk = pin_after_barrier(chunk);
        } else {
            schedule_barrier();
        }
    }
    if comptime!(blueprint.operand == ActivationType::Int8) {
        let weights = decode_chunks(matrix, inputs, prefetched, position, next);
        add_codes(&weights, inputs, position, chunk, acc);
    } else {
        add_floats(matrix, inputs, position, chunk, acc);
    }
}

/// The chunks of weights at a position, of all rows, with those there of the next step on their way.
#[cube]
fn decode_chunks(
    matrix: &Matrix,
    inputs: &Inputs,
    prefetched: &mut Sequence<Prefetched>,
    position: Position,
    next: Step,
) -> Sequence<Chunk> {
    let blueprint = comptime!(inputs.work.blueprint);
    let mut chunks = Sequence::<Chunk>::new();
    #[unroll]
    for r in 0..blueprint.rows_per_group {
        let at = position.of_row(matrix, r, blueprint);
        let raw = if comptime!(blueprint.prefetch) {
            prefetched.index(comptime!(blueprint.prefetched(position.turn, position.place, r))).raw()
        } else {
            Raw::load(&matrix.view, &locate(&matrix.view, at, blueprint.ty))
        };
        chunks.push(decode_chunk(&raw, inputs.codebook, at, blueprint));
    }
    if comptime!(blueprint.prefetch) {
        load_next(matrix, inputs.work, position, next, prefetched);
    }
    chunks
}

/// Adds the products of chunks of all rows with chunk `chunk` of all tokens, as codes.
#[cube]
fn add_codes(weights: &Sequence<Chunk>, inputs: &Inputs, position: Position, chunk: usize, acc: &mut Array<f32>) {
    let blueprint = comptime!(inputs.work.blueprint);
    let mut chunk = chunk;
    #[unroll]
    for t in 0..blueprint.tokens {
        chunk = after_enough(chunk, t, blueprint);
        let x = inputs.x.chunk(inputs.work, position, chunk, t);
        #[unroll]
        for r in 0..blueprint.rows_per_group {
            let i = comptime!(blueprint.sum(r, t));
            acc[i] = add_int8(acc[i], weights.index(r), x, blueprint);
        }
    }
}

/// Adds the products of the chunks at a position, of all rows, with chunk `chunk` of all tokens, as floats.
#[cube]
fn add_floats(matrix: &Matrix, inputs: &Inputs, position: Position, chunk: usize, acc: &mut Array<f32>) {
    let (x, work) = (inputs.x.values(), inputs.work);
    let blueprint = comptime!(work.blueprint);
    let mut chunk = chunk;
    #[unroll]
    for r in 0..blueprint.rows_per_group {
        // The floats of a chunk take 32 registers: one row's at a time.
        if comptime!(r > 0) {
            schedule_barrier();
        }
        let at = position.of_row(matrix, r, blueprint);
        let values = values(&matrix.view, inputs.codebook, at, blueprint.ty);
        #[unroll]
        for t in 0..blueprint.tokens {
            chunk = after_enough(chunk, t, blueprint);
            let first = work.token(t) * work.extent.stride + chunk * 8;
            acc[comptime!(blueprint.sum(r, t))] += dot_float(&values, x, first);
        }
    }
}

/// The chunk of activations, after a barrier wherever a wave should wait for what it loads of the tokens before `t`.
#[cube]
fn after_enough(chunk: usize, #[comptime] t: usize, #[comptime] blueprint: Blueprint) -> usize {
    // Rows of activations of which a chunk each takes as many registers as a wave should wait for.
    let at_once = comptime!(match blueprint.operand {
        ActivationType::Int8 if blueprint.span <= 4 => 4,
        ActivationType::Int8 => 2,
        ActivationType::Float => 1,
    });
    if comptime!(blueprint.tokens >= 4 && t > 0 && t.is_multiple_of(at_once)) {
        pin_after_barrier(chunk)
    } else {
        chunk
    }
}
