//! Every format, and its functions as kernels call them.

use cubecl::frontend::comptime;
use cubecl::ir::DeviceProperties;
use cubecl::prelude::*;

use super::bits::to_floats;
use super::format::{Codes, Format, Traits};
use super::raw::{Places, Raw};
use super::view::{At, CHUNK, Chunk, MatrixView};
use crate::gguf::GgmlType;
use crate::kernels::arch::permute::{places_bytes, plus_2_15, plus_128};
use crate::kernels::vector::Words;

/// The tables of formats: [`FORMATS`], and the functions of each for kernels.
///
/// A line is a type, its format's module, and in parentheses the codebook, if `decode` takes it. Calls have whole paths:
/// `#[cube]` gives the code that it writes for a call the hygiene of the call's first token, which must be the macro's own.
macro_rules! formats {
    (
        blocks($any_codebook:ident) { $($block:ident => $family:ident::$module:ident($($codebook:ident)?);)* }
        floats { $($float:ident => $float_file:ident::$float_mod:ident;)* }
    ) => {
        /// Every format.
        pub static FORMATS: &[Format] = &[
            $(crate::kernels::formats::$family::$module::FORMAT,)*
            $(crate::kernels::formats::$float_file::$float_mod::FORMAT,)*
        ];

        /// Where the words of the chunk at `at` are.
        #[cube]
        pub fn locate(view: &MatrixView, at: At, #[comptime] ty: GgmlType) -> Places {
            let mut places = Places::new();
            match ty {
                $(GgmlType::$block => crate::kernels::formats::$family::$module::locate(view, at, &mut places),)*
                $(GgmlType::$float => crate::kernels::formats::registry::locate_dense(view, at, &mut places, ty),)*
                _ => comptime!(panic!("{ty} holds no weights")),
            }
            places
        }

        /// Decodes the chunk at `at` of a block format from the words at the places that [`locate()`] gives. The codebook is
        /// the view's, or its copy in shared memory.
        #[cube]
        pub fn decode(raw: &Raw, $any_codebook: &[u32], at: At, #[comptime] ty: GgmlType) -> Chunk {
            match ty {
                $(GgmlType::$block => crate::kernels::formats::$family::$module::decode(raw, $($codebook,)? at),)*
                _ => comptime!(panic!("{ty} has no codes")),
            }
        }

        /// Values `4 * i..4 * i + 4` of a 16-byte vector of a dense format.
        #[cube]
        pub fn dense_four(words: Words, #[comptime] i: usize, #[comptime] ty: GgmlType) -> Vector<f32, Const<4>> {
            match ty {
                $(GgmlType::$float => crate::kernels::formats::$float_file::$float_mod::four(words, i),)*
                _ => comptime!(panic!("{ty} is not dense")),
            }
        }
    };
}

formats! {
    blocks(codebook) {
        Q4_0 => legacy::q4_0();
        Q4_1 => legacy::q4_1();
        Q5_0 => legacy::q5_0();
        Q5_1 => legacy::q5_1();
        Q8_0 => legacy::q8_0();
        Q8_1 => legacy::q8_1();
        Q2K => k_quants::q2_k();
        Q3K => k_quants::q3_k();
        Q4K => k_quants::q4_k();
        Q5K => k_quants::q5_k();
        Q6K => k_quants::q6_k();
        Q8K => k_quants::q8_k();
        IQ1S => iq1::iq1_s(codebook);
        IQ1M => iq1::iq1_m(codebook);
        IQ2XXS => iq2_iq3::iq2_xxs(codebook);
        IQ2XS => iq2_iq3::iq2_xs(codebook);
        IQ2S => iq2_iq3::iq2_s(codebook);
        IQ3XXS => iq2_iq3::iq3_xxs(codebook);
        IQ3S => iq2_iq3::iq3_s(codebook);
        IQ4NL => iq4::iq4_nl(codebook);
        IQ4XS => iq4::iq4_xs(codebook);
        TQ1_0 => low_bits::tq1_0();
        TQ2_0 => low_bits::tq2_0();
        MXFP4 => iq4::mxfp4(codebook);
        NVFP4 => iq4::nvfp4(codebook);
        Q1_0 => low_bits::q1_0();
        Q2_0 => low_bits::q2_0();
    }
    floats {
        F32 => dense::float32;
        F16 => dense::float16;
        BF16 => dense::bfloat16;
    }
}

/// The chunk of [`decode()`] with indices as they lie in place of codes, of a format that looks them up in a table of 16.
#[cube]
pub fn indices(raw: &Raw, at: At, #[comptime] ty: GgmlType) -> Chunk {
    match ty {
        GgmlType::IQ4NL => crate::kernels::formats::iq4::iq4_nl::indices(raw, at),
        GgmlType::IQ4XS => crate::kernels::formats::iq4::iq4_xs::indices(raw, at),
        GgmlType::MXFP4 => crate::kernels::formats::iq4::mxfp4::indices(raw, at),
        GgmlType::NVFP4 => crate::kernels::formats::iq4::nvfp4::indices(raw, at),
        _ => comptime!(panic!("{ty} looks nothing up in a table of 16")),
    }
}

/// Where the words of a chunk of a dense format are.
#[cube]
fn locate_dense(view: &MatrixView, at: At, places: &mut Places, #[comptime] ty: GgmlType) {
    let vectors = comptime!(vectors_per_chunk(ty));
    #[unroll]
    for i in 0..vectors {
        places.push_wide(view.wide(0usize, at.row, at.vector(vectors, i)));
    }
}

/// Decodes the 16-byte vector `index` of a row of a dense format, and appends its values to `out`, four a vector.
#[cube]
fn dense_vector(
    view: &MatrixView,
    row: usize,
    index: usize,
    out: &mut Sequence<Vector<f32, Const<4>>>,
    #[comptime] ty: GgmlType,
) {
    let words = view.vector_at(view.wide(0usize, row, index));
    #[unroll]
    for i in 0..comptime!(8 / vectors_per_chunk(ty)) {
        out.push(dense_four(words, i, ty));
    }
}

/// 16-byte vectors in a chunk of a dense format.
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
        let chunk = decode(&Raw::load(view, &locate(view, at, ty)), codebook, at, ty);
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

/// The same chunk with unsigned codes and a min for each half, for [`unsigned_four`]: `value = scale * float + min` of the float
/// that it makes of a code.
#[cube]
pub fn unsigned(chunk: Chunk, #[comptime] traits: Traits) -> Chunk {
    let properties = comptime::device_properties();
    let float = comptime!(CodeFloat::of(traits, &properties));
    let is_signed = comptime!(traits.codes == Codes::Signed);
    let bias = comptime!(float.bias(traits));
    // Codes of seven bits lose the eighth.
    let kept = comptime!(if is_signed && bias < 128 { 0x7f7f_7f7fu32 } else { !0 });
    let flipped = comptime!(if is_signed { 0x0101_0101 * bias } else { 0 });
    let offset = comptime!((bias + float.offset()) as f32);
    let (mut min_low, mut min_high) = (chunk.min_low, chunk.min_high);
    if comptime!(offset > 0.0) {
        min_low = if comptime!(traits.min) { min_low - chunk.scale_low * offset } else { chunk.scale_low * -offset };
        min_high =
            if comptime!(traits.min) { min_high - chunk.scale_high * offset } else { chunk.scale_high * -offset };
    }
    Chunk {
        low: (chunk.low & Words::new(kept.runtime())) ^ Words::new(flipped.runtime()),
        high: (chunk.high & Words::new(kept.runtime())) ^ Words::new(flipped.runtime()),
        scale_low: chunk.scale_low,
        scale_high: chunk.scale_high,
        min_low,
        min_high,
    }
}

/// How [`unsigned_four`] makes a float of an [`unsigned`] code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CodeFloat {
    /// By a conversion.
    Converted,
    /// In the fraction of 128, for codes below it.
    ///
    /// The min takes back the offset's product with the scale. Where it is else a bias's alone that is exact: of a float's 24 bits
    /// a scale has 18 at the most and 128 and a bias together 6, or, for a bias of 1, 11 and 8. A format's own min is rounded
    /// by 2^-17 of the scale at the most.
    From128,
    /// In the fraction of 2^15. 2^15 and a bias of 128 together have 9 bits: the min is exact where the scale is a half, and
    /// rounded by 2^-10 of the scale at the most where it has more than 15 bits.
    From2To15,
}

impl CodeFloat {
    fn of(traits: Traits, properties: &DeviceProperties) -> Self {
        match () {
            () if !places_bytes(properties) => Self::Converted,
            () if Self::From128.bias(traits) <= 64 => Self::From128,
            () => Self::From2To15,
        }
    }

    /// What codes have more than the numbers that they stand for: powers of two, whose product with a scale is exact.
    fn bias(self, traits: Traits) -> u32 {
        match traits.codes {
            Codes::Signed if traits.small && self == Self::From128 => 64,
            Codes::Signed => 128,
            Codes::Biased(bias) => bias,
        }
    }

    /// What floats have more than the codes.
    fn offset(self) -> u32 {
        match self {
            Self::Converted => 0,
            Self::From128 => 128,
            Self::From2To15 => 1 << 15,
        }
    }
}

/// Values `4 * i..4 * i + 4` of an [`unsigned`] chunk: a float of each code, and a fused multiply-add. They are ggml's but for
/// the rounding of a min.
#[cube]
pub fn unsigned_four(chunk: &Chunk, #[comptime] i: usize, #[comptime] traits: Traits) -> Vector<f32, Const<4>> {
    let properties = comptime::device_properties();
    let in_low = comptime!(i < 4);
    let word = if in_low { chunk.low.extract(i) } else { chunk.high.extract(comptime!(i % 4)) };
    let scale = if in_low { chunk.scale_low } else { chunk.scale_high };
    let min = if in_low { chunk.min_low } else { chunk.min_high };
    let mut values = Vector::<f32, Const<4>>::empty();
    #[unroll]
    for byte in 0..4u32 {
        let float = match comptime!(CodeFloat::of(traits, &properties)) {
            CodeFloat::Converted => f32::cast_from((word >> comptime!(8 * byte)) & 0xff),
            CodeFloat::From128 => plus_128(word, byte),
            CodeFloat::From2To15 => plus_2_15(word, byte),
        };
        values.insert(comptime!(byte as usize), fma(float, scale, min));
    }
    values
}

#[cube]
fn scaled(codes: u32, scale: f32, min: f32, #[comptime] traits: Traits) -> Vector<f32, Const<4>> {
    let values = to_floats(codes, comptime!(traits.codes)) * Vector::new(scale);
    // Adding a zero min would turn -0 into 0.
    if comptime!(traits.min) { values + Vector::new(min) } else { values }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bias_times_a_scale_is_exact() {
        for Format { ty, traits, .. } in FORMATS {
            for bias in
                [CodeFloat::Converted, CodeFloat::From128, CodeFloat::From2To15].map(|float| float.bias(*traits))
            {
                assert!(bias == 0 || bias.is_power_of_two(), "{ty}: {bias}");
            }
        }
    }
}
