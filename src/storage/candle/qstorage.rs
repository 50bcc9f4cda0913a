//! [`QStorage`]: quantized blocks on a device, without a shape, as in `candle_core::quantized`.

use std::borrow::Cow;

use candle_core::quantized::k_quants::{
    BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0, BlockQ8_1,
    BlockQ8K,
};
use candle_core::quantized::{GgmlType as CandleBlock, QuantizedType};
use candle_core::{CpuStorage, Result, Storage};
use half::{bf16, f16};

use super::host::{HostBlocks, NATIVE, candle_blocks, candle_dtype, check_blocks, ggml_type};
use super::weight_device::WeightDevice;
use crate::Error;
use crate::gguf::GgmlType;
use crate::kernels::floats::FloatType;
use crate::storage::device::{Backend, CubeDevice, Device};
use crate::storage::quantize::positive;
use crate::storage::tensor::DeviceTensor;

/// Blocks of one type, in the memory of one device.
pub enum QStorage {
    /// Host memory, multiplied by Candle's CPU kernels where Candle can multiply the format.
    Cpu(QCpuStorage),
    /// An AMD GPU.
    Rocm(QRocmStorage),
    /// An NVIDIA GPU.
    Cuda(QCudaStorage),
    /// A GPU by Vulkan.
    Vulkan(QVulkanStorage),
    /// A GPU by wgpu.
    Wgpu(QWgpuStorage),
    /// An Apple GPU.
    Metal(QMetalStorage),
    /// CubeCL's CPU runtime.
    CubeCpu(QCubeStorage),
}

/// Blocks in host memory: Candle's where Candle has the format, else GGUF bytes.
pub struct QCpuStorage(pub(super) CpuBlocks);

pub(super) enum CpuBlocks {
    Candle(Box<dyn QuantizedType>),
    Host(HostBlocks),
}

/// The blocks of a [`QStorage`], borrowed.
enum View<'a> {
    Candle(&'a dyn QuantizedType),
    Host(&'a HostBlocks),
    Cube(&'a DeviceTensor),
}

/// Blocks on a device of CubeCL.
///
/// Until a [`QTensor`](super::QTensor) gives them a shape they are one long row.
#[derive(Clone)]
pub struct QCubeStorage(pub(super) DeviceTensor);

/// [`QCubeStorage`] on an AMD GPU.
pub type QRocmStorage = QCubeStorage;
/// [`QCubeStorage`] on an NVIDIA GPU.
pub type QCudaStorage = QCubeStorage;
/// [`QCubeStorage`] on a GPU by Vulkan.
pub type QVulkanStorage = QCubeStorage;
/// [`QCubeStorage`] on a GPU by wgpu.
pub type QWgpuStorage = QCubeStorage;
/// [`QCubeStorage`] on an Apple GPU.
pub type QMetalStorage = QCubeStorage;

impl QCubeStorage {
    /// The blocks as a tensor.
    pub fn tensor(&self) -> &DeviceTensor {
        &self.0
    }

    /// The blocks' device.
    pub fn device(&self) -> &CubeDevice {
        self.0.device()
    }

    fn flat(device: &CubeDevice, ty: GgmlType, data: &[u8]) -> Result<Self> {
        check_blocks(ty, data)?;
        let values = data.len() / ty.block_bytes() * ty.block_size();
        Ok(Self(DeviceTensor::from_gguf(device, ty, 1, values, data, NATIVE)?))
    }
}

impl From<QCubeStorage> for QStorage {
    fn from(storage: QCubeStorage) -> Self {
        match storage.device().backend() {
            Backend::Rocm => Self::Rocm(storage),
            Backend::Cuda => Self::Cuda(storage),
            Backend::Vulkan => Self::Vulkan(storage),
            Backend::Wgpu => Self::Wgpu(storage),
            Backend::Metal => Self::Metal(storage),
            Backend::CubeCpu => Self::CubeCpu(storage),
        }
    }
}

impl QStorage {
    /// Blocks of zeros: `elem_count` values.
    ///
    /// # Errors
    ///
    /// As [`from_data`](Self::from_data).
    pub fn zeros<P: WeightDevice + ?Sized>(device: &P, elem_count: usize, dtype: GgmlType) -> Result<Self> {
        let bytes = dtype.row_bytes(elem_count).ok_or(Error::Size { ty: dtype, n: 1, k: elem_count, bytes: 0 })?;
        Self::from_data(Cow::Owned(vec![0; bytes]), device, dtype)
    }

    /// Blocks from their little-endian GGUF bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Size`] where `data` is not whole blocks, [`Error::NotWeights`] for integers and f64, and those of
    /// [`DeviceTensor::from_gguf`].
    pub fn from_data<P: WeightDevice + ?Sized>(data: Cow<'_, [u8]>, device: &P, dtype: GgmlType) -> Result<Self> {
        check_blocks(dtype, &data)?;
        match &device.weights()? {
            Device::Cpu => Ok(Self::Cpu(QCpuStorage(match candle_dtype(dtype) {
                Some(candle) => CpuBlocks::Candle(candle_blocks(candle, &data)),
                None => CpuBlocks::Host(HostBlocks::new(dtype, data.into_owned())?),
            }))),
            Device::Cube(device) => QCubeStorage::flat(device, dtype, &data).map(Self::from),
        }
    }

    /// The storage on a device of CubeCL; `None` for host memory.
    pub fn as_cube(&self) -> Option<&QCubeStorage> {
        match self {
            Self::Cpu(_) => None,
            Self::Rocm(storage)
            | Self::Cuda(storage)
            | Self::Vulkan(storage)
            | Self::Wgpu(storage)
            | Self::Metal(storage)
            | Self::CubeCpu(storage) => Some(storage),
        }
    }

    fn view(&self) -> View<'_> {
        match (self, self.as_cube()) {
            (_, Some(storage)) => View::Cube(&storage.0),
            (Self::Cpu(QCpuStorage(CpuBlocks::Host(blocks))), _) => View::Host(blocks),
            (Self::Cpu(QCpuStorage(CpuBlocks::Candle(blocks))), _) => View::Candle(blocks.as_ref()),
            _ => unreachable!("what is not host memory is a device of CubeCL"),
        }
    }

    /// Values in a block.
    pub fn block_size(&self) -> usize {
        self.dtype().block_size()
    }

    /// The type of the blocks.
    pub fn dtype(&self) -> GgmlType {
        match self.view() {
            View::Candle(blocks) => ggml_type(blocks.dtype()),
            View::Host(blocks) => blocks.ty(),
            View::Cube(tensor) => tensor.ty(),
        }
    }

    /// The blocks' device.
    pub fn device(&self) -> Device {
        self.as_cube().map_or(Device::Cpu, |storage| Device::Cube(storage.device().clone()))
    }

    /// Bytes of the GGUF blocks.
    pub fn size_in_bytes(&self) -> usize {
        match self.view() {
            View::Candle(blocks) => blocks.storage_size_in_bytes(),
            View::Host(blocks) => blocks.data().len(),
            View::Cube(tensor) => tensor.n() * tensor.k() / tensor.ty().block_size() * tensor.ty().block_bytes(),
        }
    }

    /// Replaces the blocks by f32 values from host memory, quantized by Candle's CPU code.
    ///
    /// # Errors
    ///
    /// Where `src` is not f32 in host memory or has another number of values than the storage, Candle has no quantizer
    /// for the type, or the device failed.
    pub fn quantize(&mut self, src: &Storage) -> Result<()> {
        self.quantize_with(src, |blocks, values| {
            blocks.from_float(values);
            Ok(())
        })
    }

    /// [`quantize`](Self::quantize) with an importance for each column. As in ggml they do not matter to F32, F16, BF16, Q8_0, Q8_1
    /// and Q8_K; columns of no importance count for a millionth of the most important one.
    ///
    /// # Errors
    ///
    /// As [`quantize`](Self::quantize), and where `n_per_row` is not the length of `imatrix_weights` or does not divide
    /// the number of values, an importance is negative or not finite, or Candle's quantizer of the type takes none.
    pub fn quantize_imatrix(&mut self, src: &Storage, imatrix_weights: &[f32], n_per_row: usize) -> Result<()> {
        self.quantize_with(src, |blocks, values| {
            if imatrix_weights.len() != n_per_row || n_per_row == 0 || !values.len().is_multiple_of(n_per_row) {
                candle_core::bail!(
                    "{} importances for rows of {n_per_row} in {} values",
                    imatrix_weights.len(),
                    values.len()
                )
            }
            match ggml_type(blocks.dtype()) {
                GgmlType::Q2K | GgmlType::Q3K | GgmlType::Q4K | GgmlType::Q5K | GgmlType::Q6K => {
                    blocks.from_float_imatrix(values, &positive(imatrix_weights)?, n_per_row);
                }
                ty @ (GgmlType::Q4_0 | GgmlType::Q4_1 | GgmlType::Q5_0 | GgmlType::Q5_1) => {
                    candle_core::bail!("Candle's quantizer of {ty} takes no importances")
                }
                _ => blocks.from_float(values),
            }
            Ok(())
        })
    }

    /// The same as [`quantize`](Self::quantize), which takes values from the host for any device.
    ///
    /// # Errors
    ///
    /// As [`quantize`](Self::quantize).
    pub fn quantize_onto(&mut self, src: &Storage) -> Result<()> {
        self.quantize(src)
    }

    /// The same as [`quantize_imatrix`](Self::quantize_imatrix), which takes values from the host for any device.
    ///
    /// # Errors
    ///
    /// As [`quantize_imatrix`](Self::quantize_imatrix).
    pub fn quantize_imatrix_onto(&mut self, src: &Storage, imatrix_weights: &[f32], n_per_row: usize) -> Result<()> {
        self.quantize_imatrix(src, imatrix_weights, n_per_row)
    }

    fn quantize_with(
        &mut self,
        src: &Storage,
        quantize: impl FnOnce(&mut dyn QuantizedType, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let (ty, device) = (self.dtype(), self.device());
        let Storage::Cpu(src) = src else {
            return Err(candle_core::Error::Msg("values to quantize must be in host memory".into()));
        };
        let values = src.as_slice::<f32>()?;
        let bytes = self.size_in_bytes();
        if ty.row_bytes(values.len()) != Some(bytes) {
            return Err(Error::Size { ty, n: 1, k: values.len(), bytes }.into());
        }
        let Some(dtype) = candle_dtype(ty) else {
            return Err(candle_core::Error::Msg(format!("Candle has no quantizer for {ty}")));
        };
        let mut blocks = dtype.cpu_zeros(values.len());
        quantize(blocks.as_mut(), values)?;
        *self = match device {
            Device::Cpu => Self::Cpu(QCpuStorage(CpuBlocks::Candle(blocks))),
            Device::Cube(device) => QCubeStorage::flat(&device, ty, candle_bytes(blocks.as_ref()))?.into(),
        };
        Ok(())
    }

    /// The first `elem_count` values as f32 in host memory.
    ///
    /// # Errors
    ///
    /// Where there are fewer values, or the device failed.
    pub fn dequantize(&self, elem_count: usize) -> Result<Storage> {
        let mut values = match self.view() {
            View::Candle(blocks) => {
                // Candle's decoders panic on any other count than that of all values.
                let values = blocks.storage_size_in_bytes() / self.dtype().block_bytes() * self.block_size();
                match blocks.dequantize(values)? {
                    CpuStorage::F32(values) => values,
                    _ => Vec::new(),
                }
            }
            View::Host(blocks) => blocks.dequantize(),
            View::Cube(tensor) => tensor.dequantize(FloatType::F32)?,
        };
        if values.len() < elem_count {
            return Err(Error::Size { ty: self.dtype(), n: 1, k: elem_count, bytes: self.size_in_bytes() }.into());
        }
        values.truncate(elem_count);
        Ok(Storage::Cpu(CpuStorage::F32(values)))
    }

    /// The GGUF blocks, bit for bit.
    ///
    /// # Errors
    ///
    /// Where the device failed.
    pub fn data(&self) -> Result<Cow<'_, [u8]>> {
        match self.view() {
            View::Candle(blocks) => Ok(Cow::Borrowed(candle_bytes(blocks))),
            View::Host(blocks) => Ok(Cow::Borrowed(blocks.data())),
            View::Cube(tensor) => Ok(Cow::Owned(tensor.data()?)),
        }
    }
}

/// The bytes of Candle's blocks.
pub(super) fn candle_bytes(blocks: &dyn QuantizedType) -> &[u8] {
    // SAFETY: Candle's types behind this trait own `storage_size_in_bytes` bytes of plain blocks at `as_ptr`; this crate
    // makes such boxes from Candle's types alone.
    unsafe { std::slice::from_raw_parts(blocks.as_ptr(), blocks.storage_size_in_bytes()) }
}

/// Uploads Candle's own blocks.
///
/// # Errors
///
/// As [`QStorage::from_data`].
pub fn load_quantized<T: PlainBlock, P: WeightDevice + ?Sized>(device: &P, data: &[T]) -> Result<QStorage> {
    // SAFETY: a plain block is all of initialized bytes.
    let bytes = unsafe { std::slice::from_raw_parts(data.as_ptr().cast::<u8>(), size_of_val(data)) };
    QStorage::from_data(Cow::Borrowed(bytes), device, ggml_type(T::DTYPE))
}

/// A type of Candle's that is a block of a format, byte for byte. It is sealed: of other types that implement Candle's
/// trait, bytes may be padding.
///
/// # Safety
///
/// All bytes of a value are initialized: the type has no padding.
pub unsafe trait PlainBlock: CandleBlock + sealed::Sealed + Send + Sync + 'static {}

mod sealed {
    pub trait Sealed {}
}

macro_rules! plain_blocks {
    ($($block:ty: $ty:ident),* $(,)?) => {
        $(
            // Fields that fill the block as the format defines it leave no room for padding.
            const _: () = assert!(size_of::<$block>() == GgmlType::$ty.block_bytes());
            impl sealed::Sealed for $block {}
            // SAFETY: integers and floats in the order of the format, which fill the type, as asserted above.
            unsafe impl PlainBlock for $block {}
        )*
    };
}

plain_blocks! {
    BlockQ4_0: Q4_0,
    BlockQ4_1: Q4_1,
    BlockQ5_0: Q5_0,
    BlockQ5_1: Q5_1,
    BlockQ8_0: Q8_0,
    BlockQ8_1: Q8_1,
    BlockQ2K: Q2K,
    BlockQ3K: Q3K,
    BlockQ4K: Q4K,
    BlockQ5K: Q5K,
    BlockQ6K: Q6K,
    BlockQ8K: Q8K,
    f32: F32,
    f16: F16,
    bf16: BF16,
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::sync::Arc;

    use candle_core::Tensor;

    use super::*;
    use crate::storage::candle::QTensor;

    /// Candle's quantizers divide by sums of importances, and have none for some types.
    #[test]
    fn importances_of_nothing_give_numbers() {
        let device = Arc::new(Device::Cpu);
        let values = (0..2 * 512).map(|i| (i * 7919 % 1009) as f32 / 504.5 - 1.0).collect();
        let source = Tensor::from_vec(values, (2, 512), &candle_core::Device::Cpu).unwrap();
        let quantize = |ty, importances: &[f32]| QTensor::quantize_imatrix_onto(&source, importances, ty, &device);
        let error = |weights: &QTensor, of: Range<usize>| {
            let ours = weights.dequantize(&device).unwrap().narrow(1, of.start, of.len()).unwrap();
            let theirs = source.narrow(1, of.start, of.len()).unwrap();
            (ours - theirs).unwrap().abs().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap()
        };
        // Of the columns' first half, of a sub-block, and of all.
        let none_in = |nothing: Range<usize>| -> Vec<f32> {
            (0..512).map(|column| if nothing.contains(&column) { 0.0 } else { 1.0 }).collect()
        };
        for ty in [GgmlType::Q2K, GgmlType::Q3K, GgmlType::Q4K, GgmlType::Q5K, GgmlType::Q6K] {
            let plain = QTensor::quantize_onto(&source, ty, &device).unwrap();
            for nothing in [0..256, 32..64, 0..512] {
                let weights = quantize(ty, &none_in(nothing.clone())).unwrap();
                assert!(error(&weights, 0..512).is_finite(), "{ty} {nothing:?}");
                // The second half is quantized for itself, and no worse than without importances.
                assert!(error(&weights, 256..512) <= 1.1 * error(&plain, 256..512), "{ty} {nothing:?}");
            }
        }
        for ty in [GgmlType::Q8_0, GgmlType::F16] {
            let plain = QTensor::quantize_onto(&source, ty, &device).unwrap();
            let weights = quantize(ty, &none_in(0..256)).unwrap();
            assert_eq!(weights.data().unwrap(), plain.data().unwrap(), "{ty}");
        }
        assert!(quantize(GgmlType::Q4_0, &none_in(0..0)).unwrap_err().to_string().contains("Q4_0"));
        for wrong in [f32::NAN, f32::INFINITY, -1.0] {
            let importances = [&[wrong][..], &none_in(0..0)[1..]].concat();
            assert!(quantize(GgmlType::Q4K, &importances).unwrap_err().to_string().contains(&wrong.to_string()));
        }
    }
}
