//! [`QTensor`]: a quantized tensor with a shape, with the API of Candle's own.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, OnceLock};

use candle_core::quantized::{QStorage as CandleStorage, QTensor as CandleTensor, QuantizedType};
use candle_core::{CpuStorage, CustomOp1, D, DType, Device as CandleDevice, Layout, Result, Shape, Storage, Tensor};
#[cfg(feature = "candle-cuda")]
use candle_core::{CudaStorage, backend::BackendStorage, op::BackpropOp};

use super::host::{HostBlocks, NATIVE, candle_blocks, candle_dtype, candle_matmul, candle_product, ggml_type};
use super::qstorage::{CpuBlocks, QCpuStorage, QCubeStorage, QStorage, candle_bytes};
use super::transfer::{Transfer, float_dtype};
use super::weight_device::WeightDevice;
use crate::Error;
use crate::gguf::GgmlType;
use crate::kernels::accuracy::Accuracy;
use crate::kernels::activations::Activations;
use crate::kernels::floats::FloatType;
use crate::kernels::ops::Arithmetic;
use crate::storage::device::{Backend, CubeDevice, Device, indices};
use crate::storage::tensor::DeviceTensor;

/// Quantized values of any rank on one device; rows (the last dimension) are whole blocks.
///
/// Products take and return Candle tensors, on whichever device of Candle's: those of a GPU that the weights are on stay there with
/// the feature `candle-cuda`, others go through host memory. A tensor may be used from many threads.
pub struct QTensor {
    inner: Inner,
    shape: Shape,
}

pub(super) enum Inner {
    /// Candle's own tensor, with its CPU kernels.
    Candle(Arc<CandleTensor>),
    /// The matrices of a tensor of three dimensions, as tensors of Candle's: a stack of experts.
    Experts { ty: GgmlType, matrices: Vec<Arc<CandleTensor>> },
    /// A format that Candle lacks or cannot multiply, in host memory, with the kernels of CubeCL's CPU runtime.
    Kernels(DeviceTensor),
    /// The same where the build lacks that runtime.
    Host(HostBlocks),
    /// A tensor on a device of CubeCL.
    Cube(DeviceTensor),
}

/// What makes a device's tensor one of a home.
type Home = fn(DeviceTensor) -> Inner;

impl Inner {
    /// The device whose kernels quantize for `device`, and the home of its tensors there: itself, or for a format that Candle lacks
    /// CubeCL's CPU runtime. `None` where Candle's code quantizes.
    fn quantizer(ty: GgmlType, device: &Device) -> Option<(&CubeDevice, Home)> {
        match device {
            _ if !DeviceTensor::quantizes(ty) => None,
            Device::Cube(device) => Some((device, Self::Cube)),
            Device::Cpu if candle_dtype(ty).is_some() => None,
            Device::Cpu => Some((cpu_runtime()?, Self::Kernels)),
        }
    }

    /// Blocks in host memory that Candle does not multiply.
    fn host(blocks: HostBlocks, n: usize, k: usize) -> Result<Self> {
        Ok(match cpu_runtime() {
            Some(device) => Self::Kernels(DeviceTensor::from_gguf(device, blocks.ty(), n, k, blocks.data(), NATIVE)?),
            None => Self::Host(blocks),
        })
    }
}

impl Inner {
    /// The matrices of a tensor of three dimensions, whose blocks `blocks` has one after the other.
    fn experts(blocks: &dyn QuantizedType, dims: &[usize]) -> Result<Self> {
        let (count, matrix) = (dims[0], &dims[1..]);
        let data = candle_bytes(blocks);
        let bytes = data.len().checked_div(count).unwrap_or(0);
        let expert = |expert: usize| {
            let blocks = candle_blocks(blocks.dtype(), &data[expert * bytes..][..bytes]);
            Ok(Arc::new(CandleTensor::new(CandleStorage::Cpu(blocks), matrix)?))
        };
        Ok(Self::Experts { ty: ggml_type(blocks.dtype()), matrices: (0..count).map(expert).collect::<Result<_>>()? })
    }
}

/// CubeCL's CPU runtime, where the build has it.
fn cpu_runtime() -> Option<&'static CubeDevice> {
    static RUNTIME: OnceLock<Option<CubeDevice>> = OnceLock::new();
    RUNTIME.get_or_init(|| CubeDevice::new(Backend::CubeCpu, 0).ok()).as_ref()
}

/// Rows and columns of a tensor as a matrix.
pub(super) fn matrix(shape: &Shape, ty: GgmlType) -> Result<(usize, usize)> {
    let rows_and_columns = || {
        let (&k, rows) = shape.dims().split_last()?;
        let n = rows.iter().try_fold(1usize, |n, &extent| n.checked_mul(extent))?;
        ty.row_bytes(k)?.checked_mul(n)?;
        Some((n, k))
    };
    Ok(rows_and_columns().ok_or_else(|| Error::Shape { ty, shape: shape.dims().to_vec() })?)
}

/// Refuses activations that are no floats, which a conversion would cut to integers.
pub(super) fn check_floats(xs: &Tensor) -> Result<()> {
    match xs.dtype().is_float() {
        true => Ok(()),
        false => Err(Error::IntegerActivations { ty: xs.dtype().as_str() }.into()),
    }
}

impl QTensor {
    /// Gives `storage` a shape.
    ///
    /// # Errors
    ///
    /// Where the shape is a scalar's, its rows are not whole blocks, its size is not the storage's, or the device
    /// failed.
    pub fn new<S: Into<Shape>>(storage: QStorage, shape: S) -> Result<Self> {
        let shape = shape.into();
        let ty = storage.dtype();
        let (n, k) = matrix(&shape, ty)?;
        let bytes = storage.size_in_bytes();
        if ty.row_bytes(k).and_then(|row| row.checked_mul(n)) != Some(bytes) {
            return Err(Error::Size { ty, n, k, bytes }.into());
        }
        let inner = match storage {
            QStorage::Cpu(QCpuStorage(CpuBlocks::Candle(blocks))) if candle_product(ty, k).is_none() => {
                Inner::host(HostBlocks::new(ty, candle_bytes(blocks.as_ref()).to_vec())?, n, k)?
            }
            QStorage::Cpu(QCpuStorage(CpuBlocks::Candle(blocks))) if shape.rank() == 3 => {
                Inner::experts(blocks.as_ref(), shape.dims())?
            }
            QStorage::Cpu(QCpuStorage(CpuBlocks::Candle(blocks))) => {
                Inner::Candle(Arc::new(CandleTensor::new(CandleStorage::Cpu(blocks), shape.clone())?))
            }
            QStorage::Cpu(QCpuStorage(CpuBlocks::Host(blocks))) => Inner::host(blocks, n, k)?,
            QStorage::Rocm(QCubeStorage(tensor))
            | QStorage::Cuda(QCubeStorage(tensor))
            | QStorage::Vulkan(QCubeStorage(tensor))
            | QStorage::Wgpu(QCubeStorage(tensor))
            | QStorage::Metal(QCubeStorage(tensor))
            | QStorage::CubeCpu(QCubeStorage(tensor)) => {
                Inner::Cube(match (tensor.n(), tensor.k()) == (n, k) {
                    true => tensor,
                    // The device layout pads each row: one long row is uploaded again as the rows of the shape.
                    false => DeviceTensor::from_gguf(tensor.device(), ty, n, k, &tensor.data()?, NATIVE)?,
                })
            }
        };
        Ok(Self { inner, shape })
    }

    /// A tensor of `ty` from its little-endian GGUF blocks, uploaded once, as rows.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new) and [`DeviceTensor::from_gguf`].
    pub fn from_gguf<S: Into<Shape>, P: WeightDevice + ?Sized>(
        ty: GgmlType,
        data: Cow<'_, [u8]>,
        shape: S,
        device: &P,
    ) -> Result<Self> {
        let shape = shape.into();
        match &device.weights()? {
            device @ Device::Cpu => Self::new(QStorage::from_data(data, device, ty)?, shape),
            Device::Cube(device) => {
                let (n, k) = matrix(&shape, ty)?;
                let inner = Inner::Cube(DeviceTensor::from_gguf(device, ty, n, k, &data, NATIVE)?);
                Ok(Self { inner, shape })
            }
        }
    }

    /// The same tensor with values `scale` times as large, or, where there are several factors, with one for each of as many runs of
    /// rows: the experts of a stack. So files have the second scale of NVFP4, which [`Content::tensor`] and
    /// [`VarBuilder`](super::VarBuilder) find for themselves.
    ///
    /// [`Content::tensor`]: super::gguf_file::Content::tensor
    ///
    /// # Errors
    ///
    /// Where the number of factors does not divide that of rows, or the device failed.
    pub fn with_scale(self, scale: &[f32]) -> Result<Self> {
        let (n, k) = matrix(&self.shape, self.dtype())?;
        if scale.is_empty() || !n.is_multiple_of(scale.len()) {
            return Err(Error::Companion { what: "scales", values: scale.len(), rows: n }.into());
        }
        let inner = match &self.inner {
            // Candle's kernels take no factor.
            Inner::Candle(_) | Inner::Experts { .. } => {
                Inner::host(HostBlocks::new(self.dtype(), self.data()?.into_owned())?, n, k)?
            }
            _ => self.inner,
        };
        let inner = match inner {
            Inner::Cube(tensor) => Inner::Cube(tensor.with_scale(scale)?),
            Inner::Kernels(tensor) => Inner::Kernels(tensor.with_scale(scale)?),
            Inner::Host(blocks) => Inner::Host(blocks.with_scale(scale.to_vec())),
            Inner::Candle(_) | Inner::Experts { .. } => unreachable!("blocks are with our kernels now"),
        };
        Ok(Self { inner, shape: self.shape })
    }

    /// Quantizes `src`; the result is on the device that `src`'s stands for, as weights that are loaded. That device quantizes if it
    /// is one of CubeCL and there is [a kernel](DeviceTensor::quantize), else Candle's CPU code.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")]
    /// # fn main() -> cube_gguf::Result<()> {
    /// use candle_core::{DType, Device::Cpu, Tensor};
    /// use cube_gguf::{Device, GgmlDType, QTensor, set_default_device};
    ///
    /// let device = Device::new_cube_cpu()?;
    /// set_default_device(device.clone());
    /// let weights = QTensor::quantize(&Tensor::ones((4, 32), DType::F32, &Cpu)?, GgmlDType::Q8_0)?;
    /// assert_eq!(weights.device(), device);
    /// # Ok(())
    /// # }
    /// # #[cfg(not(feature = "cpu"))]
    /// # fn main() {}
    /// ```
    ///
    /// # Errors
    ///
    /// Where `src`'s rows are not whole blocks, neither has a quantizer for the type, a value is not
    /// finite and a kernel finds it, or the device failed.
    pub fn quantize(src: &Tensor, dtype: GgmlType) -> Result<Self> {
        Self::quantize_onto(src, dtype, src.device())
    }

    /// [`quantize`](Self::quantize) with an importance for each column, by [a kernel](DeviceTensor::quantize_by_importance) where there
    /// is one.
    ///
    /// # Errors
    ///
    /// As [`quantize`](Self::quantize), and those of [`QStorage::quantize_imatrix`].
    pub fn quantize_imatrix(src: &Tensor, imatrix_weights: &[f32], dtype: GgmlType) -> Result<Self> {
        Self::quantize_imatrix_onto(src, imatrix_weights, dtype, src.device())
    }

    /// [`quantize_imatrix`](Self::quantize_imatrix), with the result on `dev`.
    ///
    /// # Errors
    ///
    /// As [`quantize_imatrix`](Self::quantize_imatrix), and where the device failed.
    pub fn quantize_imatrix_onto<P: WeightDevice + ?Sized>(
        src: &Tensor,
        imatrix_weights: &[f32],
        dtype: GgmlType,
        dev: &P,
    ) -> Result<Self> {
        let n_per_row = src.dim(D::Minus1)?;
        if imatrix_weights.len() != n_per_row {
            return Err(candle_error(format!("{} importances for rows of {n_per_row}", imatrix_weights.len())));
        }
        let device = dev.weights()?;
        let candle =
            |storage: &mut QStorage, values: &Storage| storage.quantize_imatrix(values, imatrix_weights, n_per_row);
        match Inner::quantizer(dtype, &device) {
            Some(kernels) => Self::by_kernels(src, dtype, kernels, Some(imatrix_weights)),
            None => Self::quantized(src, dtype, &device, candle),
        }
    }

    /// [`quantize`](Self::quantize), with the result on `dev`.
    ///
    /// # Errors
    ///
    /// As [`quantize`](Self::quantize), and where the device failed.
    pub fn quantize_onto<P: WeightDevice + ?Sized>(src: &Tensor, dtype: GgmlType, dev: &P) -> Result<Self> {
        let device = dev.weights()?;
        match Inner::quantizer(dtype, &device) {
            Some(kernels) => Self::by_kernels(src, dtype, kernels, None),
            None => Self::quantized(src, dtype, &device, |storage, values| storage.quantize(values)),
        }
    }

    /// Quantizes on a device with kernels, whose tensor becomes one of a home.
    fn by_kernels(
        src: &Tensor,
        dtype: GgmlType,
        (device, home): (&CubeDevice, Home),
        importance: Option<&[f32]>,
    ) -> Result<Self> {
        let (n, k) = matrix(src.shape(), dtype)?;
        let values = src.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let tensor = match importance {
            Some(importance) => DeviceTensor::quantize_by_importance(device, dtype, n, k, &values, importance)?,
            None => DeviceTensor::quantize(device, dtype, n, k, &values)?,
        };
        Ok(Self { inner: home(tensor), shape: src.shape().clone() })
    }

    fn quantized(
        src: &Tensor,
        dtype: GgmlType,
        device: &Device,
        quantize: impl FnOnce(&mut QStorage, &Storage) -> Result<()>,
    ) -> Result<Self> {
        let (n, k) = matrix(src.shape(), dtype)?;
        if candle_dtype(dtype).is_none() {
            return Err(candle_error(format!("there is no quantizer for {dtype}")));
        }
        let values = src.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let mut storage = QStorage::zeros(&Device::Cpu, n * k, dtype)?;
        quantize(&mut storage, &Storage::Cpu(CpuStorage::F32(values)))?;
        match device {
            Device::Cpu => Self::new(storage, src.shape()),
            Device::Cube(_) => Self::from_gguf(dtype, storage.data()?, src.shape(), device),
        }
    }

    /// The type of the blocks.
    pub fn dtype(&self) -> GgmlType {
        match &self.inner {
            Inner::Candle(tensor) => ggml_type(tensor.dtype()),
            Inner::Experts { ty, .. } => *ty,
            Inner::Host(blocks) => blocks.ty(),
            Inner::Cube(tensor) | Inner::Kernels(tensor) => tensor.ty(),
        }
    }

    /// The tensor's device.
    pub fn device(&self) -> Device {
        match &self.inner {
            Inner::Cube(tensor) => Device::Cube(tensor.device().clone()),
            _ => Device::Cpu,
        }
    }

    /// Candle's device of the tensors that this one is multiplied with, and that it gives: Candle's CPU device.
    pub fn candle_device(&self) -> CandleDevice {
        self.device().tensors()
    }

    pub(super) fn inner(&self) -> &Inner {
        &self.inner
    }

    /// The tensor on a device of CubeCL; `None` for host memory.
    pub fn as_cube(&self) -> Option<&DeviceTensor> {
        match &self.inner {
            Inner::Cube(tensor) => Some(tensor),
            _ => None,
        }
    }

    /// Candle's own tensor, where this is host memory and Candle can multiply it.
    pub fn as_candle(&self) -> Option<&Arc<CandleTensor>> {
        match &self.inner {
            Inner::Candle(tensor) => Some(tensor),
            _ => None,
        }
    }

    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.rank()
    }

    /// Extents, outermost first.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// All values as f32, on the Candle device that goes with `device`.
    ///
    /// # Errors
    ///
    /// Where the device failed.
    pub fn dequantize<P: WeightDevice + ?Sized>(&self, device: &P) -> Result<Tensor> {
        let device = &device.tensors();
        let values = match &self.inner {
            Inner::Candle(tensor) => return tensor.dequantize(device),
            Inner::Experts { matrices, .. } => {
                let values = matrices.iter().map(|matrix| matrix.dequantize(device));
                return match values.collect::<Result<Vec<_>>>()? {
                    empty if empty.is_empty() => Tensor::zeros(self.shape.clone(), DType::F32, device),
                    values => Tensor::stack(&values, 0),
                };
            }
            Inner::Host(blocks) => blocks.dequantize(),
            Inner::Cube(tensor) | Inner::Kernels(tensor) => return self.dequantized(tensor, FloatType::F32, device),
        };
        Tensor::from_vec(values, self.shape.clone(), device)
    }

    /// All values as floats of a type.
    fn dequantized(&self, tensor: &DeviceTensor, to: FloatType, device: &CandleDevice) -> Result<Tensor> {
        let (transfer, own) = (Transfer::between(device, tensor), tensor.clone());
        transfer.call_for_one(&[], self.shape.clone(), (to, float_dtype(to)), move |_| Ok(own.dequantize_on_device(to)))
    }

    /// All values rounded to f16, on the Candle device that goes with `device`.
    ///
    /// # Errors
    ///
    /// Where the device failed.
    pub fn dequantize_f16<P: WeightDevice + ?Sized>(&self, device: &P) -> Result<Tensor> {
        let device = &device.tensors();
        match &self.inner {
            Inner::Cube(tensor) | Inner::Kernels(tensor) => self.dequantized(tensor, FloatType::F16, device),
            _ => Ok(self.dequantize(device)?.to_dtype(DType::F16)?),
        }
    }

    /// The rows of a matrix that `ids` name: `[ids.., k]` f32.
    ///
    /// # Errors
    ///
    /// Where this is not a matrix, an id is outside it, or the device failed.
    pub fn embedding(&self, ids: &Tensor) -> Result<Tensor> {
        let (rows, k) = self.shape.dims2()?;
        let mut shape = ids.dims().to_vec();
        shape.push(k);
        let wanted = ids.to_dtype(DType::I64)?.flatten_all()?.to_vec1::<i64>()?;
        let values = match &self.inner {
            Inner::Cube(tensor) | Inner::Kernels(tensor) => {
                let (transfer, own) = (Transfer::between(ids.device(), tensor), tensor.clone());
                return transfer.call_for_one(&[], shape, (FloatType::F32, DType::F32), move |_| {
                    own.rows_on_device(&wanted, FloatType::F32)
                });
            }
            Inner::Host(blocks) => blocks.rows(&checked_ids(&wanted, rows)?, rows, k)?,
            Inner::Candle(tensor) => {
                checked_ids(&wanted, rows)?;
                return tensor.embedding(ids);
            }
            Inner::Experts { .. } => unreachable!("a stack of experts is no matrix"),
        };
        Tensor::from_vec(values, shape, ids.device())
    }

    /// Bytes of the GGUF blocks.
    pub fn storage_size_in_bytes(&self) -> usize {
        self.shape.elem_count() / self.dtype().block_size() * self.dtype().block_bytes()
    }

    /// The GGUF blocks, bit for bit.
    ///
    /// # Errors
    ///
    /// Where the device failed.
    pub fn data(&self) -> Result<Cow<'_, [u8]>> {
        match &self.inner {
            Inner::Candle(tensor) => tensor.data(),
            Inner::Experts { matrices, .. } => {
                let data = matrices.iter().map(|matrix| matrix.data());
                Ok(Cow::Owned(data.collect::<Result<Vec<_>>>()?.concat()))
            }
            Inner::Host(blocks) => Ok(Cow::Borrowed(blocks.data())),
            Inner::Cube(tensor) | Inner::Kernels(tensor) => Ok(Cow::Owned(tensor.data()?)),
        }
    }

    /// The resolved arithmetic of a product with `tokens` rows of activations.
    pub fn accuracy(&self, tokens: usize, arithmetic: Arithmetic) -> Accuracy {
        match &self.inner {
            Inner::Cube(tensor) | Inner::Kernels(tensor) => tensor.accuracy(tokens, arithmetic),
            Inner::Host(_) => Accuracy::Float,
            Inner::Candle(_) | Inner::Experts { .. } => match self.dtype().block_size() {
                1 => match self.dtype() {
                    GgmlType::F16 => Accuracy::Halves { bits: 11 },
                    GgmlType::BF16 => Accuracy::Halves { bits: 8 },
                    _ => Accuracy::Float,
                },
                // Candle quantizes activations to Q8_K for blocks of 256, else to Q8_0 or Q8_1, whose scale is a half.
                block => Accuracy::Int8 { block, half_scale: block == 32 },
            },
        }
    }

    /// `xs` `[.., k]` times the transpose of this `[n, k]` matrix: `[.., n]` of the type of `xs`.
    ///
    /// By Candle's kernels each type has one arithmetic, whatever the caller asks for; see [`accuracy`](Self::accuracy).
    ///
    /// # Errors
    ///
    /// Where this is not a matrix, `xs` does not fit it, Candle cannot convert or multiply `xs`, or the device failed.
    pub fn matmul_t(&self, xs: &Tensor, arithmetic: Arithmetic) -> Result<Tensor> {
        check_floats(xs)?;
        let (n, k) = self.shape.dims2()?;
        let Some((&last, batch)) = xs.dims().split_last().filter(|(last, _)| **last == k) else {
            return Err(Error::Activations { shape: xs.dims().to_vec(), k }.into());
        };
        let shape: Vec<usize> = batch.iter().copied().chain([n]).collect();
        let values = |xs: &Tensor| xs.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
        let out = match &self.inner {
            Inner::Candle(tensor) => {
                // Candle multiplies matrices; a vector is one of one row.
                let rows = xs.to_dtype(DType::F32)?.reshape(((), last))?.contiguous()?;
                candle_matmul(tensor, self.dtype(), &rows)?.reshape(shape)?
            }
            Inner::Experts { .. } => unreachable!("a stack of experts is no matrix"),
            Inner::Host(blocks) => Tensor::from_vec(blocks.matmul(&values(xs)?, n, k), shape, xs.device())?,
            Inner::Cube(tensor) | Inner::Kernels(tensor) => {
                return Ok(on_device(&[tensor], xs, arithmetic)?.remove(0));
            }
        };
        out.to_dtype(xs.dtype())
    }

    /// [`matmul_t`](Self::matmul_t) for several matrices, bit for bit. On one device of CubeCL it costs less: the
    /// activations are uploaded and quantized once, and matrices of one format share a launch.
    ///
    /// # Errors
    ///
    /// As [`matmul_t`](Self::matmul_t) for any of the matrices.
    pub fn matmul_t_many(tensors: &[&Self], xs: &Tensor, arithmetic: Arithmetic) -> Result<Vec<Tensor>> {
        let cubes = tensors.iter().map(|&tensor| match &tensor.inner {
            Inner::Cube(matrix) | Inner::Kernels(matrix) if tensor.rank() == 2 => Some(matrix),
            _ => None,
        });
        let together = cubes.collect::<Option<Vec<&DeviceTensor>>>();
        let together = together.filter(|all| all.windows(2).all(|pair| pair[0].device() == pair[1].device()));
        match together {
            Some(matrices) => {
                check_floats(xs)?;
                on_device(&matrices, xs, arithmetic)
            }
            None => tensors.iter().map(|tensor| tensor.matmul_t(xs, arithmetic)).collect(),
        }
    }

    /// [`matmul_t`](Self::matmul_t) of one row of activations with several tensors; `None` for more rows, as Candle has it.
    ///
    /// # Errors
    ///
    /// As [`matmul_t`](Self::matmul_t).
    pub fn gemv_fused_shared_lhs(ts: &[&Self], lhs: &Tensor) -> Result<Option<Vec<Tensor>>> {
        let rows: usize = lhs.dims().iter().rev().skip(1).product();
        if rows != 1 {
            return Ok(None);
        }
        Self::matmul_t_many(ts, lhs, Arithmetic::Auto).map(Some)
    }
}

/// The products of matrices on one device with `xs`, `[.., k]`.
fn on_device(matrices: &[&DeviceTensor], xs: &Tensor, arithmetic: Arithmetic) -> Result<Vec<Tensor>> {
    let Some(first) = matrices.first() else { return Ok(Vec::new()) };
    let Some((&k, batch)) = xs.dims().split_last() else {
        return Err(Error::Activations { shape: Vec::new(), k: first.k() }.into());
    };
    if let Some(other) = matrices.iter().find(|matrix| matrix.k() != k) {
        return Err(Error::Activations { shape: xs.dims().to_vec(), k: other.k() }.into());
    }
    let shape = |matrix: &DeviceTensor| -> Vec<usize> { batch.iter().copied().chain([matrix.n()]).collect() };
    if xs.elem_count() == 0 {
        return matrices.iter().map(|matrix| Tensor::zeros(shape(matrix), xs.dtype(), xs.device())).collect();
    }
    let transfer = Transfer::between(xs.device(), first);
    let (x, ty) = transfer.floats(xs)?;
    let (shapes, rows) = (matrices.iter().map(|matrix| shape(matrix).into()).collect(), xs.dims().to_vec());
    let matrices: Vec<DeviceTensor> = matrices.iter().map(|&matrix| matrix.clone()).collect();
    transfer.call(&[x], shapes, (ty, xs.dtype()), move |inputs| {
        let x = Activations::contiguous(inputs[0].clone(), ty, rows)?;
        DeviceTensor::matmul_many_on_device(&matrices.iter().collect::<Vec<_>>(), &x, arithmetic)
    })
}

fn checked_ids(ids: &[i64], rows: usize) -> Result<Vec<u32>> {
    Ok(indices(ids, rows, |id| Error::RowOutOfRange { id, rows })?)
}

fn candle_error(message: String) -> candle_core::Error {
    candle_core::Error::Msg(message)
}

/// The product of activations with the transpose of the tensor, for [`Tensor::apply_op1_no_bwd`].
impl CustomOp1 for QTensor {
    fn name(&self) -> &'static str {
        "qmatmul"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let Some((first, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("input tensor is not contiguous {layout:?}");
        };
        let (device, shape) = (CandleDevice::Cpu, layout.shape());
        let x = match storage {
            CpuStorage::F32(values) => Tensor::from_slice(&values[first..end], shape, &device)?,
            CpuStorage::F16(values) => Tensor::from_slice(&values[first..end], shape, &device)?,
            CpuStorage::BF16(values) => Tensor::from_slice(&values[first..end], shape, &device)?,
            _ => candle_core::bail!("Expected f32/f16/bf16"),
        };
        let y = self.matmul_t(&x, Arithmetic::Auto)?;
        let (shape, y) = (y.shape().clone(), y.flatten_all()?);
        let y = match storage {
            CpuStorage::F16(_) => CpuStorage::F16(y.to_dtype(DType::F16)?.to_vec1()?),
            CpuStorage::BF16(_) => CpuStorage::BF16(y.to_dtype(DType::BF16)?.to_vec1()?),
            _ => CpuStorage::F32(y.to_vec1()?),
        };
        Ok((y, shape))
    }

    #[cfg(feature = "candle-cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let storage = Storage::Cuda(storage.try_clone(layout)?);
        let x = Tensor::from_storage(storage, layout.shape(), BackpropOp::none(), false);
        let y = self.matmul_t(&x, Arithmetic::Auto)?;
        let (storage, layout) = y.storage_and_layout();
        match &*storage {
            Storage::Cuda(y) => Ok((y.try_clone(layout)?, layout.shape().clone())),
            _ => candle_core::bail!("the product left its device"),
        }
    }
}

/// A matrix that is on a device already, as Candle's layers take it.
impl From<DeviceTensor> for QTensor {
    fn from(tensor: DeviceTensor) -> Self {
        let shape = Shape::from((tensor.n(), tensor.k()));
        Self { inner: Inner::Cube(tensor), shape }
    }
}

impl fmt::Debug for QTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QTensor[{:?}; {:?}]", self.shape, self.dtype())
    }
}

/// A tensor from the raw blocks of a GGUF (or older GGML) file; `dims` are outermost first. Surplus data is left out,
/// as Candle does.
///
/// # Errors
///
/// As [`QTensor::from_gguf`].
pub fn qtensor_from_ggml<P: WeightDevice + ?Sized>(
    ggml_dtype: GgmlType,
    raw_data: &[u8],
    dims: Vec<usize>,
    device: &P,
) -> Result<QTensor> {
    let (n, k) = matrix(&Shape::from(dims.clone()), ggml_dtype)?;
    let bytes = ggml_dtype.row_bytes(k).and_then(|row| row.checked_mul(n));
    let Some(data) = bytes.and_then(|bytes| raw_data.get(..bytes)) else {
        return Err(Error::Size { ty: ggml_dtype, n, k, bytes: raw_data.len() }.into());
    };
    QTensor::from_gguf(ggml_dtype, Cow::Borrowed(data), dims, device)
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::GgmlDType;

    use super::super::host;
    use super::*;

    fn noise(seed: u32, shape: &[usize]) -> Tensor {
        let values = host::noise(seed, shape.iter().product());
        Tensor::from_vec(values, shape, &candle_core::Device::Cpu).unwrap()
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    /// The kernels are Candle's, and so are the bits.
    #[test]
    fn custom_operations_give_what_candle_s_give() {
        let weights = noise(1, &[12, 64]);
        let ours = QTensor::quantize_onto(&weights, GgmlType::Q8_0, &Device::Cpu).unwrap();
        let theirs = CandleTensor::quantize(&weights, GgmlDType::Q8_0).unwrap();
        // Rows that begin within a tensor.
        let x = noise(2, &[2, 4, 64]).narrow(0, 1, 1).unwrap();
        for ty in [DType::F32, DType::BF16] {
            let x = x.to_dtype(ty).unwrap();
            let (y, expected) = (x.apply_op1_no_bwd(&ours).unwrap(), x.apply_op1_no_bwd(&theirs).unwrap());
            assert_eq!((y.dims(), y.dtype()), (expected.dims(), ty));
            assert_eq!(values(&y), values(&expected), "{ty:?}");
        }
        // Candle rounds halves to int8 as they are, which is no more than a step off.
        let x = x.to_dtype(DType::F16).unwrap();
        let (y, expected) = (x.apply_op1_no_bwd(&ours).unwrap(), x.apply_op1_no_bwd(&theirs).unwrap());
        assert_eq!(y.dtype(), DType::F16);
        for (y, expected) in values(&y).into_iter().zip(values(&expected)) {
            assert!((y - expected).abs() <= 64.0 / 127.0, "{y} for {expected}");
        }
        assert!(x.to_dtype(DType::U32).unwrap().apply_op1_no_bwd(&ours).is_err());
        assert!(noise(3, &[4, 32]).apply_op1_no_bwd(&ours).is_err());
    }

    #[test]
    fn a_row_with_several_tensors_is_each_product() {
        let tensors =
            [4, 5].map(|seed| QTensor::quantize_onto(&noise(seed, &[12, 64]), GgmlType::Q4_0, &Device::Cpu).unwrap());
        let (x, both) = (noise(6, &[1, 64]), [&tensors[0], &tensors[1]]);
        let together = QTensor::gemv_fused_shared_lhs(&both, &x).unwrap().unwrap();
        for (y, tensor) in together.iter().zip(both) {
            assert_eq!(values(y), values(&tensor.matmul_t(&x, Arithmetic::Auto).unwrap()));
        }
        assert!(QTensor::gemv_fused_shared_lhs(&both, &noise(7, &[2, 64])).unwrap().is_none());
    }
}
