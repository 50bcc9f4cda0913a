//! Attention against its formula in f64.

use cube_gguf::CubeDevice;
use cube_gguf::internals::{Attention, Heads, KeyValues, attend};
use cubecl::client::Client;
use cubecl::server::Handle;
use libtest_mimic::Trial;

use crate::fixtures::{compares, noise};
use crate::summary;

/// A step: tokens that are added to those in the cache, and how they see them.
struct Case {
    heads: Heads,
    tokens: usize,
    /// Tokens in the cache before.
    before: usize,
    window: usize,
    softcap: f32,
    has_sinks: bool,
}

const PLAIN: Case = Case {
    heads: Heads { queries: 4, kv: 2, len: 64 },
    tokens: 1,
    before: 0,
    window: 0,
    softcap: 0.0,
    has_sinks: false,
};

/// Tokens past the last that the cache has room for, which no kernel may see.
const ROOM: usize = 3;

impl Case {
    /// Values that are halves: matrix units round nothing but the shares.
    fn values(&self, seed: u64, count: usize, most: f32) -> Vec<f32> {
        noise(seed, count).into_iter().map(|value| (64.0 * value).round() / 64.0 * most).collect()
    }

    fn assert_on(&self, device: &CubeDevice) {
        let Self { heads: Heads { queries, kv, len }, tokens, before, .. } = *self;
        let client = device.client();
        let (keys_count, capacity) = (before + tokens, before + tokens + ROOM);
        let q = self.values(1, tokens * queries * len, 2.0);
        let [keys, values] = [2, 3].map(|seed| self.values(seed, kv * keys_count * len, 1.0));
        let sinks = self.has_sinks.then(|| self.values(4, queries, 2.0));
        let cache = KeyValues {
            keys: with_room(&client, &keys, keys_count * len, len),
            values: with_room(&client, &values, keys_count * len, len),
            capacity,
            position: client.create_from_slice(&(before as i32).to_le_bytes()),
        };
        let attention = Attention {
            heads: self.heads,
            window: self.window,
            softcap: self.softcap,
            sinks: sinks.as_ref().map(|sinks| client.create_from_slice(bytemuck::cast_slice(sinks))),
        };
        let out = attend(&client, &client.create_from_slice(bytemuck::cast_slice(&q)), tokens, &attention, &cache);
        let out = client.read_one(out).unwrap();
        let out: &[f32] = bytemuck::cast_slice(&out);
        if !compares() {
            return;
        }
        for token in 0..tokens {
            for query in 0..queries {
                let row = (token * queries + query) * len;
                let head = query / (queries / kv) * keys_count * len;
                let sink = sinks.as_ref().map(|sinks| f64::from(sinks[query]));
                let seen = self.seen(&q[row..row + len], [&keys[head..], &values[head..]], before + token + 1, sink);
                for (i, (expected, bound)) in seen.into_iter().enumerate() {
                    let found = f64::from(out[row + i]);
                    assert!(
                        (found - expected).abs() <= bound,
                        "token {token}, query {query}, value {i}: {found}, not {expected} within {bound}"
                    );
                }
            }
        }
    }

    /// What a query takes from the keys and values before `end`, and how far from it a kernel may be.
    fn seen(&self, q: &[f32], [keys, values]: [&[f32]; 2], end: usize, sink: Option<f64>) -> Vec<(f64, f64)> {
        let len = self.heads.len;
        let begin = if self.window > 0 { end.saturating_sub(self.window) } else { 0 };
        let products = |key: usize| q.iter().zip(&keys[key * len..]).map(|(&q, &k)| f64::from(q) * f64::from(k));
        let cap = f64::from(self.softcap);
        let score = |key| {
            let score: f64 = products(key).sum();
            if cap > 0.0 { cap * (score / cap).tanh() } else { score }
        };
        let scores: Vec<f64> = (begin..end).map(score).collect();
        let largest = scores.iter().copied().chain(sink).fold(f64::MIN, f64::max);
        let shares: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
        let sum: f64 = shares.iter().sum::<f64>() + sink.map_or(0.0, |sink| (sink - largest).exp());
        // f32 sums of a score, and those of a cap's exponential.
        let magnitude = (begin..end).map(|key| products(key).map(f64::abs).sum()).fold(0.0, f64::max);
        let of_score = (len as f64 + 8.0) * 2f64.powi(-24) * magnitude + cap * 2f64.powi(-20);
        // Fast exponentials of at most some thirty, of two scores; a share as a half; f32 sums over keys.
        let relative =
            (2.0 * of_score + 2f64.powi(-15)).exp_m1() + 2f64.powi(-11) + scores.len() as f64 * 2f64.powi(-23);
        let of_value = |i: usize| {
            let value = |key: usize| f64::from(values[(begin + key) * len + i]);
            let terms = || shares.iter().enumerate().map(|(key, share)| share / sum * value(key));
            // Shares below the least normal half are rounded to multiples of 2^-24.
            let small: f64 = (0..shares.len()).map(|key| value(key).abs()).sum::<f64>() * 2f64.powi(-24);
            (terms().sum(), relative * terms().map(f64::abs).sum::<f64>() + small)
        };
        (0..len).map(of_value).collect()
    }
}

/// The cache of some heads, with NaN in the room after the values of each.
fn with_room(client: &Client, heads: &[f32], of_head: usize, len: usize) -> Handle {
    let with_room = |head: &[f32]| [head, &vec![f32::NAN; ROOM * len]].concat();
    let all: Vec<f32> = heads.chunks(of_head).flat_map(with_room).collect();
    client.create_from_slice(bytemuck::cast_slice(&all))
}

/// Tokens enough for several cubes of a matrix unit's kernel, the last of which is not full, and keys for several steps.
const MANY: Case = Case { tokens: 37, before: 50, ..PLAIN };

pub fn trials(device: &CubeDevice) -> Vec<Trial> {
    let trial = |name: &str, cases: &'static [Case]| {
        let device = device.clone();
        summary::trial(format!("{device}/attention/{name}"), move || {
            cases.iter().for_each(|case| case.assert_on(&device));
        })
    };
    vec![
        trial(
            "sees_the_tokens_before",
            &[
                PLAIN,
                Case { tokens: 3, before: 200, ..PLAIN },
                MANY,
                // Rows for more cubes than a device has cores, which then need no slices.
                Case { heads: Heads { queries: 160, kv: 160, len: 16 }, tokens: 64, before: 10, ..PLAIN },
            ],
        ),
        trial(
            "sees_what_windows_and_caps_and_sinks_leave",
            &[
                Case { window: 8, softcap: 3.0, has_sinks: true, before: 20, ..PLAIN },
                Case { window: 19, softcap: 3.0, has_sinks: true, ..MANY },
            ],
        ),
        // A head for all queries, one for each; one whose length is few tiles of a matrix unit's or none.
        trial(
            "sees_by_heads_of_any_kind",
            &[
                Case { heads: Heads { queries: 3, kv: 1, len: 80 }, tokens: 11, ..PLAIN },
                Case { heads: Heads { queries: 2, kv: 2, len: 256 }, tokens: 9, before: 7, ..PLAIN },
                Case { heads: Heads { queries: 2, kv: 1, len: 20 }, tokens: 9, ..PLAIN },
            ],
        ),
    ]
}
