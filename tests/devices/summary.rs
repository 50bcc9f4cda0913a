//! What the table found on a GPU, in a few lines that fit into an issue; and what each test cost.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;
use std::{fs, io};

use cube_gguf::internals::compiled;
use cube_gguf::{Backend, CubeDevice};
use libtest_mimic::{Failed, Trial};
use serde_json::json;

/// A test that ran.
struct Outcome {
    name: String,
    passed: bool,
    seconds: f64,
    /// Compiled by it, or by those that ran beside it.
    kernels: usize,
}

static OUTCOMES: Mutex<Vec<Outcome>> = Mutex::new(Vec::new());

/// A test whose outcome is in the summary.
pub fn trial(name: String, check: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name.clone(), move || {
        let (start, before) = (Instant::now(), compiled());
        let outcome = catch_unwind(AssertUnwindSafe(check));
        let (seconds, kernels) = (start.elapsed().as_secs_f64(), compiled() - before);
        let passed = outcome.is_ok();
        OUTCOMES.lock().unwrap_or_else(PoisonError::into_inner).push(Outcome { name, passed, seconds, kernels });
        outcome.map_err(|panic| -> Failed { resume_unwind(panic) })
    })
}

/// Writes what each test took as a JSON array; the kernels are a test's own where one test runs at a time.
pub fn write_costs(path: &Path) -> io::Result<()> {
    let outcomes = OUTCOMES.lock().unwrap_or_else(PoisonError::into_inner);
    let cost = |Outcome { name, seconds, kernels, .. }: &Outcome| json!({ "test": name, "seconds": seconds, "kernels": kernels });
    fs::write(path, serde_json::to_string(&outcomes.iter().map(cost).collect::<Vec<_>>())?)
}

/// Prints the device, and a line for each operation.
pub fn print(device: &CubeDevice) {
    let outcomes = OUTCOMES.lock().unwrap_or_else(PoisonError::into_inner);
    // By operation: how many formats passed, and which failed.
    let mut operations: BTreeMap<&str, (usize, Vec<&str>)> = BTreeMap::new();
    let prefix = format!("{device}/");
    for Outcome { name, passed, .. } in outcomes.iter() {
        let Some((group, test)) = name.strip_prefix(&prefix).and_then(|rest| rest.split_once('/')) else { continue };
        let (operation, case) = if group == "storage" { (group, test) } else { (test, group) };
        let (count, failed) = operations.entry(operation).or_default();
        match passed {
            true => *count += 1,
            false => failed.push(case),
        }
    }
    if operations.is_empty() {
        return;
    }
    let compiler = match device.backend() {
        Backend::Cuda if cfg!(feature = "cuda-cpp") => "CUDA C++",
        Backend::CubeCpu | Backend::Rocm | Backend::Cuda => "LLVM",
        Backend::Vulkan => "SPIR-V",
        Backend::Wgpu => "WGSL",
        Backend::Metal => "MSL",
    };
    let client = device.client();
    let identity = &client.properties().identity;
    eprintln!("\ncube-gguf {} on {device}, {}", env!("CARGO_PKG_VERSION"), identity.name);
    eprintln!("{} by {compiler}, {}, {}", client.name(), identity.fingerprint, std::env::consts::OS);
    for (operation, (passed, mut failed)) in operations {
        failed.sort();
        let failed = match failed[..] {
            [] => String::new(),
            _ => format!(", {} failed: {}", failed.len(), failed.join(" ")),
        };
        eprintln!("  {operation:<42} {passed:>3} passed{failed}");
    }
}
