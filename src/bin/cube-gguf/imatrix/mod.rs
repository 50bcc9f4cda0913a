//! `cube-gguf imatrix`.

mod file;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use cube_gguf::gguf::Files;
use cube_gguf::models::{Importance, Session};
use cube_gguf::text::{Special, Tokenizer};
use indicatif::{ProgressBar, ProgressStyle};

pub use self::file::Imatrix;
use self::file::{Source, write};
use crate::generate::load_model;
use crate::interrupt::{self, Listening};
use crate::output::print;
use crate::part::PartFile;
use crate::{DeviceArgument, INTERRUPTED, Outcome};

#[derive(Args)]
#[command(after_help = "\
The text is cut into chunks, which the model reads one by one, each from its start; what is left over is not read. Of every
matrix of a layer the squares of its inputs are summed up, in the file that llama.cpp's `imatrix` writes: llama-quantize takes
it, and so does `cube-gguf quantize`. The file appears once it is complete.

Examples:
  cube-gguf imatrix model-f16.gguf --text calibration.txt -o imatrix.gguf
  cube-gguf imatrix model-f16.gguf --text calibration.txt -o imatrix.gguf --chunks 100 --device rocm
  cube-gguf quantize model-f16.gguf model-iq4_xs.gguf IQ4_XS --imatrix imatrix.gguf")]
pub struct Arguments {
    /// A GGUF file, or any shard of a split one.
    file: PathBuf,
    /// The text to run the model on, in UTF-8.
    #[arg(long, value_name = "TEXT_FILE")]
    text: PathBuf,
    /// The file to write.
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// Tokens of a chunk.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    chunk: u32,
    /// The most chunks to read: by default all.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    chunks: Option<u32>,
    /// Also measure the matrix that gives the logits, which llama.cpp advises to quantize without importances.
    #[arg(long)]
    process_output: bool,
    #[command(flatten)]
    device: DeviceArgument,
}

pub fn run(arguments: &Arguments) -> Outcome<ExitCode> {
    let files = Files::open(&arguments.file)?;
    let file = files.parse()?;
    let tokenizer = Tokenizer::from_gguf(file.metadata())?;
    let tokens = tokens(arguments, &tokenizer)?;
    let device = arguments.device.open()?;
    interrupt::install()?;
    let model = load_model(&file, &device, false)?;
    let start = Instant::now();
    let session = model.session(arguments.chunk as usize)?.with_importances();
    let listening = interrupt::listen();
    let part = PartFile::create(&arguments.output)?;
    let Some((chunks, importances)) = measure(arguments, &tokens, session, &listening)? else {
        return Ok(ExitCode::from(INTERRUPTED));
    };
    let text = arguments.text.to_string_lossy();
    let source = Source { text: &text, chunks: [chunks, arguments.chunk] };
    write(part, &importances, &source)?.finish()?;
    print(&format!(
        "chunks: {chunks}, tokens: {}, matrices: {}, seconds: {:.1}\n",
        u64::from(chunks) * u64::from(arguments.chunk),
        importances.len(),
        start.elapsed().as_secs_f64(),
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// The tokens of the text's chunks, of which each starts like a text.
fn tokens(arguments: &Arguments, tokenizer: &Tokenizer) -> Outcome<Vec<u32>> {
    let name = arguments.text.display();
    let text = fs::read_to_string(&arguments.text).map_err(|error| format!("{name}: {error}"))?;
    if text.is_empty() {
        return Err(format!("{name}: the text is empty").into());
    }
    let (mut tokens, chunk) = (tokenizer.encode(&text, Special { add: true, parse: false })?, arguments.chunk as usize);
    let most = arguments.chunks.map_or(usize::MAX, |chunks| chunks as usize);
    let chunks = (tokens.len() / chunk).min(most);
    if chunks == 0 {
        return Err(format!("{name}: {} tokens are no whole chunk of {chunk}", tokens.len()).into());
    }
    tokens.truncate(chunks * chunk);
    if let Some(first) = tokenizer.added_start() {
        tokens.chunks_exact_mut(chunk).for_each(|chunk| chunk[0] = first);
    }
    Ok(tokens)
}

/// Reads all chunks; how many there were and the importances, nothing where Ctrl-C ended it.
fn measure(
    arguments: &Arguments,
    tokens: &[u32],
    mut session: Session<'_>,
    listening: &Listening,
) -> Outcome<Option<(u32, Vec<Importance>)>> {
    let chunks = tokens.chunks_exact(arguments.chunk as usize);
    let count = chunks.len();
    let bar = ProgressBar::new(count as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} chunks {eta}") {
        bar.set_style(style);
    }
    for chunk in chunks {
        session.truncate(0);
        session.feed(chunk)?;
        bar.inc(1);
        if listening.is_interrupted() {
            bar.finish_and_clear();
            return Ok(None);
        }
    }
    let mut importances = session.importances()?;
    bar.finish_and_clear();
    // As llama.cpp does: what comes after the layers has to be asked for.
    importances.retain(|entry| arguments.process_output || entry.name.starts_with("blk."));
    for entry in &importances {
        if let Some(sum) = entry.sums.iter().find(|sum| !sum.is_finite()) {
            return Err(format!("{}: a sum of squares of its inputs is {sum}", entry.name).into());
        }
    }
    Ok(Some((count as u32, importances)))
}
