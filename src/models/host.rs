//! [`HostMatrix`], [`HostExperts`]: weights on the host, which Candle's kernels multiply faster than CubeCL's CPU runtime.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::Tensor;
use cubecl::server::Handle;
use half::f16;

use super::experts::Pairs;
use super::step::{Rows, Step};
use crate::Result;
use crate::gguf::GgmlType;
use crate::kernels::formats::{CHUNK, Format};
use crate::kernels::ops::Arithmetic;
use crate::kernels::weights::GgufMatrix;
use crate::storage::Device;
use crate::storage::candle::QTensor;

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
pub(super) struct HostMatrix {
    tensor: Arc<QTensor>,
    n: usize,
    companions: Companions,
}

impl HostMatrix {
    /// A matrix of a file, with products that are scaled and biased.
    pub fn load(matrix: GgufMatrix<'_>, scales: Option<Vec<f32>>, biases: Option<Vec<f32>>) -> Result<Self> {
        let (n, k) = (matrix.n, matrix.k);
        Ok(Self { tensor: Arc::new(tensor(matrix, &[n, k])?), n, companions: Companions { scales, biases } })
    }

    /// Rows.
    pub fn n(&self) -> usize {
        self.n
    }

    /// A step's rows times the transpose of each matrix: there and back through host memory, where the CPU runtime's buffers
    /// are too.
    pub fn products(matrices: &[&Self], step: &Step<'_>, x: &Rows) -> Result<Vec<Handle>> {
        if matrices.is_empty() {
            return Ok(Vec::new());
        }
        let values = x.read(step.device, step.tokens)?;
        let x = Tensor::from_vec(values, (step.tokens, x.width), &candle_core::Device::Cpu)?;
        let product = |matrix: &&Self| {
            let mut out = matrix.tensor.matmul_t(&x, Arithmetic::Auto)?.flatten_all()?.to_vec1::<f32>()?;
            out.chunks_exact_mut(matrix.n.max(1)).for_each(|sums| matrix.companions.finish(sums, 0));
            Ok(uploaded(step, &out))
        };
        matrices.iter().map(product).collect()
    }
}

/// A stack of experts in host memory.
#[derive(Debug)]
pub(super) struct HostExperts {
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

    /// The products of each pair with each stack, where `of` has the rows of `x`.
    pub fn products(stacks: &[&Self], pairs: &Pairs<'_>, of: &Step<'_>, x: &Rows) -> Result<Vec<Handle>> {
        if stacks.is_empty() {
            return Ok(Vec::new());
        }
        let Pairs { tokens: step, routing, .. } = pairs;
        let ids = step.device.read(routing.handle().clone())?;
        let ids = ids.chunks_exact(4).take(routing.pairs()).map(|id| u32::from_ne_bytes([id[0], id[1], id[2], id[3]]));
        let ids: Vec<u32> = ids.collect();
        let (host, shape) = (candle_core::Device::Cpu, (step.tokens, of.tokens / step.tokens, x.width));
        let rows = Tensor::from_vec(x.read(step.device, of.tokens)?, shape, &host)?;
        let named = Tensor::from_slice(&ids, (step.tokens, routing.slots()), &host)?;
        let product = |stack: &&Self| {
            let mut out = stack.tensor.indexed_moe_forward(&rows, &named)?.flatten_all()?.to_vec1::<f32>()?;
            for (sums, &id) in out.chunks_exact_mut(stack.n.max(1)).zip(&ids) {
                stack.companions.finish(sums, id as usize);
            }
            Ok(uploaded(step, &out))
        };
        stacks.iter().map(product).collect()
    }
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

/// Values on the step's device.
fn uploaded(step: &Step<'_>, values: &[f32]) -> Handle {
    // Kernels read four values at a time.
    let mut bytes: Vec<u8> = bytemuck::cast_slice(values).to_vec();
    bytes.resize(bytes.len().next_multiple_of(16).max(16), 0);
    step.client.create_from_slice(&bytes)
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
