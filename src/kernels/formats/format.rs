//! What a family of formats says of each of its formats.

use std::borrow::Cow;

use cubecl::ir::DeviceProperties;

use super::layout::{Layout, Plane};
use super::view::UNIT;
use crate::gguf::{Endian, GgmlType};
use crate::kernels::arch::permute::permutes_bytes;

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
    pub(super) const ONE_SCALE: Self =
        Self { scales: 1, min: false, dense: false, of_sixteen: false, codes: Codes::Signed };
    pub(super) const TWO_SCALES: Self = Self { scales: 2, ..Self::ONE_SCALE };
    pub(super) const SCALE_AND_MIN: Self = Self { min: true, ..Self::ONE_SCALE };
    pub(super) const TWO_SCALES_AND_MINS: Self = Self { scales: 2, min: true, ..Self::ONE_SCALE };
    pub(super) const DENSE: Self = Self { dense: true, ..Self::ONE_SCALE };

    /// The same with unsigned codes, `bias` over their values.
    pub(super) const fn biased(self, bias: u32) -> Self {
        Self { codes: Codes::Biased(bias), ..self }
    }

    /// The same with codes that are indices of sixteen values.
    pub(super) const fn of_sixteen(self) -> Self {
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
    pub(super) const fn u16s(byte: usize, count: usize) -> Self {
        Self { byte, width: 2, count }
    }

    pub(super) const fn u32s(byte: usize, count: usize) -> Self {
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
