//! Language models of GGUF files (feature `models`).
//!
//! A [`Model`] is read from the file's metadata and tensors alone; a [`Session`] is one run of it, with the keys and values
//! of the tokens so far on the device. What turns text into tokens is [`text`](crate::text).
//!
//! ```no_run
//! use cube_gguf::models::Model;
//! use cube_gguf::text::{Detokenizer, Sampler, Sampling, Special, Tokenizer};
//! use cube_gguf::{Device, gguf::Files};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let files = Files::open("model.gguf")?;
//! let file = files.parse()?;
//! let tokenizer = Tokenizer::from_gguf(file.metadata())?;
//! let model = Model::load(&file, &Device::best())?;
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
mod experts;
mod feed_forward;
mod gemma;
#[cfg(feature = "candle")]
mod host;
mod importance;
mod linear;
mod llama;
mod replay;
mod rope;
mod step;
mod values;
mod weights;

use std::cell::Cell;
use std::fmt;

use cubecl::MemoryScope;
use cubecl::client::Client;
use cubecl::server::Handle;

use self::cache::Cache;
pub use self::error::{Error, Result};
#[cfg(feature = "candle")]
use self::host::{HostCache, HostStep};
pub use self::importance::Importance;
use self::importance::Observer;
use self::replay::{Replay, launching};
use self::rope::Rope;
use self::step::{After, DeviceStep, Engine, On, Rows, Step};
use self::weights::Source;
use crate::gguf::Gguf;
use crate::storage::Device;
#[cfg(not(feature = "candle"))]
use crate::storage::{Backend, CubeDevice};

/// How an architecture is made of a file's tensors.
type Load = fn(&Source<'_>) -> Result<Box<dyn Architecture>>;

/// The architectures by their names in `general.architecture`.
const ARCHITECTURES: [(&str, Load); 8] = [
    ("gemma2", gemma::load_2),
    ("gemma3", gemma::load_3),
    ("gpt-oss", llama::load),
    ("llama", llama::load),
    ("phi3", llama::load),
    ("qwen2", llama::load),
    ("qwen3", llama::load),
    ("qwen3moe", llama::load),
];

/// The most tokens of a step: the values of more would take memory that few devices have to spare.
const BATCH: usize = 512;

/// What a model computes.
trait Architecture: fmt::Debug + Send + Sync {
    /// The logits after the last of a step's tokens.
    fn forward(&self, step: &Step<'_>) -> Result<Rows>;

    /// What the cache holds.
    fn shape(&self) -> &Shape;
}

/// What the cache of a model holds.
#[derive(Clone, Debug)]
struct Shape {
    layers: usize,
    kv_heads: usize,
    /// Values of a head.
    head: usize,
    ropes: Vec<Rope>,
}

/// A language model on a device.
#[derive(Debug)]
pub struct Model {
    architecture: Box<dyn Architecture>,
    engine: Engine,
    /// Bytes of the file's tensors.
    #[cfg(feature = "candle")]
    bytes: u64,
    context: usize,
    vocabulary: usize,
}

impl Model {
    /// Reads a model's hyperparameters and uploads its tensors. [`Device::Cpu`] is the host itself, with Candle's products (feature
    /// `candle`); without these it is CubeCL's CPU runtime (feature `cpu`).
    ///
    /// # Errors
    ///
    /// [`Error::UnknownArchitecture`], which lists those that are known; [`Error::Gguf`] where a key or a tensor is missing, as
    /// in a file of a vocabulary alone; [`Error::Shape`] where a tensor does not fit the others; [`Error::Tensor`] where the
    /// device cannot take one.
    pub fn load(file: &Gguf<'_>, device: &Device) -> Result<Self> {
        Self::load_with_progress(file, device, &|_| ())
    }

    /// [`load`](Self::load) that tells `progress` the bytes of each tensor of the file that it has read.
    ///
    /// # Errors
    ///
    /// Those of [`load`](Self::load).
    pub fn load_with_progress(file: &Gguf<'_>, device: &Device, progress: &dyn Fn(u64)) -> Result<Self> {
        let engine = match device {
            Device::Cube(device) => Engine::Device(device.clone()),
            #[cfg(feature = "candle")]
            Device::Cpu => Engine::Host,
            #[cfg(not(feature = "candle"))]
            Device::Cpu => Engine::Device(CubeDevice::new(Backend::CubeCpu, 0)?),
        };
        let _others_too = launching();
        let bytes = Cell::new(0);
        let read = |count| {
            bytes.set(bytes.get() + count);
            progress(count);
        };
        let source = Source::new(file, &engine, &read)?;
        let load = ARCHITECTURES.iter().find(|(name, _)| *name == source.architecture());
        let Some((_, load)) = load else {
            return Err(Error::UnknownArchitecture {
                found: source.architecture().to_owned(),
                known: ARCHITECTURES.map(|(name, _)| name).join(", "),
            });
        };
        let architecture = load(&source)?;
        let (vocabulary, _) = source.matrix("token_embd.weight")?;
        let context = source.number("context_length")?;
        Ok(Self {
            architecture,
            #[cfg(feature = "candle")]
            bytes: bytes.get(),
            context,
            vocabulary,
            engine,
        })
    }

    /// Tokens that the model was made for.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Tokens of the vocabulary, the number of logits.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Bytes that the model's device holds for this process; on the host those of the model's tensors.
    pub fn memory(&self) -> u64 {
        match &self.engine {
            Engine::Device(device) => device.client().memory_report(MemoryScope::Device).usage().bytes_reserved,
            #[cfg(feature = "candle")]
            Engine::Host => self.bytes,
        }
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
        let shape = self.architecture.shape();
        let run = match &self.engine {
            Engine::Device(device) => {
                let _others_too = launching();
                let client = device.client();
                let cache = Cache::new(shape, capacity, &client);
                let id = client.create_from_slice(&0u32.to_le_bytes());
                Run::Device(Box::new(DeviceRun { client, cache, replay: Replay::default(), id }))
            }
            #[cfg(feature = "candle")]
            Engine::Host => Run::Host(HostCache::new(shape, capacity)),
        };
        Ok(Session { model: self, run, tokens: Vec::new(), capacity, observer: None })
    }
}

/// A run on a device.
struct DeviceRun {
    client: Client,
    cache: Cache,
    /// The step of one token.
    replay: Replay,
    /// The id of that token, a u32 on the device.
    id: Handle,
}

/// What a run keeps where its model computes.
enum Run {
    Device(Box<DeviceRun>),
    #[cfg(feature = "candle")]
    Host(HostCache),
}

/// A run of a model: the tokens so far, by their keys and values.
pub struct Session<'a> {
    model: &'a Model,
    run: Run,
    /// Those whose keys and values are in the cache.
    tokens: Vec<u32>,
    /// Tokens that the cache has room for.
    capacity: usize,
    /// Where the inputs of matrices are asked for.
    observer: Option<Observer>,
}

impl fmt::Debug for Session<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("tokens", &self.tokens)
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}

impl Session<'_> {
    /// The tokens so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The same run, with the step of one token recorded when the next one is fed and replayed from then on, on devices that
    /// replay launches faster than they take them one by one (CUDA and HIP).
    ///
    /// While it records, which takes milliseconds, no other thread of the process may allocate memory on a GPU: the driver
    /// would fail both. Models wait for each other; other users of the GPU must be kept from it.
    pub fn with_recording(mut self) -> Self {
        match &mut self.run {
            Run::Device(run) => run.replay = Replay::Wanted,
            #[cfg(feature = "candle")]
            Run::Host(_) => {}
        }
        self
    }

    /// The same run, which from now on sums up the squares of what the model's matrices are multiplied by, for
    /// [`importances`](Self::importances). Its steps are launched one by one.
    ///
    /// ```no_run
    /// # use cube_gguf::models::{Model, Result};
    /// # fn importances(model: &Model, chunks: &[Vec<u32>]) -> Result<()> {
    /// let mut session = model.session(512)?.with_importances();
    /// for chunk in chunks {
    ///     session.truncate(0);
    ///     session.feed(chunk)?;
    /// }
    /// for entry in session.importances()? {
    ///     println!("{}: {:?} over {:?} tokens", entry.name, entry.sums, entry.counts);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_importances(mut self) -> Self {
        self.observer = Some(Observer::default());
        self
    }

    /// What each tensor was multiplied by since [`with_importances`](Self::with_importances), in the order of their names;
    /// nothing without it. Products that round activations see others: these are the values before. Those of the output are
    /// of every token, though only the last one's logits are computed.
    ///
    /// # Errors
    ///
    /// [`Error::Compute`] where the device failed.
    pub fn importances(&self) -> Result<Vec<Importance>> {
        match &self.observer {
            Some(observer) => Ok(observer.read(&self.model.engine)?),
            None => Ok(Vec::new()),
        }
    }

    /// How many tokens there are so far.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are no tokens yet.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Forgets all tokens but the first `len`.
    pub fn truncate(&mut self, len: usize) {
        self.tokens.truncate(len);
    }

    /// Tokens for which there is room.
    pub fn left(&self) -> usize {
        self.capacity - self.len()
    }

    /// Adds tokens, and gives the logits of the token after them.
    ///
    /// # Errors
    ///
    /// [`Error::NoTokens`] where there are none, [`Error::ContextFull`] for more than are [`left`](Self::left),
    /// [`Error::UnknownToken`] for one that the vocabulary does not have, [`Error::Compute`] where the device failed.
    pub fn feed(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        Ok(self.add(tokens)?.read(&self.model.engine)?)
    }

    /// Adds tokens, and gives the likeliest token after them with its logit, the first where several are: those of
    /// [`feed`](Self::feed), of which the device sends no others. NaN counts as infinity.
    ///
    /// # Errors
    ///
    /// Those of [`feed`](Self::feed).
    pub fn feed_for_likeliest(&mut self, tokens: &[u32]) -> Result<(u32, f32)> {
        Ok(self.add(tokens)?.read_likeliest(&self.model.engine)?)
    }

    /// Checks and adds tokens.
    fn add(&mut self, tokens: &[u32]) -> Result<After> {
        let vocabulary = self.model.vocabulary;
        if tokens.is_empty() {
            return Err(Error::NoTokens);
        }
        if tokens.len() > self.left() {
            return Err(Error::ContextFull { tokens: tokens.len(), left: self.left(), capacity: self.capacity });
        }
        if let Some(&id) = tokens.iter().find(|&&id| id as usize >= vocabulary) {
            return Err(Error::UnknownToken { id, vocabulary });
        }
        let mut last = None;
        for batch in tokens.chunks(BATCH) {
            last = Some(self.add_batch(batch)?);
            self.tokens.extend_from_slice(batch);
        }
        last.ok_or(Error::NoTokens)
    }

    /// Adds tokens in one step.
    fn add_batch(&mut self, batch: &[u32]) -> Result<After> {
        let (architecture, position, observer) = (&*self.model.architecture, self.len(), self.observer.as_ref());
        match &mut self.run {
            Run::Device(run) => {
                let DeviceRun { client, cache, replay, id } = &mut **run;
                cache.move_to(position, client);
                let on = DeviceStep { device: self.model.engine.device(), client, cache, ids: id };
                match batch {
                    &[token] if observer.is_none() => replay.step(architecture, on, token),
                    _ => {
                        let _others_too = launching();
                        let ids = client.create_from_slice(bytemuck::cast_slice(batch));
                        let on = On::Device(DeviceStep { ids: &ids, ..on });
                        after(architecture, &Step { on, tokens: batch.len(), observer })
                    }
                }
            }
            #[cfg(feature = "candle")]
            Run::Host(cache) => {
                let on = HostStep { ids: batch, position, cache };
                after(architecture, &Step { on: On::Host(&on), tokens: batch.len(), observer })
            }
        }
    }
}

/// What follows a step's tokens.
fn after(architecture: &dyn Architecture, step: &Step<'_>) -> Result<After> {
    let logits = architecture.forward(step)?;
    Ok(step.after(logits))
}
