//! `cargo xtask test`: set-up, then the tests.

use std::path::PathBuf;

use anyhow::Result;

use crate::limits::{Circle, STAND_IN, TABLE};
use crate::steps::{self, SET_UP, Step, counted, step};
use crate::table::{self, HANDFUL, Part};
use crate::{process, setup};

/// What the tests are built with: AMD's backend, which builds without a GPU and runs on the stand-in, the command with the
/// models that it runs, and Burn's modules.
pub const FEATURES: &str = if cfg!(target_os = "macos") { "metal,cli,burn" } else { "hip,cli,burn" };

/// RDNA3, with waves of 32 lanes, and CDNA3, with waves of 64.
const ARCHITECTURES: [&str; 2] = ["gfx1100", "gfx942"];

/// RDNA3, RDNA4, CDNA2, CDNA3.
const ALL_ARCHITECTURES: [&str; 4] = ["gfx1100", "gfx1201", "gfx90a", "gfx942"];

#[derive(clap::Args)]
pub struct Args {
    /// Handed on to `cargo test`; with any, only that runs.
    #[arg(last = true)]
    cargo_args: Vec<String>,
}

pub fn run(args: &Args) -> Result<()> {
    if !args.cargo_args.is_empty() {
        setup::run()?;
        return process::run(cargo(&["test"]).args(&args.cargo_args), "cargo test");
    }
    let mut steps = vec![step(SET_UP, setup::run)];
    steps.extend(self::steps(false));
    steps::run(Some(Circle::Test), &steps)?;
    println!(
        "`cargo xtask ci --full` has the rest: every format as four AMD architectures, lints, budgets, the fuzzer."
    );
    Ok(())
}

/// The tests, on a machine that is set up.
pub fn steps(full: bool) -> Vec<Step<'static>> {
    let mut steps = vec![step("tests", rest), counted(TABLE, move || table::run(&table()?, &parts(full)))];
    if cfg!(target_os = "linux") {
        steps.push(counted(STAND_IN, move || {
            let archs: &[&str] = if full { &ALL_ARCHITECTURES } else { &ARCHITECTURES };
            let formats = if full { Vec::new() } else { HANDFUL.map(str::to_owned).to_vec() };
            let part = |arch: &&str| Part::stand_in(arch, &formats).map(|part| if full { part.full() } else { part });
            table::run(&table()?, &archs.iter().map(part).collect::<Result<Vec<_>>>()?)
        }));
    }
    steps
}

/// Every format where numbers are compared.
fn parts(full: bool) -> Vec<Part> {
    let mut parts = Part::cpu(&[]);
    parts.push(Part::gpus());
    match full {
        true => parts.into_iter().map(Part::full).collect(),
        false => parts,
    }
}

/// All tests but the table's on devices and the examples'.
fn rest() -> Result<()> {
    tests_without_devices(&["--test", "*"])?;
    process::run(&mut cargo(&["test", "--doc"]), "the documentation's code")?;
    xtask()
}

/// The examples' own tests.
pub fn examples() -> Result<()> {
    process::run(&mut cargo(&["test", "--examples"]), "the examples' tests")
}

/// Tests that compile no kernel.
pub fn units() -> Result<()> {
    tests_without_devices(&["--test", "gguf", "--test", "devices"])?;
    xtask()
}

/// Unit tests and these of the tests beside them, with none of a device.
fn tests_without_devices(selection: &[&str]) -> Result<()> {
    let mut tests = cargo(&["test", "--quiet", "--lib", "--bins"]);
    process::run(tests.args(selection).env("CUBE_GGUF_TEST_DEVICES", "none"), "cargo test")
}

/// The tasks' own tests, in the profile that the tasks are built in.
fn xtask() -> Result<()> {
    let mut cargo = process::cargo(["test", "--quiet", "--profile", "xtask", "--package", "xtask"]);
    process::run(&mut cargo, "the tasks' tests")
}

/// The program of the table, built with the features of the tests: with others, CubeCL is built again.
pub fn table() -> Result<PathBuf> {
    process::built(&mut cargo(&["build", "--quiet", "--test", "devices"]), "devices")
}

fn cargo(args: &[&str]) -> std::process::Command {
    process::cargo(args.iter().chain(&["--features", FEATURES]))
}
