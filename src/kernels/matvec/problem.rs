//! The problem that a product of few tokens solves.

use serde::{Deserialize, Serialize};

use crate::gguf::GgmlType;

/// The most rows of activations that one launch multiplies.
pub const MAX_TOKENS: usize = 8;

/// The type that the activations of a product are multiplied as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActivationType {
    /// int8 codes in chunks of 32.
    Int8,
    /// f32 values.
    Float,
}

/// A product of few tokens, as [`Settings`](super::Settings) are chosen for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Problem {
    /// The format of the weights.
    pub ty: GgmlType,
    /// The type that the activations are multiplied as.
    pub operand: ActivationType,
    /// Rows of activations.
    pub tokens: usize,
    /// Rows of weights.
    pub n: usize,
    /// Chunks of 32 values in a row of weights.
    pub chunks: usize,
}
