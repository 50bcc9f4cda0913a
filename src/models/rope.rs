//! [`Rope`]: rotary position embeddings (Su et al., 2021), with the pairs and scalings of GGUF's models.

use burn::tensor::{Device, Tensor, TensorData, s};

/// Which values of a head make a pair that is turned together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pairs {
    /// Neighbours: 0 and 1, 2 and 3, as LLaMA's weights are converted to.
    Neighbours,
    /// Value `i` of the first half and value `i` of the second, as GPT-NeoX has it.
    Halves,
}

/// Rotary embeddings of a kind of layer.
#[derive(Clone, Debug)]
pub(super) struct Rope {
    pairs: Pairs,
    /// What each pair is turned by from one position to the next, in radians.
    frequencies: Vec<f64>,
}

/// Cosines and sines of some positions: `[positions, 1, pairs]` each.
#[derive(Clone, Debug)]
pub(super) struct Turn {
    pairs: Pairs,
    cos: Tensor<3>,
    sin: Tensor<3>,
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

    /// The turns of `tokens` positions from `start` on.
    pub fn at(&self, start: usize, tokens: usize, device: &Device) -> Turn {
        let table = |f: fn(f64) -> f64| {
            let row = |position: usize| self.frequencies.iter().map(move |&w| f(position as f64 * w) as f32);
            let values: Vec<f32> = (start..start + tokens).flat_map(row).collect();
            Tensor::from_data(TensorData::new(values, [tokens, 1, self.frequencies.len()]), device)
        };
        Turn { pairs: self.pairs, cos: table(f64::cos), sin: table(f64::sin) }
    }
}

impl Turn {
    /// Turns the heads of `x` `[positions, heads, head]`; what is past the pairs stays.
    pub fn apply(&self, x: Tensor<3>) -> Tensor<3> {
        let [tokens, heads, head] = x.dims();
        let half = self.cos.dims()[2];
        let dims = 2 * half;
        let turned = x.clone().slice(s![.., .., 0..dims]);
        let (a, b) = match self.pairs {
            Pairs::Halves => (turned.clone().slice(s![.., .., 0..half]), turned.slice(s![.., .., half..dims])),
            Pairs::Neighbours => {
                let pairs = turned.reshape([tokens, heads, half, 2]);
                let side = |i: usize| pairs.clone().slice(s![.., .., .., i..i + 1]).reshape([tokens, heads, half]);
                (side(0), side(1))
            }
        };
        let first = a.clone() * self.cos.clone() - b.clone() * self.sin.clone();
        let second = a * self.sin.clone() + b * self.cos.clone();
        let turned = match self.pairs {
            Pairs::Halves => Tensor::cat(vec![first, second], 2),
            Pairs::Neighbours => Tensor::stack::<4>(vec![first, second], 3).reshape([tokens, heads, dims]),
        };
        if dims == head { turned } else { Tensor::cat(vec![turned, x.slice(s![.., .., dims..head])], 2) }
    }
}
