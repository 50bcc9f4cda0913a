//! Where the codes and the scales of a block go.

use cubecl::prelude::*;

use crate::gguf::GgmlType;
use crate::kernels::formats::{ComponentOffsets, Components, ComponentsLaunch, format, traits};
use crate::kernels::vector::Words;

/// Where the components of the quantized matrix are.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub struct Destination {
    components: Components,
}

impl DestinationLaunch {
    /// The argument of a kernel.
    pub fn of(offsets: &ComponentOffsets) -> Self {
        Self::new(ComponentsLaunch::of(offsets))
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
    /// Stores word `index` of a row of a component.
    pub fn store(&self, out: &mut [Words], #[comptime] component: usize, row: usize, index: usize, word: u32) {
        let words = out.with_vector_size_mut::<Const<1>>();
        words[self.components.row(component, row) + index] = Vector::new(word);
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
            let first = self.components.row(component, row) / 4 + chunk * comptime!(count / 4);
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
        for index in (blocks * bits).div_ceil(32)..self.components.stride(component) {
            self.store(out, component, row, index, 0u32);
        }
    }
}

/// Value `index` of the table that a format's codes are looked up in.
pub fn table_value(ty: GgmlType, index: usize) -> f32 {
    traits(ty).lookup16.map_or(0.0, |table| f32::from(table[index]))
}

/// Half-way from a value of the table to the next: exact, as values are integers.
pub fn middle(ty: GgmlType, index: usize) -> f32 {
    (table_value(ty, index) + table_value(ty, index + 1)) / 2.0
}

/// Bits of a block in a component.
fn block_bits(ty: GgmlType, component: usize) -> usize {
    format(ty).map_or(0, |format| (format.layout)().components[component].block_bits())
}

/// Words of zeros: for a chunk of `width`-bit codes as many as these have bits.
#[cube]
pub fn zeros(#[comptime] count: usize) -> Array<u32> {
    let mut words = Array::<u32>::new(count);
    #[unroll]
    for i in 0..count {
        words[i] = 0u32;
    }
    words
}

/// Adds codes `4 * four..4 * four + 4` of a chunk, a byte each and below `2^width`, to its words, in the order of a
/// layout's component of codes.
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
