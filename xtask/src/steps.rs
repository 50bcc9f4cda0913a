//! Steps of a circle of checks: each is timed, all run even after one failed, and what they cost is told at the end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::limits::{self, Circle};

/// What tests of one kind took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cost {
    /// A device of the table, or an architecture.
    pub device: String,
    pub operation: String,
    pub tests: u64,
    pub seconds: f64,
    /// Kernels that were compiled.
    pub kernels: u64,
}

pub type Outcome = Result<Vec<Cost>>;

/// A name and what it does.
pub type Step<'a> = (&'static str, Box<dyn Fn() -> Outcome + 'a>);

/// A step that compiles no kernels.
pub fn step<'a>(name: &'static str, run: impl Fn() -> Result<()> + 'a) -> Step<'a> {
    (name, Box::new(move || run().map(|()| Vec::new())))
}

/// A step that tells what it compiled.
pub fn counted<'a>(name: &'static str, run: impl Fn() -> Outcome + 'a) -> Step<'a> {
    (name, Box::new(run))
}

struct Timed {
    name: &'static str,
    took: Duration,
    passed: bool,
    costs: Vec<Cost>,
}

/// Runs every step, so that one run tells all; prints what each took, and compares kernels and seconds with the limits of
/// `circle`, where there is one.
pub fn run(circle: Option<Circle>, steps: &[Step<'_>]) -> Result<()> {
    let start = Instant::now();
    let mut table: Vec<Timed> = Vec::new();
    for (name, step) in steps {
        // Nothing builds after a set-up that failed.
        if table.first().is_some_and(|first| first.name == SET_UP && !first.passed) {
            break;
        }
        table.push(timed(name, step));
    }
    let total = start.elapsed();

    let costs: Vec<&Cost> = table.iter().flat_map(|step| &step.costs).collect();
    if !costs.is_empty() {
        println!("\n{}", costs_table(&costs));
    }
    println!();
    for Timed { name, took, passed, costs } in &table {
        let outcome = if *passed { "ok" } else { "FAILED" };
        let kernels: u64 = costs.iter().map(|cost| cost.kernels).sum();
        let kernels = if kernels > 0 { format!("  {kernels} kernels") } else { String::new() };
        println!("{name:<28} {:>6.1} s  {outcome}{kernels}", took.as_secs_f64());
    }
    println!("{:<28} {:>6.1} s", "total", total.as_secs_f64());

    let mut failed: Vec<String> = table.iter().filter(|step| !step.passed).map(|step| step.name.to_owned()).collect();
    if let Some(circle) = circle {
        let steps = table.iter().map(|step| (step.name, step.costs.iter().map(|cost| cost.kernels).sum()));
        failed.extend(limits::broken(circle, steps));
        if let Some(warning) = limits::slow(circle, total) {
            eprintln!("warning: {warning}");
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join("; "));
    }
    Ok(())
}

/// The first step of circles that set up.
pub const SET_UP: &str = "set-up";

fn timed(name: &'static str, step: &dyn Fn() -> Outcome) -> Timed {
    println!("\n== {name}");
    let start = Instant::now();
    let outcome = step();
    let took = start.elapsed();
    if let Err(error) = &outcome {
        eprintln!("error: {error:#}");
    }
    println!("== {name}: {:.1} s", took.as_secs_f64());
    Timed { name, took, passed: outcome.is_ok(), costs: outcome.unwrap_or_default() }
}

/// Tests, seconds and kernels of each device and operation, the dearest operation of each device first.
fn costs_table(costs: &[&Cost]) -> String {
    let mut devices: BTreeMap<&str, BTreeMap<&str, (u64, f64, u64)>> = BTreeMap::new();
    for cost in costs {
        let sum = devices.entry(&cost.device).or_default().entry(&cost.operation).or_default();
        *sum = (sum.0 + cost.tests, sum.1 + cost.seconds, sum.2 + cost.kernels);
    }
    let line = |device: &str, operation: &str, (tests, seconds, kernels): (u64, f64, u64)| {
        format!("{device:<10} {operation:<44} {tests:>5} {seconds:>8.1} {kernels:>8}\n")
    };
    let mut text = format!("{:<10} {:<44} {:>5} {:>8} {:>8}\n", "device", "operation", "tests", "seconds", "kernels");
    for (device, operations) in devices {
        let mut rows: Vec<_> = operations.into_iter().collect();
        rows.sort_by(|(_, a), (_, b)| b.1.total_cmp(&a.1));
        let all = rows.iter().fold((0, 0.0, 0), |all, (_, row)| (all.0 + row.0, all.1 + row.1, all.2 + row.2));
        for (operation, row) in rows {
            text += &line(device, operation, row);
        }
        text += &line(device, "all", all);
    }
    text.truncate(text.trim_end().len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(device: &str, operation: &str, seconds: f64, kernels: u64) -> Cost {
        Cost { device: device.to_owned(), operation: operation.to_owned(), tests: 1, seconds, kernels }
    }

    #[test]
    fn costs_of_an_operation_are_added_and_the_dearest_comes_first() {
        let costs =
            [cost("cube-cpu", "cheap", 0.5, 1), cost("cube-cpu", "dear", 1.0, 2), cost("cube-cpu", "dear", 2.0, 3)];
        let text = costs_table(&costs.iter().collect::<Vec<_>>());
        let words: Vec<Vec<&str>> = text.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
        let expected = [
            ["cube-cpu", "dear", "2", "3.0", "5"],
            ["cube-cpu", "cheap", "1", "0.5", "1"],
            ["cube-cpu", "all", "3", "3.5", "6"],
        ];
        assert_eq!(words, expected);
    }

    #[test]
    fn all_steps_run_after_one_failed_but_none_after_the_set_up() {
        let ran = std::cell::Cell::new(0);
        let count = || {
            ran.set(ran.get() + 1);
            Ok(())
        };
        let fail = || bail!("no");
        let error = run(None, &[step("first", fail), step("second", count)]).unwrap_err();
        assert_eq!((ran.get(), error.to_string().as_str()), (1, "failed: first"));
        run(None, &[step(SET_UP, fail), step("second", count)]).unwrap_err();
        assert_eq!(ran.get(), 1);
    }
}
