//! F32, F16, BF16: plain floats as formats, so that the operations take tensors that were not quantized.
//!
//! A "block" is one value. Rows are padded with zeros to whole chunks of 32; kernels multiply or leave out the padding.

use cubecl::prelude::*;

use super::bits;
use super::format::{Field, Format, Traits};
use super::host::{f16_at, u16_at, u32_at};
use super::layout::{Component, Layout};
use crate::gguf::GgmlType;
use crate::kernels::vector::Words;

pub mod float32 {
    use super::*;

    pub const FORMAT: Format = Format {
        ty: GgmlType::F32,
        traits: Traits::DENSE,
        layout: || Layout { block_bytes: 4, components: vec![Component::raw(16, 0, 2).of_chunks()] },
        dequantize: |block, out| out[0] = f32::from_bits(u32_at(block, 0)),
        multibyte: Some(&[Field::u32s(0, 1)]),
        codebook: None,
    };

    /// The four values of a vector.
    #[cube]
    pub fn four(words: Words, #[comptime] i: usize) -> Vector<f32, Const<4>> {
        comptime!(assert!(i == 0, "a vector holds four values of 32 bits"));
        Vector::<f32, Const<4>>::reinterpret(words)
    }
}

pub mod float16 {
    use super::*;

    pub const FORMAT: Format = Format {
        ty: GgmlType::F16,
        traits: Traits::DENSE,
        layout: || Layout { block_bytes: 2, components: vec![Component::raw(16, 0, 1).of_chunks()] },
        dequantize: |block, out| out[0] = f16_at(block, 0),
        multibyte: Some(&[Field::u16s(0, 1)]),
        codebook: None,
    };

    /// The first or the last four values of a vector.
    #[cube]
    pub fn four(words: Words, #[comptime] i: usize) -> Vector<f32, Const<4>> {
        four_halves(words, i, false)
    }
}

pub mod bfloat16 {
    use super::*;

    pub const FORMAT: Format = Format {
        ty: GgmlType::BF16,
        traits: Traits::DENSE,
        layout: || Layout { block_bytes: 2, components: vec![Component::raw(16, 0, 1).of_chunks()] },
        dequantize: |block, out| out[0] = half::bf16::from_bits(u16_at(block, 0)).to_f32(),
        multibyte: Some(&[Field::u16s(0, 1)]),
        codebook: None,
    };

    /// The first or the last four values of a vector.
    #[cube]
    pub fn four(words: Words, #[comptime] i: usize) -> Vector<f32, Const<4>> {
        four_halves(words, i, true)
    }
}

/// Half `half` of a vector's eight 16-bit floats: bf16, or else f16.
#[cube]
fn four_halves(words: Words, #[comptime] half: usize, #[comptime] is_bf16: bool) -> Vector<f32, Const<4>> {
    let mut four = Vector::<f32, Const<4>>::empty();
    #[unroll]
    for i in 0..4usize {
        let word = words.extract(comptime!(2 * half + i / 2));
        let bits = if comptime!(i % 2 == 0) { word & 0xffff } else { word >> 16 };
        four.insert(i, if comptime!(is_bf16) { bits::bf16(bits) } else { bits::f16(bits) });
    }
    four
}
