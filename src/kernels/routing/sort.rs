//! Pairs of tokens and experts, sorted by expert on the device.
//!
//! The pairs of an expert come one after the other, in their order, from a multiple of [`ALIGNMENT`] packed rows on. Every cube
//! has an expert, and finds for itself how many pairs those before it have: so nothing is exchanged between cubes, and nothing
//! is added up atomically. Where an expert's rows begin is no more than a bound:
//!
//! ```text
//! class(pair)  = min(ids[pair], experts)             ids that name no expert are a class of their own, the last
//! before(e)    = pairs of classes below e
//! begin(e)     = up(before(e), ALIGNMENT) + ALIGNMENT * e
//! first tile(e) = ceil(before(e) / tile) + e
//! ```
//!
//! As `up(a) + up(b) <= up(a + b) + ALIGNMENT`, an expert's rows and tiles end before the next one's begin; what lies between is
//! marked as empty.

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::{Routing, SourcesLaunch, TILE_WORDS, TilesLaunch};
use crate::kernels::launch::{Grid, buffer, cubes};

/// Packed rows of an expert begin at multiples of so many: matrix units take activations in groups of eight rows.
const ALIGNMENT: usize = 8;

/// The pair of a packed row that has none.
pub const NO_PAIR: u32 = u32::MAX;

/// Units of a cube on GPUs.
const UNITS: u32 = 256;

/// Pairs in the order of their experts.
pub struct Sorted {
    /// The pair of each packed row, [`NO_PAIR`] where there is none.
    pairs: Handle,
    tiles: Handle,
    /// Tiles, some of which are empty.
    pub count: usize,
    /// Packed rows, some of which have no pair.
    pub rows: usize,
}

impl Sorted {
    /// The pair of each packed row.
    pub fn pairs(&self) -> &Handle {
        &self.pairs
    }

    /// As an argument of a launch with weights of experts of `rows` rows.
    pub fn tiles(&self, experts: usize, rows: usize) -> TilesLaunch {
        TilesLaunch::new(buffer(&self.tiles, 4), buffer(&self.pairs, 4), experts, rows)
    }

    /// The rows of activations that packed rows come from, each of which `sharers` pairs side by side share.
    pub fn sources(&self, sharers: usize) -> SourcesLaunch {
        SourcesLaunch::new(buffer(&self.pairs, 4), sharers)
    }
}

/// Packed rows of so many pairs.
fn packed_rows(pairs: usize, experts: usize) -> usize {
    pairs.next_multiple_of(ALIGNMENT) + ALIGNMENT * (experts + 1)
}

/// Sorts pairs into tiles of at most `tile` pairs of one expert.
pub fn sort(client: &Client, routing: &Routing, tile: usize) -> Sorted {
    let (pairs, experts) = (routing.pairs(), routing.experts());
    let rows = packed_rows(pairs, experts);
    let count = pairs.div_ceil(tile) + experts + 1;
    let (order, tiles) = (client.empty(4 * rows), client.empty((4 * TILE_WORDS * count).max(16)));
    let hardware = &client.properties().hardware;
    // CubeCL's CPU runtime runs a cube's units as threads.
    let units =
        hardware.num_cpu_cores.map_or(UNITS, |cores| 1 << cores.max(1).ilog2()).min(hardware.max_units_per_cube);
    let (cube_count, grid) = cubes(client, experts + 1, experts + 1);
    sort_pairs::launch(
        client,
        cube_count,
        CubeDim::new_1d(units),
        buffer(routing.handle(), 4),
        buffer(&order, 4),
        buffer(&tiles, 4),
        ClassesLaunch::new(grid, pairs, experts, tile),
        units as usize,
    );
    Sorted { pairs: order, tiles, count, rows }
}

/// The pairs and the classes that they are sorted into, a cube each.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
#[expand(derive(Clone, Copy))]
struct Classes {
    grid: Grid,
    pairs: usize,
    experts: usize,
    /// Pairs of a tile.
    tile: usize,
}

#[cube]
impl Classes {
    fn class(&self, id: u32) -> usize {
        min(usize::cast_from(id), self.experts)
    }

    /// The first packed row of class `class`, with so many pairs before it.
    fn begin(&self, before: usize, class: usize) -> usize {
        (before + comptime!(ALIGNMENT - 1)) / ALIGNMENT * ALIGNMENT + class * ALIGNMENT
    }

    /// The first tile.
    fn first_tile(&self, before: usize, class: usize) -> usize {
        before.div_ceil(self.tile) + class
    }
}

#[cube(launch)]
fn sort_pairs(ids: &[u32], order: &mut [u32], tiles: &mut [u32], classes: Classes, #[comptime] units: usize) {
    let class = classes.grid.cube();
    // Some grids have more cubes than there are classes; all units of a cube leave together.
    if class >= classes.grid.len {
        terminate!();
    }
    // A unit has pairs side by side, so that units have theirs in the order of the pairs.
    let unit = UNIT_POS as usize;
    let of_unit = (classes.pairs + comptime!(units - 1)) / units;
    let (first, last) = (min(unit * of_unit, classes.pairs), min((unit + 1) * of_unit, classes.pairs));
    let mut less = 0u32;
    let mut equal = 0u32;
    for pair in range_stepped(first, last, 1usize) {
        let other = classes.class(ids[pair]);
        less += u32::cast_from(other < class);
        equal += u32::cast_from(other == class);
    }
    // Sums over all units up to this one, by doubling distances, in two buffers by turns.
    let mut sums = Shared::<[u32]>::new_slice(comptime!(4 * units));
    sums[2 * unit] = less;
    sums[2 * unit + 1] = equal;
    sync_cube();
    #[unroll]
    for step in 0..comptime!(units.ilog2()) {
        let distance = comptime!(1usize << step);
        let (from, to) = comptime!((step as usize % 2 * 2 * units, (step as usize + 1) % 2 * 2 * units));
        let mut sum_less = sums[from + 2 * unit];
        let mut sum_equal = sums[from + 2 * unit + 1];
        if unit >= distance {
            sum_less += sums[from + 2 * (unit - distance)];
            sum_equal += sums[from + 2 * (unit - distance) + 1];
        }
        sums[to + 2 * unit] = sum_less;
        sums[to + 2 * unit + 1] = sum_equal;
        sync_cube();
    }
    let from = comptime!(units.ilog2() as usize % 2 * 2 * units);
    let all = comptime!(2 * (units - 1));
    let before = usize::cast_from(sums[from + all]);
    let count = usize::cast_from(sums[from + all + 1]);
    let begin = classes.begin(before, class);
    let mut at = begin + usize::cast_from(sums[from + 2 * unit + 1] - equal);
    for pair in range_stepped(first, last, 1usize) {
        if classes.class(ids[pair]) == class {
            order[at] = u32::cast_from(pair);
            at += 1;
        }
    }
    for row in range_stepped(begin + count + unit, classes.begin(before + count, class + 1), units) {
        order[row] = NO_PAIR;
    }
    let first_tile = classes.first_tile(before, class);
    let past = classes.first_tile(before + count, class + 1);
    for tile in range_stepped(first_tile + unit, past, units) {
        let of_class = (tile - first_tile) * classes.tile;
        let words = tile * TILE_WORDS;
        tiles[words] = u32::cast_from(class);
        tiles[words + 1] = u32::cast_from(begin + min(of_class, count));
        tiles[words + 2] = u32::cast_from(begin + min(of_class + classes.tile, count));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An expert's rows and tiles end before those of the next begin, whatever the numbers of pairs.
    #[test]
    fn experts_have_rows_and_tiles_of_their_own() {
        for tile in [1, 8, 16, 64, 256] {
            let up = |rows: usize| rows.next_multiple_of(ALIGNMENT);
            for counts in [vec![0, 0, 0], vec![1, 1, 1, 1], vec![7, 9, 0, 16, 255, 257, 3], vec![300, 1, 8]] {
                let experts = counts.len() - 1;
                let mut before = 0;
                for (class, &count) in counts.iter().enumerate() {
                    let begin = |before: usize, class: usize| up(before) + ALIGNMENT * class;
                    let first_tile = |before: usize, class: usize| before.div_ceil(tile) + class;
                    assert!(begin(before, class) + up(count) <= begin(before + count, class + 1));
                    assert!(first_tile(before, class) + count.div_ceil(tile) <= first_tile(before + count, class + 1));
                    before += count;
                }
                assert_eq!(up(before) + ALIGNMENT * (experts + 1), packed_rows(before, experts));
            }
        }
    }
}
