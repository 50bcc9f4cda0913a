//! Attention by tiles, on the device's matrix unit: flash attention (Dao et al., 2022; Dao, 2023).
//!
//! The queries of tokens side by side that share keys are the *rows* of a cube, 16 of them a plane's. All planes of the cube see
//! the same keys and values, a *step* at a time, which come as halves by way of shared memory. A step has 32 keys; where rows are
//! few it has more, and planes with the same rows that take a *slice* of 32 each.
//!
//! ```text
//! stage the cube's queries
//! for each step of the keys that some row sees:
//!     stage keys, and values of two keys side by side
//!     scores[16][32] = queries * keys of the slice    LEAST where a row does not see a key
//!     largest = max(largest, scores)                  in powers of two
//!     shares = exp2(scores - largest)
//!     sums, acc = sums and acc, rescaled to the new largest
//!     sums += shares
//!     acc[16][len] += shares * values
//! sums, acc = those of all slices, rescaled to the largest of all
//! out = acc / sums
//! ```
//!
//! Of a row, a lane holds the scores of the keys whose shares the next product takes from it: they stay in its registers. (On
//! RDNA3 the lanes of the two half planes exchange theirs.)

use std::f32::consts::{LN_2, LOG2_E};

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::{Attention, Four, LEAST, Seen, capped, with_sink};
use crate::kernels::arch::approximate::exp2;
use crate::kernels::arch::matrix_unit::{
    MatrixUnit, max_of_row, multiply_add, part_of_row, sum_of_row, sum_token, token_row, weight_row,
};
use crate::kernels::decoder::rotary::{Heads, KeyValues};
use crate::kernels::decoder::values;
use crate::kernels::floats::{FloatType, half_pair, within_halves};
use crate::kernels::hardware::Hardware;
use crate::kernels::launch::{buffer, cubes};

/// Vectors of four values that a unit has loads under way for when it stages.
const STAGED: usize = 8;

/// Keys of a slice of a step.
const KEYS: usize = 32;

/// Planes of a cube at the most.
const MAX_PLANES: usize = 4;

/// Words between pairs of values in shared memory, so that lanes side by side hit different banks.
const VALUES_PADDING: usize = 8;

/// Sums of values that a lane has registers for.
const MAX_SUMS: usize = 128;

/// The power of two that the largest share is at the most: halves have room for it, and for shares of 2^-29 of it.
const RAISED: f32 = 15.0;

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Plan {
    heads: Heads,
    unit: MatrixUnit,
    /// Planes of a cube with rows of their own.
    row_planes: usize,
    /// Planes that share rows.
    slices: usize,
    /// Values of a head side by side that a lane reads together, of as many tiles.
    wide: usize,
    capped: bool,
}

impl Plan {
    /// The plan for so many tokens; `None` where the device has no matrix unit for the heads.
    pub fn of(client: &Client, tokens: usize, attention: &Attention) -> Option<Self> {
        let unit = MatrixUnit::of_planes(client.properties())?;
        Self::on(&Hardware::of(client), unit, tokens, attention.heads, attention.softcap > 0.0)
    }

    /// The most rows, which share what a cube stages, that leave every core a cube; and slices in place of the others.
    fn on(hardware: &Hardware, unit: MatrixUnit, tokens: usize, heads: Heads, capped: bool) -> Option<Self> {
        let wide = [4, 2, 1].into_iter().find(|wide| heads.len.is_multiple_of(wide * unit.tokens()))?;
        let with = |row_planes, slices| Self { heads, unit, row_planes, slices, wide, capped };
        let fits = |plan: &Self| plan.shared_bytes() <= hardware.shared_memory;
        let sums = MatrixUnit::ROWS * heads.len / unit.plane() as usize;
        if !heads.len.is_multiple_of(MatrixUnit::DEPTH) || sums > MAX_SUMS {
            return None;
        }
        let cores = hardware.cores_or_few();
        let mut fitting = [MAX_PLANES, MAX_PLANES / 2, 1].map(|planes| with(planes, 1)).into_iter().filter(fits);
        let fewest = fitting.clone().find(|plan| plan.cubes(tokens) >= cores).or(fitting.next_back())?;
        let sliced = [MAX_PLANES, 2].map(|planes| with(fewest.row_planes, planes / fewest.row_planes));
        sliced.into_iter().find(|plan| plan.slices > 1 && fits(plan)).or(Some(fewest))
    }

    /// Queries that share keys.
    fn group(&self) -> usize {
        self.heads.queries / self.heads.kv
    }

    /// Rows of a cube.
    fn rows(&self) -> usize {
        MatrixUnit::ROWS * self.row_planes
    }

    fn cubes(&self, tokens: usize) -> usize {
        (tokens * self.group()).div_ceil(self.rows()) * self.heads.kv
    }

    fn planes(&self) -> usize {
        self.row_planes * self.slices
    }

    fn units(&self) -> usize {
        self.unit.plane() as usize * self.planes()
    }

    fn step_keys(&self) -> usize {
        KEYS * self.slices
    }

    /// Of `all` items, of so many vectors each, those that a unit stages together.
    fn at_once(&self, all: usize, vectors: usize) -> usize {
        (STAGED / vectors).min(all.div_ceil(self.units())).max(1)
    }

    /// Words of halves that a lane gives an instruction of a row, which lie side by side in shared memory: a slot.
    fn words(&self) -> usize {
        self.unit.words_per_row()
    }

    /// Slots of a row of queries or keys.
    fn slots(&self) -> usize {
        self.heads.len / 2 / self.words()
    }

    /// Slots from one row to the next: lanes side by side hit different banks.
    fn row_stride(&self) -> usize {
        let padding = if self.unit == MatrixUnit::MmaSync { self.unit.lanes_per_row() } else { 1 };
        self.slots() + padding
    }

    /// Vectors of `wide` words from one pair of values to the next.
    fn pair_stride(&self) -> usize {
        (self.heads.len + VALUES_PADDING) / self.wide
    }

    /// Tiles of scores of a plane in a step.
    fn score_tiles(&self) -> usize {
        KEYS / self.unit.tokens()
    }

    /// Tiles of sums.
    fn value_tiles(&self) -> usize {
        self.heads.len / self.unit.tokens()
    }

    /// Floats of a lane's sums and state.
    fn lane_state(&self) -> usize {
        self.value_tiles() * self.unit.sums() + 2 * self.unit.rows_per_lane()
    }

    fn shared_bytes(&self) -> usize {
        let rows = (self.rows() + self.step_keys()) * self.row_stride() * self.words();
        let pairs = self.step_keys() / 2 * self.pair_stride() * self.wide;
        let merged = if self.slices > 1 { self.units() / self.slices * self.lane_state() } else { 0 };
        4 * (rows + pairs + merged)
    }
}

/// Which of a lane's rows sum `i` of it is of.
fn row_of_sum(i: usize, unit: MatrixUnit) -> usize {
    i / 2 % unit.rows_per_lane()
}

/// What the queries of `tokens` tokens, scaled and turned, take from the cache: `[tokens, queries, len]`.
pub fn attend(
    client: &Client,
    q: &Handle,
    tokens: usize,
    attention: &Attention,
    cache: &KeyValues,
    plan: Plan,
) -> Handle {
    let heads = attention.heads;
    let out = values(client, tokens * heads.queries * heads.len);
    let count = plan.cubes(tokens);
    let (count, grid) = cubes(client, count, count);
    let unit = plan.unit;
    let dim = CubeDim::new_2d(unit.plane(), plan.planes() as u32);
    let inputs = attention.seen(q, cache, grid);
    let sizes = [plan.words(), plan.words() * unit.rows_per_lane(), unit.sums(), plan.wide];
    let out_buffer = buffer(&out, 4 * plan.wide);
    // SAFETY: tokens are below `tokens`, for which `q` has queries and `out` room, and keys below the cache's capacity: the kernel
    // clamps what it reads, and stores nothing past the last token.
    unsafe { attend_tile::launch_unchecked(client, count, dim, inputs, out_buffer, tokens, plan, sizes) };
    out
}

/// Where a unit is.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
struct Position {
    lane: u32,
    /// Which of the lanes that share a row it is.
    part: usize,
    /// The first row of its plane, in its cube.
    plane_row: usize,
    /// Its plane's slice of the keys of a step.
    slice: usize,
    /// The first row of its cube.
    first_row: usize,
    /// All rows that share keys.
    rows: usize,
    /// The head of keys.
    kv: usize,
    #[cube(comptime)]
    plan: Plan,
}

#[cube]
impl Position {
    /// The token of a row of the cube, or the last.
    fn token(&self, row: usize) -> usize {
        min(self.first_row + row, self.rows - 1) / comptime!(self.plan.group())
    }

    /// The query of a row of the cube, or of the last.
    fn query(&self, row: usize) -> usize {
        let group = comptime!(self.plan.group());
        self.kv * group + min(self.first_row + row, self.rows - 1) % group
    }

    /// The queries of the rows of the cube, in a step's.
    fn queries(&self) -> Source {
        let group = comptime!(self.plan.group());
        Source {
            first: self.first_row,
            last: self.rows - 1,
            base: self.kv * group,
            group,
            stride: comptime!(self.plan.heads.queries),
        }
    }

    /// The keys or values from `first` on, before `end`, in a cache of so many tokens.
    fn keys(&self, capacity: usize, first: usize, end: usize) -> Source {
        Source { first, last: end - 1, base: self.kv * capacity, group: 1usize, stride: 1usize }
    }

    /// Row `r` of the lane's, in its cube.
    fn row(&self, #[comptime] r: usize) -> usize {
        self.plane_row + usize::cast_from(weight_row(self.lane, r, comptime!(self.plan.unit)))
    }
}

/// Rows of a buffer: from `first` on, where past `last` they are the last again. Groups of them lie side by side, each `stride`
/// rows from the one before.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
struct Source {
    first: usize,
    last: usize,
    /// Where the first group lies.
    base: usize,
    #[cube(comptime)]
    group: usize,
    #[cube(comptime)]
    stride: usize,
}

#[cube]
impl Source {
    /// Where row `i` of these lies.
    fn row(&self, i: usize) -> usize {
        let row = min(self.first + i, self.last);
        row / self.group * self.stride + self.base + row % self.group
    }
}

/// The rows of a cube.
#[cube(launch_unchecked)]
fn attend_tile<X: Size, W: Size, S: Size, V: Size>(
    inputs: &Seen,
    out: &mut [Vector<f32, V>],
    tokens: usize,
    #[comptime] plan: Plan,
    #[define(X, W, S, V)] _sizes: [usize; 4],
) {
    let cube = inputs.grid.cube();
    if cube >= inputs.grid.len {
        terminate!();
    }
    let (kv_heads, unit) = comptime!((plan.heads.kv, plan.unit));
    // The last rows see most keys, and go first.
    let tile = (inputs.grid.len - 1 - cube) / kv_heads;
    let position = Position {
        lane: UNIT_POS_X,
        part: usize::cast_from(part_of_row(UNIT_POS_X, unit)),
        plane_row: UNIT_POS_Y as usize % plan.row_planes * MatrixUnit::ROWS,
        slice: UNIT_POS_Y as usize / plan.row_planes,
        first_row: tile * comptime!(plan.rows()),
        rows: tokens * comptime!(plan.group()),
        kv: cube % kv_heads,
        plan,
    };
    let mut queries = Shared::<[Vector<u32, X>]>::new_slice(comptime!(plan.rows() * plan.row_stride()));
    let mut keys = Shared::<[Vector<u32, X>]>::new_slice(comptime!(plan.step_keys() * plan.row_stride()));
    let mut pairs = Shared::<[Vector<u32, V>]>::new_slice(comptime!(plan.step_keys() / 2 * plan.pair_stride()));
    stage_rows(&inputs.q, &mut queries, position.queries(), comptime!(plan.rows()), plan);

    let rows = comptime!(unit.rows_per_lane());
    let mut begins = Array::<usize>::new(rows);
    let mut ends = Array::<usize>::new(rows);
    let mut largest = Array::<f32>::new(rows);
    let mut sums = Array::<f32>::new(rows);
    #[unroll]
    for r in 0..rows {
        let (begin, end) = inputs.keys_of(position.token(position.row(r)));
        begins[r] = begin;
        ends[r] = end;
        largest[r] = LEAST;
        sums[r] = 0.0f32;
    }
    let mut acc = Array::<Vector<f32, S>>::new(comptime!(plan.value_tiles()));
    #[unroll]
    for tile in 0..comptime!(plan.value_tiles()) {
        acc[tile] = Vector::new(0.0f32);
    }

    let (begin, _end) = inputs.keys_of(position.token(0usize.runtime()));
    let (_begin, end) = inputs.keys_of(position.token(comptime!(plan.rows() - 1).runtime()));
    let end = min(end, inputs.capacity);
    for first in range_stepped(begin, end, comptime!(plan.step_keys())) {
        // All planes are done with the step before.
        sync_cube();
        let source = position.keys(inputs.capacity, first, end);
        stage_rows(&inputs.keys, &mut keys, source, comptime!(plan.step_keys()), plan);
        stage_values(&inputs.values, &mut pairs, source, plan);
        sync_cube();
        let mut scores = scores_of::<X, W, S>(&queries, &keys, position);
        mask(&mut scores, &begins, &ends, first, inputs.softcap, position);
        let kept = share(&mut scores, &mut largest, &mut sums, plan);
        #[unroll]
        for tile in 0..comptime!(plan.value_tiles()) {
            acc[tile] *= kept;
        }
        add_values::<X, W, S, V>(&scores, &pairs, position, &mut acc);
    }
    if comptime!(plan.slices > 1) {
        add_slices(&mut acc, &mut largest, &mut sums, position);
    }
    if position.slice == 0 {
        let mut factors = Array::<f32>::new(rows);
        #[unroll]
        for r in 0..rows {
            let query = position.query(position.row(r));
            let largest = largest[r] * comptime!(LN_2);
            let (kept, sum) = with_sink(&inputs.sinks, query, largest, sum_of_row(sums[r], unit));
            factors[r] = kept / sum;
        }
        store(&acc, out, position, &factors);
    }
}

/// Turns the scores of the step from `first` on into powers of two, those of keys that their row does not see into [`LEAST`].
#[cube]
fn mask<S: Size>(
    scores: &mut Array<Vector<f32, S>>,
    begins: &Array<usize>,
    ends: &Array<usize>,
    first: usize,
    softcap: f32,
    position: Position,
) {
    let plan = comptime!(position.plan);
    let unit = comptime!(plan.unit);
    let first = first + position.slice * KEYS;
    #[unroll]
    for tile in 0..comptime!(plan.score_tiles()) {
        let mut of_tile = scores[tile];
        #[unroll]
        for i in 0..comptime!(unit.sums()) {
            let r = comptime!(row_of_sum(i, unit));
            let key = first + comptime!(tile * unit.tokens()) + usize::cast_from(sum_token(position.lane, i, unit));
            let mut score = of_tile.extract(i);
            if comptime!(plan.capped) {
                score = capped(score, softcap);
            }
            let score = score * comptime!(LOG2_E);
            of_tile.insert(i, select(key >= begins[r] && key < ends[r], score, LEAST));
        }
        scores[tile] = of_tile;
    }
}

/// Turns scores into shares, adds them to the sums, and gives what was rescaled by for that.
#[cube]
fn share<S: Size>(
    scores: &mut Array<Vector<f32, S>>,
    largest: &mut Array<f32>,
    sums: &mut Array<f32>,
    #[comptime] plan: Plan,
) -> Vector<f32, S> {
    let (unit, tiles) = comptime!((plan.unit, plan.score_tiles()));
    let mut kept = Vector::<f32, S>::empty();
    #[unroll]
    for r in 0..comptime!(unit.rows_per_lane()) {
        let mut most = LEAST.runtime();
        #[unroll]
        for tile in 0..tiles {
            #[unroll]
            for i in 0..comptime!(unit.sums()) {
                if comptime!(row_of_sum(i, unit) == r) {
                    most = max(most, scores[tile].extract(i));
                }
            }
        }
        let most = max(largest[r], max_of_row(most, unit) - RAISED);
        let factor = exp2(largest[r] - most);
        largest[r] = most;
        sums[r] *= factor;
        kept = insert_in_row(kept, factor, r, unit);
    }
    #[unroll]
    for tile in 0..tiles {
        let mut of_tile = scores[tile];
        #[unroll]
        for i in 0..comptime!(unit.sums()) {
            let r = comptime!(row_of_sum(i, unit));
            let share = exp2(of_tile.extract(i) - largest[r]);
            of_tile.insert(i, share);
            sums[r] += share;
        }
        scores[tile] = of_tile;
    }
    kept
}

/// `values` with `value` for the sums of row `r`.
#[cube]
fn insert_in_row<S: Size>(
    values: Vector<f32, S>,
    value: f32,
    #[comptime] r: usize,
    #[comptime] unit: MatrixUnit,
) -> Vector<f32, S> {
    let mut values = values;
    #[unroll]
    for i in 0..comptime!(unit.sums()) {
        if comptime!(row_of_sum(i, unit) == r) {
            values.insert(i, value);
        }
    }
    values
}

/// Adds what all slices have summed up to the first's, one after the other.
#[cube]
fn add_slices<S: Size>(
    acc: &mut Array<Vector<f32, S>>,
    largest: &mut Array<f32>,
    sums: &mut Array<f32>,
    position: Position,
) {
    let plan = comptime!(position.plan);
    let (unit, tiles, units) = comptime!((plan.unit, plan.value_tiles(), plan.units() / plan.slices));
    let rows = comptime!(unit.rows_per_lane());
    let mut values = Shared::<[Vector<f32, S>]>::new_slice(comptime!(tiles * units));
    let mut state = Shared::<[f32]>::new_slice(comptime!(2 * rows * units));
    let of_slice = UNIT_POS as usize % units;
    #[unroll]
    for slice in 1..plan.slices {
        if position.slice == slice {
            #[unroll]
            for tile in 0..tiles {
                values[of_slice + comptime!(tile * units)] = acc[tile];
            }
            #[unroll]
            for r in 0..rows {
                state[of_slice + comptime!(2 * r * units)] = largest[r];
                state[of_slice + comptime!((2 * r + 1) * units)] = sums[r];
            }
        }
        sync_cube();
        if position.slice == 0 {
            let mut mine = Vector::<f32, S>::empty();
            let mut its = Vector::<f32, S>::empty();
            #[unroll]
            for r in 0..rows {
                let other = state[of_slice + comptime!(2 * r * units)];
                let most = max(largest[r], other);
                let (to_mine, to_its) = (exp2(largest[r] - most), exp2(other - most));
                sums[r] = sums[r] * to_mine + state[of_slice + comptime!((2 * r + 1) * units)] * to_its;
                largest[r] = most;
                mine = insert_in_row(mine, to_mine, r, unit);
                its = insert_in_row(its, to_its, r, unit);
            }
            #[unroll]
            for tile in 0..tiles {
                acc[tile] = acc[tile] * mine + values[of_slice + comptime!(tile * units)] * its;
            }
        }
        sync_cube();
    }
}

/// Stages `count` rows of queries or keys.
#[cube]
fn stage_rows<X: Size>(
    from: &[Four],
    staged: &mut [Vector<u32, X>],
    source: Source,
    #[comptime] count: usize,
    #[comptime] plan: Plan,
) {
    let (all, slots) = comptime!((count * plan.slots(), plan.slots()));
    let (units, at_once) = comptime!((plan.units(), plan.at_once(all, plan.words() / 2)));
    for of_unit in range_stepped(UNIT_POS as usize, all, units * at_once) {
        #[unroll]
        for nth in 0..at_once {
            let i = of_unit + comptime!(nth * units);
            if comptime!(all.is_multiple_of(units * at_once)) || i < all {
                let (row, slot) = (i / slots, i % slots);
                staged[row * plan.row_stride() + slot] = slot_of::<X>(from, source.row(row), slot, plan);
            }
        }
    }
}

/// Stages the values of a step, those of two keys in a word.
#[cube]
fn stage_values<V: Size>(values: &[Four], staged: &mut [Vector<u32, V>], source: Source, #[comptime] plan: Plan) {
    let (wide, fours) = comptime!((plan.wide, plan.heads.len / 4));
    let all = comptime!(plan.step_keys() / 2 * fours);
    let (units, at_once) = comptime!((plan.units(), plan.at_once(all, 2)));
    for of_unit in range_stepped(UNIT_POS as usize, all, units * at_once) {
        #[unroll]
        for nth in 0..at_once {
            let i = of_unit + comptime!(nth * units);
            if comptime!(all.is_multiple_of(units * at_once)) || i < all {
                let (pair, four) = (i / fours, i % fours);
                let low = values[source.row(2 * pair) * fours + four];
                let high = values[source.row(2 * pair + 1) * fours + four];
                #[unroll]
                for vector in 0..comptime!(4 / wide) {
                    let mut words = Vector::<u32, V>::empty();
                    #[unroll]
                    for j in 0..wide {
                        let at = comptime!(vector * wide + j);
                        let (low, high) = (within_halves(low.extract(at)), within_halves(high.extract(at)));
                        words.insert(j, half_pair(low, high));
                    }
                    staged[pair * plan.pair_stride() + four * comptime!(4 / wide) + vector] = words;
                }
            }
        }
    }
}

/// A slot of a row, as halves.
#[cube]
fn slot_of<X: Size>(from: &[Four], row: usize, slot: usize, #[comptime] plan: Plan) -> Vector<u32, X> {
    let fours = comptime!(plan.words() / 2);
    let mut words = Vector::<u32, X>::empty();
    #[unroll]
    for i in 0..fours {
        let four = from[row * comptime!(plan.heads.len / 4) + slot * fours + i];
        #[unroll]
        for j in 0..2usize {
            let (low, high) = (four.extract(comptime!(2 * j)), four.extract(comptime!(2 * j + 1)));
            words.insert(comptime!(2 * i + j), half_pair(within_halves(low), within_halves(high)));
        }
    }
    words
}

/// The products of the plane's queries with the step's keys.
#[cube]
fn scores_of<X: Size, W: Size, S: Size>(
    queries: &[Vector<u32, X>],
    keys: &[Vector<u32, X>],
    position: Position,
) -> Array<Vector<f32, S>> {
    let plan = comptime!(position.plan);
    let (unit, tiles) = comptime!((plan.unit, plan.score_tiles()));
    let (rows, words) = comptime!((unit.rows_per_lane(), plan.words()));
    let mut scores = Array::<Vector<f32, S>>::new(tiles);
    #[unroll]
    for tile in 0..tiles {
        scores[tile] = Vector::new(0.0f32);
    }
    let first = position.slice * KEYS + usize::cast_from(token_row(position.lane, unit));
    #[unroll]
    for instruction in 0..comptime!(plan.heads.len / MatrixUnit::DEPTH) {
        let slot = position.part + comptime!(instruction * unit.lanes_per_row());
        let mut operand = Vector::<u32, W>::empty();
        #[unroll]
        for r in 0..rows {
            let of_row = queries[position.row(r) * plan.row_stride() + slot];
            #[unroll]
            for word in 0..words {
                operand.insert(comptime!(word * rows + r), of_row.extract(word));
            }
        }
        #[unroll]
        for tile in 0..tiles {
            let key = first + comptime!(tile * unit.tokens());
            let of_key = keys[key * plan.row_stride() + slot];
            scores[tile] = multiply_add::<W, X, S>(operand, of_key, scores[tile], unit, FloatType::F16);
        }
    }
    scores
}

/// Adds the products of the step's shares with its values.
#[cube]
fn add_values<X: Size, W: Size, S: Size, V: Size>(
    shares: &Array<Vector<f32, S>>,
    pairs: &[Vector<u32, V>],
    position: Position,
    acc: &mut Array<Vector<f32, S>>,
) {
    let plan = comptime!(position.plan);
    let (unit, words, wide) = comptime!((plan.unit, plan.words(), plan.wide));
    let (first, row) = (position.slice * comptime!(KEYS / 2), usize::cast_from(token_row(position.lane, unit)));
    #[unroll]
    for instruction in 0..comptime!(KEYS / MatrixUnit::DEPTH) {
        let operand = operand_of::<W, S>(shares, instruction, position);
        #[unroll]
        for group in 0..comptime!(plan.value_tiles() / wide) {
            let mut loaded = Sequence::<Vector<u32, V>>::new();
            #[unroll]
            for word in 0..words {
                let pair = first + pair_of(position.part, word, unit) + comptime!(instruction * MatrixUnit::DEPTH / 2);
                loaded.push(pairs[pair * plan.pair_stride() + row + comptime!(group * unit.tokens())]);
            }
            #[unroll]
            for i in 0..wide {
                let mut x = Vector::<u32, X>::empty();
                #[unroll]
                for word in 0..words {
                    x.insert(word, loaded.index(word).extract(i));
                }
                let tile = comptime!(group * wide + i);
                acc[tile] = multiply_add::<W, X, S>(operand, x, acc[tile], unit, FloatType::F16);
            }
        }
    }
}

/// Which pair of an instruction's 16 keys the `word`th of a lane's words is of.
#[cube]
fn pair_of(part: usize, #[comptime] word: usize, #[comptime] unit: MatrixUnit) -> usize {
    if comptime!(unit == MatrixUnit::MmaSync) {
        // A word is of a tile of eight keys.
        part + comptime!(4 * word)
    } else {
        part * comptime!(unit.words_per_row()) + word
    }
}

/// The lane's operand of the step's `instruction`th 16 shares.
#[cube]
fn operand_of<W: Size, S: Size>(
    shares: &Array<Vector<f32, S>>,
    #[comptime] instruction: usize,
    position: Position,
) -> Vector<u32, W> {
    let unit = comptime!(position.plan.unit);
    let (rows, words) = comptime!((unit.rows_per_lane(), unit.words_per_row()));
    let mut operand = Vector::<u32, W>::empty();
    if comptime!(unit == MatrixUnit::WmmaRdna3) {
        // A half plane has every other key of all rows, and needs all.
        let has_even = position.lane < 16;
        #[unroll]
        for word in 0..words {
            let mine = shares[instruction].extract(word);
            let other = plane_shuffle_xor(mine, 16u32);
            operand.insert(word, half_pair(select(has_even, mine, other), select(has_even, other, mine)));
        }
    } else {
        // NVIDIA's tiles of scores are half as deep as an instruction.
        let tiles = comptime!(MatrixUnit::DEPTH / unit.tokens());
        #[unroll]
        for word in 0..words {
            let tile = comptime!(instruction * tiles + word % tiles);
            #[unroll]
            for r in 0..rows {
                let first = comptime!(2 * (r + word / tiles));
                let (low, high) = (shares[tile].extract(first), shares[tile].extract(comptime!(first + 1)));
                operand.insert(comptime!(word * rows + r), half_pair(low, high));
            }
        }
    }
    operand
}

/// Stores the plane's rows, each times its factor.
#[cube]
fn store<S: Size, V: Size>(
    acc: &Array<Vector<f32, S>>,
    out: &mut [Vector<f32, V>],
    position: Position,
    factors: &Array<f32>,
) {
    let plan = comptime!(position.plan);
    let (unit, wide) = comptime!((plan.unit, plan.wide));
    #[unroll]
    for i in 0..comptime!(unit.sums()) {
        let r = comptime!(row_of_sum(i, unit));
        let row = position.row(r);
        if position.first_row + row < position.rows {
            let at = position.queries().row(row) * comptime!(plan.heads.len / wide)
                + usize::cast_from(sum_token(position.lane, i, unit));
            #[unroll]
            for group in 0..comptime!(plan.value_tiles() / wide) {
                let mut values = Vector::<f32, V>::empty();
                #[unroll]
                for j in 0..wide {
                    values.insert(j, acc[comptime!(group * wide + j)].extract(i) * factors[r]);
                }
                out[at + comptime!(group * unit.tokens())] = values;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::ops::Range;

    use super::*;

    fn plan(unit: MatrixUnit, shared_memory: usize, tokens: usize, heads: Heads) -> Option<Plan> {
        let hardware = Hardware { plane: Some(unit.plane()), ..Hardware::sample(132, shared_memory) };
        Plan::on(&hardware, unit, tokens, heads, false)
    }

    const LLAMA: Heads = Heads { queries: 32, kv: 8, len: 128 };
    const GEMMA: Heads = Heads { queries: 4, kv: 1, len: 256 };

    #[test]
    fn a_cube_fits_the_device() {
        for unit in MatrixUnit::OF_PLANES {
            for heads in [LLAMA, GEMMA, Heads { queries: 3, kv: 1, len: 80 }, Heads { queries: 8, kv: 8, len: 16 }] {
                for tokens in [9, 64, 512] {
                    let plan = plan(unit, 64 << 10, tokens, heads).unwrap();
                    assert!(plan.shared_bytes() <= 64 << 10 && plan.planes() <= MAX_PLANES, "{plan:?}");
                    assert_eq!(heads.len % (plan.wide * unit.tokens()), 0, "{plan:?}");
                }
            }
        }
    }

    #[test]
    fn few_rows_are_sliced() {
        let planes = |tokens, heads| {
            let plan = plan(MatrixUnit::MmaSync, 227 << 10, tokens, heads).unwrap();
            (plan.row_planes, plan.slices)
        };
        assert_eq!([planes(512, LLAMA), planes(256, LLAMA), planes(128, LLAMA)], [(4, 1), (2, 2), (1, 4)]);
        assert_eq!([planes(2048, GEMMA), planes(512, GEMMA)], [(2, 2), (1, 4)]);
    }

    #[test]
    fn heads_that_are_no_whole_tiles_have_no_plan() {
        for len in [20, 24, 512] {
            assert_eq!(plan(MatrixUnit::MmaSync, 227 << 10, 512, Heads { len, ..LLAMA }), None, "{len}");
        }
    }

    /// Shared memory serves a word to each of 32 lanes at once, or 16 bytes to each of eight, where all are in different banks of 4
    /// bytes.
    #[test]
    fn lanes_hit_different_banks() {
        let unit = MatrixUnit::MmaSync;
        for heads in [LLAMA, GEMMA] {
            let plan = plan(unit, 227 << 10, 512, heads).unwrap();
            let banks = |lanes: Range<usize>, bytes: usize, at: &dyn Fn(usize) -> usize| {
                let of_lane = |lane| (0..bytes / 4).map(move |word| (at(lane) * bytes / 4 + word) % 32);
                lanes.flat_map(of_lane).collect::<BTreeSet<_>>().len()
            };
            // Of a key, lanes side by side have slots side by side; of a pair, the values of a column.
            assert_eq!(banks(0..16, 8, &|lane| lane / 4 * plan.row_stride() + lane % 4), 32);
            assert_eq!(banks(0..8, 16, &|lane| lane % 4 * plan.pair_stride() + lane / 4), 32);
        }
    }
}
