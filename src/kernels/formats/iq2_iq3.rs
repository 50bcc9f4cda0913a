//! IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S: groups of 8 (or 4) magnitudes from a grid, with signs beside them.
//!
//! Blocks of 256 values as `ggml/src/ggml-common.h` has them; `d` is a half, the rest is for a chunk of 32 values:
//!
//! | format | grid indices | signs | scale | value |
//! |---|---|---|---|---|
//! | IQ2_XXS | 4 of 8 bits | 4 of 7 bits | 4 bits | `d * (0.5 + scale) / 4 * grid` |
//! | IQ2_XS | 4 of 9 bits | 4 of 7 bits | 2 of 4 bits | `d * (0.5 + scale) / 4 * grid` |
//! | IQ2_S | 4 of 8 + 2 bits | 4 of 8 bits | 2 of 4 bits | `d * (0.5 + scale) / 4 * grid` |
//! | IQ3_XXS | 8 of 8 bits | 4 of 7 bits | 4 bits | `d * (0.5 + scale) / 2 * grid` |
//! | IQ3_S | 8 of 8 + 1 bits | 4 of 8 bits | 4 bits | `d * (1 + 2 * scale) * grid` |
//!
//! Seven bits of signs stand for eight: the eighth makes the number of minus signs even.

use cubecl::prelude::*;

use super::bits::{even_signs, f16, negate, negate_ones, words};
use super::codebooks::{
    IQ2_VALUES, IQ2S_GRID, IQ2XS_GRID, IQ2XXS_GRID, IQ3S_GRID, IQ3S_VALUES, IQ3XXS_GRID, IQ3XXS_VALUES,
};
use super::format::{Field, Format, Traits};
use super::host::{f16_at, u16_at, u32_at};
use super::layout::{Component, Layout};
use super::raw::{Places, Raw};
use super::view::{At, Chunk, MatrixView, byte_of, half_of};
use crate::gguf::GgmlType;
use crate::kernels::vector::Words;

/// Chunks of 32 in a block.
const CHUNKS: usize = 8;

/// Magnitude `j` of a grid point of eight.
fn magnitude_2(point: u16, j: usize) -> u8 {
    IQ2_VALUES[(point >> (2 * j) & 3) as usize]
}

/// Magnitude `j` of a grid point of four.
fn magnitude_3(point: u16, j: usize, values: &[u8; 8]) -> u8 {
    values[(point >> (4 * j) & 7) as usize]
}

/// A codebook of grid points of eight: the first words of all points, then the second words.
fn codebook_2(grid: &[u16]) -> Vec<u32> {
    let half = |point: u16, first: usize| u32::from_le_bytes(std::array::from_fn(|j| magnitude_2(point, first + j)));
    [0, 4].into_iter().flat_map(|first| grid.iter().map(move |&point| half(point, first))).collect()
}

/// A codebook of grid points of four, a word each.
fn codebook_3(grid: &[u16], values: &[u8; 8]) -> Vec<u32> {
    let word = |&point: &u16| u32::from_le_bytes(std::array::from_fn(|j| magnitude_3(point, j, values)));
    grid.iter().map(word).collect()
}

fn even_signs_host(seven: u32) -> u8 {
    let seven = (seven & 0x7f) as u8;
    seven | (seven.count_ones() as u8 & 1) << 7
}

/// `magnitude` with the sign that bit `j` of `signs` gives.
fn signed(magnitude: u8, signs: u8, j: usize) -> f32 {
    if signs >> j & 1 == 1 { -(magnitude as f32) } else { magnitude as f32 }
}

/// Codes of a chunk of IQ2: four points of a grid of `len`, of eight magnitudes each, and a byte of `signs` for each.
#[cube]
fn points_of_eight(codebook: &[u32], points: Words, signs: u32, #[comptime] len: usize) -> (Words, Words) {
    let mut codes = Sequence::<u32>::new();
    #[unroll]
    for i in 0..4usize {
        let point = usize::cast_from(points.extract(i));
        let eight = signs >> comptime!(8 * i as u32);
        codes.push(negate(codebook[point], eight));
        codes.push(negate(codebook[point + len], eight >> 4));
    }
    in_order(&codes)
}

/// Codes of a chunk of IQ3: eight grid points of four magnitudes each, and the signs in the order of a component of 1-bit
/// codes.
#[cube]
fn points_of_four(codebook: &[u32], points: Sequence<u32>, signs: u32) -> (Words, Words) {
    let mut codes = Sequence::<u32>::new();
    #[unroll]
    for i in 0..8usize {
        let point = codebook[usize::cast_from(*points.index(i))];
        codes.push(negate_ones(point, (signs >> comptime!(i as u32)) & 0x0101_0101));
    }
    in_order(&codes)
}

#[cube]
fn in_order(codes: &Sequence<u32>) -> (Words, Words) {
    let low = words(*codes.index(0usize), *codes.index(1usize), *codes.index(2usize), *codes.index(3usize));
    let high = words(*codes.index(4usize), *codes.index(5usize), *codes.index(6usize), *codes.index(7usize));
    (low, high)
}

/// The four bytes of a word, each in a word of its own.
#[cube]
fn four_bytes(word: u32) -> Words {
    words(word & 0xff, (word >> 8) & 0xff, (word >> 16) & 0xff, word >> 24)
}

/// Four 7-bit sign indices, in the low 28 bits, as four bytes of signs.
#[cube]
fn four_even_signs(indices: u32) -> u32 {
    even_signs(indices)
        | (even_signs(indices >> 7) << 8)
        | (even_signs(indices >> 14) << 16)
        | (even_signs(indices >> 21) << 24)
}

/// The scale of IQ2, from `d` and its 4-bit code.
#[cube]
fn iq2_scale(d: f32, scale: u32) -> f32 {
    d * (0.5f32 + f32::cast_from(scale)) * 0.25f32
}

pub mod iq2_xxs {
    use super::*;

    pub const FORMAT: Format = Format {
        ty: GgmlType::IQ2XXS,
        traits: Traits::ONE_SCALE.small(),
        layout: || Layout {
            block_bytes: 66,
            components: vec![Component::raw(16, 2, 32).wide(), Component::raw(16, 0, 1)],
        },
        dequantize: |block, out| {
            let d = f16_at(block, 0);
            for (v, out) in out.iter_mut().enumerate() {
                let (chunk, group, j) = (v / 32, v % 32 / 8, v % 8);
                let signs = u32_at(block, 2 + 8 * chunk + 4);
                let scale = d * (0.5 + (signs >> 28) as f32) * 0.25;
                let point = IQ2XXS_GRID[block[2 + 8 * chunk + group] as usize];
                *out = scale * signed(magnitude_2(point, j), even_signs_host(signs >> (7 * group)), j);
            }
        },
        multibyte: None,
        codebook: Some(|| codebook_2(&IQ2XXS_GRID)),
    };

    #[cube]
    pub fn locate(view: &MatrixView, at: At, places: &mut Places) {
        places.push(view.chunk_word(0usize, at, 2usize, 0usize));
        places.push(view.chunk_word(0usize, at, 2usize, 1usize));
        places.push(view.word(1usize, at.row, at.block(CHUNKS) / 2));
    }

    #[cube]
    pub fn decode(raw: &Raw, codebook: &[u32], at: At) -> Chunk {
        let points = raw.word(0usize);
        let signs = raw.word(1usize);
        let d = f16(half_of(raw.word(2usize), at.block(CHUNKS)));
        let (low, high) = points_of_eight(codebook, four_bytes(points), four_even_signs(signs), IQ2XXS_GRID.len());
        Chunk::scaled(low, high, iq2_scale(d, signs >> 28))
    }
}

pub mod iq2_xs {
    use super::*;

    pub const FORMAT: Format = Format {
        ty: GgmlType::IQ2XS,
        traits: Traits::TWO_SCALES.small(),
        layout: || Layout {
            block_bytes: 74,
            components: vec![Component::raw(16, 2, 32).wide(), Component::raw(8, 66, 8), Component::raw(16, 0, 1)],
        },
        dequantize: |block, out| {
            let d = f16_at(block, 0);
            for (v, out) in out.iter_mut().enumerate() {
                let (chunk, group, j) = (v / 32, v % 32 / 8, v % 8);
                let scale = d * (0.5 + (block[66 + chunk] >> (4 * (group / 2)) & 0xf) as f32) * 0.25;
                let q = u16_at(block, 2 + 8 * chunk + 2 * group);
                let point = IQ2XS_GRID[(q & 511) as usize];
                *out = scale * signed(magnitude_2(point, j), even_signs_host((q >> 9) as u32), j);
            }
        },
        multibyte: Some(&[Field::u16s(0, 33)]),
        codebook: Some(|| codebook_2(&IQ2XS_GRID)),
    };

    #[cube]
    pub fn locate(view: &MatrixView, at: At, places: &mut Places) {
        places.push(view.chunk_word(0usize, at, 2usize, 0usize));
        places.push(view.chunk_word(0usize, at, 2usize, 1usize));
        places.push(view.word(1usize, at.row, at.index() / 4));
        places.push(view.word(2usize, at.row, at.block(CHUNKS) / 2));
    }

    #[cube]
    pub fn decode(raw: &Raw, codebook: &[u32], at: At) -> Chunk {
        let first = raw.word(0usize);
        let second = raw.word(1usize);
        let scales = byte_of(raw.word(2usize), at.index());
        let d = f16(half_of(raw.word(3usize), at.block(CHUNKS)));
        let points = words(first & 511, (first >> 16) & 511, second & 511, (second >> 16) & 511);
        let signs = even_signs(first >> 9)
            | (even_signs(first >> 25) << 8)
            | (even_signs(second >> 9) << 16)
            | (even_signs(second >> 25) << 24);
        let (low, high) = points_of_eight(codebook, points, signs, IQ2XS_GRID.len());
        Chunk::halves(low, high, iq2_scale(d, scales & 0xf), iq2_scale(d, scales >> 4))
    }
}

pub mod iq2_s {
    use super::*;

    pub const FORMAT: Format = Format {
        ty: GgmlType::IQ2S,
        traits: Traits::TWO_SCALES.small(),
        layout: || Layout {
            block_bytes: 82,
            components: vec![
                Component::raw(8, 2, 32).wide(),
                Component::raw(8, 34, 32).wide(),
                // A chunk's top bits and scales side by side.
                Component::gathered(8, (0..8).flat_map(|chunk| [8 * (66 + chunk), 8 * (74 + chunk)])),
                Component::raw(16, 0, 1),
            ],
        },
        dequantize: |block, out| {
            let d = f16_at(block, 0);
            for (v, out) in out.iter_mut().enumerate() {
                let (chunk, group, j) = (v / 32, v % 32 / 8, v % 8);
                let scale = d * (0.5 + (block[74 + chunk] >> (4 * (group / 2)) & 0xf) as f32) * 0.25;
                let top = (block[66 + chunk] >> (2 * group) & 3) as usize;
                let point = IQ2S_GRID[block[2 + 4 * chunk + group] as usize | top << 8];
                *out = scale * signed(magnitude_2(point, j), block[34 + 4 * chunk + group], j);
            }
        },
        multibyte: Some(&[Field::u16s(0, 1)]),
        codebook: Some(|| codebook_2(&IQ2S_GRID)),
    };

    #[cube]
    pub fn locate(view: &MatrixView, at: At, places: &mut Places) {
        places.push(view.chunk_word(0usize, at, 1usize, 0usize));
        places.push(view.chunk_word(1usize, at, 1usize, 0usize));
        places.push(view.chunk_half_word(2usize, at));
        places.push(view.word(3usize, at.row, at.block(CHUNKS) / 2));
    }

    #[cube]
    pub fn decode(raw: &Raw, codebook: &[u32], at: At) -> Chunk {
        let points = raw.word(0usize);
        let signs = raw.word(1usize);
        let tops_and_scales = at.half_of(raw.word(2usize));
        let d = f16(half_of(raw.word(3usize), at.block(CHUNKS)));
        let t = tops_and_scales;
        let tops = words((t & 3) << 8, (t & 0xc) << 6, (t & 0x30) << 4, (t & 0xc0) << 2);
        let (low, high) = points_of_eight(codebook, four_bytes(points) | tops, signs, IQ2S_GRID.len());
        Chunk::halves(low, high, iq2_scale(d, (t >> 8) & 0xf), iq2_scale(d, t >> 12))
    }
}

pub mod iq3_xxs {
    use super::*;

    pub const FORMAT: Format = Format {
        ty: GgmlType::IQ3XXS,
        traits: Traits::ONE_SCALE.small(),
        layout: || Layout {
            block_bytes: 98,
            components: vec![
                Component::raw(8, 2, 64).wide(),
                Component::codes(1, 256, |v| 8 * (66 + 4 * (v / 32)) + sign_bit(v % 32)),
                Component::raw(16, 0, 1),
            ],
        },
        dequantize: |block, out| {
            let d = f16_at(block, 0);
            for (v, out) in out.iter_mut().enumerate() {
                let (chunk, group) = (v / 32, v % 32 / 8);
                let signs = u32_at(block, 66 + 4 * chunk);
                let scale = d * (0.5 + (signs >> 28) as f32) * 0.5;
                let point = IQ3XXS_GRID[block[2 + v / 4] as usize];
                let magnitude = magnitude_3(point, v % 4, &IQ3XXS_VALUES);
                *out = scale * signed(magnitude, even_signs_host(signs >> (7 * group)), v % 8);
            }
        },
        multibyte: None,
        codebook: Some(|| codebook_3(&IQ3XXS_GRID, &IQ3XXS_VALUES)),
    };

    /// The source bit for the sign of value `v` in a component of signs, from a chunk's word of 28 bits of signs and 4 bits
    /// of scale. A bit of the scale takes the place of each group's eighth sign.
    fn sign_bit(v: usize) -> usize {
        if v % 8 == 7 { 28 + v / 8 } else { 7 * (v / 8) + v % 8 }
    }

    /// The signs with the eighth of each group of values, which makes the number of minus signs even. The eighth of group
    /// `g` is bit `25 + 2g`; the others are bits `2g` and `2g + 1` of the four bytes.
    #[cube]
    fn with_eighths(seven: u32) -> u32 {
        let signs = seven & 0x55ff_ffff;
        let pairs = signs ^ (signs >> 16);
        let pairs = pairs ^ (pairs >> 8);
        let odd = (pairs ^ (pairs >> 1)) & 0x55;
        signs | (odd << 25)
    }

    /// The 4-bit scale, from the places of the eighth signs.
    #[cube]
    fn scale(seven: u32) -> u32 {
        let bits = (seven >> 25) & 0x55;
        let bits = (bits | (bits >> 1)) & 0x33;
        (bits | (bits >> 2)) & 0xf
    }

    #[cube]
    pub fn locate(view: &MatrixView, at: At, places: &mut Places) {
        places.push(view.chunk_word(1usize, at, 1usize, 0usize));
        places.push(view.word(2usize, at.row, at.block(CHUNKS) / 2));
        places.push(view.chunk_word(0usize, at, 2usize, 0usize));
        places.push(view.chunk_word(0usize, at, 2usize, 1usize));
    }

    #[cube]
    pub fn decode(raw: &Raw, codebook: &[u32], at: At) -> Chunk {
        let signs = raw.word(0usize);
        let d = f16(half_of(raw.word(1usize), at.block(CHUNKS)));
        let mut points = Sequence::<u32>::new();
        #[unroll]
        for half in 0..2usize {
            let word = raw.word(comptime!(2 + half));
            #[unroll]
            for i in 0..4usize {
                points.push((word >> comptime!(8 * i as u32)) & 0xff);
            }
        }
        let (low, high) = points_of_four(codebook, points, with_eighths(signs));
        Chunk::scaled(low, high, d * (0.5f32 + f32::cast_from(scale(signs))) * 0.5f32)
    }
}

pub mod iq3_s {
    use super::*;

    pub const FORMAT: Format = Format {
        ty: GgmlType::IQ3S,
        traits: Traits::ONE_SCALE.small(),
        layout: || Layout {
            block_bytes: 110,
            components: vec![
                Component::raw(8, 2, 64).wide(),
                Component::codes(1, 256, |v| 8 * 74 + v),
                // Three words a block: the top bits of eight chunks, then their scales.
                Component::gathered(8, (66..74).chain(106..110).map(|byte| 8 * byte)),
                Component::raw(16, 0, 1),
            ],
        },
        dequantize: |block, out| {
            let d = f16_at(block, 0);
            for (v, out) in out.iter_mut().enumerate() {
                let (chunk, i) = (v / 32, v % 32 / 4);
                let scale = d * (1 + 2 * (block[106 + chunk / 2] >> (4 * (chunk % 2)) & 0xf) as i32) as f32;
                let top = (block[66 + chunk] >> i & 1) as usize;
                let point = IQ3S_GRID[block[2 + v / 4] as usize | top << 8];
                let magnitude = magnitude_3(point, v % 4, &IQ3S_VALUES);
                *out = scale * signed(magnitude, block[74 + v / 8], v % 8);
            }
        },
        multibyte: Some(&[Field::u16s(0, 1)]),
        codebook: Some(|| codebook_3(&IQ3S_GRID, &IQ3S_VALUES)),
    };

    #[cube]
    pub fn locate(view: &MatrixView, at: At, places: &mut Places) {
        places.push(view.chunk_word(1usize, at, 1usize, 0usize));
        let block = at.block(CHUNKS);
        places.push(view.chunk_bits_word(2usize, at, CHUNKS, 8usize, 3 * block));
        places.push(view.chunk_bits_word(2usize, at, CHUNKS, 4usize, 3 * block + 2));
        places.push(view.word(3usize, at.row, block / 2));
        places.push(view.chunk_word(0usize, at, 2usize, 0usize));
        places.push(view.chunk_word(0usize, at, 2usize, 1usize));
    }

    #[cube]
    pub fn decode(raw: &Raw, codebook: &[u32], at: At) -> Chunk {
        let signs = raw.word(0usize);
        let tops = at.bits_of(raw.word(1usize), CHUNKS, 8usize);
        let scale = at.bits_of(raw.word(2usize), CHUNKS, 4usize);
        let d = f16(half_of(raw.word(3usize), at.block(CHUNKS)));
        // Two indices at a time, in halves of a word: bytes 0 and 2, then 1 and 3. The copy at 14 puts the top bit of index
        // `i + 2` 16 bits above that of index `i`.
        let tops = tops | (tops << 14);
        let mut points = Sequence::<u32>::new();
        #[unroll]
        for half in 0..2usize {
            let word = raw.word(comptime!(4 + half));
            let even = (word & 0x00ff_00ff) | ((tops << comptime!((8 - 4 * half) as u32)) & 0x0100_0100);
            let odd = ((word >> 8) & 0x00ff_00ff) | ((tops << comptime!((7 - 4 * half) as u32)) & 0x0100_0100);
            points.push(even & 0xffff);
            points.push(odd & 0xffff);
            points.push(even >> 16);
            points.push(odd >> 16);
        }
        let (low, high) = points_of_four(codebook, points, signs);
        Chunk::scaled(low, high, d * (1.0f32 + 2.0f32 * f32::cast_from(scale)))
    }
}
