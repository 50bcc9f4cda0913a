//! [`HostMatrix`], [`HostExperts`]: weights on the host, which Candle's kernels multiply.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::Tensor;
use half::f16;

use crate::Result;
use crate::gguf::GgmlType;
use crate::kernels::formats::{CHUNK, Format};
use crate::kernels::ops::Arithmetic;
use crate::kernels::weights::GgufMatrix;
use crate::storage::Device;
use crate::storage::candle::{QTensor, is_repacked};

/// What is done to products: they are scaled, then biased.
#[derive(Clone, Debug)]
struct Companions {
    /// A factor of all rows, or one an expert.
    scales: Option<Vec<f32>>,
    /// A value for each row, of each expert.
    biases: Option<Vec<f32>>,
}

impl Companions {
    /// Turns the sums of an expert, or of the only matrix, into products.
    fn finish(&self, sums: &mut [f32], expert: usize) {
        if let Some(scales) = &self.scales {
            sums.iter_mut().for_each(|sum| *sum *= scales[expert]);
        }
        if let Some(biases) = &self.biases {
            let biases = &biases[expert * sums.len()..];
            sums.iter_mut().zip(biases).for_each(|(sum, bias)| *sum += bias);
        }
    }
}

/// A matrix in host memory.
#[derive(Clone, Debug)]
pub struct HostMatrix {
    tensor: Arc<QTensor>,
    n: usize,
    has_tiles: bool,
    companions: Companions,
}

/// Rows of activations from which on the weights' values are multiplied sooner than their codes, where Candle has no tiles.
/// (Measured for Q5_0 and Q8_0 of 640 columns on two cores with AVX-512.)
const MANY: usize = 32;

/// Rows of weights whose values are in memory at a time.
const STRIPE: usize = 1024;

impl HostMatrix {
    /// A matrix of a file, with products that are scaled and biased.
    pub fn load(matrix: GgufMatrix<'_>, scales: Option<Vec<f32>>, biases: Option<Vec<f32>>) -> Result<Self> {
        let (n, k) = (matrix.n, matrix.k);
        let tensor = Arc::new(tensor(matrix, &[n, k])?);
        // Candle multiplies many rows of activations by tiles of what it repacks.
        let has_tiles = is_repacked(tensor.dtype(), n, k);
        Ok(Self { tensor, n, has_tiles, companions: Companions { scales, biases } })
    }

    /// Rows.
    pub fn n(&self) -> usize {
        self.n
    }

    /// The rows of tokens, of an embedding.
    pub fn rows(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let ids = Tensor::new(ids, &candle_core::Device::Cpu)?;
        Ok(self.tensor.embedding(&ids)?.flatten_all()?.to_vec1()?)
    }

    /// `rows` rows times the transpose of the matrix.
    pub fn product(&self, x: &[f32], rows: usize) -> Result<Vec<f32>> {
        match rows >= MANY && !self.has_tiles {
            true => self.product_closely(x, rows),
            false => {
                let x = Tensor::from_slice(x, (rows, x.len() / rows), &candle_core::Device::Cpu)?;
                self.finished(&self.tensor.matmul_t(&x, Arithmetic::Auto)?)
            }
        }
    }

    /// The same by products of f32.
    pub fn product_closely(&self, x: &[f32], rows: usize) -> Result<Vec<f32>> {
        let x = Tensor::from_slice(x, (rows, x.len() / rows), &candle_core::Device::Cpu)?;
        // The values of some rows of weights at a time.
        let stripe = |first: usize| {
            let ids = Tensor::arange(first as u32, (first + STRIPE).min(self.n) as u32, x.device())?;
            x.matmul(&self.tensor.embedding(&ids)?.t()?)
        };
        let stripes: Vec<Tensor> = (0..self.n).step_by(STRIPE).map(stripe).collect::<candle_core::Result<_>>()?;
        self.finished(&Tensor::cat(&stripes, 1)?)
    }

    fn finished(&self, sums: &Tensor) -> Result<Vec<f32>> {
        let mut out = sums.flatten_all()?.to_vec1::<f32>()?;
        out.chunks_exact_mut(self.n.max(1)).for_each(|sums| self.companions.finish(sums, 0));
        Ok(out)
    }
}

/// A stack of experts in host memory.
#[derive(Debug)]
pub struct HostExperts {
    tensor: QTensor,
    /// Rows of an expert.
    n: usize,
    companions: Companions,
}

impl HostExperts {
    /// A stack of a file, whose experts are one after the other, with products that are scaled by a factor an expert and biased.
    pub fn load(
        matrix: GgufMatrix<'_>,
        experts: usize,
        scales: Option<Vec<f32>>,
        biases: Option<Vec<f32>>,
    ) -> Result<Self> {
        let (n, k) = (matrix.n / experts.max(1), matrix.k);
        Ok(Self { tensor: tensor(matrix, &[experts, n, k])?, n, companions: Companions { scales, biases } })
    }

    /// Rows of an expert.
    pub fn n(&self) -> usize {
        self.n
    }

    /// The products of each pair of tokens and experts, of which a token has `slots`; `x` has a row for each token or for each pair.
    pub fn products(&self, x: &[f32], width: usize, pairs: HostPairs<'_>) -> Result<Vec<f32>> {
        let HostPairs { ids, slots } = pairs;
        let (host, tokens) = (candle_core::Device::Cpu, ids.len() / slots);
        let rows = Tensor::from_slice(x, (tokens, x.len() / width / tokens, width), &host)?;
        let named = Tensor::from_slice(ids, (tokens, slots), &host)?;
        let mut out = self.tensor.indexed_moe_forward(&rows, &named)?.flatten_all()?.to_vec1::<f32>()?;
        for (sums, &id) in out.chunks_exact_mut(self.n.max(1)).zip(ids) {
            self.companions.finish(sums, id as usize);
        }
        Ok(out)
    }
}

/// The experts of some tokens, `slots` for each.
#[derive(Clone, Copy, Debug)]
pub struct HostPairs<'a> {
    pub ids: &'a [u32],
    pub slots: usize,
}

/// The weights of a file as a tensor of a shape, in a format that Candle multiplies fast.
fn tensor(matrix: GgufMatrix<'_>, shape: &[usize]) -> Result<QTensor> {
    let (format, data) = matrix.little_endian()?;
    let (ty, data) = match matrix.ty {
        // Candle's kernels of the one are not vectorized, of the other it has none.
        GgmlType::Q5_0 | GgmlType::IQ4NL => (GgmlType::Q8_0, Cow::Owned(as_q8_0(format, &data))),
        ty => (ty, data),
    };
    Ok(QTensor::from_gguf(ty, data, shape, &Device::Cpu)?)
}

/// The same values in Q8_0, of blocks that begin with their scale, an f16, and whose values are whole multiples of it.
fn as_q8_0(format: &Format, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len() / format.ty.block_bytes() * GgmlType::Q8_0.block_bytes());
    let (mut values, mut unit) = ([0.0; CHUNK], Vec::new());
    for block in data.chunks_exact(format.ty.block_bytes()) {
        let (scale, codes) = block.split_at(size_of::<f16>());
        unit.clear();
        unit.extend_from_slice(&f16::ONE.to_le_bytes());
        unit.extend_from_slice(codes);
        (format.dequantize)(&unit, &mut values);
        out.extend_from_slice(scale);
        out.extend(values.iter().map(|&value| value as i8 as u8));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::formats::format;

    #[test]
    fn values_stay_the_same_in_q8_0() {
        for ty in [GgmlType::Q5_0, GgmlType::IQ4NL] {
            let from = format(ty).unwrap();
            let mut state = 1u32;
            let mut block = vec![0; 64 * ty.block_bytes()];
            for byte in &mut block {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *byte = (state >> 24) as u8;
            }
            for block in block.chunks_exact_mut(ty.block_bytes()) {
                // A finite scale.
                block[1] &= 0x3f;
            }
            let dequantized = |format: &Format, data: &[u8]| {
                let mut values = vec![0.0; 64 * CHUNK];
                format.dequantize_blocks(data, &mut values);
                values
            };
            let to = format(GgmlType::Q8_0).unwrap();
            assert_eq!(dequantized(to, &as_q8_0(from, &block)), dequantized(from, &block), "{ty}");
        }
    }
}
