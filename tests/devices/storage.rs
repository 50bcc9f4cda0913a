//! The storage layer on a device: Candle's surface, threads, errors.

use cube_gguf::gguf::{Endian, GgmlType};
use cube_gguf::internals::{Blueprint, Hardware, Problem, Reduction, has_buffers, heuristic, matmul_by};
use cube_gguf::tune::ActivationType;
use cube_gguf::{Activations, Arithmetic, CubeDevice, DeviceTensor, Error, FloatType, Routing};
use cubecl::MemoryScope;
use cubecl_common::device::{DeviceId, ServiceId};
use libtest_mimic::Trial;

use crate::fixtures::{Fixture, assert_bytes, assert_same, noise};
use crate::operations::{assert_same_together, rows};
use crate::summary;

/// A test of a device alone.
type Check = fn(&CubeDevice);

pub fn trials(device: &CubeDevice) -> Vec<Trial> {
    let trial = |name: &str, check: Check| {
        let on = device.clone();
        summary::trial(format!("{device}/storage/{name}"), move || check(&on))
    };
    let checks: [(&str, Check); 9] = [
        ("refuses_what_does_not_fit", refuses_what_does_not_fit),
        ("refuses_activations_outside_their_buffer", refuses_activations_outside_their_buffer),
        ("refuses_activations_of_another_device", refuses_activations_of_another_device),
        ("refuses_kernels_that_it_lacks", refuses_kernels_that_it_lacks),
        ("refuses_experts_that_do_not_fit", refuses_experts_that_do_not_fit),
        ("serves_threads", serves_threads),
        ("outlives_its_device", outlives_its_device),
        ("leaves_no_memory", leaves_no_memory),
        ("multiplies_more_matrices_than_a_launch_takes", multiplies_more_matrices_than_a_launch_takes),
    ];
    #[cfg(feature = "candle")]
    let with_candle = candle::CHECKS;
    #[cfg(not(feature = "candle"))]
    let with_candle: &[(&str, Check)] = &[];
    checks.iter().chain(with_candle).map(|&(name, check)| trial(name, check)).collect()
}

fn refuses_what_does_not_fit(device: &CubeDevice) {
    let tensor =
        |ty, n, k, bytes: usize, endian| DeviceTensor::from_gguf(device, ty, n, k, &vec![0; bytes], endian).err();
    assert!(matches!(tensor(GgmlType::I32, 1, 1, 4, Endian::Little), Some(Error::NotWeights { .. })));
    assert!(matches!(tensor(GgmlType::Q5_0, 1, 32, 22, Endian::Big), Some(Error::BigEndian { .. })));
    for (n, k, bytes) in [(2, 32, 18), (1, 33, 18), (usize::MAX, 32, 18), (1 << 60, 1 << 60, 0), (1, 32, 17)] {
        let error = tensor(GgmlType::Q4_0, n, k, bytes, Endian::Little).unwrap();
        assert!(matches!(error, Error::Size { .. }), "{error}");
        assert!(error.to_string().contains(&bytes.to_string()), "{error}");
    }
}

fn refuses_experts_that_do_not_fit(device: &CubeDevice) {
    let data = vec![0; 6 * 34];
    let stack = DeviceTensor::from_gguf(device, GgmlType::Q8_0, 6, 32, &data, Endian::Little).unwrap();
    let multiplied = |shape: &[usize], routing: &Routing| {
        stack.matmul_experts(&vec![1.0; shape.iter().product()], shape, routing, Arithmetic::Auto)
    };
    let routing = device.routing(&[0u32, 2, 1, 0], 2, 3).unwrap();
    for shape in [vec![2, 32], vec![2, 1, 32], vec![2, 2, 32], vec![4, 32]] {
        assert_eq!(multiplied(&shape, &routing).unwrap().len(), 8, "{shape:?}");
    }
    for shape in [vec![1, 32], vec![2, 3, 32], vec![0, 32]] {
        let error = multiplied(&shape, &routing).unwrap_err();
        assert!(matches!(error, Error::Routed { tokens: 2, slots: 2, .. }), "{error}");
    }
    for shape in [vec![2, 16], vec![]] {
        let error = multiplied(&shape, &routing).unwrap_err();
        assert!(matches!(error, Error::Activations { k: 32, .. }), "{error}");
    }
    let of_four = device.routing(&[3u32, 0], 1, 4).unwrap();
    assert!(matches!(multiplied(&[2, 32], &of_four), Err(Error::Experts { rows: 6, experts: 4 })));
    // No tokens, and tokens without an expert.
    for slots in [2, 0] {
        let none = device.routing::<u32>(&[], slots, 3).unwrap();
        assert!(multiplied(&[0, 1, 32], &none).unwrap().is_empty());
    }
    for id in [3, -1, i64::MAX, u32::MAX as i64 + 1] {
        let error = device.routing(&[0, id], 2, 3).unwrap_err();
        assert!(matches!(error, Error::ExpertOutOfRange { id: wrong, experts: 3 } if wrong == id), "{error}");
    }
    assert!(matches!(device.routing(&[0u32, 1, 2], 2, 3), Err(Error::Ids { len: 3, .. })));
    assert!(matches!(device.routing(&[0u32], 0, 3), Err(Error::Ids { len: 1, .. })));
    let ids = device.client().create_from_slice(&[0; 64]);
    assert!(Routing::new(ids.clone(), 8, 2, 3).is_ok());
    for (tokens, slots, experts) in [(17, 1, 3), (usize::MAX, 2, 3), (2, usize::MAX, 3), (1, 1, 0), (1, 1, usize::MAX)]
    {
        let routing = Routing::new(ids.clone(), tokens, slots, experts);
        assert!(matches!(routing, Err(Error::Ids { len: 16, .. })), "{tokens} {slots} {experts}");
    }
    assert!(matches!(Routing::new(ids.offset_start(2), 1, 1, 3), Err(Error::Ids { .. })));
}

/// No stride, extent or offset reaches past the bytes of a handle, whatever the numbers.
fn refuses_activations_outside_their_buffer(device: &CubeDevice) {
    let values = device.client().create_from_slice(&[0; 4 * 64]);
    let activations = |shape: &[usize], strides: &[usize]| {
        Activations::new(values.clone(), FloatType::F32, shape.to_vec(), strides.to_vec())
    };
    for (shape, strides) in [
        (vec![2, 32], vec![32, 1]),
        (vec![2, 32], vec![1, 2]),
        (vec![64], vec![1]),
        (vec![0, 1000], vec![1000, 1]),
        (vec![], vec![]),
    ] {
        assert!(activations(&shape, &strides).is_ok(), "{shape:?} {strides:?}");
    }
    for (shape, strides) in [
        (vec![2, 32], vec![33, 1]),
        (vec![3, 32], vec![32, 1]),
        (vec![65], vec![1]),
        (vec![2, 32], vec![1]),
        (vec![2, 32], vec![usize::MAX, 1]),
        (vec![usize::MAX, 2, 32], vec![0, 32, 1]),
        (vec![usize::MAX, usize::MAX], vec![usize::MAX, usize::MAX]),
    ] {
        assert!(matches!(activations(&shape, &strides), Err(Error::Strides { len: 64, .. })), "{shape:?} {strides:?}");
    }
    let contiguous = |handle, ty, shape: &[usize]| Activations::contiguous(handle, ty, shape.to_vec());
    assert!(contiguous(values.clone(), FloatType::F32, &[2, 32]).is_ok());
    assert!(contiguous(values.clone(), FloatType::F16, &[4, 32]).is_ok());
    assert!(contiguous(values.clone(), FloatType::F32, &[usize::MAX, usize::MAX, 32]).is_err());
    let part = values.clone().offset_start(128);
    assert!(contiguous(part.clone(), FloatType::F32, &[1, 32]).is_ok());
    assert!(matches!(contiguous(part, FloatType::F32, &[2, 32]), Err(Error::Strides { len: 32, .. })));
    // Between two values, and offsets that leave nothing.
    assert!(contiguous(values.clone().offset_start(2), FloatType::F32, &[32]).is_err());
    assert!(contiguous(values.clone().offset_start(512), FloatType::F32, &[1]).is_err());
    assert!(contiguous(values.clone().offset_start(200).offset_end(200), FloatType::F32, &[1]).is_err());
}

fn refuses_activations_of_another_device(device: &CubeDevice) {
    let fixture = Fixture::load(GgmlType::Q4_0);
    let tensor = rows(device, &fixture, 2);
    let client = device.client();
    let mut foreign = client.create_from_slice(&vec![0; 4 * tensor.k()]);
    foreign.service = ServiceId::of::<Fixture>(DeviceId::new(0, 0));
    let x = Activations::contiguous(foreign, FloatType::F32, vec![1, tensor.k()]).unwrap();
    for arithmetic in [Arithmetic::Int8, Arithmetic::Float] {
        let one = tensor.matmul_on_device(&x, arithmetic).map(drop);
        let many = DeviceTensor::matmul_many_on_device(&[&tensor, &tensor], &x, arithmetic).map(drop);
        for refused in [one, many] {
            let error = refused.unwrap_err();
            assert!(matches!(error, Error::ForeignActivations { .. }), "{error}");
            assert!(error.to_string().contains(&device.to_string()), "{error}");
        }
    }
}

/// Kernels that nothing here would pick, which could read or write where they should not.
fn refuses_kernels_that_it_lacks(device: &CubeDevice) {
    let fixture = Fixture::load(GgmlType::Q4_0);
    let tensor = rows(device, &fixture, 2);
    let client = device.client();
    let x = client.create_from_slice(&vec![0; 4 * tensor.k()]);
    let x = Activations::contiguous(x, FloatType::F32, vec![1, tensor.k()]).unwrap();
    let problem =
        Problem { ty: tensor.ty(), operand: ActivationType::Int8, tokens: 1, n: tensor.n(), chunks: tensor.k() / 32 };
    let hardware = Hardware::of(&client);
    let good = Blueprint::of(&hardware, problem, heuristic(&hardware, problem));
    assert!(matmul_by(&[&tensor], &x, good).is_ok());
    for bad in [
        Blueprint { span: 3, ..good },
        Blueprint { rows_per_group: 0, ..good },
        Blueprint { tokens: usize::MAX, ..good },
        Blueprint { unroll: 0, ..good },
        Blueprint { lanes_per_row: 3, ..good },
        Blueprint { lanes_per_row: 2, groups_per_cube: 2, reduction: Reduction::Shared, ..good },
        Blueprint { lanes_per_row: 2, reduction: Reduction::None, ..good },
        Blueprint { lanes_per_row: 1 << 31, groups_per_cube: 2, ..good },
        Blueprint { groups_per_cube: 1 << 20, ..good },
        Blueprint { cubes: Some(0), ..good },
    ] {
        assert!(matches!(matmul_by(&[&tensor], &x, bad), Err(Error::Device { .. })), "{bad:?}");
    }
    // A codebook of another format's length is left out, not read.
    assert!(matmul_by(&[&tensor], &x, Blueprint { codebook: 1 << 20, ..good }).is_ok());
}

/// One tensor, many threads, each with an input of its own.
fn serves_threads(device: &CubeDevice) {
    let fixture = Fixture::load(GgmlType::Q4K);
    let case = fixture.case("quantized");
    let tensor = DeviceTensor::from_gguf(device, fixture.ty, case.n, case.k, &case.data, Endian::Little).unwrap();
    let inputs: Vec<_> = (0..16).map(|seed| noise(seed, 2 * case.k)).collect();
    let shape = [2, case.k];
    let alone: Vec<_> = inputs.iter().map(|x| tensor.matmul(x, &shape, Arithmetic::Auto).unwrap()).collect();
    std::thread::scope(|scope| {
        for (x, expected) in inputs.iter().zip(&alone) {
            let tensor = &tensor;
            scope.spawn(move || {
                for _ in 0..4 {
                    assert_same(&tensor.matmul(x, &shape, Arithmetic::Auto).unwrap(), expected, "beside other threads");
                    assert_same(&tensor.dequantize(FloatType::F32).unwrap(), &case.expected, "beside other threads");
                }
            });
        }
    });
}

/// A tensor of which nobody has the device any more, nor the thread that loaded it.
fn outlives_its_device(device: &CubeDevice) {
    let fixture = Fixture::load(GgmlType::IQ3S);
    let case = fixture.case("quantized");
    let load = |device: &CubeDevice| {
        DeviceTensor::from_gguf(device, fixture.ty, case.n, case.k, &case.data, Endian::Little).unwrap()
    };
    let x = noise(3, case.k);
    let multiplied = |tensor: &DeviceTensor| tensor.matmul(&x, &[1, case.k], Arithmetic::Auto).unwrap();
    let expected = multiplied(&load(device));
    let loaded = std::thread::scope(|scope| {
        let own = || load(&CubeDevice::new(device.backend(), device.index()).unwrap());
        scope.spawn(own).join().unwrap()
    });
    assert_same(&multiplied(&loaded), &expected, "without its device");
    assert_same(&loaded.dequantize(FloatType::F32).unwrap(), &case.expected, "without its device");
    assert_bytes(&loaded.data().unwrap(), &case.data, "without its device");
}

/// A hundred tensors with codebooks of their own, loaded, multiplied and dropped; and one that threads multiply which come and go.
fn leaves_no_memory(device: &CubeDevice) {
    let fixture = Fixture::load(GgmlType::IQ3S);
    let case = fixture.case("quantized").repeated(512, 1024);
    let x = noise(4, case.k);
    let use_once = || {
        let device = CubeDevice::new(device.backend(), device.index()).unwrap();
        let tensor = DeviceTensor::from_gguf(&device, fixture.ty, case.n, case.k, &case.data, Endian::Little).unwrap();
        assert_eq!(tensor.matmul(&x, &[1, case.k], Arithmetic::Auto).unwrap().len(), case.n);
    };
    // Of this thread's stream: other tests have their own.
    let reserved = || device.client().memory_report(MemoryScope::CurrentStream).usage().bytes_reserved;
    use_once();
    let before = reserved();
    (0..100).for_each(|_| use_once());
    let grown = reserved().saturating_sub(before);
    assert!(grown < 10 * case.data.len() as u64, "{grown} bytes after a hundred tensors of {}", case.data.len());

    let tensor = DeviceTensor::from_gguf(device, fixture.ty, case.n, case.k, &case.data, Endian::Little).unwrap();
    let expected = tensor.matmul(&x, &[1, case.k], Arithmetic::Auto).unwrap();
    let (before, values) = (reserved(), 4 * (case.n * case.k) as u64);
    let of_a_thread = || {
        let before = reserved();
        assert_same(&tensor.matmul(&x, &[1, case.k], Arithmetic::Auto).unwrap(), &expected, "in a thread of its own");
        tensor.dequantize(FloatType::F32).unwrap();
        reserved().saturating_sub(before)
    };
    for _ in 0..4 {
        let taken = std::thread::scope(|scope| {
            let threads = [(); 16].map(|()| scope.spawn(of_a_thread));
            threads.into_iter().map(|thread| thread.join().unwrap()).sum::<u64>()
        });
        assert!(taken < 8 * values, "{taken} bytes by sixteen threads that each asked for {values}");
    }
    let grown = reserved().saturating_sub(before);
    assert!(grown < 32 * values, "{grown} bytes after 64 threads that each asked for {values}");
}

/// Of more tokens than a launch takes, too, and of halves.
fn multiplies_more_matrices_than_a_launch_takes(device: &CubeDevice) {
    let fixture = Fixture::load(GgmlType::Q4_0);
    let matrices = [5, 1, 2, 5, 3, 4].map(|n| rows(device, &fixture, n));
    let matrices: Vec<&DeviceTensor> = matrices.iter().collect();
    assert_same_together(&matrices, FloatType::F32, 9);
    if has_buffers(device.client().features(), FloatType::F16) {
        assert_same_together(&matrices, FloatType::F16, 1);
    }
}

#[cfg(feature = "candle")]
mod candle {
    use std::borrow::Cow;

    use candle_core::{DType, Device as CandleDevice, Module, Tensor};
    use cube_gguf::gguf::GgmlType;
    use cube_gguf::{
        CubeDevice, Device, DeviceTensor, GgmlDType, QMatMul, QStorage, QTensor, load_quantized, qtensor_from_ggml,
    };

    use crate::fixtures::{Fixture, assert_bytes, assert_same, compares, noise};

    pub const CHECKS: &[(&str, super::Check)] = &[
        ("loads_a_model", loads_a_model),
        ("multiplies_quantized_ones", multiplies_quantized_ones),
        ("agrees_with_candle", agrees_with_candle),
        ("multiplies_several_layers", multiplies_several_layers),
        ("quantizes_as_candle", quantizes_as_candle),
        ("refuses_what_candle_refuses", refuses_what_candle_refuses),
        ("keeps_blocks_without_a_shape", keeps_blocks_without_a_shape),
        ("embeds", embeds),
        ("mixes_experts", mixes_experts),
        ("finds_the_factors_of_a_file", finds_the_factors_of_a_file),
        ("is_a_tensor_of_candle_s", is_a_tensor_of_candle_s),
    ];

    /// The types that Candle's CPU code has a product for.
    const CANDLE: [GgmlType; 10] = [
        GgmlType::Q4_0,
        GgmlType::Q4_1,
        GgmlType::Q5_0,
        GgmlType::Q5_1,
        GgmlType::Q8_0,
        GgmlType::Q2K,
        GgmlType::Q3K,
        GgmlType::Q4K,
        GgmlType::Q5K,
        GgmlType::Q6K,
    ];

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    /// The specification's first test: a model's tensors onto a device, without a panic.
    fn loads_a_model(device: &CubeDevice) {
        let device = Device::Cube(device.clone());
        for format in cube_gguf::internals::FORMATS {
            let fixture = Fixture::load(format.ty);
            let case = fixture.case("random");
            let tensor = qtensor_from_ggml(format.ty, &case.data, vec![case.n, case.k], &device).unwrap();
            assert_eq!((tensor.dtype(), tensor.device()), (format.ty, device.clone()));
            assert_eq!((tensor.rank(), tensor.shape().dims()), (2, &[case.n, case.k][..]));
            assert_eq!(tensor.storage_size_in_bytes(), case.data.len());
            assert_bytes(&tensor.data().unwrap(), &case.data, &fixture.name);
            assert_same(&values(&tensor.dequantize(&CandleDevice::Cpu).unwrap()), &case.expected, &fixture.name);
        }
    }

    /// The specification's second test.
    fn multiplies_quantized_ones(device: &CubeDevice) {
        let ones = Tensor::ones((32, 32), DType::F32, &CandleDevice::Cpu).unwrap();
        let weights = QTensor::quantize_onto(&ones, GgmlDType::Q4_0, &Device::Cube(device.clone())).unwrap();
        let layer = QMatMul::from_qtensor(weights).unwrap();
        let x = Tensor::ones((1, 32), DType::F32, &CandleDevice::Cpu).unwrap();
        let y = layer.forward(&x).unwrap();
        assert_eq!(y.dims(), [1, 32]);
        // Q4_0 holds 1 as -8 times a scale of -1/8: exactly. So is the int8 code of a 1: 127 of 127 steps.
        if compares() {
            for y in values(&y) {
                approx::assert_abs_diff_eq!(y, 32.0, epsilon = 1e-4);
            }
        }
        let y = layer.forward_via_f16(&x).unwrap();
        assert!(!compares() || values(&y).iter().all(|&y| y == 32.0), "{y}");
    }

    /// Our products and Candle's are both within their bounds, so at most the sum of the bounds apart.
    fn agrees_with_candle(device: &CubeDevice) {
        for ty in CANDLE {
            let fixture = Fixture::load(ty);
            let case = fixture.case("quantized");
            let shape = (case.n, case.k);
            let ours = QTensor::from_gguf(ty, Cow::Borrowed(&case.data), shape, &Device::Cube(device.clone())).unwrap();
            let theirs = QTensor::from_gguf(ty, Cow::Borrowed(&case.data), shape, &Device::Cpu).unwrap();
            let (auto, tokens) = (cube_gguf::Arithmetic::Auto, 4);
            let x = noise(5, tokens * case.k);
            let xs = Tensor::from_slice(&x, (2, 2, case.k), &CandleDevice::Cpu).unwrap();
            let bounds = [ours.accuracy(tokens, auto), theirs.accuracy(tokens, auto)];
            let [a, b] = [ours, theirs].map(|tensor| QMatMul::from_qtensor(tensor).unwrap().forward(&xs).unwrap());
            assert_eq!(a.dims(), [2, 2, case.n]);
            assert_eq!(a.dims(), b.dims());
            for (i, (a, b)) in values(&a).into_iter().zip(values(&b)).enumerate() {
                let (x, row) = (&x[i / case.n * case.k..][..case.k], case.row(i % case.n));
                let bound: f64 = bounds.iter().map(|product| product.error_bound(row, x)).sum();
                let off = (a as f64 - b as f64).abs();
                assert!(!compares() || off <= bound, "{ty}: {a} and {b}, bound {bound}");
            }
        }
    }

    /// Layers of one input, on the device and on the host, give the bits of calls of their own.
    fn multiplies_several_layers(device: &CubeDevice) {
        let fixtures = [GgmlType::Q4K, GgmlType::Q6K, GgmlType::Q4K].map(Fixture::load);
        let layer = |fixture: &Fixture, device: &Device| {
            let case = fixture.case("quantized");
            let data = Cow::Borrowed(case.data.as_slice());
            QMatMul::from_qtensor(QTensor::from_gguf(fixture.ty, data, (case.n, case.k), device).unwrap()).unwrap()
        };
        let k = fixtures[0].case("quantized").k;
        let cube = Device::Cube(device.clone());
        for homes in [[&cube, &cube, &cube], [&Device::Cpu, &Device::Cpu, &Device::Cpu], [&cube, &Device::Cpu, &cube]] {
            let layers: Vec<QMatMul> = fixtures.iter().zip(homes).map(|(fixture, home)| layer(fixture, home)).collect();
            let layers: Vec<&QMatMul> = layers.iter().collect();
            for dtype in [DType::F32, DType::F16] {
                let xs = Tensor::from_vec(noise(6, 2 * k), (1, 2, k), &CandleDevice::Cpu).unwrap();
                let xs = xs.to_dtype(dtype).unwrap();
                let together = QMatMul::forward_many(&layers, &xs).unwrap();
                assert_eq!(together.len(), layers.len());
                for (layer, together) in layers.iter().zip(&together) {
                    let alone = layer.forward(&xs).unwrap();
                    assert_eq!((alone.dims(), alone.dtype()), (together.dims(), together.dtype()));
                    assert_same(&values(together), &values(&alone), "together or alone");
                }
            }
            let short = Tensor::zeros((1, k - 32), DType::F32, &CandleDevice::Cpu).unwrap();
            assert!(QMatMul::forward_many(&layers, &short).is_err());
        }
        assert!(
            QMatMul::forward_many(&[], &Tensor::zeros(1, DType::F32, &CandleDevice::Cpu).unwrap()).unwrap().is_empty()
        );
    }

    fn quantizes_as_candle(cube: &CubeDevice) {
        use candle_core::quantized::{GgmlDType as Theirs, QTensor as CandleTensor};
        let source = Tensor::from_vec(noise(2, 3 * 512), (3, 512), &CandleDevice::Cpu).unwrap();
        let device = Device::Cube(cube.clone());
        for (ty, theirs) in [(GgmlType::Q4_0, Theirs::Q4_0), (GgmlType::Q4K, Theirs::Q4K), (GgmlType::Q6K, Theirs::Q6K)]
        {
            let expected = CandleTensor::quantize(&source, theirs).unwrap();
            let ours = QTensor::quantize_onto(&source, ty, &Device::Cpu).unwrap();
            assert_bytes(&ours.data().unwrap(), &expected.data().unwrap(), &format!("{ty} in host memory"));
        }
        // A device has kernels, whose blocks are ggml's; host memory gets those of the CPU runtime where Candle has no quantizer.
        for ty in [GgmlType::Q4K, GgmlType::MXFP4] {
            let values = source.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let expected = DeviceTensor::quantize(cube, ty, 3, 512, &values).unwrap().data().unwrap();
            let ours = QTensor::quantize_onto(&source, ty, &device).unwrap();
            assert_eq!(ours.device(), device);
            assert_bytes(&ours.data().unwrap(), &expected, &format!("{ty} on {device}"));
        }
        let ours = QTensor::quantize_onto(&source, GgmlType::MXFP4, &Device::Cpu).unwrap();
        assert_eq!((ours.device(), ours.shape().dims()), (Device::Cpu, &[3, 512][..]));
        let importance: Vec<f32> = noise(4, 512).iter().map(|x| x.abs() + 0.1).collect();
        let expected = CandleTensor::quantize_imatrix(&source, &importance, Theirs::Q4K).unwrap();
        let ours = QTensor::quantize_imatrix_onto(&source, &importance, GgmlType::Q4K, &Device::Cpu).unwrap();
        assert_bytes(&ours.data().unwrap(), &expected.data().unwrap(), "with an importance matrix, in host memory");
        let values = source.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let expected = DeviceTensor::quantize_by_importance(cube, GgmlType::Q4K, 3, 512, &values, &importance).unwrap();
        let ours = QTensor::quantize_imatrix_onto(&source, &importance, GgmlType::Q4K, &device).unwrap();
        assert_bytes(&ours.data().unwrap(), &expected.data().unwrap(), "with an importance matrix, on the device");
        assert!(QTensor::quantize_imatrix_onto(&source, &importance[1..], GgmlType::Q4K, &device).is_err());
        assert!(QTensor::quantize(&source.narrow(1, 0, 300).unwrap(), GgmlType::Q4K).is_err());
        assert!(QTensor::quantize(&source, GgmlType::IQ2XXS).is_err());
    }

    fn refuses_what_candle_refuses(device: &CubeDevice) {
        use cube_gguf::GgmlDType::*;

        let homes = [Box::new(Device::Cube(device.clone())), Box::new(Device::Cpu)];
        for home in &homes {
            let source = Tensor::from_vec(noise(6, 4 * 32), (4, 32), &CandleDevice::Cpu).unwrap();
            let weights = QTensor::quantize_onto(&source, Q8_0, home).unwrap();
            let device = weights.candle_device();
            let layer = QMatMul::from_qtensor(weights).unwrap();
            for dtype in [DType::U8, DType::U32, DType::I64] {
                let integers = Tensor::ones((1, 32), dtype, &device).unwrap();
                let products = [
                    layer.forward(&integers),
                    layer.forward_via_f16(&integers),
                    QMatMul::forward_many(&[&layer, &layer], &integers).map(|mut products| products.remove(0)),
                ];
                for product in products {
                    let message = product.unwrap_err().to_string();
                    assert!(message.contains(&format!("activations of type {}", dtype.as_str())), "{message}");
                }
            }
            let blocks = || QStorage::zeros(home, 256, Q4K).unwrap();
            // A backtrace may follow.
            let message = |shape: &[usize]| {
                let message = QTensor::new(blocks(), shape).unwrap_err().to_string();
                message.lines().next().unwrap_or_default().to_owned()
            };
            assert_eq!(message(&[]), "a scalar of Q4_K: weights have rows");
            assert_eq!(message(&[5]), "rows of 5 values are not whole blocks of Q4_K, which have 256 values");
            assert!(message(&[usize::MAX, 2, 256]).ends_with("have more bytes than can be counted"));
        }
    }

    fn keeps_blocks_without_a_shape(device: &CubeDevice) {
        let device = Device::Cube(device.clone());
        let fixture = Fixture::load(GgmlType::Q4_0);
        let case = fixture.case("quantized");
        for home in [&device, &Device::Cpu] {
            let storage = QStorage::from_data(Cow::Borrowed(&case.data), home, GgmlType::Q4_0).unwrap();
            assert_eq!(
                (storage.dtype(), storage.block_size(), storage.size_in_bytes()),
                (GgmlType::Q4_0, 32, case.data.len())
            );
            assert_eq!(storage.device(), *home);
            assert_bytes(&storage.data().unwrap(), &case.data, "flat");
            let candle_core::Storage::Cpu(flat) = storage.dequantize(case.n * case.k).unwrap() else { panic!() };
            assert_same(flat.as_slice().unwrap(), &case.expected, "flat");
            let tensor = QTensor::new(storage, (case.n, case.k)).unwrap();
            assert_same(&values(&tensor.dequantize(&CandleDevice::Cpu).unwrap()), &case.expected, "shaped");
            let half = tensor.dequantize_f16(&CandleDevice::Cpu).unwrap();
            assert_eq!((half.dtype(), half.dims()), (DType::F16, &[case.n, case.k][..]));
            let storage = QStorage::from_data(Cow::Borrowed(&case.data), home, GgmlType::Q4_0).unwrap();
            assert!(QTensor::new(storage, (case.n + 1, case.k)).is_err());
            let mut zeros = QStorage::zeros(home, 64, GgmlType::Q8_0).unwrap();
            assert_bytes(&zeros.data().unwrap(), &[0; 68], "zeros");
            let source = candle_core::CpuStorage::F32(vec![1.0; 64]);
            zeros.quantize_onto(&candle_core::Storage::Cpu(source)).unwrap();
            let candle_core::Storage::Cpu(ones) = zeros.dequantize(64).unwrap() else { panic!() };
            let ones: &[f32] = ones.as_slice().unwrap();
            if compares() {
                for &one in ones {
                    approx::assert_abs_diff_eq!(one, 1.0, epsilon = 1e-3);
                }
            }
            let loaded = load_quantized(home, &[1.0f32, -2.0, 3.5]).unwrap();
            assert_eq!((loaded.dtype(), loaded.size_in_bytes()), (GgmlType::F32, 12));
            assert!(QStorage::from_data(Cow::Borrowed(&case.data[1..]), home, GgmlType::Q4_0).is_err());
        }
    }

    /// `indexed_moe_forward` wherever weights may be: a device, Candle's blocks, a format that Candle lacks, Candle's floats.
    fn mixes_experts(device: &CubeDevice) {
        let (experts, tokens, slots) = (3, 3, 2);
        let ids = [2u32, 0, 0, 2, 2, 2];
        let ids_tensor = Tensor::from_slice(&ids, (tokens, slots), &CandleDevice::Cpu).unwrap();
        for ty in [GgmlType::Q4K, GgmlType::IQ4XS, GgmlType::F32] {
            let fixture = Fixture::load(ty);
            let whole = fixture.case("quantized");
            let n = whole.n + 1;
            let case = whole.repeated(experts * n, whole.k);
            for home in [Device::Cube(device.clone()), Device::Cpu] {
                let shape = (experts, n, case.k);
                let stack = QTensor::from_gguf(ty, Cow::Borrowed(&case.data), shape, &home).unwrap();
                assert_bytes(&stack.data().unwrap(), &case.data, "the stack's blocks");
                assert_same(&values(&stack.dequantize(&CandleDevice::Cpu).unwrap()), &case.expected, "its values");
                let product = stack.accuracy(tokens, cube_gguf::Arithmetic::Auto);
                let layer = QMatMul::from_qtensor(stack).unwrap();
                for rows in [1, slots] {
                    let x = noise(8, tokens * rows * case.k);
                    let xs = Tensor::from_slice(&x, (tokens, rows, case.k), &CandleDevice::Cpu).unwrap();
                    let y = layer.indexed_moe_forward(&xs, &ids_tensor).unwrap();
                    assert_eq!((y.dims(), y.dtype()), (&[tokens, slots, n][..], DType::F32));
                    for (i, y) in values(&y).into_iter().enumerate().filter(|_| compares()) {
                        let (pair, row) = (i / n, ids[i / n] as usize * n + i % n);
                        let x = &x[pair * rows / slots * case.k..][..case.k];
                        let exact: f64 = case.row(row).iter().zip(x).map(|(&w, &x)| w as f64 * x as f64).sum();
                        let bound = product.error_bound(case.row(row), x);
                        let off = (y as f64 - exact).abs();
                        assert!(off <= bound, "{ty} on {home}, pair {pair}: {y} for {exact}, bound {bound}");
                    }
                    let halves = layer.indexed_moe_forward(&xs.to_dtype(DType::F16).unwrap(), &ids_tensor).unwrap();
                    assert_eq!(halves.dtype(), DType::F16);
                }
                let error = |x: (usize, usize, usize), ids: [u32; 2]| {
                    let x = Tensor::zeros(x, DType::F32, &CandleDevice::Cpu).unwrap();
                    let ids = Tensor::new(&[ids], &CandleDevice::Cpu).unwrap();
                    layer.indexed_moe_forward(&x, &ids).unwrap_err().to_string()
                };
                assert!(error((1, 1, case.k), [0, 3]).starts_with("expert 3 of 3"), "{ty} on {home}");
                assert!(error((2, 1, case.k), [0, 1]).contains("for 1 tokens with 2 experts each"), "{ty} on {home}");
                assert!(error((1, 1, case.k / 2), [0, 1]).contains("do not fit weights"), "{ty} on {home}");
                let none = Tensor::zeros((0, 1, case.k), DType::F32, &CandleDevice::Cpu).unwrap();
                let no_ids = Tensor::zeros((0, 2), DType::U32, &CandleDevice::Cpu).unwrap();
                assert_eq!(layer.indexed_moe_forward(&none, &no_ids).unwrap().dims(), [0, 2, n]);
            }
            let matrix = QTensor::from_gguf(ty, Cow::Borrowed(&whole.data), (whole.n, whole.k), &Device::Cpu).unwrap();
            let x = Tensor::zeros((3, 1, whole.k), DType::F32, &CandleDevice::Cpu).unwrap();
            let message = matrix.indexed_moe_forward(&x, &ids_tensor).unwrap_err().to_string();
            assert!(message.contains("are no stack of experts"), "{message}");
        }
    }

    /// NVFP4's second scale, and a stack's, one an expert: part of the weights however they are loaded.
    fn finds_the_factors_of_a_file(device: &CubeDevice) {
        use cube_gguf::candle::{VarBuilder, gguf_file::Content};
        use cube_gguf::gguf::{Gguf, Writer};
        use cube_gguf::{Arithmetic, DeviceTensor};

        let fixture = Fixture::load(GgmlType::NVFP4);
        let whole = fixture.case("quantized");
        let case = whole.repeated(6, whole.k);
        let (one, two, bias) = ([0.375f32], [0.5f32, -3.0], noise(9, 6));
        let mut writer = Writer::new();
        writer.tensor("a.weight", &[case.k as u64, 6], GgmlType::NVFP4).unwrap();
        writer.tensor("a.scale", &[1], GgmlType::F32).unwrap();
        writer.tensor("a.bias", &[6], GgmlType::F32).unwrap();
        writer.tensor("b.weight", &[case.k as u64, 3, 2], GgmlType::NVFP4).unwrap();
        writer.tensor("b.scale", &[2], GgmlType::F32).unwrap();
        let mut out = writer.begin(Vec::new()).unwrap();
        for data in [&case.data[..], bytemuck::cast_slice(&one), bytemuck::cast_slice(&bias), &case.data[..]] {
            out.data(data).unwrap();
        }
        out.data(bytemuck::cast_slice(&two)).unwrap();
        let file = out.finish().unwrap();
        let gguf = Gguf::parse(&file).unwrap();

        let values_of = |scale: &[f32]| -> Vec<f32> {
            (0..6).flat_map(|row| case.row(row).iter().map(move |w| w * scale[row * scale.len() / 6])).collect()
        };
        let (a, b) = (values_of(&one), values_of(&two));
        let x = noise(10, case.k);
        let xs = Tensor::from_slice(&x, (1, case.k), &CandleDevice::Cpu).unwrap();
        let assert_products = |weights: &[f32], accuracy: cube_gguf::Accuracy, found: &[f32], bias: &[f32]| {
            for (i, &y) in found.iter().enumerate().filter(|_| compares()) {
                let row = &weights[i * case.k..][..case.k];
                let exact: f64 = row.iter().zip(&x).map(|(&w, &x)| w as f64 * x as f64).sum();
                let bias = bias.get(i).copied().unwrap_or(0.0) as f64;
                // The bound is of factors that are applied to each weight, or to the sum, which rounds once more.
                let bound = accuracy.error_bound(row, &x) + 2f64.powi(-22) * (exact.abs() + bias.abs());
                assert!((y as f64 - exact - bias).abs() <= bound, "row {i}: {y} for {}", exact + bias);
            }
        };
        for home in [Device::Cube(device.clone()), Device::Cpu] {
            let mut reader = std::io::Cursor::new(&file);
            let content = Content::read(&mut reader).unwrap();
            let builder = VarBuilder::from_gguf_buffer(&file, &home).unwrap();
            let read = content.tensor(&mut reader, "a.weight", &home).unwrap();
            let stack = content.tensor(&mut reader, "b.weight", &home).unwrap();
            let built = builder.get((6, case.k), "a.weight").unwrap();
            for (tensor, expected) in [(&read, &a), (built.as_ref(), &a), (&stack, &b)] {
                assert_same(&values(&tensor.dequantize(&CandleDevice::Cpu).unwrap()), expected, "values");
                assert_bytes(&tensor.data().unwrap(), &case.data, "blocks");
            }
            let auto = Arithmetic::Auto;
            for tensor in [&read, built.as_ref()] {
                let y = values(&tensor.matmul_t(&xs, auto).unwrap());
                assert_products(&a, tensor.accuracy(1, auto), &y, &[]);
            }
            let ids = Tensor::new(&[[0u32, 1]], &CandleDevice::Cpu).unwrap();
            let y = stack.indexed_moe_forward(&xs.unsqueeze(0).unwrap(), &ids).unwrap();
            assert_products(&b, stack.accuracy(1, auto), &values(&y), &[]);
        }
        let loaded = DeviceTensor::load_from(device, &gguf, "a.weight").unwrap();
        let y = loaded.matmul(&x, &[1, case.k], Arithmetic::Auto).unwrap();
        assert_products(&a, loaded.accuracy(1, Arithmetic::Auto), &y, &bias);
        // Another device's copy has all of it.
        let copy = loaded.copied_to(device).unwrap().matmul(&x, &[1, case.k], Arithmetic::Auto).unwrap();
        assert_same(&copy, &y, "a copy");
    }

    fn embeds(device: &CubeDevice) {
        for ty in [GgmlType::Q6K, GgmlType::IQ3S, GgmlType::F16] {
            let fixture = Fixture::load(ty);
            let case = fixture.case("random");
            let ids = Tensor::new(&[[4u32, 0], [2, 2]], &CandleDevice::Cpu).unwrap();
            let expected: Vec<f32> = [4, 0, 2, 2].into_iter().flat_map(|id| case.row(id)).copied().collect();
            for home in [Device::Cube(device.clone()), Device::Cpu] {
                let tensor = QTensor::from_gguf(ty, Cow::Borrowed(&case.data), (case.n, case.k), &home).unwrap();
                let rows = tensor.embedding(&ids).unwrap();
                assert_eq!(rows.dims(), [2, 2, case.k]);
                assert_same(&values(&rows), &expected, &fixture.name);
                let wrong = Tensor::new(&[case.n as u32], &CandleDevice::Cpu).unwrap();
                assert!(tensor.embedding(&wrong).is_err(), "{ty} on {home}");
            }
        }
    }
    /// Candle's own types over a tensor of the device give what this crate's give; what Candle would multiply itself is refused.
    fn is_a_tensor_of_candle_s(device: &CubeDevice) {
        use candle_core::quantized::QMatMul as CandleLayer;
        for ty in [GgmlType::Q5_0, GgmlType::Q3K] {
            let fixture = Fixture::load(ty);
            let case = fixture.case("quantized");
            let load = || {
                let device = Device::Cube(device.clone());
                QTensor::from_gguf(ty, Cow::Borrowed(&case.data), (case.n, case.k), &device).unwrap()
            };
            let tensor = load().into_candle().unwrap();
            assert_eq!(tensor.shape().dims(), [case.n, case.k]);
            assert_eq!(tensor.storage_size_in_bytes(), case.data.len());
            assert_bytes(&tensor.data().unwrap(), &case.data, "blocks");
            assert_same(&values(&tensor.dequantize(&CandleDevice::Cpu).unwrap()), &case.expected, "values");
            let ids = Tensor::new(&[1u32, 0], &CandleDevice::Cpu).unwrap();
            assert_same(&values(&tensor.embedding(&ids).unwrap()), &[case.row(1), case.row(0)].concat(), "rows");
            let (theirs, ours) = (CandleLayer::from_arc(tensor).unwrap(), QMatMul::from_qtensor(load()).unwrap());
            let xs = Tensor::from_vec(noise(9, 4 * case.k), (2, 2, case.k), &CandleDevice::Cpu).unwrap();
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let xs = xs.to_dtype(dtype).unwrap();
                let (y, expected) = (theirs.forward(&xs).unwrap(), ours.forward(&xs).unwrap());
                assert_eq!((y.dims(), y.dtype()), (expected.dims(), dtype));
                assert_same(&values(&y), &values(&expected), "products");
            }
        }
        let refused = |ty: GgmlType, n: usize, k: usize| {
            let zeros = vec![0; n * ty.row_bytes(k).unwrap()];
            let tensor = QTensor::from_gguf(ty, Cow::Owned(zeros), (n, k), &Device::Cube(device.clone())).unwrap();
            tensor.into_candle().err().map(|error| error.to_string())
        };
        assert!(refused(GgmlType::IQ4XS, 1, 256).unwrap().starts_with("Candle has no type for IQ4_XS"));
        for (ty, n, k) in [(GgmlType::Q4K, 16, 256), (GgmlType::Q6K, 16, 512), (GgmlType::Q8_0, 48, 256)] {
            let error = refused(ty, n, k);
            let reads = cfg!(any(target_arch = "x86_64", target_arch = "aarch64"));
            assert_eq!(error.is_some(), reads, "{error:?}");
            assert!(error.is_none_or(|error| error.contains(&format!("{ty} matrices as {n} x {k}"))));
        }
        assert_eq!(refused(GgmlType::Q8_0, 17, 256), None);
        assert_eq!(refused(GgmlType::Q4K, 9, 256), None);
    }
}
