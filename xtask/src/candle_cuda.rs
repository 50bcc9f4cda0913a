//! `cargo xtask candle-cuda`: this crate's weights beside Candle's CUDA tensors, on a machine with nvcc and a GPU of NVIDIA's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process;
use anyhow::{Context, Result};

/// The tool with the tests.
const TOOL: &str = "candle-cuda";
/// The feature of `cudarc` by which Candle finds CUDA's libraries, and the one by which CubeCL does. They exclude each other.
const LINKING: &str = "\"dynamic-linking\"";
const LOADING: &str = "\"dynamic-loading\"";

#[derive(clap::Args)]
pub struct Args {
    /// Instead of the tests, the microseconds of products with Candle's quantized weights and with this crate's.
    #[arg(long)]
    speed: bool,
}

pub fn run(args: &Args) -> Result<()> {
    write_candle()?;
    match args.speed {
        true => process::run(cargo("run").args(["--release", "--example", "speed"]), "the comparison of speeds"),
        false => process::run(&mut cargo("test"), "the tests beside Candle's CUDA tensors"),
    }
}

/// Lints without nvcc: a program that writes empty files stands in its place.
pub fn lint() -> Result<()> {
    write_candle()?;
    let stand_in = process::root().join("tools").join(TOOL).join("stand-in");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths([stand_in].into_iter().chain(std::env::split_paths(&path)))?;
    let mut cargo = cargo("clippy");
    cargo.args(["--quiet", "--all-targets", "--", "-D", "warnings"]);
    process::run(cargo.env("PATH", path).env("CUDA_COMPUTE_CAP", "90"), "clippy of candle-cuda")
}

/// A copy of candle-core that loads CUDA's libraries.
fn write_candle() -> Result<()> {
    let package = process::package(&mut process::cargo(["metadata"]), "candle-core")?;
    let manifest = package["manifest_path"].as_str().context("cargo names no manifest")?;
    let from = Path::new(manifest).parent().context("candle-core is in no folder")?;
    let to = process::root().join("target").join(TOOL).join("candle-core");
    let manifest = fs::read_to_string(manifest)?;
    anyhow::ensure!(manifest.contains(LINKING), "candle-core links CUDA's libraries no longer: the copy is not needed");
    let manifest = manifest.replace(LINKING, LOADING);
    // What has not changed is not compiled anew.
    if fs::read_to_string(to.join("Cargo.toml")).is_ok_and(|before| before == manifest) {
        return Ok(());
    }
    copy(&from.join("src"), &to.join("src"))?;
    fs::write(to.join("Cargo.toml"), manifest).with_context(|| format!("cannot write {}", to.display()))
}

/// Copies a folder.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let (from, to): (PathBuf, PathBuf) = (entry.path(), to.join(entry.file_name()));
        match entry.file_type()?.is_dir() {
            true => copy(&from, &to)?,
            false => drop(fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?),
        }
    }
    Ok(())
}

fn cargo(command: &str) -> Command {
    process::cargo_of_tool(TOOL, command)
}
