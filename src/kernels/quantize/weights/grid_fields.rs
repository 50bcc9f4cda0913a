//! Where the fields of formats with a grid go: indices of points, signs, numbers of scales.

use cubecl::prelude::*;

use super::chunks::{CHUNKS, ChunkAt};
use super::codes::zeros;
use super::grid_rule::GridRule;
use super::rounding::{floats_at, nearest, product};
use crate::gguf::GgmlType;
use crate::kernels::floats::f16_bits;
use crate::kernels::vector::Words;

/// What was found of a sub-block.
#[derive(CubeType)]
pub struct Found {
    pub scale: f32,
    /// The signs of magnitudes, where the format has them; of IQ1, a bit for each group that is shifted down.
    pub signs: u32,
    /// For each group a point: its codes above its index.
    pub points: Array<u32>,
}

/// What the units of a cube share.
#[derive(CubeType)]
pub struct GridShares<'a> {
    /// The scale of each sub-block.
    pub scales: &'a [f32],
    /// Of each chunk what its scale's store needs: the signs, the upper bits of indices, or the points.
    pub words: &'a [u32],
}

#[cube]
impl<'a> GridShares<'a> {
    pub fn new(scales: &'a [f32], words: &'a [u32]) -> GridShares<'a> {
        GridShares::<'a> { scales, words }
    }
}

/// The bit of a point's index that says whether IQ1_M shifts the group down: the one above those of the index, as in its block.
pub const DOWN: u32 = 11;

/// The fields of a chunk.
#[derive(CubeType)]
pub struct Fields {
    /// Indices, a byte or 16 bits each.
    indices: Array<u32>,
    signs: u32,
    /// What the units of a cube share of it.
    pub shared: Array<u32>,
}

#[cube]
impl Fields {
    pub fn new(#[comptime] rule: GridRule) -> Fields {
        Fields { indices: zeros(2usize), signs: 0u32.runtime(), shared: zeros(rule.shared_words()) }
    }

    /// Adds those of sub-block `sub`.
    pub fn add(&mut self, found: &Found, #[comptime] sub: usize, #[comptime] rule: GridRule) {
        let count = comptime!(32 / rule.subs() / rule.groups().len);
        self.signs |= found.signs;
        #[unroll]
        for group in 0..count {
            let place = comptime!(sub * count + group);
            let index = found.points[group] & 0xffff;
            if comptime!(rule.ty == GgmlType::IQ2XS) {
                let signs = (found.signs >> comptime!(8 * place as u32)) & 127;
                self.indices[comptime!(place / 2)] |= (index | (signs << 9)) << comptime!(16 * (place as u32 % 2));
            } else {
                self.indices[comptime!(place / 4)] |= (index & 0xff) << comptime!(8 * (place as u32 % 4));
            }
            match comptime!(rule.ty) {
                GgmlType::IQ2S => self.shared[0] |= (index >> 8) << comptime!(2 * place as u32),
                GgmlType::IQ3S => self.shared[0] |= (index >> 8) << comptime!(place as u32),
                GgmlType::IQ1S => self.shared[0] |= (index >> 8) << comptime!(3 * place as u32),
                GgmlType::IQ1M => {
                    let down = (found.signs >> comptime!(group as u32)) & 1;
                    self.shared[place] = found.points[group] | (down << comptime!(DOWN));
                }
                _ => {}
            }
        }
        match comptime!(rule.ty) {
            GgmlType::IQ2XXS | GgmlType::IQ3XXS => self.shared[0] = found.signs,
            // All groups of a chunk are shifted alike.
            GgmlType::IQ1S => self.shared[0] |= (found.signs & 1) << 15,
            _ => {}
        }
    }

    /// Stores what no scale bears on.
    pub fn store(&self, out: &mut [Words], at: ChunkAt, #[comptime] rule: GridRule) {
        let chunk = at.block * CHUNKS + at.chunk;
        match comptime!(rule.ty) {
            GgmlType::IQ2XXS => at.destination.store(out, 0usize, at.row, 2 * chunk, self.indices[0]),
            GgmlType::IQ2XS | GgmlType::IQ3XXS | GgmlType::IQ3S => {
                at.destination.store_chunk(out, 0usize, at.row, chunk, &self.indices, 2usize)
            }
            _ => at.destination.store(out, 0usize, at.row, chunk, self.indices[0]),
        }
        if comptime!(matches!(rule.ty, GgmlType::IQ2S | GgmlType::IQ3S)) {
            at.destination.store(out, 1usize, at.row, chunk, self.signs);
        }
    }
}

/// The scale of a super-block, and those of its sub-blocks as numbers that count it.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub struct BlockScale {
    pub scale: f32,
    inverse: f32,
    pub is_zero: bool,
}

#[cube]
impl BlockScale {
    /// From those of its sub-blocks, which begin at `first`.
    pub fn of(shares: &GridShares<'_>, first: usize, #[comptime] rule: GridRule) -> BlockScale {
        let count = comptime!(CHUNKS * rule.subs());
        let scales = floats_at(shares.scales, first, count);
        let mut greatest = 0.0f32;
        #[unroll]
        for i in 0..count {
            greatest = max(greatest, scales[i]);
        }
        let scale = greatest / comptime!((2 * rule.most_scale() + 1) as f32).runtime();
        BlockScale { scale, inverse: 1.0f32 / scale, is_zero: greatest == 0.0f32 }
    }

    /// The number of a sub-block's scale.
    pub fn number(&self, scale: f32, #[comptime] rule: GridRule) -> u32 {
        let number = nearest(0.5f32 * (product(self.inverse, scale) - 1.0f32));
        let number = u32::cast_from(clamp(number, 0i32, comptime!(rule.most_scale() as i32)));
        select(self.is_zero, 0u32, number)
    }

    /// The half of a scale that is stored, as a bit pattern.
    pub fn bits(&self, scale: f32, #[comptime] rule: GridRule) -> u32 {
        select(self.is_zero, 0u32, f16_bits(product(scale, comptime!(rule.fudge()).runtime())))
    }
}

/// Stores what depends on the scales: chunk `index` of the cube its own part, the first of a super-block the rest.
#[cube]
pub fn store_scales(out: &mut [Words], at: ChunkAt, shares: &GridShares<'_>, index: usize, #[comptime] rule: GridRule) {
    let subs = comptime!(rule.subs());
    let first = index / CHUNKS * CHUNKS;
    let block = BlockScale::of(shares, first * subs, rule);
    let chunk = at.block * CHUNKS + at.chunk;
    let number = block.number(shares.scales[index * subs], rule);
    if comptime!(rule.ty == GgmlType::IQ2XXS) {
        at.destination.store(out, 0usize, at.row, 2 * chunk + 1, shares.words[index] | (number << 28));
    } else if comptime!(rule.ty == GgmlType::IQ3XXS) {
        let mut signs = shares.words[index];
        #[unroll]
        for bit in 0..4u32 {
            // A bit is where the eighth sign of its group would be.
            signs |= ((number >> bit) & 1) << comptime!(25 + 2 * bit);
        }
        at.destination.store(out, 1usize, at.row, chunk, signs);
    }
    if at.chunk == 0 {
        store_numbers(out, at, shares, first, block, rule);
        let mut next = 0u32;
        if at.has_both() {
            let after = BlockScale::of(shares, (first + CHUNKS) * subs, rule);
            next = after.bits(after.scale, rule);
        }
        let component = comptime!(match rule.ty {
            GgmlType::IQ2XXS => 1usize,
            GgmlType::IQ2S | GgmlType::IQ3S => 3,
            _ => 2,
        });
        at.store_halves(out, component, block.bits(block.scale, rule), next);
    }
}

/// Stores the numbers of the scales of a super-block whose chunks begin at `first`, and the upper bits of indices beside them.
#[cube]
fn store_numbers(
    out: &mut [Words],
    at: ChunkAt,
    shares: &GridShares<'_>,
    first: usize,
    block: BlockScale,
    #[comptime] rule: GridRule,
) {
    let (component, count) = comptime!(match rule.ty {
        GgmlType::IQ2XS => (1usize, 2usize),
        GgmlType::IQ2S => (2, 4),
        GgmlType::IQ3S => (2, 3),
        GgmlType::IQ1S => (1, 4),
        _ => (0, 0),
    });
    let mut words = zeros(comptime!(count.max(1)));
    #[unroll]
    for chunk in 0..CHUNKS {
        let numbers = numbers_at(shares, first + chunk, block, rule);
        let high = shares.words[first + chunk];
        match comptime!(rule.ty) {
            GgmlType::IQ2XS => words[comptime!(chunk / 4)] |= numbers << comptime!(8 * (chunk as u32 % 4)),
            GgmlType::IQ2S => {
                words[comptime!(chunk / 2)] |= (high | (numbers << 8)) << comptime!(16 * (chunk as u32 % 2))
            }
            GgmlType::IQ3S => {
                words[comptime!(chunk / 4)] |= high << comptime!(8 * (chunk as u32 % 4));
                words[2] |= numbers << comptime!(4 * chunk as u32);
            }
            GgmlType::IQ1S => {
                // Nothing is shifted where there is no scale.
                let high = select(block.is_zero, high & 0x7fff, high);
                words[comptime!(chunk / 2)] |= (high | (numbers << 12)) << comptime!(16 * (chunk as u32 % 2))
            }
            _ => {}
        }
    }
    #[unroll]
    for word in 0..count {
        at.destination.store(out, component, at.row, at.block * count + word, words[word]);
    }
}

/// The numbers of a chunk's scales, four bits each.
#[cube]
fn numbers_at(shares: &GridShares<'_>, chunk: usize, block: BlockScale, #[comptime] rule: GridRule) -> u32 {
    let mut numbers = 0u32;
    #[unroll]
    for sub in 0..comptime!(rule.subs()) {
        let number = block.number(shares.scales[chunk * comptime!(rule.subs()) + sub], rule);
        numbers |= number << comptime!(4 * sub as u32);
    }
    numbers
}
