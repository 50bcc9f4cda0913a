//! Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1: blocks of 32 values with one scale, ggml's first formats.
//!
//! Blocks as `ggml/src/ggml-common.h` has them (`d`, `m`, `s` are halves, little-endian):
//!
//! | format | fields | value |
//! |---|---|---|
//! | Q4_0 | `d`, `qs[16]` | `d * (q - 8)` |
//! | Q4_1 | `d`, `m`, `qs[16]` | `d * q + m` |
//! | Q5_0 | `d`, `qh[4]`, `qs[16]` | `d * (q - 16)` |
//! | Q5_1 | `d`, `m`, `qh[4]`, `qs[16]` | `d * q + m` |
//! | Q8_0 | `d`, `qs[32]` | `d * q` |
//! | Q8_1 | `d`, `s`, `qs[32]` | `d * q`; `s` is the sum of the values |
//!
//! Byte `j` of a 4-bit `qs` holds value `j` in its low half and value `j + 16` in its high half; bit `v` of `qh` is
//! the fifth bit of value `v`.

use cubecl::prelude::*;

use super::bits::{f16, nibbles, ones, splat, two_f16};
use super::format::{Field, Format, Traits};
use super::host::{f16_at, nibble_at, nibble_bit, u32_at};
use super::layout::{Component, Layout};
use super::raw::{Places, Raw};
use super::view::{At, Chunk, MatrixView};
use crate::gguf::GgmlType;
use crate::kernels::vector::Words;

/// 5-bit codes, from nibbles and the word of the fifth bits.
#[cube]
fn five_bits(codes: Words, fifths: u32) -> (Words, Words) {
    let (low, high) = nibbles(codes);
    let (low_bit, high_bit) = ones(fifths);
    (low | (low_bit << splat(4u32)), high | (high_bit << splat(4u32)))
}

pub mod q4_0 {
    use super::*;

    pub const FORMAT: Format = Format {
        ty: GgmlType::Q4_0,
        traits: Traits::ONE_SCALE.biased(8),
        layout: || Layout::new(18, [Component::codes(4, 32, nibble_bit(2)), Component::raw(16, 0, 1)]),
        dequantize: |block, out| {
            let d = f16_at(block, 0);
            for (v, out) in out.iter_mut().enumerate() {
                *out = (nibble_at(block, 2, v) as i32 - 8) as f32 * d;
            }
        },
        multibyte: Some(&[Field::u16s(0, 1)]),
        codebook: None,
    };

    #[cube]
    pub fn locate(view: &MatrixView, at: At, places: &mut Places) {
        places.push_wide(view.chunk_wide(0usize, at, 1usize, 0usize));
        places.push(view.chunk_half_word(1usize, at));
    }

    #[cube]
    pub fn decode(raw: &Raw, at: At) -> Chunk {
        let (low, high) = nibbles(raw.wide(0usize));
        Chunk::scaled(low, high, f16(at.half_of(raw.word(0usize))))
    }
}

pub mod q4_1 {
    use super::*;

    pub const FORMAT: Format = Format {
        ty: GgmlType::Q4_1,
        traits: Traits::SCALE_AND_MIN.biased(0),
        layout: || Layout::new(20, [Component::codes(4, 32, nibble_bit(4)), Component::raw(16, 0, 2)]),
        dequantize: |block, out| {
            let (d, m) = (f16_at(block, 0), f16_at(block, 2));
            for (v, out) in out.iter_mut().enumerate() {
                *out = nibble_at(block, 4, v) as f32 * d + m;
            }
        },
        multibyte: Some(&[Field::u16s(0, 2)]),
        codebook: None,
    };

    #[cube]
    pub fn locate(view: &MatrixView, at: At, places: &mut Places) {
        places.push_wide(view.chunk_wide(0usize, at, 1usize, 0usize));
        places.push(view.word(1usize, at.row, at.index()));
    }

    #[cube]
    pub fn decode(raw: &Raw, _at: At) -> Chunk {
        let (low, high) = nibbles(raw.wide(0usize));
        let (scale, min) = two_f16(raw.word(0usize));
        Chunk::with_min(low, high, scale, min)
    }
}

pub mod q5_0 {
    use super::*;

    pub const FORMAT: Format = Format {
        ty: GgmlType::Q5_0,
        traits: Traits::ONE_SCALE.biased(16),
        layout: || {
            Layout::new(
                22,
                [Component::codes(4, 32, nibble_bit(6)), Component::codes(1, 32, |v| 16 + v), Component::raw(16, 0, 1)],
            )
        },
        dequantize: |block, out| {
            let (d, fifth) = (f16_at(block, 0), u32_at(block, 2));
            for (v, out) in out.iter_mut().enumerate() {
                let q = nibble_at(block, 6, v) as i32 | ((fifth >> v & 1) << 4) as i32;
                *out = (q - 16) as f32 * d;
            }
        },
        multibyte: None,
        codebook: None,
    };

    #[cube]
    pub fn locate(view: &MatrixView, at: At, places: &mut Places) {
        places.push_wide(view.chunk_wide(0usize, at, 1usize, 0usize));
        places.push(view.chunk_word(1usize, at, 1usize, 0usize));
        places.push(view.chunk_half_word(2usize, at));
    }

    #[cube]
    pub fn decode(raw: &Raw, at: At) -> Chunk {
        let (low, high) = five_bits(raw.wide(0usize), raw.word(0usize));
        Chunk::scaled(low, high, f16(at.half_of(raw.word(1usize))))
    }
}

pub mod q5_1 {
    use super::*;

    pub const FORMAT: Format = Format {
        ty: GgmlType::Q5_1,
        traits: Traits::SCALE_AND_MIN.biased(0),
        layout: || {
            Layout::new(
                24,
                [Component::codes(4, 32, nibble_bit(8)), Component::codes(1, 32, |v| 32 + v), Component::raw(16, 0, 2)],
            )
        },
        dequantize: |block, out| {
            let (d, m, fifth) = (f16_at(block, 0), f16_at(block, 2), u32_at(block, 4));
            for (v, out) in out.iter_mut().enumerate() {
                let q = nibble_at(block, 8, v) as u32 | (fifth >> v & 1) << 4;
                *out = q as f32 * d + m;
            }
        },
        multibyte: None,
        codebook: None,
    };

    #[cube]
    pub fn locate(view: &MatrixView, at: At, places: &mut Places) {
        places.push_wide(view.chunk_wide(0usize, at, 1usize, 0usize));
        places.push(view.chunk_word(1usize, at, 1usize, 0usize));
        places.push(view.word(2usize, at.row, at.index()));
    }

    #[cube]
    pub fn decode(raw: &Raw, _at: At) -> Chunk {
        let (low, high) = five_bits(raw.wide(0usize), raw.word(0usize));
        let (scale, min) = two_f16(raw.word(1usize));
        Chunk::with_min(low, high, scale, min)
    }
}

pub mod q8_0 {
    use super::*;

    pub const FORMAT: Format = Format {
        ty: GgmlType::Q8_0,
        traits: Traits::ONE_SCALE,
        layout: || Layout::new(34, [Component::raw(8, 2, 32).wide(), Component::raw(16, 0, 1)]),
        dequantize: |block, out| {
            let d = f16_at(block, 0);
            for (v, out) in out.iter_mut().enumerate() {
                *out = block[2 + v] as i8 as f32 * d;
            }
        },
        multibyte: Some(&[Field::u16s(0, 1)]),
        codebook: None,
    };

    #[cube]
    pub fn locate(view: &MatrixView, at: At, places: &mut Places) {
        places.push_wide(view.chunk_wide(0usize, at, 2usize, 0usize));
        places.push_wide(view.chunk_wide(0usize, at, 2usize, 1usize));
        places.push(view.chunk_half_word(1usize, at));
    }

    #[cube]
    pub fn decode(raw: &Raw, at: At) -> Chunk {
        Chunk::scaled(raw.wide(0usize), raw.wide(1usize), f16(at.half_of(raw.word(0usize))))
    }
}

pub mod q8_1 {
    use super::*;

    pub const FORMAT: Format = Format {
        ty: GgmlType::Q8_1,
        traits: Traits::ONE_SCALE,
        layout: || Layout::new(36, [Component::raw(8, 4, 32).wide(), Component::raw(16, 0, 2)]),
        dequantize: |block, out| {
            let d = f16_at(block, 0);
            for (v, out) in out.iter_mut().enumerate() {
                *out = block[4 + v] as i8 as f32 * d;
            }
        },
        multibyte: Some(&[Field::u16s(0, 2)]),
        codebook: None,
    };

    #[cube]
    pub fn locate(view: &MatrixView, at: At, places: &mut Places) {
        places.push_wide(view.chunk_wide(0usize, at, 2usize, 0usize));
        places.push_wide(view.chunk_wide(0usize, at, 2usize, 1usize));
        places.push(view.word(1usize, at.row, at.index()));
    }

    #[cube]
    pub fn decode(raw: &Raw, _at: At) -> Chunk {
        Chunk::scaled(raw.wide(0usize), raw.wide(1usize), f16(raw.word(0usize) & 0xffff))
    }
}
