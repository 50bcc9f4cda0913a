//! Multiplies a tensor of a GGUF file in both arithmetics and says how far the results may be from the exact ones.
//!
//! `cargo run --release --features hip --example matmul -- model.gguf blk.0.ffn_up.weight rocm:0`

use std::error::Error;

use cube_gguf::gguf::Files;
use cube_gguf::{Arithmetic, Device, DeviceTensor, FloatType};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(file), Some(name)) = (arguments.next(), arguments.next()) else {
        return Err("usage: matmul FILE TENSOR [DEVICE]".into());
    };
    let device = match arguments.next() {
        Some(name) => name.parse()?,
        None => Device::best(),
    };
    let Device::Cube(device) = device else {
        return Err("cpu has no device memory: name cube-cpu or a GPU".into());
    };

    let files = Files::open(file)?;
    let weights = DeviceTensor::load(&device, &files.parse()?.tensor(&name)?)?;
    let x: Vec<f32> = (0..weights.k()).map(|i| (i as f32).sin()).collect();
    for arithmetic in [Arithmetic::Int8, Arithmetic::Float] {
        let product = multiply(&weights, &x, arithmetic)?;
        let largest = product.iter().fold(0.0, |largest, &(_, bound)| f64::max(largest, bound));
        let accuracy = weights.accuracy(1, arithmetic).name();
        println!("{accuracy}: {} values, each off by at most {largest:.3e}; the first ones:", product.len());
        product.iter().take(4).for_each(|(y, bound)| println!("  {y} ± {bound:.3e}"));
    }
    Ok(())
}

/// The product with one token `x`: each value, and the largest error that it may have.
fn multiply(weights: &DeviceTensor, x: &[f32], arithmetic: Arithmetic) -> cube_gguf::Result<Vec<(f32, f64)>> {
    let y = weights.matmul(x, &[1, x.len()], arithmetic)?;
    let accuracy = weights.accuracy(1, arithmetic);
    let rows = weights.dequantize(FloatType::F32)?;
    let bounds = rows.chunks_exact(weights.k().max(1)).map(|row| accuracy.error_bound(row, x));
    Ok(y.into_iter().zip(bounds).collect())
}

#[cfg(all(test, feature = "cpu"))]
mod tests {
    use cube_gguf::{Backend, CubeDevice};

    use super::*;

    /// The exact product is that of the values which ggml's reference decodes: `quantized.expected` in the file.
    #[test]
    fn products_are_within_their_bounds() {
        let files = Files::open(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/q4_k.gguf")).unwrap();
        let model = files.parse().unwrap();
        let device = CubeDevice::new(Backend::CubeCpu, 0).unwrap();
        let weights = DeviceTensor::load(&device, &model.tensor("quantized").unwrap()).unwrap();
        let (n, k) = (weights.n(), weights.k());
        let expected = model.tensor("quantized.expected").unwrap();
        let rows = FloatType::F32.to_f32(expected.data().unwrap(), n * k);
        let x: Vec<f32> = (0..k).map(|i| (i as f32).sin()).collect();
        for arithmetic in [Arithmetic::Int8, Arithmetic::Float] {
            let product = multiply(&weights, &x, arithmetic).unwrap();
            assert_eq!(product.len(), n);
            for ((y, bound), row) in product.into_iter().zip(rows.chunks_exact(k)) {
                let terms = || row.iter().zip(&x).map(|(&w, &x)| f64::from(w) * f64::from(x));
                let (exact, magnitudes) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
                assert!((f64::from(y) - exact).abs() <= bound, "{arithmetic:?}: {y} for {exact}, bound {bound}");
                assert!(bound < magnitudes / 50.0, "{arithmetic:?}: a bound of {bound} says nothing of {exact}");
            }
        }
    }
}
