//! What a product of few tokens is asked for.

use serde::{Deserialize, Serialize};

use crate::gguf::GgmlType;

/// The most rows of activations that one launch multiplies.
pub const MAX_TOKENS: usize = 8;

/// What the activations of a product are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActivationType {
    /// int8 codes in chunks of 32.
    Int8,
    /// f32 values.
    Float,
}

/// The product of few tokens that [`Settings`](super::Settings) are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Problem {
    /// The format of the weights.
    pub ty: GgmlType,
    /// What the activations are multiplied as.
    pub operand: ActivationType,
    /// Rows of activations.
    pub tokens: usize,
    /// Rows of weights.
    pub n: usize,
    /// Chunks of 32 values in a row of weights.
    pub chunks: usize,
}
