//! [`QMatMul`]: a linear layer's weights, quantized or not, as in `candle_core::quantized`.

use std::sync::Arc;

use candle_core::{D, DType, Device as CandleDevice, Module, Result, Tensor};

use super::qtensor::{QTensor, check_floats};
use crate::gguf::GgmlType;
use crate::kernels::ops::Arithmetic;
use crate::storage::device::Device;

/// A weight matrix `[n, k]` to multiply by.
///
/// As Candle does, plain floats in host memory become a Candle tensor; on a device they stay there. As Candle's, the environment
/// variables `CANDLE_DEQUANTIZE_ALL` and `CANDLE_DEQUANTIZE_ALL_F16` have all weights be f32 or f16 tensors of Candle's.
///
/// ```
/// # fn main() -> candle_core::Result<()> {
/// use candle_core::{DType, Device::Cpu, Tensor};
/// use cube_gguf::{GgmlDType, QMatMul, QTensor};
///
/// // SAFETY: no other thread looks at the environment.
/// unsafe { std::env::set_var("CANDLE_DEQUANTIZE_ALL", "1") };
/// let weights = QTensor::quantize(&Tensor::ones((4, 32), DType::F32, &Cpu)?, GgmlDType::Q8_0)?;
/// assert!(matches!(QMatMul::from_qtensor(weights)?, QMatMul::Tensor(_)));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub enum QMatMul {
    /// Quantized weights, or any weights on a device.
    QTensor(Arc<QTensor>),
    /// f32 weights in host memory.
    Tensor(Tensor),
    /// f16 weights in host memory.
    TensorF16(Tensor),
}

/// Whether an environment variable of Candle's says yes.
fn is_set(name: &str) -> bool {
    std::env::var(name).is_ok_and(|value| !value.is_empty() && value != "0")
}

impl QMatMul {
    /// The layer of `qtensor`.
    ///
    /// # Errors
    ///
    /// Where Candle failed to dequantize floats.
    pub fn from_arc(qtensor: Arc<QTensor>) -> Result<Self> {
        let floats = matches!(qtensor.dtype(), GgmlType::F32 | GgmlType::F16 | GgmlType::BF16);
        Ok(match () {
            () if is_set("CANDLE_DEQUANTIZE_ALL") || floats && qtensor.device() == Device::Cpu => {
                Self::Tensor(qtensor.dequantize(&CandleDevice::Cpu)?)
            }
            () if is_set("CANDLE_DEQUANTIZE_ALL_F16") => Self::TensorF16(qtensor.dequantize_f16(&CandleDevice::Cpu)?),
            () => Self::QTensor(qtensor),
        })
    }

    /// The layer of `qtensor`.
    ///
    /// # Errors
    ///
    /// As [`from_arc`](Self::from_arc).
    pub fn from_qtensor(qtensor: QTensor) -> Result<Self> {
        Self::from_arc(Arc::new(qtensor))
    }

    /// The weights rounded to f16, on Candle's CPU device.
    ///
    /// # Errors
    ///
    /// Where the device failed.
    pub fn dequantize_f16(&self) -> Result<Tensor> {
        match self {
            Self::QTensor(t) => t.dequantize_f16(&CandleDevice::Cpu),
            Self::Tensor(t) => Ok(t.to_dtype(DType::F16)?),
            Self::TensorF16(t) => Ok(t.clone()),
        }
    }

    /// The product with the weights rounded to f16, of the type of `xs`.
    ///
    /// On a device this is [`forward_as`](Self::forward_as) with [`Arithmetic::Float`], without that rounding.
    ///
    /// # Errors
    ///
    /// As [`forward_as`](Self::forward_as).
    pub fn forward_via_f16(&self, xs: &Tensor) -> Result<Tensor> {
        check_floats(xs)?;
        match self {
            Self::QTensor(t) if t.device() != Device::Cpu => t.matmul_t(xs, Arithmetic::Float),
            _ => {
                let product = product(&xs.to_dtype(DType::F16)?, &self.dequantize_f16()?)?;
                Ok(product.to_dtype(xs.dtype())?)
            }
        }
    }

    /// The product in the arithmetic that the caller names; by Candle's kernels each type has one, see
    /// [`QTensor::accuracy`].
    ///
    /// # Errors
    ///
    /// Where `xs` does not fit the weights, or the device failed.
    pub fn forward_as(&self, xs: &Tensor, arithmetic: Arithmetic) -> Result<Tensor> {
        match self {
            Self::QTensor(t) => t.matmul_t(xs, arithmetic),
            Self::Tensor(w) | Self::TensorF16(w) => {
                check_floats(xs)?;
                product(xs, &w.to_dtype(xs.dtype())?)
            }
        }
    }

    /// The products of several layers with one input, such as q, k and v, or gate and up: bit for bit those of
    /// [`forward`](Module::forward), in the order of the layers.
    ///
    /// On a device of CubeCL the input is uploaded and quantized once, and layers of one format share a launch.
    ///
    /// # Errors
    ///
    /// Where `xs` does not fit one of the layers, or the device failed.
    pub fn forward_many(layers: &[&Self], xs: &Tensor) -> Result<Vec<Tensor>> {
        let tensors = layers.iter().map(|&layer| match layer {
            Self::QTensor(tensor) => Some(tensor.as_ref()),
            Self::Tensor(_) | Self::TensorF16(_) => None,
        });
        match tensors.collect::<Option<Vec<&QTensor>>>() {
            Some(tensors) => QTensor::matmul_t_many(&tensors, xs, Arithmetic::Auto),
            None => layers.iter().map(|layer| layer.forward_as(xs, Arithmetic::Auto)).collect(),
        }
    }

    /// The rows that `ids` name.
    ///
    /// # Errors
    ///
    /// Where an id is outside the weights, or the device failed.
    pub fn embedding(&self, ids: &Tensor) -> Result<Tensor> {
        match self {
            Self::QTensor(t) => t.embedding(ids),
            Self::Tensor(w) | Self::TensorF16(w) => {
                let mut shape = ids.dims().to_vec();
                shape.push(w.dim(D::Minus1)?);
                Ok(w.index_select(&ids.flatten_all()?, 0)?.reshape(shape)?)
            }
        }
    }
}

/// `xs` `[.., k]` times the transpose of `w` `[n, k]`.
pub(super) fn product(xs: &Tensor, w: &Tensor) -> Result<Tensor> {
    let (n, k) = w.dims2()?;
    let mut shape = xs.dims().to_vec();
    let rows = xs.reshape(((), k))?;
    if let Some(last) = shape.last_mut() {
        *last = n;
    }
    rows.matmul(&w.t()?)?.reshape(shape)
}

impl Module for QMatMul {
    /// The product in the arithmetic that suits the number of tokens ([`Arithmetic::Auto`]).
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.forward_as(xs, Arithmetic::Auto)
    }
}
