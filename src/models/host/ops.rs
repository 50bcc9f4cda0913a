//! What a decoder computes between its products, on the host: that of [`decoder`](crate::kernels::decoder), in the same words.

use rayon::prelude::*;

use crate::kernels::decoder::attention::Attention;
use crate::kernels::decoder::elementwise::{Activation, Map};
use crate::kernels::decoder::experts::Choice;
use crate::kernels::decoder::norm::RmsNorm;
use crate::kernels::decoder::rotary::{Pairs, Rotary, Turns};
use crate::models::values::Values;

/// Multiplications from which on threads share a task: waking them takes as long as some ten thousand.
const SHARED: usize = 1 << 16;

/// Values that a thread takes at a time.
const PART: usize = 4096;

/// Sums that are added up side by side, so that the compiler has vectors of them.
const LANES: usize = 16;

/// The keys and values of a layer, `[kv heads, capacity, len]` each.
#[derive(Debug)]
pub struct KeyValues {
    pub keys: Vec<f32>,
    pub values: Vec<f32>,
    pub capacity: usize,
}

pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    let mut sums = [0.0; LANES];
    for (a, b) in a.zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// What makes the mean of the squares of `x` 1.
fn inverse_root(x: &[f32], epsilon: f32) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + epsilon).sqrt()
}

fn norm_into(out: &mut [f32], x: &[f32], by: &RmsNorm<Values>) {
    let factor = inverse_root(x, by.epsilon);
    for ((out, x), weight) in out.iter_mut().zip(x).zip(by.weight.slice()) {
        *out = x * factor * weight;
    }
}

/// The norm of each row.
pub fn norm(x: &[f32], by: &RmsNorm<Values>) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    out.chunks_exact_mut(by.width).zip(x.chunks_exact(by.width)).for_each(|(out, x)| norm_into(out, x, by));
    out
}

/// `x + y`, or `x` and the norm `after` of `y`, and the norm of that sum.
pub fn add_norm([x, y]: [&[f32]; 2], after: Option<&RmsNorm<Values>>, by: &RmsNorm<Values>) -> (Vec<f32>, Vec<f32>) {
    let mut sum = match after {
        Some(after) => norm(y, after),
        None => y.to_vec(),
    };
    sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
    let normed = norm(&sum, by);
    (sum, normed)
}

/// Turns the queries of tokens that begin at `position`, which it gives, and their keys, which it stores with the values.
pub fn turn_and_store(
    [q, k, v]: [&[f32]; 3],
    position: usize,
    rotary: &Rotary<Values>,
    turns: &Turns<Vec<f32>>,
    cache: &mut KeyValues,
) -> Vec<f32> {
    let heads = rotary.heads;
    let (len, queries, kv) = (heads.len, heads.queries * heads.len, heads.kv * heads.len);
    let bias = rotary.bias.as_ref().map(Values::slice);
    let add_bias = |head: &mut [f32], first: usize| {
        if let Some(bias) = bias {
            head.iter_mut().zip(&bias[first..]).for_each(|(value, bias)| *value += bias);
        }
    };
    let norm = |head: &mut [f32], first: usize| {
        if let Some((norms, epsilon)) = &rotary.norms {
            let factor = inverse_root(head, *epsilon);
            head.iter_mut().zip(&norms.slice()[first..]).for_each(|(value, weight)| *value *= factor * weight);
        }
    };
    let mut out = q.to_vec();
    for (token, out) in out.chunks_exact_mut(queries).enumerate() {
        for (i, head) in out.chunks_exact_mut(len).enumerate() {
            add_bias(head, i * len);
            norm(head, 0);
            turns.turn(head, position + token);
            head.iter_mut().for_each(|value| *value *= rotary.scale);
        }
    }
    for (token, (k, v)) in k.chunks_exact(kv).zip(v.chunks_exact(kv)).enumerate() {
        for (i, (k, v)) in k.chunks_exact(len).zip(v.chunks_exact(len)).enumerate() {
            let to = (i * cache.capacity + position + token) * len;
            let (key, value) = (&mut cache.keys[to..to + len], &mut cache.values[to..to + len]);
            key.copy_from_slice(k);
            add_bias(key, queries + i * len);
            norm(key, len);
            turns.turn(key, position + token);
            value.copy_from_slice(v);
            add_bias(value, queries + kv + i * len);
        }
    }
    out
}

impl Turns<Vec<f32>> {
    fn turn(&self, head: &mut [f32], position: usize) {
        let count = self.count;
        let (cosines, sines) = self.table[2 * position * count..2 * (position + 1) * count].split_at(count);
        for (pair, (cos, sin)) in cosines.iter().zip(sines).enumerate() {
            let (first, second) = match self.pairs {
                Pairs::Neighbours => (2 * pair, 2 * pair + 1),
                Pairs::Halves => (pair, pair + count),
            };
            let (a, b) = (head[first], head[second]);
            (head[first], head[second]) = (a * cos - b * sin, a * sin + b * cos);
        }
    }
}

/// What the queries of tokens that begin at `position`, scaled and turned, take from the cache.
pub fn attend(q: &[f32], position: usize, attention: &Attention<Values>, cache: &KeyValues) -> Vec<f32> {
    let heads = attention.heads;
    let group = heads.queries / heads.kv * heads.len;
    let mut out = vec![0.0; q.len()];
    // Of a token the queries that share keys.
    let see = |(i, (out, q)): (usize, (&mut [f32], &[f32]))| {
        let (token, kv) = (i / heads.kv, i % heads.kv);
        let end = position + token + 1;
        let begin = if attention.window > 0 { end.saturating_sub(attention.window) } else { 0 };
        let keys = (kv * cache.capacity + begin) * heads.len..(kv * cache.capacity + end) * heads.len;
        let (keys, values) = (&cache.keys[keys.clone()], &cache.values[keys]);
        for (g, (out, q)) in out.chunks_exact_mut(heads.len).zip(q.chunks_exact(heads.len)).enumerate() {
            let query = kv * (heads.queries / heads.kv) + g;
            let sink = attention.sinks.as_ref().map(|sinks| sinks.slice()[query]);
            attend_by_query(out, q, [keys, values], attention.softcap, sink);
        }
    };
    let work = (out.chunks_exact_mut(group)).zip(q.chunks_exact(group)).enumerate();
    if q.len() * (position + 1) < SHARED {
        work.for_each(see);
    } else {
        out.par_chunks_exact_mut(group).zip(q.par_chunks_exact(group)).enumerate().for_each(see);
    }
    out
}

fn attend_by_query(out: &mut [f32], q: &[f32], [keys, values]: [&[f32]; 2], softcap: f32, sink: Option<f32>) {
    let score = |key: &[f32]| {
        let score = dot(q, key);
        if softcap > 0.0 { softcap * (score / softcap).tanh() } else { score }
    };
    let mut shares: Vec<f32> = keys.chunks_exact(q.len()).map(score).collect();
    // NaN is no maximum, but its own share below.
    let most = shares.iter().copied().chain(sink).fold(f32::NEG_INFINITY, f32::max);
    shares.iter_mut().for_each(|share| *share = (*share - most).exp());
    let sum = shares.iter().sum::<f32>() + sink.map_or(0.0, |sink| (sink - most).exp());
    for (share, value) in shares.iter().zip(values.chunks_exact(q.len())) {
        let share = share / sum;
        out.iter_mut().zip(value).for_each(|(out, value)| *out += share * value);
    }
}

/// `activation(gate) * up`.
pub fn gate([gate, up]: [&[f32]; 2], activation: Activation) -> Vec<f32> {
    each(gate.len(), |i| {
        let (gate, up) = (gate[i], up[i]);
        match activation {
            Activation::Silu => gate * sigmoid(gate) * up,
            Activation::Gelu => gate * sigmoid(1.595_769 * (gate + 0.044_715 * gate * gate * gate)) * up,
            Activation::ClampedSwiglu => {
                let gate = gate.min(7.0);
                gate * sigmoid(1.702 * gate) * (up.clamp(-7.0, 7.0) + 1.0)
            }
        }
    })
}

/// `count` values, by threads where there are many.
fn each(count: usize, of: impl Fn(usize) -> f32 + Sync + Send) -> Vec<f32> {
    if count < SHARED {
        return (0..count).map(of).collect();
    }
    (0..count).into_par_iter().with_min_len(PART).map(of).collect()
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// A function of each value.
pub fn map(x: &[f32], function: Map, parameter: f32) -> Vec<f32> {
    each(x.len(), |i| match function {
        Map::Scale => x[i] * parameter,
        Map::Softcap => parameter * (x[i] / parameter).tanh(),
    })
}

/// The index of the largest value, the first of equals, and the value. NaN counts as infinity.
pub fn largest(x: &[f32]) -> (u32, f32) {
    let number = |x: f32| if x.is_nan() { f32::INFINITY } else { x };
    let first = (0, f32::NEG_INFINITY);
    x.iter().enumerate().fold(first, |best, (i, &x)| if number(x) > best.1 { (i as u32, number(x)) } else { best })
}

/// For each row of logits the experts of the largest ones, the first of equals first, and the softmax over those chosen. NaN
/// counts as infinity.
pub fn choose(logits: &[f32], choice: Choice) -> (Vec<u32>, Vec<f32>) {
    let Choice { experts, slots, scale } = choice;
    let (mut ids, mut weights) = (Vec::new(), Vec::new());
    for logits in logits.chunks_exact(experts) {
        let number = |id: u32| if logits[id as usize].is_nan() { f32::INFINITY } else { logits[id as usize] };
        let mut order: Vec<u32> = (0..experts as u32).collect();
        order.sort_by(|&a, &b| number(b).total_cmp(&number(a)));
        let exponentials = order[..slots].iter().map(|&id| (number(id) - number(order[0])).exp());
        let exponentials: Vec<f32> = exponentials.collect();
        let sum: f32 = exponentials.iter().sum();
        ids.extend(&order[..slots]);
        weights.extend(exponentials.iter().map(|x| x * scale / sum));
    }
    (ids, weights)
}

/// The sum of each token's rows of `width` values times their weights, of which a token has `slots`.
pub fn mix(rows: &[f32], weights: &[f32], slots: usize, width: usize) -> Vec<f32> {
    let mut out = vec![0.0; weights.len() / slots * width];
    let of_tokens = rows.chunks_exact(slots * width).zip(weights.chunks_exact(slots));
    for (out, (rows, weights)) in out.chunks_exact_mut(width).zip(of_tokens) {
        for (row, weight) in rows.chunks_exact(width).zip(weights) {
            out.iter_mut().zip(row).for_each(|(out, value)| *out += weight * value);
        }
    }
    out
}

/// Adds the squares of rows to the sums of their columns.
pub fn add_squares<'a>(sums: &mut [f32], rows: impl Iterator<Item = &'a [f32]>) {
    for row in rows {
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x * x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_is_the_first_of_equals_and_nan_counts_as_infinity() {
        assert_eq!(largest(&[1.0, 3.0, 3.0]), (1, 3.0));
        assert_eq!(largest(&[1.0, f32::NAN, f32::INFINITY]), (1, f32::INFINITY));
        let choice = Choice { experts: 3, slots: 2, scale: 2.0 };
        assert_eq!(choose(&[1.0, 5.0, 5.0], choice), (vec![1, 2], vec![1.0, 1.0]));
    }

    #[test]
    fn products_have_all_their_terms() {
        for len in [0, 1, 15, 16, 17, 64, 100] {
            let values: Vec<f32> = (0..len).map(|i| i as f32).collect();
            // Whole numbers below 2^24 are exact.
            assert_eq!(dot(&values, &values), (0..len).map(|i| (i * i) as f32).sum::<f32>());
        }
    }
}
