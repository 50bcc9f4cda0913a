//! What can be wrong with a file's tokenizer or chat template, or with what
//! they are asked for.

use crate::gguf;

/// The result of reading or using a tokenizer, a chat template or a sampler.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of a tokenizer, a chat template or a sampler.
///
/// Messages name the metadata key and the numbers that do not fit.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A metadata key that is missing or of another type.
    #[error(transparent)]
    Gguf(#[from] gguf::Error),

    /// A kind of tokenizer that is not supported.
    #[error("metadata key `{key}`: tokenizers of kind \"{found}\" are not supported (\"llama\" and \"gpt2\" are)")]
    UnknownModel {
        /// The key.
        key: &'static str,
        /// The kind in the file.
        found: String,
    },
    /// A pre-tokenizer that is not supported.
    #[error("metadata key `{key}`: pre-tokenizer \"{found}\" is not supported ({known} are)")]
    UnknownPreTokenizer {
        /// The key.
        key: &'static str,
        /// The pre-tokenizer in the file.
        found: String,
        /// The names of all that are, separated by commas.
        known: String,
    },

    /// A vocabulary without tokens.
    #[error("metadata key `{key}` holds no tokens")]
    EmptyVocabulary {
        /// The key.
        key: &'static str,
    },
    /// More tokens than there are ids.
    #[error("metadata key `{key}` holds {found} tokens, at most {} have an id", u32::MAX)]
    TooManyTokens {
        /// The key.
        key: &'static str,
        /// The number of tokens.
        found: usize,
    },
    /// Two tokens of the same text.
    #[error("metadata key `{key}`: tokens {first} and {second} are both {text:?}")]
    DuplicateToken {
        /// The key.
        key: &'static str,
        /// The text of both.
        text: String,
        /// The id of the first.
        first: u32,
        /// The id of the second.
        second: u32,
    },
    /// An array about tokens that does not cover all of them.
    #[error("metadata key `{key}` has {found} elements for {tokens} tokens")]
    ArrayLength {
        /// The key.
        key: &'static str,
        /// The number of its elements.
        found: usize,
        /// The number of tokens.
        tokens: usize,
    },
    /// A token type that ggml does not define.
    #[error("metadata key `{key}`: token {id} has unknown type {found}")]
    UnknownTokenType {
        /// The key.
        key: &'static str,
        /// The token.
        id: u32,
        /// The type in the file.
        found: i64,
    },
    /// A score that orders nothing.
    #[error("metadata key `{key}`: the score of token {id} is no number")]
    BadScore {
        /// The key.
        key: &'static str,
        /// The token.
        id: u32,
    },
    /// A token of type byte whose text is no byte.
    #[error("metadata key `{key}`: token {id} is of type byte, but its text {text:?} is not like \"<0x0A>\"")]
    BadByteToken {
        /// The key.
        key: &'static str,
        /// The token.
        id: u32,
        /// Its text.
        text: String,
    },
    /// A merge that is not two pieces with a space between them.
    #[error("metadata key `{key}`: merge {index} is {merge:?}, not two tokens with a space between them")]
    BadMerge {
        /// The key.
        key: &'static str,
        /// Its place among the merges, from 0.
        index: usize,
        /// The merge.
        merge: String,
    },
    /// A merge of, or into, what is no token.
    #[error("metadata key `{key}`: merge {index} needs a token {text:?}, which the vocabulary does not have")]
    UnknownMerge {
        /// The key.
        key: &'static str,
        /// Its place among the merges, from 0.
        index: usize,
        /// The text that is no token.
        text: String,
    },
    /// A special token that is not in the vocabulary.
    #[error("metadata key `{key}` is {id}, but there are {tokens} tokens")]
    SpecialOutOfRange {
        /// The key.
        key: &'static str,
        /// The id in the file.
        id: u64,
        /// The number of tokens.
        tokens: usize,
    },
    /// A special token that is to be added to every text and is not named.
    #[error("metadata key `{key}` is true, but `{missing}` names no token to add")]
    NothingToAdd {
        /// The key that asks for the token.
        key: &'static str,
        /// The key that should name it.
        missing: &'static str,
    },

    /// A token id that is not in the vocabulary.
    #[error("there is no token {id}: the vocabulary has {tokens} tokens")]
    UnknownId {
        /// The id.
        id: u32,
        /// The number of tokens.
        tokens: usize,
    },
    /// A character that no token stands for, in a vocabulary without an
    /// unknown token.
    #[error("no token stands for {character:?}: the vocabulary has neither its bytes nor an unknown token")]
    NoTokenFor {
        /// The character.
        character: char,
    },
    /// A pre-tokenizer's regular expression that failed.
    #[error("pre-tokenizer \"{name}\" failed: {source}")]
    PreTokenizer {
        /// The pre-tokenizer.
        name: &'static str,
        /// What failed.
        source: Box<fancy_regex::Error>,
    },

    /// A chat template that does not parse or does not render.
    #[error("metadata key `{key}`: {source}")]
    ChatTemplate {
        /// The key.
        key: &'static str,
        /// What is wrong with it, and in which line.
        source: Box<minijinja::Error>,
    },

    /// A setting of the sampler that is out of its range.
    #[error("{name} is {found}, it must be {wanted}")]
    BadSampling {
        /// The setting.
        name: &'static str,
        /// Its value.
        found: f32,
        /// What it must be.
        wanted: &'static str,
    },
    /// Logits of which there are none, or more than there are ids.
    #[error("cannot sample from {count} logits")]
    LogitCount {
        /// The number of logits.
        count: usize,
    },
    /// A logit that is NaN or +infinity.
    #[error("the logit of token {id} is {logit}")]
    BadLogit {
        /// The token.
        id: u32,
        /// Its logit.
        logit: f32,
    },
    /// Logits that are all -infinity.
    #[error("all {count} logits are -inf: no token is possible")]
    NoCandidates {
        /// The number of logits.
        count: usize,
    },
}
