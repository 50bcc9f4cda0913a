//! A format's device layout: GGUF's blocks, an array of structs of odd sizes, taken apart into components.
//!
//! A component holds one kind of field (codes, high bits, scales) of all blocks, `n` rows of whole words, so that
//! neighbouring lanes read neighbouring addresses. A layout only moves bits: it is a permutation of a block's bit
//! fields, written once as a list, and both directions on both sides (host and device) are derived from that list.

/// One component: the source bits of a block's fields, in the order in which the fields lie on the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Component {
    /// Bits a field: 1, 2, 4, 8 or 16. A field never crosses a multiple of its width in the block.
    pub width: u32,
    /// For each field of the device block, the bit of the GGUF block at which it starts.
    pub fields: Vec<u16>,
    /// Alignment of rows in bytes: 16 for codes that are read in 16-byte vectors, a chunk for plain floats, else a word.
    pub row_align: usize,
}

/// The row alignment of codes that are read in 16-byte vectors, in bytes.
const WIDE: usize = 16;
/// The row alignment of components that are read in words, in bytes.
const WORD: usize = 4;

impl Component {
    /// Codes of `width` bits in chunks of 32 that decode by a shift and a mask. `source(v)` is the bit of value `v` in the
    /// GGUF block.
    pub fn codes(width: u32, values: usize, source: impl Fn(usize) -> usize) -> Self {
        let fields = canonical(width, values).map(|v| source(v) as u16).collect();
        Self { width, fields, row_align: WIDE }
    }

    /// Fields of `width` bits that lie one after the other in the block, from byte `byte` on.
    pub fn raw(width: u32, byte: usize, fields: usize) -> Self {
        Self::gathered(width, (0..fields).map(|i| 8 * byte + width as usize * i))
    }

    /// Fields of `width` bits from the given bits of the block.
    pub fn gathered(width: u32, bits: impl IntoIterator<Item = usize>) -> Self {
        Self { width, fields: bits.into_iter().map(|bit| bit as u16).collect(), row_align: WORD }
    }

    /// The same component with rows padded for 16-byte loads.
    pub fn wide(self) -> Self {
        Self { row_align: WIDE, ..self }
    }

    /// The same component of single values with rows padded to whole chunks of 32.
    pub fn of_chunks(self) -> Self {
        let row_align = 4 * self.block_bits();
        Self { row_align, ..self }
    }

    /// Whether the component is one of codes that kernels read in 16-byte vectors.
    pub fn is_wide(&self) -> bool {
        self.row_align == WIDE
    }

    /// Bits of one block in this component.
    pub fn block_bits(&self) -> usize {
        self.width as usize * self.fields.len()
    }

    /// Words of a row of `blocks` blocks, padding included.
    pub fn row_words(&self, blocks: usize) -> usize {
        (self.block_bits() * blocks).div_ceil(8).next_multiple_of(self.row_align) / 4
    }
}

/// The value behind each field of a component of codes, in device order.
///
/// Values go in chunks of 32. A chunk of `width`-bit codes is `width` words; word `c % width`, shifted right by
/// `width * (c / width)` and masked to the low `width` bits of each byte, holds values `4c..4c + 4`, one a byte.
/// So one shift and one mask give four codes ready for an int8 dot product, whatever the width.
pub fn canonical(width: u32, values: usize) -> impl Iterator<Item = usize> {
    let width = width as usize;
    let per_word = 32 / width;
    (0..values).map(move |field| {
        let (chunk, in_chunk) = (field / 32, field % 32);
        let (word, bit) = (in_chunk / per_word, in_chunk % per_word * width);
        let code_word = word + width * (bit % 8 / width);
        32 * chunk + 4 * code_word + bit / 8
    })
}

/// All components of a format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of a GGUF block.
    pub block_bytes: usize,
    /// At most [`MAX_COMPONENTS`].
    pub components: Vec<Component>,
}

/// The most components that a format may have: a kernel has an offset and a stride as arguments for each.
pub const MAX_COMPONENTS: usize = 4;

/// Where one component of a matrix lies in its device buffer, in words of 4 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ComponentOffset {
    pub offset: usize,
    /// From one row to the next.
    pub stride: usize,
}

/// Where the components of an `n` x `k` matrix lie in one device buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComponentOffsets {
    /// Rows of the matrix.
    pub rows: usize,
    /// Blocks of a row.
    pub blocks: usize,
    pub components: [ComponentOffset; MAX_COMPONENTS],
    /// Words of the buffer, a multiple of 4.
    pub words: usize,
}

impl Layout {
    /// The components of a format whose GGUF block has `block_bytes` bytes.
    pub fn new(block_bytes: usize, components: impl IntoIterator<Item = Component>) -> Self {
        Self { block_bytes, components: components.into_iter().collect() }
    }

    /// Places the components of `rows` rows of `blocks` blocks one after the other; `None` where that overflows.
    pub fn place(&self, rows: usize, blocks: usize) -> Option<ComponentOffsets> {
        let mut components = [ComponentOffset::default(); MAX_COMPONENTS];
        let mut words = 0usize;
        for (component, offset) in self.components.iter().zip(&mut components) {
            let bits = component.block_bits().checked_mul(blocks)?;
            bits.checked_add(8 * WIDE)?;
            *offset = ComponentOffset { offset: words, stride: component.row_words(blocks) };
            words = words.checked_add(offset.stride.checked_mul(rows)?)?.checked_next_multiple_of(4)?;
        }
        Some(ComponentOffsets { rows, blocks, components, words })
    }

    /// GGUF bytes of `rows` rows of `blocks` blocks, from the words of their device components: the inverse of the upload.
    pub fn to_gguf(&self, words: &[u32], rows: usize, blocks: usize, out: &mut [u8]) {
        let Some(offsets) = self.place(rows, blocks) else { return };
        debug_assert_eq!(words.len(), offsets.words);
        debug_assert_eq!(out.len(), rows * blocks * self.block_bytes);
        out.fill(0);
        for (component, at) in self.components.iter().zip(offsets.components) {
            let width = component.width as usize;
            let mask = u32::MAX >> (32 - width);
            for row in 0..rows {
                let source = &words[at.offset + row * at.stride..][..at.stride];
                let row_bytes = blocks * self.block_bytes;
                let target = &mut out[row * row_bytes..][..row_bytes];
                for (block, target) in target.chunks_exact_mut(self.block_bytes).enumerate() {
                    let first = block * component.fields.len();
                    for (i, &to) in component.fields.iter().enumerate() {
                        let from = (first + i) * width;
                        let field = (source[from / 32] >> (from % 32)) & mask;
                        let (byte, bit) = (to as usize / 8, to % 8);
                        target[byte] |= (field << bit) as u8;
                        if width == 16 {
                            target[byte + 1] |= (field >> 8) as u8;
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_order_names_every_value_once() {
        for width in [1, 2, 4, 8] {
            let mut seen: Vec<_> = canonical(width, 256).collect();
            seen.sort_unstable();
            assert!(seen.iter().copied().eq(0..256), "width {width}");
        }
    }

    #[test]
    fn a_shift_and_a_mask_give_four_consecutive_codes() {
        for width in [1u32, 2, 4, 8] {
            let order: Vec<_> = canonical(width, 32).collect();
            for c in 0..8u32 {
                let (word, shift) = (c % width, width * (c / width));
                for byte in 0..4 {
                    let bit = word * 32 + shift + 8 * byte;
                    assert_eq!(order[(bit / width) as usize], (4 * c + byte) as usize);
                }
            }
        }
    }
}
