//! Gemma 2 (Gemma Team, 2024) and Gemma 3 (2025): norms before and after each block, layers of a sliding window between those
//! that see all. Gemma 2 bounds its scores and logits; Gemma 3 has norms of queries and keys, and other rotary embeddings in
//! layers that see all.
//!
//! ```text
//! x = embedding(ids) * sqrt(d_model)
//! for each layer:
//!     x = x + norm(attention(norm(x)))
//!     x = x + norm(geglu(norm(x)))
//! logits = output(norm(x))
//! ```

use super::attention::SelfAttention;
use super::error::Result;
use super::feed_forward::FeedForward;
use super::linear::{Linear, Matrix};
use super::rope::{Rope, Scaling};
use super::step::{Place, Rows, Step};
use super::values::Values;
use super::weights::Source;
use super::{Architecture, Shape};
use crate::kernels::decoder::elementwise::{Activation, Map};
use crate::kernels::decoder::norm::RmsNorm;
use crate::kernels::decoder::rotary::{Heads, Pairs};

/// What Gemma 2 and Gemma 3 do not have in common.
struct Generation {
    /// Every so-manieth layer sees all tokens.
    pattern: usize,
    /// The sliding window where the file names none.
    window: usize,
    /// The base of the rotary embeddings in layers that see all, where the file names none.
    base: f64,
    /// That of the others, where they have their own.
    local_base: Option<f64>,
    /// Layers of the model whose scores are scaled by its width, not by that of a head: files do not have that number.
    scaled_by_width: usize,
}

const GEMMA_2: Generation =
    Generation { pattern: 2, window: 4096, base: 10_000.0, local_base: None, scaled_by_width: 46 };
const GEMMA_3: Generation =
    Generation { pattern: 6, window: 0, base: 1_000_000.0, local_base: Some(10_000.0), scaled_by_width: 62 };

/// The rotary embeddings of layers that see all, and of those that do not.
const GLOBAL: usize = 0;
const LOCAL: usize = 1;

#[derive(Debug)]
struct Gemma {
    embedding: Matrix,
    scale: f32,
    layers: Vec<Layer>,
    norm: RmsNorm<Values>,
    output: Linear,
    /// What bounds the logits, if anything.
    softcap: Option<f32>,
    shape: Shape,
}

#[derive(Debug)]
struct Layer {
    attention_norm: RmsNorm<Values>,
    attention: SelfAttention,
    after_attention: RmsNorm<Values>,
    feed_forward_norm: RmsNorm<Values>,
    feed_forward: FeedForward,
    after_feed_forward: RmsNorm<Values>,
}

pub(super) fn load_2(source: &Source<'_>) -> Result<Box<dyn Architecture>> {
    load(source, GEMMA_2)
}

pub(super) fn load_3(source: &Source<'_>) -> Result<Box<dyn Architecture>> {
    load(source, GEMMA_3)
}

fn load(source: &Source<'_>, generation: Generation) -> Result<Box<dyn Architecture>> {
    let Generation { pattern, window, base, local_base, scaled_by_width } = generation;
    let (d_model, blocks) = (source.number("embedding_length")?, source.number("block_count")?);
    let heads = Heads::read(source, d_model)?;
    let window = source.optional::<u32>("attention.sliding_window")?.map_or(window, |window| window as usize);
    let pattern = source.optional_number("attention.sliding_window_pattern")?.unwrap_or(pattern);
    let global = source.rope(Pairs::Halves, heads.len, source.rope_base("rope.freq_base", base)?)?;
    let local = match local_base {
        Some(base) => {
            let base = source.rope_base("rope.freq_base_swa", base)?;
            Rope::new(Pairs::Halves, heads.len, base, Scaling::Linear(1.0))
        }
        None => global.clone(),
    };
    let width = if blocks == scaled_by_width { d_model as f32 / heads.queries as f32 } else { heads.len as f32 };
    let softcap = source.softcap("attn_logit_softcapping")?.unwrap_or(0.0);
    let layer = |layer: usize| {
        let norm = |part: &str| source.norm(&format!("blk.{layer}.{part}"), d_model);
        let load = |rope| SelfAttention::load(source, Place { layer, rope }, d_model, heads);
        let attention = match (layer + 1).is_multiple_of(pattern) {
            true => load(GLOBAL)?,
            false => load(LOCAL)?.within(window),
        };
        Ok(Layer {
            attention_norm: norm("attn_norm")?,
            attention: attention.scaled_by(width.powf(-0.5)).capped_by(softcap),
            after_attention: norm("post_attention_norm")?,
            feed_forward_norm: norm("ffn_norm")?,
            feed_forward: FeedForward::load(source, layer, d_model, Activation::Gelu)?,
            after_feed_forward: norm("post_ffw_norm")?,
        })
    };
    let layers = (0..blocks).map(layer).collect::<Result<_>>()?;
    let (embedding, output) = source.embedding_and_output(d_model)?;
    Ok(Box::new(Gemma {
        embedding,
        scale: (d_model as f32).sqrt(),
        layers,
        softcap: source.softcap("final_logit_softcapping")?,
        norm: source.norm("output_norm", d_model)?,
        output,
        shape: Shape { layers: blocks, kv_heads: heads.kv, head: heads.len, ropes: vec![global, local] },
    }))
}

impl Architecture for Gemma {
    fn forward(&self, step: &Step<'_>) -> Result<Rows> {
        let mut x = step.embed(&self.embedding, self.scale)?;
        let mut normed = step.norm(&x, &self.layers[0].attention_norm);
        for (i, layer) in self.layers.iter().enumerate() {
            let seen = layer.attention.forward(step, &normed)?;
            (x, normed) = step.add_norm([&x, &seen], Some(&layer.after_attention), &layer.feed_forward_norm);
            let fed = layer.feed_forward.forward(step, &normed)?;
            let next = self.layers.get(i + 1).map_or(&self.norm, |next| &next.attention_norm);
            (x, normed) = step.add_norm([&x, &fed], Some(&layer.after_feed_forward), next);
        }
        let (logits, of) = self.output.forward_last(step, &normed)?;
        Ok(match self.softcap {
            Some(cap) => of.map(&logits, Map::Softcap, cap),
            None => logits,
        })
    }

    fn shape(&self) -> &Shape {
        &self.shape
    }
}
