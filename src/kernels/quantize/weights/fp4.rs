//! MXFP4 and NVFP4: a scale that is a power of two, or a small float, and the nearest 4-bit floats.

use cubecl::prelude::*;

use super::codes::{Made, Place, add_codes, bytes_of, middle, zeros};
use super::rounding::{Four, largest_of_all, load_all};
use crate::gguf::GgmlType;
use crate::kernels::formats::{half_of_e8m0, half_of_ue4m3};
use crate::kernels::vector::Words;

/// The indices of the 4-bit floats next to four values: the magnitude's, and 8 for what is negative and not 0. `scale` is half of
/// the block's, as the table holds twice the floats. Of two that are as near ggml takes the smaller.
#[cube]
fn nearest(values: Four, scale: f32) -> Words {
    let mut out = Words::empty();
    #[unroll]
    for i in 0..4usize {
        let value = values.extract(i);
        let magnitude = f32::abs(value);
        let mut index = 0u32;
        #[unroll]
        for below in 0..7usize {
            index += u32::cast_from(magnitude > scale * comptime!(middle(GgmlType::MXFP4, below)));
        }
        // Without a scale all floats are as near, and the first is taken.
        let index = select(scale > 0.0f32, index, 0u32);
        out.insert(i, select(value < 0.0f32 && index > 0, index + 8, index));
    }
    out
}

/// A block of MXFP4. Its exponent is that of the largest magnitude, less 2.
#[cube]
pub fn mxfp4<X: Float>(x: &[Vector<X, Const<4>>], first: usize, out: &mut [Words], place: Place) -> Made {
    let values = load_all::<X>(x, first, 8usize);
    let largest = largest_of_all(&values);
    let exponent = biased_log2(largest);
    let exponent = select(exponent > 2, exponent - 2, 0u32);
    let half = half_of_e8m0(exponent);
    let mut words = zeros(4usize);
    #[unroll]
    for i in 0..8usize {
        add_codes(&mut words, i, bytes_of(nearest(*values.index(i), half)), 4usize);
    }
    place.destination.store_chunk(out, 0usize, place.row, place.block, &words, 4usize);
    Made { scale: exponent, largest }
}

/// 127 plus the floor of the logarithm that C's `log2f` gives of a float, which rounds up to an integer just below a power of two.
#[cube]
fn biased_log2(bits: u32) -> u32 {
    let next = (bits >> 23) + 1;
    // Below an integer floats are apart by 2^-23 times the greatest power of two up to `away`. The logarithm is rounded up where it
    // is less than half of that below, and the value then less than log 2 of as many of its own last places.
    let away = select(next < 127, 127 - next, next - 128);
    let power = f32::reinterpret(u32::reinterpret(f32::cast_from(away)) & 0x7f80_0000);
    let steps = u32::cast_from(power * core::f32::consts::LN_2);
    let below = 0x0080_0000 - (bits & 0x007f_ffff);
    let rounds_up = next != 127 && below <= steps;
    select(rounds_up, next, next - 1)
}

/// A block of NVFP4, with a scale for 16 values.
#[cube]
pub fn nvfp4<X: Float>(x: &[Vector<X, Const<4>>], first: usize, out: &mut [Words], place: Place) -> Made {
    let mut scales = 0u32;
    let mut largest = 0u32;
    #[unroll]
    for chunk in 0..2usize {
        let mut words = zeros(4usize);
        #[unroll]
        for half in 0..2usize {
            let start = first + comptime!(8 * chunk + 4 * half);
            let values = load_all::<X>(x, start, 4usize);
            let of_half = largest_of_all(&values);
            largest = max(largest, of_half);
            let scale = ue4m3(f32::reinterpret(of_half) / 6.0f32);
            scales |= scale << comptime!((8 * (2 * chunk + half)) as u32);
            #[unroll]
            for i in 0..4usize {
                let codes = bytes_of(nearest(*values.index(i), half_of_ue4m3(scale)));
                add_codes(&mut words, comptime!(4 * half + i), codes, 4usize);
            }
        }
        place.destination.store_chunk(out, 0usize, place.row, place.block * 2 + chunk, &words, 4usize);
    }
    Made { scale: scales, largest }
}

/// A nonnegative number as an unsigned E4M3 float, by ggml's rounding: up to 0x7e, which is 448.
#[cube]
fn ue4m3(value: f32) -> u32 {
    let bits = u32::reinterpret(min(value, 448.0f32));
    let subnormal = min(u32::cast_from(value * 512.0f32 + 0.5f32), 7u32);
    // A mantissa that rounds to 8 moves the exponent up.
    let normal = (bits >> 20) - comptime!((127u32 - 7) << 3) + ((bits >> 19) & 1);
    // ggml has no float with the greatest exponent but the greatest.
    let normal = select(normal >= 0x78, 0x7eu32, normal);
    select(bits < comptime!((127u32 - 6) << 23), subnormal, normal)
}
