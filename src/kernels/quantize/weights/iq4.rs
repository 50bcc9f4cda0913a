//! IQ4_NL and IQ4_XS: the nearest values of a table, by the scale for which they fit best. The search is ggml's
//! (`quantize_row_iq4_nl_impl`), with the values' squares as weights.

use cubecl::prelude::*;

use super::chunks::{CHUNKS, ChunkAt};
use super::codes::{Made, Place, add_codes, bytes_of, middle, table_value, zeros};
use super::importance::{Importance, weights_of_columns};
use super::rounding::{
    Four, extreme, floats_at, inverse, largest_of_all, load_all, nearest, product, squares, sum_of_squares,
};
use super::search::{LEAST, extreme_of};
use super::super_rule::Shares;
use crate::gguf::GgmlType;
use crate::kernels::floats::f16_bits;
use crate::kernels::vector::Words;

/// The format whose table both look up.
const TABLE: GgmlType = GgmlType::IQ4NL;

/// The value of the table next to a number, the greater of two.
#[cube]
fn nearest_value(number: f32) -> f32 {
    let mut nearest = comptime!(table_value(TABLE, 0)).runtime();
    #[unroll]
    for i in 0..15usize {
        nearest = select(number >= comptime!(middle(TABLE, i)), comptime!(table_value(TABLE, i + 1)), nearest);
    }
    nearest
}

/// The indices of the values next to four numbers times `factor`.
#[cube]
fn nearest_indices(numbers: Four, factor: f32) -> u32 {
    let mut indices = Words::new(0u32);
    #[unroll]
    for j in 0..4usize {
        let number = numbers.extract(j) * factor;
        let mut index = 0u32;
        #[unroll]
        for i in 0..15usize {
            index += u32::cast_from(number >= comptime!(middle(TABLE, i)));
        }
        indices.insert(j, index);
    }
    bytes_of(indices)
}

/// Steps to either side of the scale that makes the value of the largest magnitude the table's first.
const STEPS: u32 = 7;

/// The scale of 32 values for which they are nearest to those of the table, by weights of the errors.
#[cube]
pub fn search_scale(values: &Sequence<Four>, weights: &Sequence<Four>) -> f32 {
    let extreme = extreme(values);
    let first = comptime!(table_value(TABLE, 0)).runtime();
    let mut scale = 0.0f32;
    let mut best = 0.0f32;
    // The obvious scale, then all steps, which have it, too.
    for step in 0..comptime!(2 * STEPS + 2) {
        let above = f32::cast_from(step) - comptime!((STEPS + 1) as f32);
        let obvious = 1.0f32 / ((0.0f32 - extreme) / first);
        let factor = select(step == 0, obvious, (above + first) / extreme);
        let mut sum_qx = 0.0f32;
        let mut sum_q2 = 0.0f32;
        #[unroll]
        for i in 0..8usize {
            let (four, of_four) = (*values.index(i), *weights.index(i));
            #[unroll]
            for j in 0..4usize {
                let x = four.extract(j);
                let q = nearest_value(factor * x);
                let weighted = of_four.extract(j) * q;
                sum_qx += product(weighted, x);
                sum_q2 += product(weighted, q);
            }
        }
        let is_better = sum_q2 > 0.0f32 && product(sum_qx, sum_qx) > product(best, sum_q2);
        if step == 0 || is_better {
            scale = select(sum_q2 > 0.0f32, sum_qx / sum_q2, 0.0f32);
            best = scale * sum_qx;
        }
    }
    select(f32::abs(extreme) < comptime!(LEAST), 0.0f32, scale)
}

/// The words of 32 values times `factor`.
#[cube]
fn chunk_of(values: &Sequence<Four>, factor: f32) -> Array<u32> {
    let mut words = zeros(4usize);
    #[unroll]
    for i in 0..8usize {
        add_codes(&mut words, i, nearest_indices(*values.index(i), factor), 4usize);
    }
    words
}

/// A block of IQ4_NL.
#[cube]
pub fn iq4_nl<X: Float>(
    x: &[Vector<X, Const<4>>],
    first: usize,
    importance: &Importance<'_>,
    out: &mut [Words],
    place: Place,
    #[comptime] weighted: bool,
) -> Made {
    let values = load_all::<X>(x, first, 8usize);
    let weights = if comptime!(weighted) {
        let variance = sum_of_squares::<X>(x, first, 8usize.runtime()) * comptime!(2.0f32 / 32.0);
        weights_of_columns(&values, &Importance::new(importance.values, importance.first, variance))
    } else {
        squares(&values)
    };
    let scale = search_scale(&values, &weights);
    let words = chunk_of(&values, inverse(scale));
    place.destination.store_chunk(out, 0usize, place.row, place.block, &words, 4usize);
    Made { scale: f16_bits(scale), largest: largest_of_all(&values) }
}

/// Quantizes a chunk of IQ4_XS, which is chunk `index` of the cube; the first of a super-block also stores its scales.
#[cube]
pub fn quantize_iq4_chunk<X: Float>(
    x: &[Vector<X, Const<4>>],
    out: &mut [Words],
    at: ChunkAt,
    shares: &Shares<'_>,
    index: usize,
) {
    let first = index / CHUNKS * CHUNKS;
    let scales = floats_at(shares.scales, first, CHUNKS);
    let extreme = extreme_of(&scales, CHUNKS);
    let step = extreme * comptime!(-1.0f32 / 32.0);
    let factor = inverse(step);
    let own = step * f32::cast_from(number_of(shares.scales[index], factor));
    let words = chunk_of(&load_all::<X>(x, at.first + at.chunk * 8, 8usize), inverse(own));
    at.destination.store_chunk(out, 0usize, at.row, at.block * CHUNKS + at.chunk, &words, 4usize);
    if at.chunk == 0 {
        let mut low = 0u32;
        let mut bits = f16_bits(step) << 16;
        #[unroll]
        for i in 0..CHUNKS {
            let number = u32::cast_from(number_of(scales[i], factor) + 32i32);
            low |= (number & 0xf) << comptime!(4 * i as u32);
            bits |= (number >> 4) << comptime!(2 * i as u32);
        }
        at.destination.store(out, 1usize, at.row, at.block * 2, low);
        at.destination.store(out, 1usize, at.row, at.block * 2 + 1, bits);
    }
}

/// A chunk's scale as a number of steps.
#[cube]
fn number_of(scale: f32, factor: f32) -> i32 {
    clamp(nearest(factor * scale), -32i32, 31i32)
}
