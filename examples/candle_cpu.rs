//! Times Candle's own products of quantized weights on the CPU, without this library: a peer of `cargo xtask bench`.
//!
//! `cargo build --release --example candle_cpu`, then `target/release/examples/candle_cpu N K [TOKENS]`, as in
//! `candle_cpu 1024 4096 1,8`. The columns, the copies of the weights and the timing are those of
//! `cube-gguf bench --device cpu --csv`.

use std::borrow::Cow;
use std::error::Error;
use std::time::Instant;

use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{Device, Module, Result, Tensor};

/// All that Candle multiplies on the CPU; of Q8_1 it has no products.
const TYPES: [(&str, GgmlDType); 14] = [
    ("q4_0", GgmlDType::Q4_0),
    ("q4_1", GgmlDType::Q4_1),
    ("q5_0", GgmlDType::Q5_0),
    ("q5_1", GgmlDType::Q5_1),
    ("q8_0", GgmlDType::Q8_0),
    ("q2_k", GgmlDType::Q2K),
    ("q3_k", GgmlDType::Q3K),
    ("q4_k", GgmlDType::Q4K),
    ("q5_k", GgmlDType::Q5K),
    ("q6_k", GgmlDType::Q6K),
    ("q8_k", GgmlDType::Q8K),
    ("f32", GgmlDType::F32),
    ("f16", GgmlDType::F16),
    ("bf16", GgmlDType::BF16),
];

/// Copies of the weights, bytes that they should fill, and bytes that they may.
const MAX_COPIES: usize = 4;
const ROTATED_BYTES: usize = 256_000_000;
const MAX_BYTES: usize = 512 << 20;
/// Distinct rows of random weights.
const POOL_ROWS: usize = 64;
/// Seconds that one measurement takes, its repeats at least and at most, and the seconds that one of them may take.
const BUDGET: f64 = 0.25;
const REPEATS: std::ops::Range<usize> = 5..50;
const QUEUE_SECONDS: f64 = 0.05;

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (n, k, tokens) = match arguments.as_slice() {
        [n, k] => (n.parse()?, k.parse::<usize>()?, "1,2,4,8"),
        [n, k, tokens] => (n.parse()?, k.parse()?, tokens.as_str()),
        _ => return Err("usage: candle_cpu N K [TOKENS]".into()),
    };
    let tokens = tokens.split(',').map(str::parse).collect::<std::result::Result<Vec<usize>, _>>()?;
    if n == 0 || k == 0 || !k.is_multiple_of(256) {
        return Err(format!("{n} x {k}: there must be rows, and columns in multiples of 256").into());
    }

    println!("engine,type,n,k,tokens,us,gbps_weights,tflops");
    for (name, dtype) in TYPES {
        let (layers, bytes) = layers(dtype, n, k)?;
        for &tokens in &tokens {
            let x = Tensor::randn(0f32, 1., (tokens, k), &Device::Cpu)?;
            let seconds = time(&layers, &x)?;
            let gbps = bytes as f64 / seconds / 1e9;
            let tflops = 2.0 * n as f64 * k as f64 * tokens as f64 / seconds / 1e12;
            println!("candle,{name},{n},{k},{tokens},{:.2},{gbps:.2},{tflops:.5}", seconds * 1e6);
        }
    }
    Ok(())
}

/// Copies of one matrix, and the bytes of each.
fn layers(dtype: GgmlDType, n: usize, k: usize) -> Result<(Vec<QMatMul>, usize)> {
    let pool = QTensor::quantize(&Tensor::randn(0f32, 1., (POOL_ROWS, k), &Device::Cpu)?, dtype)?;
    let (pool, row) = (pool.data()?, pool.storage_size_in_bytes() / POOL_ROWS);
    let bytes = n * row;
    // Candle reads the bytes as blocks in place, which asks for the alignment that u32 has.
    let mut words = vec![0u32; bytes.div_ceil(4)];
    let data = &mut bytemuck::cast_slice_mut::<u32, u8>(&mut words)[..bytes];
    for (i, to) in data.chunks_exact_mut(row).enumerate() {
        to.copy_from_slice(&pool[i * 7 % POOL_ROWS * row..][..row]);
    }
    let copies = (ROTATED_BYTES / bytes + 1).min(MAX_BYTES / bytes).clamp(1, MAX_COPIES);
    let layer = |_| {
        let storage = QStorage::from_data(Cow::Borrowed(&*data), &Device::Cpu, dtype)?;
        QMatMul::from_qtensor(QTensor::new(storage, (n, k))?)
    };
    Ok(((0..copies).map(layer).collect::<Result<_>>()?, bytes))
}

/// The median seconds of a product.
fn time(layers: &[QMatMul], x: &Tensor) -> Result<f64> {
    let mut next = 0;
    let mut repeat = |queue: usize| -> Result<f64> {
        let start = Instant::now();
        for _ in 0..queue {
            layers[next % layers.len()].forward(x)?;
            next += 1;
        }
        Ok(start.elapsed().as_secs_f64() / queue as f64)
    };
    // The first product of each copy may arrange its weights anew.
    repeat(layers.len())?;
    let queue = ((QUEUE_SECONDS / repeat(1)?.max(1e-9)) as usize).clamp(1, 4 * layers.len());
    if queue > 1 {
        for _ in 0..3 {
            repeat(queue)?;
        }
    }
    let start = Instant::now();
    let mut times = Vec::new();
    while times.len() < REPEATS.start || start.elapsed().as_secs_f64() < BUDGET && times.len() < REPEATS.end {
        times.push(repeat(queue)?);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}
