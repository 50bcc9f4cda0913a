//! `cargo xtask demo`: set-up, a real model, every tensor of it verified on the best device, and text that it writes.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::ci::ALL_BACKENDS;
use crate::{model, process, setup};

const PROMPT: &str = "The capital of France is";

#[derive(clap::Args)]
pub struct Args {
    /// A GGUF file of your own; without one, Gemma 3 270M is downloaded once (241 MB).
    #[arg(long)]
    model: Option<PathBuf>,
    /// Where to run, as `cube-gguf verify --device` takes it.
    #[arg(long, default_value = "auto")]
    device: String,
}

pub fn run(args: &Args) -> Result<()> {
    setup::run()?;
    let model = match &args.model {
        Some(file) => given(file)?,
        None => model::fetch()?,
    };

    command("verify", &model, &args.device, &[])?;
    println!("\n{PROMPT}...");
    command("generate", &model, &args.device, &["--prompt", PROMPT, "-n", "16", "--temp", "0"])
}

/// A command of `cube-gguf` on the model, with all backends: which of them has a device shows at run time.
fn command(name: &str, model: &Path, device: &str, arguments: &[&str]) -> Result<()> {
    let mut cargo = process::cargo(["run", "--features", ALL_BACKENDS]);
    cargo.args(["--bin", "cube-gguf", "--", name]);
    cargo.arg(model).args(["--device", device]).args(arguments);
    process::run(&mut cargo, &format!("cube-gguf {name}"))
}

/// The file, as cargo finds it.
fn given(file: &Path) -> Result<PathBuf> {
    if !file.is_file() {
        bail!("{} is not a file", file.display());
    }
    process::absolute(file)
}
