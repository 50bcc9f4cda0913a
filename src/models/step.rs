//! [`Step`]: the addition of some tokens to a run, by launches on the device, or on the host.

use std::sync::Arc;

use cubecl::client::Client;
use cubecl::server::Handle;

use super::cache::Cache;
use super::error::Result;
#[cfg(feature = "candle")]
use super::host::{self, HostStep};
use super::importance::Observer;
use super::linear::Matrix;
use super::values::Values;
use crate::kernels::decoder::attention::{Attention, attend};
use crate::kernels::decoder::elementwise::{Activation, Map, gate, map, take_row};
use crate::kernels::decoder::experts::{Choice, Chosen, choose, mix};
use crate::kernels::decoder::largest::largest;
use crate::kernels::decoder::norm::{RmsNorm, add_norm, norm};
use crate::kernels::decoder::rotary::{Rotary, turn_and_store};
use crate::kernels::floats::FloatType;
use crate::kernels::routing::Routing;
use crate::storage::CubeDevice;

/// Rows of f32, one for each of a step's tokens.
#[derive(Clone, Debug)]
pub(super) struct Rows {
    pub values: Values,
    /// Values of a row.
    pub width: usize,
}

impl Rows {
    pub fn new(values: impl Into<Values>, width: usize) -> Self {
        Self { values: values.into(), width }
    }

    /// Those of a model on a device.
    pub fn handle(&self) -> &Handle {
        self.values.handle()
    }

    /// Those of a model on the host.
    #[cfg(feature = "candle")]
    pub fn slice(&self) -> &[f32] {
        self.values.slice()
    }
}

/// What a step gives.
#[derive(Clone, Debug)]
pub(super) enum After {
    Device {
        /// Those of the token after the step's last.
        logits: Rows,
        /// The likeliest of them: its id and the bits of its logit.
        likeliest: Handle,
    },
    #[cfg(feature = "candle")]
    Host(Rows),
}

impl After {
    /// The logits, on the host.
    pub fn read(&self, engine: &Engine) -> crate::Result<Vec<f32>> {
        match self {
            Self::Device { logits, .. } => {
                Ok(FloatType::F32.to_f32(&engine.device().read(logits.handle().clone())?, logits.width))
            }
            #[cfg(feature = "candle")]
            Self::Host(logits) => Ok(logits.slice().to_vec()),
        }
    }

    /// The likeliest token and its logit, on the host.
    pub fn read_likeliest(&self, engine: &Engine) -> crate::Result<(u32, f32)> {
        match self {
            Self::Device { likeliest, .. } => {
                let bytes = engine.device().read(likeliest.clone())?;
                let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
                Ok((word(0), f32::from_bits(word(4))))
            }
            #[cfg(feature = "candle")]
            Self::Host(logits) => Ok(host::largest(logits.slice())),
        }
    }
}

/// What computes a model.
#[derive(Clone, Debug)]
pub(super) enum Engine {
    Device(CubeDevice),
    /// The host, with Candle's products.
    #[cfg(feature = "candle")]
    Host,
}

impl Engine {
    /// That of a model on a device.
    pub fn device(&self) -> &CubeDevice {
        match self {
            Self::Device(device) => device,
            #[cfg(feature = "candle")]
            Self::Host => unreachable!("a model on the host has no device"),
        }
    }

    /// Values where it computes.
    pub fn values(&self, values: Vec<f32>) -> Values {
        match self {
            Self::Device(device) => device.client().create_from_slice(bytemuck::cast_slice(&values)).into(),
            #[cfg(feature = "candle")]
            Self::Host => values.into(),
        }
    }
}

/// Tokens that are being added, and what computes on them.
#[derive(Clone, Copy)]
pub(super) struct Step<'a> {
    pub on: On<'a>,
    pub tokens: usize,
    /// What is told of the rows that weights are multiplied by, where somebody wants to know.
    pub observer: Option<&'a Observer>,
}

/// Where a step computes.
#[derive(Clone, Copy)]
pub(super) enum On<'a> {
    Device(DeviceStep<'a>),
    #[cfg(feature = "candle")]
    Host(&'a HostStep<'a>),
}

/// Tokens that are being added on a device.
#[derive(Clone, Copy)]
pub(super) struct DeviceStep<'a> {
    pub device: &'a CubeDevice,
    pub client: &'a Client,
    pub cache: &'a Cache,
    /// The tokens' u32 ids.
    pub ids: &'a Handle,
}

/// The experts of some tokens, `[tokens, slots]`, where a step computes.
pub(super) enum Routed {
    Device(Routing),
    #[cfg(feature = "candle")]
    Host(Vec<u32>),
}

impl Step<'_> {
    /// Tells the observer that tensors of these names are multiplied by rows.
    pub fn observe(&self, tensors: &[&Arc<str>], x: &Rows) {
        if let Some(observer) = self.observer {
            observer.add(self, tensors, x);
        }
    }

    /// The rows of an embedding, times `scale`.
    pub fn embed(&self, table: &Matrix, scale: f32) -> Result<Rows> {
        let rows = match self.on {
            On::Device(on) => {
                let table = table.tensor();
                Rows::new(table.gather_on_device(on.ids, self.tokens, FloatType::F32)?, table.k())
            }
            #[cfg(feature = "candle")]
            On::Host(on) => {
                let rows = table.host().rows(on.ids)?;
                let width = rows.len() / self.tokens;
                Rows::new(rows, width)
            }
        };
        Ok(if scale == 1.0 { rows } else { self.map(&rows, Map::Scale, scale) })
    }

    /// What follows, by a row of logits.
    pub fn after(&self, logits: Rows) -> After {
        match self.on {
            On::Device(on) => After::Device { likeliest: largest(on.client, logits.handle(), logits.width), logits },
            #[cfg(feature = "candle")]
            On::Host(_) => After::Host(logits),
        }
    }

    /// The norm of each row.
    pub fn norm(&self, x: &Rows, by: &RmsNorm<Values>) -> Rows {
        match self.on {
            On::Device(on) => Rows::new(norm(on.client, x.handle(), self.tokens, &by.on_device()), x.width),
            #[cfg(feature = "candle")]
            On::Host(_) => Rows::new(host::norm(x.slice(), by), x.width),
        }
    }

    /// `x + y`, or `x` and the norm `after` of `y`, and the norm `by` of that sum.
    pub fn add_norm(&self, [x, y]: [&Rows; 2], after: Option<&RmsNorm<Values>>, by: &RmsNorm<Values>) -> (Rows, Rows) {
        let rows = |values: Values| Rows { values, width: x.width };
        match self.on {
            On::Device(on) => {
                let (after, by) = (after.map(RmsNorm::on_device), by.on_device());
                let (sum, normed) = add_norm(on.client, [x.handle(), y.handle()], self.tokens, after.as_ref(), &by);
                (rows(sum.into()), rows(normed.into()))
            }
            #[cfg(feature = "candle")]
            On::Host(_) => {
                let (sum, normed) = host::add_norm([x.slice(), y.slice()], after, by);
                (rows(sum.into()), rows(normed.into()))
            }
        }
    }

    /// Turns queries and keys, stores keys and values in the cache, and gives what the queries take from it.
    pub fn attend(
        &self,
        [q, k, v]: [&Rows; 3],
        rotary: &Rotary<Values>,
        attention: &Attention<Values>,
        place: Place,
    ) -> Rows {
        match self.on {
            On::Device(on) => {
                let (layer, turns) = on.cache.layer(place);
                let inputs = [q.handle(), k.handle(), v.handle()];
                let turned = turn_and_store(on.client, inputs, self.tokens, &rotary.on_device(), turns, layer);
                Rows::new(attend(on.client, &turned, self.tokens, &attention.on_device(), layer), q.width)
            }
            #[cfg(feature = "candle")]
            On::Host(on) => Rows::new(on.attend([q.slice(), k.slice(), v.slice()], rotary, attention, place), q.width),
        }
    }

    /// `activation(gate) * up`.
    pub fn gate(&self, [of, up]: [&Rows; 2], activation: Activation) -> Rows {
        match self.on {
            On::Device(on) => {
                let count = self.tokens * up.width;
                Rows::new(gate(on.client, [of.handle(), up.handle()], count, activation), up.width)
            }
            #[cfg(feature = "candle")]
            On::Host(_) => Rows::new(host::gate([of.slice(), up.slice()], activation), up.width),
        }
    }

    /// A function of each value.
    pub fn map(&self, x: &Rows, function: Map, parameter: f32) -> Rows {
        match self.on {
            On::Device(on) => {
                let count = self.tokens * x.width;
                Rows::new(map(on.client, x.handle(), count, function, parameter), x.width)
            }
            #[cfg(feature = "candle")]
            On::Host(_) => Rows::new(host::map(x.slice(), function, parameter), x.width),
        }
    }

    /// The last row, as the only one of a step of one token.
    pub fn last(&self, x: &Rows) -> (Rows, Self) {
        let last = match self.on {
            _ if self.tokens == 1 => x.clone(),
            On::Device(on) => Rows::new(take_row(on.client, x.handle(), self.tokens - 1, x.width), x.width),
            #[cfg(feature = "candle")]
            On::Host(_) => Rows::new(x.slice()[(self.tokens - 1) * x.width..].to_vec(), x.width),
        };
        (last, Self { tokens: 1, ..*self })
    }

    /// The experts of each token by the router's logits, and what their results are multiplied by.
    pub fn choose(&self, logits: &Rows, choice: Choice) -> Result<(Routed, Values)> {
        match self.on {
            On::Device(on) => {
                let Chosen { ids, weights } = choose(on.client, logits.handle(), self.tokens, choice);
                let routing = Routing::new(ids, self.tokens, choice.slots, choice.experts)?;
                Ok((Routed::Device(routing), weights.into()))
            }
            #[cfg(feature = "candle")]
            On::Host(_) => {
                let (ids, weights) = host::choose(logits.slice(), choice);
                Ok((Routed::Host(ids), weights.into()))
            }
        }
    }

    /// The sum of each token's `slots` rows times their weights.
    pub fn mix(&self, rows: &Rows, weights: &Values, slots: usize) -> Rows {
        match self.on {
            On::Device(on) => {
                let shape = [self.tokens, slots, rows.width];
                Rows::new(mix(on.client, rows.handle(), weights.handle(), shape), rows.width)
            }
            #[cfg(feature = "candle")]
            On::Host(_) => Rows::new(host::mix(rows.slice(), weights.slice(), slots, rows.width), rows.width),
        }
    }
}

/// A layer and which of its model's rotary embeddings it has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub layer: usize,
    pub rope: usize,
}
