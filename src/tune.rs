//! Tuning: the settings of products of few tokens, and tables of those measured to be fastest.
//!
//! The library picks settings by a heuristic of the device's properties, or by a [`Table`]: this machine's, which
//! `cube-gguf tune` writes, or the one that the repository ships for the architecture. [`search`] finds an entry.

use cubecl::server::Handle;

use crate::gguf::GgmlType;
use crate::kernels::formats::{CHUNK, traits};
use crate::kernels::hardware::Hardware;
pub use crate::kernels::matvec::{ActivationType, Settings};
use crate::kernels::matvec::{Blueprint, Problem};
pub use crate::kernels::tune::{Entry, Table};
use crate::kernels::tune::{heuristic, neighbours};
use crate::{Activations, CubeDevice, DeviceTensor, Result};

/// A candidate is taken below this share of the best time so far: smaller gains are noise.
const GAIN: f64 = 0.98;
/// Upper limit of the search's rounds. A round moves from the best settings so far to at most one of their neighbours.
const ROUNDS: usize = 3;

/// Settings of a product that [`search`] has the caller measure.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    settings: Settings,
    blueprint: Blueprint,
}

impl Candidate {
    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The product of a matrix with the activations by this candidate: contiguous `[.., n]` values of their type, on the
    /// device.
    ///
    /// # Errors
    ///
    /// As [`DeviceTensor::matmul_on_device`]; [`Error::Device`](crate::Error::Device) where the device does not support
    /// the kernel.
    pub fn matmul(&self, matrix: &DeviceTensor, x: &Activations) -> Result<Handle> {
        matrix.matmul_by(x, self.blueprint)
    }
}

/// The table entry for products of `tokens` rows of activations with an `n` x `k` matrix of type `ty`: the best
/// settings that hill climbing from the heuristic's choice finds.
///
/// `measure` returns a candidate's time in microseconds, infinity where it fails or its result is wrong. `None` where
/// that is the heuristic's own time.
///
/// # Errors
///
/// Those of `measure`.
pub fn search<E>(
    device: &CubeDevice,
    ty: GgmlType,
    [n, k]: [usize; 2],
    tokens: usize,
    mut measure: impl FnMut(&Candidate) -> std::result::Result<f64, E>,
) -> std::result::Result<Option<Entry>, E> {
    let hardware = Hardware::of(&device.client());
    let operand = if traits(ty).dense { ActivationType::Float } else { ActivationType::Int8 };
    let problem = Problem { ty, operand, tokens, n, chunks: k.div_ceil(CHUNK) };
    let mut tried: Vec<(Blueprint, f64)> = Vec::new();
    let mut time = |settings: Settings| {
        let candidate = Candidate { settings, blueprint: Blueprint::of(&hardware, problem, settings) };
        if let Some(&(_, us)) = tried.iter().find(|(tried, _)| *tried == candidate.blueprint) {
            return Ok(us);
        }
        let us = measure(&candidate)?;
        tried.push((candidate.blueprint, us));
        Ok(us)
    };
    let mut best = heuristic(&hardware, problem);
    let heuristic_us = time(best)?;
    if !heuristic_us.is_finite() {
        return Ok(None);
    }
    let mut us = heuristic_us;
    for _ in 0..ROUNDS {
        let before = us;
        for candidate in neighbours(&hardware, problem, best) {
            let candidate_us = time(candidate)?;
            if candidate_us < GAIN * us {
                (best, us) = (candidate, candidate_us);
            }
        }
        if us >= before {
            break;
        }
    }
    let [us, heuristic_us] = [us, heuristic_us].map(|us| (us * 100.0).round() / 100.0);
    Ok(Some(Entry { ty: ty.name().to_owned(), operand, tokens, n, k, settings: best, us, heuristic_us }))
}
