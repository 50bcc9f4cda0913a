//! Grouped-query attention of the tokens that are being added over those in the cache.
//!
//! Few tokens go to [`lanes`](self::lanes), whose planes each see a part of the keys for a few queries; more go to
//! [`tiles`](self::tiles), on the device's matrix unit where it has one for the heads.
//!
//! The softmax is the online one of Milakov and Gimelshein (2018): a sum so far is of exponentials less the largest score so
//! far, and rescaled where a larger one is met.

mod lanes;
mod tiles;

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::rotary::{Heads, KeyValues};
use crate::kernels::launch::{Grid, GridLaunch, buffer};

type Four = Vector<f32, Const<4>>;

/// Below every score, and small enough that no difference of two overflows.
const LEAST: f32 = -1e30;

/// The most tokens whose keys are seen in parts.
const MAX_FEW: usize = 8;

/// What a token sees of the cache, and how.
#[derive(Clone, Debug)]
pub struct Attention<V = Handle> {
    /// The heads.
    pub heads: Heads,
    /// The last tokens that a token sees, itself included; 0 for all.
    pub window: usize,
    /// What bounds the scores, by a tanh; 0 for nothing.
    pub softcap: f32,
    /// A score for each query that takes its share of the softmax and gives nothing: an attention sink (Xiao et al., 2024).
    pub sinks: Option<V>,
}

/// What the queries of `tokens` tokens, scaled and turned, take from the cache: `[tokens, queries, len]`.
///
/// Matrix units take queries, keys, values and shares of the softmax as halves, whose products they sum up in f32.
pub fn attend(client: &Client, q: &Handle, tokens: usize, attention: &Attention, cache: &KeyValues) -> Handle {
    let plan = if tokens > MAX_FEW { tiles::Plan::of(client, tokens, attention) } else { None };
    match plan {
        Some(plan) => tiles::attend(client, q, tokens, attention, cache, plan),
        None => lanes::attend(client, q, tokens, attention, cache),
    }
}

impl Attention {
    /// What kernels read for queries, by units of a grid.
    fn seen(&self, q: &Handle, cache: &KeyValues, grid: GridLaunch) -> SeenLaunch {
        SeenLaunch::new(
            buffer(q, 16),
            buffer(&cache.keys, 16),
            buffer(&cache.values, 16),
            buffer(&cache.position, 4),
            cache.capacity,
            self.window,
            self.softcap,
            self.sinks().into(),
            grid,
        )
    }

    fn sinks(&self) -> Option<SinksLaunch> {
        self.sinks.as_ref().map(|sinks| SinksLaunch::new(buffer(sinks, 4)))
    }
}

/// Queries, and what they see.
#[derive(CubeType, CubeLaunch)]
struct Seen {
    q: Box<[Four]>,
    keys: Box<[Four]>,
    values: Box<[Four]>,
    position: Box<[i32]>,
    capacity: usize,
    window: usize,
    softcap: f32,
    sinks: ComptimeOption<Sinks>,
    grid: Grid,
}

#[cube]
impl Seen {
    /// The first key that token `token` of those that are being added sees, and the one past its last, itself.
    fn keys_of(&self, token: usize) -> (usize, usize) {
        let end = usize::cast_from(self.position[0]) + token + 1;
        let mut begin = 0usize.runtime();
        if self.window > 0 && end > self.window {
            begin = end - self.window;
        }
        (begin, end)
    }
}

/// The sink of each query.
#[derive(CubeType, CubeLaunch)]
struct Sinks {
    scores: Box<[f32]>,
}

/// What values are multiplied by, and the sum of a softmax, for the largest score and the sum so far, with the sink of a query.
#[cube]
fn with_sink(sinks: &ComptimeOption<Sinks>, query: usize, largest: f32, sum: f32) -> (f32, f32) {
    #[comptime]
    let sink = match sinks {
        ComptimeOption::Some(sinks) => sinks.scores[query],
        ComptimeOption::None => LEAST.runtime(),
    };
    if comptime!(sinks.is_some()) {
        let most = max(largest, sink);
        let kept = f32::exp(largest - most);
        (kept, sum * kept + f32::exp(sink - most))
    } else {
        (1.0f32.runtime(), sum)
    }
}

/// `cap * tanh(score / cap)`.
#[cube]
fn capped(score: f32, cap: f32) -> f32 {
    cap - 2.0f32 * cap / (f32::exp(2.0f32 * score / cap) + 1.0f32)
}
