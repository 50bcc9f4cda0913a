//! The launch of a product on matrix units.

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::blueprint::Blueprint;
use super::kernel::{ExtentLaunch, add_splits, multiply_tiles, multiply_warpgroups};
use super::pack::PackedActivations;
use super::problem::Problem;
use crate::kernels::arch::matrix_unit::MatrixUnit;
use crate::kernels::floats::FloatType;
use crate::kernels::hardware::Hardware;
use crate::kernels::launch::{buffer, cubes, elementwise};
use crate::kernels::routing::{Routing, TilesLaunch};
use crate::kernels::weights::Weights;

/// [`multiply`] by the rule's blueprint for the device's `unit`.
pub fn multiply_packed(
    client: &Client,
    unit: MatrixUnit,
    weights: &Weights,
    x: &PackedActivations,
    to: FloatType,
) -> Handle {
    let problem = Problem { ty: weights.ty(), tokens: x.tokens, n: weights.n(), chunks: weights.chunks() };
    multiply(client, weights, x, to, Blueprint::of(&Hardware::of(client), unit, problem))
}

/// `x` times the transpose of the weights, as contiguous `[tokens, n]` values of type `to`.
///
/// The blueprint must be one of these weights and of the device's matrix unit; `x` must have as many chunks a row.
pub fn multiply(
    client: &Client,
    weights: &Weights,
    x: &PackedActivations,
    to: FloatType,
    blueprint: Blueprint,
) -> Handle {
    let tiles = x.tokens.div_ceil(blueprint.tokens());
    let shape = Shape { n: weights.n(), results: x.tokens, tiles, routed: None };
    multiply_with(client, weights, x, to, blueprint, shape)
}

/// Rows of activations, packed by expert into tiles of the blueprint's tokens, times the transpose of their experts' weights,
/// as contiguous `[pairs, n]` values of type `to`.
///
/// The blueprint must be one of these weights and of the device's matrix unit, without splits.
pub fn multiply_experts(
    client: &Client,
    weights: &Weights,
    x: &PackedActivations,
    routing: &Routing,
    to: FloatType,
    blueprint: Blueprint,
) -> Handle {
    let n = weights.n() / routing.experts();
    let sorted = routing.sorted(client, blueprint.tokens());
    let routed = Some(sorted.tiles(routing.experts(), n));
    let shape = Shape { n, results: routing.pairs(), tiles: sorted.count, routed };
    multiply_with(client, weights, x, to, Blueprint { splits: 1, ..blueprint }, shape)
}

/// Rows of weights that a tile is multiplied with, rows of the result, tiles of activations, and the experts of these.
struct Shape {
    n: usize,
    results: usize,
    tiles: usize,
    routed: Option<TilesLaunch>,
}

fn multiply_with(
    client: &Client,
    weights: &Weights,
    x: &PackedActivations,
    to: FloatType,
    blueprint: Blueprint,
    shape: Shape,
) -> Handle {
    let Shape { n, results: tokens, tiles: token_tiles, routed } = shape;
    let Blueprint { splits, .. } = blueprint;
    let out = client.empty((tokens * n * to.bytes()).next_multiple_of(16).max(16));
    // Sums of splits are added up in vectors of four.
    let split_stride = (tokens * n).next_multiple_of(4);
    let (sums, sums_ty) =
        if splits > 1 { (client.empty(4 * splits * split_stride), FloatType::F32) } else { (out.clone(), to) };
    let count = n.div_ceil(blueprint.rows()) * token_tiles * splits;
    let (count, grid) = cubes(client, count, count);
    let unit = blueprint.unit;
    let dim = CubeDim::new_2d(unit.plane(), blueprint.planes() as u32);
    let extent = ExtentLaunch::new(grid, n, weights.chunks(), x.tokens, token_tiles, split_stride);
    let words = unit.words_per_row();
    let (view, elem) = (weights.view(), sums_ty.elem());
    let (epilogue, tiles) = (weights.epilogue(), routed.into());
    let (x, y) = (buffer(&x.handle, 16), buffer(&sums, sums_ty.bytes()));
    // SAFETY: rows are below `n`, chunks below the row's and tokens below `tokens`: the kernel clamps what it reads, and
    // stores nothing past them. Experts are below their number (clamped too), and packed rows below theirs, where `sort` has
    // written them. A warpgroup's last copies go past the tokens, into the room that `pack` leaves for a cube's.
    // Codebooks have an entry for every index that bits can form.
    unsafe {
        if let MatrixUnit::Wgmma { .. } = unit {
            let size = unit.sums();
            multiply_warpgroups::launch_unchecked(
                client, count, dim, view, x, y, extent, epilogue, tiles, blueprint, elem, size,
            );
        } else {
            let sizes = [unit.rows_per_lane() * words, words, unit.sums()];
            multiply_tiles::launch_unchecked(
                client, count, dim, view, x, y, extent, epilogue, tiles, blueprint, elem, sizes,
            );
        }
    }
    if splits > 1 {
        let (count, dim, grid) = elementwise(client, split_stride / 4);
        let (sums, y) = (buffer(&sums, 16), buffer(&out, 4 * to.bytes()));
        add_splits::launch(client, count, dim, sums, y, grid, splits, split_stride / 4, to.elem());
    }
    out
}
