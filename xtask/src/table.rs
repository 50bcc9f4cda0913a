//! The table of tests (`tests/devices`), run in several processes at once: a process compiles its kernels on one thread.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use crate::steps::{Cost, Outcome};
use crate::{hip_stand_in, process};

/// Formats that between them have every trait: blocks of 32 and of 256, a scale, scales and mins, two scales, a codebook,
/// sixteen values, and plain floats.
pub const HANDFUL: [&str; 6] = ["q4_0", "q4_k", "q6_k", "iq3_s", "mxfp4", "f16"];

/// How many processes share the table of one device. More of them compile kernels that formats share more often.
const SHARDS: usize = 2;

/// Part of the table.
#[derive(Clone, Debug)]
pub struct Part {
    /// What it is called where it is told.
    device: String,
    /// As `CUBE_GGUF_TEST_DEVICES` names it.
    selection: &'static str,
    shard: usize,
    shards: usize,
    formats: Vec<String>,
    full: bool,
    /// Whether it runs on the HIP stand-in, whose report is read, too.
    stand_in: bool,
    environment: Vec<(OsString, OsString)>,
}

impl Part {
    /// The table on CubeCL's CPU runtime, where all numbers are compared, of some formats or all.
    pub fn cpu(formats: &[String]) -> Vec<Self> {
        let part = |shard| Self::new("cube-cpu", "cube-cpu", formats).shard(shard);
        (0..SHARDS).map(part).collect()
    }

    /// The table on each GPU that is here.
    pub fn gpus() -> Self {
        Self::new("gpus", "gpus", &[])
    }

    /// The table on the HIP stand-in as an AMD GPU: every kernel is compiled, loaded and launched, and every error, length
    /// and pointer checked. Nothing computes, so no numbers are compared.
    pub fn stand_in(arch: &str, formats: &[String]) -> Result<Self> {
        let environment = hip_stand_in::environment(arch, None)?;
        Ok(Self { environment, stand_in: true, ..Self::new(arch, "rocm:0", formats) })
    }

    fn new(device: &str, selection: &'static str, formats: &[String]) -> Self {
        Self {
            device: device.to_owned(),
            selection,
            shard: 0,
            shards: 1,
            formats: formats.to_vec(),
            full: false,
            stand_in: false,
            environment: Vec::new(),
        }
    }

    fn shard(self, shard: usize) -> Self {
        Self { shard, shards: SHARDS, ..self }
    }

    /// With the properties that no format changes on every format.
    pub fn full(self) -> Self {
        Self { full: true, ..self }
    }

    fn name(&self) -> String {
        match self.shards {
            1 => self.device.clone(),
            shards => format!("{} ({} of {shards})", self.device, self.shard + 1),
        }
    }

    /// A file of its own.
    fn file(&self, extension: &str) -> PathBuf {
        process::root().join(format!("target/tmp/table/{}-{}.{extension}", self.device, self.shard))
    }

    /// Runs it. What went well in a few words, and what it cost; what did not is in the error.
    fn run(&self, program: &Path) -> Result<(String, Vec<Cost>)> {
        let (log, costs, report) = (self.file("log"), self.file("costs.json"), self.file("report.json"));
        fs::create_dir_all(log.parent().context("a file without a folder")?)?;
        let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let errors = output.try_clone().context("no second handle of a file")?;
        let mut table = Command::new(program);
        table.args(["--test-threads", "1", "--color", "never"]).current_dir(process::root());
        table.env("CUBE_GGUF_TEST_DEVICES", self.selection).env("CUBE_GGUF_TEST_COSTS", &costs);
        table.env("CUBE_GGUF_TEST_SHARD", format!("{}/{}", self.shard, self.shards));
        table.env("CUBE_GGUF_TEST_FULL", if self.full { "1" } else { "0" });
        if !self.formats.is_empty() {
            table.env("CUBE_GGUF_TEST_FORMATS", self.formats.join(","));
        }
        table.envs(self.environment.iter().cloned()).env("HIP_STAND_IN_REPORT", &report);
        table.stdin(Stdio::null()).stdout(output).stderr(errors);
        let status = table.status().context("the table could not start")?;
        let text = fs::read_to_string(&log).with_context(|| format!("cannot read {}", log.display()))?;
        if !status.success() {
            let failures = text.split_once("failures:").map_or(text.as_str(), |(_, failures)| failures);
            bail!("the table failed ({status}):\n{}", failures.trim());
        }
        let passed = text.lines().find_map(|line| line.strip_prefix("test result: ok. ")?.split(';').next());
        let mut summary = passed.context("the log has no result")?.to_owned();
        if self.stand_in {
            summary += &stand_in_report(&read(&report)?)?;
        }
        Ok((summary, self.costs(&read(&costs)?)?))
    }

    /// The costs of an array of tests.
    fn costs(&self, tests: &Value) -> Result<Vec<Cost>> {
        let cost = |test: &Value| {
            let mut words = test["test"].as_str()?.splitn(3, '/');
            let (device, group, name) = (words.next()?, words.next()?, words.next()?);
            Some(Cost {
                device: if self.stand_in { self.device.clone() } else { device.to_owned() },
                // Of a test of the device alone, its group as well.
                operation: if ["storage", "dot", "attention"].contains(&group) {
                    format!("{group}/{name}")
                } else {
                    name.to_owned()
                },
                tests: 1,
                seconds: test["seconds"].as_f64()?,
                kernels: test["kernels"].as_u64()?,
            })
        };
        tests.as_array().and_then(|tests| tests.iter().map(cost).collect()).context("costs of another kind")
    }
}

/// What the stand-in counted.
fn stand_in_report(report: &Value) -> Result<String> {
    let number = |key: &str| report[key].as_u64().with_context(|| format!("the report has no {key}"));
    if number("errors")? > 0 {
        bail!("HIP answered {} calls with errors: {}", number("errors")?, report["messages"]);
    }
    let (launches, modules, bytes) = (number("launches")?, number("modules")?, number("peak_bytes")?);
    Ok(format!(", {launches} launches of {modules} code objects, {} MB at most", bytes / 1_000_000))
}

fn read(path: &Path) -> Result<Value> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is no JSON", path.display()))
}

/// Runs parts of the table, as many at a time as there are processors, each of which takes a gigabyte.
pub fn run(program: &Path, parts: &[Part]) -> Outcome {
    let next = Mutex::new(parts.iter());
    let done = Mutex::new((Vec::new(), Vec::new()));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from).min(parts.len()) {
            scope.spawn(|| {
                while let Some(part) = next.lock().ok().and_then(|mut parts| parts.next()) {
                    let start = Instant::now();
                    let outcome = part.run(program);
                    let (name, seconds) = (part.name(), start.elapsed().as_secs_f64());
                    let Ok(mut done) = done.lock() else { return };
                    match outcome {
                        Ok((summary, costs)) => {
                            println!("{name}: ok, {summary} ({seconds:.0} s)");
                            done.0.extend(costs);
                        }
                        Err(error) => {
                            println!("{name}: FAILED, {error:#} ({seconds:.0} s)");
                            done.1.push(name);
                        }
                    }
                }
            });
        }
    });
    let (costs, failed) = done.into_inner().map_err(|_| anyhow!("a thread was lost"))?;
    if !failed.is_empty() {
        bail!("the table failed on {}", failed.join(", "));
    }
    Ok(costs)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn costs_are_of_the_device_that_the_stand_in_stood_in_for() {
        let part = Part { stand_in: true, ..Part::new("gfx942", "rocm:0", &[]) };
        let tests = json!([
            { "test": "rocm:0/q4_0/gathers_rows", "seconds": 0.5, "kernels": 3 },
            { "test": "rocm:0/storage/embeds", "seconds": 0.25, "kernels": 0 },
        ]);
        let cost = |operation: &str, seconds, kernels| Cost {
            device: "gfx942".to_owned(),
            operation: operation.to_owned(),
            tests: 1,
            seconds,
            kernels,
        };
        assert_eq!(part.costs(&tests).unwrap(), [cost("gathers_rows", 0.5, 3), cost("storage/embeds", 0.25, 0)]);
        assert!(part.costs(&json!([{ "test": "rocm:0/q4_0/gathers_rows" }])).is_err());
    }

    #[test]
    fn errors_of_the_stand_in_fail() {
        let report =
            |errors| json!({ "errors": errors, "messages": ["bad"], "launches": 1, "modules": 1, "peak_bytes": 1 });
        assert!(stand_in_report(&report(0)).is_ok());
        assert!(stand_in_report(&report(2)).unwrap_err().to_string().contains("2 calls with errors: [\"bad\"]"));
    }
}
