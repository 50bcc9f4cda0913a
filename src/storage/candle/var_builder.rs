//! [`VarBuilder`]: a model's quantized tensors by name, with the API of `candle_transformers::quantized_var_builder`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{Device as CandleDevice, Result, Shape};

use super::candle_error;
use super::{QTensor, WeightDevice};
use crate::Device;
use crate::gguf::{Files, Gguf};

/// The tensors of a model, looked up below a path of names. Cloning shares them.
#[derive(Clone)]
pub struct VarBuilder {
    tensors: Arc<HashMap<String, Arc<QTensor>>>,
    path: Vec<String>,
    device: CandleDevice,
}

impl VarBuilder {
    /// Loads all tensors of a file onto a device; any shard of a split model loads them all.
    ///
    /// # Errors
    ///
    /// Where [`Files::open`] or [`Files::parse`] fails, the file is big-endian, a tensor holds no weights, or the
    /// device failed.
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
            let (ty, data) = (tensor.dtype().map_err(candle_error)?, tensor.data().map_err(candle_error)?);
            if tensor.endian() != crate::gguf::Endian::Little {
                candle_core::bail!("a big-endian GGUF file, which Candle's types do not hold");
            }
            let loaded = QTensor::from_gguf(ty, data.into(), tensor.shape(), &home);
            let loaded = loaded.map_err(|error| candle_error(error).context(format!("tensor {}", tensor.name())))?;
            tensors.insert(tensor.name().to_owned(), Arc::new(loaded));
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
    /// Where the tensor is missing or has other extents.
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
    /// Where the tensor is missing.
    pub fn get_no_shape(&self, name: &str) -> Result<Arc<QTensor>> {
        let name = self.name(name);
        match self.tensors.get(&name) {
            Some(tensor) => Ok(tensor.clone()),
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
