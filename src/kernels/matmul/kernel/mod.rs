//! The kernel: stage activations, decode weights into the matrix unit's operand, multiply, add up slices, store.
//!
//! A *plane* multiplies `row_tiles` tiles of 16 rows of weights by all `token_tiles` tiles of activations of its cube. What a
//! lane holds of an operand is, for each instruction, a few values of a row; the lane takes them from a chunk of 32 that it has
//! to itself, one part after the other. So weights go from memory through its registers to the instruction, and no other lane
//! sees them; activations, which all planes of the cube need, come by way of shared memory.
//!
//! ```text
//! for each cube: `row_planes` planes with rows of their own, times `slices` planes that share rows
//!     sums[row_tiles][token_tiles] = 0
//!     start loading the first step's weights; stage the first step's activations
//!     for each step of the row:                       a chunk for each lane that shares a row, of all slices
//!         start loading the next step's activations
//!         chunks = decode(loaded weights); start loading the next step's weights
//!         for each turn of the chunk:                 16 or 32 bytes of a row of activations
//!             weights = bf16(values of the chunks)
//!             for each tile of activations:
//!                 sums += weights * staged activations
//!         stage the next step's activations, in the other buffer
//!     add up the slices' sums
//!     store, or store sums that another kernel adds to those of the cubes with other `splits` of the depth
//! ```

mod splits;
mod warpgroup;

use cubecl::ir::ElemType;
use cubecl::prelude::*;

pub use self::splits::add_splits;
pub use self::warpgroup::multiply_warpgroups;
use super::blueprint::Blueprint;
use crate::gguf::GgmlType;
use crate::kernels::arch::matrix_unit::{
    MatrixUnit, bf16_pair, multiply_add, part_of_row, quiet, sum_row, sum_token, token_row, weight_row,
};
use crate::kernels::epilogue::Epilogue;
use crate::kernels::floats::{FloatType, rounded, rounded_or_nan};
use crate::kernels::formats::{
    At, CHUNK, Chunk, MatrixView, Prefetched, Raw, decode, dense_four, traits, unsigned, unsigned_four,
    vectors_per_chunk,
};
use crate::kernels::launch::Grid;
use crate::kernels::routing::{Tile, Tiles};
use crate::kernels::vector::Words;

/// 16-byte vectors of a chunk of activations.
const CHUNK_VECTORS: usize = 4;

/// How much a launch multiplies.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub struct Extent {
    grid: Grid,
    /// Rows of weights.
    n: usize,
    /// Chunks of a row.
    chunks: usize,
    /// Rows of activations.
    tokens: usize,
    /// Tiles side by side that share rows of weights, or all tiles of experts.
    token_tiles: usize,
    /// Values from the sums of one split to those of the next.
    split_stride: usize,
}

/// Where a unit is in a launch.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
struct Position {
    extent: Extent,
    lane: u32,
    /// Which of the lanes that share a row it is.
    part: usize,
    /// The first row of weights of its plane.
    row: usize,
    /// The first row of weights of its expert; 0 without experts.
    expert_row: usize,
    /// Whether there is such an expert.
    is_known: bool,
    /// The first row of activations of its cube.
    token: usize,
    /// The row of activations that ends its cube's.
    end: usize,
    /// Its plane's slice of the depth.
    slice: usize,
    /// Its cube's split of the depth.
    split: usize,
    #[cube(comptime)]
    has_experts: bool,
    #[cube(comptime)]
    blueprint: Blueprint,
}

#[cube]
impl Position {
    fn new(extent: Extent, tiles: &ComptimeOption<Tiles>, #[comptime] blueprint: Blueprint) -> Position {
        let cube = extent.grid.cube();
        let (split, tile) = (cube % comptime!(blueprint.splits), cube / comptime!(blueprint.splits));
        let of_tokens = tile % extent.token_tiles;
        let begin = of_tokens * comptime!(blueprint.tokens());
        #[comptime]
        let of_expert = match tiles {
            ComptimeOption::Some(tiles) => {
                let of_expert = tiles.tile(of_tokens);
                // All units of a cube leave together.
                if of_expert.begin == of_expert.end {
                    terminate!();
                }
                of_expert
            }
            ComptimeOption::None => {
                Tile { begin, end: extent.tokens, first_row: 0usize.runtime(), is_known: true.runtime() }
            }
        };
        let (lane, plane) = (UNIT_POS_X, UNIT_POS_Y as usize);
        let row_planes = comptime!(blueprint.row_planes);
        let row = (tile / extent.token_tiles) * comptime!(blueprint.rows())
            + plane % row_planes * comptime!(blueprint.row_tiles * MatrixUnit::ROWS);
        Position {
            extent,
            lane,
            part: usize::cast_from(part_of_row(lane, blueprint.unit)),
            row,
            expert_row: of_expert.first_row,
            is_known: of_expert.is_known,
            token: of_expert.begin,
            end: of_expert.end,
            slice: plane / row_planes,
            split,
            has_experts: comptime!(tiles.is_some()),
            blueprint,
        }
    }

    /// The first step of its cube's split, and the one past its last.
    fn steps(&self) -> (usize, usize) {
        let chunks = comptime!(self.blueprint.step_chunks());
        let steps = (self.extent.chunks + comptime!(chunks - 1)) / chunks;
        let splits = comptime!(self.blueprint.splits);
        let of_split = (steps + comptime!(splits - 1)) / splits;
        let begin = self.split * of_split;
        (begin, min(begin + of_split, steps))
    }

    /// The row of weights `i` that the lane holds values of.
    fn weight_row(&self, #[comptime] i: usize) -> usize {
        let unit = comptime!(self.blueprint.unit);
        let (tile, r) = comptime!((i / unit.rows_per_lane(), i % unit.rows_per_lane()));
        self.row + comptime!(tile * MatrixUnit::ROWS) + usize::cast_from(weight_row(self.lane, r, unit))
    }

    /// The lane's chunk of a row in step `step`.
    fn chunk(&self, step: usize) -> usize {
        let unit = comptime!(self.blueprint.unit);
        (step * comptime!(self.blueprint.slices) + self.slice) * comptime!(unit.lanes_per_row()) + self.part
    }

    /// The same, or the row's last.
    fn weight_at(&self, #[comptime] i: usize, step: usize) -> At {
        let chunk = self.chunk(step);
        let chunk = if comptime!(self.blueprint.whole) { chunk } else { min(chunk, self.extent.chunks - 1) };
        let row = self.expert_row + min(self.weight_row(i), self.extent.n - 1);
        At::alternating(
            row,
            chunk,
            comptime!(if self.blueprint.run < CHUNK { self.blueprint.unit.lanes_per_row() } else { 1 }),
        )
    }
}

/// `x`, rows of chunks of bf16, times the transpose of a matrix.
#[cube(launch_unchecked)]
pub fn multiply_tiles<O: Float, W: Size, X: Size, S: Size>(
    view: &MatrixView,
    x: &[Words],
    out: &mut [O],
    extent: Extent,
    epilogue: Epilogue,
    tiles: ComptimeOption<Tiles>,
    #[comptime] blueprint: Blueprint,
    #[define(O)] _dtype: ElemType,
    #[define(W, X, S)] _sizes: [usize; 3],
) {
    let position = Position::new(extent, &tiles, blueprint);
    let mut sums = zeros::<S>(blueprint);
    let stage = comptime!(blueprint.staged_vectors());
    let mut staged = Shared::<[Words]>::new_slice(comptime!(2 * stage));
    let mut loaded = Array::<Words>::new(comptime!(stage.div_ceil(blueprint.units())));
    let (begin, end) = position.steps();
    let mut weights = first_weights(view, position, begin);
    load_activations(x, position, begin, &mut loaded);
    stage_activations(&loaded, &mut staged, begin % 2 * stage, blueprint);
    sync_cube();
    for step in begin..end {
        let next = min(step + 1, end - 1);
        load_activations(x, position, next, &mut loaded);
        let current = step % 2 * stage;
        let chunks = decode_and_load(view, &mut weights, position, step, next);
        multiply_step::<W, X, S>(&chunks, &staged, current, position, step, &mut sums);
        stage_activations(&loaded, &mut staged, (step + 1) % 2 * stage, blueprint);
        sync_cube();
    }
    if comptime!(blueprint.slices > 1) {
        add_slices(&mut sums, position);
    }
    if position.slice == 0 {
        store(&sums, out, position, &epilogue, &tiles);
    }
}

/// The words of the lane's chunks of step `begin`, on their way.
#[cube]
fn first_weights(view: &MatrixView, position: Position, begin: usize) -> Sequence<Prefetched> {
    let blueprint = comptime!(position.blueprint);
    let mut weights = Sequence::<Prefetched>::new();
    #[unroll]
    for i in 0..comptime!(blueprint.rows_per_lane()) {
        weights.push(Prefetched::of(view, position.weight_at(i, begin), blueprint.ty));
    }
    weights
}

/// The lane's chunks of a step from its loaded words, in whose place those of step `next` are on their way.
#[cube]
fn decode_and_load(
    view: &MatrixView,
    weights: &mut Sequence<Prefetched>,
    position: Position,
    step: usize,
    next: usize,
) -> LaneChunks {
    let blueprint = comptime!(position.blueprint);
    let mut chunks = LaneChunks::new();
    #[unroll]
    for i in 0..comptime!(blueprint.rows_per_lane()) {
        chunks.push(&weights.index(i).raw(), &view.codebook, position.weight_at(i, step), blueprint);
    }
    #[unroll]
    for i in 0..comptime!(blueprint.rows_per_lane()) {
        let at = position.weight_at(i, next);
        if comptime!(blueprint.of_warpgroups()) {
            weights.index_mut(i).replace_early(view, at, blueprint.ty);
        } else {
            weights.index_mut(i).replace(view, at, blueprint.ty);
        }
    }
    chunks
}

/// A lane's sums, of nothing yet.
#[cube]
fn zeros<S: Size>(#[comptime] blueprint: Blueprint) -> Array<Vector<f32, S>> {
    let mut sums = Array::<Vector<f32, S>>::new(comptime!(blueprint.sums()));
    #[unroll]
    for i in 0..comptime!(blueprint.sums()) {
        sums[i] = Vector::new(0.0f32);
    }
    sums
}

/// A chunk of each of the lane's rows.
#[derive(CubeType)]
struct LaneChunks {
    /// Of block formats, with unsigned codes whose bias is in the mins.
    blocks: Sequence<Chunk>,
    /// The words of floats.
    floats: Sequence<Words>,
}

#[cube]
impl LaneChunks {
    fn new() -> LaneChunks {
        LaneChunks { blocks: Sequence::new(), floats: Sequence::new() }
    }

    /// Adds a row's, which was loaded from `at`.
    fn push(&mut self, loaded: &Raw, codebook: &[u32], at: At, #[comptime] blueprint: Blueprint) {
        let (ty, unit) = comptime!((blueprint.ty, blueprint.unit));
        if comptime!(traits(ty).dense) {
            #[unroll]
            for vector in 0..comptime!(vectors_per_chunk(ty)) {
                self.floats.push(loaded.wide(vector));
            }
        } else {
            let chunk = unsigned(decode(loaded, codebook, at, ty), comptime!(traits(ty)));
            self.blocks.push(Chunk {
                low: chunk.low,
                high: chunk.high,
                scale_low: quiet(chunk.scale_low, unit),
                scale_high: quiet(chunk.scale_high, unit),
                min_low: quiet(chunk.min_low, unit),
                min_high: quiet(chunk.min_high, unit),
            });
        }
    }

    /// Values `4 * four..4 * four + 4` of row `row`, as two words of bf16.
    fn four(&self, #[comptime] row: usize, #[comptime] four: usize, #[comptime] blueprint: Blueprint) -> (u32, u32) {
        let (ty, unit) = comptime!((blueprint.ty, blueprint.unit));
        if comptime!(traits(ty).dense) {
            let vectors = comptime!(vectors_per_chunk(ty));
            let of_vector = comptime!(8 / vectors);
            let words = *self.floats.index(comptime!(row * vectors + four / of_vector));
            let four = comptime!(four % of_vector);
            if comptime!(ty == GgmlType::BF16) {
                (words.extract(comptime!(2 * four)), words.extract(comptime!(2 * four + 1)))
            } else {
                let mut values = dense_four(words, four, ty);
                #[unroll]
                for i in 0..4usize {
                    values.insert(i, quiet(values.extract(i), unit));
                }
                rounded_four(values, unit)
            }
        } else {
            rounded_four(unsigned_four(self.blocks.index(row), four, comptime!(traits(ty))), unit)
        }
    }
}

/// Four values as two words of bf16.
#[cube]
fn rounded_four(values: Vector<f32, Const<4>>, #[comptime] unit: MatrixUnit) -> (u32, u32) {
    let front = bf16_pair(values.extract(0usize), values.extract(1usize), unit);
    let back = bf16_pair(values.extract(2usize), values.extract(3usize), unit);
    (front, back)
}

/// Adds the products of a step.
#[cube]
fn multiply_step<W: Size, X: Size, S: Size>(
    chunks: &LaneChunks,
    staged: &[Words],
    first: usize,
    position: Position,
    step: usize,
    sums: &mut Array<Vector<f32, S>>,
) {
    let blueprint = comptime!(position.blueprint);
    let (unit, tokens) = comptime!((blueprint.unit, blueprint.tokens()));
    let words = comptime!(unit.words_per_row());
    // Instructions that a vector of 16 bytes of activations is for, or vectors that an instruction takes.
    let (instructions, vectors) = comptime!(((4 / words).max(1), (words / 4).max(1)));
    let token = position.slice * tokens + usize::cast_from(token_row(position.lane, unit));
    let inside = comptime!(blueprint.whole) || position.chunk(step) < position.extent.chunks;
    #[unroll]
    for turn in 0..comptime!(CHUNK_VECTORS / vectors) {
        let mut weights = Sequence::<Vector<u32, W>>::new();
        #[unroll]
        for instruction in 0..instructions {
            let nth = comptime!(turn * instructions + instruction);
            #[unroll]
            for tile in 0..blueprint.row_tiles {
                weights.push(weights_of::<W>(chunks, inside, tile, nth, blueprint));
            }
        }
        #[unroll]
        for tile in 0..blueprint.token_tiles {
            let mut loaded = Sequence::<Words>::new();
            #[unroll]
            for vector in 0..vectors {
                let vector = comptime!(turn * vectors + vector);
                let at = staged_at(token, position.part, vector.runtime(), unit);
                loaded
                    .push(staged[first + at + comptime!(tile * unit.tokens() * CHUNK_VECTORS * unit.lanes_per_row())]);
            }
            #[unroll]
            for instruction in 0..instructions {
                let mut x = Vector::<u32, X>::empty();
                #[unroll]
                for word in 0..words {
                    let from = comptime!(instruction * words + word);
                    x.insert(word, loaded.index(comptime!(from / 4)).extract(comptime!(from % 4)));
                }
                #[unroll]
                for row_tile in 0..blueprint.row_tiles {
                    let i = comptime!(row_tile * blueprint.token_tiles + tile);
                    let operand = *weights.index(comptime!(instruction * blueprint.row_tiles + row_tile));
                    sums[i] = multiply_add::<W, X, S>(operand, x, sums[i], unit, FloatType::BF16);
                }
            }
        }
    }
}

/// The operand of weights of the chunks' `instruction`th instruction, of the rows of a tile; zeros where it is not `inside`.
#[cube]
fn weights_of<W: Size>(
    chunks: &LaneChunks,
    inside: bool,
    #[comptime] tile: usize,
    #[comptime] instruction: usize,
    #[comptime] blueprint: Blueprint,
) -> Vector<u32, W> {
    let unit = comptime!(blueprint.unit);
    let (rows, fours) = comptime!((unit.rows_per_lane(), unit.words_per_row() / 2));
    let mut operand = Vector::<u32, W>::empty();
    #[unroll]
    for r in 0..rows {
        #[unroll]
        for four in 0..fours {
            let row = comptime!(tile * rows + r);
            let (front, back) = chunks.four(row, comptime!(instruction * fours + four), blueprint);
            operand.insert(comptime!(2 * four * rows + r), front);
            operand.insert(comptime!((2 * four + 1) * rows + r), back);
        }
    }
    select(inside, operand, Vector::new(0u32))
}

/// Loads the unit's share of a step's activations.
#[cube]
fn load_activations(x: &[Words], position: Position, step: usize, loaded: &mut Array<Words>) {
    let (extent, blueprint) = (position.extent, comptime!(position.blueprint));
    #[unroll]
    for i in 0..comptime!(blueprint.staged_vectors().div_ceil(blueprint.units())) {
        let of = Staged::nth(i, blueprint);
        let chunk = step * comptime!(blueprint.step_chunks()) + of.chunk;
        let row = min(position.token + of.token, extent.tokens - 1) * extent.chunks;
        if comptime!(blueprint.whole) {
            loaded[i] = x[(row + chunk) * CHUNK_VECTORS + of.vector];
        } else {
            let vector = x[(row + min(chunk, extent.chunks - 1)) * CHUNK_VECTORS + of.vector];
            loaded[i] = select(chunk < extent.chunks, vector, Words::new(0u32));
        }
    }
}

/// Stores the unit's share of a step's activations, from vector `first` of shared memory on.
#[cube]
fn stage_activations(loaded: &Array<Words>, staged: &mut [Words], first: usize, #[comptime] blueprint: Blueprint) {
    let (all, units) = comptime!((blueprint.staged_vectors(), blueprint.units()));
    let unit = comptime!(blueprint.unit);
    #[unroll]
    for i in 0..comptime!(all.div_ceil(units)) {
        let of = Staged::nth(i, blueprint);
        let lanes = comptime!(unit.lanes_per_row());
        let token = of.chunk / lanes * comptime!(blueprint.tokens()) + of.token;
        let at = first + staged_at(token, of.chunk % lanes, of.vector, unit);
        let in_step = comptime!((i + 1) * units <= all) || UNIT_POS as usize + comptime!(i * units) < all;
        if in_step {
            staged[at] = loaded[i];
        }
    }
}

/// A vector of 16 bytes of a step's activations.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
struct Staged {
    token: usize,
    /// The chunk among the step's.
    chunk: usize,
    vector: usize,
}

#[cube]
impl Staged {
    /// The `i`th of a unit: neighbouring units have neighbouring vectors of a row.
    fn nth(#[comptime] i: usize, #[comptime] blueprint: Blueprint) -> Staged {
        let of_row = comptime!(blueprint.step_chunks() * CHUNK_VECTORS);
        let at = UNIT_POS as usize + comptime!(i * blueprint.units());
        let (token, rest) = (at / of_row % comptime!(blueprint.tokens()), at % of_row);
        Staged { token, chunk: rest / CHUNK_VECTORS, vector: rest % CHUNK_VECTORS }
    }
}

/// Where a vector of a lane's chunk of activations lies in a step: eight lanes that load together hit different banks.
#[cube]
fn staged_at(token: usize, part: usize, vector: usize, #[comptime] unit: MatrixUnit) -> usize {
    let lanes = comptime!(unit.lanes_per_row());
    if comptime!(lanes == 1) {
        token * CHUNK_VECTORS + (vector ^ (token / 2 % 4))
    } else {
        let (part, twist) = (part ^ (token / 4 % 2), (token % 4) ^ (part / 2 * 2));
        (token * lanes + part) * CHUNK_VECTORS + (vector ^ twist)
    }
}

/// Adds the sums of all slices to those of the first.
#[cube]
fn add_slices<S: Size>(sums: &mut Array<Vector<f32, S>>, position: Position) {
    let blueprint = comptime!(position.blueprint);
    let (count, lanes) = comptime!((blueprint.sums(), blueprint.unit.plane() as usize));
    let of_slice = comptime!(blueprint.row_planes * count * lanes);
    let mut shared = Shared::<[Vector<f32, S>]>::new_slice(comptime!((blueprint.slices - 1) * of_slice));
    let plane = UNIT_POS_Y as usize % comptime!(blueprint.row_planes);
    let first = plane * comptime!(count * lanes) + position.lane as usize;
    if position.slice > 0 {
        #[unroll]
        for i in 0..count {
            shared[(position.slice - 1) * of_slice + first + comptime!(i * lanes)] = sums[i];
        }
    }
    sync_cube();
    if position.slice == 0 {
        #[unroll]
        for slice in 0..comptime!(blueprint.slices - 1) {
            #[unroll]
            for i in 0..count {
                sums[i] += shared[first + comptime!(slice * of_slice + i * lanes)];
            }
        }
    }
}

/// Stores the plane's sums.
#[cube]
fn store<O: Float, S: Size>(
    sums: &Array<Vector<f32, S>>,
    out: &mut [O],
    position: Position,
    epilogue: &Epilogue,
    tiles: &ComptimeOption<Tiles>,
) {
    let (extent, blueprint) = (position.extent, comptime!(position.blueprint));
    let unit = comptime!(blueprint.unit);
    #[unroll]
    for tile in 0..blueprint.token_tiles {
        #[unroll]
        for i in 0..comptime!(unit.sums()) {
            let token =
                position.token + comptime!(tile * unit.tokens()) + usize::cast_from(sum_token(position.lane, i, unit));
            if token < position.end {
                #[comptime]
                let result = match tiles {
                    ComptimeOption::Some(tiles) => tiles.pair(token),
                    ComptimeOption::None => token,
                };
                #[unroll]
                for row_tile in 0..blueprint.row_tiles {
                    let row = position.row
                        + comptime!(row_tile * MatrixUnit::ROWS)
                        + usize::cast_from(sum_row(position.lane, i, unit));
                    if row < extent.n {
                        let sum = sums[comptime!(row_tile * blueprint.token_tiles + tile)].extract(i);
                        let sum = epilogue.product(sum, position.expert_row + row, position.split == 0);
                        let at = position.split * extent.split_stride + result * extent.n + row;
                        if comptime!(position.has_experts) {
                            out[at] = rounded_or_nan::<O>(sum, position.is_known);
                        } else {
                            out[at] = rounded::<O>(sum);
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn staged_vectors_have_places_of_their_own() {
        for unit in MatrixUnit::OF_PLANES {
            let lanes = unit.lanes_per_row();
            let mut places = BTreeSet::new();
            for token in 0..32 {
                for part in 0..lanes {
                    places.extend((0..CHUNK_VECTORS).map(|vector| staged_at(token, part, vector, unit)));
                }
            }
            assert_eq!(places, (0..32 * lanes * CHUNK_VECTORS).collect(), "{unit:?}");
        }
    }

    /// Shared memory serves 16 bytes to each of eight lanes at once where all are in different banks of 4 bytes.
    #[test]
    fn eight_lanes_hit_different_banks() {
        for unit in MatrixUnit::OF_PLANES {
            for first in (0..unit.plane()).step_by(8) {
                for vector in 0..CHUNK_VECTORS {
                    let bank = |lane| {
                        let (token, part) = (token_row(lane, unit) as usize, part_of_row(lane, unit) as usize);
                        staged_at(token, part, vector, unit) % 8
                    };
                    let banks: BTreeSet<_> = (first..first + 8).map(bank).collect();
                    assert_eq!(banks.len(), 8, "{unit:?}, lanes from {first}");
                }
            }
        }
    }
}
