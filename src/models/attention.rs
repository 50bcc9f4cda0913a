//! [`Attention`]: grouped-query attention over the cache.

use burn::nn::RmsNorm;
use burn::tensor::module::attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Bool, Device, Tensor, TensorData};

use super::cache::Cache;
use super::error::{Error, Result};
use super::rope::{Rope, Turn};
use super::weights::Source;
use crate::storage::burn::QLinear;

/// Heads of queries, and of the keys and values that groups of them share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heads {
    pub queries: usize,
    pub kv: usize,
    /// Values of a head.
    pub len: usize,
}

impl Heads {
    /// By the file's hyperparameters.
    pub fn read(source: &Source<'_>, d_model: usize) -> Result<Self> {
        let queries = source.number("attention.head_count")?;
        let kv = source.optional_number("attention.head_count_kv")?.unwrap_or(queries);
        let len = source.optional_number("attention.key_length")?.unwrap_or(d_model / queries);
        let bad = |key: &str, found: usize, reason| Error::Hyperparameter {
            key: source.key(key),
            found: found as f64,
            reason,
        };
        if !queries.is_multiple_of(kv) {
            return Err(bad("attention.head_count_kv", kv, "does not divide the heads of queries"));
        }
        if len < 2 || !len.is_multiple_of(2) {
            return Err(bad("attention.key_length", len, "must be even and more than 0"));
        }
        Ok(Self { queries, kv, len })
    }
}

/// Where tokens are, for all layers that see as much of those before.
#[derive(Debug)]
pub(super) struct Positions {
    turn: Turn,
    /// Which keys each token may not see, `[tokens, keys]`; `None` where it sees all.
    hidden: Option<Tensor<2, Bool>>,
}

impl Positions {
    /// Those of `tokens` tokens after `start` others, each of which sees the last `window`, itself included, or all.
    pub fn new(rope: &Rope, [start, tokens]: [usize; 2], window: Option<usize>, device: &Device) -> Self {
        Self { turn: rope.at(start, tokens, device), hidden: hidden(start, tokens, window, device) }
    }
}

/// Later keys, and those `window` or more before a token.
fn hidden(start: usize, tokens: usize, window: Option<usize>, device: &Device) -> Option<Tensor<2, Bool>> {
    let all = start + tokens;
    if tokens == 1 && window.is_none_or(|window| all <= window) {
        return None;
    }
    let hidden = |query: usize, key: usize| key > query || window.is_some_and(|window| key + window <= query);
    let mask: Vec<bool> = (start..all).flat_map(|query| (0..all).map(move |key| hidden(query, key))).collect();
    Some(Tensor::from_data(TensorData::new(mask, [tokens, all]), device))
}

/// The attention of a layer.
#[derive(Debug)]
pub(super) struct Attention {
    heads: Heads,
    q: QLinear,
    k: QLinear,
    v: QLinear,
    out: QLinear,
    /// Norms of each head's queries and keys.
    norms: Option<(RmsNorm, RmsNorm)>,
    /// What scores are multiplied by.
    pub scale: f64,
}

impl Attention {
    /// The attention of layer `layer`, with norms of queries and keys where the file has them.
    pub fn load(source: &Source<'_>, layer: usize, d_model: usize, heads: Heads) -> Result<Self> {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let (queries, kv) = (heads.queries * heads.len, heads.kv * heads.len);
        let norms = match source.has(&name("attn_q_norm.weight")) {
            true => {
                Some((source.norm(&name("attn_q_norm"), heads.len)?, source.norm(&name("attn_k_norm"), heads.len)?))
            }
            false => None,
        };
        Ok(Self {
            heads,
            q: source.linear(&name("attn_q"), queries, d_model)?,
            k: source.linear(&name("attn_k"), kv, d_model)?,
            v: source.linear(&name("attn_v"), kv, d_model)?,
            out: source.linear(&name("attn_output"), d_model, queries)?,
            norms,
            scale: (heads.len as f64).powf(-0.5),
        })
    }

    /// What the tokens `x` `[tokens, d_model]` take from those that they see.
    pub fn forward(&self, x: Tensor<2>, layer: usize, positions: &Positions, cache: &mut Cache) -> Tensor<2> {
        let Heads { queries, kv, len } = self.heads;
        let [tokens, _] = x.dims();
        let mut projected = QLinear::forward_many(&[&self.q, &self.k, &self.v], x).into_iter();
        let mut next =
            |heads: usize| projected.next().expect("one product for each layer").reshape([tokens, heads, len]);
        let (q, k, v) = (next(queries), next(kv), next(kv));
        let (q, k) = match &self.norms {
            Some((of_queries, of_keys)) => (of_queries.forward(q), of_keys.forward(k)),
            None => (q, k),
        };
        let (q, k) = (positions.turn.apply(q), positions.turn.apply(k));
        let by_head = |x: Tensor<3>| x.swap_dims(0, 1).unsqueeze::<4>();
        let (keys, values) = cache.extend(layer, by_head(k), by_head(v));
        // A group's queries are rows of one head: keys and values are not repeated.
        let groups = queries / kv;
        // Burn multiplies scores by 1 / sqrt(len), and chooses no fast kernel where it is given another factor.
        let q = by_head(q * (self.scale * (len as f64).sqrt())).reshape([1, kv, groups * tokens, len]);
        let hidden = positions.hidden.clone().map(|hidden| hidden.unsqueeze().repeat(&[1, kv, groups, 1]));
        let seen = attention(q, keys, values, hidden, None, AttentionModuleOptions::default());
        let seen = seen.reshape([queries, tokens, len]).swap_dims(0, 1).reshape([tokens, queries * len]);
        self.out.forward(seen)
    }
}
