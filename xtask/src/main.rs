//! The project's own tasks, each a subcommand in a file of its own: `cargo xtask --help`.

mod bench;
mod candle_cuda;
mod candle_models;
mod check;
mod ci;
mod demo;
mod hip_report;
mod hip_stand_in;
mod limits;
mod llvm;
mod model;
mod process;
mod progress;
mod setup;
mod steps;
mod table;
mod test;
mod tune;

use std::process::ExitCode;

use clap::Parser;

/// The project's own tasks.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Task {
    /// Put in place what plain `cargo build` and `cargo test` need.
    Setup,
    /// What is quick to know of a change, before each commit: lints, unit tests, a handful of formats.
    Check(check::Args),
    /// Set up, then run the tests.
    Test(test::Args),
    /// Set up, then verify a real model on the best device here.
    Demo(demo::Args),
    /// Time products beside other programs, by turns, and write the ratios into BENCHMARKS.md.
    Bench(bench::Args),
    /// Find the fastest settings for the device here, for the library's next start or for the repository.
    Tune(tune::Args),
    /// Compile every kernel for every AMD architecture, and tell what the machine code is like.
    HipReport(hip_report::Args),
    /// Run a program on HIP as an AMD GPU of any architecture, without one.
    HipStandIn(hip_stand_in::Args),
    /// Candle's own models, compiled from Candle's sources over this crate: they give the same.
    CandleModels(candle_models::Args),
    /// This crate's weights beside Candle's CUDA tensors, on a machine with nvcc and a GPU of NVIDIA's.
    CandleCuda(candle_cuda::Args),
    /// Everything that a change must pass.
    Ci(ci::Args),
}

fn main() -> ExitCode {
    let done = match Task::parse() {
        Task::Setup => setup::run(),
        Task::Check(args) => check::run(&args),
        Task::Test(args) => test::run(&args),
        Task::Demo(args) => demo::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Tune(args) => tune::run(&args),
        Task::CandleModels(args) => candle_models::run(&args),
        Task::CandleCuda(args) => candle_cuda::run(&args),
        Task::HipReport(args) => hip_report::run(&args),
        Task::HipStandIn(args) => match hip_stand_in::run(&args) {
            Ok(status) => return status,
            Err(error) => Err(error),
        },
        Task::Ci(args) => ci::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
