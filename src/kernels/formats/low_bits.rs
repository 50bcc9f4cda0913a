//! TQ1_0, TQ2_0, Q1_0, Q2_0: one or two bits a value, or five values in a byte, and one scale a block.
//!
//! Blocks as `ggml/src/ggml-common.h` has them (`d` is a half):
//!
//! | format | values | fields | value |
//! |---|---|---|---|
//! | TQ1_0 | 256 | `qs[48]`, `qh[4]`, `d` | `d * (t - 1)`, `t` a base-3 digit |
//! | TQ2_0 | 256 | `qs[64]`, `d` | `d * (q - 1)` |
//! | Q1_0 | 128 | `d`, `qs[16]` | `d` or `-d` |
//! | Q2_0 | 64 | `d`, `qs[16]` | `d * (q - 1)` |
//!
//! A byte of TQ1_0 is a fraction of 256 whose first base-3 digit is `byte * 3 / 256`; multiplied by 3 to the power `n`,
//! modulo 256, digit `n` comes first. Digit `n` of the first 32 bytes holds values `32n..32n + 32`, digit `n` of the next
//! 16 bytes values `160 + 16n..`, digit `n` of the last four bytes values `240 + 4n..`.

use cubecl::prelude::*;

use super::bits::{crumbs, f16, ones, splat, words};
use super::format::{Field, Format, Traits};
use super::host::{crumb_at, crumb_bit, f16_at};
use super::layout::{Component, Layout};
use super::raw::{Places, Raw};
use super::view::{At, Chunk, MatrixView, half_of};
use crate::gguf::GgmlType;
use crate::kernels::vector::Words;

pub mod tq1_0 {
    use super::*;

    /// Chunks of 32 in a block.
    const CHUNKS: usize = 8;

    /// The byte and the digit of value `v`.
    fn place(v: usize) -> (usize, u32) {
        match v {
            0..160 => (v % 32, v as u32 / 32),
            160..240 => (32 + (v - 160) % 16, (v as u32 - 160) / 16),
            _ => (48 + (v - 240) % 4, (v as u32 - 240) / 4),
        }
    }

    pub const FORMAT: Format = Format {
        ty: GgmlType::TQ1_0,
        traits: Traits::ONE_SCALE.biased(1),
        layout: || Layout {
            block_bytes: 54,
            components: vec![Component::raw(8, 0, 48).wide(), Component::raw(8, 48, 4), Component::raw(16, 52, 1)],
        },
        dequantize: |block, out| {
            let d = f16_at(block, 52);
            for (v, out) in out.iter_mut().enumerate() {
                let (byte, digit) = place(v);
                let shifted = (block[byte] as u32 * 3u32.pow(digit)) & 0xff;
                *out = (((shifted * 3) >> 8) as i32 - 1) as f32 * d;
            }
        },
        multibyte: Some(&[Field::u16s(52, 1)]),
        codebook: None,
    };

    /// 3 to the power `n`, for `n` up to 4.
    #[cube]
    fn power_of_three(n: u32) -> u32 {
        let square = select(n >= 2, 9u32, 1u32);
        let fourth = select(n >= 4, 9u32, 1u32);
        square * fourth * select(n % 2 == 1, 3u32, 1u32)
    }

    /// The digits of 16 bytes after a multiplication by `powers` modulo 256.
    #[cube]
    fn digits(bytes: Words, powers: Words) -> Words {
        // Products of a byte need 16 bits, so even and odd bytes go apart.
        let even = ((bytes & splat(0x00ff_00ffu32)) * powers) & splat(0x00ff_00ffu32);
        let odd = (((bytes >> splat(8u32)) & splat(0x00ff_00ffu32)) * powers) & splat(0x00ff_00ffu32);
        let even = ((even * splat(3u32)) >> splat(8u32)) & splat(0x00ff_00ffu32);
        let odd = (odd * splat(3u32)) & splat(0xff00_ff00u32);
        even | odd
    }

    /// The first of the chunk's two groups of 16 values in the block.
    #[cube]
    fn first_group(at: At) -> u32 {
        u32::cast_from(at.in_block(CHUNKS)) * 2
    }

    /// The vector of the block's three that holds a group: groups 0 to 9 are in the first 32 bytes, 10 to 14 in the next 16.
    /// Group 15 is in the four bytes of component 1; its vector is loaded and not used.
    #[cube]
    fn vector_of(group: u32) -> usize {
        usize::cast_from(select(group < 10, group % 2, 2u32))
    }

    /// The codes of 16 values, the `group`-th of the block, from its vector and the word of component 1.
    #[cube]
    fn codes_of(bytes: Words, tail: u32, group: u32) -> Words {
        let last = group == 15;
        let power = power_of_three(select(group < 10, group / 2, (group - 10) % 5));
        let bytes = select_many(Vector::<bool, Const<4>>::new(last), Words::new(tail), bytes);
        let powers =
            select_many(Vector::<bool, Const<4>>::new(last), words(1u32, 3u32, 9u32, 27u32), Words::new(power));
        digits(bytes, powers)
    }

    #[cube]
    pub fn locate(view: &MatrixView, at: At, places: &mut Places) {
        let block = at.block(CHUNKS);
        let group = first_group(at);
        places.push(view.word(2usize, at.row, block / 2));
        places.push_wide(view.wide(0usize, at.row, 3 * block + vector_of(group)));
        places.push(view.word(1usize, at.row, block));
        places.push_wide(view.wide(0usize, at.row, 3 * block + vector_of(group + 1)));
    }

    #[cube]
    pub fn decode(raw: &Raw, at: At) -> Chunk {
        let group = first_group(at);
        let d = f16(half_of(raw.word(0usize), at.block(CHUNKS)));
        let low = codes_of(raw.wide(0usize), raw.word(1usize), group);
        let high = codes_of(raw.wide(1usize), raw.word(1usize), group + 1);
        Chunk::scaled(low, high, d)
    }
}

/// The places of a chunk of two-bit codes in component 0, and of the word with the f16 scale of its block, of `chunks` chunks,
/// in component 1.
#[cube]
fn locate_crumbs(view: &MatrixView, at: At, places: &mut Places, #[comptime] chunks: usize) {
    places.push(view.chunk_word(0usize, at, 2usize, 0usize));
    places.push(view.chunk_word(0usize, at, 2usize, 1usize));
    places.push(view.word(1usize, at.row, at.block(chunks) / 2));
}

/// The chunk of the words at the places that [`locate_crumbs`] gives.
#[cube]
fn decode_crumbs(raw: &Raw, at: At, #[comptime] chunks: usize) -> Chunk {
    let (low, high) = crumbs(raw.word(0usize), raw.word(1usize));
    Chunk::scaled(low, high, f16(half_of(raw.word(2usize), at.block(chunks))))
}

pub mod tq2_0 {
    use super::*;

    /// Chunks of 32 in a block.
    const CHUNKS: usize = 8;

    pub const FORMAT: Format = Format {
        ty: GgmlType::TQ2_0,
        traits: Traits::ONE_SCALE.biased(1),
        layout: || Layout {
            block_bytes: 66,
            components: vec![Component::codes(2, 256, crumb_bit(0)), Component::raw(16, 64, 1)],
        },
        dequantize: |block, out| {
            let d = f16_at(block, 64);
            for (v, out) in out.iter_mut().enumerate() {
                *out = (crumb_at(block, 0, v) as i32 - 1) as f32 * d;
            }
        },
        multibyte: Some(&[Field::u16s(64, 1)]),
        codebook: None,
    };

    #[cube]
    pub fn locate(view: &MatrixView, at: At, places: &mut Places) {
        locate_crumbs(view, at, places, CHUNKS);
    }

    #[cube]
    pub fn decode(raw: &Raw, at: At) -> Chunk {
        decode_crumbs(raw, at, CHUNKS)
    }
}

pub mod q1_0 {
    use super::*;

    /// Chunks of 32 in a block.
    const CHUNKS: usize = 4;

    pub const FORMAT: Format = Format {
        ty: GgmlType::Q1_0,
        traits: Traits::ONE_SCALE.biased(1),
        layout: || Layout {
            block_bytes: 18,
            components: vec![Component::codes(1, 128, |v| 16 + v), Component::raw(16, 0, 1)],
        },
        dequantize: |block, out| {
            let d = f16_at(block, 0);
            for (v, out) in out.iter_mut().enumerate() {
                *out = if block[2 + v / 8] >> (v % 8) & 1 == 1 { d } else { -d };
            }
        },
        multibyte: Some(&[Field::u16s(0, 1)]),
        codebook: None,
    };

    #[cube]
    pub fn locate(view: &MatrixView, at: At, places: &mut Places) {
        places.push(view.chunk_word(0usize, at, 1usize, 0usize));
        places.push(view.word(1usize, at.row, at.block(CHUNKS) / 2));
    }

    #[cube]
    pub fn decode(raw: &Raw, at: At) -> Chunk {
        let (low, high) = ones(raw.word(0usize));
        // 0 and 2, which the bias makes -1 and 1.
        Chunk::scaled(low + low, high + high, f16(half_of(raw.word(1usize), at.block(CHUNKS))))
    }
}

pub mod q2_0 {
    use super::*;

    /// Chunks of 32 in a block.
    const CHUNKS: usize = 2;

    pub const FORMAT: Format = Format {
        ty: GgmlType::Q2_0,
        traits: Traits::ONE_SCALE.biased(1),
        layout: || Layout {
            block_bytes: 18,
            components: vec![Component::codes(2, 64, |v| 16 + 2 * v), Component::raw(16, 0, 1)],
        },
        dequantize: |block, out| {
            let d = f16_at(block, 0);
            for (v, out) in out.iter_mut().enumerate() {
                *out = ((block[2 + v / 4] >> (2 * (v % 4)) & 3) as i32 - 1) as f32 * d;
            }
        },
        multibyte: Some(&[Field::u16s(0, 1)]),
        codebook: None,
    };

    #[cube]
    pub fn locate(view: &MatrixView, at: At, places: &mut Places) {
        locate_crumbs(view, at, places, CHUNKS);
    }

    #[cube]
    pub fn decode(raw: &Raw, at: At) -> Chunk {
        decode_crumbs(raw, at, CHUNKS)
    }
}
