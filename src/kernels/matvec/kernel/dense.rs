//! Products with weights that are floats: neighbouring lanes read neighbouring vectors of 16 bytes.

use cubecl::frontend::comptime;
use cubecl::prelude::*;

use super::clamped;
use super::dot::dot_four;
use super::inputs::{Inputs, Matrix};
use crate::kernels::arch::target::Target;
use crate::kernels::arch::warpgroup::load_early;
use crate::kernels::formats::{MatrixView, dense_four, vectors_per_chunk};
use crate::kernels::vector::Words;

/// Adds the products of the rows of a group, from `first_row` on.
#[cube]
pub(super) fn multiply_dense(matrix: &Matrix, inputs: &Inputs, first_row: usize, acc: &mut Array<f32>) {
    let (x, work) = (inputs.x.values(), inputs.work);
    let blueprint = comptime!(work.blueprint);
    let lanes = comptime!(blueprint.lanes_per_row as usize);
    let fours = comptime!(8 / vectors_per_chunk(blueprint.ty));
    let vectors = work.extent.spans * comptime!(blueprint.span * vectors_per_chunk(blueprint.ty));
    for first in range_stepped(UNIT_POS_X as usize, vectors, comptime!(lanes * blueprint.unroll)) {
        // All loads of weights are under way before the first is waited for.
        let mut loaded = Sequence::<Words>::new();
        #[unroll]
        for turn in 0..blueprint.unroll {
            let vector = first + comptime!(turn * lanes);
            let vector = if comptime!(turn == 0) { vector } else { clamped(vector, vectors) };
            #[unroll]
            for r in 0..blueprint.rows_per_group {
                let row = work.expert_row + clamped(first_row + r, matrix.n);
                loaded.push(load_vector(&matrix.view, matrix.view.wide(0usize, row, vector)));
            }
        }
        #[unroll]
        for turn in 0..blueprint.unroll {
            let vector = first + comptime!(turn * lanes);
            let inside = vector < vectors;
            let vector = if comptime!(turn == 0) { vector } else { clamped(vector, vectors) };
            let mut weights = Sequence::<Vector<f32, Const<4>>>::new();
            #[unroll]
            for r in 0..blueprint.rows_per_group {
                let words = *loaded.index(comptime!(turn * blueprint.rows_per_group + r));
                #[unroll]
                for four in 0..fours {
                    weights.push(dense_four(words, four, blueprint.ty));
                }
            }
            #[unroll]
            for t in 0..blueprint.tokens {
                let at = work.token(t) * work.extent.stride + vector * fours;
                #[unroll]
                for r in 0..blueprint.rows_per_group {
                    let i = comptime!(blueprint.sum(r, t));
                    let mut sum = acc[i];
                    #[unroll]
                    for four in 0..fours {
                        sum = dot_four(*weights.index(comptime!(r * fours + four)), x[at + four], sum);
                    }
                    acc[i] = if comptime!(turn == 0) { sum } else { select(inside, sum, acc[i]) };
                }
            }
        }
    }
}

/// A vector of weights. `ptxas` would put each load where its result is waited for.
#[cube]
fn load_vector(view: &MatrixView, at: usize) -> Words {
    let properties = comptime::device_properties();
    if comptime!(matches!(Target::of(&properties), Target::Nvidia(_))) {
        load_early(view.address() + 16 * u64::cast_from(at))
    } else {
        view.vector_at(at)
    }
}
