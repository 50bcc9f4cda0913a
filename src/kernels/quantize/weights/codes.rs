//! Where the codes and the scales of a block go.

use cubecl::prelude::*;

use crate::gguf::GgmlType;
use crate::kernels::formats::{ComponentOffsets, format};
use crate::kernels::vector::Words;

/// Where the components of the quantized matrix are, in words.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub struct Destination {
    offset_0: usize,
    offset_1: usize,
    offset_2: usize,
    offset_3: usize,
    stride_0: usize,
    stride_1: usize,
    stride_2: usize,
    stride_3: usize,
}

impl DestinationLaunch {
    /// The argument of a kernel.
    pub fn of(offsets: &ComponentOffsets) -> Self {
        let [a, b, c, d] = offsets.components;
        Self::new(a.offset, b.offset, c.offset, d.offset, a.stride, b.stride, c.stride, d.stride)
    }
}

/// A block of the quantized matrix.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub struct Place {
    /// Where its components go.
    pub destination: Destination,
    pub row: usize,
    /// The block in its row.
    pub block: usize,
}

/// What a rule made of a block beside its codes.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub struct Made {
    /// The bits of the scale, and of the min above it.
    pub scale: u32,
    /// The bit pattern of the largest magnitude of a value.
    pub largest: u32,
}

#[cube]
impl Destination {
    fn stride(&self, #[comptime] component: usize) -> usize {
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
    fn row(&self, #[comptime] component: usize, row: usize) -> usize {
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

    /// Stores word `index` of a row of a component.
    pub fn store(&self, out: &mut [Words], #[comptime] component: usize, row: usize, index: usize, word: u32) {
        let words = out.with_vector_size_mut::<Const<1>>();
        words[self.row(component, row) + index] = Vector::new(word);
    }

    /// Stores a chunk's words of a component of codes.
    pub fn store_chunk(
        &self,
        out: &mut [Words],
        #[comptime] component: usize,
        row: usize,
        chunk: usize,
        words: &Array<u32>,
        #[comptime] count: usize,
    ) {
        if comptime!(count.is_multiple_of(4)) {
            let first = self.row(component, row) / 4 + chunk * comptime!(count / 4);
            #[unroll]
            for i in 0..comptime!(count / 4) {
                let mut vector = Words::empty();
                #[unroll]
                for j in 0..4usize {
                    vector.insert(j, words[comptime!(4 * i + j)]);
                }
                out[first + i] = vector;
            }
        } else {
            #[unroll]
            for i in 0..count {
                self.store(out, component, row, chunk * count + i, words[i]);
            }
        }
    }

    /// Stores zeros in the words that pad a row of a component after its `blocks` blocks.
    pub fn clear_after(
        &self,
        out: &mut [Words],
        #[comptime] component: usize,
        row: usize,
        blocks: usize,
        #[comptime] ty: GgmlType,
    ) {
        let bits = comptime!(block_bits(ty, component));
        for index in (blocks * bits).div_ceil(32)..self.stride(component) {
            self.store(out, component, row, index, 0u32);
        }
    }
}

/// Bits of a block in a component.
fn block_bits(ty: GgmlType, component: usize) -> usize {
    format(ty).map_or(0, |format| (format.layout)().components[component].block_bits())
}

/// The words of a chunk in a component of `width`-bit codes, as [`Component::codes`](crate::kernels::formats::Component) has them.
#[cube]
pub fn chunk_words(#[comptime] width: usize) -> Array<u32> {
    let mut words = Array::<u32>::new(width);
    #[unroll]
    for i in 0..width {
        words[i] = 0u32;
    }
    words
}

/// Adds codes `4 * four..4 * four + 4` of a chunk, a byte each and below `2^width`, to its words.
#[cube]
pub fn add_codes(words: &mut Array<u32>, #[comptime] four: usize, codes: u32, #[comptime] width: usize) {
    let shift = comptime!((width * (four / width)) as u32);
    words[comptime!(four % width)] |= codes << shift;
}

/// Four numbers below 256 as the bytes of a word.
#[cube]
pub fn bytes_of(numbers: Words) -> u32 {
    let (a, b) = (numbers.extract(0usize), numbers.extract(1usize));
    let (c, d) = (numbers.extract(2usize), numbers.extract(3usize));
    (a | (b << 8)) | ((c << 16) | (d << 24))
}
