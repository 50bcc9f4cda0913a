//! `cube-gguf dequantize`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use cube_gguf::FloatType;
use cube_gguf::gguf::Files;

use crate::npy::Writer;
use crate::weights::Weights;
use crate::{DeviceArgument, Outcome};

#[derive(Args)]
#[command(after_help = "\
NumPy has no bf16: its bits are written as <u2. In NumPy,
  (numpy.load('out.npy').astype('u4') << 16).view('f4')
makes them floats.

Examples:
  cube-gguf dequantize model.gguf token_embd.weight -o embeddings.npy
  cube-gguf dequantize model.gguf blk.0.ffn_up.weight -o up.npy --dtype f16 --device cpu")]
pub struct Arguments {
    /// A GGUF file, or any shard of a split one.
    file: PathBuf,
    /// The name of the tensor.
    tensor: String,
    /// The .npy file to write; it appears once it is complete.
    #[arg(short, long, value_name = "OUT.npy")]
    output: PathBuf,
    /// The type of the values.
    #[arg(long, value_enum, default_value_t = Dtype::F32)]
    dtype: Dtype,
    #[command(flatten)]
    device: DeviceArgument,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Dtype {
    /// <f4, the values themselves
    F32,
    /// <f2, rounded to nearest even
    F16,
    /// <u2, the bits of the values rounded to nearest even
    Bf16,
}

impl Dtype {
    /// The type, and its name in a .npy file.
    pub fn float(self) -> (FloatType, &'static str) {
        match self {
            Self::F32 => (FloatType::F32, "<f4"),
            Self::F16 => (FloatType::F16, "<f2"),
            Self::Bf16 => (FloatType::BF16, "<u2"),
        }
    }
}

pub fn run(arguments: &Arguments) -> Outcome {
    let files = Files::open(&arguments.file)?;
    let gguf = files.parse()?;
    let at = |error: Box<dyn std::error::Error>| format!("{}: {error}", arguments.tensor);
    let weights = Weights::new(gguf.tensor(&arguments.tensor)?).map_err(at)?;
    let device = arguments.device.open()?;
    let (to, descr) = arguments.dtype.float();
    let mut out = Writer::create(&arguments.output, descr, to.bytes(), &weights.info.shape())?;
    let loaded = weights.load(&device).map_err(|error| at(error.into()))?;
    for (first, rows) in weights.stripes() {
        out.write(&weights.dequantize(&loaded, first, rows, to)?)?;
    }
    out.finish()
}
