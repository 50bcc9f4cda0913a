//! Bit operations that formats share: unpacked codes, small floats to f32, arithmetic on four bytes at once.

use cubecl::frontend::comptime;
use cubecl::prelude::*;

use super::format::Codes;
use crate::kernels::arch::permute::byte_mask;
use crate::kernels::floats::has_f16;
use crate::kernels::vector::Words;

/// The same word four times.
#[cube]
pub fn splat(#[comptime] word: u32) -> Words {
    Words::new(word.runtime())
}

/// 4-bit codes of a chunk, 0 to 15: the first 16 and the last 16.
#[cube]
pub fn nibbles(codes: Words) -> (Words, Words) {
    (codes & splat(0x0f0f_0f0fu32), (codes >> splat(4u32)) & splat(0x0f0f_0f0fu32))
}

/// 2-bit codes of a chunk, 0 to 3, from its two words.
#[cube]
pub fn crumbs(first: u32, second: u32) -> (Words, Words) {
    let low = words(first, second, first >> 2, second >> 2);
    let high = words(first >> 4, second >> 4, first >> 6, second >> 6);
    (low & splat(0x0303_0303u32), high & splat(0x0303_0303u32))
}

/// 1-bit codes of a chunk from its word.
#[cube]
pub fn ones(word: u32) -> (Words, Words) {
    let low = words(word, word >> 1, word >> 2, word >> 3);
    let high = words(word >> 4, word >> 5, word >> 6, word >> 7);
    (low & splat(0x0101_0101u32), high & splat(0x0101_0101u32))
}

/// Four words as a vector.
#[cube]
pub fn words(a: u32, b: u32, c: u32, d: u32) -> Words {
    let mut out = Words::empty();
    out.insert(0usize, a);
    out.insert(1usize, b);
    out.insert(2usize, c);
    out.insert(3usize, d);
    out
}

/// Negates the bytes of `word` whose bit in the low four of `signs` is set. Bytes are in 1..=127.
#[cube]
pub fn negate(word: u32, signs: u32) -> u32 {
    // The product puts bit i at bit 8i; no two of its terms meet under the mask.
    negate_ones(word, ((signs & 0xf) * 0x0020_4081) & 0x0101_0101)
}

/// Negates the bytes of `word` whose byte in `ones` is 1, not 0. Bytes of `word` are in 1..=127.
#[cube]
pub fn negate_ones(word: u32, ones: u32) -> u32 {
    (word ^ byte_mask(ones)) + ones
}

/// The eight signs of a 7-bit sign index: the eighth makes the number of minus signs even.
#[cube]
pub fn even_signs(index: u32) -> u32 {
    let seven = index & 0x7f;
    seven | ((seven.count_ones() & 1) << 7)
}

/// Byte `index` of a word, a signed number, as a float.
#[cube]
pub fn signed_byte(word: u32, #[comptime] index: u32) -> f32 {
    // Biased to 0..=255: an unsigned byte has a conversion of its own on AMD, and `>>` extends no signs in CubeCL.
    let biased = ((word ^ 0x8080_8080) >> comptime!(8 * index)) & 0xff;
    f32::cast_from(biased) - 128.0f32
}

/// The signed numbers of a word's four codes, as floats.
#[cube]
pub fn to_floats(word: u32, #[comptime] codes: Codes) -> Vector<f32, Const<4>> {
    let mut out = Vector::<f32, Const<4>>::empty();
    #[unroll]
    for i in 0..4u32 {
        let value = match codes {
            Codes::Signed => signed_byte(word, i),
            Codes::Biased(bias) => f32::cast_from((word >> comptime!(8 * i)) & 0xff) - comptime!(bias as f32),
        };
        out.insert(comptime!(i as usize), value);
    }
    out
}

/// An IEEE half, in the low 16 bits, as f32. Exact for every value, subnormals included.
#[cube]
pub fn f16(bits: u32) -> f32 {
    let properties = comptime::device_properties();
    let native = comptime!(has_f16(&properties.features));
    if native { f32::cast_from(half::f16::reinterpret(u16::cast_from(bits))) } else { f16_portable(bits) }
}

/// The IEEE halves in the low and the high 16 bits of a word, as f32.
#[cube]
pub fn two_f16(word: u32) -> (f32, f32) {
    (f16(word & 0xffff), f16(word >> 16))
}

/// [`f16`] in integer arithmetic, for devices without the type.
#[cube]
fn f16_portable(bits: u32) -> f32 {
    let sign = (bits & 0x8000) << 16;
    let magnitude = bits & 0x7fff;
    // Subnormals are multiples of 2^-24; their f32 is normal, so arithmetic gives it exactly.
    let subnormal = u32::reinterpret(f32::cast_from(magnitude) * f32::new(5.960_464_5e-8));
    let normal = (magnitude << 13) + 0x3800_0000;
    let special = (magnitude << 13) | 0x7f80_0000;
    let finite = select(magnitude < 0x400, subnormal, normal);
    f32::reinterpret(sign | select(magnitude >= 0x7c00, special, finite))
}

/// A brain float, in the low 16 bits, as f32.
#[cube]
pub fn bf16(bits: u32) -> f32 {
    f32::reinterpret(bits << 16)
}
