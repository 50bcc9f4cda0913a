//! A feed-forward block of a llama-like model in Burn: quantized layers between ordinary operations.
//!
//! `cargo run --release --features burn,hip --example burn_linear -- model.gguf rocm:0`

use std::error::Error;

use burn::module::Module;
use burn::tensor::activation::silu;
use burn::tensor::{Device as BurnDevice, Tensor};
use cube_gguf::burn::QLinear;
use cube_gguf::gguf::{Files, Gguf};
use cube_gguf::{CubeDevice, Device, DeviceTensor};

/// `down(silu(gate(x)) * up(x))`.
#[derive(Module, Debug)]
struct FeedForward {
    gate: QLinear,
    up: QLinear,
    down: QLinear,
}

impl FeedForward {
    fn load(model: &Gguf, layer: usize, device: &CubeDevice) -> cube_gguf::Result<Self> {
        let linear = |name: &str| {
            let tensor = model.tensor(&format!("blk.{layer}.ffn_{name}.weight"))?;
            DeviceTensor::load(device, &tensor).map(QLinear::new)
        };
        Ok(Self { gate: linear("gate")?, up: linear("up")?, down: linear("down")? })
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.down.forward(silu(self.gate.forward(x.clone())) * self.up.forward(x))
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(file), Some(device)) = (arguments.next(), arguments.next()) else {
        return Err("usage: burn_linear FILE DEVICE".into());
    };
    let Device::Cube(device) = device.parse::<Device>()? else {
        return Err("Burn's tensors are on a device of CubeCL's: name cube-cpu or a GPU".into());
    };
    let files = Files::open(file)?;
    let block = FeedForward::load(&files.parse()?, 0, &device)?;
    println!("{block}");
    let x = Tensor::ones([1, block.gate.d_input()], &BurnDevice::from(&device));
    println!("{}", block.forward(x));
    Ok(())
}

#[cfg(all(test, feature = "cpu"))]
mod tests {
    use cube_gguf::gguf::{GgmlType, Writer};
    use cube_gguf::{Arithmetic, Backend};

    use super::*;

    /// Layers of 64 and 96 features whose weights are blocks of a scale of 1/16 and codes that count.
    fn model() -> Vec<u8> {
        let shapes = [("gate", 64, 96), ("up", 64, 96), ("down", 96, 64)];
        let mut writer = Writer::new();
        for (name, k, n) in shapes {
            writer.tensor(&format!("blk.0.ffn_{name}.weight"), &[k, n], GgmlType::Q8_0).unwrap();
        }
        let mut tensors = writer.begin(Vec::new()).unwrap();
        for (_, k, n) in shapes {
            let block = |i: u64| [0x00, 0x2c].into_iter().chain((0..32).map(move |j| ((i * 7 + j) % 5) as u8));
            let data: Vec<u8> = (0..k * n / 32).flat_map(block).collect();
            tensors.data(&data).unwrap();
        }
        tensors.finish().unwrap()
    }

    #[test]
    fn a_block_is_its_products_with_the_activation_between() {
        let file = model();
        let device = CubeDevice::new(Backend::CubeCpu, 0).unwrap();
        let block = FeedForward::load(&Gguf::parse(&file).unwrap(), 0, &device).unwrap();
        let x: Vec<f32> = (0..64).map(|i| (i % 9) as f32 / 64.0 - 0.0625).collect();
        let product = |layer: &QLinear, x: &[f32]| layer.weight().matmul(x, &[1, x.len()], Arithmetic::Auto).unwrap();
        let (gate, up) = (product(&block.gate, &x), product(&block.up, &x));
        let hidden: Vec<f32> = gate.iter().zip(up).map(|(&gate, up)| gate / (1.0 + (-gate).exp()) * up).collect();
        let expected = product(&block.down, &hidden);
        let y = block.forward(Tensor::<1>::from_floats(&x[..], &BurnDevice::from(&device)).unsqueeze());
        // The activation's rounding may move a code of the last product by a step: 1/127 of the largest, in each of 96 terms.
        let largest = hidden.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        let epsilon = largest / 127.0 * 4.0 / 16.0;
        for (y, expected) in y.into_data().try_to_vec::<f32>().unwrap().into_iter().zip(expected) {
            approx::assert_relative_eq!(y, expected, epsilon = epsilon, max_relative = 1e-5);
        }
    }
}
