//! Products of few tokens: each weight is read once and multiplied by up to [`MAX_TOKENS`] rows of activations.
//!
//! A group of lanes shares a few rows of weights: each lane takes every `lanes`-th span of chunks of 32 values, decodes it
//! and multiplies; then the lanes' sums are reduced, in a fixed order, so that the same input gives the same bits.
//!
//! Five modules: the [problem](Problem) to solve, the [settings](Settings) to choose, the [`Blueprint`] that a kernel is
//! compiled for, the launch, and the kernel.

mod blueprint;
mod kernel;
mod launch;
mod problem;
mod settings;

pub use blueprint::{Blueprint, Reduction};
pub use launch::{matvec_experts_with, matvec_many_with, matvec_with};
pub use problem::{ActivationType, MAX_TOKENS, Problem};
pub use settings::Settings;
