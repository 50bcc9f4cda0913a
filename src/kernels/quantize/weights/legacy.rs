//! Q4_0, Q5_0: the value of the largest magnitude becomes the lowest code. Q4_1, Q5_1: the least value becomes code 0, the greatest
//! the highest one. Q8_0, Q8_1: the largest magnitude becomes 127.

use cubecl::prelude::*;

use super::codes::{Made, Place, add_codes, bytes_of, zeros};
use super::importance::{Importance, weights_of_columns};
use super::rounding::{Four, alone, away_from_zero, extreme, floats_of, floored, inverse, largest_of_all, load_all};
use super::search::{Steps, symmetric, with_min};
use crate::gguf::GgmlType;
use crate::kernels::arch::dot::sum4;
use crate::kernels::floats::f16_bits;
use crate::kernels::vector::Words;

/// Vectors of a block.
const FOURS: usize = 8;

/// A block of codes of `width` bits without a min.
#[cube]
pub fn signed<X: Float>(
    x: &[Vector<X, Const<4>>],
    first: usize,
    out: &mut [Words],
    place: Place,
    #[comptime] width: u32,
) -> Made {
    let values = load_all::<X>(x, first, FOURS);
    let half = comptime!(1u32 << (width - 1));
    let scale = extreme(&values) * comptime!(-1.0 / half as f32);
    let factor = inverse(scale);
    let mut codes = Sequence::<u32>::new();
    #[unroll]
    for i in 0..FOURS {
        let scaled = alone(*values.index(i) * Four::new(factor)) + Four::new(comptime!(half as f32 + 0.5));
        codes.push(bytes_of(floored(scaled, comptime!(2 * half - 1))));
    }
    store_codes(out, place, &codes, width);
    Made { scale: f16_bits(scale), largest: largest_of_all(&values) }
}

/// A block of codes of `width` bits with a min.
#[cube]
pub fn ranged<X: Float>(
    x: &[Vector<X, Const<4>>],
    first: usize,
    out: &mut [Words],
    place: Place,
    #[comptime] width: u32,
) -> Made {
    let values = load_all::<X>(x, first, FOURS);
    let most = comptime!((1u32 << width) - 1);
    let (mut least, mut greatest) = (*values.index(0usize), *values.index(0usize));
    #[unroll]
    for i in 1..FOURS {
        least = min(least, *values.index(i));
        greatest = max(greatest, *values.index(i));
    }
    let least =
        min(min(least.extract(0usize), least.extract(1usize)), min(least.extract(2usize), least.extract(3usize)));
    let greatest = max(
        max(greatest.extract(0usize), greatest.extract(1usize)),
        max(greatest.extract(2usize), greatest.extract(3usize)),
    );
    let scale = (greatest - least) / comptime!(most as f32);
    let factor = inverse(scale);
    let mut codes = Sequence::<u32>::new();
    #[unroll]
    for i in 0..FOURS {
        let above = *values.index(i) - Four::new(least);
        codes.push(bytes_of(floored(alone(above * Four::new(factor)) + Four::new(0.5f32), most)));
    }
    store_codes(out, place, &codes, width);
    Made { scale: f16_bits(scale) | (f16_bits(least) << 16), largest: largest_of_all(&values) }
}

/// A block by the importances of its columns: a search of the scale.
#[cube]
pub fn weighted<X: Float>(
    x: &[Vector<X, Const<4>>],
    first: usize,
    importance: &Importance<'_>,
    out: &mut [Words],
    place: Place,
    #[comptime] ty: GgmlType,
) -> Made {
    let width = comptime!(if matches!(ty, GgmlType::Q5_0 | GgmlType::Q5_1) { 5u32 } else { 4 });
    let has_min = comptime!(matches!(ty, GgmlType::Q4_1 | GgmlType::Q5_1));
    let values = load_all::<X>(x, first, FOURS);
    let weights = floats_of(&weights_of_columns(&values, importance), 32usize);
    let floats = floats_of(&values, 32usize);
    let found = if comptime!(has_min) {
        let most = comptime!((1 << width) - 1);
        with_min(&floats, &weights, comptime!(Steps { len: 32, most, first: -90, up: 5, last: 36, absolute: false }))
    } else {
        symmetric(&floats, &weights, 32usize, comptime!(1i32 << (width - 1)))
    };
    let mut codes = Sequence::<u32>::new();
    #[unroll]
    for i in 0..FOURS {
        codes.push(found.codes[i]);
    }
    store_codes(out, place, &codes, width);
    let mut scale = f16_bits(found.scale);
    if comptime!(has_min) {
        scale |= f16_bits(0.0f32 - found.min) << 16;
    }
    Made { scale, largest: largest_of_all(&values) }
}

/// Stores a block's codes: nibbles, and the fifth bits in a component of their own.
#[cube]
fn store_codes(out: &mut [Words], place: Place, codes: &Sequence<u32>, #[comptime] width: u32) {
    let mut nibbles = zeros(4usize);
    let mut fifths = zeros(1usize);
    #[unroll]
    for i in 0..FOURS {
        let four = *codes.index(i);
        add_codes(&mut nibbles, i, four & 0x0f0f_0f0f, 4usize);
        add_codes(&mut fifths, i, (four >> 4) & 0x0101_0101, 1usize);
    }
    place.destination.store_chunk(out, 0usize, place.row, place.block, &nibbles, 4usize);
    if comptime!(width == 5) {
        place.destination.store_chunk(out, 1usize, place.row, place.block, &fifths, 1usize);
    }
}

/// A block of bytes, with the sum of its values if `with_sum`.
#[cube]
pub fn bytes<X: Float>(
    x: &[Vector<X, Const<4>>],
    first: usize,
    out: &mut [Words],
    place: Place,
    #[comptime] with_sum: bool,
) -> Made {
    let values = load_all::<X>(x, first, FOURS);
    let largest = largest_of_all(&values);
    let scale = f32::reinterpret(largest) / 127.0f32;
    let factor = inverse(scale);
    let mut words = zeros(FOURS);
    let mut sum = 0i32;
    #[unroll]
    for i in 0..FOURS {
        let four = bytes_of(away_from_zero(*values.index(i) * Four::new(factor)));
        add_codes(&mut words, i, four, FOURS);
        sum += sum4(four);
    }
    place.destination.store_chunk(out, 0usize, place.row, place.block, &words, FOURS);
    let mut bits = f16_bits(scale);
    if comptime!(with_sum) {
        bits |= f16_bits(f32::cast_from(sum) * scale) << 16;
    }
    Made { scale: bits, largest }
}
