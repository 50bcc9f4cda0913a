//! Products, values, rows and experts of weights on a GPU with Candle's tensors on the same one. What they are compared with is the
//! same by way of host memory, which other tests hold to formulas.

use std::thread;

use candle_core::{DType, Device, Module, Result, Tensor};
use candle_cuda::{noise, values};
use cube_gguf::candle::{QMatMul, QTensor};
use cube_gguf::{Arithmetic, GgmlDType};

const TYPES: [GgmlDType; 3] = [GgmlDType::Q4K, GgmlDType::IQ4XS, GgmlDType::F16];
const N: usize = 96;
const K: usize = 512;

fn gpu() -> Device {
    Device::new_cuda(0).expect("a GPU of NVIDIA's")
}

fn weights(ty: GgmlDType, shape: &[usize]) -> QTensor {
    QTensor::quantize_onto(&noise(7, shape).unwrap(), ty, &cube_gguf::Device::new_cuda(0).unwrap()).unwrap()
}

/// The same values, bit for bit, of a tensor that is on the GPU.
#[track_caller]
fn assert_same(of_gpu: &Tensor, expected: &Tensor) {
    assert!(of_gpu.device().is_cuda(), "{:?}", of_gpu.device());
    assert_eq!((of_gpu.dtype(), of_gpu.dims()), (expected.dtype(), expected.dims()));
    assert_eq!(values(of_gpu).unwrap(), values(expected).unwrap());
}

#[test]
fn products_are_those_by_way_of_the_host() {
    for ty in TYPES {
        let weights = weights(ty, &[N, K]);
        for (tokens, dtype) in [(1, DType::F32), (3, DType::F16), (40, DType::BF16), (5, DType::F64)] {
            let x = noise(tokens as u64, &[2, tokens, K]).unwrap().to_dtype(dtype).unwrap();
            // Neither the first values of its memory nor contiguous.
            let strided = |x: &Tensor| x.narrow(0, 1, 1)?.transpose(0, 1);
            let on_gpu = strided(&x.to_device(&gpu()).unwrap()).unwrap();
            let expected = weights.matmul_t(&strided(&x).unwrap(), Arithmetic::Auto).unwrap();
            assert_same(&weights.matmul_t(&on_gpu, Arithmetic::Auto).unwrap(), &expected);
            let [one, other] = &QTensor::matmul_t_many(&[&weights, &weights], &on_gpu, Arithmetic::Auto).unwrap()[..]
            else {
                panic!("two products")
            };
            assert_same(one, &expected);
            assert_same(other, &expected);
        }
        let x = noise(3, &[2, K]).unwrap();
        let by_operation = x.to_device(&gpu()).unwrap().apply_op1_no_bwd(&weights).unwrap();
        assert_same(&by_operation, &weights.matmul_t(&x, Arithmetic::Auto).unwrap());
        let none = Tensor::zeros((0, K), DType::F32, &gpu()).unwrap();
        assert_same(
            &weights.matmul_t(&none, Arithmetic::Auto).unwrap(),
            &Tensor::zeros((0, N), DType::F32, &Device::Cpu).unwrap(),
        );
    }
}

#[test]
fn values_and_rows_stay_there() {
    for ty in TYPES {
        let weights = weights(ty, &[N, K]);
        assert_same(&weights.dequantize(&gpu()).unwrap(), &weights.dequantize(&Device::Cpu).unwrap());
        assert_same(&weights.dequantize_f16(&gpu()).unwrap(), &weights.dequantize_f16(&Device::Cpu).unwrap());
        let ids = Tensor::new(&[[3u32, 0], [95, 3]], &Device::Cpu).unwrap();
        let rows = weights.embedding(&ids.to_device(&gpu()).unwrap()).unwrap();
        assert_same(&rows, &weights.embedding(&ids).unwrap());
        assert!(weights.embedding(&Tensor::new(&[N as u32], &gpu()).unwrap()).is_err());
    }
}

#[test]
fn experts_are_chosen_there() {
    let stack = weights(GgmlDType::Q4K, &[8, N, K]);
    for tokens in [1usize, 40] {
        let x = noise(5, &[tokens, 1, K]).unwrap();
        let ids: Vec<u32> = (0..2 * tokens as u32).map(|pair| pair * 5 % 8).collect();
        let ids = Tensor::from_vec(ids, (tokens, 2), &Device::Cpu).unwrap();
        let (on_gpu, of_gpu) = (x.to_device(&gpu()).unwrap(), ids.to_device(&gpu()).unwrap());
        let expected = stack.indexed_moe_forward(&x, &ids).unwrap();
        assert_same(&stack.indexed_moe_forward(&on_gpu, &of_gpu).unwrap(), &expected);
        assert_same(&stack.indexed_moe_forward(&on_gpu, &ids).unwrap(), &expected);
    }
    // Nobody looks at ids that stay there.
    let x = noise(5, &[1, 1, K]).unwrap().to_device(&gpu()).unwrap();
    let y = stack.indexed_moe_forward(&x, &Tensor::new(&[[1u32, 8]], &gpu()).unwrap()).unwrap();
    assert!(values(&y.narrow(1, 0, 1).unwrap()).unwrap().iter().all(|y| y.is_finite()));
    assert!(values(&y.narrow(1, 1, 1).unwrap()).unwrap().iter().all(|y| y.is_nan()));
}

#[test]
fn tensors_there_are_quantized() {
    let x = noise(11, &[N, K]).unwrap();
    for ty in [GgmlDType::Q4K, GgmlDType::Q8_0] {
        let theirs = QTensor::quantize(&x.to_device(&gpu()).unwrap(), ty).unwrap();
        assert_eq!(theirs.device(), cube_gguf::Device::new_cuda(0).unwrap());
        let ours = QTensor::quantize_onto(&x, ty, &cube_gguf::Device::new_cuda(0).unwrap()).unwrap();
        assert_eq!(theirs.data().unwrap(), ours.data().unwrap());
    }
}

/// Between slow work of Candle's that makes the activations, and work of Candle's that takes the result and overwrites what the
/// activations were in: neither side may be early.
fn between_candle_s_own(layer: &QMatMul, seed: u64) -> Result<()> {
    const WIDE: usize = 2048;
    let device = Device::new_cuda_with_stream(0)?;
    for device in [gpu(), device] {
        let slow = noise(1, &[WIDE, WIDE])?.affine(1.0 / 64.0, 0.0)?.to_device(&device)?;
        let first = noise(seed, &[WIDE, WIDE])?.to_device(&device)?;
        let chain = || -> Result<Tensor> {
            let mut x = first.clone();
            for _ in 0..8 {
                x = x.matmul(&slow)?;
            }
            x.narrow(0, 0, 4)?.narrow(1, 0, K)?.contiguous()
        };
        let expected = values(&layer.forward(&chain()?.to_device(&Device::Cpu)?)?)?;
        let mut results = Vec::new();
        for _ in 0..50 {
            let x = chain()?;
            let y = layer.forward(&x)?;
            drop(x);
            // Takes the memory that is free now.
            let other = Tensor::full(f32::NAN, (4, K), &device)?;
            results.push((y.affine(2.0, 0.0)?, other));
        }
        for (doubled, _) in results {
            let doubled = values(&doubled)?;
            assert!(doubled.iter().zip(&expected).all(|(doubled, y)| *doubled == 2.0 * y));
        }
    }
    Ok(())
}

#[test]
fn each_side_waits_for_the_other() {
    let weights = weights(GgmlDType::Q4K, &[4096, K]);
    let layer = QMatMul::from_qtensor(weights).unwrap();
    thread::scope(|scope| {
        for seed in 0..4 {
            let layer = &layer;
            scope.spawn(move || between_candle_s_own(layer, seed).unwrap());
        }
    });
}
