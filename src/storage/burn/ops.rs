//! The operations, for each of Burn's ways to run them: at once, in a fusing stream, under autodiff.

use std::fmt;
use std::marker::PhantomData;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::ops::{BoolTensorOps, FloatTensorOps, IntTensorOps};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{
    Autodiff, AutodiffBackend, Backend, Dispatch, TensorMetadata, backend_extension, get_or_init_device_settings,
};
use burn::tensor::{DType, Int, Shape, Tensor};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeBackend, kernel};
use burn_fusion::custom::{CustomOpIr, HandleContainer, Operation, OperationIr, OperationOutput, StreamId, TensorIr};
use burn_fusion::{ExecutionError, Fusion, FusionBackend, FusionTensor};

use cubecl::server::Handle;

use super::matrix::QMatrix;
use crate::kernels::activations::Activations;
use crate::kernels::floats::FloatType;
use crate::kernels::routing::Routing;
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

/// The products of experts with the tokens that have them.
pub(super) fn experts(input: Tensor<3>, ids: Tensor<2, Int>, weight: &QMatrix, experts: usize) -> Result<Tensor<3>> {
    check(&input, weight)?;
    weight.check_device(&ids.device())?;
    let ([of_input, rows, _], [tokens, slots]) = (input.dims(), ids.dims());
    if of_input != tokens || ![1, slots].contains(&rows) {
        return Err(Error::Routed { shape: input.dims().to_vec(), tokens, slots });
    }
    let stack = QStack { matrix: weight.clone(), experts };
    Ok(Tensor::from_dispatch(Dispatch::q_experts(input.into_dispatch(), ids.into_dispatch(), stack)))
}

/// A matrix of so many experts.
#[derive(Clone, Debug)]
pub(super) struct QStack {
    matrix: QMatrix,
    experts: usize,
}

impl QStack {
    /// The shape of the products of tokens whose ids have this shape.
    fn shape(&self, ids: &Shape) -> Shape {
        Shape::new([ids[0], ids[1], self.matrix.tensor.n() / self.experts])
    }
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
    fn q_experts(x: FloatTensor<Self>, ids: IntTensor<Self>, w: QStack) -> FloatTensor<Self>;
    fn q_experts_backward(dy: FloatTensor<Self>, ids: IntTensor<Self>, w: QStack, rows: usize) -> FloatTensor<Self>;
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

    /// The products of the experts that `ids` name.
    fn try_experts(x: FloatTensor<Self>, ids: IntTensor<Self>, w: &QStack) -> Executed<FloatTensor<Self>>;

    /// The gradient of [`try_experts`](Self::try_experts) with respect to `x`, which has `rows` rows a token: for each expert, `dy`
    /// of the pairs that have it times its weights, dequantized.
    fn try_experts_backward(
        dy: FloatTensor<Self>,
        ids: IntTensor<Self>,
        w: &QStack,
        rows: usize,
    ) -> Executed<FloatTensor<Self>>;
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

/// An input as kernels read it: Flex32 is f32 in memory.
fn readable(x: CubeTensor) -> CubeTensor {
    match x.dtype {
        DType::F64 => kernel::cast(x, DType::F32),
        _ => kernel::untile(x),
    }
}

/// A readable input.
fn activations(x: &CubeTensor) -> Executed<Activations> {
    let (extents, strides) = (x.meta.shape().to_vec(), x.meta.strides().to_vec());
    Activations::new(x.handle.clone(), float_type(x.dtype), extents, strides).map_err(failed)
}

/// A result of a readable input, as values of type `to`.
fn result(x: &CubeTensor, out: Handle, shape: Shape, to: DType) -> CubeTensor {
    let out = CubeTensor::new_contiguous(x.client.clone(), x.device.clone(), shape, out, x.dtype);
    if x.dtype == to { out } else { kernel::cast(out, to) }
}

/// Dequantized weights beside a gradient, of its type.
fn weights_like(dy: &CubeTensor, values: Handle, shape: [usize; 2]) -> CubeTensor {
    let ty = dtype(float_type(dy.dtype));
    let weights = CubeTensor::new_contiguous(dy.client.clone(), dy.device.clone(), Shape::new(shape), values, ty);
    if dy.dtype == DType::F64 { kernel::cast(weights, dy.dtype) } else { weights }
}

/// Ids as 32-bit integers, one after the other.
fn contiguous_ids(ids: CubeTensor) -> CubeTensor {
    let ids = match ids.dtype {
        DType::I32 | DType::U32 => ids,
        _ => kernel::cast(ids, DType::I32),
    };
    kernel::into_contiguous(ids)
}

/// The one of a list of one.
fn single<T>(list: Executed<Vec<T>>) -> Executed<T> {
    list?.pop().ok_or_else(|| ExecutionError::with_context("an operation without a result".to_owned()))
}

impl QKernels for CubeBackend {
    fn try_linear(x: CubeTensor, w: &[QMatrix]) -> Executed<Vec<CubeTensor>> {
        let to = x.dtype;
        let x = readable(x);
        let outs = if x.shape().num_elements() == 0 {
            w.iter().map(|_| x.client.empty(16)).collect()
        } else {
            products(w, &activations(&x)?).map_err(failed)?
        };
        let result = |(out, w): (Handle, &QMatrix)| result(&x, out, with_last(x.shape(), w.tensor.n()), to);
        Ok(outs.into_iter().zip(w).map(result).collect())
    }

    fn try_experts(x: CubeTensor, ids: CubeTensor, w: &QStack) -> Executed<CubeTensor> {
        let (to, QStack { matrix, experts }) = (x.dtype, w);
        let (x, ids) = (readable(x), contiguous_ids(ids));
        let shape = w.shape(&ids.shape());
        let out = if shape.num_elements() == 0 {
            x.client.empty(16)
        } else {
            let routing = Routing::new(ids.handle, shape[0], shape[1], *experts).map_err(failed)?;
            let out = matrix.tensor.matmul_experts_on_device(&activations(&x)?, &routing, matrix.arithmetic);
            out.map_err(failed)?
        };
        Ok(result(&x, out, shape, to))
    }

    fn try_experts_backward(dy: CubeTensor, ids: CubeTensor, w: &QStack, rows: usize) -> Executed<CubeTensor> {
        let (tensor, experts) = (&w.matrix.tensor, w.experts);
        let (n, k) = (tensor.n() / experts, tensor.k());
        let [tokens, slots] = [ids.shape()[0], ids.shape()[1]];
        let (device, out) = (dy.device.clone(), dy.dtype);
        let dy = Self::float_reshape(dy, Shape::new([tokens * slots, n]));
        let ids = Self::int_reshape(ids, Shape::new([tokens * slots, 1]));
        let mut dx = Self::float_zeros(Shape::new([tokens * slots, k]), &device, out.into());
        for expert in 0..experts {
            let values = tensor.dequantize_rows_on_device(expert * n, n, float_type(out)).map_err(failed)?;
            let weights = weights_like(&dy, values, [n, k]);
            let others = Self::int_not_equal_elem(
                ids.clone(),
                (expert as i64).into(),
                get_or_init_device_settings::<Self>(&device).bool_dtype,
            );
            let of_expert = Self::float_mask_fill(dy.clone(), Self::bool_expand(others, dy.shape()), 0.0.into());
            dx = Self::float_add(dx, Self::float_matmul(of_expert, weights));
        }
        let dx = Self::float_reshape(dx, Shape::new([tokens, slots, k]));
        Ok(if rows == slots { dx } else { Self::float_sum_dim(dx, 1) })
    }

    fn try_linear_backward(dy: CubeTensor, w: &QMatrix) -> Executed<CubeTensor> {
        let (n, k) = (w.tensor.n(), w.tensor.k());
        let shape = dy.shape();
        let weights = weights_like(&dy, w.tensor.dequantize_on_device(float_type(dy.dtype)), [n, k]);
        let rows = Shape::new([shape.num_elements() / n, n]);
        let dx = Self::float_matmul(Self::float_reshape(dy, rows), weights);
        Ok(Self::float_reshape(dx, with_last(shape, k)))
    }

    fn try_embedding(ids: CubeTensor, w: &QMatrix, to: FloatType) -> Executed<CubeTensor> {
        let ids = contiguous_ids(ids);
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

    fn q_experts(x: FloatTensor<Self>, ids: IntTensor<Self>, w: QStack) -> FloatTensor<Self> {
        Self::try_experts(x, ids, &w).unwrap_or_else(|error| panic!("{error}"))
    }

    fn q_experts_backward(dy: FloatTensor<Self>, ids: IntTensor<Self>, w: QStack, rows: usize) -> FloatTensor<Self> {
        Self::try_experts_backward(dy, ids, &w, rows).unwrap_or_else(|error| panic!("{error}"))
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
    F: Fn(&[TensorIr], &mut HandleContainer<B::Handle>) -> Executed<Vec<FloatTensor<B>>> + Send + Sync,
{
    fn execute(&self, handles: &mut HandleContainer<B::Handle>) -> Executed<()> {
        let outs = (self.run)(&self.ir.inputs, handles)?;
        for (ir, out) in self.ir.outputs.iter().zip(outs) {
            handles.register_float_tensor::<B>(&ir.id, out);
        }
        Ok(())
    }
}

/// Queues an operation that makes tensors of these shapes and of `dtype` of others.
fn queue<B: FusionBackend, const N: usize>(
    name: &'static str,
    inputs: [FusionTensor<B::FusionRuntime>; N],
    shapes: impl IntoIterator<Item = Shape>,
    dtype: DType,
    run: impl Fn(&[TensorIr], &mut HandleContainer<B::Handle>) -> Executed<Vec<FloatTensor<B>>> + Send + Sync + 'static,
) -> Vec<FusionTensor<B::FusionRuntime>> {
    let client = inputs[0].client.clone();
    let out = |shape| TensorIr::uninit(client.create_empty_handle(), shape, dtype);
    let outs: Vec<TensorIr> = shapes.into_iter().map(out).collect();
    let ir = CustomOpIr::new(name, &inputs.map(FusionTensor::into_ir), &outs);
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
        queue::<B, 1>("cube_gguf_linear", [x], shapes, dtype, move |inputs, handles| {
            B::try_linear(handles.get_float_tensor::<B>(&inputs[0]), &w)
        })
    }

    fn q_linear_backward(dy: FloatTensor<Self>, w: QMatrix) -> FloatTensor<Self> {
        let (shape, dtype) = (with_last(dy.shape(), w.tensor.k()), dy.dtype());
        let queued = queue::<B, 1>("cube_gguf_linear_backward", [dy], [shape], dtype, move |inputs, handles| {
            Ok(vec![B::try_linear_backward(handles.get_float_tensor::<B>(&inputs[0]), &w)?])
        });
        queued.output()
    }

    fn q_embedding(ids: IntTensor<Self>, w: QMatrix, to: FloatType) -> FloatTensor<Self> {
        let mut extents = ids.shape().to_vec();
        extents.push(w.tensor.k());
        let queued =
            queue::<B, 1>("cube_gguf_embedding", [ids], [Shape::from(extents)], dtype(to), move |inputs, handles| {
                Ok(vec![B::try_embedding(handles.get_int_tensor::<B>(&inputs[0]), &w, to)?])
            });
        queued.output()
    }

    fn q_experts(x: FloatTensor<Self>, ids: IntTensor<Self>, w: QStack) -> FloatTensor<Self> {
        let (shape, dtype) = (w.shape(&ids.shape()), x.dtype());
        let queued = queue::<B, 2>("cube_gguf_experts", [x, ids], [shape], dtype, move |inputs, handles| {
            let (x, ids) = (handles.get_float_tensor::<B>(&inputs[0]), handles.get_int_tensor::<B>(&inputs[1]));
            Ok(vec![B::try_experts(x, ids, &w)?])
        });
        queued.output()
    }

    fn q_experts_backward(dy: FloatTensor<Self>, ids: IntTensor<Self>, w: QStack, rows: usize) -> FloatTensor<Self> {
        let (shape, dtype) = (Shape::new([ids.shape()[0], rows, w.matrix.tensor.k()]), dy.dtype());
        let queued = queue::<B, 2>("cube_gguf_experts_backward", [dy, ids], [shape], dtype, move |inputs, handles| {
            let (dy, ids) = (handles.get_float_tensor::<B>(&inputs[0]), handles.get_int_tensor::<B>(&inputs[1]));
            Ok(vec![B::try_experts_backward(dy, ids, &w, rows)?])
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

/// The backward pass of products with experts: its state are the weights, the ids, and the input's rows a token.
#[derive(Debug)]
struct ExpertsBackward;

impl<B: QOps> Backward<B, 1> for ExpertsBackward {
    type State = (IntTensor<B>, QStack, usize);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (ids, stack, rows) = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |dy| B::q_experts_backward(dy, ids, stack, rows));
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

    fn q_experts(x: FloatTensor<Self>, ids: IntTensor<Self>, w: QStack) -> FloatTensor<Self> {
        let (x, node) = x.into_parts();
        let rows = x.shape()[1];
        let out = B::q_experts(x, ids.clone(), w.clone());
        match ExpertsBackward.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((ids, w, rows), out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }

    fn q_experts_backward(dy: FloatTensor<Self>, ids: IntTensor<Self>, w: QStack, rows: usize) -> FloatTensor<Self> {
        Self::from_inner(B::q_experts_backward(Self::inner(dy), ids, w, rows))
    }
}
