//! The command line: generates text, inspects GGUF files, quantizes them and checkpoints of Transformers, measures importances for
//! it, verifies devices, extracts and multiplies tensors, times and tunes.

mod bench;
mod checkpoint;
mod dequantize;
mod devices;
mod generate;
mod imatrix;
mod inspect;
mod interrupt;
mod matmul;
mod npy;
mod output;
mod part;
mod quantize;
mod table;
mod timing;
mod tune;
mod verify;
mod weights;

use std::error::Error;
use std::io::{self, Write};
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use cube_gguf::Device;
use log::{LevelFilter, Log, Metadata, Record};

/// The result of a command; its error is one sentence for stderr.
type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// The exit status of `verify` where a tensor fails.
const OUT_OF_BOUNDS: u8 = 1;
/// The exit status of any error, clap's usage errors included.
const FAILED: u8 = 2;
/// The exit status of a command that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

/// GGUF-quantized tensors on every GPU that CubeCL reaches.
///
/// Any shard of a split model stands for all of them. Errors go to stderr, one sentence each, with exit status 2.
#[derive(Parser)]
#[command(
    version,
    after_help = "\
Examples:
  cube-gguf devices
  cube-gguf generate model.gguf --prompt 'The capital of France is'
  cube-gguf inspect model.gguf
  cube-gguf verify model.gguf --device rocm --tensor 'blk.0.*'
  cube-gguf quantize model-f16.gguf model-q4_k_m.gguf Q4_K_M
  cube-gguf quantize Llama-3.2-1B-Instruct llama-q4_k_m.gguf Q4_K_M
  cube-gguf imatrix model-f16.gguf --text calibration.txt -o imatrix.gguf
  cube-gguf dequantize model.gguf token_embd.weight -o embeddings.npy --dtype f16
  cube-gguf bench --types q4_0,q4_k --tokens 1,8,512 --csv
  cube-gguf tune model.gguf --device rocm"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the devices of this build and this machine.
    Devices(devices::Arguments),
    /// Write the text that follows a prompt, or answer in a conversation.
    Generate(generate::Arguments),
    /// Show the metadata and the tensors of a model.
    Inspect(inspect::Arguments),
    /// Check that a device decodes and multiplies the tensors of a model correctly.
    Verify(verify::Arguments),
    /// Write a model with other types, fewer bits a weight.
    Quantize(quantize::Arguments),
    /// Run a model on a text to measure which columns of its matrices matter most, for `quantize`.
    Imatrix(imatrix::Arguments),
    /// Write the values of a tensor as a NumPy array.
    Dequantize(dequantize::Arguments),
    /// Multiply a NumPy array by the transpose of a tensor.
    Matmul(matmul::Arguments),
    /// Time products, their launches, dequantization or copies.
    Bench(bench::Arguments),
    /// Search for the fastest settings of products on this device, and store them for the library.
    Tune(tune::Arguments),
}

/// The option that names a device.
#[derive(Args)]
struct DeviceArgument {
    /// Where to compute: auto (the best GPU, else the CPU), cpu (Candle's kernels), cube-cpu, rocm[:i], cuda[:i],
    /// vulkan[:i], wgpu[:i] or metal[:i].
    #[arg(long, value_name = "D", default_value = "auto")]
    device: String,
}

impl DeviceArgument {
    fn open(&self) -> cube_gguf::Result<Device> {
        self.device.parse()
    }
}

fn run(command: &Command) -> Outcome<ExitCode> {
    match command {
        Command::Devices(arguments) => devices::run(arguments)?,
        Command::Generate(arguments) => return generate::run(arguments),
        Command::Inspect(arguments) => inspect::run(arguments)?,
        Command::Verify(arguments) => {
            if !verify::run(arguments)? {
                return Ok(ExitCode::from(OUT_OF_BOUNDS));
            }
        }
        Command::Quantize(arguments) => return quantize::run(arguments),
        Command::Imatrix(arguments) => return imatrix::run(arguments),
        Command::Dequantize(arguments) => dequantize::run(arguments)?,
        Command::Matmul(arguments) => matmul::run(arguments)?,
        Command::Bench(arguments) => bench::run(arguments)?,
        Command::Tune(arguments) => tune::run(arguments)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn fail(message: &str) -> ExitCode {
    let _ = writeln!(io::stderr(), "cube-gguf: {}", output::sentence(message));
    ExitCode::from(FAILED)
}

/// A logger that prints the library's own warnings: those of its dependencies are for their developers.
struct Warnings;

impl Log for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("cube_gguf")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let _ = writeln!(io::stderr(), "cube-gguf: {}", record.args());
        }
    }

    fn flush(&self) {}
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Fails only where a logger is set already.
    let _ = log::set_logger(&Warnings);
    log::set_max_level(LevelFilter::Warn);
    #[cfg(feature = "kernel-cache")]
    if let Some(cache) = dirs::cache_dir() {
        cube_gguf::keep_kernels(cache.join("cube-gguf").join("kernels"));
    }
    let main = std::thread::current().id();
    let print_panic = panic::take_hook();
    // A panic of a runtime's thread is printed as usual; one of this thread becomes an error below.
    panic::set_hook(Box::new(move |info| {
        if std::thread::current().id() != main {
            print_panic(info)
        }
    }));
    match panic::catch_unwind(AssertUnwindSafe(|| run(&cli.command))) {
        Ok(Ok(code)) => code,
        Ok(Err(error)) if output::is_closed(error.as_ref()) => ExitCode::SUCCESS,
        Ok(Err(error)) => fail(&error.to_string()),
        Err(panic) => {
            let message = panic.downcast_ref::<String>().map(String::as_str);
            let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            fail(&format!("a bug in this program or a library of it: {message}"))
        }
    }
}
