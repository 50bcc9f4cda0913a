//! [`Rope`]: rotary position embeddings (Su et al., 2021), with the scalings of GGUF's models.

use std::f64::consts::TAU;

use crate::kernels::decoder::rotary::{Pairs, Turns};

/// How positions past those of the training are brought in.
#[derive(Clone, Copy, Debug)]
pub(super) enum Scaling {
    /// All positions are divided by a factor, 1 for none.
    Linear(f64),
    Yarn(Yarn),
}

/// YaRN (Peng et al., 2023): pairs that turn slowly are scaled by `factor`, those that turn fast are not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Yarn {
    pub factor: f64,
    /// Tokens of the context before the scaling.
    pub original: usize,
    /// Turns in the original context from which on a pair is not scaled.
    pub fast: f64,
    /// Turns in the original context up to which a pair is scaled.
    pub slow: f64,
}

impl Yarn {
    /// How much of pair `pair` is scaled, from 0 to 1.
    fn share(&self, pair: usize, dims: usize, base: f64) -> f64 {
        let turning = |turns: f64| dims as f64 * (self.original as f64 / (turns * TAU)).ln() / (2.0 * base.ln());
        let low = turning(self.fast).floor().max(0.0);
        let high = turning(self.slow).ceil().min(dims as f64 - 1.0);
        ((pair as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0)
    }
}

/// Rotary embeddings of a kind of layer.
#[derive(Clone, Debug)]
pub(super) struct Rope {
    pairs: Pairs,
    /// What each pair is turned by from one position to the next, in radians.
    frequencies: Vec<f64>,
    /// Those of runs with room for more tokens than a number.
    long: Option<(usize, Vec<f64>)>,
    /// What turned values are multiplied by.
    magnitude: f64,
}

impl Rope {
    /// Pair `i` of `dims` values, the first of a head, turns by `base^(-2i / dims)` a position, scaled.
    pub fn new(pairs: Pairs, dims: usize, base: f64, scaling: Scaling) -> Self {
        let plain = |pair: usize| base.powf(-2.0 * pair as f64 / dims as f64);
        let frequency = |pair: usize| match scaling {
            Scaling::Linear(factor) => plain(pair) / factor,
            Scaling::Yarn(yarn) => {
                let share = yarn.share(pair, dims, base);
                plain(pair) * (share / yarn.factor + 1.0 - share)
            }
        };
        let magnitude = match scaling {
            Scaling::Yarn(yarn) => 1.0 + 0.1 * yarn.factor.ln(),
            Scaling::Linear(_) => 1.0,
        };
        Self { pairs, frequencies: (0..dims / 2).map(frequency).collect(), long: None, magnitude }
    }

    fn divided(&self, factors: &[f32]) -> Vec<f64> {
        self.frequencies.iter().zip(factors).map(|(w, &factor)| w / f64::from(factor)).collect()
    }

    /// The same with each pair's frequency divided by a factor, as LLaMA 3 scales them.
    pub fn divided_by(self, factors: &[f32]) -> Self {
        Self { frequencies: self.divided(factors), ..self }
    }

    /// The same with factors for runs of up to `original` tokens, and others for longer ones: LongRoPE (Ding et al., 2024).
    pub fn divided_by_length(self, [short, long]: [&[f32]; 2], original: usize) -> Self {
        Self { frequencies: self.divided(short), long: Some((original, self.divided(long))), ..self }
    }

    /// The same with values `factor` times as large after the turn.
    pub fn scaled_by(self, factor: f64) -> Self {
        Self { magnitude: self.magnitude * factor, ..self }
    }

    /// The turns of the first `positions` positions, whose table is where `place` puts it.
    pub fn turns<V>(&self, positions: usize, place: impl FnOnce(Vec<f32>) -> V) -> Turns<V> {
        let frequencies = match &self.long {
            Some((original, long)) if positions > *original => long,
            _ => &self.frequencies,
        };
        let row = |position: usize| {
            let angles = move || frequencies.iter().map(move |&w| position as f64 * w);
            angles().map(f64::cos).chain(angles().map(f64::sin)).map(|value| (value * self.magnitude) as f32)
        };
        let table = place((0..positions).flat_map(row).collect());
        Turns { pairs: self.pairs, count: frequencies.len(), table }
    }
}
