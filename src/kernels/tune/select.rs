//! The blueprint of a product: what the device's table says, or else the heuristic.

use std::sync::OnceLock;

use cubecl::client::Client;

use super::heuristic::heuristic;
use super::table::Table;
use crate::gguf::GgmlType;
use crate::kernels::activations::Activations;
use crate::kernels::floats::FloatType;
use crate::kernels::matvec::{ActivationType, Blueprint, MAX_TOKENS, Problem, matvec_with};
use crate::kernels::weights::Weights;

/// What was selected for the products of a matrix, by their operand and number of tokens: each at the first of them.
#[derive(Default)]
pub struct Selection([[OnceLock<Blueprint>; MAX_TOKENS]; 2]);

impl Selection {
    /// The blueprint of products of so many tokens, at most [`MAX_TOKENS`].
    pub fn blueprint(&self, client: &Client, weights: &Weights, operand: ActivationType, tokens: usize) -> Blueprint {
        *self.0[operand as usize][tokens - 1].get_or_init(|| select(client, weights, operand, tokens))
    }
}

/// An entry of the table whose kernel fails is left out from then on, with a warning.
fn select(client: &Client, weights: &Weights, operand: ActivationType, tokens: usize) -> Blueprint {
    let (n, ty) = (weights.n(), weights.ty());
    let problem = Problem { ty, operand, tokens, n, chunks: weights.chunks() };
    let table = Table::of(client);
    while let Some(settings) = table.get(problem) {
        let blueprint = Blueprint::of(client, problem, settings);
        let works = match settings.is_supported(client, problem) {
            true => table.verify_once(blueprint, || launches(blueprint, client, weights)),
            false => Err("the device has no such kernel".to_owned()),
        };
        let Err(error) = works else { return blueprint };
        let k = weights.k();
        log::warn!("the tuned entry for {ty} of {n} x {k}, {tokens} tokens, is left out: {error}");
        table.reject(settings);
    }
    Blueprint::of(client, problem, heuristic(client, problem))
}

/// Whether the device compiles the kernel and launches it.
fn launches(blueprint: Blueprint, client: &Client, weights: &Weights) -> Result<(), String> {
    let x = client.create_from_slice(&vec![0; 4 * blueprint.tokens * weights.k()]);
    let x = Activations::contiguous(x, FloatType::F32, vec![blueprint.tokens, weights.k()]);
    let x = x.map_err(|error| error.to_string())?;
    let out = matvec_with(client, weights, &x, blueprint.operand, |_| blueprint);
    client.check([&out]).map(drop).map_err(|error| error.to_string())
}

/// The heuristic's blueprint for rows of so many chunks of 32 values, of which there are many: what a launch does with few is
/// decided when there are weights.
pub fn for_row(client: &Client, ty: GgmlType, chunks: usize, operand: ActivationType, tokens: usize) -> Blueprint {
    let problem = Problem { ty, operand, tokens, n: 1 << 16, chunks };
    Blueprint::of(client, problem, heuristic(client, problem))
}
