//! Burn modules, beside the device tensors that they are of and dense layers of the dequantized weights.
//!
//! Whether Burn fuses is its feature `fusion`: `cargo test --features burn,burn/fusion --test burn` tests that stream.

mod cube_device;

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::{DType, Device, Int, Tensor, TensorData, Tolerance};
use cube_gguf::burn::{QEmbedding, QExperts, QLinear};
use cube_gguf::gguf::{Files, GgmlType};
use cube_gguf::{Arithmetic, DeviceTensor, Error, FloatType};

use cube_device::cube_device;

/// The weights of a fixture.
fn weights(name: &str) -> DeviceTensor {
    let path = format!("{}/tests/fixtures/{name}.gguf", env!("CARGO_MANIFEST_DIR"));
    let files = Files::open(&path).unwrap();
    DeviceTensor::load(&cube_device(), &files.parse().unwrap().tensor("quantized").unwrap()).unwrap()
}

fn device(weights: &DeviceTensor) -> Device {
    Device::from(weights.device())
}

/// Small numbers that f16 holds.
fn noise(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 37 + 11) % 64) as f32 / 32.0 - 1.0).collect()
}

fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().try_to_vec().unwrap()
}

/// The product by the device tensor itself.
fn product(weights: &DeviceTensor, x: &[f32]) -> Vec<f32> {
    weights.matmul(x, &[x.len() / weights.k(), weights.k()], Arithmetic::Auto).unwrap()
}

#[test]
fn inputs_of_any_rank_give_the_product_of_the_device_tensor() {
    let weights = weights("q4_k");
    let (layer, device, k, n) = (QLinear::new(weights.clone()), device(&weights), weights.k(), weights.n());
    let x = noise(6 * k);
    let expected = product(&weights, &x);
    assert_eq!(values(layer.forward(tensor(x.clone(), [6, k], &device))), expected);
    let y = layer.forward(tensor(x.clone(), [3, 2, k], &device));
    assert_eq!((y.dims(), values(y)), ([3, 2, n], expected.clone()));
    let y = layer.forward(tensor(x, [3, 1, 2, k], &device));
    assert_eq!((y.dims(), values(y)), ([3, 1, 2, n], expected));
    let x = noise(k);
    assert_eq!(values(layer.forward(tensor(x.clone(), [k], &device))), product(&weights, &x));
}

#[test]
fn views_are_read_where_they_lie() {
    let weights = weights("q6_k");
    let (layer, device, k) = (QLinear::new(weights.clone()), device(&weights), weights.k());
    let x = noise(4 * k);
    let transposed: Vec<f32> = (0..k * 4).map(|i| x[i % 4 * k + i / 4]).collect();
    let view = tensor(transposed, [k, 4], &device).transpose();
    assert_eq!(values(layer.forward(view)), product(&weights, &x));
    let view = tensor(x.clone(), [4, k], &device).slice(burn::tensor::s![1..3, ..]);
    assert_eq!(values(layer.forward(view)), product(&weights, &x[k..3 * k]));
    let view = tensor(x[..k].to_vec(), [1, k], &device).expand([3, k]);
    assert_eq!(values(layer.forward(view)), product(&weights, &x[..k].repeat(3)));
}

#[test]
fn halves_give_halves_rounded_once() {
    let weights = weights("q4_0");
    let (layer, device, k) = (QLinear::new(weights.clone()), device(&weights), weights.k());
    let rounded = [
        (DType::F16, (|y| half::f16::from_f32(y).to_f32()) as fn(f32) -> f32),
        (DType::BF16, |y| half::bf16::from_f32(y).to_f32()),
    ];
    for (ty, round) in rounded {
        // What the layer sees.
        let x: Vec<f32> = noise(2 * k).into_iter().map(round).collect();
        let y = layer.forward(tensor(x.clone(), [2, k], &device).cast(ty));
        assert_eq!(y.dtype(), ty);
        let expected: Vec<f32> = product(&weights, &x).into_iter().map(round).collect();
        assert_eq!(values(y), expected, "{ty:?}");
    }
}

#[test]
fn layers_stand_between_other_operations() {
    let weights = weights("iq4_xs");
    let (device, k, n) = (device(&weights), weights.k(), weights.n());
    let bias = noise(n);
    let layer = QLinear::new(weights.clone()).with_bias(tensor(bias.clone(), [n], &device)).unwrap();
    let x = tensor(noise(2 * k), [2, k], &device);
    let shared = x.clone() * 2.0 - 0.5;
    let y = layer.forward(shared.clone()).clamp_min(0.0) * 3.0;
    // The input is read again after the layer took it.
    let again = values(shared);
    let scaled: Vec<f32> = noise(2 * k).into_iter().map(|x| x * 2.0 - 0.5).collect();
    assert_eq!(again, scaled);
    let expected = product(&weights, &scaled).into_iter().enumerate().map(|(i, y)| (y + bias[i % n]).max(0.0) * 3.0);
    let expected = TensorData::new(expected.collect::<Vec<f32>>(), [2, n]);
    y.into_data().assert_approx_eq::<f32>(&expected, Tolerance::relative(1e-6));
    assert_eq!(values(x), noise(2 * k));
}

#[test]
fn layers_with_one_input_together_are_each_alone() {
    let (first, other) = (weights("q4_k"), weights("q6_k"));
    let (device, k, n) = (device(&first), first.k(), first.n());
    assert_eq!(other.k(), k);
    let bias = tensor(noise(n), [n], &device);
    let layers = [QLinear::new(first.clone()), QLinear::new(first).with_bias(bias).unwrap(), QLinear::new(other)];
    let layers: Vec<&QLinear> = layers.iter().collect();
    let x = tensor(noise(2 * k), [2, k], &device);
    let together = QLinear::forward_many(&layers, x.clone());
    assert_eq!(together.len(), 3);
    for (layer, y) in layers.iter().zip(together) {
        assert_eq!(values(y), values(layer.forward(x.clone())));
    }
    assert!(QLinear::forward_many(&[], x).is_empty());
}

#[test]
fn no_rows_give_no_rows() {
    let weights = weights("q4_0");
    let (layer, device, k, n) = (QLinear::new(weights.clone()), device(&weights), weights.k(), weights.n());
    let y = layer.forward(Tensor::<2>::zeros([0, k], &device));
    assert_eq!(y.dims(), [0, n]);
}

/// The gradient of a dense layer of the dequantized weights: the same sums of f32 products, in another order.
#[test]
fn gradients_are_those_of_a_dense_layer() {
    let weights = weights("q4_0");
    let (device, n, k) = (device(&weights).autodiff(), weights.n(), weights.k());
    let rows = tensor(weights.dequantize(FloatType::F32).unwrap(), [n, k], &device);
    let dense = Linear { weight: Param::from_tensor(rows.transpose()), bias: None };
    let layer = QLinear::new(weights).with_arithmetic(Arithmetic::Float);
    let factors = tensor(noise(3 * n), [3, n], &device);
    let gradient = |forward: &dyn Fn(Tensor<2>) -> Tensor<2>| {
        let x = tensor(noise(3 * k), [3, k], &device).require_grad();
        let gradients = (forward(x.clone()) * factors.clone()).sum().backward();
        x.grad(&gradients).expect("a gradient of the input").into_data()
    };
    let found = gradient(&|x| layer.forward(x));
    let expected = gradient(&|x| dense.forward(x));
    // n terms, each off by 2^-24 of the largest, which no sum of them is much smaller than.
    found.assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(1e-4, 1e-4));
    // A factor of the products is one of the gradient.
    let scaled = QLinear::new(layer.weight().with_scale(&[0.25]).unwrap()).with_arithmetic(Arithmetic::Float);
    let found = gradient(&|x| scaled.forward(x) * 4.0);
    found.assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(1e-4, 1e-4));
}

/// Tokens and their experts of a stack.
const IDS: [[i32; 2]; 3] = [[1, 0], [1, 1], [0, 1]];

/// The stack of a fixture's first and second half, and its values.
fn experts() -> (QExperts, Vec<f32>) {
    let weights = weights("q4_0");
    let values = weights.dequantize(FloatType::F32).unwrap();
    (QExperts::new(weights, 2).unwrap(), values)
}

#[test]
fn experts_give_the_products_of_the_device_tensor() {
    let (experts, _) = experts();
    let (weights, device) = (experts.weight(), device(experts.weight()));
    let (k, n) = (experts.d_input(), experts.d_output());
    let routing = weights.device().routing(IDS.as_flattened(), 2, 2).unwrap();
    // Ids that the device has computed, of a wider type.
    let ids = (Tensor::<2, Int>::from_data(IDS, &device) + 5 - 5).cast(burn::tensor::IntDType::I64);
    for rows in [1, 2] {
        let x: Vec<f32> = noise(3 * rows * k).iter().map(|x| x * 2.0).collect();
        let expected = weights.matmul_experts(&x, &[3, rows, k], &routing, Arithmetic::Auto).unwrap();
        let y = experts.forward(tensor(noise(3 * rows * k), [3, rows, k], &device) * 2.0, ids.clone());
        assert_eq!((y.dims(), values(y)), ([3, 2, n], expected));
    }
    let none = experts.forward(Tensor::zeros([0, 1, k], &device), Tensor::zeros([0, 2], &device));
    assert_eq!(none.dims(), [0, 2, n]);
    let unknown = Tensor::<2, Int>::from_data([[0, 2], [-1, 1], [0, 0]], &device);
    let y = values(experts.forward(tensor(noise(3 * k), [3, 1, k], &device), unknown));
    let is_nan: Vec<bool> = y.chunks_exact(n).map(|row| row.iter().all(|y| y.is_nan())).collect();
    assert_eq!(is_nan, [false, true, true, false, false, false]);
}

/// Those of dense layers of the dequantized experts.
#[test]
fn gradients_of_experts_are_those_of_dense_layers() {
    let (experts, all) = experts();
    let (k, n, device) = (experts.d_input(), experts.d_output(), device(experts.weight()).autodiff());
    let scales = [0.5, 2.0];
    let scaled = QExperts::new(experts.weight().with_scale(&scales).unwrap(), 2).unwrap();
    let scaled = scaled.with_arithmetic(Arithmetic::Float);
    let factors = noise(6 * n);
    for rows in [1, 2] {
        let x = tensor(noise(3 * rows * k), [3, rows, k], &device).require_grad();
        let y = scaled.forward(x.clone(), Tensor::from_data(IDS, &device));
        let gradients = (y * tensor(factors.clone(), [3, 2, n], &device)).sum().backward();
        let found = values(x.grad(&gradients).expect("a gradient of the input"));
        // And the sums of the magnitudes.
        let mut expected = vec![(0.0f64, 0.0f64); 3 * rows * k];
        for (pair, &expert) in IDS.as_flattened().iter().enumerate() {
            for row in 0..n {
                let weights = &all[(expert as usize * n + row) * k..][..k];
                let factor = f64::from(factors[pair * n + row]) * scales[expert as usize] as f64;
                let of_pair = &mut expected[pair * rows / 2 * k..][..k];
                for ((sum, magnitude), &w) in of_pair.iter_mut().zip(weights) {
                    let term = factor * f64::from(w);
                    *sum += term;
                    *magnitude += term.abs();
                }
            }
        }
        // Some hundred f32 sums; on a GPU, Burn's product may round both operands to TF32, of eleven significant bits.
        let rounding = if cube_device().is_software() { 2f64.powi(-16) } else { 2f64.powi(-10) };
        for (found, (expected, magnitude)) in found.into_iter().zip(expected) {
            assert!((f64::from(found) - expected).abs() <= rounding * magnitude, "{found} for {expected}");
        }
    }
}

#[test]
fn embeddings_are_rows_of_the_dequantized_weights() {
    let weights = weights("q6_k");
    let (device, n, k) = (device(&weights), weights.n(), weights.k());
    let expected = weights.dequantize(FloatType::F32).unwrap();
    let row = |id: usize| expected[id * k..][..k].to_vec();
    let embedding = QEmbedding::new(weights);
    let ids = Tensor::<2, Int>::from_data([[1, 0], [n as i32 - 1, 1]], &device);
    let rows: Tensor<3> = embedding.forward(ids);
    assert_eq!(rows.dims(), [2, 2, k]);
    assert_eq!(values(rows), [row(1), row(0), row(n - 1), row(1)].concat());
    // Ids that name no row give the last.
    let rows: Tensor<2> = embedding.forward(Tensor::<1, Int>::from_data([n as i32, -1], &device));
    assert_eq!(values(rows), [row(n - 1), row(n - 1)].concat());
}

#[test]
fn embeddings_round_once_to_their_type() {
    let weights = weights("q4_0");
    let (device, k) = (device(&weights), weights.k());
    let expected = weights.dequantize(FloatType::F16).unwrap();
    let embedding = QEmbedding::new(weights).with_type(FloatType::F16).unwrap();
    let rows: Tensor<2> = embedding.forward(Tensor::<1, Int>::from_data([1], &device));
    assert_eq!(rows.dtype(), DType::F16);
    assert_eq!(values(rows), expected[k..2 * k]);
}

#[test]
fn what_does_not_fit_is_an_error_that_says_so() {
    let weights = weights("q4_0");
    let (device, k, n) = (device(&weights), weights.k(), weights.n());
    let layer = QLinear::new(weights.clone());
    let error = layer.try_forward(Tensor::<2>::zeros([1, k + 1], &device)).unwrap_err();
    assert!(
        matches!(&error, Error::Activations { shape, k: wanted } if *shape == [1, k + 1] && *wanted == k),
        "{error}"
    );
    let error = layer.with_bias(Tensor::<1>::zeros([n + 1], &device)).unwrap_err();
    assert!(matches!(&error, Error::Activations { shape, .. } if *shape == [n + 1]), "{error}");
    assert!(matches!(QExperts::new(weights.clone(), n + 1), Err(Error::Experts { .. })));
    let experts = QExperts::new(weights.clone(), 1).unwrap();
    let ids = || Tensor::<2, Int>::zeros([2, 3], &device);
    let error = experts.try_forward(Tensor::zeros([2, 2, k], &device), ids()).unwrap_err();
    assert!(matches!(error, Error::Routed { tokens: 2, slots: 3, .. }), "{error}");
    let error = experts.try_forward(Tensor::zeros([2, 1, k + 1], &device), ids()).unwrap_err();
    assert!(matches!(error, Error::Activations { .. }), "{error}");
    let error = QEmbedding::new(weights).try_forward::<1, 3>(Tensor::<1, Int>::zeros([2], &device)).unwrap_err();
    assert!(matches!(error, Error::Rank { rank: 3, wanted: 2 }), "{error}");
}

#[test]
fn modules_show_their_format_and_bytes_and_name_their_device() {
    #[derive(Module, Debug)]
    struct Model {
        embedding: QEmbedding,
        head: QLinear,
    }

    let weights = weights("q4_k");
    let device = device(&weights);
    let bytes = weights.device_bytes();
    let model = Model { embedding: QEmbedding::new(weights.clone()), head: QLinear::new(weights.clone()) };
    assert_eq!(model.devices(), std::slice::from_ref(&device));
    let shown = model.to_string();
    let line = format!("format: Q4_K, bytes: {}", bytes);
    assert_eq!(shown.matches(&line).count(), 2, "{shown}");
    // Weights that are there already stay where they are, and clones share them.
    let moved = model.clone().to_device(&device);
    assert_eq!(moved.head.weight().n(), weights.n());
    assert_eq!(values(moved.head.forward(tensor(noise(weights.k()), [1, weights.k()], &device))).len(), weights.n());
    assert_eq!(weights.ty(), GgmlType::Q4K);
}
