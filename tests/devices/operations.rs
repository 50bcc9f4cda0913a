//! Every operation on every format.

use std::num::NonZeroU32;

use cube_gguf::gguf::Endian;
use cube_gguf::internals::{Blueprint, Hardware, Problem, Reduction, has_buffers, heuristic, matmul_by};
use cube_gguf::tune::{ActivationType, Settings};
use cube_gguf::{
    Accuracy, Activations, Arithmetic, Backend, CubeDevice, DeviceTensor, Error, FloatType, GgmlType, Routing,
};
use half::{bf16, f16};

use crate::fixtures::{self, Case, Fixture, Quantized, assert_bytes, assert_same, compares, noise};
use crate::{Check, Formats};

/// A scale, a scale and a min in super-blocks, two scales, a codebook, plain floats.
pub const VARIED: &[GgmlType] = &[GgmlType::Q4_0, GgmlType::Q4K, GgmlType::Q6K, GgmlType::IQ3S, GgmlType::F16];

/// Of these those that settings bear on in another way: a span, a min, a codebook, floats.
const TUNED: &[GgmlType] = &[GgmlType::Q4_0, GgmlType::Q4K, GgmlType::IQ3S, GgmlType::F16];

/// A min in super-blocks, a codebook in shared memory, one that stays in registers, floats: all that the first row of an expert
/// bears on.
const STACKED: &[GgmlType] = &[GgmlType::Q4K, GgmlType::IQ3S, GgmlType::MXFP4, GgmlType::F16];

/// Codes and floats: all that the length of a row bears on.
const LONG: &[GgmlType] = &[GgmlType::Q4_0, GgmlType::F16];

/// Without and with a codebook: all that bears on what a cube stages.
const STAGED: &[GgmlType] = &[GgmlType::Q4_0, GgmlType::IQ3S];

/// One that all others quantize as, as far as loads and errors go.
const QUANTIZED: Formats = Formats::Of(|ty| ty == GgmlType::Q4_0);

/// Those whose kernels mind importances.
const WEIGHTED: Formats = Formats::Of(|ty| {
    use GgmlType::{IQ1M, IQ2S, IQ3S, IQ3XXS, IQ4NL, IQ4XS, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K};
    let may = matches!(ty, Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q2K | Q3K | Q4K | Q5K | Q6K | IQ4NL | IQ4XS);
    may || matches!(ty, IQ1M | IQ2S | IQ3XXS | IQ3S) || NEEDY.contains(&ty)
});

/// Those whose kernels need importances.
const NEEDY: &[GgmlType] = &[GgmlType::IQ1S, GgmlType::IQ2XXS, GgmlType::IQ2XS];

pub const CHECKS: &[(&str, Formats, Check)] = &[
    ("gives_its_bytes_back", Formats::All, gives_its_bytes_back),
    ("dequantizes_as_the_reference", Formats::All, dequantizes_as_the_reference),
    ("dequantizes_big_endian", Formats::All, dequantizes_big_endian),
    ("rounds_once_to_f16_and_bf16", Formats::All, rounds_once_to_f16_and_bf16),
    ("gathers_rows", Formats::All, gathers_rows),
    ("quantizes_as_ggml", Formats::Of(|ty| DeviceTensor::quantizes(ty) && !NEEDY.contains(&ty)), quantizes_as_ggml),
    ("quantizes_by_importance_as_ggml", WEIGHTED, quantizes_by_importance_as_ggml),
    ("quantizes_halves_and_strided_values", QUANTIZED, quantizes_halves_and_strided_values),
    ("refuses_to_quantize", QUANTIZED, refuses_to_quantize),
    ("multiplies_one_token", Formats::All, multiplies_one_token),
    ("multiplies_few_tokens", Formats::All, multiplies_few_tokens),
    ("multiplies_as_many_tokens_as_a_launch", Formats::Some(VARIED), multiplies_as_many_tokens_as_a_launch),
    ("multiplies_many_tokens", Formats::All, multiplies_many_tokens),
    ("multiplies_many_tokens_of_long_rows", Formats::Some(LONG), multiplies_many_tokens_of_long_rows),
    ("multiplies_many_by_the_largest_tiles", Formats::Some(LONG), multiplies_many_by_the_largest_tiles),
    ("multiplies_strided_and_half_activations", Formats::Some(VARIED), multiplies_strided_and_half_activations),
    ("multiplies_odd_shapes", Formats::All, multiplies_odd_shapes),
    ("multiplies_through_shared_memory", Formats::Some(VARIED), multiplies_through_shared_memory),
    ("multiplies_by_any_settings", Formats::Compared(TUNED), multiplies_by_any_settings),
    ("multiplies_by_more_settings", Formats::Some(&[]), multiplies_by_more_settings),
    (
        "multiplies_by_what_a_cube_stages_in_rounds",
        Formats::Compared(STAGED),
        multiplies_by_what_a_cube_stages_in_rounds,
    ),
    ("multiplies_several_matrices_at_once", Formats::Some(VARIED), multiplies_several_matrices_at_once),
    ("multiplies_non_finite_activations", Formats::All, multiplies_non_finite_activations),
    ("multiplies_by_experts", Formats::Some(STACKED), multiplies_by_experts),
    ("scales_and_biases_products", Formats::Some(LONG), scales_and_biases_products),
    ("multiplies_by_experts_that_are_not_there", Formats::Some(LONG), multiplies_by_experts_that_are_not_there),
];

fn upload(device: &CubeDevice, fixture: &Fixture, case: &Case) -> DeviceTensor {
    DeviceTensor::from_gguf(device, fixture.ty, case.n, case.k, &case.data, case.endian).unwrap()
}

fn gives_its_bytes_back(device: &CubeDevice, fixture: &Fixture) {
    for case in &fixture.tensors {
        assert_bytes(&upload(device, fixture, case).data().unwrap(), &case.data, &case.name);
    }
    // Any bytes at all, in shapes that end inside words and vectors: one block, odd counts of blocks and rows.
    let (size, bytes) = (fixture.ty.block_size(), fixture.ty.block_bytes());
    for (n, blocks) in [(1, 1), (3, 1), (2, 3), (5, 7), (7, 20), (1, 33)] {
        let data: Vec<u8> =
            noise((n * blocks) as u64, n * blocks * bytes).iter().map(|x| (x * 128.0) as i8 as u8).collect();
        let tensor = DeviceTensor::from_gguf(device, fixture.ty, n, blocks * size, &data, Endian::Little).unwrap();
        assert_bytes(&tensor.data().unwrap(), &data, &format!("{n} rows of {blocks} blocks"));
    }
}

fn dequantizes_as_the_reference(device: &CubeDevice, fixture: &Fixture) {
    for case in &fixture.tensors {
        let tensor = upload(device, fixture, case);
        let values = tensor.dequantize(FloatType::F32).unwrap();
        assert_same(&values, &case.expected, &case.name);
        let last = tensor.dequantize_rows_on_device(case.n - 1, 1, FloatType::F32).unwrap();
        let last = FloatType::F32.to_f32(&device.client().read_one(last).unwrap(), case.k);
        assert_same(&last, case.row(case.n - 1), &case.name);
        let past = tensor.dequantize_rows_on_device(case.n, 1, FloatType::F32);
        assert!(matches!(past, Err(Error::RowOutOfRange { .. })));
    }
}

fn dequantizes_big_endian(device: &CubeDevice, fixture: &Fixture) {
    for case in &fixture.big_endian {
        let values = upload(device, fixture, case).dequantize(FloatType::F32).unwrap();
        assert_same(&values, &case.expected, &case.name);
    }
}

fn rounds_once_to_f16_and_bf16(device: &CubeDevice, fixture: &Fixture) {
    for case in &fixture.tensors {
        let tensor = upload(device, fixture, case);
        let expected: Vec<f32> = case.expected.iter().map(|&x| f16::from_f32(x).to_f32()).collect();
        assert_same(&tensor.dequantize(FloatType::F16).unwrap(), &expected, "f16");
        let expected: Vec<f32> = case.expected.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
        assert_same(&tensor.dequantize(FloatType::BF16).unwrap(), &expected, "bf16");
    }
}

fn gathers_rows(device: &CubeDevice, fixture: &Fixture) {
    let case = fixture.case("random");
    let tensor = upload(device, fixture, case);
    let ids = [5i64, 0, 3, 3, 1];
    let expected: Vec<f32> = ids.iter().flat_map(|&id| case.row(id as usize)).copied().collect();
    assert_same(&tensor.rows(&ids, FloatType::F32).unwrap(), &expected, "i64 ids");
    assert_same(&tensor.rows(&ids.map(|id| id as u32), FloatType::F32).unwrap(), &expected, "u32 ids");
    let halves: Vec<f32> = expected.iter().map(|&x| f16::from_f32(x).to_f32()).collect();
    assert_same(&tensor.rows(&ids, FloatType::F16).unwrap(), &halves, "f16 rows");
    assert!(tensor.rows::<u32>(&[], FloatType::F32).unwrap().is_empty());
    for id in [case.n as i64, -1, i64::MAX, u32::MAX as i64 + 1] {
        let error = tensor.rows(&[0, id], FloatType::F32).unwrap_err();
        assert!(matches!(error, Error::RowOutOfRange { id: wrong, .. } if wrong == id), "{error}");
    }
}

/// The bytes of ggml's reference quantizer, for rows of whole words and vectors and for rows that end inside of them.
fn quantizes_as_ggml(device: &CubeDevice, fixture: &Fixture) {
    let ty = fixture.ty;
    for Quantized { source, blocks: quantized, .. } in fixtures::quantized(ty) {
        let (n, k, quantized) = (source.n, source.k, quantized.unwrap());
        let tensor = DeviceTensor::quantize(device, ty, n, k, &source.expected).unwrap();
        assert_bytes(&tensor.data().unwrap(), &quantized, &source.name);

        let (short, row_bytes) = (ty.block_size() * (k / ty.block_size()).min(5), quantized.len() / n);
        let values: Vec<f32> = (0..n).flat_map(|row| &source.row(row)[..short]).copied().collect();
        let bytes = ty.row_bytes(short).unwrap();
        let expected: Vec<u8> = quantized.chunks_exact(row_bytes).flat_map(|row| &row[..bytes]).copied().collect();
        let tensor = DeviceTensor::quantize(device, ty, n, short, &values).unwrap();
        assert_bytes(&tensor.data().unwrap(), &expected, &format!("the first {short} of {}", source.name));
    }
}

/// The bytes of ggml's quantizers by importance, of matrices in one and of stacks whose matrices have importances of their own.
fn quantizes_by_importance_as_ggml(device: &CubeDevice, fixture: &Fixture) {
    let ty = fixture.ty;
    let importance = fixtures::importance();
    for Quantized { source, weighted, .. } in fixtures::quantized(ty) {
        let (n, k, weighted) = (source.n, source.k, weighted.unwrap());
        let quantize = |n, values: &[f32], importance: &[f32]| {
            DeviceTensor::quantize_by_importance(device, ty, n, k, values, importance).unwrap().data().unwrap()
        };
        assert_bytes(&quantize(n, &source.expected, &importance), &weighted, &source.name);

        let others: Vec<f32> = importance.iter().rev().copied().collect();
        let stack = quantize(2 * n, &source.expected.repeat(2), &[&*others, &*importance].concat());
        assert_bytes(&stack[weighted.len()..], &weighted, &format!("{}, the second of two", source.name));
        assert_bytes(&stack[..weighted.len()], &quantize(n, &source.expected, &others), &source.name);

        let nothing = quantize(n, &source.expected, &vec![0.0; k]);
        let tensor = DeviceTensor::from_gguf(device, ty, n, k, &nothing, Endian::Little).unwrap();
        assert!(!compares() || tensor.dequantize(FloatType::F32).unwrap().iter().all(|value| value.is_finite()));
    }
}

/// Values on the device of any float type and any strides give the blocks of the same values in f32 and in a row.
fn quantizes_halves_and_strided_values(device: &CubeDevice, fixture: &Fixture) {
    let (ty, client) = (fixture.ty, device.client());
    let (n, k) = (3, 5 * ty.block_size());
    let rounded: Vec<f16> = noise(5, n * k).into_iter().map(f16::from_f32).collect();
    let exact: Vec<f32> = rounded.iter().map(|x| x.to_f32()).collect();
    let expected = DeviceTensor::quantize(device, ty, n, k, &exact).unwrap().data().unwrap();
    let check = |handle, float, strides| {
        let x = Activations::new(handle, float, vec![n, k], strides).unwrap();
        let tensor =
            DeviceTensor::quantize_on_device(device, ty, &x).unwrap_or_else(|error| panic!("{float:?}: {error}"));
        assert_bytes(&tensor.data().unwrap(), &expected, &format!("{float:?}"));
    };
    let by_columns: Vec<f32> = (0..n * k).map(|i| exact[i % n * k + i / n]).collect();
    check(client.create_from_slice(bytemuck::cast_slice(&by_columns)), FloatType::F32, vec![1, n]);
    check(client.create_from_slice(bytemuck::cast_slice(&exact)), FloatType::F32, vec![k, 1]);
    if has_buffers(client.features(), FloatType::F16) {
        let bytes: Vec<u8> = rounded.iter().flat_map(|x| x.to_le_bytes()).collect();
        check(client.create_from_slice(&bytes), FloatType::F16, vec![k, 1]);
    }
}

fn refuses_to_quantize(device: &CubeDevice, fixture: &Fixture) {
    let (ty, n) = (fixture.ty, 4);
    let k = 3 * ty.block_size();
    let values = noise(6, n * k);
    for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut values = values.clone();
        values[3 * k + 1] = odd;
        values[2 * k - 1] = odd;
        let result = DeviceTensor::quantize(device, ty, n, k, &values);
        assert!(!compares() || matches!(result, Err(Error::NotFinite { row: 1 })), "{odd}: {result:?}");
    }
    // The kernels of super-blocks look for themselves, those with a grid, too.
    for ty in [GgmlType::Q4K, GgmlType::IQ3S] {
        let mut values = noise(7, 4 * 256);
        values[3 * 256 - 1] = f32::NAN;
        let result = DeviceTensor::quantize(device, ty, 4, 256, &values);
        assert!(!compares() || matches!(result, Err(Error::NotFinite { row: 2 })), "{ty}: {result:?}");
    }
    let refused = |n, k| DeviceTensor::quantize(device, ty, n, k, &values).unwrap_err();
    assert!(matches!(refused(n, k + ty.block_size()), Error::Values { .. }));
    assert!(matches!(refused(n * k, 1), Error::Values { .. }));
    assert!(matches!(refused(usize::MAX, k), Error::Values { .. }));
    let other = DeviceTensor::quantize(device, GgmlType::I32, n, k, &values);
    assert!(matches!(other, Err(Error::NoQuantizer { .. })));
    for &ty in NEEDY {
        let alone = DeviceTensor::quantize(device, ty, 1, 256, &values[..256]);
        assert!(matches!(alone, Err(Error::NeedsImportance { ty: needy }) if needy == ty), "{alone:?}");
    }

    let by = |ty, importance: &[f32]| {
        DeviceTensor::quantize_by_importance(device, ty, n, k, &values, importance).unwrap_err()
    };
    assert!(matches!(by(GgmlType::Q8_0, &vec![1.0; k + 1]), Error::Importances { .. }));
    assert!(matches!(by(GgmlType::Q8_0, &[]), Error::Importances { .. }));
    assert!(matches!(by(GgmlType::Q8_0, &vec![-1.0; k]), Error::Importance { value: -1.0 }));
    assert!(matches!(by(GgmlType::Q8_0, &vec![f32::NAN; k]), Error::Importance { .. }));
}

/// Holds `actual`, `[tokens, n]`, to the stated bound around an f64 product of the expected values.
#[track_caller]
fn assert_product(
    tensor: &DeviceTensor,
    case: &Case,
    x: &[f32],
    actual: &[f32],
    arithmetic: Arithmetic,
    rounding: f64,
) {
    assert_product_is(tensor.accuracy(x.len() / case.k, arithmetic), case, x, actual, rounding);
}

#[track_caller]
fn assert_product_is(product: Accuracy, case: &Case, x: &[f32], actual: &[f32], rounding: f64) {
    let tokens = x.len() / case.k;
    assert_eq!(actual.len(), tokens * case.n);
    if !compares() {
        return;
    }
    for (t, x) in x.chunks_exact(case.k).enumerate() {
        for row in 0..case.n {
            let weights = case.row(row);
            let exact: f64 = weights.iter().zip(x).map(|(&w, &x)| w as f64 * x as f64).sum();
            let actual = actual[t * case.n + row] as f64;
            let bound = product.error_bound(weights, x) + rounding * exact.abs();
            let error = (actual - exact).abs();
            assert!(
                error <= bound,
                "{} {product:?} token {t} of {tokens}, row {row}: {actual} for {exact}, off by {error}, bound {bound}",
                case.name
            );
        }
    }
}

/// `values` on the device, as activations of this shape.
fn on_device(device: &CubeDevice, values: &[f32], shape: &[usize]) -> Activations {
    let values = device.client().create_from_slice(bytemuck::cast_slice(values));
    Activations::contiguous(values, FloatType::F32, shape.to_vec()).unwrap()
}

/// The product by a kernel of choice.
fn product_by(device: &CubeDevice, tensor: &DeviceTensor, x: &Activations, blueprint: Blueprint) -> Vec<f32> {
    let y = matmul_by(&[tensor], x, blueprint).unwrap().remove(0);
    FloatType::F32.to_f32(&device.client().read_one(y).unwrap(), x.tokens() * tensor.n())
}

fn multiplies_one_token(device: &CubeDevice, fixture: &Fixture) {
    multiplies_again(device, fixture, &[1]);
}

/// By the kernel of four tokens, of which one is not there.
fn multiplies_few_tokens(device: &CubeDevice, fixture: &Fixture) {
    multiplies_again(device, fixture, &[3]);
}

/// By the kernels of two and of eight tokens.
fn multiplies_as_many_tokens_as_a_launch(device: &CubeDevice, fixture: &Fixture) {
    multiplies_again(device, fixture, &[2, 5, 8]);
}

/// Within the bound in both arithmetics, and the same bits for the same input.
fn multiplies_again(device: &CubeDevice, fixture: &Fixture, counts: &[usize]) {
    for name in ["quantized", "random"] {
        let case = fixture.case(name);
        let tensor = upload(device, fixture, case);
        for &tokens in counts {
            let x = noise(tokens as u64, tokens * case.k);
            for arithmetic in [Arithmetic::Auto, Arithmetic::Float] {
                let y = tensor.matmul(&x, &[tokens, case.k], arithmetic).unwrap();
                assert_product(&tensor, case, &x, &y, arithmetic, 0.0);
                let again = tensor.matmul(&x, &[tokens, case.k], arithmetic).unwrap();
                assert_same(&again, &y, "the same input gives the same bits");
            }
        }
    }
}

fn multiplies_many_tokens(device: &CubeDevice, fixture: &Fixture) {
    let case = fixture.case("quantized");
    let tensor = upload(device, fixture, case);
    // The last ones are past a tile, and past the largest half.
    for (tokens, scale) in [(9, 1.0), (17, 1.0), (64, 1.0), (130, 1e6)] {
        let x: Vec<f32> = noise(tokens as u64, tokens * case.k).iter().map(|x| x * scale).collect();
        for arithmetic in [Arithmetic::Auto, Arithmetic::Int8, Arithmetic::Float] {
            let y = tensor.matmul(&x, &[tokens, case.k], arithmetic).unwrap();
            assert_product(&tensor, case, &x, &y, arithmetic, 0.0);
        }
    }
}

fn multiplies_strided_and_half_activations(device: &CubeDevice, fixture: &Fixture) {
    let case = fixture.case("quantized");
    let tensor = upload(device, fixture, case);
    let client = device.client();
    let k = case.k;
    // [3, 2, 2, k] out of a larger buffer: swapped batch dimensions, gaps, and columns two apart.
    let (shape, strides) = (vec![3, 2, 2, k], vec![2 * k, 24 * k, 7 * k, 2]);
    let len = 2 * 2 * k + 24 * k + 7 * k + 2 * k;
    let values = noise(7, len);
    let mut dense = Vec::new();
    for token in 0..12 {
        let start = token / 4 * strides[0] + token / 2 % 2 * strides[1] + token % 2 * strides[2];
        dense.extend((0..k).map(|column| values[start + column * strides[3]]));
    }
    for ty in [FloatType::F32, FloatType::F16, FloatType::BF16] {
        if !has_buffers(client.features(), ty) {
            continue;
        }
        let (bytes, _, rounding) = stored(&values, ty);
        let (_, x, _) = stored(&dense, ty);
        let handle = client.create_from_slice(&bytes);
        let activations = Activations::new(handle, ty, shape.clone(), strides.clone()).unwrap();
        for arithmetic in [Arithmetic::Int8, Arithmetic::Float] {
            let y = tensor.matmul_on_device(&activations, arithmetic).unwrap();
            let y = ty.to_f32(&client.read_one(y).unwrap(), 12 * case.n);
            // The output is rounded to its type once more, from a sum that may be off by the bound.
            assert_product(&tensor, case, &x, &y, arithmetic, 2.0 * rounding);
        }
    }
}

/// Values as bytes of a type, what these are worth, and the largest relative error of one.
fn stored(values: &[f32], ty: FloatType) -> (Vec<u8>, Vec<f32>, f64) {
    let bytes: Vec<u8> = match ty {
        FloatType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        FloatType::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        FloatType::BF16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
    };
    let rounding = match ty {
        FloatType::F32 => 0.0,
        FloatType::F16 => 2f64.powi(-11),
        FloatType::BF16 => 2f64.powi(-8),
    };
    let rounded = ty.to_f32(&bytes, values.len());
    (bytes, rounded, rounding)
}

/// Few rows of weights that are long: cubes share the depth, in parts of different lengths.
fn multiplies_many_tokens_of_long_rows(device: &CubeDevice, fixture: &Fixture) {
    let case = fixture.case("quantized").repeated(5, 4864);
    let tensor = upload(device, fixture, &case);
    let client = device.client();
    for (tokens, ty) in [(17, FloatType::F16), (70, FloatType::BF16), (130, FloatType::F32)] {
        if !has_buffers(client.features(), ty) {
            continue;
        }
        let (bytes, x, rounding) = stored(&noise(tokens as u64, tokens * case.k), ty);
        let x_on_device = Activations::contiguous(client.create_from_slice(&bytes), ty, vec![tokens, case.k]).unwrap();
        let y = tensor.matmul_on_device(&x_on_device, Arithmetic::Float).unwrap();
        let y = ty.to_f32(&client.read_one(y).unwrap(), tokens * case.n);
        assert_product(&tensor, &case, &x, &y, Arithmetic::Float, 2.0 * rounding);
    }
}

/// As many rows as fill all cores with tiles of 128 x 256 values of the result, and with half as many. Warpgroups have such tiles;
/// on other devices the test has nothing to show.
fn multiplies_many_by_the_largest_tiles(device: &CubeDevice, fixture: &Fixture) {
    let Some(cores) = Hardware::of(&device.client()).cores.filter(|_| device.backend() == Backend::Cuda) else {
        return;
    };
    let tokens = 300;
    for rows in [128, 64] {
        let case = fixture.case("quantized").repeated(cores as usize / 2 * rows, 640);
        let x = noise(rows as u64, tokens * case.k);
        let y = upload(device, fixture, &case).matmul(&x, &[tokens, case.k], Arithmetic::Float).unwrap();
        // The first and the last rows of some tiles, and all of the last.
        let seen: Vec<usize> = (0..case.n).filter(|row| (row + 1) % 512 < 2 || row + rows > case.n).collect();
        let of_seen = y.chunks_exact(case.n).flat_map(|y| seen.iter().map(|&row| y[row])).collect::<Vec<_>>();
        assert_product_is(Accuracy::MatrixUnits, &case.rows(&seen), &x, &of_seen, 0.0);
    }
}

/// A stack of experts that share no row in the same place.
fn stacked(fixture: &Fixture, experts: usize) -> (Case, usize) {
    let whole = fixture.case("quantized");
    let rows = whole.n + 1;
    (whole.repeated(experts * rows, whole.k), rows)
}

/// The experts of a token: those of other tokens are others, and expert 2 has none.
fn chosen(token: usize, slots: usize) -> impl Iterator<Item = u32> {
    (0..slots).map(move |slot| [0, 3, 1, 3, 3][(token * token + slot * 2) % 5])
}

/// Pair by pair, and in tiles of an expert's tokens: some experts have several tiles, one of them has none.
fn multiplies_by_experts(device: &CubeDevice, fixture: &Fixture) {
    let (case, rows) = stacked(fixture, 4);
    let tensor = upload(device, fixture, &case);
    let taller = upload(device, fixture, &case.repeated(4 * (rows + 2), case.k));
    for (tokens, slots) in [(1, 3), (5, 2), (40, 3)] {
        let ids: Vec<u32> = (0..tokens).flat_map(|token| chosen(token, slots)).collect();
        let routing = device.routing(&ids, slots, 4).unwrap();
        // One row of activations for all experts of a token, as a layer's up has it, and one for each, as its down.
        for shape in [[tokens, 1, case.k], [tokens, slots, case.k]] {
            let x = noise(tokens as u64, shape.iter().product());
            for arithmetic in [Arithmetic::Auto, Arithmetic::Float] {
                let y = tensor.matmul_experts(&x, &shape, &routing, arithmetic).unwrap();
                let product = tensor.accuracy(tokens, arithmetic);
                let assert_pairs = |y: &[f32]| {
                    for (pair, (&id, y)) in ids.iter().zip(y.chunks_exact(rows)).enumerate() {
                        let of_expert: Vec<usize> = (0..rows).map(|row| id as usize * rows + row).collect();
                        let x = &x[pair * shape[1] / slots * case.k..][..case.k];
                        assert_product_is(product, &case.rows(&of_expert), x, y, 0.0);
                    }
                };
                assert_pairs(&y);
                let again = tensor.matmul_experts(&x, &shape, &routing, arithmetic).unwrap();
                assert_same(&again, &y, "the same input gives the same bits");
                // Beside a stack of the same format that has more rows, and another of as many.
                let client = device.client();
                let on_device = on_device(device, &x, &shape);
                let stacks = [&tensor, &taller, &tensor];
                let many = DeviceTensor::matmul_experts_many_on_device(&stacks, &on_device, &routing, arithmetic);
                let many = many.unwrap();
                assert_eq!(many.len(), 3);
                for i in [0, 2] {
                    assert_pairs(&FloatType::F32.to_f32(&client.read_one(many[i].clone()).unwrap(), y.len()));
                }
            }
        }
    }
}

/// A factor of each expert and a bias of each row, in products of the whole stack and of some experts, alone and beside a matrix
/// that has none.
fn scales_and_biases_products(device: &CubeDevice, fixture: &Fixture) {
    let (case, rows) = stacked(fixture, 4);
    let plain = upload(device, fixture, &case);
    let (scales, bias) = ([0.5f32, -2.0, 3.0, 0.0], noise(3, case.n));
    let tensor = plain.with_scale(&scales).unwrap().with_bias(&bias).unwrap();
    let client = device.client();
    let scaled = |row: usize| case.row(row).iter().map(move |w| w * scales[row / rows]);
    let all: Vec<f32> = (0..case.n).flat_map(scaled).collect();
    assert_same(&tensor.dequantize(FloatType::F32).unwrap(), &all, "all values");
    let halves: Vec<f32> = all.iter().map(|&w| f16::from_f32(w).to_f32()).collect();
    assert_same(&tensor.dequantize(FloatType::F16).unwrap(), &halves, "all values as halves");
    let ids = [case.n - 1, 0, rows].map(|id| id as i64);
    let some: Vec<f32> = ids.iter().flat_map(|&id| scaled(id as usize)).collect();
    assert_same(&tensor.rows(&ids, FloatType::F32).unwrap(), &some, "some rows");
    for tokens in [3, 40] {
        let x = noise(tokens as u64, tokens * case.k);
        let accuracy = tensor.accuracy(tokens, Arithmetic::Auto);
        let assert_row = |y: f32, row: usize, x: &[f32]| {
            let (scale, bias) = (scales[row / rows] as f64, bias[row] as f64);
            let exact: f64 = case.row(row).iter().zip(x).map(|(&w, &x)| w as f64 * x as f64).sum();
            // The scaled sum and the product are rounded once each.
            let rounding = 2f64.powi(-23) * ((scale * exact).abs() + bias.abs());
            let bound = accuracy.error_bound(case.row(row), x) * scale.abs() + rounding;
            let (product, off) = (exact * scale + bias, (y as f64 - exact * scale - bias).abs());
            assert!(!compares() || off <= bound, "{tokens} tokens, row {row}: {y} for {product}, bound {bound}");
        };
        let on_device = on_device(device, &x, &[tokens, case.k]);
        let together = DeviceTensor::matmul_many_on_device(&[&plain, &tensor], &on_device, Arithmetic::Auto).unwrap();
        let [alone, whole] = [0, 1].map(|i| client.read_one(together[i].clone()).unwrap());
        let expected = plain.matmul(&x, &[tokens, case.k], Arithmetic::Auto).unwrap();
        assert_same(&FloatType::F32.to_f32(&alone, tokens * case.n), &expected, "beside one with a factor");
        let whole = FloatType::F32.to_f32(&whole, tokens * case.n);
        whole.iter().enumerate().for_each(|(i, &y)| assert_row(y, i % case.n, &x[i / case.n * case.k..][..case.k]));
        let ids: Vec<u32> = (0..tokens).flat_map(|token| chosen(token, 2)).collect();
        let routing = device.routing(&ids, 2, 4).unwrap();
        let y = tensor.matmul_experts(&x, &[tokens, case.k], &routing, Arithmetic::Auto).unwrap();
        for (i, &y) in y.iter().enumerate() {
            let row = ids[i / rows] as usize * rows + i % rows;
            assert_row(y, row, &x[i / rows / 2 * case.k..][..case.k]);
        }
    }
    for wrong in [0, 3, case.n + 1] {
        let values = vec![1.0; wrong];
        for error in [plain.with_scale(&values).unwrap_err(), plain.with_bias(&values).unwrap_err()] {
            assert!(matches!(error, Error::Companion { values, .. } if values == wrong), "{error}");
        }
    }
}

/// A kernel has no error to return: rows of ids on the device that name no expert are NaN, and others as without them.
fn multiplies_by_experts_that_are_not_there(device: &CubeDevice, fixture: &Fixture) {
    let (case, rows) = stacked(fixture, 4);
    let tensor = upload(device, fixture, &case);
    for tokens in [3, 40] {
        let known: Vec<u32> = (0..tokens).flat_map(|token| chosen(token, 2)).collect();
        let unknown =
            |pair: usize| [(1, 4), (4, u32::MAX)].iter().find(|(place, _)| *place == pair % 6).map(|&(_, id)| id);
        let ids: Vec<u32> = known.iter().enumerate().map(|(pair, &id)| unknown(pair).unwrap_or(id)).collect();
        let ids = device.client().create_from_slice(bytemuck::cast_slice(&ids));
        let routing = Routing::new(ids, tokens, 2, 4).unwrap();
        let x = noise(5, tokens * case.k);
        let multiplied =
            |routing: &Routing| tensor.matmul_experts(&x, &[tokens, case.k], routing, Arithmetic::Auto).unwrap();
        let mut expected = multiplied(&device.routing(&known, 2, 4).unwrap());
        for (_, row) in expected.chunks_exact_mut(rows).enumerate().filter(|&(pair, _)| unknown(pair).is_some()) {
            row.fill(f32::NAN);
        }
        assert_same(&multiplied(&routing), &expected, &format!("{tokens} tokens"));
    }
}

fn multiplies_odd_shapes(device: &CubeDevice, fixture: &Fixture) {
    let whole = fixture.case("quantized");
    let (size, bytes) = (fixture.ty.block_size(), fixture.ty.block_bytes());
    // One block and one row; then rows of one block, their number no multiple of anything.
    for n in [1, 5] {
        let case = Case {
            name: format!("{n} x {size}"),
            endian: Endian::Little,
            n,
            k: size,
            data: whole.data[..n * bytes].to_vec(),
            expected: whole.expected[..n * size].to_vec(),
        };
        let tensor = upload(device, fixture, &case);
        let x = noise(3, 2 * size);
        let y = tensor.matmul(&x, &[2, size], Arithmetic::Auto).unwrap();
        assert_product(&tensor, &case, &x, &y, Arithmetic::Auto, 0.0);
        let y = tensor.matmul(&x[..size], &[size], Arithmetic::Float).unwrap();
        assert_product(&tensor, &case, &x[..size], &y, Arithmetic::Float, 0.0);
        assert!(tensor.matmul(&[], &[0, size], Arithmetic::Auto).unwrap().is_empty());
        assert!(tensor.matmul(&[], &[4, 0, size], Arithmetic::Float).unwrap().is_empty());
        for shape in [vec![2, size + 1], vec![0, size + 1], vec![]] {
            let x = vec![0.0; shape.iter().product()];
            let error = tensor.matmul(&x, &shape, Arithmetic::Auto).unwrap_err();
            assert!(matches!(error, Error::Activations { .. }), "{error}");
        }
    }
}

/// The reduction of devices without plane operations, on all of them, and where a row has several planes: over two waves of lanes,
/// each of which has values.
fn multiplies_through_shared_memory(device: &CubeDevice, fixture: &Fixture) {
    let client = device.client();
    let hardware = &client.properties().hardware;
    let lanes = match hardware.num_cpu_cores {
        Some(_) => 4,
        None => (2 * hardware.plane_size_max).min(hardware.max_units_per_cube),
    };
    // More cubes than one: some of them may run the waves in another order.
    let case = fixture.case("quantized").repeated(6, (lanes as usize + 1) * 32);
    let tensor = upload(device, fixture, &case);
    let (tokens, dense) = (2, tensor.accuracy(1, Arithmetic::Int8) == Accuracy::Float);
    let values = noise(13, tokens * case.k);
    let x = on_device(device, &values, &[tokens, case.k]);
    let (operand, product) =
        if dense { (ActivationType::Float, Accuracy::Float) } else { (ActivationType::Int8, Accuracy::INT8) };
    let blueprint = Blueprint {
        ty: fixture.ty,
        operand,
        reduction: Reduction::Shared,
        span: 1,
        lanes_per_row: lanes,
        groups_per_cube: 1,
        rows_per_group: 2,
        tokens,
        unroll: 1,
        cubes: None,
        staging: None,
        prefetch: false,
        codebook: 0,
        whole: false,
    };
    // Cubes of two rows at a time, which go on to others.
    let planes = Blueprint { reduction: Reduction::Plane, groups_per_cube: 2, cubes: Some(1), ..blueprint };
    let has_planes = Hardware::of(&client).plane.is_some_and(|plane| plane < lanes);
    for blueprint in [Some(blueprint), has_planes.then_some(planes)].into_iter().flatten() {
        let y = product_by(device, &tensor, &x, blueprint);
        assert_product_is(product, &case, &values, &y, 0.0);
    }
}

/// Tokens, the span where it is not the heuristic's, rows of a group, spans of a step, persistent cubes a core.
type Choice = (usize, Option<usize>, usize, usize, u32);

fn multiplies_by_any_settings(device: &CubeDevice, fixture: &Fixture) {
    assert_settings_change_nothing(device, fixture, [(1, Some(1), 1, 2, 0), (3, Some(1), 2, 3, 1), (1, None, 4, 1, 1)]);
}

/// The same with the other numbers of tokens.
fn multiplies_by_more_settings(device: &CubeDevice, fixture: &Fixture) {
    assert_settings_change_nothing(device, fixture, [(3, Some(1), 1, 2, 0), (1, Some(1), 2, 3, 1), (3, None, 4, 1, 1)]);
}

/// What may be chosen changes no answer beyond its bound, and where a cube makes its activations' codes itself, no bit.
fn assert_settings_change_nothing(device: &CubeDevice, fixture: &Fixture, choices: [Choice; 3]) {
    let case = fixture.case("quantized");
    let tensor = upload(device, fixture, case);
    let client = device.client();
    let hardware = Hardware::of(&client);
    let few = rows(device, fixture, 3);
    let dense = tensor.accuracy(1, Arithmetic::Int8) == Accuracy::Float;
    let (operand, product) =
        if dense { (ActivationType::Float, Accuracy::Float) } else { (ActivationType::Int8, Accuracy::INT8) };
    for (tokens, span, rows_per_group, unroll, cubes) in choices {
        let problem = Problem { ty: fixture.ty, operand, tokens, n: case.n, chunks: case.k.div_ceil(32) };
        let values = noise(17, tokens * case.k);
        let x = on_device(device, &values, &[tokens, case.k]);
        let multiply = |settings| {
            let y = product_by(device, &tensor, &x, Blueprint::of(&hardware, problem, settings));
            assert_product_is(product, case, &values, &y, 0.0);
            y
        };
        let base = heuristic(&hardware, problem);
        let span = span.unwrap_or(base.span);
        let persistent_cubes_per_core = NonZeroU32::new(cubes);
        let plain = Settings { stage: false, prefetch: false, stage_codebook: false, ..base };
        let settings = Settings { span, rows_per_group, unroll, persistent_cubes_per_core, ..plain };
        let expected = multiply(settings);
        let staged = Settings { stage: true, stage_codebook: true, ..settings };
        assert_same(&multiply(staged), &expected, "codes of a cube's own, or from memory");
        let staged = Settings { prefetch: true, ..staged };
        assert_same(&multiply(staged), &expected, "loads ahead of all decoding, or on the way");
        let blueprint = Blueprint::of(&hardware, problem, staged);
        let several = matmul_by(&[&few, &tensor, &few], &x, blueprint).unwrap();
        for (y, n) in client.read(several).unwrap().iter().zip([few.n(), case.n, few.n()]) {
            for (y, expected) in FloatType::F32.to_f32(y, tokens * n).chunks(n).zip(expected.chunks(case.n)) {
                assert_same(y, &expected[..n], "of several matrices, or alone");
            }
        }
    }
}

/// Cubes of one plane stage long rows and a codebook, and so in rounds: no bit changes.
fn multiplies_by_what_a_cube_stages_in_rounds(device: &CubeDevice, fixture: &Fixture) {
    let tokens = 4;
    let case = fixture.case("quantized").repeated(5, 4864);
    let tensor = upload(device, fixture, &case);
    let hardware = Hardware::of(&device.client());
    let operand = ActivationType::Int8;
    let problem = Problem { ty: fixture.ty, operand, tokens, n: case.n, chunks: case.k / 32 };
    let values = noise(23, tokens * case.k);
    let x = on_device(device, &values, &[tokens, case.k]);
    let base = Settings {
        tokens,
        prefetch: true,
        persistent_cubes_per_core: NonZeroU32::new(1),
        ..heuristic(&hardware, problem)
    };
    let base = Settings { lanes_per_row: hardware.plane.unwrap_or(1), groups_per_cube: 1, rows_per_group: 1, ..base };
    let multiply = |stage| {
        let settings = Settings { stage, stage_codebook: stage, ..base };
        product_by(device, &tensor, &x, Blueprint::of(&hardware, problem, settings))
    };
    let expected = multiply(false);
    assert_product_is(Accuracy::INT8, &case, &values, &expected, 0.0);
    assert_same(&multiply(true), &expected, "staged in rounds, or read from memory");
}

/// Matrices of a format, and one of another among them, give the bits of calls of their own.
fn multiplies_several_matrices_at_once(device: &CubeDevice, fixture: &Fixture) {
    let case = fixture.case("quantized");
    let floats: Vec<u8> = noise(29, 2 * case.k).iter().flat_map(|x| x.to_le_bytes()).collect();
    let other = DeviceTensor::from_gguf(device, GgmlType::F32, 2, case.k, &floats, Endian::Little).unwrap();
    let (one, all) = (rows(device, fixture, 1), rows(device, fixture, case.n));
    assert_same_together(&[&one, &other, &all], FloatType::F32, 2);
}

/// The first rows of a matrix.
pub fn rows(device: &CubeDevice, fixture: &Fixture, n: usize) -> DeviceTensor {
    let case = fixture.case("quantized");
    let data = &case.data[..n * case.data.len() / case.n];
    DeviceTensor::from_gguf(device, fixture.ty, n, case.k, data, case.endian).unwrap()
}

/// Asserts that one call gives the bits of calls of their own.
pub fn assert_same_together(matrices: &[&DeviceTensor], ty: FloatType, tokens: usize) {
    let (client, k) = (matrices[0].device().client(), matrices[0].k());
    let values = noise(23, tokens * k);
    let bytes: Vec<u8> = match ty {
        FloatType::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        FloatType::BF16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        FloatType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    };
    let x = Activations::contiguous(client.create_from_slice(&bytes), ty, vec![tokens, k]).unwrap();
    for arithmetic in [Arithmetic::Int8, Arithmetic::Float] {
        let together = DeviceTensor::matmul_many_on_device(matrices, &x, arithmetic).unwrap();
        let together = client.read(together).unwrap();
        assert_eq!(together.len(), matrices.len());
        for (matrix, together) in matrices.iter().zip(together) {
            let alone = client.read_one(matrix.matmul_on_device(&x, arithmetic).unwrap()).unwrap();
            let bytes = tokens * matrix.n() * ty.bytes();
            let what = format!("{tokens} tokens, {} rows of {}, {arithmetic:?}", matrix.n(), matrix.ty());
            assert_bytes(&together[..bytes], &alone[..bytes], &what);
        }
    }
}

/// A NaN or an infinity reaches the token it is in, and no other.
fn multiplies_non_finite_activations(device: &CubeDevice, fixture: &Fixture) {
    let case = fixture.case("quantized");
    let tensor = upload(device, fixture, case);
    let kinds = [(3, Arithmetic::Int8), (3, Arithmetic::Float), (9, Arithmetic::Float)];
    for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for (tokens, arithmetic) in kinds {
            let mut x = noise(11, tokens * case.k);
            let clean = x.clone();
            x[case.k + case.k / 2] = wrong;
            let y = tensor.matmul(&x, &[tokens, case.k], arithmetic).unwrap();
            let untouched = tensor.matmul(&clean, &[tokens, case.k], arithmetic).unwrap();
            assert_same(&y[..case.n], &untouched[..case.n], "the token before");
            assert_same(&y[2 * case.n..], &untouched[2 * case.n..], "the tokens after");
            assert!(
                !compares() || y[case.n..2 * case.n].iter().all(|y| !y.is_finite()),
                "{wrong} {arithmetic:?}: {:?}",
                &y[case.n..2 * case.n]
            );
        }
    }
}
