//! The operations, for each of Burn's ways to run them: at once, in a fusing stream, under autodiff.

use std::fmt;
use std::marker::PhantomData;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, AutodiffBackend, Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::{DType, Int, Shape, Tensor};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeBackend, kernel};
use burn_fusion::custom::{CustomOpIr, HandleContainer, Operation, OperationIr, OperationOutput, StreamId, TensorIr};
use burn_fusion::{ExecutionError, Fusion, FusionBackend, FusionTensor};

use cubecl::server::Handle;

use super::matrix::QMatrix;
use crate::kernels::activations::Activations;
use crate::kernels::floats::FloatType;
use crate::storage::tensor::DeviceTensor;
use crate::{Error, Result};

/// The product with an input of shape `[.., k]`.
pub(super) fn linear<const D: usize>(input: Tensor<D>, weight: &QMatrix) -> Result<Tensor<D>> {
    check(&input, weight)?;
    Ok(Tensor::from_dispatch(Dispatch::q_linear(input.into_dispatch(), weight.clone())))
}

/// The products of several matrices with one input.
pub(super) fn linear_many<const D: usize>(input: Tensor<D>, weights: &[&QMatrix]) -> Result<Vec<Tensor<D>>> {
    weights.iter().try_for_each(|weight| check(&input, weight))?;
    if weights.is_empty() {
        return Ok(Vec::new());
    }
    let weights = weights.iter().map(|&weight| weight.clone()).collect();
    let products = Dispatch::q_linear_many(input.into_dispatch(), weights);
    Ok(products.into_iter().map(Tensor::from_dispatch).collect())
}

/// Checks that an input fits the weights, where they are and in a type that the kernels read there.
fn check<const D: usize>(input: &Tensor<D>, weight: &QMatrix) -> Result<()> {
    let (shape, k) = (input.dims(), weight.tensor.k());
    if shape.last() != Some(&k) {
        return Err(Error::Activations { shape: shape.to_vec(), k });
    }
    weight.check_device(&input.device())?;
    weight.tensor.check_float(float_type(input.dtype()))
}

/// The rows that ids name.
pub(super) fn embedding<const D: usize, const D2: usize>(
    ids: Tensor<D, Int>,
    weight: &QMatrix,
    to: FloatType,
) -> Result<Tensor<D2>> {
    weight.check_device(&ids.device())?;
    Ok(Tensor::from_dispatch(Dispatch::q_embedding(ids.into_dispatch(), weight.clone(), to)))
}

/// The type that kernels read values of a type as: f64 and what else they have no buffers for are cast to f32 and back.
fn float_type(dtype: DType) -> FloatType {
    match dtype {
        DType::F16 => FloatType::F16,
        DType::BF16 => FloatType::BF16,
        _ => FloatType::F32,
    }
}

fn dtype(ty: FloatType) -> DType {
    match ty {
        FloatType::F32 => DType::F32,
        FloatType::F16 => DType::F16,
        FloatType::BF16 => DType::BF16,
    }
}

/// A shape with another last extent.
fn with_last(mut shape: Shape, last: usize) -> Shape {
    let rank = shape.num_dims();
    shape[rank - 1] = last;
    shape
}

/// The operations of a backend, for Burn to dispatch to.
#[backend_extension(Cube, Autodiff)]
trait QOps: Backend {
    fn q_linear(x: FloatTensor<Self>, w: QMatrix) -> FloatTensor<Self>;
    fn q_linear_many(x: FloatTensor<Self>, w: Vec<QMatrix>) -> Vec<FloatTensor<Self>>;
    fn q_linear_backward(dy: FloatTensor<Self>, w: QMatrix) -> FloatTensor<Self>;
    fn q_embedding(ids: IntTensor<Self>, w: QMatrix, to: FloatType) -> FloatTensor<Self>;
}

type Executed<T> = std::result::Result<T, ExecutionError>;

/// The operations on tensors that have their memory, which may fail.
trait QKernels: Backend {
    /// `x` times the transpose of each of some matrices.
    fn try_linear(x: FloatTensor<Self>, w: &[QMatrix]) -> Executed<Vec<FloatTensor<Self>>>;

    /// The gradient of [`try_linear`](Self::try_linear) with respect to `x`: `dy` times the weights, dequantized.
    fn try_linear_backward(dy: FloatTensor<Self>, w: &QMatrix) -> Executed<FloatTensor<Self>>;

    /// The rows of the weights that `ids` name.
    fn try_embedding(ids: IntTensor<Self>, w: &QMatrix, to: FloatType) -> Executed<FloatTensor<Self>>;
}

fn failed(error: Error) -> ExecutionError {
    ExecutionError::with_context(error.to_string())
}

/// The products of matrices with one operand: together where all have one arithmetic.
fn products(weights: &[QMatrix], x: &Activations) -> Result<Vec<Handle>> {
    let arithmetic = weights.first().map(|first| first.arithmetic);
    match arithmetic.filter(|&first| weights.iter().all(|other| other.arithmetic == first)) {
        Some(arithmetic) => {
            let tensors: Vec<&DeviceTensor> = weights.iter().map(|weight| &weight.tensor).collect();
            DeviceTensor::matmul_many_on_device(&tensors, x, arithmetic)
        }
        None => weights.iter().map(|weight| weight.tensor.matmul_on_device(x, weight.arithmetic)).collect(),
    }
}

/// The one of a list of one.
fn single<T>(list: Executed<Vec<T>>) -> Executed<T> {
    list?.pop().ok_or_else(|| ExecutionError::with_context("an operation without a result".to_owned()))
}

impl QKernels for CubeBackend {
    fn try_linear(x: CubeTensor, w: &[QMatrix]) -> Executed<Vec<CubeTensor>> {
        let to = x.dtype;
        // Flex32 is f32 in memory.
        let (x, computed) = match to {
            DType::F64 => (kernel::cast(x, DType::F32), DType::F32),
            _ => (kernel::untile(x), to),
        };
        let outs = if x.shape().num_elements() == 0 {
            w.iter().map(|_| x.client.empty(16)).collect()
        } else {
            let (extents, strides) = (x.meta.shape().to_vec(), x.meta.strides().to_vec());
            let activations = Activations::new(x.handle.clone(), float_type(to), extents, strides).map_err(failed)?;
            products(w, &activations).map_err(failed)?
        };
        let result = |(out, w): (Handle, &QMatrix)| {
            let shape = with_last(x.shape(), w.tensor.n());
            let out = CubeTensor::new_contiguous(x.client.clone(), x.device.clone(), shape, out, computed);
            if computed == to { out } else { kernel::cast(out, to) }
        };
        Ok(outs.into_iter().zip(w).map(result).collect())
    }

    fn try_linear_backward(dy: CubeTensor, w: &QMatrix) -> Executed<CubeTensor> {
        let (n, k) = (w.tensor.n(), w.tensor.k());
        let shape = dy.shape();
        let ty = float_type(dy.dtype);
        let values = w.tensor.dequantize_on_device(ty);
        let weights =
            CubeTensor::new_contiguous(dy.client.clone(), dy.device.clone(), Shape::new([n, k]), values, dtype(ty));
        let weights = if dy.dtype == DType::F64 { kernel::cast(weights, dy.dtype) } else { weights };
        let rows = Shape::new([shape.num_elements() / n, n]);
        let dx = Self::float_matmul(Self::float_reshape(dy, rows), weights);
        Ok(Self::float_reshape(dx, with_last(shape, k)))
    }

    fn try_embedding(ids: CubeTensor, w: &QMatrix, to: FloatType) -> Executed<CubeTensor> {
        let ids = match ids.dtype {
            DType::I32 | DType::U32 => ids,
            _ => kernel::cast(ids, DType::I32),
        };
        let ids = kernel::into_contiguous(ids);
        let mut extents = ids.shape().to_vec();
        let count = extents.iter().product();
        extents.push(w.tensor.k());
        let rows = w.tensor.gather_on_device(&ids.handle, count, to).map_err(failed)?;
        Ok(CubeTensor::new_contiguous(ids.client, ids.device, Shape::from(extents), rows, dtype(to)))
    }
}

/// At once: a failure is a panic, as of Burn's own operations.
impl QOps for CubeBackend {
    fn q_linear(x: FloatTensor<Self>, w: QMatrix) -> FloatTensor<Self> {
        single(Self::try_linear(x, &[w])).unwrap_or_else(|error| panic!("{error}"))
    }

    fn q_linear_many(x: FloatTensor<Self>, w: Vec<QMatrix>) -> Vec<FloatTensor<Self>> {
        Self::try_linear(x, &w).unwrap_or_else(|error| panic!("{error}"))
    }

    fn q_linear_backward(dy: FloatTensor<Self>, w: QMatrix) -> FloatTensor<Self> {
        Self::try_linear_backward(dy, &w).unwrap_or_else(|error| panic!("{error}"))
    }

    fn q_embedding(ids: IntTensor<Self>, w: QMatrix, to: FloatType) -> FloatTensor<Self> {
        Self::try_embedding(ids, &w, to).unwrap_or_else(|error| panic!("{error}"))
    }
}

/// An operation in a fusing stream, which makes tensors when its turn comes.
struct Queued<B, F> {
    ir: CustomOpIr,
    run: F,
    backend: PhantomData<fn() -> B>,
}

impl<B, F> fmt::Debug for Queued<B, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.ir)
    }
}

impl<B, F> Operation<B::FusionRuntime> for Queued<B, F>
where
    B: FusionBackend,
    F: Fn(&TensorIr, &mut HandleContainer<B::Handle>) -> Executed<Vec<FloatTensor<B>>> + Send + Sync,
{
    fn execute(&self, handles: &mut HandleContainer<B::Handle>) -> Executed<()> {
        let outs = (self.run)(&self.ir.inputs[0], handles)?;
        for (ir, out) in self.ir.outputs.iter().zip(outs) {
            handles.register_float_tensor::<B>(&ir.id, out);
        }
        Ok(())
    }
}

/// Queues an operation that makes tensors of these shapes and of `dtype` of one other.
fn queue<B: FusionBackend>(
    name: &'static str,
    input: FusionTensor<B::FusionRuntime>,
    shapes: impl IntoIterator<Item = Shape>,
    dtype: DType,
    run: impl Fn(&TensorIr, &mut HandleContainer<B::Handle>) -> Executed<Vec<FloatTensor<B>>> + Send + Sync + 'static,
) -> Vec<FusionTensor<B::FusionRuntime>> {
    let client = input.client.clone();
    let out = |shape| TensorIr::uninit(client.create_empty_handle(), shape, dtype);
    let outs: Vec<TensorIr> = shapes.into_iter().map(out).collect();
    let ir = CustomOpIr::new(name, &[input.into_ir()], &outs);
    let queued = Queued { ir: ir.clone(), run, backend: PhantomData::<fn() -> B> };
    client.register(StreamId::current(), OperationIr::Custom(ir), queued)
}

/// In a fusing stream: a failure shows at the read of the result.
impl<B: FusionBackend + QKernels> QOps for Fusion<B> {
    fn q_linear(x: FloatTensor<Self>, w: QMatrix) -> FloatTensor<Self> {
        Self::q_linear_many(x, vec![w]).output()
    }

    fn q_linear_many(x: FloatTensor<Self>, w: Vec<QMatrix>) -> Vec<FloatTensor<Self>> {
        let (shape, dtype) = (x.shape(), x.dtype());
        let shapes: Vec<Shape> = w.iter().map(|w| with_last(shape.clone(), w.tensor.n())).collect();
        queue::<B>("cube_gguf_linear", x, shapes, dtype, move |input, handles| {
            B::try_linear(handles.get_float_tensor::<B>(input), &w)
        })
    }

    fn q_linear_backward(dy: FloatTensor<Self>, w: QMatrix) -> FloatTensor<Self> {
        let (shape, dtype) = (with_last(dy.shape(), w.tensor.k()), dy.dtype());
        let queued = queue::<B>("cube_gguf_linear_backward", dy, [shape], dtype, move |input, handles| {
            Ok(vec![B::try_linear_backward(handles.get_float_tensor::<B>(input), &w)?])
        });
        queued.output()
    }

    fn q_embedding(ids: IntTensor<Self>, w: QMatrix, to: FloatType) -> FloatTensor<Self> {
        let mut extents = ids.shape().to_vec();
        extents.push(w.tensor.k());
        let queued =
            queue::<B>("cube_gguf_embedding", ids, [Shape::from(extents)], dtype(to), move |input, handles| {
                Ok(vec![B::try_embedding(handles.get_int_tensor::<B>(input), &w, to)?])
            });
        queued.output()
    }
}

/// The backward pass of a product: its state are the weights.
#[derive(Debug)]
struct LinearBackward;

impl<B: QOps> Backward<B, 1> for LinearBackward {
    type State = QMatrix;

    fn backward(self, ops: Ops<QMatrix, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        unary::<B, _>(ops.parents, ops.node, grads, |dy| B::q_linear_backward(dy, ops.state));
    }
}

/// Under autodiff: the weights are constants.
impl<B: QOps, C: CheckpointStrategy> QOps for Autodiff<B, C> {
    fn q_linear(x: FloatTensor<Self>, w: QMatrix) -> FloatTensor<Self> {
        let (x, node) = x.into_parts();
        let out = B::q_linear(x, w.clone());
        match LinearBackward.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(w, out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }

    fn q_linear_many(x: FloatTensor<Self>, w: Vec<QMatrix>) -> Vec<FloatTensor<Self>> {
        // A node of the graph has one result.
        w.into_iter().map(|w| Self::q_linear(x.clone(), w)).collect()
    }

    fn q_linear_backward(dy: FloatTensor<Self>, w: QMatrix) -> FloatTensor<Self> {
        Self::from_inner(B::q_linear_backward(Self::inner(dy), w))
    }

    fn q_embedding(ids: IntTensor<Self>, w: QMatrix, to: FloatType) -> FloatTensor<Self> {
        Self::from_inner(B::q_embedding(ids, w, to))
    }
}
