//! Every format, and the decoders as kernels call them.

use cubecl::prelude::*;

use super::bits::to_floats;
use super::format::{Format, Traits};
use super::view::{At, CHUNK, Chunk, MatrixView};
use super::{dense, iq1, iq2_iq3, iq4, k_quants, legacy, low_bits};
use crate::gguf::GgmlType;

/// Every format.
pub static FORMATS: &[Format] = &[
    legacy::q4_0::FORMAT,
    legacy::q4_1::FORMAT,
    legacy::q5_0::FORMAT,
    legacy::q5_1::FORMAT,
    legacy::q8_0::FORMAT,
    legacy::q8_1::FORMAT,
    k_quants::q2_k::FORMAT,
    k_quants::q3_k::FORMAT,
    k_quants::q4_k::FORMAT,
    k_quants::q5_k::FORMAT,
    k_quants::q6_k::FORMAT,
    k_quants::q8_k::FORMAT,
    iq1::iq1_s::FORMAT,
    iq1::iq1_m::FORMAT,
    iq2_iq3::iq2_xxs::FORMAT,
    iq2_iq3::iq2_xs::FORMAT,
    iq2_iq3::iq2_s::FORMAT,
    iq2_iq3::iq3_xxs::FORMAT,
    iq2_iq3::iq3_s::FORMAT,
    iq4::iq4_nl::FORMAT,
    iq4::iq4_xs::FORMAT,
    low_bits::tq1_0::FORMAT,
    low_bits::tq2_0::FORMAT,
    iq4::mxfp4::FORMAT,
    iq4::nvfp4::FORMAT,
    low_bits::q1_0::FORMAT,
    low_bits::q2_0::FORMAT,
    dense::float32::FORMAT,
    dense::float16::FORMAT,
    dense::bfloat16::FORMAT,
];

/// Decodes the 32 values at `at` of a block format; `codebook` is the view's own, wherever it lies.
#[cube]
pub fn chunk(view: &MatrixView, codebook: &[u32], at: At, #[comptime] ty: GgmlType) -> Chunk {
    match ty {
        GgmlType::Q4_0 => legacy::q4_0::chunk(view, at),
        GgmlType::Q4_1 => legacy::q4_1::chunk(view, at),
        GgmlType::Q5_0 => legacy::q5_0::chunk(view, at),
        GgmlType::Q5_1 => legacy::q5_1::chunk(view, at),
        GgmlType::Q8_0 => legacy::q8_0::chunk(view, at),
        GgmlType::Q8_1 => legacy::q8_1::chunk(view, at),
        GgmlType::Q2K => k_quants::q2_k::chunk(view, at),
        GgmlType::Q3K => k_quants::q3_k::chunk(view, at),
        GgmlType::Q4K => k_quants::q4_k::chunk(view, at),
        GgmlType::Q5K => k_quants::q5_k::chunk(view, at),
        GgmlType::Q6K => k_quants::q6_k::chunk(view, at),
        GgmlType::Q8K => k_quants::q8_k::chunk(view, at),
        GgmlType::IQ1S => iq1::iq1_s::chunk(view, codebook, at),
        GgmlType::IQ1M => iq1::iq1_m::chunk(view, codebook, at),
        GgmlType::IQ2XXS => iq2_iq3::iq2_xxs::chunk(view, codebook, at),
        GgmlType::IQ2XS => iq2_iq3::iq2_xs::chunk(view, codebook, at),
        GgmlType::IQ2S => iq2_iq3::iq2_s::chunk(view, codebook, at),
        GgmlType::IQ3XXS => iq2_iq3::iq3_xxs::chunk(view, codebook, at),
        GgmlType::IQ3S => iq2_iq3::iq3_s::chunk(view, codebook, at),
        GgmlType::IQ4NL => iq4::iq4_nl::chunk(view, codebook, at),
        GgmlType::IQ4XS => iq4::iq4_xs::chunk(view, codebook, at),
        GgmlType::TQ1_0 => low_bits::tq1_0::chunk(view, at),
        GgmlType::TQ2_0 => low_bits::tq2_0::chunk(view, at),
        GgmlType::MXFP4 => iq4::mxfp4::chunk(view, codebook, at),
        GgmlType::NVFP4 => iq4::nvfp4::chunk(view, codebook, at),
        GgmlType::Q1_0 => low_bits::q1_0::chunk(view, at),
        GgmlType::Q2_0 => low_bits::q2_0::chunk(view, at),
        _ => comptime!(panic!("{ty} has no codes")),
    }
}

/// Decodes a vector of 16 bytes of a row of a dense format, four values a vector, to the end of `out`.
#[cube]
pub fn dense_vector(
    view: &MatrixView,
    row: usize,
    index: usize,
    out: &mut Sequence<Vector<f32, Const<4>>>,
    #[comptime] ty: GgmlType,
) {
    match ty {
        GgmlType::F32 => dense::float32::vector(view, row, index, out),
        GgmlType::F16 => dense::float16::vector(view, row, index, out),
        GgmlType::BF16 => dense::bfloat16::vector(view, row, index, out),
        _ => comptime!(panic!("{ty} is not dense")),
    }
}

/// Vectors of 16 bytes of a chunk of 32 values of a dense format.
pub fn vectors_per_chunk(ty: GgmlType) -> usize {
    CHUNK * ty.block_bytes() / 16
}

/// The format of `ty`; `None` for integers and f64, which are not weights.
pub fn format(ty: GgmlType) -> Option<&'static Format> {
    FORMATS.iter().find(|format| format.ty == ty)
}

/// The format's [`Traits`], for kernels.
pub fn traits(ty: GgmlType) -> Traits {
    format(ty).map_or(Traits::DENSE, |format| format.traits)
}

/// The 32 values at `at`, four a vector in order. The arithmetic is ggml's, so the values are ggml's, bit for bit.
#[cube]
pub fn values(
    view: &MatrixView,
    codebook: &[u32],
    at: At,
    #[comptime] ty: GgmlType,
) -> Sequence<Vector<f32, Const<4>>> {
    let traits = comptime!(traits(ty));
    let mut out = Sequence::<Vector<f32, Const<4>>>::new();
    if comptime!(traits.dense) {
        let first = at.index() * comptime!(vectors_per_chunk(ty));
        #[unroll]
        for vector in 0..comptime!(vectors_per_chunk(ty)) {
            dense_vector(view, at.row, first + vector, &mut out, ty);
        }
    } else {
        let chunk = chunk(view, codebook, at, ty);
        #[unroll]
        for i in 0..4usize {
            out.push(scaled(chunk.low.extract(i), chunk.scale_low, chunk.min_low, traits));
        }
        #[unroll]
        for i in 0..4usize {
            out.push(scaled(chunk.high.extract(i), chunk.scale_high, chunk.min_high, traits));
        }
    }
    out
}

#[cube]
fn scaled(codes: u32, scale: f32, min: f32, #[comptime] traits: Traits) -> Vector<f32, Const<4>> {
    let values = to_floats(codes, comptime!(traits.codes)) * Vector::new(scale);
    // Adding a zero min would turn -0 into 0.
    if comptime!(traits.min) { values + Vector::new(min) } else { values }
}
