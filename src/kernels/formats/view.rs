//! The planes of a matrix as a kernel sees them, and the unit of 32 values that every format decodes to.

use cubecl::prelude::*;

use super::loads;
use crate::kernels::vector::Words;

/// Values in a unit; rows are processed in whole units.
pub const UNIT: usize = 32;

/// A matrix on the device.
#[derive(CubeType, CubeLaunch)]
pub struct Planes {
    /// The matrix's buffer, read in vectors of 16 bytes.
    wide: Box<[Words]>,
    /// The same buffer, read in words.
    words: Box<[u32]>,
    /// The format's codebook; one word of zero where it has none.
    pub codebook: Box<[u32]>,
    offset_0: usize,
    offset_1: usize,
    offset_2: usize,
    offset_3: usize,
    stride_0: usize,
    stride_1: usize,
    stride_2: usize,
    stride_3: usize,
}

/// A unit of 32 values in a matrix, alone or as one of the neighbours that a lane decodes together: a span.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub struct At {
    pub row: usize,
    /// The span in its row.
    span: usize,
    /// Units in a span.
    #[cube(comptime)]
    units: usize,
    /// The unit's place in its span.
    #[cube(comptime)]
    place: usize,
}

#[cube]
impl At {
    /// Unit `unit` of a row.
    pub fn unit(row: usize, unit: usize) -> At {
        At { row, span: unit, units: comptime!(1usize), place: comptime!(0usize) }
    }

    /// Unit `place` of a span of `units`, which divide the row, and the units of a block or these them.
    pub fn in_span(row: usize, span: usize, #[comptime] units: usize, #[comptime] place: usize) -> At {
        At { row, span, units, place }
    }

    /// The unit in its row.
    pub fn index(&self) -> usize {
        self.span * self.units + self.place
    }

    /// The block that holds the unit, of `units` units a block.
    pub fn block(&self, #[comptime] units: usize) -> usize {
        self.span / comptime!(units / self.units)
    }

    /// The unit's place in its block.
    pub fn in_block(&self, #[comptime] units: usize) -> usize {
        self.span % comptime!(units / self.units) * self.units + self.place
    }
}

#[cube]
impl Planes {
    /// The first word of a row of a plane.
    fn row(&self, #[comptime] plane: usize, row: usize) -> usize {
        if comptime!(plane == 0) {
            self.offset_0 + row * self.stride_0
        } else if comptime!(plane == 1) {
            self.offset_1 + row * self.stride_1
        } else if comptime!(plane == 2) {
            self.offset_2 + row * self.stride_2
        } else {
            self.offset_3 + row * self.stride_3
        }
    }

    /// 16 bytes: the vector `index` of a row of a plane whose rows are 16-byte aligned.
    pub fn wide(&self, #[comptime] plane: usize, row: usize, index: usize) -> Words {
        loads::wide(self.wide[self.row(plane, row) / 4 + index])
    }

    /// The word `index` of a row of a plane.
    pub fn word(&self, #[comptime] plane: usize, row: usize, index: usize) -> u32 {
        loads::narrow(self.words[self.row(plane, row) + index])
    }

    /// The 16-bit field `index` of a row of a plane.
    pub fn half(&self, #[comptime] plane: usize, row: usize, index: usize) -> u32 {
        let word = self.word(plane, row, index / 2);
        (word >> (u32::cast_from(index % 2) * 16)) & 0xffff
    }

    /// The byte `index` of a row of a plane.
    pub fn byte(&self, #[comptime] plane: usize, row: usize, index: usize) -> u32 {
        let word = self.word(plane, row, index / 4);
        (word >> (u32::cast_from(index % 4) * 8)) & 0xff
    }

    /// Vector `i` of the unit's `vectors` in a plane of codes.
    pub fn unit_wide(
        &self,
        #[comptime] plane: usize,
        at: At,
        #[comptime] vectors: usize,
        #[comptime] i: usize,
    ) -> Words {
        self.wide(plane, at.row, at.index() * vectors + i)
    }

    /// Word `i` of the unit's `words` in a plane of codes: in 16-byte loads, which the units of a span share.
    pub fn unit_word(&self, #[comptime] plane: usize, at: At, #[comptime] words: usize, #[comptime] i: usize) -> u32 {
        let span_words = comptime!(at.units * words);
        if comptime!(span_words.is_multiple_of(4)) {
            let word = comptime!(at.place * words + i);
            let vector = at.span * comptime!(span_words / 4) + comptime!(word / 4);
            self.wide(plane, at.row, vector).extract(comptime!(word % 4))
        } else {
            self.word(plane, at.row, at.index() * words + i)
        }
    }

    /// The unit's field of `bits` among those of the `units` of its block, which begin with word `first` of a plane's row.
    pub fn unit_bits(
        &self,
        #[comptime] plane: usize,
        at: At,
        #[comptime] units: usize,
        #[comptime] bits: usize,
        first: usize,
    ) -> u32 {
        // What the units of a span share comes first, so that each has but a shift of its own.
        let span_bits = comptime!(at.units * bits);
        let span = at.span % comptime!(units / at.units);
        let (word, shift) = if comptime!(span_bits >= 32) {
            let first_bit = comptime!(at.place * bits);
            let word = first + span * comptime!(span_bits / 32) + comptime!(first_bit / 32);
            (self.word(plane, at.row, word), comptime!((first_bit % 32) as u32).runtime())
        } else {
            let spans = comptime!(32 / span_bits);
            let word = self.word(plane, at.row, first + span / spans);
            (
                word >> (u32::cast_from(span % spans) * comptime!(span_bits as u32)),
                comptime!((at.place * bits) as u32).runtime(),
            )
        };
        (word >> shift) & comptime!((1u32 << bits) - 1)
    }

    /// The unit's 16-bit field of a plane with one for each.
    pub fn unit_half(&self, #[comptime] plane: usize, at: At) -> u32 {
        if comptime!(at.units.is_multiple_of(2)) {
            let word = self.word(plane, at.row, at.span * comptime!(at.units / 2) + comptime!(at.place / 2));
            (word >> comptime!((at.place % 2 * 16) as u32)) & 0xffff
        } else {
            self.half(plane, at.row, at.index())
        }
    }
}

/// 32 consecutive values of a block format: `value = scale * code + min`, with a scale and a min for each half.
///
/// Codes are signed bytes, four a word in order; `low` holds the first 16, `high` the other 16. What a format lacks
/// (a min, a second scale) its [`Traits`](super::Traits) say, and kernels leave out at compile time.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub struct Unit {
    pub low: Words,
    pub high: Words,
    pub scale_low: f32,
    pub scale_high: f32,
    pub min_low: f32,
    pub min_high: f32,
}

#[cube]
impl Unit {
    /// A unit with one scale and no min.
    pub fn scaled(low: Words, high: Words, scale: f32) -> Unit {
        Unit { low, high, scale_low: scale, scale_high: scale, min_low: 0.0f32, min_high: 0.0f32 }
    }

    /// A unit with one scale and one min.
    pub fn with_min(low: Words, high: Words, scale: f32, min: f32) -> Unit {
        Unit { low, high, scale_low: scale, scale_high: scale, min_low: min, min_high: min }
    }

    /// A unit with a scale for each half and no min.
    pub fn halves(low: Words, high: Words, scale_low: f32, scale_high: f32) -> Unit {
        Unit { low, high, scale_low, scale_high, min_low: 0.0f32, min_high: 0.0f32 }
    }
}
