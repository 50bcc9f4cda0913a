//! What decides about the super-blocks of formats whose codes are points of a grid.

use cubecl::prelude::*;

use super::chunks::ChunkAt;
use super::importance::{Importance, weights_of_columns};
use super::neighbours::Groups;
use super::rounding::{Four, squares};
use crate::gguf::GgmlType;
use crate::kernels::formats::Grid;

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
        Grid::of(ty).is_some()
    }

    /// Chunks of a cube.
    pub fn cube_chunks(self) -> usize {
        self.units * self.chunks
    }

    /// Whether numbers are -1, 0 and 1, all shifted, and not magnitudes.
    pub fn is_shifted(self) -> bool {
        matches!(self.ty, GgmlType::IQ1S | GgmlType::IQ1M)
    }

    /// How codes are numbers.
    pub fn groups(self) -> Groups {
        let of_four = matches!(self.ty, GgmlType::IQ3XXS | GgmlType::IQ3S);
        let (len, most) = if of_four { (4, 7) } else { (8, 2) };
        Groups { len, most, doubled: !self.is_shifted() }
    }

    /// Sub-blocks of a chunk.
    pub fn subs(self) -> usize {
        if matches!(self.ty, GgmlType::IQ2XS | GgmlType::IQ2S | GgmlType::IQ1M) { 2 } else { 1 }
    }

    /// The least magnitude that is more than zero.
    pub fn least(self) -> f32 {
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
    pub fn rounds(self) -> Rounds {
        let (side, hundredths) = match self.ty {
            GgmlType::IQ2XXS => (6, 10),
            GgmlType::IQ3XXS => (15, 20),
            GgmlType::IQ3S => (9, 20),
            _ => (9, 10),
        };
        Rounds { side, hundredths }
    }

    /// Whether the last round takes all groups again.
    pub fn takes_all_again(self) -> bool {
        matches!(self.ty, GgmlType::IQ2XXS | GgmlType::IQ3S)
    }

    /// Whether seven signs of eight are stored.
    pub fn has_even_signs(self) -> bool {
        matches!(self.ty, GgmlType::IQ2XXS | GgmlType::IQ2XS | GgmlType::IQ3XXS)
    }

    /// The bit of the sign of value `i` of a chunk among its signs, where it is stored.
    pub fn sign_bit(self, i: usize) -> Option<u32> {
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
    pub fn signs_of(self, first: usize, len: usize) -> u32 {
        (first..first + len).filter_map(|i| self.sign_bit(i)).fold(0, |bits, bit| bits | 1 << bit)
    }

    /// What the mean of the squares is multiplied by, to measure squares by it.
    pub fn variances(self) -> f32 {
        if matches!(self.ty, GgmlType::IQ2XXS | GgmlType::IQ2XS) { 1.0 } else { 2.0 }
    }

    /// The greatest number of a scale.
    pub fn most_scale(self) -> u32 {
        if self.is_shifted() { 7 } else { 15 }
    }

    /// By what ggml scales a super-block's scale in the end.
    pub fn fudge(self) -> f32 {
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
    pub fn shared_words(self) -> usize {
        if self.ty == GgmlType::IQ1M { 4 } else { 1 }
    }

    /// Floats that a unit sorts its values in.
    pub fn scratch(self) -> usize {
        match self.ty {
            GgmlType::IQ1S => 3 * 33,
            GgmlType::IQ1M => 5 * 17,
            _ => 0,
        }
    }
}

/// How a format's rounds go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rounds {
    /// Rounds to either side of the scale that makes the greatest magnitude the greatest number.
    pub side: u32,
    /// Hundredths of a number from a round to the next.
    pub hundredths: u32,
}

/// What the squares of values are measured by.
#[cube]
pub fn variance_at<X: Float>(x: &[Vector<X, Const<4>>], at: ChunkAt, #[comptime] rule: GridRule) -> f32 {
    let mut variance = 0.0f32;
    if comptime!(rule.weighted || rule.ty == GgmlType::IQ2S) {
        variance = at.mean_square::<X>(x) * comptime!(rule.variances());
    }
    variance
}

/// The weights of errors.
#[cube]
pub fn weights_of(values: &Sequence<Four>, importance: &Importance<'_>, #[comptime] rule: GridRule) -> Sequence<Four> {
    if comptime!(rule.weighted) {
        weights_of_columns(values, importance)
    } else if comptime!(rule.ty == GgmlType::IQ2S) {
        let squares = squares(values);
        let mut weights = Sequence::<Four>::new();
        #[unroll]
        for i in 0..squares.len() {
            weights.push(Four::new(0.25f32 * importance.variance) + *squares.index(i));
        }
        weights
    } else {
        squares(values)
    }
}
