//! What is quantized: the tensors of GGUF files or of a checkpoint.

use std::borrow::Cow;
use std::path::Path;

use cube_gguf::gguf::{Endian, Files, Gguf, TensorInfo};
use cube_gguf::internals::{Format, format};
use cube_gguf::{Error, GgmlType};

use crate::Outcome;
use crate::checkpoint::{self, Checkpoint, Shards, is_checkpoint};

/// The files of a model.
pub enum Input {
    Gguf(Files),
    Checkpoint(Checkpoint),
}

impl Input {
    /// Opens a GGUF file, with its shards if it is one, or a checkpoint.
    pub fn open(path: &Path) -> Outcome<Self> {
        Ok(match is_checkpoint(path) {
            true => Self::Checkpoint(Checkpoint::open(path)?),
            false => Self::Gguf(Files::open(path)?),
        })
    }

    /// The headers; that of a checkpoint is one without tensors.
    pub fn parse(&self) -> Outcome<Gguf<'_>> {
        Ok(match self {
            Self::Gguf(files) => files.parse()?,
            Self::Checkpoint(checkpoint) => Gguf::parse(&checkpoint.metadata)?,
        })
    }

    /// The tensors, of which GGUF files have theirs in the header.
    pub fn tensors<'a>(&'a self, gguf: &'a Gguf<'_>) -> Vec<Tensor<'a>> {
        match self {
            Self::Gguf(files) => gguf.tensors().map(|tensor| Tensor::Gguf(tensor, files)).collect(),
            Self::Checkpoint(Checkpoint { shards, tensors, .. }) => {
                tensors.iter().map(|tensor| Tensor::Checkpoint(tensor, shards)).collect()
            }
        }
    }
}

/// A tensor of a model.
#[derive(Clone, Copy)]
pub enum Tensor<'a> {
    Gguf(TensorInfo<'a>, &'a Files),
    Checkpoint(&'a checkpoint::Tensor, &'a Shards),
}

impl<'a> Tensor<'a> {
    pub fn name(&self) -> &str {
        match self {
            Self::Gguf(tensor, _) => tensor.name(),
            Self::Checkpoint(tensor, _) => &tensor.name,
        }
    }

    /// The extents, contiguous first.
    pub fn dims(&self) -> &[u64] {
        match self {
            Self::Gguf(tensor, _) => tensor.dims(),
            Self::Checkpoint(tensor, _) => &tensor.dims,
        }
    }

    pub fn dtype(&self) -> Outcome<GgmlType> {
        Ok(match self {
            Self::Gguf(tensor, _) => tensor.dtype()?,
            Self::Checkpoint(tensor, _) => tensor.ty,
        })
    }

    /// Number of values.
    pub fn elements(&self) -> usize {
        match self {
            Self::Gguf(tensor, _) => tensor.elements(),
            Self::Checkpoint(tensor, _) => tensor.elements(),
        }
    }

    /// The tensor of a file whose bytes a new file has as they are.
    pub fn in_file(&self) -> Option<(TensorInfo<'a>, &'a Files)> {
        match *self {
            Self::Gguf(tensor, files) if tensor.endian() == Endian::Little => Some((tensor, files)),
            _ => None,
        }
    }

    /// The tensor as a matrix.
    ///
    /// # Errors
    ///
    /// [`Error::NotWeights`] where its values are none.
    pub fn reader(&self) -> Outcome<Reader<'a>> {
        let ty = self.dtype()?;
        let format = format(ty).ok_or(Error::NotWeights { ty })?;
        let (n, k) = match self {
            Self::Gguf(tensor, _) => tensor.matrix(),
            Self::Checkpoint(tensor, _) => tensor.matrix(),
        };
        Ok(Reader { format, n, k, tensor: *self })
    }
}

/// A tensor as `n` rows of `k` values.
pub struct Reader<'a> {
    pub format: &'static Format,
    pub n: usize,
    pub k: usize,
    tensor: Tensor<'a>,
}

impl Reader<'_> {
    /// The blocks of `count` rows from row `first` on, little-endian.
    pub fn read(&self, first: usize, count: usize) -> Outcome<Vec<u8>> {
        match self.tensor {
            Tensor::Gguf(tensor, files) => {
                let row_bytes = tensor.size_in_bytes()? / self.n;
                let mut bytes = vec![0; count * row_bytes];
                files.read(&tensor, first * row_bytes, &mut bytes)?;
                match self.format.little_endian(&bytes, tensor.endian()) {
                    Some(Cow::Owned(swapped)) => Ok(swapped),
                    Some(Cow::Borrowed(_)) => Ok(bytes),
                    None => Err(Error::BigEndian { ty: self.format.ty }.into()),
                }
            }
            Tensor::Checkpoint(tensor, shards) => tensor.rows(shards, first, count),
        }
    }
}
