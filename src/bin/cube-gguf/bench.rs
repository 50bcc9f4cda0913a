//! `cube-gguf bench`: times of products, of their launches, of dequantization and of memory copies.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use cube_gguf::internals::{FORMATS, format};
use cube_gguf::{Device, DeviceTensor, Error, FloatType, GgmlType};

use crate::dequantize::Dtype;
use crate::output::print;
use crate::timing::{Case, Copies, Experts, cases_of, is_host, time_copy};
use crate::{DeviceArgument, Outcome};

/// The most rows of activations.
const MAX_TOKENS: usize = 1 << 20;

#[derive(Args)]
#[command(after_help = "\
The columns: us is the median time of one operation, gbps_weights the GGUF bytes of the weights over it, tflops the
floating-point operations of a product. Activations are f32 and resident; quantizing them is part of the product.
With --graph a queue of products is recorded once and replayed, which CUDA, HIP and wgpu can. With --chain each of 200
products takes the result of the one before. Weights rotate over copies that together exceed four last-level caches, 256
copies at most. With --experts each token has SLOTS of the experts, at random and known to the device alone: n is the
rows of one, and gbps_weights is of the experts that some token has. The bytes of a copy and of a dequantization are those
read and those written.

Examples:
  cube-gguf bench --types q4_0,q4_k,q6_k --tokens 1,8,512
  cube-gguf bench --op dequantize --dtype f16 --n 4096 --k 4096 --csv > dequantize.csv
  cube-gguf bench --n 4096 --k 4096 --types q4_0 --chain --graph
  cube-gguf bench --experts 128 --slots 8 --n 768 --k 2048 --types q4_k --tokens 1,512
  cube-gguf bench --op launch --n 64 --types q4_0
  cube-gguf bench model.gguf --device rocm")]
pub struct Arguments {
    /// Take the types and shapes of a model's matrices; the weights are random.
    #[arg(conflicts_with_all = ["n", "k"])]
    file: Option<PathBuf>,
    /// Types, separated by commas; all where none are given.
    #[arg(long, value_delimiter = ',', value_name = "TYPES")]
    types: Vec<String>,
    /// Rows of the weights: output features (14336; 1024 on the host).
    #[arg(long)]
    n: Option<usize>,
    /// Columns of the weights: input features.
    #[arg(long, default_value_t = 4096)]
    k: usize,
    /// Rows of the activations, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "1", value_name = "TOKENS")]
    tokens: Vec<usize>,
    /// Multiply with a stack of so many experts, of N rows each.
    #[arg(long, requires = "slots", conflicts_with_all = ["file", "chain"])]
    experts: Option<usize>,
    /// Experts of a token.
    #[arg(long, requires = "experts")]
    slots: Option<usize>,
    /// The operation to time.
    #[arg(long, value_enum, default_value_t = Operation::Matmul)]
    op: Operation,
    /// The type of the values of a dequantization; on the host f32.
    #[arg(long, value_enum, default_value_t = Dtype::F32)]
    dtype: Dtype,
    /// Time replays of a recorded graph, as frameworks decode: device time without the host's cost of launches.
    #[arg(long)]
    graph: bool,
    /// Time products each of which takes the result of the one before; the weights must be square.
    #[arg(long)]
    chain: bool,
    /// Print CSV.
    #[arg(long)]
    csv: bool,
    #[command(flatten)]
    device: DeviceArgument,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Operation {
    /// Activations times the transpose of the weights
    Matmul,
    /// Host time of queueing a product, while the device computes
    Launch,
    /// A call of a layer with values on the host, as Candle's models make it: upload, product and download, one after the other
    Call,
    /// All weights to floats; `tokens` is 0
    Dequantize,
    /// f32 values on the device to blocks; `tokens` is 0
    Quantize,
    /// Memory to memory, whatever the types and shapes: the upper limit of every other rate
    Copy,
}

pub fn run(arguments: &Arguments) -> Outcome {
    let types = arguments.types.iter().map(|name| weights_type(name)).collect::<Outcome<Vec<_>>>()?;
    if arguments.tokens.iter().any(|tokens| !(1..=MAX_TOKENS).contains(tokens)) {
        return Err(format!("--tokens must be 1 or more, and {MAX_TOKENS} at most").into());
    }
    if (arguments.graph || arguments.chain) && arguments.op != Operation::Matmul {
        return Err("--graph and --chain are for products".into());
    }
    let experts = arguments.experts.zip(arguments.slots).map(|(count, slots)| Experts { count, slots });
    if let Some(Experts { count, slots }) = experts.filter(|experts| !(1..=experts.count).contains(&experts.slots)) {
        return Err(format!("a token has 1 expert or more and all of them at most, not {slots} of {count}").into());
    }
    if let Some(ty) = types.iter().find(|&&ty| arguments.op == Operation::Quantize && !DeviceTensor::quantizes(ty)) {
        return Err(format!("there is no kernel that quantizes to {ty}").into());
    }
    if experts.is_some() && arguments.op != Operation::Matmul {
        return Err("--experts is for products".into());
    }
    let device = arguments.device.open()?;
    if arguments.graph && matches!(device, Device::Cpu) {
        return Err("--graph is for devices that replay launches, which the host does not".into());
    }
    let (dtype, _) = arguments.dtype.float();
    if dtype != FloatType::F32 && (arguments.op != Operation::Dequantize || matches!(device, Device::Cpu)) {
        return Err("--dtype is for --op dequantize on a device with kernels of its own".into());
    }
    if arguments.op == Operation::Launch && matches!(device, Device::Cpu) {
        return Err("--op launch is for devices with a queue, which the host has not".into());
    }
    if arguments.op == Operation::Copy {
        let row = copy_row(arguments, time_copy(&device)?);
        return Ok(print(&(header(arguments, &device) + &row))?);
    }
    let cases = match &arguments.file {
        Some(file) => cases_of(file, &types)?,
        None => cases(arguments, &types, experts, &device)?,
    };
    if let Some(case) = cases.iter().find(|case| arguments.chain && case.n != case.k) {
        let Case { n, k, .. } = case;
        return Err(format!("--chain is for weights with as many rows as columns, not {n} x {k}").into());
    }
    print(&header(arguments, &device))?;
    for case in cases {
        let at = |error: Box<dyn std::error::Error>| format!("{} of {} x {}: {error}", case.ty, case.n, case.k);
        let copies = Copies::new(case, &device).map_err(at)?;
        let of_all = matches!(arguments.op, Operation::Dequantize | Operation::Quantize);
        let tokens: &[usize] = if of_all { &[0] } else { &arguments.tokens };
        for &tokens in tokens {
            let seconds = match arguments.op {
                Operation::Launch => copies.time_launch(tokens),
                Operation::Call => copies.time_call(tokens),
                Operation::Dequantize => copies.time_dequantize(dtype),
                Operation::Quantize => copies.time_quantize(),
                _ => match case.experts {
                    Some(experts) => copies.time_experts(tokens, arguments.graph, experts),
                    None => copies.time_matmul(tokens, arguments.graph, arguments.chain),
                },
            };
            print(&row(arguments, case, tokens, seconds.map_err(at)?))?;
        }
        copies.free();
    }
    Ok(())
}

fn header(arguments: &Arguments, device: &Device) -> String {
    match arguments.csv {
        true => "engine,type,n,k,tokens,us,gbps_weights,tflops\n".to_owned(),
        false => format!(
            "{:<8} {:>8} {:>8} {:>7} {:>12} {:>12} {:>9}   {device}\n",
            "type", "n", "k", "tokens", "us", "gbps_weights", "tflops"
        ),
    }
}

/// The row of a copy: bytes read and written, and seconds.
fn copy_row(arguments: &Arguments, (bytes, seconds): (f64, f64)) -> String {
    let (us, gbps) = (seconds * 1e6, figures(bytes / seconds / 1e9));
    match arguments.csv {
        true => format!("cube-gguf,copy,0,0,0,{us:.2},{gbps},0.0\n"),
        false => format!("{:<8} {:>8} {:>8} {:>7} {us:>12.2} {gbps:>12} {:>9}\n", "copy", "", "", "", ""),
    }
}

fn row(arguments: &Arguments, case: Case, tokens: usize, seconds: f64) -> String {
    let Case { ty, n, k, .. } = case;
    let (ty, us) = (ty.name().to_lowercase(), seconds * 1e6);
    let of_values = match arguments.op {
        Operation::Dequantize => n * k * arguments.dtype.float().0.bytes(),
        Operation::Quantize => n * k * FloatType::F32.bytes(),
        _ => 0,
    };
    let gbps = figures((case.bytes_read(tokens) + of_values as f64) / seconds / 1e9);
    let tflops = figures(case.operations(tokens) / seconds / 1e12);
    match arguments.csv {
        true => format!("cube-gguf,{ty},{n},{k},{tokens},{us:.2},{gbps},{tflops}\n"),
        false => format!("{ty:<8} {n:>8} {k:>8} {tokens:>7} {us:>12.2} {gbps:>12} {tflops:>9}\n"),
    }
}

/// A rate with three significant figures or more.
fn figures(value: f64) -> String {
    let decimals = match value {
        0.0 => 1,
        value => (2.0 - value.log10().floor()).clamp(1.0, 9.0) as usize,
    };
    format!("{value:.decimals$}")
}

/// The type with this name, which must hold weights.
pub fn weights_type(name: &str) -> Outcome<GgmlType> {
    let ty: GgmlType = name.trim().parse()?;
    format(ty).ok_or(Error::NotWeights { ty })?;
    Ok(ty)
}

/// One case per type, of the shape in the options.
fn cases(arguments: &Arguments, types: &[GgmlType], experts: Option<Experts>, device: &Device) -> Outcome<Vec<Case>> {
    let k = arguments.k;
    let n = arguments.n.unwrap_or(if is_host(device) { 1024 } else { 14336 });
    let types = if types.is_empty() { FORMATS.iter().map(|format| format.ty).collect() } else { types.to_vec() };
    let count = experts.map_or(1, |experts| experts.count);
    let bytes = |ty: GgmlType| ty.row_bytes(k)?.checked_mul(n)?.checked_mul(count);
    let case = |ty: GgmlType| match bytes(ty) {
        Some(bytes) if bytes > 0 => Ok(Case { ty, n, k, experts }),
        Some(_) => Err(format!("a matrix of {n} x {k} has no weights").into()),
        None => Err(format!(
            "a matrix of {n} x {k} is too large, or {k} no multiple of {}, the block of {ty}",
            ty.block_size()
        )
        .into()),
    };
    types.into_iter().map(case).collect()
}
