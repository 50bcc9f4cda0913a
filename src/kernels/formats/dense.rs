//! F32, F16, BF16: floats as they are, so that no operation needs to know that a tensor was not quantized.
//!
//! A "block" is one value. Rows are padded with zeros to whole units of 32, which their readers multiply or leave out.

use cubecl::prelude::*;

use super::bits;
use super::host::{f16_at, u16_at, u32_at};
use super::layout::{Layout, Plane};
use super::planes::Planes;
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

    /// Four values of a row.
    #[cube]
    pub fn vector(planes: &Planes, row: usize, index: usize, out: &mut Sequence<Vector<f32, Const<4>>>) {
        out.push(Vector::<f32, Const<4>>::reinterpret(planes.wide(0usize, row, index)));
    }
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

    /// Eight values of a row.
    #[cube]
    pub fn vector(planes: &Planes, row: usize, index: usize, out: &mut Sequence<Vector<f32, Const<4>>>) {
        let words = planes.wide(0usize, row, index);
        #[unroll]
        for half in 0..2usize {
            let mut four = Vector::<f32, Const<4>>::empty();
            #[unroll]
            for i in 0..2usize {
                let word = words.extract(comptime!(2 * half + i));
                four.insert(comptime!(2 * i), bits::f16(word & 0xffff));
                four.insert(comptime!(2 * i + 1), bits::f16(word >> 16));
            }
            out.push(four);
        }
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

    /// Eight values of a row.
    #[cube]
    pub fn vector(planes: &Planes, row: usize, index: usize, out: &mut Sequence<Vector<f32, Const<4>>>) {
        let words = planes.wide(0usize, row, index);
        #[unroll]
        for half in 0..2usize {
            let mut four = Vector::<f32, Const<4>>::empty();
            #[unroll]
            for i in 0..2usize {
                let word = words.extract(comptime!(2 * half + i));
                four.insert(comptime!(2 * i), bits::bf16(word & 0xffff));
                four.insert(comptime!(2 * i + 1), bits::bf16(word >> 16));
            }
            out.push(four);
        }
    }
}
