//! What the table found on a GPU, in a few lines that fit into an issue.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, PoisonError};

use cube_gguf::{Backend, CubeDevice};
use libtest_mimic::{Failed, Trial};

/// Each test that ran, and whether it passed.
static OUTCOMES: Mutex<Vec<(String, bool)>> = Mutex::new(Vec::new());

/// A test whose outcome is in the summary.
pub fn trial(name: String, check: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name.clone(), move || {
        let outcome = catch_unwind(AssertUnwindSafe(check));
        OUTCOMES.lock().unwrap_or_else(PoisonError::into_inner).push((name, outcome.is_ok()));
        outcome.map_err(|panic| -> Failed { resume_unwind(panic) })
    })
}

/// Prints the device, and a line for each operation.
pub fn print(device: &CubeDevice) {
    let outcomes = OUTCOMES.lock().unwrap_or_else(PoisonError::into_inner);
    // By operation: how many formats passed, and which failed.
    let mut operations: BTreeMap<&str, (usize, Vec<&str>)> = BTreeMap::new();
    let prefix = format!("{device}/");
    for (name, passed) in outcomes.iter() {
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
