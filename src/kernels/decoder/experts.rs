//! A mixture of experts (Shazeer et al., 2017): which experts a token has, and the sum of what they give.

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::largest::Best;
use super::team::{Team, row_of, unit_of};
use super::values;
use crate::kernels::launch::{Grid, buffer, elementwise};

/// How many experts there are, and a token's share of them.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// All experts.
    pub experts: usize,
    /// Experts of a token.
    pub slots: usize,
    /// What the weights of a token's experts add up to.
    pub scale: f32,
}

/// The experts of some tokens, `[tokens, slots]`.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// Their u32 ids.
    pub ids: Handle,
    /// What their results are multiplied by.
    pub weights: Handle,
}

/// For each of `tokens` rows of logits, the experts of the largest ones, the first of equals first, and the softmax over those
/// chosen. NaN counts as infinity.
pub fn choose(client: &Client, logits: &Handle, tokens: usize, choice: Choice) -> Chosen {
    let Choice { experts, slots, scale } = choice;
    let chosen = Chosen { ids: values(client, tokens * slots), weights: values(client, tokens * slots) };
    let team = Team::plane(client);
    let (count, dim, grid) = team.launch(client, tokens);
    let choices = ChoicesLaunch::new(grid, experts, slots, scale);
    let (ids, weights) = (buffer(&chosen.ids, 4), buffer(&chosen.weights, 4));
    choose_experts::launch(client, count, dim, buffer(logits, 4), ids, weights, choices, team);
    chosen
}

/// The sum of each token's `slots` rows of `width` values, times their weights.
pub fn mix(client: &Client, rows: &Handle, weights: &Handle, [tokens, slots, width]: [usize; 3]) -> Handle {
    let out = values(client, tokens * width);
    let (count, dim, grid) = elementwise(client, tokens * width);
    let (rows, weights) = (buffer(rows, 4), buffer(weights, 4));
    mix_rows::launch(client, count, dim, rows, weights, buffer(&out, 4), grid, slots, width);
    out
}

/// Tokens, their teams, and what they choose from.
#[derive(CubeType, CubeLaunch)]
struct Choices {
    grid: Grid,
    experts: usize,
    slots: usize,
    scale: f32,
}

#[cube(launch)]
fn choose_experts(logits: &[u32], ids: &mut [u32], weights: &mut [f32], choices: &Choices, #[comptime] team: Team) {
    let token = row_of(&choices.grid, team);
    if token >= choices.grid.len {
        terminate!();
    }
    let (first, of_token) = (token * choices.experts, token * choices.slots);
    let mut largest = 0.0f32;
    let mut sum = 0.0f32;
    // The choice before this one, after which all that are left come.
    let mut before = Best::none();
    for slot in 0..choices.slots {
        let mut best = Best::none();
        for expert in range_stepped(unit_of(team), choices.experts, comptime!(team.units() as usize)) {
            let logit = Best::of(logits[first + expert], expert as u32);
            if slot == 0 || before.is_before(logit) {
                best.take(logit);
            }
        }
        best.take_of_team(team);
        largest = select(slot == 0, best.value, largest);
        let weight = f32::exp(best.value - largest);
        sum += weight;
        if unit_of(team) == 0 {
            ids[of_token + slot] = best.place;
            weights[of_token + slot] = weight;
        }
        before.value = best.value;
        before.place = best.place;
    }
    if unit_of(team) == 0 {
        let factor = choices.scale / sum;
        for slot in 0..choices.slots {
            weights[of_token + slot] *= factor;
        }
    }
}

#[cube(launch)]
fn mix_rows(rows: &[f32], weights: &[f32], out: &mut [f32], grid: &Grid, slots: usize, width: usize) {
    let position = grid.unit();
    if position < grid.len {
        let (token, column) = (position / width, position % width);
        let mut sum = 0.0f32;
        for slot in 0..slots {
            let pair = token * slots + slot;
            sum += weights[pair] * rows[pair * width + column];
        }
        out[position] = sum;
    }
}
