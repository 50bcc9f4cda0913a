//! [`FeedForward`]: the block of a layer that takes each token alone.

use super::error::Result;
use super::experts::Mixture;
use super::linear::Linear;
use super::step::{Rows, Step};
use super::weights::Source;
use crate::kernels::decoder::elementwise::Activation;

/// A gated block, or a mixture of such.
#[derive(Debug)]
pub(super) enum FeedForward {
    Gated(Box<Gated>),
    Mixture(Box<Mixture>),
}

/// `down(activation(gate(x)) * up(x))`: with SiLU a SwiGLU, with GELU a GeGLU.
#[derive(Debug)]
pub(super) struct Gated {
    activation: Activation,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl FeedForward {
    /// A layer's: a mixture where the file has a router for it.
    pub fn load(source: &Source<'_>, layer: usize, d_model: usize, activation: Activation) -> Result<Self> {
        Ok(match Mixture::is_in(source, layer) {
            true => Self::Mixture(Box::new(Mixture::load(source, layer, d_model, activation)?)),
            false => Self::Gated(Box::new(Gated::load(source, layer, d_model, activation)?)),
        })
    }

    pub fn forward(&self, step: &Step<'_>, x: &Rows) -> Result<Rows> {
        match self {
            Self::Gated(block) => block.forward(step, x),
            Self::Mixture(block) => block.forward(step, x),
        }
    }
}

impl Gated {
    fn load(source: &Source<'_>, layer: usize, d_model: usize, activation: Activation) -> Result<Self> {
        let name = |part: &str| format!("blk.{layer}.ffn_{part}");
        let hidden = source.number("feed_forward_length")?;
        let [gate, up] = match source.has(&name("gate.weight")) {
            true => [source.linear(&name("gate"), hidden, d_model)?, source.linear(&name("up"), hidden, d_model)?],
            false => {
                let of_rows = |first| source.linear_of_rows(&name("up"), [2 * hidden, d_model], [first, hidden]);
                [of_rows(0)?, of_rows(hidden)?]
            }
        };
        Ok(Self { activation, gate, up, down: source.linear(&name("down"), d_model, hidden)? })
    }

    fn forward(&self, step: &Step<'_>, x: &Rows) -> Result<Rows> {
        let [gate, up] = Linear::forward_many([&self.gate, &self.up], step, x)?;
        self.down.forward(step, &step.gate([&gate, &up], self.activation))
    }
}
