//! The formats: what a GGUF block holds, how it lies on the device, and how it becomes numbers.
//!
//! A family of formats is one file. A format is a [`Format`] constant (the block, the device [`Layout`], the host's
//! decoder) and one `#[cube]` function that decodes 32 values: `unit` for block formats, `four` for plain floats. Two
//! tables below name every format, [`FORMATS`] and the decoders'; nothing outside this folder names any.

mod bits;
mod codebooks;
mod dense;
mod host;
mod iq1;
mod iq2_iq3;
mod iq4;
mod k_quants;
mod layout;
mod legacy;
mod loads;
mod low_bits;
mod planes;

use std::borrow::Cow;

use cubecl::ir::DeviceProperties;
use cubecl::prelude::*;

pub use bits::to_floats;
pub use layout::{Layout, MAX_PLANES, Placements, Plane};
pub use loads::Loads;
pub use planes::{At, Planes, PlanesLaunch, UNIT, Unit, Words};

use super::target::permutes_bytes;
use crate::gguf::{Endian, GgmlType};

/// What is known of a format before any data.
pub struct Format {
    pub ty: GgmlType,
    pub traits: Traits,
    /// The device layout.
    pub layout: fn() -> Layout,
    /// Decodes one little-endian block; `out` has the block's values. The arithmetic is ggml's, operation by operation.
    pub dequantize: fn(block: &[u8], out: &mut [f32]),
    /// The fields of a block that a big-endian file stores the other way round; `None` where ggml reads a field both as
    /// bytes and as a word, so that such a file has no agreed meaning.
    pub multibyte: Option<&'static [Field]>,
    /// The words of the table that codes index, if they do.
    pub codebook: Option<fn() -> Vec<u32>>,
}

/// What kernels know of a format at compile time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Traits {
    /// Scales (and mins) in a unit of 32 values: 1 or 2.
    pub scales: u32,
    /// Whether a min is added.
    pub min: bool,
    /// Whether values are floats without codes.
    pub dense: bool,
    /// Whether codes are indices of sixteen values.
    pub of_sixteen: bool,
    pub codes: Codes,
}

/// What the bytes that a unit decodes to stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codes {
    /// Signed numbers.
    Signed,
    /// Unsigned numbers, this much over what they stand for.
    Biased(u32),
}

impl Traits {
    const ONE_SCALE: Self = Self { scales: 1, min: false, dense: false, of_sixteen: false, codes: Codes::Signed };
    const TWO_SCALES: Self = Self { scales: 2, ..Self::ONE_SCALE };
    const SCALE_AND_MIN: Self = Self { min: true, ..Self::ONE_SCALE };
    const TWO_SCALES_AND_MINS: Self = Self { scales: 2, min: true, ..Self::ONE_SCALE };
    const DENSE: Self = Self { dense: true, ..Self::ONE_SCALE };

    /// The same with unsigned codes, `bias` over their values.
    const fn biased(self, bias: u32) -> Self {
        Self { codes: Codes::Biased(bias), ..self }
    }

    /// The same with codes that are indices of sixteen values.
    const fn of_sixteen(self) -> Self {
        Self { of_sixteen: true, ..self }
    }
}

/// Consecutive fields of 2 or 4 bytes in a block.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    byte: usize,
    width: usize,
    count: usize,
}

impl Field {
    const fn u16s(byte: usize, count: usize) -> Self {
        Self { byte, width: 2, count }
    }

    const fn u32s(byte: usize, count: usize) -> Self {
        Self { byte, width: 4, count }
    }
}

impl Format {
    /// Units of 32 values that a lane decodes together, so that it reads all their codes in vectors of 16 bytes.
    pub fn span(&self) -> usize {
        self.span_of(|_| true)
    }

    /// As [`span`](Self::span) for the codes of the widest plane alone: neighbouring lanes then read neighbouring vectors.
    pub fn narrow_span(&self) -> usize {
        let layout = (self.layout)();
        let widest = layout.planes.iter().filter(|plane| plane.is_wide()).map(Plane::block_bits).max();
        self.span_of(|plane| Some(plane.block_bits()) == widest)
    }

    /// The codebook that kernels read on a device; none where they permute bytes instead.
    pub fn codebook_on(&self, properties: &DeviceProperties) -> Option<fn() -> Vec<u32>> {
        self.codebook.filter(|_| !(self.traits.of_sixteen && permutes_bytes(properties)))
    }

    /// Words that what is read of a unit takes.
    pub fn unit_words(&self) -> usize {
        let units = (self.ty.block_size() / UNIT).max(1);
        let words = |plane: &Plane| plane.block_bits().div_ceil(units * 32);
        (self.layout)().planes.iter().map(words).sum()
    }

    fn span_of(&self, counts: impl Fn(&Plane) -> bool) -> usize {
        let units = (self.ty.block_size() / UNIT).max(1);
        let layout = (self.layout)();
        let whole = |span: usize| {
            let bits = |plane: &Plane| plane.block_bits() * span / units;
            layout.planes.iter().filter(|p| p.is_wide() && counts(p)).all(|plane| bits(plane).is_multiple_of(128))
        };
        [1, 2, 4].into_iter().find(|&span| whole(span)).unwrap_or(units)
    }

    /// Decodes whole little-endian blocks.
    ///
    /// `data` must hold the blocks of `out`'s values, no more and no less.
    pub fn dequantize_blocks(&self, data: &[u8], out: &mut [f32]) {
        let blocks = data.chunks_exact(self.ty.block_bytes());
        for (block, out) in blocks.zip(out.chunks_exact_mut(self.ty.block_size())) {
            (self.dequantize)(block, out);
        }
    }

    /// Blocks in the byte order that the decoders read; `None` where the format has no big-endian form.
    pub fn little_endian<'a>(&self, data: &'a [u8], endian: Endian) -> Option<Cow<'a, [u8]>> {
        if endian == Endian::Little {
            return Some(Cow::Borrowed(data));
        }
        let fields = self.multibyte?;
        let mut data = data.to_vec();
        for block in data.chunks_exact_mut(self.ty.block_bytes()) {
            for field in fields {
                let bytes = &mut block[field.byte..][..field.width * field.count];
                bytes.chunks_exact_mut(field.width).for_each(<[u8]>::reverse);
            }
        }
        Some(Cow::Owned(data))
    }
}

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

/// Decodes the 32 values at `at` of a block format; `codebook` is the planes' own, wherever it lies.
#[cube]
pub fn unit(planes: &Planes, codebook: &[u32], at: At, #[comptime] ty: GgmlType) -> Unit {
    match ty {
        GgmlType::Q4_0 => legacy::q4_0::unit(planes, at),
        GgmlType::Q4_1 => legacy::q4_1::unit(planes, at),
        GgmlType::Q5_0 => legacy::q5_0::unit(planes, at),
        GgmlType::Q5_1 => legacy::q5_1::unit(planes, at),
        GgmlType::Q8_0 => legacy::q8_0::unit(planes, at),
        GgmlType::Q8_1 => legacy::q8_1::unit(planes, at),
        GgmlType::Q2K => k_quants::q2_k::unit(planes, at),
        GgmlType::Q3K => k_quants::q3_k::unit(planes, at),
        GgmlType::Q4K => k_quants::q4_k::unit(planes, at),
        GgmlType::Q5K => k_quants::q5_k::unit(planes, at),
        GgmlType::Q6K => k_quants::q6_k::unit(planes, at),
        GgmlType::Q8K => k_quants::q8_k::unit(planes, at),
        GgmlType::IQ1S => iq1::iq1_s::unit(planes, codebook, at),
        GgmlType::IQ1M => iq1::iq1_m::unit(planes, codebook, at),
        GgmlType::IQ2XXS => iq2_iq3::iq2_xxs::unit(planes, codebook, at),
        GgmlType::IQ2XS => iq2_iq3::iq2_xs::unit(planes, codebook, at),
        GgmlType::IQ2S => iq2_iq3::iq2_s::unit(planes, codebook, at),
        GgmlType::IQ3XXS => iq2_iq3::iq3_xxs::unit(planes, codebook, at),
        GgmlType::IQ3S => iq2_iq3::iq3_s::unit(planes, codebook, at),
        GgmlType::IQ4NL => iq4::iq4_nl::unit(planes, codebook, at),
        GgmlType::IQ4XS => iq4::iq4_xs::unit(planes, codebook, at),
        GgmlType::TQ1_0 => low_bits::tq1_0::unit(planes, at),
        GgmlType::TQ2_0 => low_bits::tq2_0::unit(planes, at),
        GgmlType::MXFP4 => iq4::mxfp4::unit(planes, codebook, at),
        GgmlType::NVFP4 => iq4::nvfp4::unit(planes, codebook, at),
        GgmlType::Q1_0 => low_bits::q1_0::unit(planes, at),
        GgmlType::Q2_0 => low_bits::q2_0::unit(planes, at),
        _ => comptime!(panic!("{ty} has no codes")),
    }
}

/// Decodes a vector of 16 bytes of a row of a dense format, four values a vector, to the end of `out`.
#[cube]
pub fn dense_vector(
    planes: &Planes,
    row: usize,
    index: usize,
    out: &mut Sequence<Vector<f32, Const<4>>>,
    #[comptime] ty: GgmlType,
) {
    match ty {
        GgmlType::F32 => dense::float32::vector(planes, row, index, out),
        GgmlType::F16 => dense::float16::vector(planes, row, index, out),
        GgmlType::BF16 => dense::bfloat16::vector(planes, row, index, out),
        _ => comptime!(panic!("{ty} is not dense")),
    }
}

/// Vectors of 16 bytes of a unit of 32 values of a dense format.
pub fn vectors_per_unit(ty: GgmlType) -> usize {
    UNIT * ty.block_bytes() / 16
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
pub fn values(planes: &Planes, codebook: &[u32], at: At, #[comptime] ty: GgmlType) -> Sequence<Vector<f32, Const<4>>> {
    let traits = comptime!(traits(ty));
    let mut out = Sequence::<Vector<f32, Const<4>>>::new();
    if comptime!(traits.dense) {
        let first = at.index() * comptime!(vectors_per_unit(ty));
        #[unroll]
        for vector in 0..comptime!(vectors_per_unit(ty)) {
            dense_vector(planes, at.row, first + vector, &mut out, ty);
        }
    } else {
        let unit = unit(planes, codebook, at, ty);
        #[unroll]
        for i in 0..4usize {
            out.push(scaled(unit.low.extract(i), unit.scale_low, unit.min_low, traits));
        }
        #[unroll]
        for i in 0..4usize {
            out.push(scaled(unit.high.extract(i), unit.scale_high, unit.min_high, traits));
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
