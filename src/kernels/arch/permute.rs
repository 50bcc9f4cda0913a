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

/// The order in which the nibbles of a word become bytes of two words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NibbleOrder {
    /// The low ones of its bytes, then the high ones.
    LowHigh,
    /// As they lie.
    Sequential,
}

impl NibbleOrder {
    /// The one that costs the device least, if it permutes bytes. AMD's selectors are bytes, PTX's the nibbles of a word's low
    /// half.
    pub fn cheapest(target: &Target) -> Option<Self> {
        match target {
            Target::Amd(_) => Some(Self::LowHigh),
            Target::Nvidia(_) => Some(Self::Sequential),
            Target::Host | Target::Other => None,
        }
    }
}

/// The bytes of a table at the nibbles of `indices`: those of the first four in `order`, those of the others.
#[cube]
pub fn lookup16(indices: u32, #[comptime] table: [i8; 16], #[comptime] order: NibbleOrder) -> (u32, u32) {
    let properties = comptime::device_properties();
    let eighths = comptime!(words_of(&table));
    // The place of each index in its half of the table, and the half: 0 for the first eight values, 4 for the last.
    let (in_half, half) = (indices & 0x7777_7777, (indices & 0x8888_8888) >> 1);
    if comptime!(matches!(Target::of(&properties), Target::Amd(_))) {
        comptime!(assert_eq!(order, NibbleOrder::LowHigh));
        let (high_in_half, high_half) = (in_half >> 4, half >> 4);
        let low = of_four(in_half & 0x0f0f_0f0f, (half & 0x0f0f_0f0f) | 0x0302_0100, eighths, true);
        let high = of_four(high_in_half & 0x0f0f_0f0f, (high_half & 0x0f0f_0f0f) | 0x0302_0100, eighths, true);
        (low, high)
    } else {
        let halves = half | 0x3210_3210;
        let front = of_four(in_half, halves, eighths, false);
        let back = of_four(in_half >> 16, halves >> 16, eighths, false);
        match comptime!(order) {
            NibbleOrder::LowHigh => {
                (byte_permute(back, front, 0x6420u32, false), byte_permute(back, front, 0x7531u32, false))
            }
            NibbleOrder::Sequential => (front, back),
        }
    }
}

/// Four bytes of a table: the selectors of `in_half` take a byte from each half, those of `halves` pick one of the two.
#[cube]
fn of_four(in_half: u32, halves: u32, #[comptime] table: [u32; 4], #[comptime] amd: bool) -> u32 {
    let first = byte_permute(table[1].runtime(), table[0].runtime(), in_half, amd);
    let last = byte_permute(table[3].runtime(), table[2].runtime(), in_half, amd);
    byte_permute(last, first, halves, amd)
}

/// Two words whose bytes add up to the bytes that [`lookup16()`] has of four nibbles: the first four in the device's cheapest
/// order, or the last.
///
/// For a dot product they are as good as their sum, and take half of its instructions: each permutes the bytes of half of the
/// table, and what it has for indices into the other half is taken off there.
#[cube]
pub fn addends16(indices: u32, #[comptime] table: [i8; 16], #[comptime] last: bool) -> (u32, u32) {
    let properties = comptime::device_properties();
    let amd = comptime!(matches!(Target::of(&properties), Target::Amd(_)));
    let [a, b, c, d] = comptime!(words_of(&addends(&table, amd)));
    let selectors = if comptime!(!last) {
        indices
    } else if comptime!(amd) {
        indices >> 4
    } else {
        indices >> 16
    };
    let selectors = if comptime!(amd) { selectors & 0x0f0f_0f0f } else { selectors };
    let others = selectors ^ comptime!(if amd { 0x0808_0808u32 } else { 0x8888_8888 });
    (byte_permute(b.runtime(), a.runtime(), selectors, amd), byte_permute(d.runtime(), c.runtime(), others, amd))
}

/// The tables of [`addends16()`]: for the first eight indices, and for the last.
fn addends(table: &[i8; 16], amd: bool) -> [i8; 16] {
    let mut addends = *table;
    // What either has for the other's indices depends on its own signs alone, which settle at once.
    for _ in 0..3 {
        addends = std::array::from_fn(|i| {
            let other = if i < 8 { &addends[8..] } else { &addends[..8] };
            table[i].wrapping_sub(past_eight(other, i % 8, amd))
        });
    }
    addends
}

/// The byte that permuting eight bytes has for selector `8 + i`: on NVIDIA the sign of byte `i`, eight times; on AMD, for the
/// first four, that of byte `2 * i + 1`, then 0 once and -1.
fn past_eight(bytes: &[i8], i: usize, amd: bool) -> i8 {
    match i {
        _ if !amd => bytes[i] >> 7,
        0..4 => bytes[2 * i + 1] >> 7,
        4 => 0,
        _ => -1,
    }
}

/// Bytes as words.
fn words_of(bytes: &[i8; 16]) -> [u32; 4] {
    std::array::from_fn(|i| u32::from_le_bytes(std::array::from_fn(|j| bytes[4 * i + j] as u8)))
}

/// Half of the bytes of two words, which alternate: `mine` and then `other` in the first two pairs of bytes, if `is_first`, else
/// `other` and then `mine` in the last two. NVIDIA's.
#[cube]
pub fn alternate(mine: u32, other: u32, is_first: bool) -> u32 {
    byte_permute(other, mine, select(is_first, 0x5140u32, 0x3726u32), false)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::formats::FORMATS;

    #[test]
    fn addends_add_up_to_the_table() {
        for table in FORMATS.iter().filter_map(|format| format.traits.lookup16) {
            for amd in [false, true] {
                let addends = addends(table, amd);
                let permuted = |bytes: &[i8], selector: usize| match selector {
                    0..8 => i32::from(bytes[selector]),
                    _ => i32::from(past_eight(bytes, selector - 8, amd)),
                };
                for (i, &value) in table.iter().enumerate() {
                    let sum = permuted(&addends[..8], i) + permuted(&addends[8..], i ^ 8);
                    assert_eq!(sum, i32::from(value), "index {i}, AMD {amd}");
                }
            }
        }
    }
}
