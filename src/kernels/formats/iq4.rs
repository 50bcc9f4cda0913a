//! IQ4_NL, IQ4_XS, MXFP4, NVFP4: 4-bit codes that index a table of 16 values.
//!
//! Blocks as `ggml/src/ggml-common.h` has them:
//!
//! | format | values | fields | value |
//! |---|---|---|---|
//! | IQ4_NL | 32 | `d` (half), `qs[16]` | `d * IQ4NL[q]` |
//! | IQ4_XS | 256 | `d` (half), `scales_h` (u16), `scales_l[4]`, `qs[128]` | `d * (scale - 32) * IQ4NL[q]` |
//! | MXFP4 | 32 | `e` (E8M0), `qs[16]` | `2^(e - 128) * E2M1[q]`, the table holding twice its values |
//! | NVFP4 | 64 | `d[4]` (UE4M3), `qs[32]` | `d / 2 * E2M1[q]`, a scale for 16 values |
//!
//! Sub-blocks of IQ4_XS are of 32 values, with the low four bits of their scales in `scales_l` and the other two in
//! `scales_h`. Nibbles lie as in Q4_0; NVFP4's as in blocks of 16: byte `8s + j` holds values `j` and `j + 8` of
//! sub-block `s`.

use cubecl::frontend::comptime;
use cubecl::prelude::*;

use super::bits::f16;
use super::codebooks::{E2M1_VALUES, IQ4NL_VALUES};
use super::format::{Field, Format, Traits};
use super::host::{f16_at, nibble_at, nibble_bit, u16_at};
use super::layout::{Component, Layout};
use super::raw::{Places, Raw};
use super::view::{At, Chunk, MatrixView, byte_of};
use crate::gguf::GgmlType;
use crate::kernels::arch::permute::{NibbleOrder, lookup16, permutes_bytes};
use crate::kernels::vector::Words;

/// The codebook of a table of 16 values: for each byte its low nibble's value in bits 0 to 7, its high nibble's in
/// bits 16 to 23, so that one look-up serves two codes.
fn pairs(values: &[i8; 16]) -> Vec<u32> {
    let value = |nibble: usize| values[nibble] as u8 as u32;
    (0..256).map(|byte| value(byte & 0xf) | value(byte >> 4) << 16).collect()
}

/// A chunk of indices with the table's values in their place: by byte permutations where the device has them, else from the
/// codebook.
#[cube]
fn looked_up(indices: Chunk, codebook: &[u32], #[comptime] table: [i8; 16]) -> Chunk {
    let properties = comptime::device_properties();
    if comptime!(permutes_bytes(&properties)) {
        codes_of(indices, table, comptime!(NibbleOrder::LowHigh))
    } else {
        let mut low = Words::empty();
        let mut high = Words::empty();
        #[unroll]
        for i in 0..4usize {
            let word = indices.low.extract(i);
            let first = codebook[usize::cast_from(word & 0xff)];
            let second = codebook[usize::cast_from((word >> 8) & 0xff)];
            let third = codebook[usize::cast_from((word >> 16) & 0xff)];
            let fourth = codebook[usize::cast_from(word >> 24)];
            let front = first | (second << 8);
            let back = third | (fourth << 8);
            low.insert(i, (front & 0xffff) | (back << 16));
            high.insert(i, (front >> 16) | (back & 0xffff_0000));
        }
        indices.with_codes(low, high)
    }
}

/// A chunk of indices with the table's values in their place, by byte permutations: those of a word's first four nibbles in
/// `order` in `low`, of the others in `high`.
#[cube]
pub fn codes_of(indices: Chunk, #[comptime] table: [i8; 16], #[comptime] order: NibbleOrder) -> Chunk {
    let mut low = Words::empty();
    let mut high = Words::empty();
    #[unroll]
    for i in 0..4usize {
        let (first, last) = lookup16(indices.low.extract(i), table, order);
        low.insert(i, first);
        high.insert(i, last);
    }
    indices.with_codes(low, high)
}

pub mod iq4_nl {
    use super::*;

    pub const FORMAT: Format = Format {
        ty: GgmlType::IQ4NL,
        traits: Traits::ONE_SCALE.lookup16(&IQ4NL_VALUES),
        layout: || Layout {
            block_bytes: 18,
            components: vec![Component::codes(4, 32, nibble_bit(2)), Component::raw(16, 0, 1)],
        },
        dequantize: |block, out| {
            let d = f16_at(block, 0);
            for (v, out) in out.iter_mut().enumerate() {
                *out = d * IQ4NL_VALUES[nibble_at(block, 2, v) as usize] as f32;
            }
        },
        multibyte: Some(&[Field::u16s(0, 1)]),
        codebook: Some(|| pairs(&IQ4NL_VALUES)),
    };

    #[cube]
    pub fn locate(view: &MatrixView, at: At, places: &mut Places) {
        places.push_wide(view.chunk_wide(0usize, at, 1usize, 0usize));
        places.push(view.chunk_half_word(1usize, at));
    }

    #[cube]
    pub fn decode(raw: &Raw, codebook: &[u32], at: At) -> Chunk {
        looked_up(indices(raw, at), codebook, IQ4NL_VALUES)
    }

    /// The chunk with the indices of its codes as they lie, in place of the codes.
    #[cube]
    pub fn indices(raw: &Raw, at: At) -> Chunk {
        let words = raw.wide(0usize);
        Chunk::scaled(words, words, f16(at.half_of(raw.word(0usize))))
    }
}

pub mod iq4_xs {
    use super::*;

    /// Chunks of 32 in a block.
    const CHUNKS: usize = 8;

    pub const FORMAT: Format = Format {
        ty: GgmlType::IQ4XS,
        traits: Traits::ONE_SCALE.lookup16(&IQ4NL_VALUES),
        layout: || Layout {
            block_bytes: 136,
            components: vec![
                Component::codes(4, 256, |v| 128 * (v / 32) + nibble_bit(8)(v % 32)),
                // Two words a block: the low four bits of all scales; then the other two of each, with `d` above them.
                Component::gathered(16, [32, 48, 16, 0]),
            ],
        },
        dequantize: |block, out| {
            let (d, high) = (f16_at(block, 0), u16_at(block, 2));
            for (v, out) in out.iter_mut().enumerate() {
                let sub = v / 32;
                let scale =
                    (block[4 + sub / 2] >> (4 * (sub % 2)) & 0xf) as i32 | ((high >> (2 * sub) & 3) << 4) as i32;
                let code = IQ4NL_VALUES[nibble_at(block, 8 + 16 * sub, v % 32) as usize];
                *out = d * (scale - 32) as f32 * code as f32;
            }
        },
        multibyte: Some(&[Field::u16s(0, 2)]),
        codebook: Some(|| pairs(&IQ4NL_VALUES)),
    };

    #[cube]
    pub fn locate(view: &MatrixView, at: At, places: &mut Places) {
        places.push_wide(view.chunk_wide(0usize, at, 1usize, 0usize));
        let first = view.word(1usize, at.row, 2 * at.block(CHUNKS));
        places.push(first);
        places.push(first.after(1usize));
    }

    #[cube]
    pub fn decode(raw: &Raw, codebook: &[u32], at: At) -> Chunk {
        looked_up(indices(raw, at), codebook, IQ4NL_VALUES)
    }

    /// The chunk with the indices of its codes as they lie, in place of the codes.
    #[cube]
    pub fn indices(raw: &Raw, at: At) -> Chunk {
        let words = raw.wide(0usize);
        let sub_block = u32::cast_from(at.in_block(CHUNKS));
        let halves = raw.word(0usize) >> (sub_block * 4);
        let tops = raw.word(1usize);
        let scale = (halves & 0xf) | (((tops >> (sub_block * 2)) & 3) << 4);
        Chunk::scaled(words, words, f16(tops >> 16) * (f32::cast_from(scale) - 32.0f32))
    }
}

/// [`mxfp4`]'s scale of a value, halved, as the codebook's values are doubled. Exponents 0 and 1 are subnormal.
#[cube]
pub fn half_of_e8m0(e: u32) -> f32 {
    f32::reinterpret(select(e < 2, 0x0020_0000u32 << (e & 1), (e - 1) << 23))
}

pub mod mxfp4 {
    use super::*;

    pub const FORMAT: Format = Format {
        ty: GgmlType::MXFP4,
        traits: Traits::ONE_SCALE.lookup16(&E2M1_VALUES).small(),
        layout: || Layout {
            block_bytes: 17,
            components: vec![Component::codes(4, 32, nibble_bit(1)), Component::raw(8, 0, 1)],
        },
        dequantize: |block, out| {
            let d = f32::from_bits(half_of_e8m0_host(block[0] as u32));
            for (v, out) in out.iter_mut().enumerate() {
                *out = E2M1_VALUES[nibble_at(block, 1, v) as usize] as f32 * d;
            }
        },
        multibyte: Some(&[]),
        codebook: Some(|| pairs(&E2M1_VALUES)),
    };

    /// The f32 bits of `2^(e - 128)`, half of the E8M0 number, as the codebook's values are doubled. Exponents 0 and 1 are
    /// subnormal.
    fn half_of_e8m0_host(e: u32) -> u32 {
        if e < 2 { 0x0020_0000 << e } else { (e - 1) << 23 }
    }

    #[cube]
    pub fn locate(view: &MatrixView, at: At, places: &mut Places) {
        places.push_wide(view.chunk_wide(0usize, at, 1usize, 0usize));
        places.push(view.word(1usize, at.row, at.index() / 4));
    }

    #[cube]
    pub fn decode(raw: &Raw, codebook: &[u32], at: At) -> Chunk {
        looked_up(indices(raw, at), codebook, E2M1_VALUES)
    }

    /// The chunk with the indices of its codes as they lie, in place of the codes.
    #[cube]
    pub fn indices(raw: &Raw, at: At) -> Chunk {
        let words = raw.wide(0usize);
        let e = byte_of(raw.word(0usize), at.index());
        Chunk::scaled(words, words, half_of_e8m0(e))
    }
}

/// [`nvfp4`]'s scale of a value, halved, as the codebook's values are doubled.
#[cube]
pub fn half_of_ue4m3(x: u32) -> f32 {
    let subnormal = f32::cast_from(x & 7) * 0.000_976_562_5f32;
    let normal = f32::reinterpret((((x >> 3) & 0xf) + 119) << 23 | (x & 7) << 20);
    let value = select((x & 0x78) == 0, subnormal, normal);
    select(x == 0x7f, 0.0f32, value)
}

pub mod nvfp4 {
    use super::*;

    pub const FORMAT: Format = Format {
        ty: GgmlType::NVFP4,
        traits: Traits::TWO_SCALES.lookup16(&E2M1_VALUES).small(),
        layout: || Layout {
            block_bytes: 36,
            components: vec![
                Component::codes(4, 64, |v| 8 * (4 + 8 * (v / 16) + v % 8) + 4 * (v % 16 / 8)),
                Component::raw(8, 0, 4),
            ],
        },
        dequantize: |block, out| {
            for (v, out) in out.iter_mut().enumerate() {
                let byte = block[4 + 8 * (v / 16) + v % 8];
                let code = E2M1_VALUES[(byte >> (4 * (v % 16 / 8)) & 0xf) as usize];
                *out = code as f32 * half_of_ue4m3_host(block[v / 16]);
            }
        },
        multibyte: Some(&[]),
        codebook: Some(|| pairs(&E2M1_VALUES)),
    };

    /// Half of an unsigned E4M3 float as ggml reads it: 0x7f, the NaN, is zero, and otherwise the top bit is ignored.
    fn half_of_ue4m3_host(x: u8) -> f32 {
        let (exponent, mantissa) = ((x >> 3 & 0xf) as i32, (x & 7) as f32);
        match (x, exponent) {
            (0x7f, _) => 0.0,
            (_, 0) => mantissa / 1024.0,
            _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 8),
        }
    }

    #[cube]
    pub fn locate(view: &MatrixView, at: At, places: &mut Places) {
        places.push_wide(view.chunk_wide(0usize, at, 1usize, 0usize));
        places.push(view.chunk_half_word(1usize, at));
    }

    #[cube]
    pub fn decode(raw: &Raw, codebook: &[u32], at: At) -> Chunk {
        looked_up(indices(raw, at), codebook, E2M1_VALUES)
    }

    /// The chunk with the indices of its codes as they lie, in place of the codes.
    #[cube]
    pub fn indices(raw: &Raw, at: At) -> Chunk {
        let words = raw.wide(0usize);
        let scales = at.half_of(raw.word(0usize));
        Chunk::halves(words, words, half_of_ue4m3(scales & 0xff), half_of_ue4m3(scales >> 8))
    }
}
