//! `cargo xtask candle-models`: Candle's own models from Candle's sources, with this crate's tensors in place of Candle's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::process;

/// The tool with the tests, and the crates that stand in the place of Candle's.
const TOOL: &str = "candle-models";
const PACKAGE: &str = "candle-transformers";

#[derive(clap::Args)]
pub struct Args {
    /// Instead of the tests, how fast Candle's Gemma 3 and this crate's own are on the host, with this GGUF file.
    #[arg(long, value_name = "GEMMA")]
    speed: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<()> {
    let Some(file) = &args.speed else { return tests() };
    write_manifest()?;
    let mut speed = cargo("run");
    speed.args(["--release", "--example", "speed", "--"]).arg(process::absolute(file)?);
    process::run(&mut speed, "the comparison of speeds")
}

/// The models give the same with either crate's tensors.
pub fn tests() -> Result<()> {
    write_manifest()?;
    process::run(&mut cargo("test"), "the tests of Candle's models")
}

/// The manifest of Candle's models as a second package: their sources where cargo has put them, and other crates for Candle's.
fn write_manifest() -> Result<()> {
    let folder = process::root().join("target").join(TOOL);
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    // Cargo finds the sources by a manifest that names this one, which must be there.
    if !folder.join("Cargo.toml").exists() {
        write(&folder, &manifest(&Value::Null, Path::new("lib.rs"))?)?;
    }
    let package = process::package(&mut cargo("metadata"), PACKAGE)?;
    let theirs = package["manifest_path"].as_str().context("cargo names no manifest")?;
    write(&folder, &manifest(&package["dependencies"], &Path::new(theirs).with_file_name("src").join("lib.rs"))?)
}

fn write(folder: &Path, manifest: &str) -> Result<()> {
    let path = folder.join("Cargo.toml");
    // What has not changed is not compiled anew.
    if fs::read_to_string(&path).is_ok_and(|before| before == manifest) {
        return Ok(());
    }
    fs::write(&path, manifest).with_context(|| format!("cannot write {}", path.display()))
}

/// The manifest for dependencies as cargo's metadata has them.
fn manifest(dependencies: &Value, library: &Path) -> Result<String> {
    let mut text = format!(
        "[workspace]\n\n[package]\nname = \"{PACKAGE}-swapped\"\nversion = \"0.11.1\"\nedition = \"2021\"\n\n\
         [lib]\npath = {library:?}\n\n[features]\n",
    );
    for feature in ["accelerate", "cuda", "cudnn", "flash-attn", "metal", "mkl"] {
        text += &format!("{feature} = []\n");
    }
    text += "\n[dependencies]\n";
    let ours = |part: &str| process::root().join("tools").join(TOOL).join(part);
    text += &format!("candle = {{ package = \"candle-core-swapped\", path = {:?} }}\n", ours("core"));
    text += &format!("candle-nn = {{ package = \"candle-nn-swapped\", path = {:?} }}\n", ours("nn"));
    for dependency in dependencies.as_array().into_iter().flatten() {
        let name = dependency["name"].as_str().context("a dependency without a name")?;
        let is_needed = dependency["kind"].is_null() && dependency["optional"] == false;
        if is_needed && !["candle-core", "candle-nn"].contains(&name) {
            text += &format!("{name} = {{ version = {}, features = {} }}\n", dependency["req"], dependency["features"]);
        }
    }
    Ok(text)
}

fn cargo(command: &str) -> Command {
    process::cargo_of_tool(TOOL, command)
}
