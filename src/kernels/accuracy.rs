//! [`Accuracy`]: the resolved arithmetic of a product, and a bound on its error.

use super::formats::CHUNK;

/// The arithmetic of a product, resolved for a device, a format and a number of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Accuracy {
    /// Activations as int8 codes with a scale for each run of `block` values, integer products, f32 sums.
    Int8 {
        /// Values that share a scale.
        block: usize,
        /// Whether the scale is rounded to a half, as Candle's Q8_0 is.
        half_scale: bool,
    },
    /// f32 activations and products.
    Float,
    /// Activations rounded to the weights' own type, f16 or bf16, f32 sums: Candle's product on the host.
    Halves {
        /// Significant bits of that type.
        bits: u8,
    },
    /// Both operands rounded to bf16, products and sums in f32, on matrix units.
    MatrixUnits,
}

impl Accuracy {
    /// This crate's int8 product.
    pub const INT8: Self = Self::Int8 { block: CHUNK, half_scale: false };

    /// The display name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Int8 { .. } => "int8",
            Self::Float => "float",
            Self::Halves { .. } => "half",
            Self::MatrixUnits => "bf16",
        }
    }

    /// The largest `|error|` of one output against the exact product of a row of dequantized weights with `x`.
    ///
    /// The rounding of the operands (a code is at most half a step off, a step being `max|x| / 127`), plus that of f32
    /// sums: `2^-24` of the sum of magnitudes for each term.
    pub fn error_bound(self, weights: &[f32], x: &[f32]) -> f64 {
        let products: f64 = weights.iter().zip(x).map(|(&w, &x)| (w as f64 * x as f64).abs()).sum();
        let terms = weights.len() as f64 + 16.0;
        let sums = terms * 2f64.powi(-24) * products;
        let operands = match self {
            Self::Float => 0.0,
            Self::Halves { bits } => 2f64.powi(-(bits as i32)) * products,
            // (1 + u)^2 - 1, where u = 2^-8 is the unit roundoff of eight significant bits.
            Self::MatrixUnits => (2f64.powi(-7) + 2f64.powi(-16)) * products,
            Self::Int8 { block, half_scale } => {
                let runs = weights.chunks(block).zip(x.chunks(block));
                let step = |(w, x): (&[f32], &[f32])| {
                    let largest = x.iter().fold(0.0f64, |largest, &x| largest.max((x as f64).abs()));
                    let weights: f64 = w.iter().map(|&w| (w as f64).abs()).sum();
                    // The half step itself is computed in f32.
                    largest / 254.0 * (1.0 + 2f64.powi(-12)) * weights
                };
                let rounded_scale = if half_scale { 2f64.powi(-10) * products } else { 0.0 };
                runs.map(step).sum::<f64>() + rounded_scale
            }
        };
        operands + sums
    }
}
