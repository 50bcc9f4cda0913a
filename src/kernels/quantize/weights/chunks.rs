//! The chunks of 32 values that units take of super-blocks.

use cubecl::prelude::*;

use super::codes::Destination;
use super::rounding::{largest, sum_of_squares};
use crate::kernels::launch::Grid;
use crate::kernels::vector::Words;

/// The rows that a launch quantizes.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub struct Run {
    pub grid: Grid,
    /// The first row of the quantized matrix.
    pub first_row: usize,
    /// Blocks of a row.
    pub blocks: usize,
    /// Units of a row, or pairs of super-blocks.
    pub units: usize,
    /// Rows of the quantized matrix for each row of importances.
    pub rows_each: usize,
}

/// Chunks of a super-block.
pub const CHUNKS: usize = 8;
/// Chunks of a pair of super-blocks.
pub const PAIR: usize = 2 * CHUNKS;

/// A chunk of the matrix.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub struct ChunkAt {
    pub destination: Destination,
    /// The first vector of its super-block among those of the launch.
    pub first: usize,
    pub row: usize,
    pub block: usize,
    /// The chunk in its super-block.
    pub chunk: usize,
    /// Whether there is such a chunk: the last pair of a row may have one super-block.
    pub exists: bool,
    /// Whether the row has a super-block after this one.
    has_next: bool,
}

#[cube]
impl ChunkAt {
    /// The launch's chunk `index`, counted over pairs.
    pub fn new(run: Run, destination: Destination, index: usize) -> ChunkAt {
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
    pub fn columns(&self, run: Run) -> usize {
        (self.row / run.rows_each * run.blocks + self.block) * comptime!(8 * CHUNKS) + self.chunk * 8
    }

    /// The bit pattern of the largest magnitude among an eighth of the super-block's values: the vectors in turn, as units side by
    /// side then load vectors side by side.
    pub fn largest<X: Float>(&self, x: &[Vector<X, Const<4>>]) -> u32 {
        let mut greatest = 0u32;
        #[unroll]
        for turn in 0..8usize {
            greatest = max(greatest, largest::<X>(x, self.first + comptime!(turn * CHUNKS) + self.chunk));
        }
        greatest
    }

    /// The mean of the squares of the super-block's values.
    pub fn mean_square<X: Float>(&self, x: &[Vector<X, Const<4>>]) -> f32 {
        sum_of_squares::<X>(x, self.first, comptime!(8 * CHUNKS).runtime()) * comptime!(1.0f32 / 256.0)
    }

    /// Whether the super-block is the first of a pair that has both.
    pub fn has_both(&self) -> bool {
        self.block & 1 == 0 && self.has_next
    }

    /// Stores the half of the super-block's scale, as a bit pattern, where that is the first of a pair: two are a word. `next` is that
    /// of the second, 0 where the pair [lacks it](Self::has_both).
    pub fn store_halves(&self, out: &mut [Words], #[comptime] component: usize, own: u32, next: u32) {
        if self.block & 1 == 0 {
            self.destination.store(out, component, self.row, self.block / 2, own | (next << 16));
        }
    }
}
