//! `cargo xtask hip-report`: what the compiler made of every kernel for every AMD architecture, without a GPU.

use std::ffi::OsString;

use anyhow::Result;

use crate::test::CI_FEATURES;
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

/// Fails where a budget is broken. The report makes one process for each architecture, and sets what the GPU says it is.
pub fn report(arguments: &[OsString]) -> Result<()> {
    let environment = hip_stand_in::environment("", None)?;
    let mut cargo = process::cargo(["run", "--quiet", "--features", CI_FEATURES, "--example", "hip_report", "--"]);
    process::run(cargo.args(arguments).envs(environment), "the HIP report")
}
