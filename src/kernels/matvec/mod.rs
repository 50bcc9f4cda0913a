//! Few tokens: each weight is read once and multiplied by up to [`MAX_TOKENS`] rows of activations.
//!
//! A group of lanes shares a few rows of weights: each lane takes every `lanes`-th span of units of 32 values, decodes it
//! and multiplies; then the lanes' sums are reduced, in a fixed order, so that the same input gives the same bits.
//!
//! What a launch is made of lies in three places: the [`Blueprint`] that the kernel is compiled for, the kernel, and the
//! launch below.

mod blueprint;
mod kernel;

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;

pub use blueprint::{Blueprint, Operand, Reduction};
use kernel::{multiply_rows, multiply_staged};

use super::activations::{Activations, pack};
use super::floats::FloatType;
use super::formats::{UNIT, traits};
use super::int8::{Quantized, quantize};
use super::launch::{GridLaunch, buffer, cubes};
use super::weights::Weights;

/// The most rows of activations that one launch multiplies.
pub const MAX_TOKENS: usize = 8;

/// `x` times the transpose of `weights`, as contiguous `[tokens, n]` values of `x`'s type.
///
/// Any number of tokens is right; past [`MAX_TOKENS`] the weights are read again for each such group.
pub fn matvec(client: &Client, weights: &Weights, x: &Activations, operand: Operand) -> Handle {
    let operand = if traits(weights.ty()).dense { Operand::Float } else { operand };
    matvec_with(client, weights, x, operand, |tokens| weights.blueprint(client, operand, tokens))
}

/// [`matvec`] by the blueprints that `pick` gives for so many tokens; dense weights take [`Operand::Float`] alone. What does
/// not fit the weights or the activations is replaced by what does.
pub fn matvec_with(
    client: &Client,
    weights: &Weights,
    x: &Activations,
    operand: Operand,
    pick: impl Fn(usize) -> Blueprint,
) -> Handle {
    let tokens = x.tokens();
    let out = client.empty((tokens * weights.n() * x.ty.bytes()).next_multiple_of(16).max(16));
    let mut ready = None;
    let mut first = 0;
    while first < tokens {
        let blueprint = pick(MAX_TOKENS.min(tokens - first)).fitted(weights, x, operand);
        let launch = Launch { client, weights, x, out: &out, first, tokens };
        if blueprint.staging.is_some() {
            launch.staged(blueprint);
        } else {
            launch.of(blueprint, ready.get_or_insert_with(|| Ready::new(client, weights, x, operand)));
        }
        first += blueprint.tokens;
    }
    out
}

/// Activations as a kernel multiplies them.
struct Ready {
    codes: Handle,
    code_vectors: usize,
    /// Values, or the scales and sums of codes.
    values: Handle,
    value_vectors: usize,
}

impl Ready {
    fn new(client: &Client, weights: &Weights, x: &Activations, operand: Operand) -> Self {
        let units = x.tokens() * weights.units();
        match operand {
            Operand::Int8 => {
                let Quantized { codes, sums, .. } = quantize(client, x);
                Self { codes, code_vectors: units * 2, values: sums, value_vectors: units }
            }
            Operand::Float => {
                let as_they_are = x.ty == FloatType::F32
                    && x.k().is_multiple_of(UNIT)
                    && (x.tokens() == 1 || x.token_stride() == Some(x.k()))
                    && x.token_stride().is_some();
                let values = if as_they_are { x.handle.clone() } else { pack(client, x, FloatType::F32) };
                Self { codes: values.clone(), code_vectors: 1, values, value_vectors: units * 8 }
            }
        }
    }
}

/// One launch, of rows of activations from `first` on.
struct Launch<'a> {
    client: &'a Client,
    weights: &'a Weights,
    x: &'a Activations,
    out: &'a Handle,
    first: usize,
    tokens: usize,
}

impl Launch<'_> {
    /// The cubes, how many there are, and how many turns at the rows each takes.
    fn grid(&self, blueprint: &Blueprint) -> (CubeCount, GridLaunch, usize, usize) {
        let n = self.weights.n();
        let rows_per_cube = blueprint.rows * blueprint.groups as usize;
        let wanted = n.div_ceil(rows_per_cube);
        let count = blueprint.cubes.map_or(wanted, |cubes| wanted.min(cubes as usize));
        let (cubes, grid) = cubes(self.client, count, n);
        (cubes, grid, count, n.div_ceil(rows_per_cube * count.max(1)))
    }

    fn of(&self, blueprint: Blueprint, ready: &Ready) {
        let (count, grid, cubes, turns) = self.grid(&blueprint);
        // SAFETY: rows are below `n` and tokens below `tokens` (the kernel clamps both) and units below the row's, so that
        // what it reads of the weights lies in the planes that were placed for `n` rows, what it reads of the activations
        // in `tokens` rows of `units`, and what it writes in `tokens` rows of `n`. Codebooks have an entry for every index
        // that bits can form.
        unsafe {
            multiply_rows::launch_unchecked(
                self.client,
                count,
                CubeDim::new_2d(blueprint.lanes, blueprint.groups),
                self.weights.planes(),
                buffer(&ready.codes, ready.code_vectors),
                buffer(&ready.values, ready.value_vectors),
                buffer(self.out, self.tokens * self.weights.n()),
                grid,
                cubes,
                turns,
                self.weights.units() / blueprint.span,
                self.first,
                self.tokens,
                blueprint,
                self.x.ty,
                self.x.ty.elem(),
            );
        }
    }

    fn staged(&self, blueprint: Blueprint) {
        let (count, grid, cubes, turns) = self.grid(&blueprint);
        let stride = self.x.token_stride().unwrap_or_default();
        // SAFETY: as in `of`; a staged blueprint is of activations whose tokens are `stride` values apart, and has room in
        // shared memory for the units of a row.
        unsafe {
            multiply_staged::launch_unchecked(
                self.client,
                count,
                CubeDim::new_2d(blueprint.lanes, blueprint.groups),
                self.weights.planes(),
                buffer(&self.x.handle, self.x.len / 4),
                buffer(self.out, self.tokens * self.weights.n()),
                grid,
                cubes,
                turns,
                self.weights.units() / blueprint.span,
                stride / 4,
                self.first,
                self.tokens,
                blueprint,
                self.x.ty,
                [self.x.ty.elem(), self.x.ty.elem()],
            );
        }
    }
}
