//! `cargo xtask check`: what is quick to know of a change, before each commit.

use anyhow::Result;

use crate::limits::{Circle, REPORT, TABLE};
use crate::steps::{self, counted, step};
use crate::table::{self, HANDFUL, Part};
use crate::{ci, hip_report, test};

/// One architecture of each width of a wave.
const ARCHITECTURES: [&str; 2] = ["gfx1100", "gfx942"];

#[derive(clap::Args)]
pub struct Args {
    /// Formats, as q4_0; a handful with every trait where none is named.
    formats: Vec<String>,
}

pub fn run(args: &Args) -> Result<()> {
    let (formats, circle) = match args.formats.as_slice() {
        [] => (HANDFUL.map(str::to_owned).to_vec(), Some(Circle::Check)),
        formats => (formats.to_vec(), None),
    };
    let mut steps =
        vec![step("format", ci::format), step("lint", || ci::lint(test::FEATURES)), step("unit tests", test::units)];
    steps.push(counted(TABLE, || table::run(&test::table()?, &Part::cpu(&formats))));
    if cfg!(target_os = "linux") {
        steps.push(step("HIP report's tests", hip_report::tests));
        steps.push(counted(REPORT, || hip_report::budgets(&ARCHITECTURES, &formats)));
    }
    steps::run(circle, &steps)
}
