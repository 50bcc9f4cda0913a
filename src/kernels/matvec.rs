//! Few tokens: each weight is read once and multiplied by up to [`MAX_TOKENS`] rows of activations.
//!
//! A group of lanes shares a few rows of weights: each lane takes every `lanes`-th unit of 32 values, decodes it and
//! multiplies; then the lanes' sums are reduced, in a fixed order, so that the same input gives the same bits.

use cubecl::client::Client;
use cubecl::ir::ElemType;
use cubecl::ir::features::Plane;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::activations::{Activations, Quantized, pack, quantize};
use super::floats::{FloatType, rounded};
use super::formats::{At, Planes, Unit, Words, traits, unit, values};
use super::launch::{Grid, buffer, cubes, is_rasterizer};
use super::weights::Weights;
use crate::gguf::GgmlType;

/// The most rows of activations that one launch multiplies.
pub const MAX_TOKENS: usize = 8;

/// What the activations of a product are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operand {
    /// int8 codes in units of 32.
    Int8,
    /// f32 values.
    Float,
}

/// How the lanes that share a row add up their sums: what the device can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reduction {
    /// Lanes of a plane, by plane operations.
    Plane,
    /// Units of a cube, through shared memory.
    Shared,
    /// One unit a row.
    None,
}

/// Everything about the kernel that is fixed when it is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Blueprint {
    pub ty: GgmlType,
    pub operand: Operand,
    pub reduction: Reduction,
    /// Lanes that share a row.
    pub lanes: u32,
    /// Groups of lanes in a cube.
    pub groups: u32,
    /// Rows of weights a group of lanes multiplies.
    pub rows: usize,
    /// Rows of activations.
    pub tokens: usize,
}

impl Blueprint {
    /// The rule: what suits the device's properties.
    pub fn pick(client: &Client, ty: GgmlType, operand: Operand, tokens: usize) -> Self {
        let hardware = &client.properties().hardware;
        let fixed_plane = hardware.plane_size_min == hardware.plane_size_max && hardware.plane_size_max > 1;
        let (reduction, lanes, groups, rows) = if let Some(cores) = hardware.num_cpu_cores {
            (Reduction::None, 1, cores.min(hardware.max_units_per_cube), 1)
        } else if is_rasterizer(client) {
            (Reduction::None, 1, 1, 1)
        } else if client.features().plane.contains(Plane::Ops) && fixed_plane {
            // Two rows share the loads of the activations; more tokens need the registers for themselves.
            let rows = if tokens <= 4 { 2 } else { 1 };
            (Reduction::Plane, hardware.plane_size_max, (128 / hardware.plane_size_max).max(1), rows)
        } else {
            (Reduction::Shared, 64.min(hardware.max_units_per_cube), 1, 1)
        };
        Self { ty, operand, reduction, lanes, groups, rows, tokens }
    }
}

/// `x` times the transpose of `weights`, as contiguous `[tokens, n]` values of `x`'s type.
///
/// Any number of tokens is right; past [`MAX_TOKENS`] the weights are read again for each such group.
pub fn matvec(client: &Client, weights: &Weights, x: &Activations, operand: Operand) -> Handle {
    let operand = if traits(weights.ty()).dense { Operand::Float } else { operand };
    matvec_with(client, weights, x, operand, |tokens| Blueprint::pick(client, weights.ty(), operand, tokens))
}

/// [`matvec`] by the blueprints that `pick` gives for so many tokens, which must be of the weights' type and of `operand`
/// (dense weights take [`Operand::Float`] alone).
pub fn matvec_with(
    client: &Client,
    weights: &Weights,
    x: &Activations,
    operand: Operand,
    pick: impl Fn(usize) -> Blueprint,
) -> Handle {
    let tokens = x.tokens();
    let out = client.empty((tokens * weights.n() * x.ty.bytes()).next_multiple_of(16).max(16));
    let units = weights.units();
    let (codes, floats, float_vectors) = match operand {
        Operand::Int8 => {
            let Quantized { codes, scales, units } = quantize(client, x);
            (Some((codes, tokens * units * 2)), scales, tokens * units)
        }
        Operand::Float => (None, pack(client, x, FloatType::F32), tokens * units * 8),
    };
    let (codes, code_vectors) = codes.unwrap_or_else(|| (floats.clone(), 1));
    for first in (0..tokens).step_by(MAX_TOKENS) {
        let blueprint = pick(MAX_TOKENS.min(tokens - first));
        let rows_per_cube = blueprint.rows * blueprint.groups as usize;
        let (count, grid) = cubes(client, weights.n().div_ceil(rows_per_cube), weights.n());
        kernel::launch(
            client,
            count,
            CubeDim::new_2d(blueprint.lanes, blueprint.groups),
            weights.planes(),
            buffer(&codes, code_vectors),
            buffer(&floats, float_vectors),
            buffer(&out, tokens * weights.n()),
            grid,
            units,
            first,
            blueprint,
            x.ty,
            x.ty.elem(),
        );
    }
    out
}

/// `floats` holds the activations' values ([`Operand::Float`]) or their codes' scales ([`Operand::Int8`]).
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn kernel<O: Float>(
    planes: &Planes,
    codes: &[Words],
    floats: &[Vector<f32, Const<4>>],
    out: &mut [O],
    grid: Grid,
    units: usize,
    first_token: usize,
    #[comptime] blueprint: Blueprint,
    #[comptime] ty: FloatType,
    #[define(O)] _dtype: ElemType,
) {
    let (rows, tokens) = comptime!((blueprint.rows, blueprint.tokens));
    let n = grid.len;
    let group = grid.cube() * comptime!(blueprint.groups as usize) + UNIT_POS_Y as usize;
    let first_row = group * rows;
    let mut sums = Array::<f32>::new(comptime!(rows * tokens));
    #[unroll]
    for i in 0..comptime!(rows * tokens) {
        sums[i] = 0.0f32;
    }
    for u in range_stepped(UNIT_POS_X as usize, units, comptime!(blueprint.lanes as usize)) {
        #[unroll]
        for r in 0..rows {
            // A group past the last row multiplies it again and stores nothing.
            let row = select(first_row + r < n, first_row + r, n - 1);
            let at = At { row, unit: u };
            if comptime!(blueprint.operand == Operand::Int8) {
                let unit = unit(planes, at, blueprint.ty);
                #[unroll]
                for t in 0..tokens {
                    let x = (first_token + t) * units + u;
                    sums[comptime!(r * tokens + t)] += dot_int8(&unit, codes, floats, x, blueprint.ty);
                }
            } else {
                let values = values(planes, at, blueprint.ty);
                #[unroll]
                for t in 0..tokens {
                    let x = ((first_token + t) * units + u) * 8;
                    sums[comptime!(r * tokens + t)] += dot_float(&values, floats, x);
                }
            }
        }
    }
    reduce(&mut sums, blueprint);
    if UNIT_POS_X == 0 {
        #[unroll]
        for r in 0..rows {
            if first_row + r < n {
                #[unroll]
                for t in 0..tokens {
                    let sum = sums[comptime!(r * tokens + t)];
                    out[(first_token + t) * n + first_row + r] = rounded::<O>(sum, ty);
                }
            }
        }
    }
}

/// The product of a unit of weights with unit `x` of the activations' codes.
#[cube]
fn dot_int8(unit: &Unit, codes: &[Words], scales: &[Vector<f32, Const<4>>], x: usize, #[comptime] ty: GgmlType) -> f32 {
    let traits = comptime!(traits(ty));
    let low = dot_sixteen(unit.low, codes[2 * x]);
    let high = dot_sixteen(unit.high, codes[2 * x + 1]);
    let scale = scales[x];
    let mut sum = if comptime!(traits.scales == 1) {
        unit.scale_low * f32::cast_from(low + high)
    } else {
        unit.scale_low * f32::cast_from(low) + unit.scale_high * f32::cast_from(high)
    };
    sum *= scale.extract(0usize);
    if comptime!(traits.min && traits.scales == 1) {
        sum += unit.min_low * (scale.extract(1usize) + scale.extract(2usize));
    } else if comptime!(traits.min) {
        sum += unit.min_low * scale.extract(1usize) + unit.min_high * scale.extract(2usize);
    }
    sum
}

#[cube]
fn dot_sixteen(a: Words, b: Words) -> i32 {
    let mut sum = 0i32;
    #[unroll]
    for i in 0..4usize {
        sum = dp4a(i32::cast_from(a.extract(i)), i32::cast_from(b.extract(i)), sum);
    }
    sum
}

/// The product of 32 values with those from vector `x` of the activations on.
#[cube]
fn dot_float(values: &Sequence<Vector<f32, Const<4>>>, floats: &[Vector<f32, Const<4>>], x: usize) -> f32 {
    let mut sums = Vector::<f32, Const<4>>::new(0.0f32);
    #[unroll]
    for i in 0..8usize {
        sums += *values.index(i) * floats[x + i];
    }
    (sums.extract(0usize) + sums.extract(1usize)) + (sums.extract(2usize) + sums.extract(3usize))
}

/// Each sum over the lanes of a group, in lane 0.
#[cube]
fn reduce(sums: &mut Array<f32>, #[comptime] blueprint: Blueprint) {
    let count = comptime!(blueprint.rows * blueprint.tokens);
    match blueprint.reduction {
        Reduction::Plane =>
        {
            #[unroll]
            for i in 0..count {
                sums[i] = plane_sum(sums[i]);
            }
        }
        Reduction::Shared => {
            // Half as many lanes hold sums after each step; `lanes` is a power of two, and the cube has one group.
            let mut shared = Shared::<[f32]>::new_slice(comptime!(count * blueprint.lanes as usize));
            let lane = UNIT_POS_X as usize;
            #[unroll]
            for i in 0..count {
                shared[lane * count + i] = sums[i];
            }
            sync_cube();
            #[unroll]
            for step in 0..comptime!(blueprint.lanes.ilog2()) {
                let half = comptime!((blueprint.lanes >> (step + 1)) as usize);
                if lane < half {
                    #[unroll]
                    for i in 0..count {
                        let sum = shared[lane * count + i] + shared[(lane + half) * count + i];
                        shared[lane * count + i] = sum;
                    }
                }
                sync_cube();
            }
            #[unroll]
            for i in 0..count {
                sums[i] = shared[i];
            }
        }
        Reduction::None => {}
    }
}
