//! A model on the host: its products by Candle's kernels, and what lies between them, without a device.

mod matrices;
mod ops;

use std::sync::{Mutex, PoisonError};

pub(super) use self::matrices::{HostExperts, HostMatrix, HostPairs};
use self::ops::{KeyValues, attend, turn_and_store};
pub(super) use self::ops::{add_norm, add_squares, choose, gate, largest, map, mix, norm};
use super::Shape;
use super::step::Place;
use super::values::Values;
use crate::kernels::decoder::attention::Attention;
use crate::kernels::decoder::rotary::{Rotary, Turns};

/// The keys and values of the tokens so far.
#[derive(Debug)]
pub(super) struct HostCache {
    /// Behind a lock, as all that a step goes through has it.
    layers: Vec<Mutex<KeyValues>>,
    /// Of each of the model's rotary embeddings.
    turns: Vec<Turns<Vec<f32>>>,
}

impl HostCache {
    /// Room for `capacity` tokens.
    pub fn new(shape: &Shape, capacity: usize) -> Self {
        let room = || vec![0.0; shape.kv_heads * capacity * shape.head];
        let layer = |_| Mutex::new(KeyValues { keys: room(), values: room(), capacity });
        let turns = shape.ropes.iter().map(|rope| rope.turns(capacity, |table| table));
        Self { layers: (0..shape.layers).map(layer).collect(), turns: turns.collect() }
    }
}

/// Tokens that are being added to a run.
#[derive(Debug)]
pub(super) struct HostStep<'a> {
    pub ids: &'a [u32],
    /// The position of the first.
    pub position: usize,
    pub cache: &'a HostCache,
}

impl HostStep<'_> {
    /// Turns queries and keys, stores keys and values in the cache, and gives what the queries take from it.
    pub fn attend(
        &self,
        inputs: [&[f32]; 3],
        rotary: &Rotary<Values>,
        attention: &Attention<Values>,
        place: Place,
    ) -> Vec<f32> {
        let mut layer = self.cache.layers[place.layer].lock().unwrap_or_else(PoisonError::into_inner);
        let turned = turn_and_store(inputs, self.position, rotary, &self.cache.turns[place.rope], &mut layer);
        attend(&turned, self.position, attention, &layer)
    }
}
