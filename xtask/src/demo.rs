//! `cargo xtask demo`: set-up, a real model, and every tensor of it verified on the best device.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::ci::ALL_BACKENDS;
use crate::{model, process, setup};

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

    // Which of them has a device shows at run time.
    let mut cargo = process::cargo(["run", "--features", ALL_BACKENDS]);
    cargo.args(["--bin", "cube-gguf", "--", "verify"]);
    cargo.arg(model).args(["--device", &args.device]);
    process::run(&mut cargo, "cube-gguf verify")
}

/// The file as an absolute path: cargo runs in the workspace, whatever the caller's directory.
fn given(file: &Path) -> Result<PathBuf> {
    if !file.is_file() {
        bail!("{} is not a file", file.display());
    }
    std::path::absolute(file).with_context(|| format!("no absolute path for {}", file.display()))
}
