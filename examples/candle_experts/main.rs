//! A mixture of experts, written for Candle, through Candle's import and through ours.
//!
//! `cargo run --release --features hip --example candle_experts -- qwen3-30b-a3b-q4_k_m.gguf`, where the environment variable
//! `CUBE_GGUF_DEVICE` may name the device of the weights. It mixes some random tokens in the file's first layer.
//!
//! Candle 0.11 multiplies by stacks of experts on CUDA alone; elsewhere its import of the same source compiles, loads and routes.

use std::error::Error;
use std::fs::File;
use std::io::{BufReader, Read, Seek};

use candle_core::{Device, Result, Tensor};

#[expect(dead_code, reason = "without CUDA, Candle cannot multiply by what it loaded")]
mod candle {
    use candle_core::quantized::{QMatMul, gguf_file};

    include!("mixture.rs");
}

mod cube {
    use cube_gguf::candle::{QMatMul, gguf_file};

    include!("mixture.rs");
}

/// Tokens to mix.
const TOKENS: usize = 16;

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let file = std::env::args().nth(1).ok_or("usage: candle_experts FILE")?;
    let mut reader = BufReader::new(File::open(file)?);
    let width = width(&mut reader)?;
    let x = Tensor::randn(0f32, 1f32, (TOKENS, width), &Device::Cpu)?;
    let ids = theirs(&mut reader)?.route(&x)?.1;
    let mixture = ours(&mut reader)?;
    let same = mixture.route(&x)?.1.to_vec2::<u32>()? == ids.to_vec2::<u32>()?;
    println!("experts of the first token: {:?}, by both imports: {same}", ids.get(0)?.to_vec1::<u32>()?);
    println!("mixture on {}: {}", cube_gguf::candle::default_device()?, mixture.forward(&x)?);
    Ok(())
}

/// Values of a token.
fn width<R: Read + Seek>(reader: &mut R) -> Result<usize> {
    reader.rewind()?;
    let content = cube_gguf::candle::gguf_file::Content::read(reader)?;
    Ok(content.tensor_infos["blk.0.ffn_gate_inp.weight"].shape.dims2()?.1)
}

fn theirs<R: Read + Seek>(reader: &mut R) -> Result<candle::Mixture> {
    reader.rewind()?;
    let content = candle_core::quantized::gguf_file::Content::read(reader)?;
    candle::Mixture::from_gguf(&content, reader, 0, &Device::Cpu)
}

fn ours<R: Read + Seek>(reader: &mut R) -> Result<cube::Mixture> {
    reader.rewind()?;
    let content = cube_gguf::candle::gguf_file::Content::read(reader)?;
    cube::Mixture::from_gguf(&content, reader, 0, &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use candle_core::quantized::gguf_file::{self, Value};
    use candle_core::quantized::{GgmlDType, QTensor};

    use super::*;

    const EXPERTS: usize = 6;
    const USED: u32 = 2;
    const WIDTH: usize = 256;
    const HIDDEN: usize = 512;

    /// Values like those of a normal distribution, the same ones every time.
    fn values(shape: &[usize], seed: f32) -> Tensor {
        let len: usize = shape.iter().product();
        let sines =
            (0..len).map(|i| [12.9898, 78.233, 37.719].map(|f| (f * (i as f32 + seed)).sin()).iter().sum::<f32>());
        Tensor::from_vec(sines.collect(), shape, &Device::Cpu).unwrap()
    }

    /// A layer with its router and its experts, by Candle's own quantizer and writer.
    fn file() -> Cursor<Vec<u8>> {
        let stack = |n: usize, k: usize, seed: f32, ty| {
            let weights = (values(&[EXPERTS * n, k], seed) * 0.05).unwrap();
            QTensor::quantize(&weights.reshape((EXPERTS, n, k)).unwrap(), ty).unwrap()
        };
        let router = QTensor::quantize(&values(&[EXPERTS, WIDTH], 0.5), GgmlDType::F32).unwrap();
        let gate = stack(HIDDEN, WIDTH, 1.5, GgmlDType::Q4K);
        let up = stack(HIDDEN, WIDTH, 2.5, GgmlDType::Q4K);
        let down = stack(WIDTH, HIDDEN, 3.5, GgmlDType::Q6K);
        let metadata = [
            ("general.architecture", &Value::String("qwen3moe".to_owned())),
            ("qwen3moe.expert_used_count", &Value::U32(USED)),
        ];
        let tensors = [
            ("blk.0.ffn_gate_inp.weight", &router),
            ("blk.0.ffn_gate_exps.weight", &gate),
            ("blk.0.ffn_up_exps.weight", &up),
            ("blk.0.ffn_down_exps.weight", &down),
        ];
        let mut out = Cursor::new(Vec::new());
        gguf_file::write(&mut out, &metadata, &tensors).unwrap();
        out
    }

    /// The mixture in f32, by Candle's dequantized weights of all experts.
    fn dense(reader: &mut Cursor<Vec<u8>>, x: &Tensor, weights: &Tensor, ids: &Tensor) -> Result<Tensor> {
        reader.rewind()?;
        let content = gguf_file::Content::read(reader)?;
        let mut stack = |name: &str| {
            content.tensor(reader, &format!("blk.0.{name}.weight"), &Device::Cpu)?.dequantize(&Device::Cpu)
        };
        let (gate, up, down) = (stack("ffn_gate_exps")?, stack("ffn_up_exps")?, stack("ffn_down_exps")?);
        let mut rows = Vec::new();
        for (token, ids) in ids.to_vec2::<u32>()?.into_iter().enumerate() {
            let x = x.narrow(0, token, 1)?;
            let mut sum = Tensor::zeros((1, WIDTH), x.dtype(), x.device())?;
            for (slot, id) in ids.into_iter().enumerate() {
                let by = |x: &Tensor, stack: &Tensor| x.matmul(&stack.get(id as usize)?.t()?);
                let hidden = (by(&x, &gate)?.silu()? * by(&x, &up)?)?;
                let weight = weights.get(token)?.get(slot)?;
                sum = (sum + by(&hidden, &down)?.broadcast_mul(&weight)?)?;
            }
            rows.push(sum);
        }
        Tensor::cat(&rows, 0)
    }

    /// Both imports choose the same experts, and ours multiplies by them as Candle's weights in f32 do, but for the activations,
    /// which are int8: rounded by half of a 127th of the largest of a few dozen, some 0.7% of their deviation, twice.
    #[test]
    fn one_source_mixes_by_both_imports() {
        let mut reader = file();
        let x = values(&[20, WIDTH], 4.5);
        let (weights, ids) = theirs(&mut reader).unwrap().route(&x).unwrap();
        let mixture = ours(&mut reader).unwrap();
        assert_eq!(mixture.route(&x).unwrap().1.to_vec2::<u32>().unwrap(), ids.to_vec2::<u32>().unwrap());

        let expected = dense(&mut reader, &x, &weights, &ids).unwrap();
        let norm = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().sqrt().unwrap().to_scalar::<f32>().unwrap();
        let difference = norm(&(mixture.forward(&x).unwrap() - &expected).unwrap());
        assert!(difference <= 0.02 * norm(&expected), "{difference} of {}", norm(&expected));
    }
}
