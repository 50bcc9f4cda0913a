//! Tensors of this crate inside Candle's own [`QTensor`](CandleTensor), for code whose types cannot be swapped.

use std::sync::{Arc, OnceLock};

use candle_core::quantized::{GgmlDType, QStorage as CandleStorage, QTensor as CandleTensor, QuantizedType};
use candle_core::{CpuStorage, Device as CandleDevice, Result, Tensor};
use half::f16;

use super::host::candle_dtype;
use super::qtensor::{Inner, QTensor, matrix};
use crate::Error;
use crate::gguf::GgmlType;
use crate::kernels::ops::Arithmetic;

/// Whether Candle's CPU code reads the blocks of such a matrix for kernels of its own, past [`QuantizedType::matmul_t`]
/// (`repack_x86::select` and `PackedKind::select` of candle-core 0.11).
pub(crate) fn is_repacked(ty: GgmlType, n: usize, k: usize) -> bool {
    use GgmlType::{Q4_0, Q4K, Q5K, Q6K, Q8_0};
    if cfg!(target_arch = "x86_64") {
        matches!(ty, Q4K | Q6K | Q8_0) && n.is_multiple_of(16) && k.is_multiple_of(256)
    } else if cfg!(target_arch = "aarch64") {
        let rows = match ty {
            Q4_0 | Q8_0 => 4,
            Q4K | Q5K | Q6K => 8,
            _ => return false,
        };
        n.is_multiple_of(rows)
    } else {
        false
    }
}

impl QTensor {
    /// The tensor as Candle's own, with its weights where they are: Candle's CPU code hands products, rows and values on to this
    /// crate. Only [`data`](CandleTensor::data) copies the blocks to host memory, once.
    ///
    /// A stack of experts is multiplied by [`QTensor::indexed_moe_forward`] alone: Candle's has no way for it.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")]
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use candle_core::{DType, Device::Cpu, Module, Tensor, quantized::QMatMul};
    /// use cube_gguf::{Device, GgmlDType, QTensor};
    ///
    /// let ones = Tensor::ones((8, 64), DType::F32, &Cpu)?;
    /// let weights = QTensor::quantize_onto(&ones, GgmlDType::Q4_0, &Device::new_cube_cpu()?)?;
    /// let layer = QMatMul::from_arc(weights.into_candle()?)?;
    /// let y = layer.forward(&Tensor::ones((1, 64), DType::F32, &Cpu)?)?;
    /// assert_eq!(y.dims(), [1, 8]);
    /// # Ok(())
    /// # }
    /// # #[cfg(not(feature = "cpu"))]
    /// # fn main() {}
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NoCandleType`] where Candle lacks the format, [`Error::Repacked`] where Candle's CPU code would read the blocks and
    /// multiply them itself: on x86-64 Q4_K, Q6_K and Q8_0 of whole 16 rows and 256 columns; on AArch64 Q4_0 and Q8_0 of whole 4
    /// rows, Q4_K, Q5_K and Q6_K of whole 8.
    pub fn into_candle(self) -> Result<Arc<CandleTensor>> {
        if let Inner::Candle(tensor) = self.inner() {
            return Ok(tensor.clone());
        }
        let (ty, shape) = (self.dtype(), self.shape().clone());
        candle_dtype(ty).ok_or(Error::NoCandleType { ty })?;
        let (n, k) = matrix(&shape, ty)?;
        if is_repacked(ty, n, k) {
            return Err(Error::Repacked { ty, n, k }.into());
        }
        let guest = Guest { tensor: self, blocks: OnceLock::new() };
        Ok(Arc::new(CandleTensor::new(CandleStorage::Cpu(Box::new(guest)), shape)?))
    }
}

/// A tensor of this crate in the place of Candle's blocks.
struct Guest {
    tensor: QTensor,
    /// The blocks in host memory, where they were asked for.
    blocks: OnceLock<Vec<u8>>,
}

impl Guest {
    /// The products with rows of `x`, whose extents Candle has checked.
    fn product(&self, (m, k, _): (usize, usize, usize), x: Tensor) -> Result<Tensor> {
        self.tensor.matmul_t(&x.reshape((m, k))?, Arithmetic::Auto)?.flatten_all()
    }

    /// The same tensor of other values, which panics where it fails: Candle's trait knows no failure.
    fn replace(&mut self, values: &[f32], importance: Option<&[f32]>) {
        let (ty, device) = (self.tensor.dtype(), self.tensor.device());
        let values = Tensor::from_slice(values, self.tensor.shape().clone(), &CandleDevice::Cpu);
        let quantized = values.and_then(|values| match importance {
            Some(importance) => QTensor::quantize_imatrix_onto(&values, importance, ty, &device),
            None => QTensor::quantize_onto(&values, ty, &device),
        });
        match quantized {
            Ok(tensor) => *self = Self { tensor, blocks: OnceLock::new() },
            Err(error) => panic!("values for a tensor of {ty}: {error}"),
        }
    }
}

impl QuantizedType for Guest {
    fn dtype(&self) -> GgmlDType {
        candle_dtype(self.tensor.dtype()).expect("a guest's format is one of Candle's")
    }

    fn matmul_t(&self, mkn: (usize, usize, usize), lhs: &[f32], dst: &mut [f32]) -> Result<()> {
        let y = self.product(mkn, Tensor::from_slice(lhs, lhs.len(), &CandleDevice::Cpu)?)?;
        dst.copy_from_slice(&y.to_vec1::<f32>()?);
        Ok(())
    }

    fn matmul_t_f16(&self, mkn: (usize, usize, usize), lhs: &[f16], dst: &mut [f16]) -> Result<()> {
        let y = self.product(mkn, Tensor::from_slice(lhs, lhs.len(), &CandleDevice::Cpu)?)?;
        dst.copy_from_slice(&y.to_vec1::<f16>()?);
        Ok(())
    }

    fn embedding(&self, ids: &[u32], _rows: usize, _hidden: usize) -> Result<CpuStorage> {
        let ids = Tensor::from_slice(ids, ids.len(), &CandleDevice::Cpu)?;
        Ok(CpuStorage::F32(self.tensor.embedding(&ids)?.flatten_all()?.to_vec1()?))
    }

    fn dequantize(&self, _elem_count: usize) -> Result<CpuStorage> {
        Ok(CpuStorage::F32(self.tensor.dequantize(&CandleDevice::Cpu)?.flatten_all()?.to_vec1()?))
    }

    fn storage_size_in_bytes(&self) -> usize {
        self.tensor.storage_size_in_bytes()
    }

    /// The blocks, read back at the first call, which panics if the device fails then: Candle's trait knows no failure.
    fn as_ptr(&self) -> *const u8 {
        let read = || match self.tensor.data() {
            Ok(data) => data.into_owned(),
            Err(error) => panic!("the blocks of a tensor of {}: {error}", self.tensor.dtype()),
        };
        self.blocks.get_or_init(read).as_ptr()
    }

    fn block_size(&self) -> usize {
        self.tensor.dtype().block_size()
    }

    fn from_float(&mut self, xs: &[f32]) {
        self.replace(xs, None);
    }

    fn from_float_imatrix(&mut self, xs: &[f32], imatrix_weights: &[f32], _n_per_row: usize) {
        self.replace(xs, Some(imatrix_weights));
    }

    fn size(&self) -> usize {
        self.storage_size_in_bytes()
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::storage::Device;

    /// What Candle's trait asks for beside what Candle's tensors do: new values, whose blocks are no longer the old ones.
    #[test]
    fn new_values_take_the_place_of_the_old_ones() {
        let values: Vec<f32> = (0..512).map(|i| (i as f32 * 0.37).sin()).collect();
        let zeros = Tensor::zeros((2, 256), DType::F32, &CandleDevice::Cpu).unwrap();
        let tensor = QTensor::quantize_onto(&zeros, GgmlType::Q3K, &Device::Cpu).unwrap();
        let mut guest = Guest { tensor, blocks: OnceLock::new() };
        let blocks = |guest: &Guest| {
            // SAFETY: `as_ptr` points at as many bytes, which `guest` keeps.
            unsafe { std::slice::from_raw_parts(guest.as_ptr(), guest.storage_size_in_bytes()) }.to_vec()
        };
        assert_eq!((guest.size(), guest.block_size()), (2 * 110, 256));
        assert!(blocks(&guest).iter().all(|&byte| byte == 0));
        let shaped = Tensor::from_slice(&values, (2, 256), &CandleDevice::Cpu).unwrap();
        let expected = CandleTensor::quantize(&shaped, GgmlDType::Q3K).unwrap();
        guest.from_float(&values);
        assert_eq!(blocks(&guest), *expected.data().unwrap());
        let importance: Vec<f32> = (0..256).map(|i| 1.0 + i as f32).collect();
        let expected = QTensor::quantize_imatrix_onto(&shaped, &importance, GgmlType::Q3K, &Device::Cpu).unwrap();
        guest.from_float_imatrix(&values, &importance, 256);
        assert_eq!(blocks(&guest), *expected.data().unwrap());
    }
}
