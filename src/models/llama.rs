//! LLaMA (Touvron et al., 2023) and what is made like it: LLaMA 2 and 3, Mistral, Qwen 2 (biases of q, k and v), Qwen 3 (norms
//! of each head's queries and keys), Phi 3 (q, k and v in one matrix, gate and up in another); and with experts Mixtral, Qwen 3's
//! mixtures, and gpt-oss (attention sinks, every other layer with a sliding window, biases everywhere).
//!
//! ```text
//! x = embedding(ids)
//! for each layer:
//!     x = x + attention(norm(x))
//!     x = x + swiglu(norm(x)), or a mixture of such
//! logits = output(norm(x))
//! ```

use super::attention::SelfAttention;
use super::error::Result;
use super::feed_forward::FeedForward;
use super::linear::{Linear, Matrix};
use super::step::{Place, Rows, Step};
use super::values::Values;
use super::weights::Source;
use super::{Architecture, Shape};
use crate::kernels::decoder::elementwise::Activation;
use crate::kernels::decoder::norm::RmsNorm;
use crate::kernels::decoder::rotary::{Heads, Pairs};

#[derive(Debug)]
struct Llama {
    embedding: Matrix,
    layers: Vec<Layer>,
    norm: RmsNorm<Values>,
    output: Linear,
    shape: Shape,
}

#[derive(Debug)]
struct Layer {
    attention_norm: RmsNorm<Values>,
    attention: SelfAttention,
    feed_forward_norm: RmsNorm<Values>,
    feed_forward: FeedForward,
}

pub(super) fn load(source: &Source<'_>) -> Result<Box<dyn Architecture>> {
    let (d_model, blocks) = (source.number("embedding_length")?, source.number("block_count")?);
    let heads = Heads::read(source, d_model)?;
    let pairs = if source.architecture() == "llama" { Pairs::Neighbours } else { Pairs::Halves };
    let dims = source.rope_dims(heads.len)?;
    let rope = source.rope(pairs, dims, source.rope_base("rope.freq_base", 10_000.0)?)?;
    let is_gpt_oss = source.architecture() == "gpt-oss";
    let window = if is_gpt_oss { source.number("attention.sliding_window")? } else { 0 };
    let (feed_forward_norm, activation) = match is_gpt_oss {
        true => ("post_attention_norm", Activation::ClampedSwiglu),
        false => ("ffn_norm", Activation::Silu),
    };
    let layer = |layer: usize| {
        let attention = SelfAttention::load(source, Place { layer, rope: 0 }, d_model, heads)?;
        Ok(Layer {
            attention_norm: source.norm(&format!("blk.{layer}.attn_norm"), d_model)?,
            attention: if layer.is_multiple_of(2) { attention.within(window) } else { attention },
            feed_forward_norm: source.norm(&format!("blk.{layer}.{feed_forward_norm}"), d_model)?,
            feed_forward: FeedForward::load(source, layer, d_model, activation)?,
        })
    };
    let layers = (0..blocks).map(layer).collect::<Result<_>>()?;
    let (embedding, output) = source.embedding_and_output(d_model)?;
    let shape = Shape { layers: blocks, kv_heads: heads.kv, head: heads.len, ropes: vec![rope] };
    Ok(Box::new(Llama { embedding, layers, norm: source.norm("output_norm", d_model)?, output, shape }))
}

impl Architecture for Llama {
    fn forward(&self, step: &Step<'_>) -> Result<Rows> {
        let mut x = step.embed(&self.embedding, 1.0)?;
        let mut normed = step.norm(&x, &self.layers[0].attention_norm);
        for (i, layer) in self.layers.iter().enumerate() {
            let seen = layer.attention.forward(step, &normed)?;
            (x, normed) = step.add_norm([&x, &seen], None, &layer.feed_forward_norm);
            let fed = layer.feed_forward.forward(step, &normed)?;
            let next = self.layers.get(i + 1).map_or(&self.norm, |next| &next.attention_norm);
            (x, normed) = step.add_norm([&x, &fed], None, next);
        }
        Ok(self.output.forward_last(step, &normed)?.0)
    }

    fn shape(&self) -> &Shape {
        &self.shape
    }
}
