//! `cargo xtask hip-report`: what the compiler made of every kernel for every AMD architecture, without a GPU.

use std::ffi::OsString;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::steps::{Cost, Outcome};
use crate::{hip_stand_in, process, setup};

#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    /// `--help` lists them: architectures, files to write, a filter.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

pub fn run(args: &Args) -> Result<()> {
    setup::run()?;
    report(&args.arguments)
}

/// The report, of which only what breaks a budget is printed, on some architectures and formats, or on all of both. All
/// take every kernel; some leave out those that differ from others only in how they end.
pub fn budgets(archs: &[&str], formats: &[String]) -> Outcome {
    let json = hip_stand_in::folder().join("hip-report.json");
    let mut arguments: Vec<OsString> = vec!["--summary".into(), "--json".into(), (&json).into()];
    if !archs.is_empty() {
        arguments.push("--sample".into());
    }
    arguments.extend(archs.iter().flat_map(|arch| ["--arch".into(), arch.into()]));
    arguments.extend(formats.iter().flat_map(|format| ["--format".into(), format.into()]));
    report(&arguments)?;
    let text = fs::read(&json).with_context(|| format!("cannot read {}", json.display()))?;
    let report: Value = serde_json::from_slice(&text).context("the report is no JSON")?;
    rows(&report).context("the report has rows of another kind")
}

/// The kernels that each row of the report counts as.
fn rows(report: &Value) -> Option<Vec<Cost>> {
    let cost = |row: &Value| {
        let word = |key: &str| row[key].as_str().map(str::to_owned);
        Some(Cost { device: word("arch")?, operation: word("operation")?, kernels: 1, ..Cost::default() })
    };
    report["rows"].as_array()?.iter().map(cost).collect()
}

/// The report's own tests.
pub fn tests() -> Result<()> {
    process::run(&mut cargo("test"), "the HIP report's tests")
}

/// The report's package, which has CubeCL with the features of the tests.
fn cargo(command: &str) -> Command {
    process::cargo([command, "--quiet", "--package", "hip-report"])
}

/// Fails where a budget is broken. The report makes one process for each architecture, and sets what the GPU says it is.
fn report(arguments: &[OsString]) -> Result<()> {
    let environment = hip_stand_in::environment("", None)?;
    let mut report = Command::new(process::built(&mut cargo("build"), "hip-report")?);
    report.args(arguments).current_dir(process::root()).envs(environment);
    process::run(&mut report, "the HIP report")
}
