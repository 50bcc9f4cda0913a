//! What is quantized: the tensors of GGUF files or of a checkpoint.

use std::borrow::Cow;
use std::fs;
use std::path::Path;

use cube_gguf::gguf::{Endian, Files, Gguf, TensorInfo};
use cube_gguf::internals::{Format, format};
use cube_gguf::{Error, GgmlType};

use crate::Outcome;
use crate::checkpoint::{self, Checkpoint, Shards, is_checkpoint};
use crate::weights::Weights;

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
            Self::Gguf(_) => gguf.tensors().map(Tensor::Gguf).collect(),
            Self::Checkpoint(Checkpoint { shards, tensors, .. }) => {
                tensors.iter().map(|tensor| Tensor::Checkpoint(tensor, shards)).collect()
            }
        }
    }

    /// Whether mapped files are as long as they were when they were opened.
    pub fn check(&self) -> Outcome {
        let Self::Gguf(files) = self else { return Ok(()) };
        let len = |path| fs::metadata(path).map(|file| file.len());
        match files.paths().map(len).sum::<std::io::Result<u64>>()? {
            len if len < files.total_bytes() => Err("the file has become shorter".into()),
            _ => Ok(()),
        }
    }
}

/// A tensor of a model.
#[derive(Clone, Copy)]
pub enum Tensor<'a> {
    Gguf(TensorInfo<'a>),
    Checkpoint(&'a checkpoint::Tensor, &'a Shards),
}

impl<'a> Tensor<'a> {
    pub fn name(&self) -> &str {
        match self {
            Self::Gguf(tensor) => tensor.name(),
            Self::Checkpoint(tensor, _) => &tensor.name,
        }
    }

    /// The extents, contiguous first.
    pub fn dims(&self) -> &[u64] {
        match self {
            Self::Gguf(tensor) => tensor.dims(),
            Self::Checkpoint(tensor, _) => &tensor.dims,
        }
    }

    pub fn dtype(&self) -> Outcome<GgmlType> {
        Ok(match self {
            Self::Gguf(tensor) => tensor.dtype()?,
            Self::Checkpoint(tensor, _) => tensor.ty,
        })
    }

    /// Number of values.
    pub fn elements(&self) -> usize {
        match self {
            Self::Gguf(tensor) => tensor.elements(),
            Self::Checkpoint(tensor, _) => tensor.elements(),
        }
    }

    /// All bytes, where they are in memory as a new file has them.
    pub fn data(&self) -> Outcome<Option<&'a [u8]>> {
        Ok(match self {
            Self::Gguf(tensor) if tensor.endian() == Endian::Little => Some(tensor.data()?),
            _ => None,
        })
    }

    /// The tensor as a matrix.
    ///
    /// # Errors
    ///
    /// Those of [`Weights::new`].
    pub fn reader(&self) -> Outcome<Reader<'a>> {
        Ok(match *self {
            Self::Gguf(tensor) => {
                let weights = Weights::new(tensor)?;
                Reader { format: weights.format, n: weights.n, k: weights.k, rows: Rows::Gguf(weights) }
            }
            Self::Checkpoint(tensor, shards) => {
                let format = format(tensor.ty).ok_or(Error::NotWeights { ty: tensor.ty })?;
                let (n, k) = tensor.matrix();
                Reader { format, n, k, rows: Rows::Checkpoint(tensor, shards) }
            }
        })
    }
}

/// A tensor as `n` rows of `k` values.
pub struct Reader<'a> {
    pub format: &'static Format,
    pub n: usize,
    pub k: usize,
    rows: Rows<'a>,
}

enum Rows<'a> {
    Gguf(Weights<'a>),
    Checkpoint(&'a checkpoint::Tensor, &'a Shards),
}

impl Reader<'_> {
    /// The blocks of `count` rows from row `first` on, little-endian.
    pub fn read(&self, first: usize, count: usize) -> Outcome<Cow<'_, [u8]>> {
        match &self.rows {
            Rows::Gguf(weights) => Ok(Cow::Borrowed(weights.rows(first, count))),
            Rows::Checkpoint(tensor, shards) => tensor.rows(shards, first, count),
        }
    }
}
