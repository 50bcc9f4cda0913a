//! Attention by lanes, in f32: a plane's groups of lanes take key after key for a few queries.
//!
//! ```text
//! for each token, for each block of queries that share keys, for each part of the keys it sees:
//!     for each key:
//!         score = query . key
//!         sum, seen = sum and seen, rescaled to the largest score so far, and exp(score - largest) of 1 and of the value
//! for each token and query: the parts' seen and sums, rescaled to the largest score of all
//! ```
//!
//! The parts are those of flash decoding: they give every core work where tokens are few.

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::{Attention, Four, LEAST, Seen, Sinks, capped, with_sink};
use crate::kernels::decoder::rotary::{Heads, KeyValues};
use crate::kernels::decoder::team::{Team, row_of, unit_of};
use crate::kernels::decoder::values;
use crate::kernels::hardware::FEW_CORES;
use crate::kernels::lanes::sum_of_lanes;
use crate::kernels::launch::{Grid, buffer};

/// The most queries that read a key together.
const MAX_BLOCK: usize = 8;
/// The most values of queries and sums that a lane may hold, each.
const MAX_HELD: usize = 32;
/// The most parts of the keys.
const MAX_PARTS: usize = 64;
/// Planes a core, to hide the latency of loads.
const PLANES_PER_CORE: usize = 8;

/// What the queries of `tokens` tokens, scaled and turned, take from the cache: `[tokens, queries, len]`.
pub fn attend(client: &Client, q: &Handle, tokens: usize, attention: &Attention, cache: &KeyValues) -> Handle {
    let heads = attention.heads;
    let plan = Plan::of(client, heads, attention.softcap > 0.0);
    let blocks = tokens * heads.queries / plan.block;
    let parts = parts(client, plan.team, blocks);
    let (count, dim, grid) = plan.team.launch(client, blocks * parts);
    let out = values(client, tokens * heads.queries * heads.len * parts);
    let state = values(client, tokens * heads.queries * parts * 2);
    let inputs = attention.seen(q, cache, grid);
    let whole = parts == 1;
    attend_part::launch(client, count, dim, inputs, buffer(&out, 16), buffer(&state, 4), parts, whole, plan);
    if whole {
        return out;
    }
    let merged = values(client, tokens * heads.queries * heads.len);
    let (count, dim, grid) = plan.team.launch(client, tokens * heads.queries);
    let (from, state) = (buffer(&out, 4), buffer(&state, 4));
    let seen = PartsLaunch::new(from, state, parts, attention.sinks().into(), grid);
    merge_parts::launch(client, count, dim, seen, buffer(&merged, 4), heads, plan.team);
    merged
}

/// In how many parts the keys of `blocks` blocks of queries are seen, so that every core has work.
fn parts(client: &Client, team: Team, blocks: usize) -> usize {
    let hardware = &client.properties().hardware;
    let wanted = match hardware.num_cpu_cores {
        Some(cores) => cores as usize,
        None if team.units() == 1 => 1,
        None => hardware.num_streaming_multiprocessors.unwrap_or(FEW_CORES) as usize * PLANES_PER_CORE,
    };
    (wanted / blocks.max(1)).clamp(1, MAX_PARTS)
}

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Plan {
    heads: Heads,
    /// Queries that read a key together.
    block: usize,
    /// Lanes that share a key.
    lanes: u32,
    capped: bool,
    team: Team,
}

impl Plan {
    fn of(client: &Client, heads: Heads, capped: bool) -> Self {
        let team = Team::plane(client);
        let group = heads.queries / heads.kv;
        let block = (1..=MAX_BLOCK).rev().find(|&block| group.is_multiple_of(block)).unwrap_or(1);
        let fours = heads.len / 4;
        // As few as hold a block's values in registers: each key takes a shuffle for each doubling.
        let mut lanes = 1;
        while lanes < team.lanes && fours.is_multiple_of(2 * lanes as usize) {
            if block * heads.len / lanes as usize <= MAX_HELD && lanes >= 4 {
                break;
            }
            lanes *= 2;
        }
        Self { heads, block, lanes, capped, team }
    }

    /// Vectors of a head that a lane holds.
    fn fours(&self) -> usize {
        self.heads.len / 4 / self.lanes as usize
    }
}

/// A part of the keys that a block of queries sees: a plane's work, in which groups of lanes take key after key.
#[cube(launch)]
fn attend_part(
    inputs: &Seen,
    out: &mut [Four],
    state: &mut [f32],
    parts: usize,
    #[comptime] whole: bool,
    #[comptime] plan: Plan,
) {
    let row = row_of(&inputs.grid, plan.team);
    if row >= inputs.grid.len {
        terminate!();
    }
    let (block, fours) = comptime!((plan.block, plan.fours()));
    let (queries, len4) = comptime!((plan.heads.queries, plan.heads.len / 4));
    let blocks = comptime!(queries / block);
    let lanes = comptime!(plan.lanes as usize);
    let slots = comptime!((plan.team.lanes / plan.lanes) as usize);

    let (part, of_token) = (row % parts, row / parts);
    let (token, first_query) = (of_token / blocks, of_token % blocks * block);
    let kv = first_query / comptime!(queries / plan.heads.kv);
    let unit = unit_of(plan.team);
    let (lane, slot) = (unit % lanes, unit / lanes);

    let (begin, end) = inputs.keys_of(token);
    let share = (end - begin).div_ceil(parts);
    let first = begin + part * share;
    let last = min(first + share, end);

    let mut q = Array::<Four>::new(comptime!(block * fours));
    let mut acc = Array::<Four>::new(comptime!(block * fours));
    let mut largest = Array::<f32>::new(block);
    let mut sums = Array::<f32>::new(block);
    let from = (token * queries + first_query) * len4 + lane;
    #[unroll]
    for g in 0..block {
        #[unroll]
        for i in 0..fours {
            q[comptime!(g * fours + i)] = inputs.q[from + comptime!(g * len4 + i * lanes)];
            acc[comptime!(g * fours + i)] = Four::new(0.0f32);
        }
        largest[g] = LEAST;
        sums[g] = 0.0f32;
    }

    // All lanes go through all steps, for their shuffles: those past the end see a key again and leave it out.
    let mut next = first;
    while next < last {
        let key = next + slot;
        let inside = key < last;
        let at = (kv * inputs.capacity + select(inside, key, first)) * len4 + lane;
        let mut scores = Array::<f32>::new(block);
        #[unroll]
        for g in 0..block {
            scores[g] = 0.0f32;
        }
        #[unroll]
        for i in 0..fours {
            let k = inputs.keys[at + comptime!(i * lanes)];
            #[unroll]
            for g in 0..block {
                let product = q[comptime!(g * fours + i)] * k;
                scores[g] += product.extract(0usize)
                    + product.extract(1usize)
                    + product.extract(2usize)
                    + product.extract(3usize);
            }
        }
        let mut kept = Array::<f32>::new(block);
        let mut added = Array::<f32>::new(block);
        #[unroll]
        for g in 0..block {
            let mut score = sum_of_lanes(scores[g], plan.lanes, 1u32);
            if comptime!(plan.capped) {
                score = capped(score, inputs.softcap);
            }
            let most = max(largest[g], select(inside, score, largest[g]));
            kept[g] = f32::exp(largest[g] - most);
            added[g] = select(inside, f32::exp(score - most), 0.0f32);
            sums[g] = sums[g] * kept[g] + added[g];
            largest[g] = most;
        }
        #[unroll]
        for i in 0..fours {
            let v = inputs.values[at + comptime!(i * lanes)];
            #[unroll]
            for g in 0..block {
                let at = comptime!(g * fours + i);
                acc[at] = acc[at] * Four::new(kept[g]) + v * Four::new(added[g]);
            }
        }
        next += slots;
    }

    // The lanes of other keys hold other sums of the same queries.
    #[unroll]
    for step in 0..comptime!(slots.ilog2()) {
        let distance = comptime!(plan.lanes << step);
        #[unroll]
        for g in 0..block {
            let other = plane_shuffle_xor(largest[g], distance);
            let most = max(largest[g], other);
            let (mine, its) = (f32::exp(largest[g] - most), f32::exp(other - most));
            sums[g] = sums[g] * mine + plane_shuffle_xor(sums[g], distance) * its;
            largest[g] = most;
            #[unroll]
            for i in 0..fours {
                let at = comptime!(g * fours + i);
                let value = acc[at];
                let mut merged = Four::new(0.0f32);
                #[unroll]
                for j in 0..4usize {
                    let mine = value.extract(j) * mine;
                    merged.insert(j, mine + plane_shuffle_xor(value.extract(j), distance) * its);
                }
                acc[at] = merged;
            }
        }
    }

    if slot == 0 {
        #[unroll]
        for g in 0..block {
            let query = token * queries + first_query + g;
            let row = query * parts + part;
            let mut factor = 1.0f32;
            if comptime!(whole) {
                let (kept, sum) = with_sink(&inputs.sinks, first_query + g, largest[g], sums[g]);
                factor = kept / sum;
            } else if lane == 0 {
                state[2 * row] = largest[g];
                state[2 * row + 1] = sums[g];
            }
            #[unroll]
            for i in 0..fours {
                out[row * len4 + lane + comptime!(i * lanes)] = acc[comptime!(g * fours + i)] * Four::new(factor);
            }
        }
    }
}

/// What was seen in parts, and the state of each.
#[derive(CubeType, CubeLaunch)]
struct Parts {
    seen: Box<[f32]>,
    state: Box<[f32]>,
    parts: usize,
    sinks: ComptimeOption<Sinks>,
    grid: Grid,
}

/// The parts of a query as one.
#[cube(launch)]
fn merge_parts(of: &Parts, out: &mut [f32], #[comptime] heads: Heads, #[comptime] team: Team) {
    let len = comptime!(heads.len);
    let query = row_of(&of.grid, team);
    if query >= of.grid.len {
        terminate!();
    }
    let first = query * of.parts;
    let mut most = LEAST.runtime();
    for part in 0..of.parts {
        most = max(most, of.state[2 * (first + part)]);
    }
    let mut sum = 0.0f32;
    for part in 0..of.parts {
        sum += of.state[2 * (first + part) + 1] * f32::exp(of.state[2 * (first + part)] - most);
    }
    let (kept, sum) = with_sink(&of.sinks, query % comptime!(heads.queries), most, sum);
    for i in range_stepped(unit_of(team), len, comptime!(team.units() as usize)) {
        let mut value = 0.0f32;
        for part in 0..of.parts {
            value += of.seen[(first + part) * len + i] * f32::exp(of.state[2 * (first + part)] - most);
        }
        out[query * len + i] = value * kept / sum;
    }
}
