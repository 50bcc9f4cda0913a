//! Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_K: super-blocks of 256 values whose sub-blocks have quantized scales.
//!
//! Blocks as `ggml/src/ggml-common.h` has them (`d`, `dmin` are halves, but for Q8_K's `d`, an f32):
//!
//! | format | fields | value |
//! |---|---|---|
//! | Q2_K | `scales[16]`, `qs[64]`, `d`, `dmin` | `d * (scales & 15) * q - dmin * (scales >> 4)` |
//! | Q3_K | `hmask[32]`, `qs[64]`, `scales[12]`, `d` | `d * (scale - 32) * (q - 4)` |
//! | Q4_K | `d`, `dmin`, `scales[12]`, `qs[128]` | `d * scale * q - dmin * min` |
//! | Q5_K | `d`, `dmin`, `scales[12]`, `qh[32]`, `qs[128]` | `d * scale * q - dmin * min` |
//! | Q6_K | `ql[128]`, `qh[64]`, `scales[16]`, `d` | `d * scale * (q - 32)` |
//! | Q8_K | `d`, `qs[256]`, `bsums[16]` | `d * q`; `bsums` are sums of 16 codes |
//!
//! Sub-blocks are of 16 values (Q2_K, Q3_K, Q6_K) or 32 (Q4_K, Q5_K). The 6-bit scales of Q3_K, Q4_K and Q5_K are
//! spread over 12 bytes; the device layout gathers them into three words: two of low four bits, one of top two bits.

use cubecl::prelude::*;

use super::bits::{crumbs, f16, nibbles, ones, signed_byte, splat, two_f16};
use super::format::{Field, Format, Traits};
use super::host::{crumb_at, crumb_bit, f16_at, u32_at};
use super::layout::{Component, Layout};
use super::raw::{Places, Raw};
use super::view::{At, Chunk, MatrixView, half_of};
use crate::gguf::GgmlType;

/// Chunks of 32 in a super-block.
const CHUNKS: usize = 8;

/// The bit of value `v`'s nibble: 32 bytes hold 64 values, the first 32 in their low nibbles.
fn nibble_bit(byte: usize) -> impl Fn(usize) -> usize {
    move |v| 8 * (byte + 32 * (v / 64) + v % 32) + 4 * (v % 64 / 32)
}

fn nibble_at(block: &[u8], byte: usize, v: usize) -> u8 {
    block[byte + 32 * (v / 64) + v % 32] >> (4 * (v % 64 / 32)) & 0xf
}

/// The packing of Q4_K and Q5_K: eight 6-bit scales and eight 6-bit mins in 12 bytes.
mod six_bits {
    use super::*;

    /// The fields of the component, from the bytes at `byte`: the scales' low four bits, the mins', then the top two bits of
    /// each scale and min in turn.
    pub fn component(byte: usize) -> Vec<usize> {
        let at = |byte: usize, bit: usize| 8 * byte + bit;
        let low = |byte: usize, bit: usize| [at(byte, bit), at(byte, bit + 2)];
        let scale_low = (0..8).flat_map(|j| low(byte + if j < 4 { j } else { j + 4 }, 0));
        let min_low = (0..8).flat_map(|j| if j < 4 { low(byte + j + 4, 0) } else { low(byte + j + 4, 4) });
        let scale_high = |j: usize| if j < 4 { at(byte + j, 4) } else { at(byte + j - 4, 6) };
        let min_high = |j: usize| if j < 4 { at(byte + j + 4, 4) } else { at(byte + j, 6) };
        let high = (0..8).flat_map(|j| [scale_high(j), min_high(j)]);
        scale_low.chain(min_low).chain(high).collect()
    }

    /// Scale and min of sub-block `j`, in the packed bytes `s`.
    pub fn host(s: &[u8], j: usize) -> (u8, u8) {
        if j < 4 {
            (s[j] & 63, s[j + 4] & 63)
        } else {
            (s[j + 4] & 0xf | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4)
        }
    }

    /// The places of the three words of the chunk's block: the top bits, the scales' low four bits, the mins'.
    #[cube]
    pub fn locate(view: &MatrixView, #[comptime] component: usize, at: At, places: &mut Places) {
        let first = view.word(component, at.row, 3 * at.block(CHUNKS));
        places.push(first.after(2usize));
        places.push(first);
        places.push(first.after(1usize));
    }

    /// Scale and min of the chunk as floats, from the words at the places that [`locate()`] gives, in its order.
    #[cube]
    pub fn decode(tops: u32, scales: u32, mins: u32, at: At) -> (f32, f32) {
        let shift = u32::cast_from(at.in_block(CHUNKS)) * 4;
        let high = tops >> shift;
        let scale = ((scales >> shift) & 0xf) | ((high & 3) << 4);
        let min = ((mins >> shift) & 0xf) | ((high & 0xc) << 2);
        (f32::cast_from(scale), f32::cast_from(min))
    }
}

pub mod q2_k {
    use super::*;

    pub const FORMAT: Format = Format {
        ty: GgmlType::Q2K,
        traits: Traits::TWO_SCALES_AND_MINS.biased(0),
        layout: || {
            Layout::new(
                84,
                [Component::codes(2, 256, crumb_bit(16)), Component::raw(8, 0, 16), Component::raw(16, 80, 2)],
            )
        },
        dequantize: |block, out| {
            let (d, dmin) = (f16_at(block, 80), f16_at(block, 82));
            for (v, out) in out.iter_mut().enumerate() {
                let scale = block[v / 16];
                *out = d * (scale & 0xf) as f32 * crumb_at(block, 16, v) as f32 - dmin * (scale >> 4) as f32;
            }
        },
        multibyte: Some(&[Field::u16s(80, 2)]),
        codebook: None,
    };

    #[cube]
    pub fn locate(view: &MatrixView, at: At, places: &mut Places) {
        places.push(view.chunk_word(0usize, at, 2usize, 0usize));
        places.push(view.chunk_word(0usize, at, 2usize, 1usize));
        places.push(view.word(2usize, at.row, at.block(CHUNKS)));
        places.push(view.chunk_half_word(1usize, at));
    }

    #[cube]
    pub fn decode(raw: &Raw, at: At) -> Chunk {
        let (low, high) = crumbs(raw.word(0usize), raw.word(1usize));
        let (d, dmin) = two_f16(raw.word(2usize));
        let scales = at.half_of(raw.word(3usize));
        Chunk {
            low,
            high,
            scale_low: d * f32::cast_from(scales & 0xf),
            scale_high: d * f32::cast_from((scales >> 8) & 0xf),
            min_low: -(dmin * f32::cast_from((scales >> 4) & 0xf)),
            min_high: -(dmin * f32::cast_from(scales >> 12)),
        }
    }
}

pub mod q3_k {
    use super::*;

    /// The byte and shift of scale `s`'s low four bits, and those of its top two bits, in `scales`.
    fn scale_bits(s: usize) -> ((usize, usize), (usize, usize)) {
        ((s % 8, 4 * (s / 8)), (8 + s % 4, 2 * (s / 4)))
    }

    pub const FORMAT: Format = Format {
        ty: GgmlType::Q3K,
        traits: Traits::TWO_SCALES.biased(4),
        layout: || {
            let bit = |(byte, shift): (usize, usize)| 8 * (96 + byte) + shift;
            let low = (0..16).flat_map(|s| {
                let from = bit(scale_bits(s).0);
                [from, from + 2]
            });
            let high = (0..16).map(|s| bit(scale_bits(s).1));
            Layout::new(
                110,
                [
                    Component::codes(2, 256, crumb_bit(32)),
                    Component::codes(1, 256, |v| 8 * (v % 32) + v / 32),
                    Component::gathered(2, low.chain(high)),
                    Component::raw(16, 108, 1),
                ],
            )
        },
        dequantize: |block, out| {
            let d = f16_at(block, 108);
            for (v, out) in out.iter_mut().enumerate() {
                let (low, high) = scale_bits(v / 16);
                let scales = &block[96..];
                let scale = (scales[low.0] >> low.1 & 0xf) | (scales[high.0] >> high.1 & 3) << 4;
                let third = block[v % 32] >> (v / 32) & 1;
                let q = crumb_at(block, 32, v) as i32 - if third == 1 { 0 } else { 4 };
                *out = d * (scale as i32 - 32) as f32 * q as f32;
            }
        },
        multibyte: Some(&[Field::u16s(108, 1)]),
        codebook: None,
    };

    #[cube]
    pub fn locate(view: &MatrixView, at: At, places: &mut Places) {
        places.push(view.chunk_word(0usize, at, 2usize, 0usize));
        places.push(view.chunk_word(0usize, at, 2usize, 1usize));
        places.push(view.chunk_word(1usize, at, 1usize, 0usize));
        let block = at.block(CHUNKS);
        places.push(view.word(3usize, at.row, block / 2));
        // Word 0 holds the low four bits of scales 0 to 7, word 1 those of 8 to 15, word 2 the top bits of all.
        places.push(view.word(2usize, at.row, 3 * block + at.in_block(CHUNKS) / 4));
        places.push(view.word(2usize, at.row, 3 * block + 2));
    }

    #[cube]
    pub fn decode(raw: &Raw, at: At) -> Chunk {
        let (low, high) = crumbs(raw.word(0usize), raw.word(1usize));
        let (low_bit, high_bit) = ones(raw.word(2usize));
        let d = f16(half_of(raw.word(3usize), at.block(CHUNKS)));
        let sub_block = u32::cast_from(at.in_block(CHUNKS)) * 2;
        let halves = raw.word(4usize) >> ((sub_block % 8) * 4);
        let tops = raw.word(5usize) >> (sub_block * 2);
        let scale_low = (halves & 0xf) | ((tops & 3) << 4);
        let scale_high = ((halves >> 4) & 0xf) | ((tops & 0xc) << 2);
        Chunk::halves(
            low | (low_bit << splat(2u32)),
            high | (high_bit << splat(2u32)),
            d * (f32::cast_from(scale_low) - 32.0f32),
            d * (f32::cast_from(scale_high) - 32.0f32),
        )
    }
}

pub mod q4_k {
    use super::*;

    pub const FORMAT: Format = Format {
        ty: GgmlType::Q4K,
        traits: Traits::SCALE_AND_MIN.biased(0),
        layout: || {
            Layout::new(
                144,
                [
                    Component::codes(4, 256, nibble_bit(16)),
                    Component::gathered(2, six_bits::component(4)),
                    Component::raw(16, 0, 2),
                ],
            )
        },
        dequantize: |block, out| {
            let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
            for (v, out) in out.iter_mut().enumerate() {
                let (scale, min) = six_bits::host(&block[4..16], v / 32);
                *out = d * scale as f32 * nibble_at(block, 16, v) as f32 - dmin * min as f32;
            }
        },
        multibyte: Some(&[Field::u16s(0, 2)]),
        codebook: None,
    };

    #[cube]
    pub fn locate(view: &MatrixView, at: At, places: &mut Places) {
        places.push_wide(view.chunk_wide(0usize, at, 1usize, 0usize));
        six_bits::locate(view, 1usize, at, places);
        places.push(view.word(2usize, at.row, at.block(CHUNKS)));
    }

    #[cube]
    pub fn decode(raw: &Raw, at: At) -> Chunk {
        let (low, high) = nibbles(raw.wide(0usize));
        let (scale, min) = six_bits::decode(raw.word(0usize), raw.word(1usize), raw.word(2usize), at);
        let (d, dmin) = two_f16(raw.word(3usize));
        Chunk::with_min(low, high, d * scale, -(dmin * min))
    }
}

pub mod q5_k {
    use super::*;

    pub const FORMAT: Format = Format {
        ty: GgmlType::Q5K,
        traits: Traits::SCALE_AND_MIN.biased(0),
        layout: || {
            Layout::new(
                176,
                [
                    Component::codes(4, 256, nibble_bit(48)),
                    Component::codes(1, 256, |v| 8 * (16 + v % 32) + v / 32),
                    Component::gathered(2, six_bits::component(4)),
                    Component::raw(16, 0, 2),
                ],
            )
        },
        dequantize: |block, out| {
            let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
            for (v, out) in out.iter_mut().enumerate() {
                let (scale, min) = six_bits::host(&block[4..16], v / 32);
                let q = nibble_at(block, 48, v) | (block[16 + v % 32] >> (v / 32) & 1) << 4;
                *out = d * scale as f32 * q as f32 - dmin * min as f32;
            }
        },
        multibyte: Some(&[Field::u16s(0, 2)]),
        codebook: None,
    };

    #[cube]
    pub fn locate(view: &MatrixView, at: At, places: &mut Places) {
        places.push_wide(view.chunk_wide(0usize, at, 1usize, 0usize));
        places.push(view.chunk_word(1usize, at, 1usize, 0usize));
        six_bits::locate(view, 2usize, at, places);
        places.push(view.word(3usize, at.row, at.block(CHUNKS)));
    }

    #[cube]
    pub fn decode(raw: &Raw, at: At) -> Chunk {
        let (low, high) = nibbles(raw.wide(0usize));
        let (low_bit, high_bit) = ones(raw.word(0usize));
        let (scale, min) = six_bits::decode(raw.word(1usize), raw.word(2usize), raw.word(3usize), at);
        let (d, dmin) = two_f16(raw.word(4usize));
        Chunk::with_min(low | (low_bit << splat(4u32)), high | (high_bit << splat(4u32)), d * scale, -(dmin * min))
    }
}

pub mod q6_k {
    use super::*;

    pub const FORMAT: Format = Format {
        ty: GgmlType::Q6K,
        traits: Traits::TWO_SCALES.biased(32),
        layout: || {
            Layout::new(
                210,
                [
                    Component::codes(4, 256, low_bit),
                    Component::codes(2, 256, crumb_bit(128)),
                    Component::raw(8, 192, 16),
                    Component::raw(16, 208, 1),
                ],
            )
        },
        dequantize: |block, out| {
            let d = f16_at(block, 208);
            for (v, out) in out.iter_mut().enumerate() {
                let low = low_bit(v);
                let q = (block[low / 8] >> (low % 8) & 0xf) | crumb_at(block, 128, v) << 4;
                *out = d * (block[192 + v / 16] as i8) as f32 * (q as i32 - 32) as f32;
            }
        },
        multibyte: Some(&[Field::u16s(208, 1)]),
        codebook: None,
    };

    /// The bit of value `v`'s low four bits: 64 bytes hold 128 values, the first 64 in their low nibbles.
    fn low_bit(v: usize) -> usize {
        8 * (64 * (v / 128) + v % 64) + 4 * (v % 128 / 64)
    }

    #[cube]
    pub fn locate(view: &MatrixView, at: At, places: &mut Places) {
        places.push_wide(view.chunk_wide(0usize, at, 1usize, 0usize));
        places.push(view.chunk_word(1usize, at, 2usize, 0usize));
        places.push(view.chunk_word(1usize, at, 2usize, 1usize));
        places.push(view.chunk_half_word(2usize, at));
        places.push(view.word(3usize, at.row, at.block(CHUNKS) / 2));
    }

    #[cube]
    pub fn decode(raw: &Raw, at: At) -> Chunk {
        let (low, high) = nibbles(raw.wide(0usize));
        let (low_top, high_top) = crumbs(raw.word(0usize), raw.word(1usize));
        let scales = at.half_of(raw.word(2usize));
        let d = f16(half_of(raw.word(3usize), at.block(CHUNKS)));
        Chunk::halves(
            low | (low_top << splat(4u32)),
            high | (high_top << splat(4u32)),
            d * signed_byte(scales, 0u32),
            d * signed_byte(scales, 1u32),
        )
    }
}

pub mod q8_k {
    use super::*;

    pub const FORMAT: Format = Format {
        ty: GgmlType::Q8K,
        traits: Traits::ONE_SCALE,
        layout: || {
            Layout::new(292, [Component::raw(8, 4, 256).wide(), Component::raw(16, 0, 2), Component::raw(16, 260, 16)])
        },
        dequantize: |block, out| {
            let d = f32::from_bits(u32_at(block, 0));
            for (v, out) in out.iter_mut().enumerate() {
                *out = d * block[4 + v] as i8 as f32;
            }
        },
        multibyte: Some(&[Field::u32s(0, 1), Field::u16s(260, 16)]),
        codebook: None,
    };

    #[cube]
    pub fn locate(view: &MatrixView, at: At, places: &mut Places) {
        places.push_wide(view.chunk_wide(0usize, at, 2usize, 0usize));
        places.push_wide(view.chunk_wide(0usize, at, 2usize, 1usize));
        places.push(view.word(1usize, at.row, at.block(CHUNKS)));
    }

    #[cube]
    pub fn decode(raw: &Raw, _at: At) -> Chunk {
        Chunk::scaled(raw.wide(0usize), raw.wide(1usize), f32::reinterpret(raw.word(0usize)))
    }
}
