//! `cargo xtask hip-report`: what the compiler made of every kernel for every AMD architecture, without a GPU.

use std::ffi::OsString;
use std::process::Command;

use anyhow::Result;

use crate::{hip_stand_in, process, setup, test};

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

/// Fails where a budget is broken. The report makes one process for each architecture, and sets what the GPU says it is.
pub fn report(arguments: &[OsString]) -> Result<()> {
    let environment = hip_stand_in::environment("", None)?;
    let mut report = Command::new(test::built(&["--example", "hip_report"], "hip_report")?);
    report.args(arguments).current_dir(process::root()).envs(environment);
    process::run(&mut report, "the HIP report")
}
