//! LLaMA (Touvron et al., 2023) and what is made like it: LLaMA 2 and 3, Mistral, Qwen 2 (biases of q, k and v), Qwen 3 (norms
//! of each head's queries and keys).
//!
//! ```text
//! x = embedding(ids)
//! for each layer:
//!     x = x + attention(norm(x))
//!     x = x + swiglu(norm(x))
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

#[derive(Debug)]
struct Llama {
    embedding: QEmbedding,
    layers: Vec<Layer>,
    rope: Rope,
    norm: RmsNorm,
    output: QLinear,
    shape: Shape,
}

#[derive(Debug)]
struct Layer {
    attention_norm: RmsNorm,
    attention: Attention,
    feed_forward_norm: RmsNorm,
    feed_forward: FeedForward,
}

pub(super) fn load(source: &Source<'_>) -> Result<Box<dyn Architecture>> {
    let (d_model, blocks) = (source.number("embedding_length")?, source.number("block_count")?);
    let heads = Heads::read(source, d_model)?;
    let pairs = if source.architecture() == "llama" { Pairs::Neighbours } else { Pairs::Halves };
    let dims = source.rope_dims(heads.len)?;
    let rope = Rope::new(pairs, dims, source.rope_base("rope.freq_base", 10_000.0)?, source.rope_scale()?);
    let rope = match source.has("rope_freqs.weight") {
        true => rope.divided_by(&source.values("rope_freqs.weight", dims / 2)?),
        false => rope,
    };
    let layer = |i: usize| {
        Ok(Layer {
            attention_norm: source.norm(&format!("blk.{i}.attn_norm"), d_model)?,
            attention: Attention::load(source, i, d_model, heads)?,
            feed_forward_norm: source.norm(&format!("blk.{i}.ffn_norm"), d_model)?,
            feed_forward: FeedForward::load(source, i, d_model, Gate::Silu)?,
        })
    };
    let layers = (0..blocks).map(layer).collect::<Result<_>>()?;
    let (embedding, output) = source.embedding_and_output(d_model)?;
    let shape = Shape { layers: blocks, kv_heads: heads.kv, head: heads.len };
    Ok(Box::new(Llama { embedding, layers, rope, norm: source.norm("output_norm", d_model)?, output, shape }))
}

impl Architecture for Llama {
    fn forward(&self, ids: Tensor<1, Int>, cache: &mut Cache) -> Tensor<2> {
        let [tokens] = ids.dims();
        let positions = Positions::new(&self.rope, [cache.len(), tokens], None, &ids.device());
        let mut x: Tensor<2> = self.embedding.forward(ids);
        for (i, layer) in self.layers.iter().enumerate() {
            x = x.clone() + layer.attention.forward(layer.attention_norm.forward(x), i, &positions, cache);
            x = x.clone() + layer.feed_forward.forward(layer.feed_forward_norm.forward(x));
        }
        cache.advance(tokens);
        self.output.forward(self.norm.forward(x.slice(s![tokens - 1..tokens, ..])))
    }

    fn shape(&self) -> Shape {
        self.shape
    }
}
