//! Tuning: what a product of few tokens may choose, and the tables of what was found to be fastest.
//!
//! The library picks by a heuristic of the device's properties, or by a [`Table`]: this machine's, which `cube-gguf tune` writes, or
//! that which the repository ships for the architecture. [`search`] is how an entry is found.

use cubecl::server::Handle;

use crate::gguf::GgmlType;
use crate::kernels::formats::{CHUNK, traits};
use crate::kernels::hardware::Hardware;
pub use crate::kernels::matvec::{ActivationType, Settings};
use crate::kernels::matvec::{Blueprint, Problem};
pub use crate::kernels::tune::{Entry, Table};
use crate::kernels::tune::{heuristic, neighbours};
use crate::{Activations, CubeDevice, DeviceTensor, Result};

/// How much faster a candidate must be to be taken: less is noise.
const GAIN: f64 = 0.98;
/// Rounds of the search, in each of which every setting may change once.
const ROUNDS: usize = 3;

/// A way to multiply, which a search asks to be measured.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    settings: Settings,
    blueprint: Blueprint,
}

impl Candidate {
    /// What it chooses.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The product of a matrix with the activations by this candidate, contiguous `[.., n]` values of their type on the device.
    ///
    /// # Errors
    ///
    /// As [`DeviceTensor::matmul_on_device`]; [`Error::Device`](crate::Error::Device) where the device has no such kernel.
    pub fn matmul(&self, matrix: &DeviceTensor, x: &Activations) -> Result<Handle> {
        matrix.matmul_by(x, self.blueprint)
    }
}

/// The entry for products of `tokens` rows of activations with an `n` x `k` matrix of type `ty`: the best that changing one
/// setting at a time from the heuristic's choice comes to.
///
/// `measure` gives a candidate's microseconds, infinity where it fails or its answer is wrong. Where that is so of the heuristic's
/// own choice, there is no entry.
///
/// # Errors
///
/// As `measure`.
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
