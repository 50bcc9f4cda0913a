//! [`Cache`]: the keys and values of the tokens so far, on the device.

use cubecl::bytes::Bytes;
use cubecl::client::Client;
use cubecl::server::Handle;

use super::Shape;
use super::step::Place;
use crate::kernels::decoder::rotary::{KeyValues, Turns};

/// Keys and values of all layers, and the turns of all positions.
#[derive(Debug)]
pub(super) struct Cache {
    layers: Vec<KeyValues>,
    /// Of each of the model's rotary embeddings.
    turns: Vec<Turns>,
    /// The position of the first token that is being added, an i32.
    position: Handle,
}

impl Cache {
    /// Room for `capacity` tokens.
    pub fn new(shape: &Shape, capacity: usize, client: &Client) -> Self {
        let position = client.create_from_slice(&0i32.to_le_bytes());
        let bytes = 4 * shape.kv_heads * capacity * shape.head;
        let layer = |_| KeyValues {
            keys: client.empty(bytes),
            values: client.empty(bytes),
            capacity,
            position: position.clone(),
        };
        let layers = (0..shape.layers).map(layer).collect();
        let upload = |table: Vec<f32>| client.create_from_slice(bytemuck::cast_slice(&table));
        let turns = shape.ropes.iter().map(|rope| rope.turns(capacity, upload)).collect();
        Self { layers, turns, position }
    }

    /// The next tokens are added from `position` on.
    pub fn move_to(&self, position: usize, client: &Client) {
        client.write(&self.position, Bytes::from_bytes_vec((position as i32).to_le_bytes().to_vec()));
    }

    /// The keys and values of a layer, and its turns.
    pub fn layer(&self, place: Place) -> (&KeyValues, &Turns) {
        (&self.layers[place.layer], &self.turns[place.rope])
    }
}
