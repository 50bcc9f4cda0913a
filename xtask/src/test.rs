//! `cargo xtask test`: set-up, then the tests.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{hip_stand_in, process, setup};

/// Every backend that builds on a machine without its GPU.
pub const CI_FEATURES: &str = "hip,cuda,vulkan,cli";

/// The AMD architectures that the table of operations runs as: RDNA3, RDNA4, CDNA2, CDNA3.
const ARCHITECTURES: [&str; 4] = ["gfx1100", "gfx1201", "gfx90a", "gfx942"];

/// How many of them run at once: each compiles its kernels on a thread of its own, and takes a gigabyte.
const AT_ONCE: usize = 2;

#[derive(clap::Args)]
pub struct Args {
    /// Handed on to `cargo test`; with any, the tests on the HIP stand-in are left out.
    #[arg(last = true)]
    cargo_args: Vec<String>,
}

pub fn run(args: &Args) -> Result<()> {
    setup::run()?;
    tests(&args.cargo_args)
}

/// The tests, on a machine that is set up: those that compute first.
pub fn tests(cargo_args: &[String]) -> Result<()> {
    process::run(cargo_test().args(cargo_args), "cargo test")?;
    match cargo_args {
        [] => amd(),
        _ => Ok(()),
    }
}

fn cargo_test() -> Command {
    process::cargo(["test", "--workspace", "--features", CI_FEATURES])
}

/// The table of operations on CubeCL's HIP runtime, over the HIP stand-in: every kernel is compiled, loaded and
/// launched, and every error, length and pointer checked. Nothing computes, so no numbers are compared.
fn amd() -> Result<()> {
    if !cfg!(target_os = "linux") {
        println!("HIP stand-in: skipped, it is for Linux");
        return Ok(());
    }
    let program = built(&["--test", "devices"], "devices")?;
    let mut environments = Vec::new();
    for arch in ARCHITECTURES {
        environments.push((arch, hip_stand_in::environment(arch, None)?));
    }
    let waiting = Mutex::new(environments.into_iter());
    let failed = Mutex::new(Vec::new());
    let next = || waiting.lock().ok()?.next();
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((arch, environment)) = next() {
                    let start = Instant::now();
                    let outcome = on_stand_in(&program, arch, environment);
                    let seconds = start.elapsed().as_secs_f64();
                    match outcome {
                        Ok(summary) => println!("HIP stand-in as {arch}: ok, {summary} ({seconds:.0} s)"),
                        Err(error) => {
                            println!("HIP stand-in as {arch}: FAILED, {error:#} ({seconds:.0} s)");
                            failed.lock().map(|mut failed| failed.push(arch)).ok();
                        }
                    }
                }
            });
        }
    });
    match failed.into_inner().context("a thread was lost")?[..] {
        [] => Ok(()),
        ref failed => bail!("failed on the HIP stand-in as {}", failed.join(", ")),
    }
}

/// A program of the workspace, built with the dependencies that the tests have: the features of one package's alone would
/// be others, and build CubeCL again.
pub fn built(selection: &[&str], name: &str) -> Result<PathBuf> {
    let mut cargo = process::cargo(["build", "--workspace", "--features", CI_FEATURES]);
    process::built(cargo.args(selection), name)
}

/// Runs the table as one architecture. What went well is the summary, in the error is what did not.
fn on_stand_in(program: &Path, arch: &str, environment: Vec<(OsString, OsString)>) -> Result<String> {
    let file = |extension: &str| hip_stand_in::folder().join(format!("{arch}.{extension}"));
    let (log, report) = (file("log"), file("json"));
    let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let errors = output.try_clone().context("no second handle of a file")?;
    let mut table = Command::new(program);
    table.envs(environment).env("CUBE_GGUF_TEST_DEVICES", "rocm:0").env("HIP_STAND_IN_REPORT", &report);
    table.current_dir(process::root()).stdin(Stdio::null()).stdout(output).stderr(errors);
    let outcome = process::run(&mut table, "the table");
    outcome.with_context(|| format!("see {}", log.display()))?;

    let report = fs::read(&report).with_context(|| format!("cannot read {}", report.display()))?;
    let report: Value = serde_json::from_slice(&report).context("the report is no JSON")?;
    let number = |key: &str| report[key].as_u64().with_context(|| format!("the report has no {key}"));
    if number("errors")? > 0 {
        bail!("HIP answered {} calls with errors: {}", number("errors")?, report["messages"]);
    }
    let text = fs::read_to_string(&log).with_context(|| format!("cannot read {}", log.display()))?;
    let passed = text.lines().find_map(|line| line.strip_prefix("test result: ok. ")?.split(';').next());
    Ok(format!(
        "{}, {} launches of {} code objects, {} MB at most",
        passed.context("the log has no result")?,
        number("launches")?,
        number("modules")?,
        number("peak_bytes")? / 1_000_000
    ))
}
