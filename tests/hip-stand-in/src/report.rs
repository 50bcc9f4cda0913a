//! What happened in the process, for whoever ran it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use crate::memory::Totals;
use crate::runtime::{Runtime, lock};

/// How many messages are kept.
const MESSAGES: usize = 100;

#[derive(Default)]
pub struct Counts {
    launches: AtomicU64,
    modules: AtomicU64,
    errors: AtomicU64,
    messages: Mutex<Vec<String>>,
}

/// The object in the file that `HIP_STAND_IN_REPORT` names. Live bytes are no leak by themselves: CubeCL keeps its
/// pools to the end.
#[derive(Debug, Serialize)]
pub struct Report {
    pub arch: String,
    pub allocations: u64,
    pub frees: u64,
    pub live_bytes: usize,
    pub peak_bytes: usize,
    pub modules: u64,
    pub launches: u64,
    /// Calls that were answered with an error.
    pub errors: u64,
    /// The first of them.
    pub messages: Vec<String>,
}

impl Counts {
    /// How many there were before it.
    pub fn count_module(&self) -> u64 {
        self.modules.fetch_add(1, Ordering::Relaxed)
    }

    pub fn launches(&self) -> u64 {
        self.launches.load(Ordering::Relaxed)
    }

    pub fn count_launch(&self) {
        self.launches.fetch_add(1, Ordering::Relaxed);
    }

    pub fn count_error(&self, message: String) {
        self.errors.fetch_add(1, Ordering::Relaxed);
        let mut messages = lock(&self.messages);
        if messages.len() < MESSAGES {
            messages.push(message);
        }
    }
}

impl Runtime {
    pub fn report(&self) -> Report {
        let Totals { allocations, frees, live_bytes, peak_bytes } = self.memory.totals();
        Report {
            arch: self.config.arch.clone(),
            allocations,
            frees,
            live_bytes,
            peak_bytes,
            modules: self.counts.modules.load(Ordering::Relaxed),
            launches: self.counts.launches(),
            errors: self.counts.errors.load(Ordering::Relaxed),
            messages: lock(&self.counts.messages).clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;
    use crate::memory::{Owner, Side};
    use crate::runtime::Runtime;

    #[test]
    fn a_report_has_what_happened() {
        let runtime = Runtime::new(Config { memory_bytes: 1 << 20, ..Config::default() }).unwrap();
        let [a, _] = [1000, 24].map(|bytes| runtime.allocate(bytes, Owner::Device(0)).unwrap());
        runtime.free(a, Side::Device).unwrap();
        for i in 0..1000 {
            runtime.counts.count_error(format!("{i}"));
        }
        let report = serde_json::to_value(runtime.report()).unwrap();
        let number = |key: &str| report[key].as_u64().unwrap();
        assert_eq!((number("allocations"), number("frees")), (2, 1));
        assert_eq!((number("live_bytes"), number("peak_bytes")), (24, 1024));
        assert_eq!((number("errors"), number("launches"), number("modules")), (1000, 0, 0));
        assert_eq!((report["messages"][99].as_str(), report["messages"].as_array().unwrap().len()), (Some("99"), 100));
    }
}
