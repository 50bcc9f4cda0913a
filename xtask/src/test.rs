//! `cargo xtask test`: set-up, then the tests.

use anyhow::Result;

use crate::{process, setup};

/// Every backend that builds on a machine without its GPU.
pub const CI_FEATURES: &str = "hip,cuda,vulkan,cli";

#[derive(clap::Args)]
pub struct Args {
    /// Handed on to `cargo test`.
    #[arg(last = true)]
    cargo_args: Vec<String>,
}

pub fn run(args: &Args) -> Result<()> {
    setup::run()?;
    tests(&args.cargo_args)
}

/// The tests, on a machine that is set up.
pub fn tests(cargo_args: &[String]) -> Result<()> {
    let mut cargo = process::cargo(["test", "--workspace", "--features", CI_FEATURES]);
    process::run(cargo.args(cargo_args), "cargo test")
}
