//! Tensors in host memory: Candle's own blocks where Candle can multiply the format, else GGUF blocks and this crate's
//! host decoder.

use std::borrow::Cow;

use candle_core::quantized::{GgmlDType, QuantizedType};
use rayon::prelude::*;

use crate::gguf::{Endian, GgmlType};
use crate::kernels::formats::{Format, format};
use crate::{Error, Result};

/// Candle's type of the same blocks, where Candle has it.
pub(super) fn candle_dtype(ty: GgmlType) -> Option<GgmlDType> {
    Some(match ty {
        GgmlType::F32 => GgmlDType::F32,
        GgmlType::F16 => GgmlDType::F16,
        GgmlType::BF16 => GgmlDType::BF16,
        GgmlType::Q4_0 => GgmlDType::Q4_0,
        GgmlType::Q4_1 => GgmlDType::Q4_1,
        GgmlType::Q5_0 => GgmlDType::Q5_0,
        GgmlType::Q5_1 => GgmlDType::Q5_1,
        GgmlType::Q8_0 => GgmlDType::Q8_0,
        GgmlType::Q8_1 => GgmlDType::Q8_1,
        GgmlType::Q2K => GgmlDType::Q2K,
        GgmlType::Q3K => GgmlDType::Q3K,
        GgmlType::Q4K => GgmlDType::Q4K,
        GgmlType::Q5K => GgmlDType::Q5K,
        GgmlType::Q6K => GgmlDType::Q6K,
        GgmlType::Q8K => GgmlDType::Q8K,
        _ => return None,
    })
}

/// Candle's type, where its CPU code can also multiply rows of `k` values: its products of Q4_1, Q5_0 and Q5_1 take
/// pairs of blocks, and it lacks a product of Q8_1.
pub(super) fn candle_product(ty: GgmlType, k: usize) -> Option<GgmlDType> {
    candle_dtype(ty).filter(|_| match ty {
        GgmlType::Q4_1 | GgmlType::Q5_0 | GgmlType::Q5_1 => k.is_multiple_of(64),
        GgmlType::Q8_1 => false,
        _ => true,
    })
}

/// The GGUF type of a Candle type.
pub(super) fn ggml_type(dtype: GgmlDType) -> GgmlType {
    match dtype {
        GgmlDType::F32 => GgmlType::F32,
        GgmlDType::F16 => GgmlType::F16,
        GgmlDType::BF16 => GgmlType::BF16,
        GgmlDType::Q4_0 => GgmlType::Q4_0,
        GgmlDType::Q4_1 => GgmlType::Q4_1,
        GgmlDType::Q5_0 => GgmlType::Q5_0,
        GgmlDType::Q5_1 => GgmlType::Q5_1,
        GgmlDType::Q8_0 => GgmlType::Q8_0,
        GgmlDType::Q8_1 => GgmlType::Q8_1,
        GgmlDType::Q2K => GgmlType::Q2K,
        GgmlDType::Q3K => GgmlType::Q3K,
        GgmlDType::Q4K => GgmlType::Q4K,
        GgmlDType::Q5K => GgmlType::Q5K,
        GgmlDType::Q6K => GgmlType::Q6K,
        GgmlDType::Q8K => GgmlType::Q8K,
    }
}

/// Candle's blocks from GGUF bytes of any alignment.
pub(super) fn candle_blocks(dtype: GgmlDType, data: &[u8]) -> Box<dyn QuantizedType> {
    // Candle reads the bytes as blocks in place, whose alignment is at most that of u32.
    if (data.as_ptr() as usize).is_multiple_of(align_of::<u32>()) {
        return dtype.from_data(Cow::Borrowed(data));
    }
    let mut words = vec![0u32; data.len().div_ceil(4)];
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
    bytes[..data.len()].copy_from_slice(data);
    dtype.from_data(Cow::Borrowed(&bytes[..data.len()]))
}

/// GGUF blocks of a format that Candle lacks or cannot multiply, multiplied in f32.
pub struct HostBlocks {
    format: &'static Format,
    data: Vec<u8>,
}

impl HostBlocks {
    pub(super) fn new(ty: GgmlType, data: Vec<u8>) -> Result<Self> {
        let format = format(ty).ok_or(Error::NotWeights { ty })?;
        Ok(Self { format, data })
    }

    pub(super) fn ty(&self) -> GgmlType {
        self.format.ty
    }

    pub(super) fn data(&self) -> &[u8] {
        &self.data
    }

    /// Dequantizes row `row`, of `k` values, to `out`.
    fn row(&self, row: usize, k: usize, out: &mut [f32]) {
        let bytes = k / self.ty().block_size() * self.ty().block_bytes();
        self.format.dequantize_blocks(&self.data[row * bytes..][..bytes], out);
    }

    pub(super) fn dequantize(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.data.len() / self.ty().block_bytes() * self.ty().block_size()];
        self.format.dequantize_blocks(&self.data, &mut out);
        out
    }

    pub(super) fn rows(&self, ids: &[u32], rows: usize, k: usize) -> Result<Vec<f32>> {
        let mut out = vec![0.0; ids.len() * k];
        for (&id, out) in ids.iter().zip(out.chunks_exact_mut(k.max(1))) {
            if id as usize >= rows {
                return Err(Error::RowOutOfRange { id: id as i64, rows });
            }
            self.row(id as usize, k, out);
        }
        Ok(out)
    }

    /// `x` `[tokens, k]` times the transpose of the `n` x `k` blocks.
    pub(super) fn matmul(&self, x: &[f32], n: usize, k: usize) -> Vec<f32> {
        let tokens = x.len() / k;
        let mut columns = vec![0.0f32; n * tokens];
        columns.par_chunks_exact_mut(tokens.max(1)).enumerate().for_each_init(
            || vec![0.0; k],
            |weights, (row, out)| {
                self.row(row, k, weights);
                for (x, out) in x.chunks_exact(k).zip(out) {
                    *out = x.iter().zip(&*weights).map(|(x, w)| x * w).sum();
                }
            },
        );
        let at = |i: usize| columns[i % n * tokens + i / n];
        (0..n * tokens).map(at).collect()
    }
}

/// Checks that `data` is whole blocks of `ty`.
pub(super) fn check_blocks(ty: GgmlType, data: &[u8]) -> Result<()> {
    match data.len().is_multiple_of(ty.block_bytes()) {
        true => Ok(()),
        false => {
            let k = data.len() / ty.block_bytes() * ty.block_size();
            Err(Error::Size { ty, n: 1, k, bytes: data.len() })
        }
    }
}

/// The byte order of Candle's blocks.
pub(super) const NATIVE: Endian = Endian::Little;
