//! `indexed_moe_forward`: products with some experts of a stack, as Candle's CUDA storage has them.

use std::collections::BTreeMap;

use candle_core::{DType, Result, Tensor};

use super::candle_error;
use super::host::candle_matmul;
use super::qmatmul::{QMatMul, product};
use super::qtensor::{Inner, QTensor, check_floats};
use super::transfer::Transfer;
use crate::Error;
use crate::kernels::activations::Activations;
use crate::kernels::ops::Arithmetic;
use crate::kernels::routing::Routing;
use crate::storage::device::indices;
use crate::storage::tensor::DeviceTensor;

impl QTensor {
    /// The products of a mixture of experts, `[tokens, slots, n]` values of the type of `x`, where this is a stack
    /// `[experts, n, k]`: for each token and each of its experts, which `ids` `[tokens, slots]` names, the token's row of `x` times
    /// the transpose of the expert's weights. `x` is `[tokens, 1, k]` or `[tokens, slots, k]`.
    ///
    /// On a device of CubeCL this is one launch for few tokens; those of many are sorted by expert there.
    ///
    /// ```
    /// # fn main() -> candle_core::Result<()> {
    /// use candle_core::{DType, Device, Tensor};
    /// use cube_gguf::{GgmlDType, QTensor};
    ///
    /// let experts = Tensor::stack(&[Tensor::ones((4, 32), DType::F32, &Device::Cpu)?, Tensor::zeros((4, 32), DType::F32, &Device::Cpu)?], 0)?;
    /// let experts = QTensor::quantize(&experts, GgmlDType::Q8_0)?;
    /// let x = Tensor::ones((1, 1, 32), DType::F32, &Device::Cpu)?;
    /// let y = experts.indexed_moe_forward(&x, &Tensor::new(&[[1u32, 0]], &Device::Cpu)?)?;
    /// assert_eq!(y.dims(), [1, 2, 4]);
    /// assert_eq!(y.get(0)?.get(0)?.to_vec1::<f32>()?, [0.0; 4]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Where this is no such stack, `x` or `ids` does not fit it, an id names no expert, or the device failed. Ids that stay on a
    /// GPU of Candle's are not looked at: one that names no expert gives a row of NaNs.
    pub fn indexed_moe_forward(&self, x: &Tensor, ids: &Tensor) -> Result<Tensor> {
        let routed = Routed::new(self.shape().dims(), x, ids)?;
        match self.inner() {
            Inner::Cube(tensor) | Inner::Kernels(tensor) => routed.on_device(tensor),
            Inner::Experts { ty, matrices } => routed.on_host(|expert, x| candle_matmul(&matrices[expert], *ty, x)),
            Inner::Host(blocks) => routed.on_host(|expert, x| {
                let (rows, k) = x.dims2()?;
                let values = x.flatten_all()?.to_vec1::<f32>()?;
                let y = blocks.matmul_rows(&values, expert * routed.n, routed.n, k);
                Tensor::from_vec(y, (rows, routed.n), x.device())
            }),
            Inner::Candle(_) => Err(candle_error(Error::Stack { shape: self.shape().dims().to_vec() })),
        }
    }

    /// [`indexed_moe_forward`](Self::indexed_moe_forward), which is `None` in Candle where it has no kernel.
    ///
    /// # Errors
    ///
    /// As [`indexed_moe_forward`](Self::indexed_moe_forward).
    pub fn indexed_gemv(&self, x: &Tensor, ids: &Tensor) -> Result<Option<Tensor>> {
        self.indexed_moe_forward(x, ids).map(Some)
    }
}

impl QMatMul {
    /// [`QTensor::indexed_moe_forward`] for any weights.
    ///
    /// # Errors
    ///
    /// As [`QTensor::indexed_moe_forward`].
    pub fn indexed_moe_forward(&self, x: &Tensor, ids: &Tensor) -> Result<Tensor> {
        match self {
            Self::QTensor(tensor) => tensor.indexed_moe_forward(x, ids),
            Self::Tensor(weights) | Self::TensorF16(weights) => {
                let routed = Routed::new(weights.dims(), x, ids)?;
                routed.on_host(|expert, x| product(x, &weights.get(expert)?.to_dtype(DType::F32)?))
            }
        }
    }
}

/// Activations and the experts that they are for.
struct Routed<'a> {
    x: &'a Tensor,
    /// The expert of each pair of a token and a slot.
    ids: &'a Tensor,
    tokens: usize,
    slots: usize,
    experts: usize,
    /// Rows of an expert.
    n: usize,
}

impl<'a> Routed<'a> {
    /// Checks that activations and ids fit a stack of a shape.
    fn new(stack: &[usize], x: &'a Tensor, ids: &'a Tensor) -> Result<Self> {
        check_floats(x)?;
        let &[experts, n, k] = stack else { return Err(candle_error(Error::Stack { shape: stack.to_vec() })) };
        let (tokens, slots) = ids.dims2()?;
        match *x.dims() {
            [of_x, rows, width] if of_x == tokens && [1, slots].contains(&rows) => {
                if width != k {
                    return Err(candle_error(Error::Activations { shape: x.dims().to_vec(), k }));
                }
            }
            _ => return Err(candle_error(Error::Routed { shape: x.dims().to_vec(), tokens, slots })),
        }
        if ids.dtype().is_float() {
            return Err(candle_core::Error::Msg(format!("ids of experts of type {}", ids.dtype().as_str())));
        }
        Ok(Self { x, ids, tokens, slots, experts, n })
    }

    /// The ids in host memory, each of which is one of the stack.
    fn host_ids(&self) -> Result<Vec<u32>> {
        let (ids, experts) = (self.ids.to_dtype(DType::I64)?.flatten_all()?.to_vec1::<i64>()?, self.experts);
        Ok(indices(&ids, experts, |id| Error::ExpertOutOfRange { id, experts })?)
    }

    fn shape(&self) -> (usize, usize, usize) {
        (self.tokens, self.slots, self.n)
    }

    fn on_device(&self, stack: &DeviceTensor) -> Result<Tensor> {
        if self.ids.elem_count() == 0 {
            return Tensor::zeros(self.shape(), self.x.dtype(), self.x.device());
        }
        let transfer = Transfer::between(self.x.device(), stack);
        let (x, ty) = transfer.floats(self.x)?;
        let (tokens, slots, experts, rows) = (self.tokens, self.slots, self.experts, self.x.dims().to_vec());
        let ids = match transfer.is_direct(self.ids) {
            true => self.ids.to_dtype(DType::U32)?,
            false => Tensor::from_vec(self.host_ids()?, (tokens, slots), self.x.device())?,
        };
        let own = stack.clone();
        transfer.call_for_one(&[x, ids], self.shape(), (ty, self.x.dtype()), move |inputs| {
            let routing = Routing::new(inputs[1].clone(), tokens, slots, experts)?;
            let x = Activations::contiguous(inputs[0].clone(), ty, rows)?;
            own.matmul_experts_on_device(&x, &routing, Arithmetic::Auto)
        })
    }

    /// The products of each expert with the rows of its pairs, f32, by `multiply`.
    fn on_host(&self, multiply: impl Fn(usize, &Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let rows = self.x.to_dtype(DType::F32)?.flatten(0, 1)?.contiguous()?;
        let sharers = if self.x.dim(1)? == self.slots { 1 } else { self.slots };
        let ids = self.host_ids()?;
        let mut pairs_of = BTreeMap::<u32, Vec<u32>>::new();
        for (pair, &id) in ids.iter().enumerate() {
            pairs_of.entry(id).or_default().push(pair as u32);
        }
        let mut out = vec![0.0f32; ids.len() * self.n];
        for (id, pairs) in pairs_of {
            let sources: Vec<u32> = pairs.iter().map(|pair| pair / sharers as u32).collect();
            let count = sources.len();
            let of_expert = rows.index_select(&Tensor::from_vec(sources, count, rows.device())?, 0)?;
            let y = multiply(id as usize, &of_expert)?.flatten_all()?.to_vec1::<f32>()?;
            for (pair, y) in pairs.into_iter().zip(y.chunks_exact(self.n.max(1))) {
                out[pair as usize * self.n..][..self.n].copy_from_slice(y);
            }
        }
        Tensor::from_vec(out, self.shape(), self.x.device())?.to_dtype(self.x.dtype())
    }
}
