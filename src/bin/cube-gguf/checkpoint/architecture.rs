//! What a checkpoint's class says: which tensors it has, what becomes of them, and which hyperparameters a GGUF file has for it.

use super::config::Config;
use super::metadata::Keys;
use super::{gemma, gpt_oss, llama, phi, qwen};
use crate::Outcome;

/// The architectures, as `src/models` has them.
const ALL: [&Architecture; 10] = [
    &gemma::GEMMA_2,
    &gemma::GEMMA_3,
    &gpt_oss::GPT_OSS,
    &llama::LLAMA,
    &llama::MISTRAL,
    &llama::MIXTRAL,
    &phi::PHI_3,
    &qwen::QWEN_2,
    &qwen::QWEN_3,
    &qwen::QWEN_3_MOE,
];

/// How a class of Transformers becomes a GGUF file: as llama.cpp's `convert_hf_to_gguf.py` does it.
pub struct Architecture {
    /// In `general.architecture`.
    pub name: &'static str,
    /// In `config.json`.
    pub classes: &'static [&'static str],
    /// The hyperparameters of a class where `config.json` has none, as Transformers 4.57 has them.
    pub defaults: &'static [(&'static str, f64)],
    /// Whether the embedding is the output where `config.json` does not say.
    pub is_tied: bool,
    /// Whether a head's width is a hyperparameter of all files, or only where `config.json` has it.
    pub has_head_width: bool,
    /// The tensors that no layer has.
    pub ends: &'static [Rule],
    /// Those of a layer.
    pub layer: &'static [&'static [Rule]],
    /// Parts of the names of tensors that are left out.
    pub skipped: &'static [&'static str],
    pub vocabulary: Vocabulary,
    /// Writes the hyperparameters.
    pub parameters: fn(&Config, &Sizes, &mut Keys) -> Outcome,
    /// Vectors that are made of hyperparameters.
    pub vectors: fn(&Config, &Sizes) -> Outcome<Vectors>,
}

/// Vectors and their names.
pub type Vectors = Vec<(&'static str, Vec<f32>)>;

/// Where the tokens are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Vocabulary {
    /// In `tokenizer.json`.
    ByteLevel,
    /// In `tokenizer.model` where there is one, else in `tokenizer.json`.
    Either,
    /// The same, with more to say of spaces and of code.
    Llama,
    /// In `tokenizer.model`.
    Gemma,
    /// In `tokenizer.json` for one class of tokenizers, else in `tokenizer.model` with what the former adds.
    Phi,
}

/// A tensor of a checkpoint and what it becomes.
pub struct Rule {
    /// After the prefix of a layer, if it is one's; `{}` is the number of an expert.
    pub source: &'static str,
    pub name: &'static str,
    /// In the checkpoint, outermost first.
    pub shape: &'static [Extent],
    pub change: Change,
    pub presence: Presence,
}

impl Rule {
    pub const fn new(source: &'static str, name: &'static str, shape: &'static [Extent]) -> Self {
        Self { source, name, shape, change: Change::None, presence: Presence::Required }
    }

    /// The same where `config.json` says nothing of it, so that it may be missing.
    pub const fn optional(self) -> Self {
        Self { presence: Presence::Optional, ..self }
    }

    pub const fn with(self, change: Change) -> Self {
        Self { change, ..self }
    }
}

/// Whether a checkpoint has a tensor.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    Required,
    Optional,
    /// Where the embedding is no output.
    Untied,
}

/// What is done to a tensor.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Change {
    None,
    /// Rows of a head change places.
    Halves,
    /// One is added: the class multiplies by 1 + x.
    AddOne,
    /// Its first rows are taken, as many as there are tokens.
    Cut,
    /// A part of the experts of gpt-oss: blocks or transposed floats, every `step`th row from `first` on.
    Experts {
        first: usize,
        step: usize,
    },
    /// Biases of such a part.
    ExpertBiases {
        first: usize,
    },
}

/// An extent of a tensor, by the hyperparameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    Tokens,
    Hidden,
    /// All heads of queries.
    Queries,
    /// All heads of keys, or of values.
    Keys,
    /// Those of queries, keys and values.
    All,
    Heads,
    Head,
    FeedForward,
    /// Gate and up.
    Both,
    Experts,
    ExpertFeedForward,
    ExpertBoth,
}

/// The extents.
pub struct Sizes {
    pub vocabulary: usize,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head: usize,
    pub feed_forward: usize,
    pub experts: usize,
    pub expert_feed_forward: usize,
    /// Whether the width of heads is a hyperparameter of its own.
    pub has_head_width: bool,
}

impl Sizes {
    pub fn of(config: &Config, architecture: &Architecture) -> Outcome<Self> {
        let (hidden, heads) = (config.extent("hidden_size")?, config.extent("num_attention_heads")?);
        let optional = |key: &str, other: usize| match config.optional(key)? {
            Some(0) | None => Ok::<_, Box<dyn std::error::Error>>(other),
            Some(number) => Ok(number as usize),
        };
        let feed_forward = config.extent("intermediate_size")?;
        let experts = optional("num_local_experts", optional("num_experts", 0)?)?;
        let head = optional("head_dim", hidden / heads)?;
        if head == 0 {
            return Err(config.error(&format!("{heads} heads of rows of {hidden} have no width")).into());
        }
        Ok(Self {
            vocabulary: config.extent("vocab_size")?,
            hidden,
            layers: config.extent("num_hidden_layers")?,
            heads,
            kv_heads: optional("num_key_value_heads", heads)?,
            head,
            feed_forward,
            experts,
            expert_feed_forward: optional("moe_intermediate_size", feed_forward)?,
            has_head_width: architecture.has_head_width || config.get("head_dim").is_some(),
        })
    }

    /// An extent; the largest number where it has more than 64 bits, which no tensor has.
    pub fn extent(&self, extent: Extent) -> usize {
        let (queries, keys) = (self.heads.saturating_mul(self.head), self.kv_heads.saturating_mul(self.head));
        match extent {
            Extent::Tokens => self.vocabulary,
            Extent::Hidden => self.hidden,
            Extent::Queries => queries,
            Extent::Keys => keys,
            Extent::All => queries.saturating_add(keys).saturating_add(keys),
            Extent::Heads => self.heads,
            Extent::Head => self.head,
            Extent::FeedForward => self.feed_forward,
            Extent::Both => 2 * self.feed_forward,
            Extent::Experts => self.experts,
            Extent::ExpertFeedForward => self.expert_feed_forward,
            Extent::ExpertBoth => 2 * self.expert_feed_forward,
        }
    }
}

impl Architecture {
    /// That of a class.
    pub fn of(config: &Config) -> Outcome<&'static Self> {
        let class = config.class()?;
        let found = ALL.into_iter().find(|architecture| architecture.classes.contains(&class));
        Ok(found.ok_or_else(|| {
            let known: Vec<_> = ALL.iter().flat_map(|architecture| architecture.classes).copied().collect();
            config.error(&format!("architecture {class:?} is unknown: those that are known are {}", known.join(", ")))
        })?)
    }
}
