//! [`VarBuilder`]: a model's quantized tensors by name, with the API of `candle_transformers::quantized_var_builder`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{Device as CandleDevice, Result, Shape};

use super::candle_error;
use super::gguf_file::without_nul;
use super::{QTensor, WeightDevice};
use crate::gguf::{Files, Gguf};
use crate::kernels::formats::format;
use crate::storage::tensor::companion;
use crate::{Device, Error};

/// A tensor, or why it holds no weights.
type Loaded = std::result::Result<Arc<QTensor>, String>;

/// The tensors of a model, looked up below a path of names. Cloning shares them.
#[derive(Clone)]
pub struct VarBuilder {
    tensors: Arc<HashMap<String, Loaded>>,
    path: Vec<String>,
    device: CandleDevice,
}

impl VarBuilder {
    /// Loads all tensors of a file onto a device; any shard of a split model loads them all. Those that hold no weights
    /// (integers, scalars, types that ggml does not define) are errors when they are asked for.
    ///
    /// # Errors
    ///
    /// Where [`Files::open`] or [`Files::parse`] fails, the file is big-endian, or the device failed.
    pub fn from_gguf<F: AsRef<Path>, P: WeightDevice + ?Sized>(p: F, device: &P) -> Result<Self> {
        let files = Files::open(p).map_err(candle_error)?;
        Self::of(&files.parse().map_err(candle_error)?, device)
    }

    /// [`from_gguf`](Self::from_gguf) of a file's bytes.
    ///
    /// # Errors
    ///
    /// As [`from_gguf`](Self::from_gguf).
    pub fn from_gguf_buffer<P: WeightDevice + ?Sized>(buffer: &[u8], device: &P) -> Result<Self> {
        Self::of(&Gguf::parse(buffer).map_err(candle_error)?, device)
    }

    fn of<P: WeightDevice + ?Sized>(gguf: &Gguf<'_>, device: &P) -> Result<Self> {
        let home: Device = device.weights()?;
        let mut tensors = HashMap::new();
        for tensor in gguf.tensors() {
            if tensor.endian() != crate::gguf::Endian::Little {
                candle_core::bail!("a big-endian GGUF file, which Candle's types do not hold");
            }
            let weights = match tensor.dtype() {
                Ok(ty) if format(ty).is_none() => Err(Error::NotWeights { ty }.to_string()),
                Ok(ty) if tensor.shape().is_empty() => Err(Error::Shape { ty, shape: Vec::new() }.to_string()),
                Ok(ty) => Ok(ty),
                Err(error) => Err(error.to_string()),
            };
            let loaded = match weights {
                Ok(ty) => {
                    let data = tensor.data().map_err(candle_error)?;
                    let loaded = QTensor::from_gguf(ty, data.into(), tensor.shape(), &home);
                    let scale = companion(gguf, tensor.name(), "scale").map_err(candle_error)?;
                    let loaded = loaded.and_then(|tensor| match scale {
                        Some(scale) => tensor.with_scale(&scale),
                        None => Ok(tensor),
                    });
                    Ok(Arc::new(loaded.map_err(|error| error.context(format!("tensor {}", tensor.name())))?))
                }
                Err(reason) => Err(reason),
            };
            tensors.insert(without_nul(tensor.name()).to_owned(), loaded);
        }
        Ok(Self { tensors: Arc::new(tensors), path: Vec::new(), device: device.tensors() })
    }

    /// The same tensors, with `s` appended to the path.
    pub fn pp<S: ToString>(&self, s: S) -> Self {
        let path = self.path.iter().cloned().chain([s.to_string()]).collect();
        Self { tensors: self.tensors.clone(), path, device: self.device.clone() }
    }

    fn name(&self, tensor: &str) -> String {
        self.path.iter().map(String::as_str).chain([tensor]).collect::<Vec<_>>().join(".")
    }

    /// The tensor of a name below the path, which must have these extents.
    ///
    /// # Errors
    ///
    /// Where the tensor is missing, holds no weights, or has other extents.
    pub fn get<S: Into<Shape>>(&self, s: S, name: &str) -> Result<Arc<QTensor>> {
        let (tensor, shape) = (self.get_no_shape(name)?, s.into());
        if *tensor.shape() != shape {
            let name = self.name(name);
            candle_core::bail!("shape mismatch for {name}, got {:?}, expected {shape:?}", tensor.shape());
        }
        Ok(tensor)
    }

    /// The tensor of a name below the path.
    ///
    /// # Errors
    ///
    /// Where the tensor is missing, or holds no weights.
    pub fn get_no_shape(&self, name: &str) -> Result<Arc<QTensor>> {
        let name = self.name(name);
        match self.tensors.get(&name) {
            Some(Ok(tensor)) => Ok(tensor.clone()),
            Some(Err(reason)) => candle_core::bail!("{name}: {reason}"),
            None => candle_core::bail!("cannot find tensor with name: {name}"),
        }
    }

    /// The Candle device of the tensors that the weights are multiplied with.
    pub fn device(&self) -> &CandleDevice {
        &self.device
    }

    /// Whether the model has a tensor of the full name `key`, whatever the path.
    pub fn contains_key(&self, key: &str) -> bool {
        self.tensors.contains_key(key)
    }
}
