//! 32 values as int8 codes: the scale, the rounding, and how lanes share them.

use cubecl::prelude::*;

use crate::kernels::arch::approximate::reciprocal;
use crate::kernels::arch::dot::sum4;
use crate::kernels::arch::permute::low_bytes;
use crate::kernels::formats::CHUNK;
use crate::kernels::vector::Words;

/// The most lanes that share a chunk by plane operations, with four values each.
pub const SHARERS: usize = CHUNK / 4;

/// The codes of a lane's part of a chunk, four a word, and the chunk's vector of
/// [`Quantized::scales`](super::activations::Quantized::scales), valid in the first of the `parts` lanes that share the
/// chunk.
#[cube]
pub fn codes_of_part(
    values: &Sequence<Vector<f32, Const<4>>>,
    #[comptime] parts: usize,
) -> (Sequence<u32>, Vector<f32, Const<4>>) {
    let fours = values.len();
    let mut largest = 0u32;
    #[unroll]
    for i in 0..fours {
        largest = max(largest, largest_of(*values.index(i)));
    }
    #[unroll]
    for step in 0..comptime!(parts.ilog2()) {
        largest = max(largest, plane_shuffle_xor(largest, comptime!(1u32 << step)));
    }
    let scale = Scale::of(largest);
    let mut codes = Sequence::<u32>::new();
    let mut sum = 0i32;
    #[unroll]
    for i in 0..fours {
        let word = round(*values.index(i), scale.inverse);
        sum += sum4(word);
        codes.push(word);
    }
    // The first half of the lanes has the first half of the chunk.
    let half = comptime!(parts.ilog2() - 1);
    #[unroll]
    for step in 0..half {
        sum += plane_shuffle_xor(sum, comptime!(1u32 << step));
    }
    (codes, of_chunk(scale.scale, sum, plane_shuffle_xor(sum, comptime!(1u32 << half))))
}

/// Bit pattern of max |x|, compared as integers: NaN and infinity sort above every finite value, and fast-math cannot
/// assume them away.
#[cube]
pub fn largest_of(values: Vector<f32, Const<4>>) -> u32 {
    let bits = Words::reinterpret(values) & Words::new(0x7fff_ffffu32);
    max(max(bits.extract(0usize), bits.extract(1usize)), max(bits.extract(2usize), bits.extract(3usize)))
}

/// A chunk's scale, and the factor that its values are multiplied by before they are rounded.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub struct Scale {
    pub scale: f32,
    pub inverse: f32,
}

#[cube]
impl Scale {
    /// From the bit pattern of max |x|. Where that is too small for an inverse, all codes are zeros.
    pub fn of(largest: u32) -> Scale {
        let value = f32::reinterpret(largest);
        Scale {
            scale: select(largest < 0x7f80_0000, value * comptime!(1.0f32 / 127.0), f32::reinterpret(0x7fc0_0000u32)),
            inverse: select(largest > 0x0300_0000, 127.0f32 * reciprocal(value), 0.0f32),
        }
    }
}

/// Four values times `inverse` as codes.
#[cube]
pub fn round(values: Vector<f32, Const<4>>, inverse: f32) -> u32 {
    // Added to 1.5 * 2^23, a small number leaves its nearest integer in the low bits.
    low_bytes(Words::reinterpret(values * Vector::new(inverse) + Vector::new(12_582_912.0f32)))
}

/// A chunk's vector of [`Quantized::scales`](super::activations::Quantized::scales).
#[cube]
pub fn of_chunk(scale: f32, sum_low: i32, sum_high: i32) -> Vector<f32, Const<4>> {
    let mut out = Vector::<f32, Const<4>>::empty();
    out.insert(0usize, scale);
    out.insert(1usize, scale * f32::cast_from(sum_low + sum_high));
    out.insert(2usize, f32::cast_from(sum_low));
    out.insert(3usize, f32::cast_from(sum_high));
    out
}
