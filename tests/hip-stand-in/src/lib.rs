//! `libamdhip64.so` over host memory: what CubeCL's HIP runtime calls, so that it comes up as any gfx architecture on a
//! machine without an AMD GPU. `README.md` has the variables and the executor's protocol.
//!
//! Calls run to their end before they return, which HIP allows, and are checked harder than HIP checks them: a stale
//! handle, a pointer into freed memory or a copy past an allocation is an error with a line on stderr.

mod api;
mod code_object;
mod config;
mod device;
mod error;
mod executor;
mod graph;
mod handles;
mod launch;
mod memory;
mod report;
mod runtime;
mod stream;
