//! [`HostMatrix`]: weights on the host, which Candle's kernels multiply faster than CubeCL's CPU runtime.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::Tensor;
use cubecl::server::Handle;
use half::f16;

use super::step::{Rows, Step};
use crate::Result;
use crate::gguf::GgmlType;
use crate::kernels::formats::{CHUNK, Format};
use crate::kernels::ops::Arithmetic;
use crate::kernels::weights::GgufMatrix;
use crate::storage::Device;
use crate::storage::candle::QTensor;

/// A matrix in host memory.
#[derive(Clone, Debug)]
pub(super) struct HostMatrix {
    tensor: Arc<QTensor>,
    n: usize,
}

impl HostMatrix {
    /// A matrix of a file.
    pub fn load(matrix: GgufMatrix<'_>) -> Result<Self> {
        let GgufMatrix { ty, n, k, .. } = matrix;
        let (format, data) = matrix.little_endian()?;
        let (ty, data) = match ty {
            // Candle's kernels of the one are not vectorized, of the other it has none.
            GgmlType::Q5_0 | GgmlType::IQ4NL => (GgmlType::Q8_0, Cow::Owned(as_q8_0(format, &data))),
            _ => (ty, data),
        };
        Ok(Self { tensor: Arc::new(QTensor::from_gguf(ty, data, (n, k), &Device::Cpu)?), n })
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
            let out = matrix.tensor.matmul_t(&x, Arithmetic::Auto)?.flatten_all()?.to_vec1::<f32>()?;
            // Kernels read four values at a time.
            let mut bytes: Vec<u8> = bytemuck::cast_slice(&out).to_vec();
            bytes.resize(bytes.len().next_multiple_of(16), 0);
            Ok(step.client.create_from_slice(&bytes))
        };
        matrices.iter().map(product).collect()
    }
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
