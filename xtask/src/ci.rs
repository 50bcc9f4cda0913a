//! `cargo xtask ci`: everything that a change must pass; with `--full`, all that is known how to prove without a GPU.

use std::fs;

use anyhow::Result;

use crate::limits::{Circle, REPORT};
use crate::steps::{self, SET_UP, Step, counted, step};
use crate::{candle_cuda, candle_models, hip_report, hip_stand_in, process, setup, test};

/// Every backend that builds on a machine without its GPU.
pub const ALL_BACKENDS: &str = if cfg!(target_os = "macos") { "metal,cli,burn" } else { "hip,cuda,vulkan,cli,burn" };

/// One architecture of each family that differs in its code: CDNA2, CDNA3, RDNA2, RDNA3, RDNA4.
const ARCHITECTURES: [&str; 5] = ["gfx90a", "gfx942", "gfx1030", "gfx1100", "gfx1201"];

/// What a user may build with alone, beside the defaults and nothing. Burn compiles beside a backend only; `wgpu` is what
/// `vulkan` and `metal` stand on.
const ALONE: [&str; 13] = [
    "",
    "cpu",
    "hip",
    "cuda",
    "cuda-cpp",
    "wgpu",
    "vulkan",
    "candle",
    "cli",
    "text",
    "models",
    "burn,cpu",
    "kernel-cache",
];

#[derive(clap::Args)]
pub struct Args {
    /// Everything: all formats as four AMD architectures, all architectures' budgets, each feature alone. An hour and more.
    #[arg(long)]
    full: bool,
}

/// The lints check the dependencies once, which the documentation then reuses.
pub fn run(args: &Args) -> Result<()> {
    let full = args.full;
    let mut steps = vec![step(SET_UP, setup::run), step("format", format)];
    steps.extend(on_linux(step("HIP stand-in", hip_stand_in::checks)));
    steps.extend(test::steps(full));
    steps.push(step("examples", test::examples));
    let report = move || match full {
        true => hip_report::budgets(&[], &[]),
        false => hip_report::budgets(&ARCHITECTURES, &[]),
    };
    steps.extend(on_linux(step("HIP report's tests", hip_report::tests)));
    steps.extend(on_linux(counted(REPORT, report)));
    let features = if full { ALL_BACKENDS } else { test::FEATURES };
    steps.push(step("lint", move || lint(features)));
    steps.push(step("documentation", move || documentation(features)));
    steps.push(step("fuzz", move || fuzz(full)));
    if full {
        steps.push(step("Burn, fusing", fusing));
        steps.push(step("each feature alone", each_feature));
        steps.push(step("Candle's models", candle_models::tests));
        steps.extend(on_linux(step("candle-cuda, lint", candle_cuda::lint)));
    }
    steps::run(Some(if full { Circle::Full } else { Circle::Ci }), &steps)
}

fn on_linux(step: Step<'static>) -> Option<Step<'static>> {
    cfg!(target_os = "linux").then_some(step)
}

pub fn format() -> Result<()> {
    process::run(&mut process::cargo(["fmt", "--all", "--check"]), "cargo fmt")
}

pub fn lint(features: &str) -> Result<()> {
    clippy(&["--workspace", "--all-targets", "--features", features])
}

/// The tests of Burn's modules, in the stream of Burn's fusing backend, which a build has in place of the plain one.
fn fusing() -> Result<()> {
    let features = format!("{},burn/fusion", test::FEATURES);
    let mut cargo = process::cargo(["test", "--quiet", "--test", "burn", "--features", &features]);
    process::run(&mut cargo, "the tests of Burn's modules, fusing")
}

fn each_feature() -> Result<()> {
    for feature in ALONE {
        clippy(&["--no-default-features", "--features", feature])?;
    }
    Ok(())
}

fn clippy(selection: &[&str]) -> Result<()> {
    let mut cargo = process::cargo(["clippy", "--quiet"]);
    process::run(cargo.args(selection).args(["--", "-D", "warnings"]), &format!("clippy {}", selection.join(" ")))
}

fn documentation(features: &str) -> Result<()> {
    let mut cargo = process::cargo(["doc", "--no-deps", "--workspace", "--features", features]);
    process::run(cargo.env("RUSTDOCFLAGS", "-D warnings"), "cargo doc")
}

/// The GGUF reader on mutated files; the fuzzer's own flags are in its `.cargo/config.toml`.
fn fuzz(full: bool) -> Result<()> {
    let root = process::root().join("fuzz");
    fs::create_dir_all(root.join("corpus"))?;
    let time = if full { "-max_total_time=60" } else { "-max_total_time=5" };
    let limits = [time, "-max_len=4096", "-rss_limit_mb=512"];
    let mut cargo = process::cargo(["run", "--release", "--quiet", "--"]);
    cargo.args(limits).args(["corpus", "../tests/gguf/corpus"]).current_dir(root).env_remove("RUSTFLAGS");
    process::run(&mut cargo, "the fuzzer")
}
