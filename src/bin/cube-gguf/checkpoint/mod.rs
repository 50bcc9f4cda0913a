//! Checkpoints of Transformers: safetensors files with `config.json` and a tokenizer beside them, as the GGUF file that
//! llama.cpp's `convert_hf_to_gguf.py` makes of them.
//!
//! What a class of models needs is a table ([`Architecture`]): the tensors that a checkpoint must have, by their names and
//! shapes, and what becomes of each. A checkpoint with others, or without one of these, is refused.

mod architecture;
mod config;
mod gemma;
mod gpt_oss;
mod llama;
mod metadata;
mod naming;
mod phi;
mod qwen;
mod shards;
mod stack;
mod tensors;
mod tokenizer;

use std::collections::{HashMap, HashSet};
use std::path::Path;

use cube_gguf::GgmlType;
use serde_json::Value;

use self::architecture::{Architecture, Change, Presence, Rule, Sizes};
use self::config::{Config, get};
use self::metadata::{Keys, general};
use self::shards::{Dtype, Stored};
pub use self::shards::{Shards, is_checkpoint};
use self::stack::{Order, Stack};
pub use self::tensors::Tensor;
use crate::Outcome;

/// A model's checkpoint.
pub struct Checkpoint {
    pub shards: Shards,
    /// In the order of llama.cpp: those of no layer, then layer by layer, by name.
    pub tensors: Vec<Tensor>,
    /// A GGUF file without tensors.
    pub metadata: Vec<u8>,
}

impl Checkpoint {
    /// Reads all but the tensors' data.
    pub fn open(path: &Path) -> Outcome<Self> {
        let shards = Shards::open(path)?;
        let config = Config::read(shards.folder())?;
        let architecture = Architecture::of(&config)?;
        let config = config.with_defaults(architecture.defaults);
        check_quantization(&config, architecture)?;
        let sizes = Sizes::of(&config, architecture)?;
        let tensors = Model { shards: &shards, config: &config, architecture, sizes: &sizes }.tensors()?;
        let mut keys = Keys::new(architecture.name)?;
        general(&config, shards.folder(), &tensors, &mut keys)?;
        (architecture.parameters)(&config, &sizes, &mut keys)?;
        tokenizer::write(architecture.vocabulary, &config, shards.folder(), &mut keys)?;
        Ok(Self { metadata: keys.finish()?, shards, tensors })
    }
}

/// Refuses weights that are quantized already, but for those of gpt-oss.
fn check_quantization(config: &Config, architecture: &Architecture) -> Outcome {
    let method = match config.get("quantization_config") {
        Some(Value::Object(quantization)) => {
            get(quantization, "quant_method").and_then(Value::as_str).unwrap_or("unknown")
        }
        _ => return Ok(()),
    };
    match method {
        "mxfp4" if architecture.name == "gpt-oss" => Ok(()),
        _ => Err(config.error(&format!("its tensors are quantized by {method:?}, which is not read")).into()),
    }
}

/// The name of a file's tensor as it is in a language model alone: inside of others it has a prefix.
fn plain(name: &str) -> String {
    name.replace("language_model.", "")
}

/// What the tensors are made by.
struct Model<'a> {
    shards: &'a Shards,
    config: &'a Config,
    architecture: &'static Architecture,
    sizes: &'a Sizes,
}

/// The tensors of a checkpoint by their plain names, and which of them were asked for.
struct Found<'a> {
    tensors: HashMap<String, &'a Stored>,
    used: HashSet<String>,
}

impl<'a> Found<'a> {
    fn get(&mut self, name: &str) -> Option<&'a Stored> {
        let tensor = self.tensors.get(name).copied()?;
        self.used.insert(name.to_owned());
        Some(tensor)
    }
}

impl Model<'_> {
    /// All tensors of the model.
    fn tensors(&self) -> Outcome<Vec<Tensor>> {
        let mut found = Found { tensors: HashMap::new(), used: HashSet::new() };
        for name in self.shards.names() {
            let is_skipped = self.architecture.skipped.iter().any(|part| name.contains(part));
            // Buffers that older versions wrote.
            let is_buffer = [".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias"];
            if is_skipped || is_buffer.iter().any(|suffix| name.ends_with(suffix)) {
                continue;
            }
            if let Some(stored) = self.shards.get(name)
                && found.tensors.insert(plain(name), stored).is_some()
            {
                return Err(self.error(name, "is there under two names"));
            }
        }
        let mut tensors = Vec::new();
        for rule in self.architecture.ends {
            tensors.extend(self.tensor(rule, None, &mut found)?);
        }
        for layer in 0..self.sizes.layers {
            for rule in self.architecture.layer.iter().copied().flatten() {
                tensors.extend(self.tensor(rule, Some(layer), &mut found)?);
            }
        }
        let mut unknown: Vec<_> = found.tensors.keys().filter(|name| !found.used.contains(*name)).collect();
        unknown.sort_unstable();
        if let Some(first) = unknown.first() {
            let what = format!("is nothing that {} has ({} such tensors)", self.config.class()?, unknown.len());
            return Err(self.error(first, &what));
        }
        // Their lengths are those of tensors that are there.
        for (name, values) in (self.architecture.vectors)(self.config, self.sizes)? {
            tensors.push(Tensor::of_values(name.to_owned(), values));
        }
        tensors.sort_by(|a, b| (layer_of(&a.name), &a.name).cmp(&(layer_of(&b.name), &b.name)));
        Ok(tensors)
    }

    /// The tensor of a rule; none where it may be missing.
    fn tensor(&self, rule: &Rule, layer: Option<usize>, found: &mut Found<'_>) -> Outcome<Option<Tensor>> {
        let (source, name) = match layer {
            Some(layer) => (format!("model.layers.{layer}.{}", rule.source), format!("blk.{layer}.{}", rule.name)),
            None => (rule.source.to_owned(), rule.name.to_owned()),
        };
        let shape: Vec<usize> = rule.shape.iter().map(|&extent| self.sizes.extent(extent)).collect();
        if shape.contains(&0) {
            return Err(self.error(&source, &format!("has shape {shape:?} by config.json")));
        }
        if let Change::Experts { first, step } = rule.change {
            return self.experts(&source, name, &shape, (first, step), found).map(Some);
        }
        if source.contains("{}") {
            return self.stacked(&source, name, &shape, found).map(Some);
        }
        let Some(stored) = found.get(&source) else {
            let may_be_missing = match rule.presence {
                Presence::Required => false,
                Presence::Optional => true,
                Presence::Untied => {
                    self.config.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(self.architecture.is_tied)
                }
            };
            return if may_be_missing { Ok(None) } else { Err(self.missing(&source)) };
        };
        self.check(&source, stored, &shape, rule.change == Change::Cut)?;
        let ty = self.float(&source, stored)?;
        let dims: Vec<u64> = shape.iter().rev().map(|&extent| extent as u64).collect();
        let view = |shape: &[usize]| Stored { shape: shape.to_vec(), ..stored.clone() };
        let (view, order, dims) = match (rule.change, shape.as_slice()) {
            (Change::Halves, &[n]) => (view(&[n, 1]), Order::Halves(self.sizes.head), dims),
            (Change::Halves, _) => (view(&shape), Order::Halves(self.sizes.head), dims),
            // A column of values, of which every second is one of this tensor's.
            (Change::ExpertBiases { first }, &[experts, n]) => {
                (view(&[experts, n, 1]), Order::EverySecond(first), vec![n as u64 / 2, experts as u64])
            }
            (_, &[n]) => (view(&[1, n]), Order::Same, dims),
            _ => (view(&shape), Order::Same, dims),
        };
        let stack = Stack::new([&view], ty.block_bytes(), order).ok_or_else(|| self.odd(&source, &shape))?;
        Ok(Some(Tensor::of_floats(name, dims, stack, ty, rule.change == Change::AddOne)))
    }

    /// The matrices of all experts of a layer.
    fn stacked(&self, source: &str, name: String, shape: &[usize], found: &mut Found<'_>) -> Outcome<Tensor> {
        let mut experts = Vec::new();
        let mut types = Vec::new();
        for expert in 0..self.sizes.experts {
            let source = source.replace("{}", &expert.to_string());
            let stored = found.get(&source).ok_or_else(|| self.missing(&source))?;
            self.check(&source, stored, shape, false)?;
            types.push(self.float(&source, stored)?);
            experts.push(stored);
        }
        let ty = types.first().copied().ok_or_else(|| self.missing(source))?;
        if types.iter().any(|&other| other != ty) {
            return Err(self.error(source, "has experts of several types"));
        }
        let dims = shape.iter().rev().map(|&extent| extent as u64).chain([experts.len() as u64]).collect();
        let stack = Stack::new(experts, ty.block_bytes(), Order::Same).ok_or_else(|| self.odd(source, shape))?;
        Ok(Tensor::of_floats(name, dims, stack, ty, false))
    }

    /// A part of the experts of gpt-oss: blocks of MXFP4 with the rows of the matrix, or floats with its columns. `shape` is
    /// that of the floats.
    fn experts(
        &self,
        source: &str,
        name: String,
        shape: &[usize],
        (first, step): (usize, usize),
        found: &mut Found<'_>,
    ) -> Outcome<Tensor> {
        let &[experts, columns, rows] = shape else { return Err(self.odd(source, shape)) };
        let dims = [columns, rows / step, experts].map(|extent| extent as u64).to_vec();
        if let Some(stored) = found.get(source) {
            self.check(source, stored, shape, false)?;
            let ty = self.float(source, stored)?;
            let stack = Stack::new([stored], ty.block_bytes(), Order::Columns { first, step });
            return Ok(Tensor::of_floats(name, dims, stack.ok_or_else(|| self.odd(source, shape))?, ty, false));
        }
        let order = if step == 2 { Order::EverySecond(first) } else { Order::Same };
        let mut bytes = |suffix: &str, wanted: &[usize], of_row: usize| {
            let source = format!("{source}_{suffix}");
            let stored = found.get(&source).ok_or_else(|| self.missing(&source))?;
            self.check(&source, stored, wanted, false)?;
            if stored.dtype != Dtype::Byte {
                return Err(self.error(&source, &format!("is of type {}, not U8", stored.dtype)));
            }
            let rows_of_bytes = Stored { shape: vec![experts, rows, of_row], ..stored.clone() };
            Stack::new([&rows_of_bytes], 1, order).ok_or_else(|| self.odd(&source, wanted))
        };
        if !columns.is_multiple_of(32) {
            return Err(self.odd(source, shape));
        }
        let codes = bytes("blocks", &[experts, rows, columns / 32, 16], columns / 2)?;
        let scales = bytes("scales", &[experts, rows, columns / 32], columns / 32)?;
        Ok(Tensor::of_mxfp4(name, dims, codes, scales))
    }

    /// Refuses a tensor of another shape, but for more rows where those are cut.
    fn check(&self, name: &str, stored: &Stored, shape: &[usize], is_cut: bool) -> Outcome {
        let has_shape = match (is_cut, stored.shape.as_slice(), shape) {
            (true, [rows, found @ ..], [wanted_rows, wanted @ ..]) => rows >= wanted_rows && found == wanted,
            (_, found, wanted) => found == wanted,
        };
        match has_shape {
            true => Ok(()),
            false => Err(self.error(name, &format!("has shape {:?}, which config.json makes {shape:?}", stored.shape))),
        }
    }

    /// The type of a tensor of floats.
    fn float(&self, name: &str, stored: &Stored) -> Outcome<GgmlType> {
        match stored.dtype {
            Dtype::Float(ty) => Ok(ty),
            ref other => Err(self.error(name, &format!("is of type {other}: F32, F16 and BF16 are read"))),
        }
    }

    fn missing(&self, name: &str) -> Box<dyn std::error::Error> {
        self.error(name, "is missing")
    }

    /// An error of a shape that has no such rows as are asked for.
    fn odd(&self, name: &str, shape: &[usize]) -> Box<dyn std::error::Error> {
        self.error(name, &format!("has shape {shape:?}, which is not as {} has it", self.architecture.name))
    }

    fn error(&self, name: &str, what: &str) -> Box<dyn std::error::Error> {
        format!("{}: tensor {name} {what}", self.shards.folder().display()).into()
    }
}

/// The layer of a tensor; those of none come first.
fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}
