//! [`Source`]: the file that a model is made of, by the names that its architecture gives to keys and tensors.

use super::error::{Error, Result};
use super::experts::{Experts, Stack};
#[cfg(feature = "candle")]
use super::host::{HostExperts, HostMatrix};
use super::linear::{Linear, Matrix};
use super::rope::{Rope, Scaling, Yarn};
use super::step::Engine;
use super::values::Values;
use crate::gguf::{FromValue, Gguf};
use crate::kernels::decoder::norm::RmsNorm;
use crate::kernels::decoder::rotary::Pairs;
use crate::kernels::weights::GgufMatrix;
use crate::storage::{CubeDevice, DeviceTensor};

/// A model's file and where its tensors go.
pub(super) struct Source<'a> {
    file: &'a Gguf<'a>,
    engine: &'a Engine,
    architecture: &'a str,
    /// Told the bytes of each tensor that is loaded.
    progress: &'a dyn Fn(u64),
}

impl<'a> Source<'a> {
    pub fn new(file: &'a Gguf<'a>, engine: &'a Engine, progress: &'a dyn Fn(u64)) -> Result<Self> {
        let architecture = file.metadata().value("general.architecture")?;
        Ok(Self { file, engine, architecture, progress })
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

    /// How rotary embeddings are scaled.
    pub fn rope_scaling(&self) -> Result<Scaling> {
        let key = "rope.scaling.type";
        let factor = || self.above_zero("rope.scaling.factor", None);
        match self.optional::<&str>(key)? {
            // The factors of LongRoPE are tensors.
            None | Some("none" | "longrope") => Ok(Scaling::Linear(1.0)),
            Some("linear") => Ok(Scaling::Linear(factor()?)),
            Some("yarn") => Ok(Scaling::Yarn(Yarn {
                factor: factor()?,
                original: self.original_context()?,
                fast: self.above_zero("rope.scaling.yarn_beta_fast", Some(32.0))?,
                slow: self.above_zero("rope.scaling.yarn_beta_slow", Some(1.0))?,
            })),
            Some(found) => Err(Error::UnknownScaling { key: self.key(key), found: found.to_owned() }),
        }
    }

    /// Tokens of the context before rotary embeddings are scaled.
    fn original_context(&self) -> Result<usize> {
        match self.optional_number("rope.scaling.original_context_length")? {
            Some(original) => Ok(original),
            None => self.number("context_length"),
        }
    }

    /// Rotary embeddings of `dims` values with the factors that the file has for them.
    pub fn rope(&self, pairs: Pairs, dims: usize, base: f64) -> Result<Rope> {
        let rope = Rope::new(pairs, dims, base, self.rope_scaling()?);
        let rope = rope.scaled_by(self.above_zero("rope.scaling.attn_factor", Some(1.0))?);
        let [all, short, long] = ["rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"];
        Ok(match () {
            () if self.has(all) => rope.divided_by(&self.values(all, dims / 2)?),
            () if self.has(long) => {
                let factors = [self.values(short, dims / 2)?, self.values(long, dims / 2)?];
                rope.divided_by_length([&factors[0], &factors[1]], self.original_context()?)
            }
            () => rope,
        })
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

    /// A tensor of the file that is a matrix of `n` rows and `k` columns.
    fn of_shape(&self, name: &str, [n, k]: [usize; 2]) -> Result<GgufMatrix<'a>> {
        let tensor = self.file.tensor(name)?;
        let (rows, columns) = tensor.matrix();
        if [rows, columns] != [n, k] {
            return Err(Error::Shape { name: name.to_owned(), found: [rows, columns], wanted: [n, k] });
        }
        Ok(GgufMatrix { ty: tensor.dtype()?, n, k, data: tensor.data()?, endian: tensor.endian() })
    }

    /// Rows `first..first + n` of the `[rows, k]` of `NAME.weight`, with the factor of `NAME.scale` and, where there is one, a bias.
    fn of_rows(
        &self,
        name: &str,
        [rows, k]: [usize; 2],
        [first, n]: [usize; 2],
        bias: Option<Vec<f32>>,
    ) -> Result<Linear> {
        let (tensor, scale) = (format!("{name}.weight"), format!("{name}.scale"));
        let all = self.of_shape(&tensor, [rows, k])?;
        // Rows are whole blocks, and there are bytes for all of them.
        let row = all.data.len() / rows.max(1);
        let some = GgufMatrix { n, data: &all.data[first * row..(first + n) * row], ..all };
        let scale = if self.has(&scale) { Some(self.values(&scale, 1)?) } else { None };
        let weights = self.loaded(&tensor, some, |matrix| {
            Ok(match self.engine {
                Engine::Device(device) => {
                    Matrix::Device(upload(device, matrix)?.with_companions(scale.as_deref(), bias.as_deref())?)
                }
                #[cfg(feature = "candle")]
                Engine::Host => Matrix::Host(HostMatrix::load(matrix, scale, bias)?),
            })
        })?;
        Ok(Linear { tensor: tensor.into(), weights })
    }

    /// What is made of a tensor's blocks, counted as read.
    fn loaded<T>(
        &self,
        name: &str,
        matrix: GgufMatrix<'a>,
        load: impl FnOnce(GgufMatrix<'a>) -> crate::Result<T>,
    ) -> Result<T> {
        let loaded = load(matrix);
        (self.progress)(matrix.data.len() as u64);
        loaded.map_err(|source| Error::Tensor { name: name.to_owned(), source })
    }

    /// A matrix without companions.
    fn table(&self, name: &str, shape: [usize; 2]) -> Result<Matrix> {
        self.loaded(name, self.of_shape(name, shape)?, |matrix| {
            Ok(match self.engine {
                Engine::Device(device) => Matrix::Device(upload(device, matrix)?),
                #[cfg(feature = "candle")]
                Engine::Host => Matrix::Host(HostMatrix::load(matrix, None, None)?),
            })
        })
    }

    /// The layer of `NAME.weight`, with the values of `NAME.bias` if there are any.
    pub fn linear(&self, name: &str, outputs: usize, inputs: usize) -> Result<Linear> {
        let bias = format!("{name}.bias");
        let bias = if self.has(&bias) { Some(self.values(&bias, outputs)?) } else { None };
        self.of_rows(name, [outputs, inputs], [0, outputs], bias)
    }

    /// The layer of `n` rows, from row `first` on, of the `[rows, inputs]` of `NAME.weight`.
    pub fn linear_of_rows(&self, name: &str, shape: [usize; 2], rows: [usize; 2]) -> Result<Linear> {
        self.of_rows(name, shape, rows, None)
    }

    /// The stack of `NAME.weight`, `[experts, n, k]`, with the factor and the biases of each expert that `NAME.scale` and `NAME.bias`
    /// have.
    pub fn experts(&self, name: &str, [experts, n, k]: [usize; 3]) -> Result<Experts> {
        let [tensor, scale, bias] = ["weight", "scale", "bias"].map(|part| format!("{name}.{part}"));
        let scale = if self.has(&scale) { Some(self.values(&scale, experts)?) } else { None };
        let bias = if self.has(&bias) { Some(self.values_of(&bias, [experts, n])?) } else { None };
        let weights = self.loaded(&tensor, self.of_shape(&tensor, [experts * n, k])?, |matrix| {
            Ok(match self.engine {
                Engine::Device(device) => {
                    Stack::Device(upload(device, matrix)?.with_companions(scale.as_deref(), bias.as_deref())?)
                }
                #[cfg(feature = "candle")]
                Engine::Host => Stack::Host(HostExperts::load(matrix, experts, scale, bias)?),
            })
        })?;
        Ok(Experts { tensor: tensor.into(), weights })
    }

    /// The embedding of tokens, and the layer that gives their logits: `output.weight`, or the embedding's own weights.
    pub fn embedding_and_output(&self, d_model: usize) -> Result<(Matrix, Linear)> {
        let name = "token_embd.weight";
        let (vocabulary, _) = self.matrix(name)?;
        let table = self.table(name, [vocabulary, d_model])?;
        let output = match self.has("output.weight") {
            true => self.linear("output", vocabulary, d_model)?,
            false => Linear { tensor: name.into(), weights: table.clone() },
        };
        Ok((table, output))
    }

    /// The values of a vector.
    pub fn values(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        self.values_of(name, [1, len])
    }

    /// The values of a matrix.
    fn values_of(&self, name: &str, shape: [usize; 2]) -> Result<Vec<f32>> {
        self.loaded(name, self.of_shape(name, shape)?, |matrix| matrix.values())
    }

    /// The values of vectors by their names and lengths, one after the other where the model computes.
    pub fn vectors(&self, vectors: &[(String, usize)]) -> Result<Values> {
        let mut values = Vec::new();
        for (name, len) in vectors {
            values.extend(self.values(name, *len)?);
        }
        Ok(self.engine.values(values))
    }

    /// What keeps the roots of norms from being 0.
    pub fn epsilon(&self) -> Result<f32> {
        Ok(self.above_zero("attention.layer_norm_rms_epsilon", None)? as f32)
    }

    /// The norm of `NAME.weight` over `width` values.
    pub fn norm(&self, name: &str, width: usize) -> Result<RmsNorm<Values>> {
        let weight = self.vectors(&[(format!("{name}.weight"), width)])?;
        Ok(RmsNorm { weight, width, epsilon: self.epsilon()? })
    }

    /// What bounds some scores or logits, if anything.
    pub fn softcap(&self, name: &str) -> Result<Option<f32>> {
        Ok(self.optional::<f64>(name)?.map(|cap| cap as f32).filter(|&cap| cap > 0.0))
    }
}

fn upload(device: &CubeDevice, matrix: GgufMatrix<'_>) -> crate::Result<DeviceTensor> {
    let GgufMatrix { ty, n, k, data, endian } = matrix;
    DeviceTensor::from_gguf(device, ty, n, k, data, endian)
}
