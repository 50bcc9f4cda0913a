//! What a product on matrix units is chosen by.

use crate::gguf::GgmlType;

/// The sizes of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Problem {
    /// The format of the weights.
    pub ty: GgmlType,
    /// Rows of activations.
    pub tokens: usize,
    /// Rows of weights.
    pub n: usize,
    /// Chunks of 32 weights of a row.
    pub chunks: usize,
}
