//! Gemma 3 (Gemma Team, 2025): norms before and after each block, norms of queries and keys, five layers of a sliding window
//! to each one that sees all.
//!
//! ```text
//! x = embedding(ids) * sqrt(d_model)
//! for each layer:
//!     x = x + norm(attention(norm(x)))
//!     x = x + norm(geglu(norm(x)))
//! logits = output(norm(x))
//! ```

use burn::nn::RmsNorm;
use burn::tensor::{Int, Tensor, s};

use super::attention::{Attention, Heads, Positions};
use super::cache::Cache;
use super::error::Result;
use super::feed_forward::{FeedForward, Gate};
use super::rope::{Pairs, Rope};
use super::weights::Source;
use super::{Architecture, Shape};
use crate::storage::burn::{QEmbedding, QLinear};

/// Every so-manieth layer sees all tokens.
const PATTERN: usize = 6;
/// The base of the rotary embeddings in layers of a sliding window.
const LOCAL_BASE: f64 = 10_000.0;

#[derive(Debug)]
struct Gemma3 {
    embedding: QEmbedding,
    scale: f64,
    layers: Vec<Layer>,
    /// The sliding window of local layers, if they have one, and their rotary embeddings.
    window: Option<usize>,
    local: Rope,
    /// Those of layers that see all.
    global: Rope,
    norm: RmsNorm,
    output: QLinear,
    /// What bounds the logits, if anything.
    softcap: Option<f64>,
    shape: Shape,
}

#[derive(Debug)]
struct Layer {
    sees_all: bool,
    attention_norm: RmsNorm,
    attention: Attention,
    after_attention: RmsNorm,
    feed_forward_norm: RmsNorm,
    feed_forward: FeedForward,
    after_feed_forward: RmsNorm,
}

pub(super) fn load(source: &Source<'_>) -> Result<Box<dyn Architecture>> {
    let (d_model, blocks) = (source.number("embedding_length")?, source.number("block_count")?);
    let heads = Heads::read(source, d_model)?;
    let window = source.optional::<u32>("attention.sliding_window")?.filter(|&window| window > 0);
    let pattern = source.optional_number("attention.sliding_window_pattern")?.unwrap_or(PATTERN);
    let local = Rope::new(Pairs::Halves, heads.len, source.rope_base("rope.freq_base_swa", LOCAL_BASE)?, 1.0);
    let global =
        Rope::new(Pairs::Halves, heads.len, source.rope_base("rope.freq_base", 1_000_000.0)?, source.rope_scale()?);
    // The 27B model scales by its query_pre_attn_scalar, which files do not have.
    let scale = if blocks == 62 { d_model as f64 / heads.queries as f64 } else { heads.len as f64 }.powf(-0.5);
    let layer = |i: usize| {
        let sees_all = (i + 1).is_multiple_of(pattern);
        let norm = |part: &str| source.norm(&format!("blk.{i}.{part}"), d_model);
        let mut attention = Attention::load(source, i, d_model, heads)?;
        attention.scale = scale;
        Ok(Layer {
            sees_all,
            attention_norm: norm("attn_norm")?,
            attention,
            after_attention: norm("post_attention_norm")?,
            feed_forward_norm: norm("ffn_norm")?,
            feed_forward: FeedForward::load(source, i, d_model, Gate::Gelu)?,
            after_feed_forward: norm("post_ffw_norm")?,
        })
    };
    let layers = (0..blocks).map(layer).collect::<Result<_>>()?;
    let (embedding, output) = source.embedding_and_output(d_model)?;
    Ok(Box::new(Gemma3 {
        embedding,
        scale: (d_model as f64).sqrt(),
        layers,
        window: window.map(|window| window as usize),
        local,
        global,
        softcap: source.optional("final_logit_softcapping")?.filter(|&cap| cap > 0.0),
        norm: source.norm("output_norm", d_model)?,
        output,
        shape: Shape { layers: blocks, kv_heads: heads.kv, head: heads.len },
    }))
}

impl Architecture for Gemma3 {
    fn forward(&self, ids: Tensor<1, Int>, cache: &mut Cache) -> Tensor<2> {
        let [tokens] = ids.dims();
        let positions = |rope, window| Positions::new(rope, [cache.len(), tokens], window, &ids.device());
        let (local, global) = (positions(&self.local, self.window), positions(&self.global, None));
        let mut x: Tensor<2> = self.embedding.forward(ids) * self.scale;
        for (i, layer) in self.layers.iter().enumerate() {
            let positions = if layer.sees_all { &global } else { &local };
            let seen = layer.attention.forward(layer.attention_norm.forward(x.clone()), i, positions, cache);
            x = x + layer.after_attention.forward(seen);
            let fed = layer.feed_forward.forward(layer.feed_forward_norm.forward(x.clone()));
            x = x + layer.after_feed_forward.forward(fed);
        }
        cache.advance(tokens);
        let logits = self.output.forward(self.norm.forward(x.slice(s![tokens - 1..tokens, ..])));
        match self.softcap {
            Some(cap) => (logits / cap).tanh() * cap,
            None => logits,
        }
    }

    fn shape(&self) -> Shape {
        self.shape
    }
}
