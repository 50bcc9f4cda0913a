//! The errors of models.

use crate::gguf;

/// What is wrong with a model's file, or with what is asked of the model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A key or a tensor that is missing or of another type.
    #[error(transparent)]
    Gguf(#[from] gguf::Error),
    /// An architecture that is not supported.
    #[error("models of architecture \"{found}\" are not supported ({known} are)")]
    UnknownArchitecture {
        /// The architecture in the file.
        found: String,
        /// Those that are supported, separated by commas.
        known: String,
    },
    /// A scaling of rotary embeddings that is not supported.
    #[error(
        "metadata key `{key}`: rotary embeddings of scaling \"{found}\" are not supported (\"none\", \"linear\", \"yarn\" and \"longrope\" are)"
    )]
    UnknownScaling {
        /// The key.
        key: String,
        /// The scaling in the file.
        found: String,
    },
    /// Hyperparameters that do not fit each other.
    #[error("metadata key `{key}` is {found}, which {reason}")]
    Hyperparameter {
        /// The key.
        key: String,
        /// Its value.
        found: f64,
        /// What it must be.
        reason: &'static str,
    },
    /// A tensor whose shape is not that of its place in the model.
    #[error("tensor `{name}` is {found:?}, where the model has {wanted:?}")]
    Shape {
        /// The tensor.
        name: String,
        /// Its rows and columns.
        found: [usize; 2],
        /// The rows and columns that the hyperparameters ask for.
        wanted: [usize; 2],
    },
    /// A tensor that the device cannot take.
    #[error("tensor `{name}`: {source}")]
    Tensor {
        /// The tensor.
        name: String,
        /// The reason.
        source: crate::Error,
    },
    /// A number of tokens to have room for that the model cannot have.
    #[error("room for {capacity} tokens was asked for: the model takes from 1 to {context}")]
    Capacity {
        /// The number that was asked for.
        capacity: usize,
        /// The model's context.
        context: usize,
    },
    /// Nothing to go on from.
    #[error("there are no tokens: a model goes on from at least one")]
    NoTokens,
    /// More tokens than there is room for.
    #[error("{tokens} more tokens do not fit: {left} of {capacity} are left")]
    ContextFull {
        /// The tokens to add.
        tokens: usize,
        /// The tokens that there is room for.
        left: usize,
        /// All that there was room for.
        capacity: usize,
    },
    /// A token outside the vocabulary.
    #[error("token {id} is not one of the vocabulary's {vocabulary}")]
    UnknownToken {
        /// The token.
        id: u32,
        /// Tokens of the vocabulary.
        vocabulary: usize,
    },
    /// A product that failed, or a device.
    #[error(transparent)]
    Compute(#[from] crate::Error),
}

/// A result with an [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
