//! RMS norms (Zhang and Sennrich, 2019), with the sums before them.

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::team::{Team, row_of, sum_of_team, unit_of};
use super::values;
use crate::kernels::launch::{Grid, buffer};

/// A norm's weights, one for each value of a row, and what is added to the mean of the squares. Kernels take weights on the
/// device; so it is with [`Rotary`](super::rotary::Rotary) and [`Attention`](super::attention::Attention).
#[derive(Clone, Debug)]
pub struct RmsNorm<V = Handle> {
    /// The weights.
    pub weight: V,
    /// Values of a row.
    pub width: usize,
    /// What keeps the root from being 0.
    pub epsilon: f32,
}

/// The norm of each of `rows` rows of `x`.
pub fn norm(client: &Client, x: &Handle, rows: usize, norm: &RmsNorm) -> Handle {
    let team = Team::of_row(client, norm.width);
    let (count, dim, grid) = team.launch(client, rows);
    let out = values(client, rows * norm.width);
    let rows = RowsLaunch::new(grid, norm.width, norm.epsilon);
    norm_rows::launch(client, count, dim, buffer(x, 4), buffer(&norm.weight, 4), buffer(&out, 4), rows, team);
    out
}

/// `x + y`, or `x` and the norm `after` of `y`, and the norm of that sum.
pub fn add_norm(
    client: &Client,
    [x, y]: [&Handle; 2],
    rows: usize,
    after: Option<&RmsNorm>,
    norm: &RmsNorm,
) -> (Handle, Handle) {
    let team = Team::of_row(client, norm.width);
    let (count, dim, grid) = team.launch(client, rows);
    let (sum, out) = (values(client, rows * norm.width), values(client, rows * norm.width));
    let weight = buffer(&norm.weight, 4);
    let inputs = SummandsLaunch::new(buffer(x, 4), buffer(y, 4), buffer(&after.unwrap_or(norm).weight, 4), weight);
    let rows = RowsLaunch::new(grid, norm.width, norm.epsilon);
    let norms_second = after.is_some();
    add_norm_rows::launch(client, count, dim, inputs, buffer(&sum, 4), buffer(&out, 4), rows, norms_second, team);
    (sum, out)
}

/// Rows and the teams that norm them.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
#[expand(derive(Clone, Copy))]
struct Rows {
    grid: Grid,
    width: usize,
    epsilon: f32,
}

/// What is added, the weights of the norm of the second, and of the norm of the sum.
#[derive(CubeType, CubeLaunch)]
struct Summands {
    x: Box<[f32]>,
    y: Box<[f32]>,
    after: Box<[f32]>,
    weight: Box<[f32]>,
}

#[cube(launch)]
fn norm_rows(x: &[f32], weight: &[f32], out: &mut [f32], rows: &Rows, #[comptime] team: Team) {
    let row = row_of(&rows.grid, team);
    if row >= rows.grid.len {
        terminate!();
    }
    let start = row * rows.width;
    let factor = inverse_root_mean_square(x, start, rows, team);
    for i in range_stepped(unit_of(team), rows.width, comptime!(team.units() as usize)) {
        out[start + i] = x[start + i] * factor * weight[i];
    }
}

#[cube(launch)]
fn add_norm_rows(
    inputs: &Summands,
    sum: &mut [f32],
    out: &mut [f32],
    rows: &Rows,
    #[comptime] norms_second: bool,
    #[comptime] team: Team,
) {
    let row = row_of(&rows.grid, team);
    if row >= rows.grid.len {
        terminate!();
    }
    let unit = unit_of(team);
    let start = row * rows.width;
    let mut factor = 1.0f32;
    if comptime!(norms_second) {
        factor = inverse_root_mean_square(&inputs.y, start, rows, team);
    }
    let mut squares = 0.0f32;
    for i in range_stepped(unit, rows.width, comptime!(team.units() as usize)) {
        let mut y = inputs.y[start + i];
        if comptime!(norms_second) {
            y = y * factor * inputs.after[i];
        }
        let value = inputs.x[start + i] + y;
        sum[start + i] = value;
        squares += value * value;
    }
    let factor = inverse_root(sum_of_team(squares, team), rows.width, rows.epsilon);
    for i in range_stepped(unit, rows.width, comptime!(team.units() as usize)) {
        out[start + i] = sum[start + i] * factor * inputs.weight[i];
    }
}

#[cube]
fn inverse_root_mean_square(x: &[f32], start: usize, rows: &Rows, #[comptime] team: Team) -> f32 {
    let mut squares = 0.0f32;
    for i in range_stepped(unit_of(team), rows.width, comptime!(team.units() as usize)) {
        squares += x[start + i] * x[start + i];
    }
    inverse_root(sum_of_team(squares, team), rows.width, rows.epsilon)
}

/// One over the root of the mean of `width` squares and `epsilon`.
#[cube]
pub(super) fn inverse_root(squares: f32, width: usize, epsilon: f32) -> f32 {
    1.0f32 / f32::sqrt(squares / f32::cast_from(width) + epsilon)
}
