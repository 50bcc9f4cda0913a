//! TQ1_0, TQ2_0, Q2_0: the largest magnitude becomes 1, and values -1, 0 or 1 of it. Q1_0: signs of the mean magnitude.

use cubecl::prelude::*;

use super::chunks::{CHUNKS, ChunkAt};
use super::codes::{Made, Place, add_codes, bytes_of, zeros};
use super::rounding::{Four, floats_at, inverse, largest_of_all, load, load_all};
use super::search::extreme_of;
use super::super_rule::{Shares, SuperRule};
use crate::gguf::GgmlType;
use crate::kernels::floats::f16_bits;
use crate::kernels::vector::Words;

/// Four values times `factor` to the nearest of -1, 0 and 1, halves away from zero, plus 1.
#[cube]
fn ternary(values: Four, factor: f32) -> Words {
    let mut out = Words::empty();
    #[unroll]
    for i in 0..4usize {
        let scaled = values.extract(i) * factor;
        out.insert(i, select(scaled >= 0.5f32, 2u32, select(scaled <= -0.5f32, 0u32, 1u32)));
    }
    out
}

/// The words of a chunk of two-bit codes.
#[cube]
fn crumbs(values: &Sequence<Four>, #[comptime] first: usize, factor: f32) -> Array<u32> {
    let mut words = zeros(2usize);
    #[unroll]
    for i in 0..8usize {
        add_codes(&mut words, i, bytes_of(ternary(*values.index(comptime!(first + i)), factor)), 2usize);
    }
    words
}

/// A block of Q2_0.
#[cube]
pub fn q2_0<X: Float>(x: &[Vector<X, Const<4>>], first: usize, out: &mut [Words], place: Place) -> Made {
    let values = load_all::<X>(x, first, 16usize);
    let largest = largest_of_all(&values);
    let scale = f32::reinterpret(largest);
    let factor = inverse(scale);
    #[unroll]
    for chunk in 0..2usize {
        let words = crumbs(&values, comptime!(8 * chunk), factor);
        place.destination.store_chunk(out, 0usize, place.row, place.block * 2 + chunk, &words, 2usize);
    }
    Made { scale: f16_bits(scale), largest }
}

/// Quantizes a chunk of TQ1_0 or TQ2_0, which is chunk `index` of the cube; the first of a pair of super-blocks also stores their
/// scales.
#[cube]
pub fn quantize_ternary_chunk<X: Float>(
    x: &[Vector<X, Const<4>>],
    out: &mut [Words],
    at: ChunkAt,
    shares: &Shares<'_>,
    index: usize,
    #[comptime] rule: SuperRule,
) {
    let first = index / CHUNKS * CHUNKS;
    let scale = largest_scale(shares, first);
    let factor = inverse(scale);
    if comptime!(rule.ty == GgmlType::TQ2_0) {
        let words = crumbs(&load_all::<X>(x, at.first + at.chunk * 8, 8usize), 0usize, factor);
        at.destination.store_chunk(out, 0usize, at.row, at.block * CHUNKS + at.chunk, &words, 2usize);
    } else {
        store_trits::<X>(x, out, at, factor);
    }
    if at.chunk == 0 {
        let mut next = 0u32;
        if at.has_both() {
            next = f16_bits(largest_scale(shares, first + CHUNKS));
        }
        at.store_halves(out, comptime!(if rule.ty == GgmlType::TQ2_0 { 1usize } else { 2 }), f16_bits(scale), next);
    }
}

/// The largest magnitude of a super-block whose chunks begin at `first`.
#[cube]
fn largest_scale(shares: &Shares<'_>, first: usize) -> f32 {
    f32::abs(extreme_of(&floats_at(shares.scales, first, CHUNKS), CHUNKS))
}

/// Stores a unit's words of a super-block of TQ1_0: bytes of five base-3 digits, whose values are as far apart as there are bytes in
/// their run. The first run has a word a unit, the second four, and after it come four bytes of four digits.
#[cube]
fn store_trits<X: Float>(x: &[Vector<X, Const<4>>], out: &mut [Words], at: ChunkAt, factor: f32) {
    let words = at.block * 12;
    let in_first = digits::<X>(x, at.first + at.chunk, 8usize, 5usize, factor);
    at.destination.store(out, 0usize, at.row, words + at.chunk, fractions(in_first));
    if at.chunk < 4 {
        let in_second = digits::<X>(x, at.first + 40 + at.chunk, 4usize, 5usize, factor);
        at.destination.store(out, 0usize, at.row, words + 8 + at.chunk, fractions(in_second));
    } else if at.chunk == 4 {
        let last = digits::<X>(x, at.first + 60, 1usize, 4usize, factor);
        at.destination.store(out, 1usize, at.row, at.block, fractions(last * Words::new(3u32)));
    }
}

/// Numbers of `count` base-3 digits, of vectors that are `apart` vectors apart.
#[cube]
fn digits<X: Float>(
    x: &[Vector<X, Const<4>>],
    first: usize,
    #[comptime] apart: usize,
    #[comptime] count: usize,
    factor: f32,
) -> Words {
    let mut numbers = Words::new(0u32);
    #[unroll]
    for digit in 0..count {
        let values = load::<X>(x, first + comptime!(digit * apart));
        numbers = numbers * Words::new(3u32) + ternary(values, factor);
    }
    numbers
}

/// Numbers of five base-3 digits as the least bytes that have these digits as fractions of 256.
#[cube]
fn fractions(numbers: Words) -> u32 {
    bytes_of((numbers * Words::new(256u32) + Words::new(242u32)) / Words::new(243u32))
}

/// Two blocks of Q1_0, or one: each of their sums is a long chain of additions, and two need not wait for each other.
#[cube]
pub fn q1_0<X: Float>(
    x: &[Vector<X, Const<4>>],
    first: usize,
    out: &mut [Words],
    place: Place,
    has_second: bool,
) -> Made {
    let mut sum = 0.0f32;
    let mut second_sum = 0.0f32;
    let mut largest = 0u32;
    // Without a second block the first is read again.
    let second = first + select(has_second, 32usize, 0usize);
    for chunk in 0..4usize {
        let values = load_all::<X>(x, first + chunk * 8, 8usize);
        let second_values = load_all::<X>(x, second + chunk * 8, 8usize);
        largest = max(largest, max(largest_of_all(&values), largest_of_all(&second_values)));
        let mut words = zeros(1usize);
        let mut second_words = zeros(1usize);
        #[unroll]
        for i in 0..8usize {
            let (four, second_four) = (*values.index(i), *second_values.index(i));
            #[unroll]
            for j in 0..4usize {
                sum += f32::abs(four.extract(j));
                second_sum += f32::abs(second_four.extract(j));
            }
            add_codes(&mut words, i, signs(four), 1usize);
            add_codes(&mut second_words, i, signs(second_four), 1usize);
        }
        let to = place.block * 4 + chunk;
        place.destination.store_chunk(out, 0usize, place.row, to, &words, 1usize);
        if has_second {
            place.destination.store_chunk(out, 0usize, place.row, to + 4, &second_words, 1usize);
        }
    }
    let mean = comptime!(1.0f32 / 128.0);
    let second_scale = select(has_second, f16_bits(second_sum * mean), 0u32);
    Made { scale: f16_bits(sum * mean) | (second_scale << 16), largest }
}

/// A byte for each of four values: whether it is 0 or more.
#[cube]
fn signs(four: Four) -> u32 {
    let mut signs = Words::empty();
    #[unroll]
    for i in 0..4usize {
        signs.insert(i, u32::cast_from(four.extract(i) >= 0.0f32));
    }
    bytes_of(signs)
}
