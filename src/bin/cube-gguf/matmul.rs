//! `cube-gguf matmul`.

use std::path::PathBuf;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use cube_gguf::gguf::Files;
use cube_gguf::{Accuracy, Arithmetic};

use crate::npy::{self, Writer};
use crate::weights::Weights;
use crate::{DeviceArgument, Outcome};

#[derive(Args)]
#[command(after_help = "\
A tensor [n, k] and an array [.., k] make an array [.., n] of <f4.

Examples:
  cube-gguf matmul model.gguf output.weight -x hidden.npy -o logits.npy
  cube-gguf matmul model.gguf blk.0.ffn_up.weight -x x.npy -o y.npy --arithmetic float --device vulkan")]
pub struct Arguments {
    /// A GGUF file, or any shard of a split one.
    file: PathBuf,
    /// The name of the tensor.
    tensor: String,
    /// Activations: a .npy file of <f4, <f2 or <f8 in C order.
    #[arg(short, value_name = "X.npy")]
    x: PathBuf,
    /// The .npy file to write; it appears once it is complete.
    #[arg(short, long, value_name = "Y.npy")]
    output: PathBuf,
    /// How to multiply: int8 quantizes the activations, as llama.cpp does; auto is int8 for few tokens, and float for many.
    #[arg(long, default_value = "auto", value_parser = arithmetic())]
    arithmetic: Arithmetic,
    #[command(flatten)]
    device: DeviceArgument,
}

fn arithmetic() -> impl TypedValueParser<Value = Arithmetic> {
    PossibleValuesParser::new(Arithmetic::ALL.map(Arithmetic::name)).try_map(|name| name.parse::<Arithmetic>())
}

pub fn run(arguments: &Arguments) -> Outcome {
    let files = Files::open(&arguments.file)?;
    let gguf = files.parse()?;
    let at = |error: Box<dyn std::error::Error>| format!("{}: {error}", arguments.tensor);
    let weights = Weights::new(gguf.tensor(&arguments.tensor)?).map_err(at)?;
    let x = npy::read(&arguments.x)?;
    let arithmetic = arguments.arithmetic;
    let Some((&k, batch)) = x.shape.split_last().filter(|(k, _)| **k == weights.k) else {
        return Err(at(cube_gguf::Error::Activations { shape: x.shape, k: weights.k }.into()).into());
    };
    let device = arguments.device.open()?;
    let loaded = weights.load(&device).map_err(|error| at(error.into()))?;
    let accuracy = loaded.accuracy(x.values.len() / k, arithmetic);
    if arithmetic == Arithmetic::Float && matches!(accuracy, Accuracy::Int8 { .. }) {
        let ty = weights.format.ty;
        return Err(format!(
            "Candle multiplies {ty} by int8 activations alone: --arithmetic float needs another device"
        )
        .into());
    }
    let y = loaded.matmul(&x.values, &x.shape, arithmetic)?;
    let shape: Vec<usize> = batch.iter().copied().chain([weights.n]).collect();
    let mut out = Writer::create(&arguments.output, "<f4", 4, &shape)?;
    out.write(&y.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())?;
    out.finish()
}
