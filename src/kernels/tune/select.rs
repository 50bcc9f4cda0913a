//! The blueprint of a product, by the device's table or else by the heuristic.

use std::sync::OnceLock;

use cubecl::client::Client;

use super::heuristic::heuristic;
use super::table::Table;
use crate::gguf::GgmlType;
use crate::kernels::activations::Activations;
use crate::kernels::floats::FloatType;
use crate::kernels::hardware::Hardware;
use crate::kernels::matvec::{ActivationType, Blueprint, MAX_TOKENS, Problem, matvec_with};
use crate::kernels::weights::Weights;

/// The blueprints of a matrix's products, by operand and number of tokens, each selected at the first such product.
#[derive(Default)]
pub struct Selection([[OnceLock<Blueprint>; MAX_TOKENS]; 2]);

impl Selection {
    /// The blueprint of products of so many tokens, at most [`MAX_TOKENS`].
    pub fn blueprint(&self, client: &Client, weights: &Weights, operand: ActivationType, tokens: usize) -> Blueprint {
        *self.0[operand as usize][tokens - 1].get_or_init(|| {
            let problem = Problem { ty: weights.ty(), operand, tokens, n: weights.n(), chunks: weights.chunks() };
            let launches = |blueprint| launches(blueprint, client, weights);
            select(&Hardware::of(client), &Table::of(client), problem, launches)
        })
    }
}

/// The table's blueprint for a product, else the heuristic's. An entry that the device does not support, or whose kernel
/// does not launch, is left out from then on, with a warning.
fn select(
    hardware: &Hardware,
    table: &Table,
    problem: Problem,
    launches: impl Fn(Blueprint) -> Result<(), String>,
) -> Blueprint {
    while let Some(settings) = table.get(problem) {
        let blueprint = Blueprint::of(hardware, problem, settings);
        let works = match settings.is_supported(hardware, problem) {
            true => table.verify_once(blueprint, || launches(blueprint)),
            false => Err("the device has no such kernel".to_owned()),
        };
        let Err(error) = works else { return blueprint };
        let Problem { ty, tokens, n, chunks, .. } = problem;
        log::warn!("the tuned entry for {ty} of {n} rows of {chunks} chunks, {tokens} tokens, is left out: {error}");
        table.reject(settings);
    }
    untuned(hardware, problem)
}

/// Whether the device compiles the kernel and launches it.
fn launches(blueprint: Blueprint, client: &Client, weights: &Weights) -> Result<(), String> {
    let x = client.create_from_slice(&vec![0; 4 * blueprint.tokens * weights.k()]);
    let x = Activations::contiguous(x, FloatType::F32, vec![blueprint.tokens, weights.k()]);
    let x = x.map_err(|error| error.to_string())?;
    let out = matvec_with(client, weights, &x, blueprint.operand, |_| blueprint);
    client.check([&out]).map(drop).map_err(|error| error.to_string())
}

/// The heuristic's blueprint for a matrix of many rows of `chunks` chunks, before there are weights. That of a matrix of few
/// rows may be another.
pub fn for_row(hardware: &Hardware, ty: GgmlType, chunks: usize, operand: ActivationType, tokens: usize) -> Blueprint {
    untuned(hardware, Problem { ty, operand, tokens, n: 1 << 16, chunks })
}

/// The heuristic's blueprint.
pub fn untuned(hardware: &Hardware, problem: Problem) -> Blueprint {
    Blueprint::of(hardware, problem, heuristic(hardware, problem))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::kernels::matvec::Settings;
    use crate::kernels::tune::devices::{H100, devices};

    fn q4_0() -> Problem {
        Problem { ty: GgmlType::Q4_0, operand: ActivationType::Int8, tokens: 1, n: 4096, chunks: 128 }
    }

    #[test]
    fn the_table_comes_before_the_heuristic() {
        let hardware = devices().remove(H100);
        let problem = q4_0();
        let usual = heuristic(&hardware, problem);
        let tuned = Settings { rows_per_group: 2 * usual.rows_per_group, ..usual };
        let (with, without) = (Table::of_settings(problem, &[tuned]), Table::default());
        let launches = |_| Ok(());
        assert_eq!(select(&hardware, &with, problem, launches), Blueprint::of(&hardware, problem, tuned));
        assert_eq!(select(&hardware, &without, problem, launches), Blueprint::of(&hardware, problem, usual));
    }

    #[test]
    fn the_smallest_gpu_has_settings_for_few_rows_of_any_number_of_tokens() {
        for (cores, tokens) in (1..=8).flat_map(|cores| (1..=MAX_TOKENS).map(move |tokens| (cores, tokens))) {
            let (hardware, problem) = (Hardware::sample(cores, 1 << 15), Problem { tokens, n: 1, ..q4_0() });
            assert!(heuristic(&hardware, problem).is_supported(&hardware, problem), "{cores} cores, {tokens} tokens");
        }
    }

    #[test]
    fn entries_that_fail_or_do_not_suit_are_left_out_for_good() {
        let hardware = devices().remove(H100);
        let problem = q4_0();
        let usual = heuristic(&hardware, problem);
        let wide = Settings { groups_per_cube: 64, ..usual };
        let failing = Settings { rows_per_group: 8, ..usual };
        let table = Table::of_settings(problem, &[wide, failing]);
        let asked = RefCell::new(Vec::new());
        let launches = |blueprint: Blueprint| {
            asked.borrow_mut().push(blueprint);
            Err("fails".to_owned())
        };
        for _ in 0..2 {
            assert_eq!(select(&hardware, &table, problem, launches), Blueprint::of(&hardware, problem, usual));
        }
        // An entry that the device does not support is not launched, and one that failed is not launched again.
        assert_eq!(*asked.borrow(), [Blueprint::of(&hardware, problem, failing)]);
    }
}
