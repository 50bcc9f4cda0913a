//! [`Mixture`]: a feed-forward block of experts, of which each token has some.

use std::sync::Arc;

use cubecl::server::Handle;

use super::error::{Error, Result};
#[cfg(feature = "candle")]
use super::host::HostExperts;
use super::linear::Linear;
use super::step::{Rows, Step};
use super::weights::Source;
use crate::kernels::activations::Activations;
use crate::kernels::decoder::elementwise::Activation;
use crate::kernels::decoder::experts::Choice;
use crate::kernels::floats::FloatType;
use crate::kernels::ops::Arithmetic;
use crate::kernels::routing::{Route, Routing};
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
    pub routing: Routing,
}

impl<'a> Pairs<'a> {
    fn new(step: &Step<'a>, ids: Handle, choice: Choice) -> Result<Self> {
        let routing = Routing::new(ids, step.tokens, choice.slots, choice.experts)?;
        Ok(Self { tokens: *step, each: Step { tokens: routing.pairs(), ..*step }, routing })
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
        #[cfg(feature = "candle")]
        let mut on_host = Vec::new();
        for stack in stacks {
            match stack {
                Self::Device(tensor) => on_device.push(tensor),
                #[cfg(feature = "candle")]
                Self::Host(stack) => on_host.push(stack),
            }
        }
        let (mut products, routing) = (Vec::with_capacity(N), &pairs.routing);
        if !on_device.is_empty() {
            let x = Activations::contiguous(x.handle.clone(), FloatType::F32, vec![of.tokens, x.width])?;
            products = DeviceTensor::matmul_experts_many_on_device(&on_device, &x, routing, Arithmetic::Auto)?;
        }
        // A model's stacks are all on its device or all on the host.
        #[cfg(feature = "candle")]
        products.extend(HostExperts::products(&on_host, pairs, of, x)?);
        let mut products = products.into_iter();
        Ok(stacks.map(|stack| Rows {
            handle: products.next().expect("a product of each stack"),
            width: stack.n(routing.experts()),
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
        let route = Route { routing: &pairs.routing, sharers: pairs.each.tokens / of.tokens };
        of.observe_pairs(&stacks.map(|stack| &stack.tensor), x, route);
        Stack::products(stacks.map(|stack| &stack.weights), pairs, of, x)
    }
}
