//! What decides about super-blocks, and what the units of one share.

use cubecl::prelude::*;

use super::search::Steps;
use crate::gguf::GgmlType;

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
    pub fn is_ternary(self) -> bool {
        matches!(self.ty, GgmlType::TQ1_0 | GgmlType::TQ2_0)
    }

    /// Whether codes are bytes by the super-block's scale, which nobody searches either.
    pub fn is_bytes(self) -> bool {
        self.ty == GgmlType::Q8K
    }

    /// Whether the search leaves no codes for sub-blocks whose scale becomes 0.
    pub fn has_no_codes(self) -> bool {
        self.is_ternary() || self.is_bytes() || self.has_table()
    }

    /// Whether codes are searched in a table.
    pub fn has_table(self) -> bool {
        self.ty == GgmlType::IQ4XS
    }

    /// Sub-blocks of a chunk.
    pub fn subs(self) -> usize {
        if matches!(self.ty, GgmlType::Q4K | GgmlType::Q5K) || self.has_no_codes() { 1 } else { 2 }
    }

    /// Whether sub-blocks have a min.
    pub fn has_min(self) -> bool {
        matches!(self.ty, GgmlType::Q2K | GgmlType::Q4K | GgmlType::Q5K)
    }

    /// Bits of a code.
    pub fn bits(self) -> u32 {
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
    pub fn most_scale(self) -> u32 {
        match self.ty {
            GgmlType::Q2K => 15,
            GgmlType::Q3K => 32,
            GgmlType::Q6K => 128,
            _ => 63,
        }
    }

    /// The search of scale and min.
    pub fn steps(self) -> Steps {
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
    pub fn cube_chunks(self) -> usize {
        self.units * self.chunks
    }
}

/// What the units of a cube share: of each sub-block its scale and min, of each chunk the codes that were found. Of formats without
/// a search, the largest magnitude for the scale, or the value that has it.
#[derive(CubeType)]
pub struct Shares<'a> {
    pub scales: &'a [f32],
    pub mins: &'a [f32],
    pub codes: &'a [u32],
    /// The sum of the weights of each sub-block's errors.
    pub weights: &'a [f32],
}

#[cube]
impl<'a> Shares<'a> {
    pub fn new(scales: &'a [f32], mins: &'a [f32], codes: &'a [u32], weights: &'a [f32]) -> Shares<'a> {
        Shares::<'a> { scales, mins, codes, weights }
    }
}
