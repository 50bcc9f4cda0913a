//! What is computed value by value, four values a unit.

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::values;
use crate::kernels::launch::{Grid, buffer, elementwise};

type Four = Vector<f32, Const<4>>;

/// The activation of a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// GELU by its tanh approximation.
    Gelu,
    /// `x / (1 + exp(-1.702 x))` of a gate of 7 at the most, times one more than an up from -7 to 7: gpt-oss's.
    ClampedSwiglu,
}

/// A function of each value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Map {
    /// The value times a factor.
    Scale,
    /// `cap * tanh(x / cap)`, which stays below `cap`.
    Softcap,
}

/// `activation(gate) * up` of `count` values each.
pub fn gate(client: &Client, [gate, up]: [&Handle; 2], count: usize, activation: Activation) -> Handle {
    let out = values(client, count);
    let (cubes, dim, grid) = elementwise(client, count.div_ceil(4));
    gate_values::launch(client, cubes, dim, buffer(gate, 16), buffer(up, 16), buffer(&out, 16), grid, activation);
    out
}

/// `x` with a function of each of its `count` values.
pub fn map(client: &Client, x: &Handle, count: usize, map: Map, parameter: f32) -> Handle {
    let out = values(client, count);
    let (cubes, dim, grid) = elementwise(client, count.div_ceil(4));
    map_values::launch(client, cubes, dim, buffer(x, 16), buffer(&out, 16), grid, parameter, map);
    out
}

/// Row `row` of `x` in a buffer of its own: not every device binds a buffer from any row on.
pub fn take_row(client: &Client, x: &Handle, row: usize, width: usize) -> Handle {
    let out = values(client, width);
    let (cubes, dim, grid) = elementwise(client, width);
    take_values::launch(client, cubes, dim, buffer(x, 4), buffer(&out, 4), grid, row * width);
    out
}

#[cube(launch)]
fn take_values(x: &[f32], out: &mut [f32], grid: &Grid, first: usize) {
    let position = grid.unit();
    if position < grid.len {
        out[position] = x[first + position];
    }
}

#[cube(launch)]
fn gate_values(gate: &[Four], up: &[Four], out: &mut [Four], grid: &Grid, #[comptime] activation: Activation) {
    let position = grid.unit();
    if position < grid.len {
        let one = Four::new(1.0f32);
        let is_clamped = comptime!(activation == Activation::ClampedSwiglu);
        let limit = Four::new(7.0f32);
        let x = if is_clamped { min(gate[position], limit) } else { gate[position] };
        let up = if is_clamped { clamp(up[position], -limit, limit) + one } else { up[position] };
        let sigmoid = match comptime!(activation) {
            Activation::Silu => one / (one + Four::exp(-x)),
            // (1 + tanh(y)) / 2 is the sigmoid of 2y.
            Activation::Gelu => {
                let y = Four::new(1.595_769f32) * (x + Four::new(0.044_715f32) * x * x * x);
                one / (one + Four::exp(-y))
            }
            Activation::ClampedSwiglu => one / (one + Four::exp(Four::new(-1.702f32) * x)),
        };
        out[position] = x * sigmoid * up;
    }
}

#[cube(launch)]
fn map_values(x: &[Four], out: &mut [Four], grid: &Grid, parameter: f32, #[comptime] map: Map) {
    let position = grid.unit();
    if position < grid.len {
        let parameter = Four::new(parameter);
        out[position] = match comptime!(map) {
            Map::Scale => x[position] * parameter,
            Map::Softcap => {
                let doubled = Four::exp(Four::new(2.0f32) * x[position] / parameter);
                parameter - Four::new(2.0f32) * parameter / (doubled + Four::new(1.0f32))
            }
        };
    }
}
