//! Language models of GGUF files, on Burn (feature `models`).
//!
//! A [`Model`] is read from the file's metadata and tensors alone; a [`Session`] is one run of it, with the keys and values
//! of the tokens so far on the device. What turns text into tokens is [`text`](crate::text).
//!
//! ```no_run
//! use cube_gguf::models::Model;
//! use cube_gguf::text::{Detokenizer, Sampler, Sampling, Special, Tokenizer};
//! use cube_gguf::{Backend, CubeDevice, gguf::Files};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let files = Files::open("model.gguf")?;
//! let file = files.parse()?;
//! let tokenizer = Tokenizer::from_gguf(file.metadata())?;
//! let model = Model::load(&file, &CubeDevice::new(Backend::CubeCpu, 0)?)?;
//!
//! let prompt = tokenizer.encode("Once upon a time", Special { add: true, ..Special::default() })?;
//! let mut session = model.session(model.context().min(512))?;
//! let mut logits = session.feed(&prompt)?;
//! let mut sampler = Sampler::new(Sampling::default())?;
//! let mut detokenizer = Detokenizer::new(&tokenizer);
//! while session.left() > 0 {
//!     let next = sampler.sample(&logits)?;
//!     if tokenizer.is_end(next) {
//!         break;
//!     }
//!     print!("{}", detokenizer.push(next)?);
//!     logits = session.feed(&[next])?;
//! }
//! println!("{}", detokenizer.finish());
//! # Ok(())
//! # }
//! ```

mod attention;
mod cache;
mod error;
mod feed_forward;
mod gemma3;
mod llama;
mod rope;
mod weights;

use std::fmt;

use burn::tensor::{Device, Int, Tensor};

use self::cache::Cache;
pub use self::error::{Error, Result};
use self::weights::Source;
use crate::gguf::Gguf;
use crate::storage::CubeDevice;

/// How an architecture is made of a file's tensors.
type Load = fn(&Source<'_>) -> Result<Box<dyn Architecture>>;

/// The architectures by their names in `general.architecture`.
const ARCHITECTURES: [(&str, Load); 4] =
    [("gemma3", gemma3::load), ("llama", llama::load), ("qwen2", llama::load), ("qwen3", llama::load)];

/// What a model computes.
trait Architecture: fmt::Debug + Send + Sync {
    /// The logits after the last of the tokens `ids`, which follow those in the cache: `[1, vocabulary]`.
    fn forward(&self, ids: Tensor<1, Int>, cache: &mut Cache) -> Tensor<2>;

    /// What the cache holds for each layer.
    fn shape(&self) -> Shape;
}

/// What the cache of a model holds.
#[derive(Clone, Copy, Debug)]
struct Shape {
    layers: usize,
    kv_heads: usize,
    /// Values of a head.
    head: usize,
}

/// A language model on a device.
#[derive(Debug)]
pub struct Model {
    architecture: Box<dyn Architecture>,
    device: Device,
    context: usize,
    vocabulary: usize,
}

impl Model {
    /// Reads a model's hyperparameters and uploads its tensors.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownArchitecture`], which lists those that are known; [`Error::Gguf`] where a key or a tensor is missing, as
    /// in a file of a vocabulary alone; [`Error::Shape`] where a tensor does not fit the others; [`Error::Tensor`] where the
    /// device cannot take one.
    pub fn load(file: &Gguf<'_>, device: &CubeDevice) -> Result<Self> {
        let source = Source::new(file, device)?;
        let load = ARCHITECTURES.iter().find(|(name, _)| *name == source.architecture());
        let Some((_, load)) = load else {
            return Err(Error::UnknownArchitecture {
                found: source.architecture().to_owned(),
                known: ARCHITECTURES.map(|(name, _)| name).join(", "),
            });
        };
        let architecture = load(&source)?;
        let (vocabulary, _) = source.matrix("token_embd.weight")?;
        Ok(Self { architecture, device: Device::from(device), context: source.number("context_length")?, vocabulary })
    }

    /// Tokens that the model was made for.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Tokens of the vocabulary, the number of logits.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// An empty run with room for `capacity` tokens.
    ///
    /// # Errors
    ///
    /// [`Error::Capacity`] for no tokens, or more than the model's [`context`](Self::context).
    pub fn session(&self, capacity: usize) -> Result<Session<'_>> {
        if capacity == 0 || capacity > self.context {
            return Err(Error::Capacity { capacity, context: self.context });
        }
        let cache = Cache::new(self.architecture.shape(), capacity, &self.device);
        Ok(Session { model: self, cache })
    }
}

/// A run of a model: the tokens so far, by their keys and values on the device.
#[derive(Debug)]
pub struct Session<'a> {
    model: &'a Model,
    cache: Cache,
}

impl Session<'_> {
    /// Tokens so far.
    pub fn len(&self) -> usize {
        self.cache.len()
    }

    /// Whether there are no tokens yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens for which there is room.
    pub fn left(&self) -> usize {
        self.cache.capacity() - self.len()
    }

    /// Adds tokens, and gives the logits of the token after them.
    ///
    /// # Errors
    ///
    /// [`Error::NoTokens`] where there are none, [`Error::ContextFull`] for more than are [`left`](Self::left),
    /// [`Error::UnknownToken`] for one that the vocabulary does not have, [`Error::Device`] where the device failed.
    pub fn feed(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let vocabulary = self.model.vocabulary;
        if tokens.is_empty() {
            return Err(Error::NoTokens);
        }
        if tokens.len() > self.left() {
            return Err(Error::ContextFull {
                tokens: tokens.len(),
                left: self.left(),
                capacity: self.cache.capacity(),
            });
        }
        if let Some(&id) = tokens.iter().find(|&&id| id as usize >= vocabulary) {
            return Err(Error::UnknownToken { id, vocabulary });
        }
        let ids: Vec<i32> = tokens.iter().map(|&id| id as i32).collect();
        let ids = Tensor::<1, Int>::from_ints(&ids[..], &self.model.device);
        let logits = self.model.architecture.forward(ids, &mut self.cache);
        let logits = logits.try_into_data().map_err(|error| Error::Device { reason: format!("{error:?}") })?;
        logits.convert::<f32>().try_to_vec().map_err(|error| Error::Device { reason: format!("{error:?}") })
    }
}
