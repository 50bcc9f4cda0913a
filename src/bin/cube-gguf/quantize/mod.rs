//! `cube-gguf quantize`.

mod input;
mod recipe;

use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use candle_core::{Device as Host, Tensor};
use clap::Args;
use cube_gguf::gguf::{Metadata, TensorWriter, Writer};
use cube_gguf::internals::Format;
use cube_gguf::{Backend, CubeDevice, Device, DeviceTensor, GgmlType, QTensor};
use globset::{Glob, GlobMatcher};
use half::{bf16, f16};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use rayon::prelude::*;

use self::input::{Input, Tensor as Source};
pub use self::recipe::is_quantized;
use self::recipe::{Model, Recipe, Types};
use crate::imatrix::Imatrix;
use crate::interrupt::{self, Listening};
use crate::output::{escape, print, shape};
use crate::part::PartFile;
use crate::weights::{STRIPE_BYTES, stripes};
use crate::{DeviceArgument, INTERRUPTED, Outcome};

#[derive(Args)]
#[command(after_help = "\
TYPE is a recipe of llama.cpp: Q4_K_M, Q5_K_S, Q8_0 ... Matrices get the types that llama.cpp picks; vectors, norms and
routers stay as they are. Rows that are no whole blocks of their type get a like one with blocks of 32 values, else F16.
The file appears once it is complete.

A checkpoint of Transformers is read with the config.json and the tokenizer beside it, and becomes the file that llama.cpp's
convert_hf_to_gguf.py makes of it: LlamaForCausalLM, MistralForCausalLM, MixtralForCausalLM, Qwen2ForCausalLM,
Qwen3ForCausalLM, Qwen3MoeForCausalLM, Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3ForConditionalGeneration (its language
model), Phi3ForCausalLM, GptOssForCausalLM.

Examples:
  cube-gguf quantize Llama-3.2-1B-Instruct llama-q4_k_m.gguf Q4_K_M
  cube-gguf quantize model-f16.gguf model-q4_k_m.gguf Q4_K_M
  cube-gguf quantize model-f16.gguf model-iq4_xs.gguf IQ4_XS --imatrix model.imatrix.gguf
  cube-gguf quantize model-bf16.gguf out.gguf Q4_0 --tensor 'output.weight=Q8_0' --tensor 'blk.*.ffn_down.weight=Q5_K'")]
pub struct Arguments {
    /// A GGUF file of any types, or any shard of a split one; or a checkpoint: a folder of safetensors files, one such file, or
    /// the index of several.
    input: PathBuf,
    /// The file to write.
    output: PathBuf,
    /// The recipe.
    #[arg(value_name = "TYPE")]
    recipe: Recipe,
    /// A type for the matrices whose names match; the first that does counts. May be given again.
    #[arg(long = "tensor", value_name = "GLOB=TYPE", value_parser = Override::parse)]
    overrides: Vec<Override>,
    /// A file of `cube-gguf imatrix` or llama.cpp's: which columns matter most.
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgument,
}

/// A type for the tensors whose names match.
#[derive(Clone, Debug)]
struct Override {
    names: GlobMatcher,
    ty: GgmlType,
}

impl Override {
    fn parse(text: &str) -> Result<Self, String> {
        let (glob, ty) = text.rsplit_once('=').ok_or("not GLOB=TYPE")?;
        let names = Glob::new(glob).map_err(|error| error.to_string())?.compile_matcher();
        let ty: GgmlType = ty.parse().map_err(|error| format!("{error}"))?;
        Ok(Self { names, ty })
    }
}

/// The error of a Ctrl-C.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
struct Interrupted;

pub fn run(arguments: &Arguments) -> Outcome<ExitCode> {
    interrupt::install()?;
    match quantize(arguments) {
        Err(error) if error.is::<Interrupted>() => Ok(ExitCode::from(INTERRUPTED)),
        result => result.map(|()| ExitCode::SUCCESS),
    }
}

fn quantize(arguments: &Arguments) -> Outcome {
    let input = Input::open(&arguments.input)?;
    let gguf = input.parse()?;
    let tensors = input.tensors(&gguf);
    let imatrix = arguments.imatrix.as_deref().map(Imatrix::read).transpose()?;
    let device = Quantizer::open(&arguments.device)?;
    let plan = plan(arguments, gguf.metadata(), tensors, imatrix.is_some())?;
    for (tensor, ty) in &plan {
        check_quantizer(tensor, *ty, &device)?;
        check_importance(tensor, *ty, arguments.recipe, imatrix.as_ref())?;
    }
    let header = header(arguments, gguf.metadata(), &plan, imatrix.as_ref())?;
    let listening = interrupt::listen();
    let mut out = header.begin(PartFile::create(&arguments.output)?)?;

    let bar = ProgressBar::new(plan.iter().map(|(tensor, _)| tensor.elements() as u64).sum());
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {percent}% {eta} {wide_msg}") {
        bar.set_style(style);
    }
    let (mut before, mut after, mut elements) = (0, 0, 0);
    for (tensor, ty) in plan {
        bar.set_message(escape(tensor.name()));
        let importance = imatrix.as_ref().map(|imatrix| imatrix.of(tensor.name(), tensor.dims())).transpose();
        let importance = importance.map_err(|error| format!("{}: {error}", tensor.name()))?.flatten();
        let job = Job { tensor, ty, importance, device: &device, bar: &bar, listening: &listening };
        let error = job.write(&mut out).map_err(|error| match error.is::<Interrupted>() {
            true => error,
            false => format!("{}: {error}", tensor.name()).into(),
        })?;
        let from = tensor.dtype()?;
        bar.suspend(|| print(&format!("{}\n", line(&tensor, from, ty, error))))?;
        before += from.row_bytes(tensor.elements()).unwrap_or(0);
        after += ty.row_bytes(tensor.elements()).unwrap_or(0);
        elements += tensor.elements();
    }
    bar.finish_and_clear();
    out.finish()?.finish()?;
    let bits = |bytes: usize| {
        format!("{} ({:.2} bits a weight)", HumanBytes(bytes as u64), 8.0 * bytes as f64 / elements.max(1) as f64)
    };
    print(&format!("{} -> {}\n", bits(before), bits(after)))?;
    Ok(())
}

/// Tensors with their types in the new file.
type Plan<'a> = Vec<(Source<'a>, GgmlType)>;

/// All tensors with their types.
fn plan<'a>(
    arguments: &Arguments,
    metadata: &Metadata<'_>,
    tensors: Vec<Source<'a>>,
    has_imatrix: bool,
) -> Outcome<Plan<'a>> {
    let model = Model::of(metadata, tensors.iter().map(Source::name));
    let mut types = Types::new(arguments.recipe, model, has_imatrix);
    let mut plan = Vec::new();
    for tensor in tensors {
        let own = tensor.dtype()?;
        let named = arguments.overrides.iter().find(|by| by.names.is_match(tensor.name()));
        let ty = match named {
            _ if !own.is_weights() || !is_quantized(tensor.name(), tensor.dims()) => own,
            // It counts for the matrices after it all the same.
            Some(by) => {
                types.next(tensor.name(), tensor.dims());
                by.ty
            }
            None => types.next(tensor.name(), tensor.dims()),
        };
        plan.push((tensor, ty));
    }
    Ok(plan)
}

/// Refuses what cannot be quantized before anything is written.
fn check_quantizer(tensor: &Source<'_>, ty: GgmlType, device: &Quantizer) -> Outcome {
    let is_copied = tensor.dtype()? == ty || ty.block_size() == 1 && ty.is_weights();
    let has_kernel = DeviceTensor::quantizes(ty);
    if is_copied || has_kernel && matches!(device, Quantizer::Kernels(_)) || has_kernel && device.has_candle(ty) {
        return Ok(());
    }
    Err(format!("{}: there is no quantizer for {ty}", tensor.name()).into())
}

/// Refuses types that leave too little of a model where there are no importances.
fn check_importance(tensor: &Source<'_>, ty: GgmlType, recipe: Recipe, imatrix: Option<&Imatrix>) -> Outcome {
    let name = tensor.name();
    if !is_quantized(name, tensor.dims()) || !recipe.needs_imatrix(name, ty) {
        return Ok(());
    }
    match imatrix {
        None => Err(format!("{name}: {ty} needs the importances that --imatrix gives").into()),
        Some(imatrix) => match imatrix.of(name, tensor.dims()).map_err(|error| format!("{name}: {error}"))? {
            None => {
                Err(format!("{name}: {ty} needs importances, and {} has none of it", imatrix.path.display()).into())
            }
            Some(_) => Ok(()),
        },
    }
}

/// The header of the new file: the metadata of the old one, but for what says how it is split and quantized.
fn header(
    arguments: &Arguments,
    metadata: &Metadata<'_>,
    plan: &Plan<'_>,
    imatrix: Option<&Imatrix>,
) -> Outcome<Writer> {
    // What llama.cpp says of an importance matrix, too.
    const IMATRIX: &str = "quantize.imatrix.";
    const VERSION: &str = "general.quantization_version";
    const FILE_TYPE: &str = "general.file_type";
    let mut writer = Writer::new();
    for (key, value) in metadata.iter() {
        if !key.starts_with("split.") && !key.starts_with(IMATRIX) && key != VERSION && key != FILE_TYPE {
            writer.value(key, value)?;
        }
    }
    writer.metadata(VERSION, 2u32)?.metadata(FILE_TYPE, arguments.recipe.file_type())?;
    if let Some(imatrix) = imatrix {
        writer.metadata(&format!("{IMATRIX}file"), &*imatrix.path.to_string_lossy())?;
        writer.metadata(&format!("{IMATRIX}entries_count"), imatrix.len() as u32)?;
        if let Some(dataset) = &imatrix.dataset {
            writer.metadata(&format!("{IMATRIX}dataset"), &**dataset)?;
        }
        if let Some(chunks) = imatrix.chunks {
            writer.metadata(&format!("{IMATRIX}chunks_count"), chunks)?;
        }
    }
    for (tensor, ty) in plan {
        writer.tensor(tensor.name(), tensor.dims(), *ty)?;
    }
    Ok(writer)
}

/// What quantizes.
enum Quantizer {
    /// A device's kernels, which are CubeCL's CPU runtime for host memory: they give the same bytes everywhere.
    Kernels(CubeDevice),
    /// Candle's code, in a build without that runtime.
    Candle,
}

impl Quantizer {
    fn open(device: &DeviceArgument) -> cube_gguf::Result<Self> {
        Ok(match device.open()? {
            Device::Cube(device) => Self::Kernels(device),
            Device::Cpu => CubeDevice::new(Backend::CubeCpu, 0).map_or(Self::Candle, Self::Kernels),
        })
    }

    /// Whether Candle's code is here and quantizes to the type.
    fn has_candle(&self, ty: GgmlType) -> bool {
        use GgmlType::{Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, Q8_1};
        let has = matches!(ty, Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | Q8_1 | Q2K | Q3K | Q4K | Q5K | Q6K);
        matches!(self, Self::Candle) && has
    }

    /// The blocks of `n` rows of `k` values, by the importances of their columns where there are some.
    fn blocks(&self, ty: GgmlType, values: &[f32], [n, k]: [usize; 2], importance: Option<&[f32]>) -> Outcome<Vec<u8>> {
        Ok(match (self, importance) {
            (Self::Kernels(device), None) => DeviceTensor::quantize(device, ty, n, k, values)?.data()?,
            (Self::Kernels(device), Some(importance)) => {
                DeviceTensor::quantize_by_importance(device, ty, n, k, values, importance)?.data()?
            }
            (Self::Candle, importance) => {
                let values = Tensor::from_slice(values, (n, k), &Host::Cpu)?;
                let tensor = match importance {
                    Some(importance) => QTensor::quantize_imatrix_onto(&values, importance, ty, &Device::Cpu)?,
                    None => QTensor::quantize_onto(&values, ty, &Device::Cpu)?,
                };
                tensor.data()?.into_owned()
            }
        })
    }
}

/// A tensor on its way into the new file.
struct Job<'a> {
    tensor: Source<'a>,
    ty: GgmlType,
    /// A row of importances of its columns for each of its matrices.
    importance: Option<&'a [f32]>,
    device: &'a Quantizer,
    bar: &'a ProgressBar,
    listening: &'a Listening,
}

impl Job<'_> {
    /// Writes the tensor's data; the relative error where it got another type.
    fn write(&self, out: &mut TensorWriter<impl Write>) -> Outcome<Option<f64>> {
        self.check_interrupt()?;
        if self.tensor.elements() == 0 {
            out.data(&[])?;
            return Ok(None);
        }
        if self.tensor.dtype()? == self.ty
            && let Some((tensor, files)) = self.tensor.in_file()
        {
            let bytes = tensor.size_in_bytes()?;
            let mut part = vec![0; bytes.min(STRIPE_BYTES)];
            for first in (0..bytes).step_by(STRIPE_BYTES) {
                self.check_interrupt()?;
                let part = &mut part[..STRIPE_BYTES.min(bytes - first)];
                files.read(&tensor, first, part)?;
                out.part(part)?;
            }
            self.bar.inc(self.tensor.elements() as u64);
            return Ok(None);
        }
        let rows_of = self.tensor.reader()?;
        let (n, k) = (rows_of.n, rows_of.k);
        if rows_of.format.ty == self.ty {
            for (first, rows) in stripes(n, k, STRIPE_BYTES) {
                self.check_interrupt()?;
                out.part(&rows_of.read(first, rows)?)?;
                self.bar.inc((rows * k) as u64);
            }
            return Ok(None);
        }
        let mut error = Error::default();
        // The matrices of a stack have importances of their own.
        let matrices = self.importance.map_or(1, |importance| importance.len() / k);
        for matrix in 0..matrices {
            let importance = self.importance.map(|importance| &importance[matrix * k..][..k]);
            let rows_each = n / matrices;
            for (first, rows) in stripes(rows_each, k, STRIPE_BYTES) {
                self.check_interrupt()?;
                let first = matrix * rows_each + first;
                let mut values = vec![0.0f32; rows * k];
                decode(rows_of.format, &rows_of.read(first, rows)?, &mut values);
                let odd = values.par_iter().position_first(|value| !value.is_finite());
                if let Some(odd) = odd.filter(|_| self.ty.block_size() > 1) {
                    return Err(cube_gguf::Error::NotFinite { row: first + odd / k }.into());
                }
                let data = self.converted(&values, [rows, k], importance)?;
                error.add(self.ty, &data, &values);
                out.part(&data)?;
                self.bar.inc(values.len() as u64);
            }
        }
        Ok(Some(error.relative()))
    }

    /// The error of a Ctrl-C, where somebody pressed it.
    fn check_interrupt(&self) -> Outcome {
        if self.listening.is_interrupted() { Err(Interrupted.into()) } else { Ok(()) }
    }

    /// The bytes of rows of values.
    fn converted(&self, values: &[f32], shape: [usize; 2], importance: Option<&[f32]>) -> Outcome<Vec<u8>> {
        Ok(match self.ty {
            GgmlType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            GgmlType::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
            GgmlType::BF16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
            ty => self.device.blocks(ty, values, shape, importance)?,
        })
    }
}

/// Decodes little-endian blocks on all cores.
fn decode(format: &Format, data: &[u8], values: &mut [f32]) {
    const BLOCKS: usize = 1 << 12;
    let (size, bytes) = (format.ty.block_size() * BLOCKS, format.ty.block_bytes() * BLOCKS);
    values.par_chunks_mut(size).zip(data.par_chunks(bytes)).for_each(|(values, data)| {
        format.dequantize_blocks(data, values);
    });
}

/// Sums of squares of errors and of values.
#[derive(Default)]
struct Error {
    errors: f64,
    values: f64,
}

impl Error {
    fn add(&mut self, ty: GgmlType, data: &[u8], values: &[f32]) {
        let Some(format) = cube_gguf::internals::format(ty) else { return };
        let mut decoded = vec![0.0f32; values.len()];
        decode(format, data, &mut decoded);
        let sums = |(a, b): (&[f32], &[f32])| {
            let pairs = a.iter().zip(b);
            pairs.fold((0.0, 0.0), |sums, (&a, &b)| {
                (sums.0 + (f64::from(a) - f64::from(b)).powi(2), sums.1 + f64::from(b).powi(2))
            })
        };
        let (errors, values) = decoded
            .par_chunks(1 << 16)
            .zip(values.par_chunks(1 << 16))
            .map(sums)
            .reduce(|| (0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
        self.errors += errors;
        self.values += values;
    }

    /// The root of the one over the other.
    fn relative(&self) -> f64 {
        if self.errors == 0.0 { 0.0 } else { (self.errors / self.values).sqrt() }
    }
}

/// What is said of a tensor.
fn line(tensor: &Source<'_>, from: GgmlType, to: GgmlType, error: Option<f64>) -> impl fmt::Display {
    let name = escape(tensor.name());
    let shape = shape(&tensor.dims().iter().rev().map(|&extent| extent as usize).collect::<Vec<_>>());
    match error {
        None => format!("{name:40} {shape:>16} {from}"),
        Some(error) => format!("{name:40} {shape:>16} {from} -> {to}, error {:.3}%", 100.0 * error),
    }
}
