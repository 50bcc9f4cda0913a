//! TQ1_0, TQ2_0, Q2_0: the largest magnitude becomes 1, and values -1, 0 or 1 of it. Q1_0: signs of the mean magnitude.

use cubecl::prelude::*;

use super::codes::{Destination, Place, add_codes, bytes_of, chunk_words};
use super::rounding::{Four, inverse, load, magnitude};
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

/// A block of `chunks` chunks of two-bit codes.
#[cube]
pub fn crumbs<X: Float>(
    x: &[Vector<X, Const<4>>],
    first: usize,
    out: &mut [Words],
    destination: &Destination,
    place: Place,
    #[comptime] chunks: usize,
) -> u32 {
    let scale = magnitude::<X>(x, first, comptime!(8 * chunks));
    let factor = inverse(scale);
    for chunk in 0..chunks {
        let mut words = chunk_words(2usize);
        #[unroll]
        for i in 0..8usize {
            let codes = ternary(load::<X>(x, first + chunk * 8 + i), factor);
            add_codes(&mut words, i, bytes_of(codes), 2usize);
        }
        destination.store_chunk(out, 0usize, place.row, place.block * chunks + chunk, &words, 2usize);
    }
    f16_bits(scale)
}

/// A block of TQ1_0: bytes of five base-3 digits, whose values are as far apart as there are bytes in their run.
#[cube]
pub fn trits<X: Float>(
    x: &[Vector<X, Const<4>>],
    first: usize,
    out: &mut [Words],
    destination: &Destination,
    place: Place,
) -> u32 {
    let scale = magnitude::<X>(x, first, 64usize);
    let factor = inverse(scale);
    // 32 bytes, then 16.
    for word in 0..12usize {
        let in_second = word >= 8;
        let start = select(in_second, first + 32 + word, first + word);
        let apart = select(in_second, 4usize, 8usize);
        let mut digits = Words::new(0u32);
        #[unroll]
        for digit in 0..5usize {
            digits = digits * Words::new(3u32) + ternary(load::<X>(x, start + digit * apart), factor);
        }
        destination.store(out, 0usize, place.row, place.block * 12 + word, fractions(digits));
    }
    // Four bytes of four digits, the last of which is 0.
    let mut digits = Words::new(0u32);
    #[unroll]
    for digit in 0..4usize {
        digits = digits * Words::new(3u32) + ternary(load::<X>(x, first + comptime!(60 + digit)), factor);
    }
    destination.store(out, 1usize, place.row, place.block, fractions(digits * Words::new(3u32)));
    f16_bits(scale)
}

/// Numbers of five base-3 digits as the least bytes that have these digits as fractions of 256.
#[cube]
fn fractions(numbers: Words) -> u32 {
    bytes_of((numbers * Words::new(256u32) + Words::new(242u32)) / Words::new(243u32))
}

/// A block of Q1_0.
#[cube]
pub fn signs<X: Float>(
    x: &[Vector<X, Const<4>>],
    first: usize,
    out: &mut [Words],
    destination: &Destination,
    place: Place,
) -> u32 {
    let mut sum = 0.0f32;
    for chunk in 0..4usize {
        let mut words = chunk_words(1usize);
        #[unroll]
        for i in 0..8usize {
            let values = load::<X>(x, first + chunk * 8 + i);
            let mut bits = Words::empty();
            #[unroll]
            for j in 0..4usize {
                sum += f32::abs(values.extract(j));
                bits.insert(j, u32::cast_from(values.extract(j) >= 0.0f32));
            }
            add_codes(&mut words, i, bytes_of(bits), 1usize);
        }
        destination.store_chunk(out, 0usize, place.row, place.block * 4 + chunk, &words, 1usize);
    }
    f16_bits(sum * 0.007_812_5f32)
}
