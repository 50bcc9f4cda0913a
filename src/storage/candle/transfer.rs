//! The way of values from Candle's tensors to a device of CubeCL and back: through host memory, or, where both are one GPU, in
//! its memory.

use candle_core::{DType, Device as CandleDevice, Result, Shape, Tensor};
use cubecl::bytes::Bytes;
use cubecl::server::Handle;
use half::{bf16, f16};

use super::candle_error;
use crate::kernels::floats::{FloatType, has_buffers};
use crate::storage::device::CubeDevice;
use crate::storage::tensor::DeviceTensor;

/// What a device does with buffers of it: others, with the results.
pub(super) type Work = Box<dyn FnOnce(&[Handle]) -> crate::Result<Vec<Handle>> + Send>;

/// A GPU on which both Candle and a runtime of CubeCL compute: values are copied in its memory.
pub(super) trait SharedGpu {
    /// Has the device work on copies of contiguous tensors, behind all that Candle has queued, and Candle, in all that it queues
    /// later, wait for copies of the results, as tensors of a type.
    fn call(
        &self,
        device: &CubeDevice,
        inputs: &[Tensor],
        work: Work,
        results: Vec<Shape>,
        dtype: DType,
    ) -> Result<Vec<Tensor>>;
}

/// The GPU that `candle` and `device` both name, where this was built with what shares it.
#[cfg_attr(not(feature = "candle-cuda"), expect(unused_variables))]
fn shared_gpu(candle: &CandleDevice, device: &CubeDevice) -> Option<Box<dyn SharedGpu>> {
    match candle {
        #[cfg(feature = "candle-cuda")]
        CandleDevice::Cuda(gpu) if super::cuda::is_shared(gpu, device) => Some(Box::new(gpu.clone())),
        _ => None,
    }
}

/// The way between a device of Candle's and that of a tensor of CubeCL's.
pub(super) struct Transfer<'a> {
    candle: &'a CandleDevice,
    tensor: &'a DeviceTensor,
    gpu: Option<Box<dyn SharedGpu>>,
}

impl<'a> Transfer<'a> {
    pub(super) fn between(candle: &'a CandleDevice, tensor: &'a DeviceTensor) -> Self {
        Self { candle, tensor, gpu: shared_gpu(candle, tensor.device()) }
    }

    /// Whether a tensor's values need not come to the host.
    pub(super) fn is_direct(&self, values: &Tensor) -> bool {
        self.gpu.is_some() && values.device().location() == self.candle.location()
    }

    /// A tensor's values of a type that the device has buffers of: their own, else f32.
    pub(super) fn floats(&self, xs: &Tensor) -> Result<(Tensor, FloatType)> {
        let ty = match xs.dtype() {
            DType::F16 => FloatType::F16,
            DType::BF16 => FloatType::BF16,
            _ => FloatType::F32,
        };
        let ty = if has_buffers(self.tensor.device().client().features(), ty) { ty } else { FloatType::F32 };
        Ok((xs.to_dtype(float_dtype(ty))?, ty))
    }

    /// What the device makes of the values of `inputs`, floats or u32: tensors of shapes, of type `ty`, which become ones of type
    /// `to`.
    pub(super) fn call(
        &self,
        inputs: &[Tensor],
        results: Vec<Shape>,
        (ty, to): (FloatType, DType),
        work: impl FnOnce(&[Handle]) -> crate::Result<Vec<Handle>> + Send + 'static,
    ) -> Result<Vec<Tensor>> {
        let results = self.tensor.in_turn(|| match &self.gpu {
            Some(gpu) => {
                let inputs: Vec<Tensor> = inputs.iter().map(Tensor::contiguous).collect::<Result<_>>()?;
                gpu.call(self.tensor.device(), &inputs, Box::new(work), results, float_dtype(ty))
            }
            None => self.by_host(inputs, work, results, ty),
        });
        results?.into_iter().map(|result| result.to_dtype(to)).collect()
    }

    /// [`call`](Self::call) for one result.
    pub(super) fn call_for_one(
        &self,
        inputs: &[Tensor],
        result: impl Into<Shape>,
        types: (FloatType, DType),
        work: impl FnOnce(&[Handle]) -> crate::Result<Handle> + Send + 'static,
    ) -> Result<Tensor> {
        let results = self.call(inputs, vec![result.into()], types, |inputs| Ok(vec![work(inputs)?]));
        Ok(results?.remove(0))
    }

    /// [`call`](Self::call) with an upload and a download.
    fn by_host(
        &self,
        inputs: &[Tensor],
        work: impl FnOnce(&[Handle]) -> crate::Result<Vec<Handle>>,
        results: Vec<Shape>,
        ty: FloatType,
    ) -> Result<Vec<Tensor>> {
        let (device, client) = (self.tensor.device(), self.tensor.device().client());
        let upload = |values| Ok(client.create(bytes_of(values)?));
        let handles = work(&inputs.iter().map(upload).collect::<Result<Vec<_>>>()?)?;
        let read = client.read(handles).map_err(|error| candle_error(device.failed(error)))?;
        read.iter().zip(results).map(|(bytes, shape)| tensor_of(bytes, ty, shape, self.candle)).collect()
    }
}

/// Candle's name of a type.
pub(super) fn float_dtype(ty: FloatType) -> DType {
    match ty {
        FloatType::F32 => DType::F32,
        FloatType::F16 => DType::F16,
        FloatType::BF16 => DType::BF16,
    }
}

/// The values of a tensor in host memory.
fn bytes_of(values: &Tensor) -> Result<Bytes> {
    let values = values.flatten_all()?;
    Ok(match values.dtype() {
        DType::F16 => Bytes::from_elems(values.to_vec1::<f16>()?),
        DType::BF16 => Bytes::from_elems(values.to_vec1::<bf16>()?),
        DType::U32 => Bytes::from_elems(values.to_vec1::<u32>()?),
        _ => Bytes::from_elems(values.to_vec1::<f32>()?),
    })
}

/// A tensor of values in host memory.
fn tensor_of(bytes: &[u8], ty: FloatType, shape: Shape, device: &CandleDevice) -> Result<Tensor> {
    let len = shape.elem_count();
    let halves = bytes.chunks_exact(2).take(len).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match ty {
        FloatType::F32 => Tensor::from_vec(ty.to_f32(bytes, len), shape, device),
        FloatType::F16 => Tensor::from_vec(halves.map(f16::from_bits).collect(), shape, device),
        FloatType::BF16 => Tensor::from_vec(halves.map(bf16::from_bits).collect(), shape, device),
    }
}
