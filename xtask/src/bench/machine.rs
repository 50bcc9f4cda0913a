//! What the figures were measured on: the device, the host, the versions.

use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::csv;
use crate::process;

/// Built in: the repository may be on another machine.
const LOCK: &str = include_str!("../../../Cargo.lock");

/// The day, in UTC.
pub fn today() -> String {
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    now.chars().take_while(|c| *c != 'T').collect()
}

/// What is at `--device`.
pub struct Machine {
    /// The device's name by its driver; of the host the processor's.
    pub device: String,
    /// The rest of what is known: driver, host, versions.
    pub details: Vec<String>,
}

impl Machine {
    /// Asks our program and the machine.
    pub fn new(program: &Path, wanted: &str) -> Result<Self> {
        let devices = process::output(Command::new(program).args(["devices", "--json"]))?;
        let devices: Value = serde_json::from_str(&devices).context("`cube-gguf devices --json` printed no JSON")?;
        let (name, description) =
            device(&devices, wanted).with_context(|| format!("`{} devices` lists no {wanted}", program.display()))?;

        let mut details = Vec::new();
        if name.starts_with("cuda") {
            details.extend(driver().map(|version| format!("driver {version}")));
        }
        let threads = std::thread::available_parallelism().context("the host's threads are not known")?;
        let host = processor().unwrap_or_else(|| std::env::consts::ARCH.to_owned());
        let device = match name {
            "cpu" | "cube-cpu" => host,
            _ => {
                details.push(host);
                description.to_owned()
            }
        };
        details.push(format!("{threads} threads"));
        details.push(process::output(Command::new(program).arg("--version"))?.trim().to_owned());
        for (package, name) in [("cubecl", "CubeCL"), ("candle-core", "Candle")] {
            details.extend(locked(LOCK, package).map(|version| format!("{name} {version}")));
        }
        Ok(Self { device, details })
    }
}

/// Name and description of the device that `--device` means.
fn device<'a>(devices: &'a Value, wanted: &str) -> Option<(&'a str, &'a str)> {
    let first = format!("{wanted}:0");
    let is_wanted = |device: &&Value| match wanted {
        "auto" => device["default"] == true,
        _ => device["name"] == wanted || device["name"] == first.as_str(),
    };
    let device = devices["devices"].as_array()?.iter().find(is_wanted)?;
    Some((device["name"].as_str()?, device["description"].as_str()?))
}

/// The version of NVIDIA's driver, where its program is there.
fn driver() -> Option<String> {
    let query = ["--query-gpu=driver_version", "--format=csv,noheader"];
    let versions = process::output(Command::new("nvidia-smi").args(query)).ok()?;
    versions.lines().next().map(|version| version.trim().to_owned())
}

/// The processor's name, where Linux tells it.
fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let (_, name) = text.lines().find(|line| line.starts_with("model name"))?.split_once(':')?;
    Some(name.trim().to_owned())
}

/// A package's version in a Cargo.lock.
fn locked<'a>(lock: &'a str, package: &str) -> Option<&'a str> {
    let (_, after) = lock.split_once(&format!("name = \"{package}\"\nversion = \""))?;
    after.split('"').next()
}

/// GB/s at which the device copies memory, bytes read plus bytes written; none where our program does not measure it.
pub fn copy_rate(program: &Path, device: &str) -> Result<Option<f64>> {
    let mut command = Command::new(program);
    command.args(["bench", "--op", "copy", "--device", device, "--csv"]);
    let Ok(text) = process::output(&mut command) else { return Ok(None) };
    let what = "`cube-gguf bench --op copy`";
    let rows = csv::parse(&text).with_context(|| what)?;
    match rows.first().and_then(|row| row.time) {
        Some(time) if time.gbps > 0.0 => Ok(Some(time.gbps)),
        _ => bail!("{what} printed no rate"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_found_by_what_device_takes() {
        let devices = serde_json::json!({ "devices": [
            { "name": "cuda:0", "description": "A GPU", "default": true },
            { "name": "cuda:1", "description": "Another", "default": false },
            { "name": "cpu", "description": "the host", "default": false },
        ]});
        for (wanted, found) in [
            ("auto", Some(("cuda:0", "A GPU"))),
            ("cuda", Some(("cuda:0", "A GPU"))),
            ("cuda:1", Some(("cuda:1", "Another"))),
            ("cpu", Some(("cpu", "the host"))),
            ("rocm", None),
        ] {
            assert_eq!(device(&devices, wanted), found);
        }
    }

    #[test]
    fn versions_are_cargo_s() {
        let manifest = include_str!("../../../Cargo.toml");
        for package in ["cubecl", "candle-core"] {
            let version = locked(LOCK, package).unwrap();
            assert!(manifest.contains(&format!("{package} = {{ version = \"={version}\"")), "{package} {version}");
        }
        assert_eq!(locked(LOCK, "no-such-package"), None);
    }

    #[test]
    fn a_day_is_written_in_full() {
        let today = today();
        assert!(today.len() == 10 && today.chars().all(|c| c.is_ascii_digit() || c == '-'), "{today}");
    }
}
