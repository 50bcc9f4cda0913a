//! Formats of super-blocks of 256 values: a unit takes a chunk of 32 of them.
//!
//! It finds the scale of the chunk, or those of its two sub-blocks, shares them with the other units of the super-block, and
//! quantizes its values by what became of the scales, as all of these work out alike. Super-blocks go in pairs, as some have half
//! a word for a scale. Where units are threads of the host, one takes a pair.

use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::Run;
use super::codes::Destination;
use super::importance::{Importance, weights_of_columns};
use super::iq4::{quantize_iq4_chunk, search_scale, squares};
use super::k_quants::{quantize_chunk, search_sub_block};
use super::low_bits::quantize_ternary_chunk;
use super::q8_k::quantize_bytes;
use super::rounding::{Four, extreme, largest, load_all, sum_of_squares};
use super::search::Steps;
use crate::gguf::GgmlType;
use crate::kernels::vector::Words;

/// Chunks of a super-block.
pub(super) const CHUNKS: usize = 8;
/// Chunks of a pair of super-blocks.
pub const PAIR: usize = 2 * CHUNKS;

/// How super-blocks are quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SuperRule {
    pub ty: GgmlType,
    /// Units of a cube.
    pub units: usize,
    /// Whether columns have importances.
    pub weighted: bool,
    /// Chunks that a unit takes: one, or a pair of super-blocks.
    pub chunks: usize,
}

impl SuperRule {
    pub fn has(ty: GgmlType) -> bool {
        use GgmlType::{IQ4XS, Q2K, Q3K, Q4K, Q5K, Q6K, Q8K, TQ1_0, TQ2_0};
        matches!(ty, Q2K | Q3K | Q4K | Q5K | Q6K | Q8K | IQ4XS | TQ1_0 | TQ2_0)
    }

    /// Whether a super-block has one scale, which nobody searches.
    pub(super) fn is_ternary(self) -> bool {
        matches!(self.ty, GgmlType::TQ1_0 | GgmlType::TQ2_0)
    }

    /// Whether codes are bytes by the super-block's scale, which nobody searches either.
    fn is_bytes(self) -> bool {
        self.ty == GgmlType::Q8K
    }

    /// Whether the search leaves no codes for sub-blocks whose scale becomes 0.
    fn has_no_codes(self) -> bool {
        self.is_ternary() || self.is_bytes() || self.has_table()
    }

    /// Whether codes are searched in a table.
    fn has_table(self) -> bool {
        self.ty == GgmlType::IQ4XS
    }

    /// Sub-blocks of a chunk.
    pub(super) fn subs(self) -> usize {
        if matches!(self.ty, GgmlType::Q4K | GgmlType::Q5K) || self.has_no_codes() { 1 } else { 2 }
    }

    /// Whether sub-blocks have a min.
    pub(super) fn has_min(self) -> bool {
        matches!(self.ty, GgmlType::Q2K | GgmlType::Q4K | GgmlType::Q5K)
    }

    /// Bits of a code.
    pub(super) fn bits(self) -> u32 {
        match self.ty {
            GgmlType::Q2K => 2,
            GgmlType::Q3K => 3,
            GgmlType::Q4K => 4,
            GgmlType::Q5K => 5,
            _ => 6,
        }
    }

    /// The greatest number that a scale, or a min, becomes; where there are no mins, the one that the largest becomes the negative
    /// of.
    pub(super) fn most_scale(self) -> u32 {
        match self.ty {
            GgmlType::Q2K => 15,
            GgmlType::Q3K => 32,
            GgmlType::Q6K => 128,
            _ => 63,
        }
    }

    /// The search of scale and min.
    pub(super) fn steps(self) -> Steps {
        let len = 32 / self.subs();
        let most = (1 << self.bits()) - 1;
        let (first, up, last) = match self.ty {
            _ if self.weighted => (-90, 5, 36),
            GgmlType::Q4K => (-100, 10, 20),
            _ => (-50, 10, 15),
        };
        Steps { len, most, first, up, last, absolute: self.ty == GgmlType::Q2K && !self.weighted }
    }

    /// Chunks of a cube.
    fn cube_chunks(self) -> usize {
        self.units * self.chunks
    }
}

/// A chunk of the matrix.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub(super) struct ChunkAt {
    pub(super) destination: Destination,
    /// The first vector of its super-block among those of the launch.
    pub(super) first: usize,
    pub(super) row: usize,
    pub(super) block: usize,
    /// The chunk in its super-block.
    pub(super) chunk: usize,
    /// Whether there is such a chunk: the last pair of a row may have one super-block.
    pub(super) exists: bool,
    /// Whether the row has a super-block after this one.
    has_next: bool,
}

#[cube]
impl ChunkAt {
    /// The launch's chunk `index`, counted over pairs.
    pub(super) fn new(run: Run, destination: Destination, index: usize) -> ChunkAt {
        let (pair, in_pair) = (index / PAIR, index % PAIR);
        let (from_row, block) = (pair / run.units, pair % run.units * 2 + in_pair / CHUNKS);
        ChunkAt {
            destination,
            first: (from_row * run.blocks + block) * comptime!(8 * CHUNKS),
            row: run.first_row + from_row,
            block,
            chunk: index % CHUNKS,
            exists: index < run.grid.len && block < run.blocks,
            has_next: block + 1 < run.blocks,
        }
    }

    /// The first vector of the importances of the chunk's columns.
    pub(super) fn columns(&self, run: Run) -> usize {
        (self.row / run.rows_each * run.blocks + self.block) * comptime!(8 * CHUNKS) + self.chunk * 8
    }

    /// The bit pattern of the largest magnitude among an eighth of the super-block's values: the vectors in turn, as units side by
    /// side then load vectors side by side.
    pub(super) fn largest<X: Float>(&self, x: &[Vector<X, Const<4>>]) -> u32 {
        let mut greatest = 0u32;
        #[unroll]
        for turn in 0..8usize {
            greatest = max(greatest, largest::<X>(x, self.first + comptime!(turn * CHUNKS) + self.chunk));
        }
        greatest
    }

    /// The mean of the squares of the super-block's values.
    pub(super) fn mean_square<X: Float>(&self, x: &[Vector<X, Const<4>>]) -> f32 {
        sum_of_squares::<X>(x, self.first, comptime!(8 * CHUNKS).runtime()) * comptime!(1.0f32 / 256.0)
    }

    /// Whether the super-block is the first of a pair that has both.
    pub(super) fn has_both(&self) -> bool {
        self.block & 1 == 0 && self.has_next
    }

    /// Stores the half of the super-block's scale, as a bit pattern, where that is the first of a pair: two are a word. `next` is that
    /// of the second, 0 where the pair [lacks it](Self::has_both).
    pub(super) fn store_halves(&self, out: &mut [Words], #[comptime] component: usize, own: u32, next: u32) {
        if self.block & 1 == 0 {
            self.destination.store(out, component, self.row, self.block / 2, own | (next << 16));
        }
    }
}

/// What the units of a cube share: of each sub-block its scale and min, of each chunk the codes that were found. Of formats without
/// a search, the largest magnitude for the scale, or the value that has it.
#[derive(CubeType)]
pub(super) struct Shares<'a> {
    pub(super) scales: &'a [f32],
    pub(super) mins: &'a [f32],
    pub(super) codes: &'a [u32],
    /// The sum of the weights of each sub-block's errors.
    pub(super) weights: &'a [f32],
}

#[cube]
impl<'a> Shares<'a> {
    fn new(scales: &'a [f32], mins: &'a [f32], codes: &'a [u32], weights: &'a [f32]) -> Shares<'a> {
        Shares::<'a> { scales, mins, codes, weights }
    }
}

#[cube(launch)]
pub fn quantize_super_blocks<X: Float>(
    x: &[Vector<X, Const<4>>],
    importance: &[Four],
    out: &mut [Words],
    faults: &mut [u32],
    run: Run,
    destination: Destination,
    #[comptime] rule: SuperRule,
    #[define(X)] _dtype: ElemType,
) {
    let subs = comptime!(rule.subs());
    let mut scales = Shared::<[f32]>::new_slice(comptime!(rule.cube_chunks() * subs));
    let mut mins = Shared::<[f32]>::new_slice(comptime!(if rule.has_min() { rule.cube_chunks() * subs } else { 1 }));
    let words = comptime!(if rule.has_no_codes() { 1 } else { 8 * rule.cube_chunks() });
    let mut codes = Shared::<[u32]>::new_slice(words);
    let mut weights = Shared::<[f32]>::new_slice(comptime!(if rule.weighted { rule.cube_chunks() * subs } else { 1 }));
    let first = run.grid.cube() * comptime!(rule.cube_chunks());
    let own = UNIT_POS as usize * rule.chunks;
    for i in own..own + rule.chunks {
        let at = ChunkAt::new(run, destination, first + i);
        if at.exists {
            let greatest = at.largest::<X>(x);
            if greatest >= 0x7f80_0000 {
                faults[0] = 1u32;
            }
            let mut variance = 0.0f32;
            if comptime!(rule.weighted) {
                variance = at.mean_square::<X>(x) * comptime!(if rule.ty == GgmlType::Q2K { 1.0f32 } else { 2.0 });
            }
            let from = at.first + at.chunk * 8;
            let columns = at.columns(run);
            if comptime!(rule.is_ternary()) {
                scales[i] = f32::reinterpret(greatest);
            } else if comptime!(rule.is_bytes()) {
                scales[i] = extreme(&load_all::<X>(x, from, 8usize));
            } else if comptime!(rule.has_table()) {
                let values = load_all::<X>(x, from, 8usize);
                let weights = if comptime!(rule.weighted) {
                    weights_of_columns(&values, &Importance::new(importance, columns, variance))
                } else {
                    squares(&values)
                };
                scales[i] = search_scale(&values, &weights);
            } else {
                for sub in 0..subs {
                    let in_chunk = sub * comptime!(8 / subs);
                    let of_sub = Importance::new(importance, columns + in_chunk, variance);
                    let (found, weight) = search_sub_block::<X>(x, from + in_chunk, &of_sub, rule);
                    scales[i * subs + sub] = found.scale;
                    if comptime!(rule.weighted) {
                        weights[i * subs + sub] = weight;
                    }
                    if comptime!(rule.has_min()) {
                        mins[i * subs + sub] = found.min;
                    }
                    #[unroll]
                    for word in 0..comptime!(8 / subs) {
                        codes[i * 8 + sub * comptime!(8 / subs) + word] = found.codes[word];
                    }
                }
            }
        }
    }
    if comptime!(rule.chunks == 1) {
        sync_cube();
    }
    let shares = Shares::new(&scales, &mins, &codes, &weights);
    for i in own..own + rule.chunks {
        let at = ChunkAt::new(run, destination, first + i);
        if at.exists {
            if comptime!(rule.is_ternary()) {
                quantize_ternary_chunk::<X>(x, out, at, &shares, i, rule);
            } else if comptime!(rule.is_bytes()) {
                quantize_bytes::<X>(x, out, at, &shares, i);
            } else if comptime!(rule.has_table()) {
                quantize_iq4_chunk::<X>(x, out, at, &shares, i);
            } else {
                quantize_chunk::<X>(x, out, at, &shares, i, rule);
            }
        }
    }
}
