//! Multiplies several layers with one input in one call: q, k and v of a model's first block.
//!
//! `cargo run --release --features hip --example several_layers -- model.gguf rocm:0`

use std::error::Error;
use std::fs::File;
use std::io::BufReader;

use candle_core::{DType, Device as Host, Result, Tensor};
use cube_gguf::candle::gguf_file::Content;
use cube_gguf::{Device, QMatMul, QTensor};

const NAMES: [&str; 3] = ["blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight"];

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let file = arguments.next().ok_or("usage: several_layers FILE [DEVICE]")?;
    let device = match arguments.next() {
        Some(name) => name.parse()?,
        None => Device::best(),
    };

    let tensors = load(&file, &NAMES, &device)?;
    let (_, k) = tensors[0].shape().dims2()?;
    let layers = tensors.into_iter().map(QMatMul::from_qtensor).collect::<Result<Vec<_>>>()?;
    let x = Tensor::ones((1, k), DType::F32, &Host::Cpu)?;
    for (name, y) in NAMES.iter().zip(forward(&layers, &x)?) {
        println!("{name} on {device}: {:?}", y.dims());
    }
    Ok(())
}

/// Tensors of a file, on a device.
fn load(file: &str, names: &[&str], device: &Device) -> Result<Vec<QTensor>> {
    let mut reader = BufReader::new(File::open(file)?);
    let content = Content::read(&mut reader)?;
    names.iter().map(|name| content.tensor(&mut reader, name, device)).collect()
}

/// The products of all layers with `x`, which is quantized once; layers of one format share a launch.
fn forward(layers: &[QMatMul], x: &Tensor) -> Result<Vec<Tensor>> {
    QMatMul::forward_many(&layers.iter().collect::<Vec<_>>(), x)
}

#[cfg(all(test, feature = "cpu"))]
mod tests {
    use candle_core::Module;

    use super::*;

    fn bits(y: &Tensor) -> Vec<u32> {
        y.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
    }

    /// Two layers of one format, which share a launch, and one of another.
    #[test]
    fn layers_together_give_the_bits_of_each_alone() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/q4_k.gguf");
        let device = Device::new_cube_cpu().unwrap();
        let tensors = load(file, &["quantized", "random", "quantized.expected"], &device).unwrap();
        let (n, k) = tensors[0].shape().dims2().unwrap();
        let layers: Vec<_> = tensors.into_iter().map(|tensor| QMatMul::from_qtensor(tensor).unwrap()).collect();
        let x: Vec<f32> = (0..2 * k).map(|i| (i as f32).sin()).collect();
        let x = Tensor::from_vec(x, (2, k), &Host::Cpu).unwrap();
        let together = forward(&layers, &x).unwrap();
        assert_eq!(together.len(), layers.len());
        for (layer, y) in layers.iter().zip(&together) {
            assert_eq!(y.dims(), [2, n]);
            assert_eq!(bits(y), bits(&layer.forward(&x).unwrap()));
            assert!(bits(y).iter().any(|&bits| bits != 0));
        }
    }
}
