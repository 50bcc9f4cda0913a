//! [`Source`]: the file that a model is made of, by the names that its architecture gives to keys and tensors.

use cubecl::server::Handle;

use super::error::{Error, Result};
use super::linear::Linear;
use crate::gguf::{FromValue, Gguf};
use crate::kernels::decoder::norm::RmsNorm;
use crate::kernels::floats::FloatType;
use crate::storage::{CubeDevice, DeviceTensor};

/// A model's file and the device that its tensors go to.
pub(super) struct Source<'a> {
    file: &'a Gguf<'a>,
    device: &'a CubeDevice,
    architecture: &'a str,
    /// Told the bytes of each tensor that is loaded.
    progress: &'a dyn Fn(u64),
}

impl<'a> Source<'a> {
    pub fn new(file: &'a Gguf<'a>, device: &'a CubeDevice, progress: &'a dyn Fn(u64)) -> Result<Self> {
        let architecture = file.metadata().value("general.architecture")?;
        Ok(Self { file, device, architecture, progress })
    }

    /// The architecture by its name.
    pub fn architecture(&self) -> &'a str {
        self.architecture
    }

    /// A hyperparameter's key: `llama.block_count` of `block_count`.
    pub fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    /// A hyperparameter that must be there.
    pub fn value<T: FromValue<'a>>(&self, name: &str) -> Result<T> {
        Ok(self.file.metadata().value(&self.key(name))?)
    }

    /// A hyperparameter that may be there.
    pub fn optional<T: FromValue<'a>>(&self, name: &str) -> Result<Option<T>> {
        Ok(self.file.metadata().optional(&self.key(name))?)
    }

    /// A number above 0.
    pub fn number(&self, name: &str) -> Result<usize> {
        self.positive(name, self.value::<u32>(name)?)
    }

    /// A number above 0 that may be there.
    pub fn optional_number(&self, name: &str) -> Result<Option<usize>> {
        self.optional::<u32>(name)?.map(|number| self.positive(name, number)).transpose()
    }

    fn positive(&self, name: &str, number: u32) -> Result<usize> {
        match number {
            0 => Err(Error::Hyperparameter { key: self.key(name), found: 0.0, reason: "must be more than 0" }),
            number => Ok(number as usize),
        }
    }

    /// What positions are multiplied by in rotary embeddings: 1, or one over the factor of a linear scaling.
    pub fn rope_scale(&self) -> Result<f64> {
        let key = "rope.scaling.type";
        match self.optional::<&str>(key)? {
            None | Some("none") => Ok(1.0),
            Some("linear") => Ok(1.0 / self.above_zero("rope.scaling.factor", None)?),
            Some(found) => Err(Error::UnknownScaling { key: self.key(key), found: found.to_owned() }),
        }
    }

    /// A base of rotary embeddings.
    pub fn rope_base(&self, name: &str, default: f64) -> Result<f64> {
        self.above_zero(name, Some(default))
    }

    /// Values of a head that rotary embeddings turn.
    pub fn rope_dims(&self, head: usize) -> Result<usize> {
        let key = "rope.dimension_count";
        match self.optional_number(key)? {
            Some(dims) if dims > head || !dims.is_multiple_of(2) => {
                let reason = "must be even and at most the values of a head";
                Err(Error::Hyperparameter { key: self.key(key), found: dims as f64, reason })
            }
            dims => Ok(dims.unwrap_or(head)),
        }
    }

    /// A number that is more than 0.
    fn above_zero(&self, name: &str, default: Option<f64>) -> Result<f64> {
        let found = match default {
            Some(default) => self.optional(name)?.unwrap_or(default),
            None => self.value(name)?,
        };
        match found > 0.0 && f64::is_finite(found) {
            true => Ok(found),
            false => Err(Error::Hyperparameter { key: self.key(name), found, reason: "must be more than 0" }),
        }
    }

    /// Whether the file has a tensor.
    pub fn has(&self, name: &str) -> bool {
        self.file.tensor(name).is_ok()
    }

    /// Rows and columns of a tensor.
    pub fn matrix(&self, name: &str) -> Result<(usize, usize)> {
        Ok(self.file.tensor(name)?.matrix())
    }

    /// A matrix of `n` rows and `k` columns, on the device.
    fn tensor(&self, name: &str, [n, k]: [usize; 2]) -> Result<DeviceTensor> {
        let tensor = self.file.tensor(name)?;
        let (rows, columns) = tensor.matrix();
        if [rows, columns] != [n, k] {
            return Err(Error::Shape { name: name.to_owned(), found: [rows, columns], wanted: [n, k] });
        }
        let loaded = DeviceTensor::load(self.device, &tensor);
        (self.progress)(tensor.size_in_bytes()? as u64);
        loaded.map_err(|source| Error::Tensor { name: name.to_owned(), source })
    }

    /// The layer of `NAME.weight`, with the values of `NAME.bias` if there are any.
    pub fn linear(&self, name: &str, outputs: usize, inputs: usize) -> Result<Linear> {
        let weight = self.tensor(&format!("{name}.weight"), [outputs, inputs])?;
        let bias = format!("{name}.bias");
        let bias = match self.has(&bias) {
            true => Some(self.vectors(&[(bias, outputs)])?),
            false => None,
        };
        Ok(Linear { weight, bias })
    }

    /// The embedding of tokens, and the layer that gives their logits: `output.weight`, or the embedding's own weights.
    pub fn embedding_and_output(&self, d_model: usize) -> Result<(DeviceTensor, Linear)> {
        let name = "token_embd.weight";
        let (vocabulary, _) = self.matrix(name)?;
        let table = self.tensor(name, [vocabulary, d_model])?;
        let output = match self.has("output.weight") {
            true => self.linear("output", vocabulary, d_model)?,
            false => Linear { weight: table.clone(), bias: None },
        };
        Ok((table, output))
    }

    /// The values of a vector.
    pub fn values(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let tensor = self.tensor(name, [1, len])?;
        tensor.dequantize(FloatType::F32).map_err(|source| Error::Tensor { name: name.to_owned(), source })
    }

    /// The values of vectors by their names and lengths, one after the other on the device.
    pub fn vectors(&self, vectors: &[(String, usize)]) -> Result<Handle> {
        let mut values = Vec::new();
        for (name, len) in vectors {
            values.extend(self.values(name, *len)?);
        }
        Ok(self.device.client().create_from_slice(bytemuck::cast_slice(&values)))
    }

    /// What keeps the roots of norms from being 0.
    pub fn epsilon(&self) -> Result<f32> {
        Ok(self.above_zero("attention.layer_norm_rms_epsilon", None)? as f32)
    }

    /// The norm of `NAME.weight` over `width` values.
    pub fn norm(&self, name: &str, width: usize) -> Result<RmsNorm> {
        let weight = self.vectors(&[(format!("{name}.weight"), width)])?;
        Ok(RmsNorm { weight, width, epsilon: self.epsilon()? })
    }

    /// What bounds some scores or logits, if anything.
    pub fn softcap(&self, name: &str) -> Result<Option<f32>> {
        Ok(self.optional::<f64>(name)?.map(|cap| cap as f32).filter(|&cap| cap > 0.0))
    }
}
