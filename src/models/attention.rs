//! [`SelfAttention`]: the attention of a layer, with the products around it.

use super::error::{Error, Result};
use super::linear::Linear;
use super::step::{Place, Rows, Step};
use super::values::Values;
use super::weights::Source;
use crate::kernels::decoder::attention::Attention;
use crate::kernels::decoder::rotary::{Heads, Rotary};

impl Heads {
    /// By the file's hyperparameters.
    pub(super) fn read(source: &Source<'_>, d_model: usize) -> Result<Self> {
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
        if len == 0 || !len.is_multiple_of(4) {
            return Err(bad("attention.key_length", len, "must be a multiple of 4 and more than 0"));
        }
        match source.optional_number("attention.value_length")? {
            Some(values) if values != len => Err(bad("attention.value_length", values, "must be that of keys")),
            _ => Ok(Self { queries, kv, len }),
        }
    }
}

/// The attention of a layer.
#[derive(Debug)]
pub(super) struct SelfAttention {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    rotary: Rotary<Values>,
    attention: Attention<Values>,
    place: Place,
}

impl SelfAttention {
    /// The attention of a layer, with norms of queries and keys, and sinks, where the file has them.
    pub fn load(source: &Source<'_>, place: Place, d_model: usize, heads: Heads) -> Result<Self> {
        let name = |part: &str| format!("blk.{}.{part}", place.layer);
        let (queries, kv) = (heads.queries * heads.len, heads.kv * heads.len);
        let norms = match source.has(&name("attn_q_norm.weight")) {
            true => {
                let both = [(name("attn_q_norm.weight"), heads.len), (name("attn_k_norm.weight"), heads.len)];
                Some((source.vectors(&both)?, source.epsilon()?))
            }
            false => None,
        };
        let biases = [("attn_q.bias", queries), ("attn_k.bias", kv), ("attn_v.bias", kv)];
        let bias = match source.has(&name("attn_q.bias")) {
            true => Some(source.vectors(&biases.map(|(part, len)| (name(part), len)))?),
            false => None,
        };
        let [q, k, v] = match source.has(&name("attn_qkv.weight")) {
            true => {
                let shape = [queries + 2 * kv, d_model];
                let of_rows = |first, n| source.linear_of_rows(&name("attn_qkv"), shape, [first, n]);
                [of_rows(0, queries)?, of_rows(queries, kv)?, of_rows(queries + kv, kv)?]
            }
            false => {
                // Their biases are added where heads are turned.
                let all_rows = |part: &str, n| source.linear_of_rows(&name(part), [n, d_model], [0, n]);
                [all_rows("attn_q", queries)?, all_rows("attn_k", kv)?, all_rows("attn_v", kv)?]
            }
        };
        let sinks = match source.has(&name("attn_sinks.weight")) {
            true => Some(source.vectors(&[(name("attn_sinks.weight"), heads.queries)])?),
            false => None,
        };
        Ok(Self {
            q,
            k,
            v,
            out: source.linear(&name("attn_output"), d_model, queries)?,
            rotary: Rotary { heads, bias, norms, scale: (heads.len as f32).powf(-0.5) },
            attention: Attention { heads, window: 0, softcap: 0.0, sinks },
            place,
        })
    }

    /// The same with other factors of the scores.
    pub fn scaled_by(mut self, scale: f32) -> Self {
        self.rotary.scale = scale;
        self
    }

    /// The same with scores below `softcap`.
    pub fn capped_by(mut self, softcap: f32) -> Self {
        self.attention.softcap = softcap;
        self
    }

    /// The same with each token seeing the last `window` alone, itself included.
    pub fn within(mut self, window: usize) -> Self {
        self.attention.window = window;
        self
    }

    /// What a step's tokens take from those that they see.
    pub fn forward(&self, step: &Step<'_>, x: &Rows) -> Result<Rows> {
        let [q, k, v] = Linear::forward_many([&self.q, &self.k, &self.v], step, x)?;
        let seen = step.attend([&q, &k, &v], &self.rotary, &self.attention, self.place);
        self.out.forward(step, &seen)
    }
}
