//! F32, F16, BF16: floats as they are, so that no operation needs to know that a tensor was not quantized.
//!
//! A "block" is one value. Rows are padded with zeros to whole units of 32, which their readers multiply or leave out.

use cubecl::prelude::*;

use super::bits;
use super::host::{f16_at, u16_at, u32_at};
use super::layout::{Layout, Plane};
use super::planes::{At, Planes};
use super::{Field, Format, Traits};
use crate::gguf::GgmlType;

pub mod float32 {
    use super::*;

    pub const FORMAT: Format = Format {
        ty: GgmlType::F32,
        traits: Traits::DENSE,
        layout: || Layout { block_bytes: 4, planes: vec![Plane::raw(16, 0, 2).of_units()] },
        dequantize: |block, out| out[0] = f32::from_bits(u32_at(block, 0)),
        multibyte: Some(&[Field::u32s(0, 1)]),
        codebook: None,
    };

    /// Four consecutive values, the `group`-th of the unit.
    #[cube]
    pub fn four(planes: &Planes, at: At, #[comptime] group: usize) -> Vector<f32, Const<4>> {
        Vector::<f32, Const<4>>::reinterpret(planes.wide(0usize, at.row, 8 * at.index() + group))
    }
}

/// The two words that hold the `group`-th four 16-bit values of a unit.
#[cube]
fn two_words(planes: &Planes, at: At, #[comptime] group: usize) -> (u32, u32) {
    let words = planes.wide(0usize, at.row, 4 * at.index() + comptime!(group / 2));
    (words.extract(comptime!(group % 2 * 2)), words.extract(comptime!(group % 2 * 2 + 1)))
}

pub mod float16 {
    use super::*;

    pub const FORMAT: Format = Format {
        ty: GgmlType::F16,
        traits: Traits::DENSE,
        layout: || Layout { block_bytes: 2, planes: vec![Plane::raw(16, 0, 1).of_units()] },
        dequantize: |block, out| out[0] = f16_at(block, 0),
        multibyte: Some(&[Field::u16s(0, 1)]),
        codebook: None,
    };

    /// Four consecutive values, the `group`-th of the unit.
    #[cube]
    pub fn four(planes: &Planes, at: At, #[comptime] group: usize) -> Vector<f32, Const<4>> {
        let (first, second) = two_words(planes, at, group);
        let mut out = Vector::<f32, Const<4>>::empty();
        out.insert(0usize, bits::f16(first & 0xffff));
        out.insert(1usize, bits::f16(first >> 16));
        out.insert(2usize, bits::f16(second & 0xffff));
        out.insert(3usize, bits::f16(second >> 16));
        out
    }
}

pub mod bfloat16 {
    use super::*;

    pub const FORMAT: Format = Format {
        ty: GgmlType::BF16,
        traits: Traits::DENSE,
        layout: || Layout { block_bytes: 2, planes: vec![Plane::raw(16, 0, 1).of_units()] },
        dequantize: |block, out| out[0] = half::bf16::from_bits(u16_at(block, 0)).to_f32(),
        multibyte: Some(&[Field::u16s(0, 1)]),
        codebook: None,
    };

    /// Four consecutive values, the `group`-th of the unit.
    #[cube]
    pub fn four(planes: &Planes, at: At, #[comptime] group: usize) -> Vector<f32, Const<4>> {
        let (first, second) = two_words(planes, at, group);
        let mut out = Vector::<f32, Const<4>>::empty();
        out.insert(0usize, bits::bf16(first & 0xffff));
        out.insert(1usize, bits::bf16(first >> 16));
        out.insert(2usize, bits::bf16(second & 0xffff));
        out.insert(3usize, bits::bf16(second >> 16));
        out
    }
}
