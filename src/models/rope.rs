//! [`Rope`]: rotary position embeddings (Su et al., 2021), with the scalings of GGUF's models.

use cubecl::client::Client;

use crate::kernels::decoder::rotary::{Pairs, Turns};

/// Rotary embeddings of a kind of layer.
#[derive(Clone, Debug)]
pub(super) struct Rope {
    pairs: Pairs,
    /// What each pair is turned by from one position to the next, in radians.
    frequencies: Vec<f64>,
}

impl Rope {
    /// Pair `i` of `dims` values, the first of a head, turns by `base^(-2i / dims) * scale` a position. `scale` is one over the
    /// factor of a linear scaling.
    pub fn new(pairs: Pairs, dims: usize, base: f64, scale: f64) -> Self {
        let frequency = |pair: usize| base.powf(-2.0 * pair as f64 / dims as f64) * scale;
        Self { pairs, frequencies: (0..dims / 2).map(frequency).collect() }
    }

    /// The same with each pair's frequency divided by a factor, as LLaMA 3 scales them.
    pub fn divided_by(self, factors: &[f32]) -> Self {
        let frequencies = self.frequencies.iter().zip(factors).map(|(w, &factor)| w / f64::from(factor));
        Self { frequencies: frequencies.collect(), ..self }
    }

    /// The turns of the first `positions` positions, on the device.
    pub fn turns(&self, positions: usize, client: &Client) -> Turns {
        let row = |position: usize| {
            let angles = move || self.frequencies.iter().map(move |&w| position as f64 * w);
            angles().map(f64::cos).chain(angles().map(f64::sin)).map(|value| value as f32)
        };
        let table: Vec<f32> = (0..positions).flat_map(row).collect();
        let table = client.create_from_slice(bytemuck::cast_slice(&table));
        Turns { pairs: self.pairs, count: self.frequencies.len(), table }
    }
}
