//! [`Step`]: the addition of some tokens to a run, by launches on the device.

use std::sync::Arc;

use cubecl::client::Client;
use cubecl::server::Handle;

use super::cache::Cache;
use super::error::Result;
use super::importance::Observer;
use crate::kernels::decoder::attention::{Attention, attend};
use crate::kernels::decoder::elementwise::{Activation, Map, gate, map, take_row};
use crate::kernels::decoder::experts::{Choice, Chosen, choose, mix};
use crate::kernels::decoder::largest::largest;
use crate::kernels::decoder::norm::{RmsNorm, add_norm, norm};
use crate::kernels::decoder::rotary::{Rotary, turn_and_store};
use crate::kernels::floats::FloatType;
use crate::kernels::routing::Route;
use crate::storage::{CubeDevice, DeviceTensor};

/// Rows of f32 on the device, one for each of a step's tokens.
#[derive(Clone, Debug)]
pub(super) struct Rows {
    pub handle: Handle,
    /// Values of a row.
    pub width: usize,
}

impl Rows {
    /// The values of the first `rows` rows, on the host.
    pub fn read(&self, device: &CubeDevice, rows: usize) -> crate::Result<Vec<f32>> {
        Ok(FloatType::F32.to_f32(&device.read(self.handle.clone())?, rows * self.width))
    }
}

/// What a step gives, on the device.
#[derive(Clone, Debug)]
pub(super) struct After {
    /// Those of the token after the step's last.
    pub logits: Rows,
    /// The likeliest of them: its id and the bits of its logit.
    pub likeliest: Handle,
}

impl After {
    /// The likeliest token and its logit, on the host.
    pub fn read_likeliest(&self, device: &CubeDevice) -> crate::Result<(u32, f32)> {
        let bytes = device.read(self.likeliest.clone())?;
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Ok((word(0), f32::from_bits(word(4))))
    }
}

/// Tokens that are being added, and what computes on them.
#[derive(Clone, Copy)]
pub(super) struct Step<'a> {
    pub device: &'a CubeDevice,
    pub client: &'a Client,
    pub cache: &'a Cache,
    /// The tokens' u32 ids.
    pub ids: &'a Handle,
    pub tokens: usize,
    /// What is told of the rows that weights are multiplied by, where somebody wants to know.
    pub observer: Option<&'a Observer>,
}

impl Step<'_> {
    /// Tells the observer that tensors of these names are multiplied by rows.
    pub fn observe(&self, tensors: &[&Arc<str>], x: &Rows) {
        if let Some(observer) = self.observer {
            observer.add(self.client, tensors, &x.handle, [self.tokens, x.width]);
        }
    }

    /// The same of stacks of experts.
    pub fn observe_pairs(&self, stacks: &[&Arc<str>], x: &Rows, route: Route<'_>) {
        if let Some(observer) = self.observer {
            observer.add_pairs(self.client, stacks, &x.handle, x.width, route);
        }
    }

    /// The rows of an embedding, times `scale`.
    pub fn embed(&self, table: &DeviceTensor, scale: f32) -> Result<Rows> {
        let handle = table.gather_on_device(self.ids, self.tokens, FloatType::F32)?;
        let rows = Rows { handle, width: table.k() };
        Ok(if scale == 1.0 { rows } else { self.map(&rows, Map::Scale, scale) })
    }

    /// The likeliest token by a row of logits, on the device: its id and the bits of its logit.
    pub fn likeliest(&self, logits: &Rows) -> Handle {
        largest(self.client, &logits.handle, logits.width)
    }

    /// The norm of each row.
    pub fn norm(&self, x: &Rows, by: &RmsNorm) -> Rows {
        Rows { handle: norm(self.client, &x.handle, self.tokens, by), width: x.width }
    }

    /// `x + y`, or `x` and the norm `after` of `y`, and the norm `by` of that sum.
    pub fn add_norm(&self, [x, y]: [&Rows; 2], after: Option<&RmsNorm>, by: &RmsNorm) -> (Rows, Rows) {
        let (sum, normed) = add_norm(self.client, [&x.handle, &y.handle], self.tokens, after, by);
        (Rows { handle: sum, width: x.width }, Rows { handle: normed, width: x.width })
    }

    /// Turns queries and keys, stores keys and values in the cache, and gives what the queries take from it.
    pub fn attend(&self, [q, k, v]: [&Rows; 3], rotary: &Rotary, attention: &Attention, place: Place) -> Rows {
        let (layer, turns) = self.cache.layer(place);
        let inputs = [&q.handle, &k.handle, &v.handle];
        let turned = turn_and_store(self.client, inputs, self.tokens, rotary, turns, layer);
        Rows { handle: attend(self.client, &turned, self.tokens, attention, layer), width: q.width }
    }

    /// `activation(gate) * up`.
    pub fn gate(&self, [of, up]: [&Rows; 2], activation: Activation) -> Rows {
        let count = self.tokens * up.width;
        Rows { handle: gate(self.client, [&of.handle, &up.handle], count, activation), width: up.width }
    }

    /// A function of each value.
    pub fn map(&self, x: &Rows, function: Map, parameter: f32) -> Rows {
        let count = self.tokens * x.width;
        Rows { handle: map(self.client, &x.handle, count, function, parameter), width: x.width }
    }

    /// The last row, as the only one of a step of one token.
    pub fn last(&self, x: &Rows) -> (Rows, Self) {
        let handle = match self.tokens {
            1 => x.handle.clone(),
            tokens => take_row(self.client, &x.handle, tokens - 1, x.width),
        };
        (Rows { handle, width: x.width }, Self { tokens: 1, ..*self })
    }

    /// The experts of each token by the router's logits.
    pub fn choose(&self, logits: &Rows, choice: Choice) -> Chosen {
        choose(self.client, &logits.handle, self.tokens, choice)
    }

    /// The sum of each token's `slots` rows times their weights.
    pub fn mix(&self, rows: &Rows, weights: &Handle, slots: usize) -> Rows {
        let handle = mix(self.client, &rows.handle, weights, [self.tokens, slots, rows.width]);
        Rows { handle, width: rows.width }
    }
}

/// A layer and which of its model's rotary embeddings it has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub layer: usize,
    pub rope: usize,
}
