//! `cargo xtask ci`: everything that a change must pass, with what each step took.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::test::{self, CI_FEATURES};
use crate::{hip_report, hip_stand_in, process, setup};

type Step = (&'static str, fn() -> Result<()>);

/// The cheapest first. The lints check the dependencies once for the widest feature set, which the
/// documentation then reuses; the tests build them.
const STEPS: [Step; 8] = [
    ("format", format),
    ("HIP stand-in", stand_in),
    ("lint", lint),
    ("lint, no default features", lint_bare),
    ("documentation", documentation),
    ("tests", tests),
    ("HIP report", report),
    ("fuzz", fuzz),
];

/// Runs every step even after one failed, so that one run tells all.
pub fn run() -> Result<()> {
    let mut table = vec![timed(("set-up", setup::run))];
    // Nothing builds without it.
    if table[0].passed {
        table.extend(STEPS.map(timed));
    }

    println!();
    for Timed { name, took, passed } in &table {
        let outcome = if *passed { "ok" } else { "FAILED" };
        println!("{name:<28} {:>6.1} s  {outcome}", took.as_secs_f64());
    }
    let total: Duration = table.iter().map(|step| step.took).sum();
    println!("{:<28} {:>6.1} s", "total", total.as_secs_f64());

    let failed: Vec<_> = table.iter().filter(|step| !step.passed).collect();
    if !failed.is_empty() {
        let names: Vec<_> = failed.iter().map(|step| step.name).collect();
        bail!("failed: {}", names.join("; "));
    }
    Ok(())
}

struct Timed {
    name: &'static str,
    took: Duration,
    passed: bool,
}

fn timed((name, step): Step) -> Timed {
    println!("\n== {name}");
    let start = Instant::now();
    let outcome = step();
    let took = start.elapsed();
    if let Err(error) = &outcome {
        eprintln!("error: {error:#}");
    }
    println!("== {name}: {:.1} s", took.as_secs_f64());
    Timed { name, took, passed: outcome.is_ok() }
}

fn format() -> Result<()> {
    process::run(&mut process::cargo(["fmt", "--all", "--check"]), "cargo fmt")
}

fn stand_in() -> Result<()> {
    match cfg!(target_os = "linux") {
        true => hip_stand_in::checks(),
        false => Ok(()),
    }
}

fn lint() -> Result<()> {
    clippy(&["--workspace", "--all-targets", "--features", CI_FEATURES])
}

fn lint_bare() -> Result<()> {
    clippy(&["--no-default-features"])
}

fn clippy(selection: &[&str]) -> Result<()> {
    let mut cargo = process::cargo(["clippy"]);
    process::run(cargo.args(selection).args(["--", "-D", "warnings"]), "clippy")
}

fn documentation() -> Result<()> {
    let mut cargo = process::cargo(["doc", "--no-deps", "--features", CI_FEATURES]);
    process::run(cargo.env("RUSTDOCFLAGS", "-D warnings"), "cargo doc")
}

fn tests() -> Result<()> {
    test::tests(&[])
}

/// Budgets of every architecture's kernels, less those of other float types, which end differently alone.
fn report() -> Result<()> {
    match cfg!(target_os = "linux") {
        true => hip_report::report(&["--sample".into(), "--summary".into()]),
        false => Ok(()),
    }
}

/// Half a minute of the GGUF reader on mutated files; the fuzzer's own flags are in its `.cargo/config.toml`.
fn fuzz() -> Result<()> {
    let root = process::root().join("fuzz");
    fs::create_dir_all(root.join("corpus"))?;
    let limits = ["-max_total_time=30", "-max_len=4096", "-rss_limit_mb=512"];
    let mut cargo = process::cargo(["run", "--release", "--quiet", "--"]);
    cargo.args(limits).args(["corpus", "../tests/gguf/corpus"]).current_dir(root).env_remove("RUSTFLAGS");
    process::run(&mut cargo, "the fuzzer")
}
