//! Permutations of the bytes of words: one instruction on AMD and NVIDIA, shifts and masks elsewhere.

use cubecl::frontend::comptime;
use cubecl::ir::DeviceProperties;
use cubecl::prelude::*;

#[cfg(feature = "llvm")]
use super::llvm;
use super::target::Target;
use crate::kernels::vector::Words;

/// 0xff for each byte of `ones` that is 1, 0 for each that is 0. There are no other bytes.
#[cube]
pub fn byte_mask(ones: u32) -> u32 {
    let properties = comptime::device_properties();
    // A 32-bit multiplication takes AMD four times as long as other instructions.
    if comptime!(matches!(Target::of(&properties), Target::Amd(_))) {
        byte_permute(0x0000_ff00u32, 0x0000_ff00u32, ones, true)
    } else {
        ones * 0xff
    }
}

/// The lowest bytes of four words, as one word.
#[cube]
pub fn low_bytes(words: Words) -> u32 {
    let properties = comptime::device_properties();
    let (a, b, c, d) = (words.extract(0usize), words.extract(1usize), words.extract(2usize), words.extract(3usize));
    match comptime!(Target::of(&properties)) {
        // Selector 12 gives a byte of zeros.
        Target::Amd(_) => {
            let (low, high) = (byte_permute(b, a, 0x0c0c_0400u32, true), byte_permute(d, c, 0x0c0c_0400u32, true));
            byte_permute(high, low, 0x0504_0100u32, true)
        }
        Target::Nvidia(_) => {
            let (low, high) = (byte_permute(b, a, 0x0040u32, false), byte_permute(d, c, 0x0040u32, false));
            byte_permute(high, low, 0x5410u32, false)
        }
        _ => (a & 0xff) | ((b & 0xff) << 8) | ((c & 0xff) << 16) | (d << 24),
    }
}

/// Whether the device makes floats of bytes faster by [`plus_128`] and [`plus_2_15`] than by a conversion: NVIDIA, which
/// converts integers at a fraction of its rate.
pub fn places_bytes(properties: &DeviceProperties) -> bool {
    matches!(Target::of(properties), Target::Nvidia(_))
}

/// 128 more than a byte of a word, which must be below 128: the upper part of the fraction of a float that is 128.
#[cube]
pub fn plus_128(word: u32, #[comptime] byte: u32) -> f32 {
    f32::reinterpret(byte_permute(word, 0x4300_0000u32, comptime!(0x3010 + ((4 + byte) << 8)), false))
}

/// 2^15 more than a byte of a word: the middle of the fraction of a float that is 2^15.
#[cube]
pub fn plus_2_15(word: u32, #[comptime] byte: u32) -> f32 {
    f32::reinterpret(byte_permute(word, 0x4700_0000u32, comptime!(0x3200 + ((4 + byte) << 4)), false))
}

/// Whether the device has the instruction that [`lookup16()`] takes.
pub fn permutes_bytes(properties: &DeviceProperties) -> bool {
    Target::of(properties).permutes_bytes()
}

/// The bytes of a table at the nibbles of `indices`: one word for the low nibbles, one for the high nibbles.
#[cube]
pub fn lookup16(indices: u32, #[comptime] table: [u8; 16]) -> (u32, u32) {
    let properties = comptime::device_properties();
    let eighths = comptime!(eighths(table));
    // The place of each index in its half of the table, and the half: 0 for the first eight values, 4 for the last.
    let (in_half, half) = (indices & 0x7777_7777, (indices & 0x8888_8888) >> 1);
    if comptime!(matches!(Target::of(&properties), Target::Amd(_))) {
        // AMD's selectors are bytes.
        let (high_in_half, high_half) = (in_half >> 4, half >> 4);
        let low = of_four(in_half & 0x0f0f_0f0f, (half & 0x0f0f_0f0f) | 0x0302_0100, eighths, true);
        let high = of_four(high_in_half & 0x0f0f_0f0f, (high_half & 0x0f0f_0f0f) | 0x0302_0100, eighths, true);
        (low, high)
    } else {
        // PTX's selectors are nibbles, of the low half of a word.
        let order = half | 0x3210_3210;
        let front = of_four(in_half, order, eighths, false);
        let back = of_four(in_half >> 16, order >> 16, eighths, false);
        (byte_permute(back, front, 0x6420u32, false), byte_permute(back, front, 0x7531u32, false))
    }
}

/// Four bytes of a table: the selectors of `in_half` take a byte from each half, those of `order` pick one of the two.
#[cube]
fn of_four(in_half: u32, order: u32, #[comptime] table: [u32; 4], #[comptime] amd: bool) -> u32 {
    let first = byte_permute(table[1].runtime(), table[0].runtime(), in_half, amd);
    let last = byte_permute(table[3].runtime(), table[2].runtime(), in_half, amd);
    byte_permute(last, first, order, amd)
}

/// The four words of a table.
fn eighths(table: [u8; 16]) -> [u32; 4] {
    std::array::from_fn(|i| u32::from_le_bytes(std::array::from_fn(|j| table[4 * i + j])))
}

/// The bytes of `low` (0 to 3) and `high` (4 to 7) that the selectors index: bytes of `selectors` on AMD, the nibbles of its
/// low half on NVIDIA.
#[cube]
#[allow(unused_variables)]
pub(super) fn byte_permute(high: u32, low: u32, selectors: u32, #[comptime] amd: bool) -> u32 {
    intrinsic!(|_scope| {
        #[cfg(feature = "llvm")]
        return llvm::perm(_scope, high, low, selectors, amd);
        #[cfg(not(feature = "llvm"))]
        unreachable!("only devices that LLVM compiles for permute bytes")
    })
}
