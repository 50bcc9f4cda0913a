//! Formats whose codes are points of a grid, in super-blocks of 256 values: a unit takes a chunk of 32 of them, as in
//! [`super_blocks`](super::super_blocks).
//!
//! It searches the points of the chunk's sub-blocks and stores them: what becomes of the scales does not change them. It shares the
//! scales, and of what is stored beside them its part: the signs, or the upper bits of indices.

use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::Run;
use super::codes::Destination;
use super::grid_fields::{Fields, GridShares, store_scales};
use super::importance::Importance;
use super::iq1::{search_shifted, store_shifted_block};
use super::iq2_iq3::{Rounds, search_magnitudes};
use super::neighbours::Groups;
use super::rounding::Four;
use super::super_blocks::ChunkAt;
use crate::gguf::GgmlType;
use crate::kernels::vector::Words;

/// How super-blocks are quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GridRule {
    pub ty: GgmlType,
    /// Units of a cube.
    pub units: usize,
    /// Chunks that a unit takes: one, or a pair of super-blocks.
    pub chunks: usize,
    /// Whether columns have importances.
    pub weighted: bool,
}

impl GridRule {
    /// Whether a format is quantized so.
    pub fn has(ty: GgmlType) -> bool {
        use GgmlType::{IQ1M, IQ1S, IQ2S, IQ2XS, IQ2XXS, IQ3S, IQ3XXS};
        matches!(ty, IQ1S | IQ1M | IQ2XXS | IQ2XS | IQ2S | IQ3XXS | IQ3S)
    }

    /// Chunks of a cube.
    pub fn cube_chunks(self) -> usize {
        self.units * self.chunks
    }

    /// Whether numbers are -1, 0 and 1, all shifted, and not magnitudes.
    pub(super) fn is_shifted(self) -> bool {
        matches!(self.ty, GgmlType::IQ1S | GgmlType::IQ1M)
    }

    /// How codes are numbers.
    pub(super) fn groups(self) -> Groups {
        let of_four = matches!(self.ty, GgmlType::IQ3XXS | GgmlType::IQ3S);
        let (len, most) = if of_four { (4, 7) } else { (8, 2) };
        Groups { len, most, doubled: !self.is_shifted() }
    }

    /// Sub-blocks of a chunk.
    pub(super) fn subs(self) -> usize {
        if matches!(self.ty, GgmlType::IQ2XS | GgmlType::IQ2S | GgmlType::IQ1M) { 2 } else { 1 }
    }

    /// The least magnitude that is more than zero.
    pub(super) fn least(self) -> f32 {
        match self.ty {
            GgmlType::IQ2XXS | GgmlType::IQ2XS => 1e-15,
            GgmlType::IQ2S | GgmlType::IQ3XXS => 1e-8,
            GgmlType::IQ1S => 1e-12,
            GgmlType::IQ1M => 1e-7,
            // ggml's is 0: what is smaller than this has a scale without an inverse, and 0 for a half.
            _ => 1e-35,
        }
    }

    /// The rounds of the search.
    pub(super) fn rounds(self) -> Rounds {
        let (side, hundredths) = match self.ty {
            GgmlType::IQ2XXS => (6, 10),
            GgmlType::IQ3XXS => (15, 20),
            GgmlType::IQ3S => (9, 20),
            _ => (9, 10),
        };
        Rounds { side, hundredths }
    }

    /// Whether the last round takes all groups again.
    pub(super) fn takes_all_again(self) -> bool {
        matches!(self.ty, GgmlType::IQ2XXS | GgmlType::IQ3S)
    }

    /// Whether seven signs of eight are stored.
    pub(super) fn has_even_signs(self) -> bool {
        matches!(self.ty, GgmlType::IQ2XXS | GgmlType::IQ2XS | GgmlType::IQ3XXS)
    }

    /// The bit of the sign of value `i` of a chunk among its signs, where it is stored.
    pub(super) fn sign_bit(self, i: usize) -> Option<u32> {
        let is_stored = !(self.has_even_signs() && i % 8 == 7);
        let bit = match self.ty {
            GgmlType::IQ2XXS => 7 * (i / 8) + i % 8,
            // The order of a component of codes.
            GgmlType::IQ3XXS | GgmlType::IQ3S => 8 * (i % 4) + i / 4,
            _ => i,
        };
        is_stored.then_some(bit as u32)
    }

    /// The bits of the signs of `len` values from value `first` of a chunk on.
    pub(super) fn signs_of(self, first: usize, len: usize) -> u32 {
        (first..first + len).filter_map(|i| self.sign_bit(i)).fold(0, |bits, bit| bits | 1 << bit)
    }

    /// What the mean of the squares is multiplied by, to measure squares by it.
    fn variances(self) -> f32 {
        if matches!(self.ty, GgmlType::IQ2XXS | GgmlType::IQ2XS) { 1.0 } else { 2.0 }
    }

    /// The greatest number of a scale.
    pub(super) fn most_scale(self) -> u32 {
        if self.is_shifted() { 7 } else { 15 }
    }

    /// By what ggml scales a super-block's scale in the end.
    pub(super) fn fudge(self) -> f32 {
        match self.ty {
            GgmlType::IQ2S => 0.9875,
            GgmlType::IQ3XXS => 1.0125,
            GgmlType::IQ3S => 1.033,
            GgmlType::IQ1S => 1.125,
            GgmlType::IQ1M => 1.1125,
            _ => 1.0,
        }
    }

    /// Words that a chunk shares beside its scales.
    pub(super) fn shared_words(self) -> usize {
        if self.ty == GgmlType::IQ1M { 4 } else { 1 }
    }

    /// Floats that a unit sorts its values in.
    fn scratch(self) -> usize {
        match self.ty {
            GgmlType::IQ1S => 3 * 33,
            GgmlType::IQ1M => 5 * 17,
            _ => 0,
        }
    }
}

#[cube(launch)]
pub fn quantize_by_grid<X: Float>(
    x: &[Vector<X, Const<4>>],
    importance: &[Four],
    table: &[u32],
    out: &mut [Words],
    faults: &mut [u32],
    run: Run,
    destination: Destination,
    #[comptime] rule: GridRule,
    #[define(X)] _dtype: ElemType,
) {
    let subs = comptime!(rule.subs());
    let mut scales = Shared::<[f32]>::new_slice(comptime!(rule.cube_chunks() * subs));
    let mut words = Shared::<[u32]>::new_slice(comptime!(rule.cube_chunks() * rule.shared_words()));
    let mut scratch = Shared::<[f32]>::new_slice(comptime!((rule.units * rule.scratch()).max(1)));
    let first = run.grid.cube() * comptime!(rule.cube_chunks());
    let own = UNIT_POS as usize * rule.chunks;
    for i in own..own + rule.chunks {
        let at = ChunkAt::new(run, destination, first + i);
        if at.exists {
            if at.largest::<X>(x) >= 0x7f80_0000 {
                faults[0] = 1u32;
            }
            let variance = variance_at::<X>(x, at, rule);
            let mut fields = Fields::new(rule);
            #[unroll]
            for sub in 0..subs {
                let in_chunk = comptime!(sub * 8 / subs);
                let from = at.first + at.chunk * 8 + in_chunk;
                let of_sub = Importance::new(importance, at.columns(run) + in_chunk, variance);
                let found = if comptime!(rule.is_shifted()) {
                    search_shifted::<X>(x, from, &of_sub, table, &mut scratch, rule)
                } else {
                    search_magnitudes::<X>(x, from, &of_sub, table, comptime!(32 / subs * sub), rule)
                };
                scales[i * subs + sub] = found.scale;
                fields.add(&found, sub, rule);
            }
            fields.store(out, at, rule);
            #[unroll]
            for word in 0..comptime!(rule.shared_words()) {
                words[i * comptime!(rule.shared_words()) + word] = fields.shared[word];
            }
        }
    }
    if comptime!(rule.chunks == 1) {
        sync_cube();
    }
    let shares = GridShares::new(&scales, &words);
    for i in own..own + rule.chunks {
        let at = ChunkAt::new(run, destination, first + i);
        if at.exists {
            if comptime!(rule.ty != GgmlType::IQ1M) {
                store_scales(out, at, &shares, i, rule);
            } else if at.chunk == 0 {
                let variance = variance_at::<X>(x, at, rule);
                let of_block = Importance::new(importance, at.columns(run), variance);
                store_shifted_block::<X>(x, out, at, &of_block, &shares, i, rule);
            }
        }
    }
}

/// What the squares of values are measured by.
#[cube]
fn variance_at<X: Float>(x: &[Vector<X, Const<4>>], at: ChunkAt, #[comptime] rule: GridRule) -> f32 {
    let mut variance = 0.0f32;
    if comptime!(rule.weighted || rule.ty == GgmlType::IQ2S) {
        variance = at.mean_square::<X>(x) * comptime!(rule.variances());
    }
    variance
}
