//! Sums of squares of what matrices are multiplied by, column by column: an importance matrix is their means.

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;

use crate::kernels::launch::{Grid, buffer, elementwise};
use crate::kernels::routing::{Route, Tiles};

/// What a matrix, or each of a stack of experts, has been multiplied by. Cloning shares the sums.
#[derive(Clone, Debug)]
pub struct Squares {
    /// A row of f32 for each matrix: of each column, the sum of its squares.
    pub sums: Handle,
    /// Of each matrix, the rows that it was multiplied by, a u32.
    pub counts: Handle,
    /// Number of matrices.
    pub matrices: usize,
    /// Columns of a matrix.
    pub columns: usize,
}

impl Squares {
    /// The sums over no rows.
    pub fn new(client: &Client, matrices: usize, columns: usize) -> Self {
        let zeros = |count: usize| client.create_from_slice(&vec![0; (4 * count).next_multiple_of(16).max(16)]);
        Self { sums: zeros(matrices * columns), counts: zeros(matrices), matrices, columns }
    }

    /// Adds `rows` rows, which the first matrix is multiplied by.
    pub fn add(&self, client: &Client, x: &Handle, rows: usize) {
        let (count, dim, grid) = elementwise(client, self.columns);
        let (sums, counts) = (buffer(&self.sums, 4), buffer(&self.counts, 4));
        add_rows::launch(client, count, dim, buffer(x, 4), sums, counts, grid, rows);
    }

    /// Adds the rows of pairs, each of which the matrix of its expert is multiplied by.
    pub fn add_pairs(&self, client: &Client, x: &Handle, route: Route<'_>) {
        let Route { routing, sharers } = route;
        // All pairs of an expert are one tile, so that no two units add to one sum.
        let sorted = routing.sorted(client, routing.pairs().max(1));
        let (count, dim, grid) = elementwise(client, sorted.count * self.columns);
        let (sums, counts) = (buffer(&self.sums, 4), buffer(&self.counts, 4));
        // Of matrices of one row, a tile's first row is its expert.
        let pairs = PairsLaunch::new(sorted.tiles(self.matrices, 1), sharers, self.columns);
        add_rows_of_pairs::launch(client, count, dim, buffer(x, 4), sums, counts, grid, pairs);
    }
}

/// Pairs in tiles, one an expert, and the rows that they have.
#[derive(CubeType, CubeLaunch)]
struct Pairs {
    tiles: Tiles,
    /// Pairs side by side that share a row.
    sharers: usize,
    columns: usize,
}

/// A unit has a column, and neighbours read neighbouring values.
#[cube(launch)]
fn add_rows(x: &[f32], sums: &mut [f32], counts: &mut [u32], grid: &Grid, rows: usize) {
    let column = grid.unit();
    if column < grid.len {
        // Apart from the sum so far, whose rounding would be that of many more rows.
        let mut sum = 0.0f32;
        for row in 0..rows {
            let value = x[row * grid.len + column];
            sum += value * value;
        }
        sums[column] += sum;
        if column == 0 {
            counts[0] += u32::cast_from(rows);
        }
    }
}

/// A unit has a column of an expert's rows.
#[cube(launch)]
fn add_rows_of_pairs(x: &[f32], sums: &mut [f32], counts: &mut [u32], grid: &Grid, pairs: &Pairs) {
    let position = grid.unit();
    if position < grid.len {
        let column = position % pairs.columns;
        let tile = pairs.tiles.tile(position / pairs.columns);
        if tile.is_known && tile.begin < tile.end {
            let mut sum = 0.0f32;
            for packed in range_stepped(tile.begin, tile.end, 1usize) {
                let row = pairs.tiles.pair(packed) / pairs.sharers;
                let value = x[row * pairs.columns + column];
                sum += value * value;
            }
            sums[tile.first_row * pairs.columns + column] += sum;
            if column == 0 {
                counts[tile.first_row] += u32::cast_from(tile.end - tile.begin);
            }
        }
    }
}
