//! Rotary position embeddings (Su et al., 2021) of queries and keys, with the norms of heads before them; keys and values go
//! to the cache.

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::norm::inverse_root;
use super::team::{Team, row_of, sum_of_team, unit_of};
use super::values;
use crate::kernels::launch::{Grid, buffer};

/// Which values of a head make a pair that is turned together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pairs {
    /// Neighbours: 0 and 1, 2 and 3, as LLaMA's weights are converted to.
    Neighbours,
    /// Value `i` of the first half of what is turned and value `i` of the second, as GPT-NeoX has it.
    Halves,
}

/// Heads of queries, and of the keys and values that groups of them share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Heads {
    /// Heads of queries.
    pub queries: usize,
    /// Heads of keys and of values.
    pub kv: usize,
    /// Values of a head, a multiple of 4.
    pub len: usize,
}

/// Cosines and sines of every position.
#[derive(Clone, Debug)]
pub struct Turns<V = Handle> {
    /// Which values make a pair.
    pub pairs: Pairs,
    /// How many pairs a head has; what is past them is not turned.
    pub count: usize,
    /// `[positions, 2, count]`: the cosines and then the sines of a position.
    pub table: V,
}

/// The keys and values of a layer, `[kv heads, capacity, len]` each.
#[derive(Clone, Debug)]
pub struct KeyValues {
    /// The keys.
    pub keys: Handle,
    /// The values.
    pub values: Handle,
    /// Tokens of a head.
    pub capacity: usize,
    /// The position of the first token that is being added, one i32.
    pub position: Handle,
}

/// What queries and keys go through.
#[derive(Clone, Debug)]
pub struct Rotary<V = Handle> {
    /// The heads.
    pub heads: Heads,
    /// Biases of queries, keys and values, one after the other.
    pub bias: Option<V>,
    /// The weights of the norms of a head's queries and of its keys, one after the other, and their epsilon.
    pub norms: Option<(V, f32)>,
    /// What queries are multiplied by.
    pub scale: f32,
}

/// Turns the queries of `tokens` tokens, which it gives, and their keys, which it stores with the values.
pub fn turn_and_store(
    client: &Client,
    [q, k, v]: [&Handle; 3],
    tokens: usize,
    rotary: &Rotary,
    turns: &Turns,
    cache: &KeyValues,
) -> Handle {
    let Rotary { heads, bias, norms, scale } = rotary;
    let team = Team::plane(client);
    let (count, dim, grid) = team.launch(client, tokens * (heads.queries + 2 * heads.kv));
    let out = values(client, tokens * heads.queries * heads.len);
    let has_norms = norms.is_some();
    let (norms, epsilon) = norms.as_ref().map_or((&turns.table, 0.0), |(norms, epsilon)| (norms, *epsilon));
    let inputs = ProjectedLaunch::new(
        buffer(q, 4),
        buffer(k, 4),
        buffer(v, 4),
        buffer(bias.as_ref().unwrap_or(&turns.table), 4),
        buffer(norms, 4),
        buffer(&turns.table, 4),
        buffer(&cache.position, 4),
        cache.capacity,
        epsilon,
        *scale,
        grid,
    );
    let plan =
        Plan { heads: *heads, pairs: turns.pairs, count: turns.count, has_bias: bias.is_some(), has_norms, team };
    let (keys, cached) = (buffer(&cache.keys, 4), buffer(&cache.values, 4));
    turn_heads::launch(client, count, dim, inputs, buffer(&out, 4), keys, cached, plan);
    out
}

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Plan {
    heads: Heads,
    pairs: Pairs,
    count: usize,
    has_bias: bool,
    has_norms: bool,
    team: Team,
}

#[derive(CubeType, CubeLaunch)]
struct Projected {
    q: Box<[f32]>,
    k: Box<[f32]>,
    v: Box<[f32]>,
    bias: Box<[f32]>,
    norms: Box<[f32]>,
    table: Box<[f32]>,
    position: Box<[i32]>,
    capacity: usize,
    epsilon: f32,
    scale: f32,
    grid: Grid,
}

/// A head of a token, from where and to where it goes: indices of its first value.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
struct Head {
    from: usize,
    to: usize,
    bias: usize,
    norm: usize,
    /// The cosines of its position.
    turn: usize,
    scale: f32,
}

/// A head of a token is a team's: those of queries first, then those of keys and of values.
#[cube(launch)]
fn turn_heads(inputs: &Projected, out: &mut [f32], keys: &mut [f32], values: &mut [f32], #[comptime] plan: Plan) {
    let row = row_of(&inputs.grid, plan.team);
    if row >= inputs.grid.len {
        terminate!();
    }
    let (queries, kv, len) = comptime!((plan.heads.queries, plan.heads.kv, plan.heads.len));
    let heads = comptime!(queries + 2 * kv);
    let (token, index) = (row / heads, row % heads);
    let position = usize::cast_from(inputs.position[0]) + token;
    let (bias, turn) = (index * len, position * comptime!(2 * plan.count));
    if index < queries {
        let from = (token * queries + index) * len;
        let head = Head { from, to: from, bias, norm: 0usize.runtime(), turn, scale: inputs.scale };
        turn_head(&inputs.q, inputs, &head, out, plan);
    } else if index < comptime!(queries + kv) {
        let index = index - queries;
        let (from, to) = ((token * kv + index) * len, (index * inputs.capacity + position) * len);
        let head = Head { from, to, bias, norm: len.runtime(), turn, scale: 1.0f32.runtime() };
        turn_head(&inputs.k, inputs, &head, keys, plan);
    } else {
        let index = index - comptime!(queries + kv);
        let (from, to) = ((token * kv + index) * len, (index * inputs.capacity + position) * len);
        let head = Head { from, to, bias, norm: 0usize.runtime(), turn, scale: 1.0f32.runtime() };
        for i in range_stepped(unit_of(plan.team), len, comptime!(plan.team.units() as usize)) {
            values[to + i] = biased(&inputs.v, inputs, &head, i, plan);
        }
    }
}

#[cube]
fn turn_head(x: &[f32], inputs: &Projected, head: &Head, out: &mut [f32], #[comptime] plan: Plan) {
    let unit = unit_of(plan.team);
    let units = comptime!(plan.team.units() as usize);
    let (len, pairs) = comptime!((plan.heads.len, plan.count));
    let mut factor = head.scale;
    if comptime!(plan.has_norms) {
        let mut squares = 0.0f32;
        for i in range_stepped(unit, len, units) {
            let value = biased(x, inputs, head, i, plan);
            squares += value * value;
        }
        factor *= inverse_root(sum_of_team(squares, plan.team), len, inputs.epsilon);
    }
    for pair in range_stepped(unit, pairs, units) {
        let (first, second) = match comptime!(plan.pairs) {
            Pairs::Neighbours => (2 * pair, 2 * pair + 1),
            Pairs::Halves => (pair, pair + pairs),
        };
        let a = normed(x, inputs, head, first, plan) * factor;
        let b = normed(x, inputs, head, second, plan) * factor;
        let cos = inputs.table[head.turn + pair];
        let sin = inputs.table[head.turn + pairs + pair];
        out[head.to + first] = a * cos - b * sin;
        out[head.to + second] = a * sin + b * cos;
    }
    if comptime!(2 * pairs < len) {
        for i in range_stepped(comptime!(2 * pairs) + unit, len, units) {
            out[head.to + i] = normed(x, inputs, head, i, plan) * factor;
        }
    }
}

/// Value `i` of a head, with its bias.
#[cube]
fn biased(x: &[f32], inputs: &Projected, head: &Head, i: usize, #[comptime] plan: Plan) -> f32 {
    let mut value = x[head.from + i];
    if comptime!(plan.has_bias) {
        value += inputs.bias[head.bias + i];
    }
    value
}

/// Value `i` of a head, with its bias and times the weight of its norm.
#[cube]
fn normed(x: &[f32], inputs: &Projected, head: &Head, i: usize, #[comptime] plan: Plan) -> f32 {
    let mut value = biased(x, inputs, head, i, plan);
    if comptime!(plan.has_norms) {
        value *= inputs.norms[head.norm + i];
    }
    value
}
