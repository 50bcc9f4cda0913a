//! [`Weights`]: a weight matrix on a device, as operations take it.

use std::borrow::Cow;

use cubecl::client::Client;
use cubecl::server::Handle;

use super::epilogue::{EpilogueLaunch, Epilogues};
use super::formats::{CHUNK, ComponentOffsets, ComponentsLaunch, Format, MatrixViewLaunch, format};
use super::launch::buffer;
use super::quantize::weights::{Values, quantize};
use super::repack;
use crate::gguf::{Endian, GgmlType};
use crate::{Error, Result};

/// The GGUF blocks of an `n` x `k` matrix.
#[derive(Clone, Copy)]
pub struct GgufMatrix<'a> {
    /// The type of the blocks.
    pub ty: GgmlType,
    /// Rows.
    pub n: usize,
    /// Columns.
    pub k: usize,
    /// The blocks, row by row.
    pub data: &'a [u8],
    /// Their byte order.
    pub endian: Endian,
}

impl<'a> GgufMatrix<'a> {
    /// The format of the blocks, and the blocks in the byte order that its decoders read.
    ///
    /// # Errors
    ///
    /// [`Error::NotWeights`] for integers and f64, [`Error::BigEndian`] for big-endian blocks of a format without such a form.
    pub fn little_endian(&self) -> Result<(&'static Format, Cow<'a, [u8]>)> {
        let ty = self.ty;
        let format = format(ty).ok_or(Error::NotWeights { ty })?;
        Ok((format, format.little_endian(self.data, self.endian).ok_or(Error::BigEndian { ty })?))
    }

    /// All values, decoded on the host.
    ///
    /// # Errors
    ///
    /// As [`little_endian`](Self::little_endian).
    pub fn values(&self) -> Result<Vec<f32>> {
        let (format, data) = self.little_endian()?;
        let mut values = vec![0.0; self.n * self.k];
        format.dequantize_blocks(&data, &mut values);
        Ok(values)
    }
}

/// `n` rows of `k` weights, in the components of their format's device layout.
#[derive(Clone)]
pub struct Weights {
    format: &'static Format,
    n: usize,
    k: usize,
    offsets: ComponentOffsets,
    handle: Handle,
    /// The format's codebook on the device, one zero word where it has none.
    pub(super) codebook: Handle,
    pub(super) epilogues: Epilogues,
}

impl Weights {
    /// Uploads a matrix, of a byte order that the format has.
    ///
    /// `codebook` is the device's copy of the format's codebook. `None` where `ty` holds no weights, or the shape does
    /// not fit `data` or overflows.
    pub fn upload(client: &Client, matrix: GgufMatrix<'_>, codebook: Handle) -> Option<Self> {
        let GgufMatrix { ty, n, k, data, endian } = matrix;
        if ty.row_bytes(k)?.checked_mul(n)? != data.len() {
            return None;
        }
        let weights = Self::uninitialized(client, ty, n, k, codebook)?;
        repack::upload(client, weights.format, data, endian, &weights.offsets, &weights.handle);
        Some(weights)
    }

    /// A matrix of any bits, for [`quantize_rows`](Self::quantize_rows). `None` where `ty` holds no weights, rows of `k` are not
    /// whole blocks, or the size overflows.
    pub fn uninitialized(client: &Client, ty: GgmlType, n: usize, k: usize, codebook: Handle) -> Option<Self> {
        let format = format(ty)?;
        ty.row_bytes(k)?.checked_mul(n)?;
        let offsets = (format.layout)().place(n, k / ty.block_size())?;
        let handle = client.memory_persistent_allocation((), |()| client.empty(4 * offsets.words.max(4)));
        Some(Self { format, n, k, offsets, handle, codebook, epilogues: Epilogues::default() })
    }

    /// Quantizes rows in place of what they were. Where a value is not finite, the word of `faults` becomes 1. There must be
    /// [a kernel](super::quantize::weights::quantizes) for the format.
    pub fn quantize_rows(&self, client: &Client, rows: &Values<'_>, faults: &Handle) {
        quantize(client, rows, self.ty(), &self.offsets, &self.handle, faults);
    }

    /// The format.
    pub fn ty(&self) -> GgmlType {
        self.format.ty
    }

    /// Rows: output features.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Columns: input features.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Chunks of 32 values in a row, the last one perhaps padded.
    pub fn chunks(&self) -> usize {
        self.k.div_ceil(CHUNK)
    }

    /// Bytes on the device, without the codebook, which all tensors of a device share.
    pub fn device_bytes(&self) -> usize {
        4 * self.offsets.words
    }

    /// Bytes of the GGUF blocks.
    pub fn gguf_bytes(&self) -> usize {
        self.n * self.k / self.ty().block_size() * self.ty().block_bytes()
    }

    /// The buffer of all components.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// The little-endian GGUF blocks, bit for bit, from the buffer's words.
    pub fn to_gguf(&self, words: &[u32]) -> Vec<u8> {
        let mut out = vec![0; self.gguf_bytes()];
        let words = &words[..self.offsets.words];
        (self.format.layout)().to_gguf(words, self.n, self.k / self.ty().block_size(), &mut out);
        out
    }

    /// The same weights with products that are scaled, by one factor or one for each of as many runs of rows, or biased by a value
    /// a row: f32 on the device, as many as that.
    pub fn with(&self, scales: Option<Handle>, biases: Option<Handle>) -> Self {
        let Epilogues { scales: own_scales, biases: own_biases } = self.epilogues.clone();
        Self { epilogues: Epilogues { scales: scales.or(own_scales), biases: biases.or(own_biases) }, ..self.clone() }
    }

    /// The factors of products.
    pub fn scales(&self) -> Option<&Handle> {
        self.epilogues.scales.as_ref()
    }

    /// The biases of products.
    pub fn biases(&self) -> Option<&Handle> {
        self.epilogues.biases.as_ref()
    }

    /// What is done to the sums of products, as a kernel argument.
    pub(super) fn epilogue(&self) -> EpilogueLaunch {
        self.epilogues.arg(self.n)
    }

    /// The matrix as a kernel argument.
    pub(super) fn view(&self) -> MatrixViewLaunch {
        MatrixViewLaunch::new(
            buffer(&self.handle, 16),
            buffer(&self.handle, 4),
            buffer(&self.codebook, 4),
            ComponentsLaunch::of(&self.offsets),
        )
    }
}
