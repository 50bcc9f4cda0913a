//! The components of a matrix as a kernel sees them, and the chunk of 32 values that every format decodes to.

use cubecl::prelude::*;

use super::layout::ComponentOffsets;
use crate::kernels::arch::warpgroup::address;
use crate::kernels::vector::Words;

/// Values in a chunk; rows are processed in whole chunks.
pub const CHUNK: usize = 32;

/// Where the components of a matrix are in its buffer, in words.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub struct Components {
    offset_0: usize,
    offset_1: usize,
    offset_2: usize,
    offset_3: usize,
    stride_0: usize,
    stride_1: usize,
    stride_2: usize,
    stride_3: usize,
}

impl ComponentsLaunch {
    /// The argument of a kernel.
    pub fn of(offsets: &ComponentOffsets) -> Self {
        let [a, b, c, d] = offsets.components;
        Self::new(a.offset, b.offset, c.offset, d.offset, a.stride, b.stride, c.stride, d.stride)
    }
}

#[cube]
impl Components {
    /// Words of a component from one row to the next.
    pub fn stride(&self, #[comptime] component: usize) -> usize {
        if comptime!(component == 0) {
            self.stride_0
        } else if comptime!(component == 1) {
            self.stride_1
        } else if comptime!(component == 2) {
            self.stride_2
        } else {
            self.stride_3
        }
    }

    /// The first word of a row of a component.
    pub fn row(&self, #[comptime] component: usize, row: usize) -> usize {
        let offset = if comptime!(component == 0) {
            self.offset_0
        } else if comptime!(component == 1) {
            self.offset_1
        } else if comptime!(component == 2) {
            self.offset_2
        } else {
            self.offset_3
        };
        offset + row * self.stride(component)
    }
}

/// A matrix on the device.
#[derive(CubeType, CubeLaunch)]
pub struct MatrixView {
    /// The matrix's buffer, read in vectors of 16 bytes.
    wide: Box<[Words]>,
    /// The same buffer, read in words.
    words: Box<[u32]>,
    /// The format's codebook; one word of zero where it has none.
    pub codebook: Box<[u32]>,
    components: Components,
}

/// Where a word of a matrix is.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub struct WordPlace {
    /// The word, or the vector of 16 bytes that it is loaded with.
    index: usize,
    /// Its place in the vector.
    #[cube(comptime)]
    in_vector: Option<usize>,
}

#[cube]
impl WordPlace {
    /// Words before it.
    pub fn word(&self) -> usize {
        match comptime!(self.in_vector) {
            Some(word) => 4 * self.index + word,
            None => self.index,
        }
    }

    /// The place so many words on, by an address that a load makes of this one's.
    pub fn after(&self, #[comptime] words: usize) -> WordPlace {
        comptime!(assert!(self.in_vector.is_none(), "words of vectors have no next"));
        WordPlace { index: self.index + words, in_vector: comptime!(None) }
    }
}

/// A chunk of 32 values in a matrix, alone or as one of the neighbours that a lane decodes together: a span.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub struct At {
    pub row: usize,
    /// The span in its row.
    span: usize,
    /// Chunks in a span.
    #[cube(comptime)]
    chunks: usize,
    /// The chunk's place in its span.
    #[cube(comptime)]
    place: usize,
    /// Lanes side by side whose vectors of plain floats alternate: each has one of every so many.
    #[cube(comptime)]
    lanes: usize,
}

#[cube]
impl At {
    /// Chunk `chunk` of a row.
    pub fn chunk(row: usize, chunk: usize) -> At {
        At::alternating(row, chunk, comptime!(1usize))
    }

    /// Chunk `chunk` of a row, or, in a format of plain floats, as many vectors, which alternate with those of the `lanes` chunks
    /// around it.
    pub fn alternating(row: usize, chunk: usize, #[comptime] lanes: usize) -> At {
        At { row, span: chunk, chunks: comptime!(1usize), place: comptime!(0usize), lanes }
    }

    /// Chunk `place` of a span of `chunks` chunks. `chunks` divides the row, and divides or is a multiple of the chunks of a
    /// block.
    pub fn in_span(row: usize, span: usize, #[comptime] chunks: usize, #[comptime] place: usize) -> At {
        At { row, span, chunks, place, lanes: comptime!(1usize) }
    }

    /// The chunk in its row.
    pub fn index(&self) -> usize {
        self.span * self.chunks + self.place
    }

    /// Vector `i` of the chunk's `vectors` of plain floats, in its row.
    pub fn vector(&self, #[comptime] vectors: usize, #[comptime] i: usize) -> usize {
        let index = self.index();
        if comptime!(self.lanes == 1) {
            index * vectors + i
        } else {
            let lane = index % self.lanes;
            (index - lane) * vectors + comptime!(i * self.lanes) + lane
        }
    }

    /// The block that holds the chunk, in a format with `chunks` chunks a block.
    pub fn block(&self, #[comptime] chunks: usize) -> usize {
        self.span / comptime!(chunks / self.chunks)
    }

    /// The chunk's place in its block.
    pub fn in_block(&self, #[comptime] chunks: usize) -> usize {
        self.span % comptime!(chunks / self.chunks) * self.chunks + self.place
    }

    /// The chunk's field of `bits` bits, from the word of [`MatrixView::chunk_bits_word`]. A block has `chunks` such fields.
    pub fn bits_of(&self, word: u32, #[comptime] chunks: usize, #[comptime] bits: usize) -> u32 {
        // The chunks of a span share the first shift, so that each has only a constant one of its own.
        let span_bits = comptime!(self.chunks * bits);
        let shared = if comptime!(span_bits >= 32) {
            word
        } else {
            let spans = comptime!(32 / span_bits);
            let span = self.span % comptime!(chunks / self.chunks);
            word >> (u32::cast_from(span % spans) * comptime!(span_bits as u32))
        };
        (shared >> comptime!((self.place * bits % 32) as u32)) & comptime!((1u32 << bits) - 1)
    }

    /// The chunk's 16-bit field, from [`MatrixView::chunk_half_word`].
    pub fn half_of(&self, word: u32) -> u32 {
        if comptime!(self.chunks.is_multiple_of(2)) {
            (word >> comptime!((self.place % 2 * 16) as u32)) & 0xffff
        } else {
            half_of(word, self.index())
        }
    }
}

#[cube]
impl MatrixView {
    /// The address of its first word.
    pub fn address(&self) -> u64 {
        address(&self.wide, false)
    }

    /// The vector at a place.
    pub fn vector_at(&self, index: usize) -> Words {
        self.wide[index]
    }

    /// The word at a place.
    pub fn word_at(&self, place: &WordPlace) -> u32 {
        match comptime!(place.in_vector) {
            Some(word) => self.wide[place.index].extract(word),
            None => self.words[place.index],
        }
    }

    /// Where the 16-byte vector `index` of a row of a component is. The component's rows must be 16-byte aligned.
    pub fn wide(&self, #[comptime] component: usize, row: usize, index: usize) -> usize {
        self.components.row(component, row) / 4 + index
    }

    /// Where the word `index` of a row of a component is.
    pub fn word(&self, #[comptime] component: usize, row: usize, index: usize) -> WordPlace {
        WordPlace { index: self.components.row(component, row) + index, in_vector: comptime!(None) }
    }

    /// Where vector `i` of the chunk's `vectors` in a component of codes is.
    pub fn chunk_wide(
        &self,
        #[comptime] component: usize,
        at: At,
        #[comptime] vectors: usize,
        #[comptime] i: usize,
    ) -> usize {
        self.wide(component, at.row, at.index() * vectors + i)
    }

    /// Where word `i` of the chunk's `words` in a component of codes is. Where a span is whole 16-byte vectors, the chunks of the
    /// span share loads of those.
    pub fn chunk_word(
        &self,
        #[comptime] component: usize,
        at: At,
        #[comptime] words: usize,
        #[comptime] i: usize,
    ) -> WordPlace {
        let span_words = comptime!(at.chunks * words);
        if comptime!(span_words.is_multiple_of(4)) {
            let word = comptime!(at.place * words + i);
            let vector = at.span * comptime!(span_words / 4) + comptime!(word / 4);
            WordPlace { index: self.wide(component, at.row, vector), in_vector: comptime!(Some(word % 4)) }
        } else {
            self.word(component, at.row, at.index() * words + i)
        }
    }

    /// Where the word with the chunk's field of `bits` bits is. The fields of the `chunks` chunks of its block begin at word `first`
    /// of the component's row. [`At::bits_of`] takes the field out.
    pub fn chunk_bits_word(
        &self,
        #[comptime] component: usize,
        at: At,
        #[comptime] chunks: usize,
        #[comptime] bits: usize,
        first: usize,
    ) -> WordPlace {
        let span_bits = comptime!(at.chunks * bits);
        let span = at.span % comptime!(chunks / at.chunks);
        if comptime!(span_bits >= 32) {
            let first_bit = comptime!(at.place * bits);
            let word = first + span * comptime!(span_bits / 32) + comptime!(first_bit / 32);
            self.word(component, at.row, word)
        } else {
            let spans = comptime!(32 / span_bits);
            self.word(component, at.row, first + span / spans)
        }
    }

    /// Where the word with the chunk's field is, in a component with 16 bits a chunk. [`At::half_of`] takes the field out.
    pub fn chunk_half_word(&self, #[comptime] component: usize, at: At) -> WordPlace {
        if comptime!(at.chunks.is_multiple_of(2)) {
            self.word(component, at.row, at.span * comptime!(at.chunks / 2) + comptime!(at.place / 2))
        } else {
            self.word(component, at.row, at.index() / 2)
        }
    }
}

/// The 16-bit field `index` of a row, from word `index / 2` of it.
#[cube]
pub fn half_of(word: u32, index: usize) -> u32 {
    (word >> (u32::cast_from(index % 2) * 16)) & 0xffff
}

/// The byte `index` of a row, from word `index / 4` of it.
#[cube]
pub fn byte_of(word: u32, index: usize) -> u32 {
    (word >> (u32::cast_from(index % 4) * 8)) & 0xff
}

/// 32 consecutive values of a block format: `value = scale * code + min`, with a scale and a min for each half.
///
/// Codes are bytes, four a word in order, signed or biased; `low` holds the first 16, `high` the other 16. The format's
/// [`Traits`](super::Traits) give the bias, and whether the format has a min and a second scale; kernels leave out the rest
/// at compile time.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub struct Chunk {
    pub low: Words,
    pub high: Words,
    pub scale_low: f32,
    pub scale_high: f32,
    pub min_low: f32,
    pub min_high: f32,
}

#[cube]
impl Chunk {
    /// A chunk with one scale and no min.
    pub fn scaled(low: Words, high: Words, scale: f32) -> Chunk {
        Chunk { low, high, scale_low: scale, scale_high: scale, min_low: 0.0f32, min_high: 0.0f32 }
    }

    /// The same scales and mins with other codes.
    pub fn with_codes(self, low: Words, high: Words) -> Chunk {
        Chunk {
            low,
            high,
            scale_low: self.scale_low,
            scale_high: self.scale_high,
            min_low: self.min_low,
            min_high: self.min_high,
        }
    }

    /// A chunk with one scale and one min.
    pub fn with_min(low: Words, high: Words, scale: f32, min: f32) -> Chunk {
        Chunk { low, high, scale_low: scale, scale_high: scale, min_low: min, min_high: min }
    }

    /// A chunk with a scale for each half and no min.
    pub fn halves(low: Words, high: Words, scale_low: f32, scale_high: f32) -> Chunk {
        Chunk { low, high, scale_low, scale_high, min_low: 0.0f32, min_high: 0.0f32 }
    }
}
