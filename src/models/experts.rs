//! [`Mixture`]: a feed-forward block of experts, of which each token has some.

use std::sync::Arc;

use super::error::{Error, Result};
#[cfg(feature = "candle")]
use super::host::{HostExperts, HostPairs};
use super::linear::Linear;
use super::step::{Ids, Rows, Step};
use super::values::Values;
use super::weights::Source;
use crate::kernels::activations::Activations;
use crate::kernels::decoder::elementwise::Activation;
use crate::kernels::decoder::experts::Choice;
use crate::kernels::floats::FloatType;
use crate::kernels::ops::Arithmetic;
use crate::kernels::routing::Routing;
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
        let chosen = step.choose(&self.router.forward_closely(step, x)?, self.choice);
        let pairs = Pairs::new(step, chosen.ids, self.choice)?;
        let [gate, up] = Experts::forward_many([&self.gate, &self.up], &pairs, &pairs.tokens, x)?;
        let gated = pairs.each.gate([&gate, &up], self.activation);
        let [down] = Experts::forward_many([&self.down], &pairs, &pairs.each, &gated)?;
        Ok(step.mix(&down, &chosen.weights, self.choice.slots))
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

/// The experts of tokens, where they are multiplied.
pub(super) enum Routed {
    Device(Routing),
    #[cfg(feature = "candle")]
    Host(Vec<u32>),
}

impl<'a> Pairs<'a> {
    fn new(step: &Step<'a>, ids: Ids, choice: Choice) -> Result<Self> {
        let routed = match ids {
            Ids::Device(ids) => Routed::Device(Routing::new(ids, step.tokens, choice.slots, choice.experts)?),
            #[cfg(feature = "candle")]
            Ids::Host(ids) => Routed::Host(ids),
        };
        Ok(Self { tokens: *step, each: Step { tokens: step.tokens * choice.slots, ..*step }, choice, routed })
    }
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

    /// The products of each pair with some stacks, where `of` has the rows of `x`.
    fn products<const N: usize>(stacks: [&Self; N], pairs: &Pairs<'_>, of: &Step<'_>, x: &Rows) -> Result<[Rows; N]> {
        let mut on_device = Vec::with_capacity(N);
        let mut products = Vec::with_capacity(N);
        for stack in stacks {
            match (stack, &pairs.routed) {
                (Self::Device(tensor), Routed::Device(routing)) => on_device.push((tensor, routing)),
                #[cfg(feature = "candle")]
                (Self::Host(stack), Routed::Host(ids)) => {
                    let pairs = HostPairs { ids, slots: pairs.choice.slots };
                    products.push(stack.products(x.slice(), x.width, pairs)?.into());
                }
                #[cfg(feature = "candle")]
                _ => unreachable!("a model's experts are where it computes"),
            }
        }
        if let Some(&(_, routing)) = on_device.first() {
            let x = Activations::contiguous(x.handle().clone(), FloatType::F32, vec![of.tokens, x.width])?;
            let tensors: Vec<&DeviceTensor> = on_device.iter().map(|&(tensor, _)| tensor).collect();
            let all = DeviceTensor::matmul_experts_many_on_device(&tensors, &x, routing, Arithmetic::Auto)?;
            products.extend(all.into_iter().map(Values::from));
        }
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
