//! Products of Candle's CUDA tensors with Candle's quantized weights and with this crate's, on one GPU: microseconds a product in
//! a queue of them, `cargo xtask candle-cuda --speed`.

use std::time::Instant;

use candle_core::quantized::{GgmlDType as Theirs, QMatMul as CandleLayer, QTensor as CandleTensor};
use candle_core::{Device, Module, Result, Tensor};
use candle_cuda::{noise, values};
use cube_gguf::GgmlDType;
use cube_gguf::candle::{QMatMul, QTensor};

const TYPES: [(GgmlDType, Theirs); 5] = [
    (GgmlDType::Q4_0, Theirs::Q4_0),
    (GgmlDType::Q8_0, Theirs::Q8_0),
    (GgmlDType::Q4K, Theirs::Q4K),
    (GgmlDType::Q5K, Theirs::Q5K),
    (GgmlDType::Q6K, Theirs::Q6K),
];
const SHAPES: [(usize, usize); 2] = [(14336, 4096), (4096, 4096)];
const TOKENS: [usize; 4] = [1, 8, 32, 512];
const ROUNDS: usize = 5;
/// Products in a queue.
const COUNT: usize = 200;

/// The median over rounds of the microseconds that a product takes.
fn micros(device: &Device, x: &Tensor, layer: &dyn Module) -> Result<f64> {
    for _ in 0..3 {
        layer.forward(x)?;
    }
    device.synchronize()?;
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for _ in 0..COUNT {
            layer.forward(x)?;
        }
        device.synchronize()?;
        times.push(start.elapsed().as_secs_f64() * 1e6 / COUNT as f64);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[ROUNDS / 2])
}

fn main() -> Result<()> {
    let device = Device::new_cuda(0)?;
    println!("| n x k | type | tokens | cube-gguf us | Candle us | Candle / cube-gguf | difference |");
    println!("|---|---|---:|---:|---:|---:|---:|");
    for (n, k) in SHAPES {
        let matrix = noise(1, &[n, k])?;
        for (ours, theirs) in TYPES {
            let layer = QMatMul::from_qtensor(QTensor::quantize(&matrix.to_device(&device)?, ours)?)?;
            let candle = CandleLayer::from_qtensor(CandleTensor::quantize_onto(&matrix, theirs, &device)?)?;
            for tokens in TOKENS {
                let x = noise(tokens as u64, &[tokens, k])?.to_device(&device)?;
                let (y, expected) = (values(&layer.forward(&x)?)?, values(&candle.forward(&x)?)?);
                let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| (v as f64).powi(2)).sum::<f64>().sqrt();
                let apart = norm(&mut y.iter().zip(&expected).map(|(y, e)| y - e)) / norm(&mut expected.iter().copied());
                let (ours_us, theirs_us) = (micros(&device, &x, &layer)?, micros(&device, &x, &candle)?);
                let ratio = theirs_us / ours_us;
                println!("| {n} x {k} | {ours} | {tokens} | {ours_us:.1} | {theirs_us:.1} | {ratio:.2} | {apart:.4} |");
            }
        }
    }
    Ok(())
}
