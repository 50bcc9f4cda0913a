//! [`Mixture`]: a feed-forward block of experts, of which each token has some.

use std::sync::Arc;

use super::error::{Error, Result};
#[cfg(feature = "candle")]
use super::host::{HostExperts, HostPairs};
use super::linear::Linear;
use super::step::{Routed, Rows, Step};
use super::values::Values;
use super::weights::Source;
use crate::kernels::activations::Activations;
use crate::kernels::decoder::elementwise::Activation;
use crate::kernels::decoder::experts::Choice;
use crate::kernels::floats::FloatType;
use crate::kernels::ops::Arithmetic;
use crate::storage::DeviceTensor;

/// `sum of weight * down(activation(gate(x)) * up(x))` over the experts that a router chooses for a token.
#[derive(Debug)]
pub(super) struct Mixture {
    router: Linear,
    choice: Choice,
    activation: Activation,
    gate: Experts,
    up: Experts,
    down: Experts,
}

/// A stack of experts.
#[derive(Debug)]
pub(super) struct Experts {
    /// The tensor of the file that it is.
    pub tensor: Arc<str>,
    pub weights: Stack,
}

/// The weights of experts where they are multiplied.
#[derive(Debug)]
pub(super) enum Stack {
    Device(DeviceTensor),
    /// By Candle's kernels.
    #[cfg(feature = "candle")]
    Host(HostExperts),
}

impl Mixture {
    /// Whether a layer's feed-forward block is one.
    pub fn is_in(source: &Source<'_>, layer: usize) -> bool {
        source.has(&format!("blk.{layer}.ffn_gate_inp.weight"))
    }

    pub fn load(source: &Source<'_>, layer: usize, d_model: usize, activation: Activation) -> Result<Self> {
        let name = |part: &str| format!("blk.{layer}.ffn_{part}");
        let (experts, slots) = (source.number("expert_count")?, source.number("expert_used_count")?);
        if slots > experts {
            let (key, reason) = (source.key("expert_used_count"), "is more than there are");
            return Err(Error::Hyperparameter { key, found: slots as f64, reason });
        }
        let hidden = match source.optional_number("expert_feed_forward_length")? {
            Some(hidden) => hidden,
            None => source.number("feed_forward_length")?,
        };
        let scale = source.optional::<f64>("expert_weights_scale")?.filter(|&scale| scale != 0.0);
        Ok(Self {
            router: source.linear(&name("gate_inp"), experts, d_model)?,
            choice: Choice { experts, slots, scale: scale.unwrap_or(1.0) as f32 },
            activation,
            gate: source.experts(&name("gate_exps"), [experts, hidden, d_model])?,
            up: source.experts(&name("up_exps"), [experts, hidden, d_model])?,
            down: source.experts(&name("down_exps"), [experts, d_model, hidden])?,
        })
    }

    pub fn forward(&self, step: &Step<'_>, x: &Rows) -> Result<Rows> {
        let choice = self.choice;
        let (routed, weights) = step.choose(&self.router.forward_closely(step, x)?, choice)?;
        let each = Step { tokens: step.tokens * choice.slots, ..*step };
        let pairs = Pairs { tokens: *step, each, choice, routed };
        let [gate, up] = Experts::forward_many([&self.gate, &self.up], &pairs, &pairs.tokens, x)?;
        let gated = pairs.each.gate([&gate, &up], self.activation);
        let [down] = Experts::forward_many([&self.down], &pairs, &pairs.each, &gated)?;
        Ok(step.mix(&down, &weights, choice.slots))
    }
}

/// The pairs of a step's tokens and their experts.
pub(super) struct Pairs<'a> {
    /// The step, of rows that are a token's.
    pub tokens: Step<'a>,
    /// The same of rows that are a pair's.
    pub each: Step<'a>,
    pub choice: Choice,
    pub routed: Routed,
}

impl Stack {
    /// Rows of an expert, of so many.
    fn n(&self, experts: usize) -> usize {
        match self {
            Self::Device(tensor) => tensor.n() / experts,
            #[cfg(feature = "candle")]
            Self::Host(stack) => stack.n(),
        }
    }

    /// That of a model on a device.
    fn tensor(&self) -> &DeviceTensor {
        match self {
            Self::Device(tensor) => tensor,
            #[cfg(feature = "candle")]
            Self::Host(_) => unreachable!("a model on a device has no experts on the host"),
        }
    }

    /// That of a model on the host.
    #[cfg(feature = "candle")]
    fn host(&self) -> &HostExperts {
        match self {
            Self::Host(stack) => stack,
            Self::Device(_) => unreachable!("a model on the host has no experts on a device"),
        }
    }

    /// The products of each pair with some stacks, where `of` has the rows of `x`.
    fn products<const N: usize>(stacks: [&Self; N], pairs: &Pairs<'_>, of: &Step<'_>, x: &Rows) -> Result<[Rows; N]> {
        let products: Vec<Values> = match &pairs.routed {
            Routed::Device(routing) => {
                let (tensors, shape) = (stacks.map(Self::tensor), vec![of.tokens, x.width]);
                let x = Activations::contiguous(x.handle().clone(), FloatType::F32, shape)?;
                let all = DeviceTensor::matmul_experts_many_on_device(&tensors, &x, routing, Arithmetic::Auto)?;
                all.into_iter().map(Values::from).collect()
            }
            #[cfg(feature = "candle")]
            Routed::Host(ids) => {
                let pairs = HostPairs { ids, slots: pairs.choice.slots };
                let product = |stack: &&Self| Ok(stack.host().products(x.slice(), x.width, pairs)?.into());
                stacks.iter().map(product).collect::<Result<_>>()?
            }
        };
        let mut products = products.into_iter();
        Ok(stacks.map(|stack| Rows {
            values: products.next().expect("a product of each stack"),
            width: stack.n(pairs.choice.experts),
        }))
    }
}

impl Experts {
    /// The products of each pair with some stacks, where `of` has the rows of `x`.
    fn forward_many<const N: usize>(
        stacks: [&Self; N],
        pairs: &Pairs<'_>,
        of: &Step<'_>,
        x: &Rows,
    ) -> Result<[Rows; N]> {
        if let Some(observer) = of.observer {
            observer.add_pairs(of, &stacks.map(|stack| &stack.tensor), x, pairs);
        }
        Stack::products(stacks.map(|stack| &stack.weights), pairs, of, x)
    }
}
