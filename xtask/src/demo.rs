//! `cargo xtask demo`: set-up, a real model, and every tensor of it verified on the best device.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use libloading::Library;

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

    let features = features();
    println!("Features for this machine: {features}");
    let mut cargo = process::cargo(["run", "--release", "--features", &features]);
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

/// The command line, and a backend for each GPU library here, so that no other is compiled.
fn features() -> String {
    let mut features = vec!["cli"];
    if cfg!(target_os = "macos") {
        features.push("metal");
    } else {
        if loads(Path::new("libcuda.so.1")) {
            features.push("cuda");
        }
        if hip() {
            features.push("hip");
        }
        if loads(Path::new("libvulkan.so.1")) {
            features.push("vulkan");
        }
    }
    features.join(",")
}

/// Looks where cubecl-hip-sys does.
fn hip() -> bool {
    let named = ["ROCM_PATH", "HIP_PATH"]
        .into_iter()
        .filter_map(std::env::var_os)
        .map(PathBuf::from)
        .flat_map(|root| [root.join("lib"), root]);
    let system = PathBuf::new();
    named
        .chain([system])
        .any(|dir| ["libamdhip64.so", "libamdhip64.so.1", "libamdhip64.so.0"].iter().any(|name| loads(&dir.join(name))))
}

fn loads(library: &Path) -> bool {
    // SAFETY: GPU drivers' libraries, whose initializers any GPU program runs.
    unsafe { Library::new(library) }.is_ok()
}
