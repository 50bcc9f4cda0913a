//! [`FeedForward`]: the gated feed-forward block.

use burn::tensor::Tensor;
use burn::tensor::activation::{gelu_approximate, silu};

use super::error::Result;
use super::weights::Source;
use crate::storage::burn::QLinear;

/// The activation of the gate.
#[derive(Clone, Copy, Debug)]
pub(super) enum Gate {
    /// SiLU: the block is a SwiGLU.
    Silu,
    /// GELU by its tanh approximation: the block is a GeGLU.
    Gelu,
}

/// `down(activation(gate(x)) * up(x))`.
#[derive(Debug)]
pub(super) struct FeedForward {
    activation: Gate,
    gate: QLinear,
    up: QLinear,
    down: QLinear,
}

impl FeedForward {
    pub fn load(source: &Source<'_>, layer: usize, d_model: usize, activation: Gate) -> Result<Self> {
        let name = |part: &str| format!("blk.{layer}.ffn_{part}");
        let hidden = source.number("feed_forward_length")?;
        Ok(Self {
            activation,
            gate: source.linear(&name("gate"), hidden, d_model)?,
            up: source.linear(&name("up"), hidden, d_model)?,
            down: source.linear(&name("down"), d_model, hidden)?,
        })
    }

    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let mut products = QLinear::forward_many(&[&self.gate, &self.up], x).into_iter();
        let mut next = || products.next().expect("one product for each layer");
        let (gate, up) = (next(), next());
        let gate = match self.activation {
            Gate::Silu => silu(gate),
            Gate::Gelu => gelu_approximate(gate),
        };
        self.down.forward(gate * up)
    }
}
