//! Text in and out of a model: tokens, chat templates and sampling, all from
//! what a GGUF file says of itself.
//!
//! The tokenizers are those of llama.cpp, token for token: SentencePiece BPE
//! by scores (`tokenizer.ggml.model` = `llama`) and byte-level BPE by merges
//! (`gpt2`). Files are untrusted: every count, id and type is checked, and
//! whatever does not hold up is an [`Error`].
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use cube_gguf::gguf::Files;
//! use cube_gguf::text::{ChatTemplate, Detokenizer, Message, Sampler, Sampling, Special, Tokenizer};
//!
//! let files = Files::open("model.gguf")?;
//! let model = files.parse()?;
//! let tokenizer = Tokenizer::from_gguf(model.metadata())?;
//! let template = ChatTemplate::from_gguf(model.metadata())?.ok_or("no chat template")?;
//!
//! let prompt = template.render(&[Message::new("user", "Hello!")], true, &tokenizer)?;
//! // The template wrote the control tokens, and most write the first one too.
//! let ids = tokenizer.encode(&prompt, Special { parse: true, add: false })?;
//!
//! let mut sampler = Sampler::new(Sampling::default())?;
//! let mut detokenizer = Detokenizer::new(&tokenizer);
//! # let mut model = |_: &[u32]| vec![0.0f32; 8];
//! let mut next = sampler.sample(&model(&ids))?;
//! while !tokenizer.is_end(next) {
//!     print!("{}", detokenizer.push(next)?);
//!     next = sampler.sample(&model(&[next]))?;
//! }
//! println!("{}", detokenizer.finish());
//! # Ok(())
//! # }
//! ```

mod bpe;
mod bytes;
mod chat;
mod clock;
mod detokenizer;
mod error;
mod json;
mod merge;
mod pre_tokenizer;
mod sampler;
mod special;
mod spm;
mod tokenizer;
mod vocabulary;

pub use chat::{ChatTemplate, Message};
pub use detokenizer::Detokenizer;
pub use error::{Error, Result};
pub use sampler::{Sampler, Sampling};
pub use special::Special;
pub use tokenizer::Tokenizer;
