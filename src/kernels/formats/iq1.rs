//! IQ1_S, IQ1_M: groups of eight values from a grid of -1, 0 and 1, all shifted by an eighth up or down.
//!
//! Blocks of 256 values as `ggml/src/ggml-common.h` has them:
//!
//! | format | fields | value |
//! |---|---|---|
//! | IQ1_S | `d` (half), `qs[32]`, `qh[8]` (u16) | `d * (2 * scale + 1) * (grid ± 1/8)` |
//! | IQ1_M | `qs[32]`, `qh[16]`, `scales[8]` | `d * (2 * scale + 1) * (grid ± 1/8)` |
//!
//! A group's grid index is 11 bits: a byte of `qs` and three bits of `qh`. IQ1_S has a scale and a shift for 32
//! values, in the top four bits of their `qh`; IQ1_M has a scale of three bits for 16 values and a shift for eight, and
//! its `d` is the top four bits of the four 16-bit words of `scales`.
//!
//! Here the codes are `8 * grid ± 1`, biased by 128, and the scale is divided by 8, which changes no rounding.

use cubecl::prelude::*;
use half::f16 as Half;

use super::bits::{f16, words};
use super::codebooks::IQ1S_GRID;
use super::format::{Field, Format, Traits};
use super::host::{f16_at, u16_at};
use super::layout::{Component, Layout};
use super::raw::{Places, Raw};
use super::view::{At, Chunk, MatrixView, half_of};
use crate::gguf::GgmlType;
use crate::kernels::vector::Words;

/// Chunks of 32 in a block.
const CHUNKS: usize = 8;

/// Value `j` of a grid point.
fn grid(point: usize, j: usize) -> i32 {
    (IQ1S_GRID[point] >> (2 * j) & 3) as i32 - 1
}

/// The codebook: the first words of all grid points, then the second words. Bytes are `8 * grid + 128`, so that adding a
/// shift carries into no neighbour.
fn codebook() -> Vec<u32> {
    let half = |point: usize, first: usize| {
        u32::from_le_bytes(std::array::from_fn(|j| (8 * grid(point, first + j) + 128) as u8))
    };
    [0, 4].into_iter().flat_map(|first| (0..IQ1S_GRID.len()).map(move |point| half(point, first))).collect()
}

/// `scale * (grid ± 1/8)` as ggml computes it.
fn shifted(scale: f32, point: usize, j: usize, down: bool) -> f32 {
    scale * (grid(point, j) as f32 + if down { -0.125 } else { 0.125 })
}

/// The codes of half a chunk: two grid points, each shifted down where bit 0 of its `down` is set.
#[cube]
fn points(codebook: &[u32], first: u32, first_down: u32, second: u32, second_down: u32) -> Words {
    let (first, second) = (usize::cast_from(first), usize::cast_from(second));
    let points = comptime!(IQ1S_GRID.len());
    // 0x01 in each byte up, its negative as a word down: bytes of 0x78 to 0x88 neither carry nor borrow.
    let first_shift = 0x0101_0101u32 - (first_down & 1) * 0x0202_0202u32;
    let second_shift = 0x0101_0101u32 - (second_down & 1) * 0x0202_0202u32;
    words(
        codebook[first] + first_shift,
        codebook[first + points] + first_shift,
        codebook[second] + second_shift,
        codebook[second + points] + second_shift,
    )
}

/// An eighth of `d * (2 * scale + 1)`, the scale being the low three bits.
#[cube]
fn scaled(d: f32, scale: u32) -> f32 {
    d * f32::cast_from(2 * (scale & 7) + 1) * 0.125f32
}

pub mod iq1_s {
    use super::*;

    pub const FORMAT: Format = Format {
        ty: GgmlType::IQ1S,
        traits: Traits::ONE_SCALE.biased(128),
        layout: || Layout {
            block_bytes: 50,
            components: vec![Component::raw(8, 2, 32).wide(), Component::raw(16, 34, 8), Component::raw(16, 0, 1)],
        },
        dequantize: |block, out| {
            let d = f16_at(block, 0);
            for (v, out) in out.iter_mut().enumerate() {
                let (chunk, group) = (v / 32, v % 32 / 8);
                let high = u16_at(block, 34 + 2 * chunk) as usize;
                let scale = d * (2 * (high >> 12 & 7) + 1) as f32;
                let point = block[2 + v / 8] as usize | (high >> (3 * group) & 7) << 8;
                *out = shifted(scale, point, v % 8, high & 0x8000 != 0);
            }
        },
        multibyte: Some(&[Field::u16s(0, 1), Field::u16s(34, 8)]),
        codebook: Some(codebook),
    };

    #[cube]
    pub fn locate(view: &MatrixView, at: At, places: &mut Places) {
        places.push(view.chunk_word(0usize, at, 1usize, 0usize));
        places.push(view.chunk_half_word(1usize, at));
        places.push(view.word(2usize, at.row, at.block(CHUNKS) / 2));
    }

    #[cube]
    pub fn decode(raw: &Raw, codebook: &[u32], at: At) -> Chunk {
        let low = raw.word(0usize);
        let high = at.half_of(raw.word(1usize));
        let d = f16(half_of(raw.word(2usize), at.block(CHUNKS)));
        let down = high >> 15;
        let first = (low & 0xff) | ((high & 7) << 8);
        let second = ((low >> 8) & 0xff) | (((high >> 3) & 7) << 8);
        let third = ((low >> 16) & 0xff) | (((high >> 6) & 7) << 8);
        let fourth = (low >> 24) | (((high >> 9) & 7) << 8);
        Chunk::scaled(
            points(codebook, first, down, second, down),
            points(codebook, third, down, fourth, down),
            scaled(d, high >> 12),
        )
    }
}

pub mod iq1_m {
    use super::*;

    pub const FORMAT: Format = Format {
        ty: GgmlType::IQ1M,
        traits: Traits::TWO_SCALES.biased(128),
        layout: || Layout {
            block_bytes: 56,
            components: vec![Component::raw(8, 0, 32).wide(), Component::raw(8, 32, 16), Component::raw(16, 48, 4)],
        },
        dequantize: |block, out| {
            let words: [u16; 4] = std::array::from_fn(|i| u16_at(block, 48 + 2 * i));
            let d = words.iter().enumerate().fold(0, |d, (i, word)| d | word >> 12 << (4 * i));
            let d = Half::from_bits(d).to_f32();
            for (v, out) in out.iter_mut().enumerate() {
                let sub = v / 16;
                let scale = d * (2 * (words[sub / 4] >> (3 * (sub % 4)) & 7) + 1) as f32;
                let high = (block[32 + sub] >> (4 * (v % 16 / 8))) as usize;
                let point = block[v / 8] as usize | (high & 7) << 8;
                *out = shifted(scale, point, v % 8, high & 8 != 0);
            }
        },
        multibyte: Some(&[Field::u16s(48, 4)]),
        codebook: Some(codebook),
    };

    #[cube]
    pub fn locate(view: &MatrixView, at: At, places: &mut Places) {
        places.push(view.chunk_word(0usize, at, 1usize, 0usize));
        places.push(view.chunk_half_word(1usize, at));
        let first = view.word(2usize, at.row, 2 * at.block(CHUNKS));
        places.push(first);
        places.push(first.after(1usize));
    }

    #[cube]
    pub fn decode(raw: &Raw, codebook: &[u32], at: At) -> Chunk {
        let low = raw.word(0usize);
        let high = at.half_of(raw.word(1usize));
        let front = raw.word(2usize);
        let back = raw.word(3usize);
        let d = f16(((front >> 12) & 0xf) | ((front >> 24) & 0xf0) | ((back >> 4) & 0xf00) | ((back >> 16) & 0xf000));
        let chunk = u32::cast_from(at.in_block(CHUNKS));
        // Four scales of three bits in each 16-bit word, two a chunk.
        let scales = select(chunk < 4, front, back) >> ((chunk % 4) / 2 * 16 + (chunk % 2) * 6);
        let first = (low & 0xff) | ((high & 7) << 8);
        let second = ((low >> 8) & 0xff) | (((high >> 4) & 7) << 8);
        let third = ((low >> 16) & 0xff) | (((high >> 8) & 7) << 8);
        let fourth = (low >> 24) | (((high >> 12) & 7) << 8);
        Chunk::halves(
            points(codebook, first, high >> 3, second, high >> 7),
            points(codebook, third, high >> 11, fourth, high >> 15),
            scaled(d, scales),
            scaled(d, scales >> 3),
        )
    }
}
