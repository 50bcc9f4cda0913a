//! The description of a format, a constant in its family's file.

use std::borrow::Cow;

use super::layout::{Component, Layout};
use super::view::CHUNK;
use crate::gguf::{Endian, GgmlType};
use crate::kernels::arch::target::Target;

/// A GGUF tensor format.
pub struct Format {
    /// The type in a file.
    pub ty: GgmlType,
    /// Its properties that kernels are compiled for.
    pub traits: Traits,
    /// The device layout.
    pub layout: fn() -> Layout,
    /// Decodes one little-endian block into `out`, which is as long. The arithmetic is ggml's, operation by operation.
    pub dequantize: fn(block: &[u8], out: &mut [f32]),
    /// The fields of a block that a big-endian file stores the other way round; `None` where ggml reads a field both as
    /// bytes and as a word, so that such a file has no agreed meaning.
    pub multibyte: Option<&'static [Field]>,
    /// The words of the table that codes index; `None` where codes are numbers.
    pub codebook: Option<fn() -> Vec<u32>>,
}

/// The properties of a format that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Traits {
    /// Scales (and mins) in a chunk of 32 values: 1 or 2.
    pub scales: u32,
    /// Whether a min is added.
    pub min: bool,
    /// Whether values are floats without codes.
    pub dense: bool,
    /// The table of 16 values that codes are looked up in.
    pub lookup16: Option<&'static [i8; 16]>,
    /// Whether signed codes are between -64 and 63.
    pub small: bool,
    pub codes: Codes,
}

/// The encoding of the bytes that a chunk decodes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codes {
    /// Signed numbers.
    Signed,
    /// Unsigned numbers: the signed number plus this bias.
    Biased(u32),
}

impl Traits {
    pub(super) const ONE_SCALE: Self =
        Self { scales: 1, min: false, dense: false, lookup16: None, small: false, codes: Codes::Signed };
    pub(super) const TWO_SCALES: Self = Self { scales: 2, ..Self::ONE_SCALE };
    pub(super) const SCALE_AND_MIN: Self = Self { min: true, ..Self::ONE_SCALE };
    pub(super) const TWO_SCALES_AND_MINS: Self = Self { scales: 2, min: true, ..Self::ONE_SCALE };
    pub(super) const DENSE: Self = Self { dense: true, ..Self::ONE_SCALE };

    /// The same with unsigned codes, biased by `bias`.
    pub(super) const fn biased(self, bias: u32) -> Self {
        Self { codes: Codes::Biased(bias), ..self }
    }

    /// The same with signed codes between -64 and 63.
    pub(super) const fn small(self) -> Self {
        Self { small: true, ..self }
    }

    /// The same with codes that are looked up in a table.
    pub(super) const fn lookup16(self, table: &'static [i8; 16]) -> Self {
        Self { lookup16: Some(table), ..self }
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

/// The components of codes that a span covers in whole 16-byte vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vectors {
    /// All of them.
    All,
    /// The one with the most bits a value: neighbouring lanes then read neighbouring vectors of it.
    Widest,
}

impl Format {
    /// Chunks that a lane decodes together, so that it reads its codes in vectors of 16 bytes (llama.cpp calls it VDR).
    pub fn vector_span(&self, vectors: Vectors) -> usize {
        let chunks = (self.ty.block_size() / CHUNK).max(1);
        let layout = (self.layout)();
        let wide = layout.components.iter().filter(|component| component.is_wide());
        let widest = wide.clone().map(Component::block_bits).max();
        let counts = |component: &Component| vectors == Vectors::All || Some(component.block_bits()) == widest;
        let whole = |span: usize| {
            let bits = |component: &Component| component.block_bits() * span / chunks;
            wide.clone().filter(|component| counts(component)).all(|component| bits(component).is_multiple_of(128))
        };
        [1, 2, 4].into_iter().find(|&span| whole(span)).unwrap_or(chunks)
    }

    /// The codebook that kernels read on a device; `None` where they permute bytes instead.
    pub fn codebook_on(&self, target: &Target) -> Option<fn() -> Vec<u32>> {
        self.codebook.filter(|_| !(self.traits.lookup16.is_some() && target.permutes_bytes()))
    }

    /// Words of a chunk: its share of each component, rounded up.
    pub fn chunk_words(&self) -> usize {
        let chunks = (self.ty.block_size() / CHUNK).max(1);
        let words = |component: &Component| component.block_bits().div_ceil(chunks * 32);
        (self.layout)().components.iter().map(words).sum()
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
