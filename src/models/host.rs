//! [`HostMatrix`]: weights on the host, which Candle's kernels multiply faster than CubeCL's CPU runtime.

use std::sync::Arc;

use candle_core::Tensor;
use cubecl::server::Handle;

use super::step::{Rows, Step};
use crate::kernels::formats::format;
use crate::kernels::ops::Arithmetic;
use crate::kernels::weights::GgufMatrix;
use crate::storage::Device;
use crate::storage::candle::QTensor;
use crate::{Error, Result};

/// A matrix in host memory.
#[derive(Clone, Debug)]
pub(super) struct HostMatrix {
    tensor: Arc<QTensor>,
    n: usize,
}

impl HostMatrix {
    /// A matrix of a file.
    pub fn load(matrix: GgufMatrix<'_>) -> Result<Self> {
        let GgufMatrix { ty, n, k, data, endian } = matrix;
        let format = format(ty).ok_or(Error::NotWeights { ty })?;
        let data = format.little_endian(data, endian).ok_or(Error::BigEndian { ty })?;
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
        let values = step.read(x)?;
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
