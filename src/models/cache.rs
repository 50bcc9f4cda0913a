//! [`Cache`]: the keys and values of the tokens so far, on the device.

use burn::tensor::{Device, Tensor, s};

use super::Shape;

/// Keys and values of all layers, and the place of the tokens that are being added.
#[derive(Debug)]
pub(super) struct Cache {
    layers: Vec<Layer>,
    capacity: usize,
    len: usize,
}

/// Keys and values of a layer: `[1, kv_heads, capacity, head]`.
#[derive(Debug)]
struct Layer {
    keys: Tensor<4>,
    values: Tensor<4>,
}

impl Cache {
    pub fn new(shape: Shape, capacity: usize, device: &Device) -> Self {
        let zeros = || Tensor::zeros([1, shape.kv_heads, capacity, shape.head], device);
        let layers = (0..shape.layers).map(|_| Layer { keys: zeros(), values: zeros() }).collect();
        Self { layers, capacity, len: 0 }
    }

    /// Tokens so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Tokens that there is room for in all.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Adds the keys and values `[1, kv_heads, tokens, head]` of a layer, and gives those of all tokens so far.
    pub fn extend(&mut self, layer: usize, keys: Tensor<4>, values: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let (start, end) = (self.len, self.len + keys.dims()[2]);
        let layer = &mut self.layers[layer];
        let place = || s![.., .., start..end, ..];
        layer.keys.inplace(|all| all.slice_assign(place(), keys));
        layer.values.inplace(|all| all.slice_assign(place(), values));
        let so_far = || s![.., .., 0..end, ..];
        (layer.keys.clone().slice(so_far()), layer.values.clone().slice(so_far()))
    }

    /// Counts tokens whose keys and values are in all layers.
    pub fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }
}
