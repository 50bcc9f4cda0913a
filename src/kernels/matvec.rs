//! Few tokens: each weight is read once and multiplied by up to [`MAX_TOKENS`] rows of activations.
//!
//! A group of lanes shares a few rows of weights: each lane takes every `lanes`-th span of units of 32 values, decodes it
//! and multiplies; then the lanes' sums are reduced, in a fixed order, so that the same input gives the same bits.

use cubecl::client::Client;
use cubecl::frontend::comptime;
use cubecl::ir::ElemType;
use cubecl::ir::features::Plane;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::activations::{Activations, Quantized, pack, quantize};
use super::dot::{Bytes, Instruction, dot16};
use super::floats::{FloatType, rounded};
use super::formats::{At, Codes, Format, Planes, Traits, UNIT, Unit, Words, format, traits, unit, values};
use super::launch::{Grid, buffer, cubes, is_rasterizer};
use super::target::{schedule_barrier, scheduled};
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
    /// Units that a lane decodes together: the format's span, or 1 where that does not divide the row's.
    pub span: usize,
    /// Lanes that share a row, a power of two.
    pub lanes: u32,
    /// Groups of lanes in a cube.
    pub groups: u32,
    /// Rows of weights a group of lanes multiplies.
    pub rows: usize,
    /// Rows of activations that the kernel has sums for; more take more launches.
    pub tokens: usize,
}

impl Blueprint {
    /// All that [`pick`](Self::pick) gives for weights of a type on a device.
    pub fn all(client: &Client, ty: GgmlType) -> Vec<Self> {
        let operands: &[_] = if traits(ty).dense { &[Operand::Float] } else { &[Operand::Int8, Operand::Float] };
        // Rows with and without enough spans for a plane of lanes, of whole spans and not.
        let block = (ty.block_size() / UNIT).max(1);
        let span = format(ty).map_or(1, Format::span);
        let rows = [1024 * block, 1001 * block, span.max(block), block];
        let mut all = Vec::new();
        for &operand in operands {
            for tokens in 1..=MAX_TOKENS {
                for units in rows {
                    let blueprint = Self::for_row(client, ty, units, operand, tokens);
                    if !all.contains(&blueprint) {
                        all.push(blueprint);
                    }
                }
            }
        }
        all
    }

    /// The rule: what suits the device's properties.
    pub fn pick(client: &Client, weights: &Weights, operand: Operand, tokens: usize) -> Self {
        Self::for_row(client, weights.ty(), weights.units(), operand, tokens)
    }

    /// [`pick`](Self::pick) for rows of so many units of 32 values.
    pub fn for_row(client: &Client, ty: GgmlType, units: usize, operand: Operand, tokens: usize) -> Self {
        let hardware = &client.properties().hardware;
        let plane = hardware.plane_size_max;
        let fixed_plane = hardware.plane_size_min == plane && plane > 1;
        let span = format(ty).map_or(1, Format::span);
        let span = if units.is_multiple_of(span) { span } else { 1 };
        // Few kernels to compile; where the decoding to floats costs most, one for all of them. A long span leaves registers
        // for few tokens.
        let tokens = match operand {
            Operand::Float if !traits(ty).dense && tokens > 1 => 4,
            _ if span > 4 => tokens.next_power_of_two().min(4),
            _ => tokens.next_power_of_two(),
        };
        let (reduction, lanes, groups, rows) = if let Some(cores) = hardware.num_cpu_cores {
            (Reduction::None, 1, cores.min(hardware.max_units_per_cube), 1)
        } else if is_rasterizer(client) {
            (Reduction::None, 1, 1, 1)
        } else if client.features().plane.contains(Plane::Ops) && fixed_plane {
            // Where a row has too few spans for all lanes of a plane, a quarter of them does not idle.
            let lanes = if units / span < plane as usize { (plane / 4).max(1) } else { plane };
            // Two rows share the loads of the activations, where the registers suffice for that.
            let decoded = operand == Operand::Float && !traits(ty).dense && tokens > 1;
            let rows = if tokens > 4 || span > 4 || decoded { 1 } else { 2 };
            (Reduction::Plane, lanes, 128.max(plane) / lanes, rows)
        } else {
            (Reduction::Shared, 64.min(hardware.max_units_per_cube), 1, 1)
        };
        Self { ty, operand, reduction, span, lanes, groups, rows, tokens }
    }
}

/// `x` times the transpose of `weights`, as contiguous `[tokens, n]` values of `x`'s type.
///
/// Any number of tokens is right; past [`MAX_TOKENS`] the weights are read again for each such group.
pub fn matvec(client: &Client, weights: &Weights, x: &Activations, operand: Operand) -> Handle {
    let operand = if traits(weights.ty()).dense { Operand::Float } else { operand };
    matvec_with(client, weights, x, operand, |tokens| Blueprint::pick(client, weights, operand, tokens))
}

/// [`matvec`] by the blueprints that `pick` gives for so many tokens; dense weights take [`Operand::Float`] alone. What does
/// not fit the weights (type, operand, a span that does not divide a row's units) is replaced by what does.
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
    let (codes, values, value_vectors) = match operand {
        Operand::Int8 => {
            let Quantized { codes, sums, units } = quantize(client, x);
            (Some((codes, tokens * units * 2)), sums, tokens * units)
        }
        Operand::Float => (None, pack(client, x, FloatType::F32), tokens * units * 8),
    };
    let (codes, code_vectors) = codes.unwrap_or_else(|| (values.clone(), 1));
    let mut first = 0;
    while first < tokens {
        let picked = pick(MAX_TOKENS.min(tokens - first));
        let span = if units.is_multiple_of(picked.span) { picked.span } else { 1 };
        let blueprint = Blueprint { ty: weights.ty(), operand, span, tokens: picked.tokens.max(1), ..picked };
        let rows_per_cube = blueprint.rows * blueprint.groups as usize;
        let (count, grid) = cubes(client, weights.n().div_ceil(rows_per_cube), weights.n());
        // SAFETY: rows are below `n` and tokens below `tokens` (the kernel clamps both) and units below the row's, so that
        // what it reads of the weights lies in the planes that were placed for `n` rows, what it reads of the activations
        // in `tokens` rows of `units`, and what it writes in `tokens` rows of `n`. Codebooks have an entry for every index that bits can form.
        unsafe {
            multiply_rows::launch_unchecked(
                client,
                count,
                CubeDim::new_2d(blueprint.lanes, blueprint.groups),
                weights.planes(),
                buffer(&codes, code_vectors),
                buffer(&values, value_vectors),
                buffer(&out, tokens * weights.n()),
                grid,
                units / blueprint.span,
                first,
                tokens,
                blueprint,
                x.ty,
                x.ty.elem(),
            );
        }
        first += blueprint.tokens;
    }
    out
}

/// `x` holds the activations' values ([`Operand::Float`]), or their codes' scales and sums ([`Operand::Int8`]).
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn multiply_rows<O: Float>(
    planes: &Planes,
    codes: &[Words],
    x: &[Vector<f32, Const<4>>],
    out: &mut [O],
    grid: Grid,
    spans: usize,
    first_token: usize,
    all_tokens: usize,
    #[comptime] blueprint: Blueprint,
    #[comptime] ty: FloatType,
    #[define(O)] _dtype: ElemType,
) {
    let (rows, tokens, units_per_span) = comptime!((blueprint.rows, blueprint.tokens, blueprint.span));
    // Rows of activations of which a unit each takes as many registers as a wave should wait for.
    let at_once = comptime!(match blueprint.operand {
        Operand::Int8 if units_per_span <= 4 => 4,
        Operand::Int8 => 2,
        Operand::Float => 1,
    });
    let n = grid.len;
    let group = grid.cube() * comptime!(blueprint.groups as usize) + UNIT_POS_Y as usize;
    let first_row = group * rows;
    let mut sums = Array::<f32>::new(comptime!(rows * tokens));
    #[unroll]
    for i in 0..comptime!(rows * tokens) {
        sums[i] = 0.0f32;
    }
    for span in range_stepped(UNIT_POS_X as usize, spans, comptime!(blueprint.lanes as usize)) {
        #[unroll]
        for place in 0..units_per_span {
            let mut u = span * units_per_span + place;
            if comptime!(place > 0) {
                if comptime!(tokens >= 4) {
                    u = scheduled(u);
                } else {
                    schedule_barrier();
                }
            }
            #[unroll]
            for r in 0..rows {
                // What is past the last row or token multiplies that again and stores nothing.
                let at = At::in_span(clamped(first_row + r, n), span, units_per_span, place);
                if comptime!(blueprint.operand == Operand::Int8) {
                    let unit = unit(planes, at, blueprint.ty);
                    #[unroll]
                    for t in 0..tokens {
                        if comptime!(tokens >= 4 && t > 0 && t % at_once == 0) {
                            u = scheduled(u);
                        }
                        let x_unit = clamped(first_token + t, all_tokens) * (spans * units_per_span) + u;
                        let sum = sums[comptime!(r * tokens + t)];
                        sums[comptime!(r * tokens + t)] = add_int8(sum, &unit, codes, x, x_unit, blueprint.ty);
                    }
                } else {
                    let values = values(planes, at, blueprint.ty);
                    #[unroll]
                    for t in 0..tokens {
                        if comptime!(tokens >= 4 && t > 0 && t % at_once == 0) {
                            u = scheduled(u);
                        }
                        let first = (clamped(first_token + t, all_tokens) * (spans * units_per_span) + u) * 8;
                        sums[comptime!(r * tokens + t)] += dot_float(&values, x, first);
                    }
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
                    let token = first_token + t;
                    if token < all_tokens {
                        out[token * n + first_row + r] = rounded::<O>(sums[comptime!(r * tokens + t)], ty);
                    }
                }
            }
        }
    }
}

#[cube]
fn clamped(index: usize, len: usize) -> usize {
    select(index < len, index, len - 1)
}

/// `sum` plus the product of a unit of weights with unit `at` of the activations.
#[cube]
fn add_int8(
    sum: f32,
    unit: &Unit,
    codes: &[Words],
    sums: &[Vector<f32, Const<4>>],
    at: usize,
    #[comptime] ty: GgmlType,
) -> f32 {
    let traits = comptime!(traits(ty));
    let (low, high) = (codes[2 * at], codes[2 * at + 1]);
    let x = sums[at];
    let (scale, sum_low, sum_high) = (x.extract(0usize), x.extract(2usize), x.extract(3usize));
    if comptime!(traits.scales == 1) {
        let dot = dot_sixteen(unit.high, high, dot_sixteen(unit.low, low, 0i32, traits), traits);
        let product = unit.scale_low * (scale * unbiased(dot, sum_low + sum_high, traits));
        if comptime!(traits.min) { sum + product + unit.min_low * x.extract(1usize) } else { sum + product }
    } else {
        let dot_low = unbiased(dot_sixteen(unit.low, low, 0i32, traits), sum_low, traits);
        let dot_high = unbiased(dot_sixteen(unit.high, high, 0i32, traits), sum_high, traits);
        let mut product = unit.scale_low * dot_low + unit.scale_high * dot_high;
        if comptime!(traits.min) {
            product += unit.min_low * sum_low + unit.min_high * sum_high;
        }
        sum + scale * product
    }
}

/// `start` plus the product of 16 codes of weights with 16 of activations.
#[cube]
fn dot_sixteen(weights: Words, x: Words, start: i32, #[comptime] traits: Traits) -> i32 {
    let properties = comptime::device_properties();
    match comptime!(reading(traits.codes, Instruction::of(&properties))) {
        Reading::AsTheyAre { bytes, .. } => dot16(weights, x, start, bytes),
        Reading::Centered => dot16(weights ^ Words::new(0x8080_8080u32), x, start, Bytes::Signed),
    }
}

/// A product of codes less what their bias added to it, from the sum of the activations' codes. Exact: all of these are
/// integers of less than 24 bits.
#[cube]
fn unbiased(dot: i32, sum: f32, #[comptime] traits: Traits) -> f32 {
    let properties = comptime::device_properties();
    match comptime!(reading(traits.codes, Instruction::of(&properties))) {
        Reading::AsTheyAre { bias: 0, .. } | Reading::Centered => f32::cast_from(dot),
        Reading::AsTheyAre { bias, .. } => f32::cast_from(dot) - comptime!(bias as f32) * sum,
    }
}

/// How a dot product takes the codes of weights.
#[derive(Clone, Copy)]
enum Reading {
    /// As bytes that are `bias` over their values.
    AsTheyAre { bytes: Bytes, bias: u32 },
    /// Codes biased by 128, less that: where the device has no product with unsigned bytes.
    Centered,
}

fn reading(codes: Codes, instruction: Instruction) -> Reading {
    match codes {
        Codes::Signed => Reading::AsTheyAre { bytes: Bytes::Signed, bias: 0 },
        Codes::Biased(128) if !instruction.takes_unsigned() => Reading::Centered,
        Codes::Biased(128) => Reading::AsTheyAre { bytes: Bytes::Unsigned, bias: 128 },
        // These codes are less than 128, so that either sign reads them rightly.
        Codes::Biased(bias) => Reading::AsTheyAre { bytes: Bytes::Signed, bias },
    }
}

/// The product of 32 values with those from vector `first` of the activations on.
#[cube]
fn dot_float(values: &Sequence<Vector<f32, Const<4>>>, x: &[Vector<f32, Const<4>>], first: usize) -> f32 {
    let mut sums = Vector::<f32, Const<4>>::new(0.0f32);
    #[unroll]
    for i in 0..8usize {
        sums += *values.index(i) * x[first + i];
    }
    (sums.extract(0usize) + sums.extract(1usize)) + (sums.extract(2usize) + sums.extract(3usize))
}

/// Each sum over the lanes of a group, in lane 0.
#[cube]
fn reduce(sums: &mut Array<f32>, #[comptime] blueprint: Blueprint) {
    let count = comptime!(blueprint.rows * blueprint.tokens);
    match blueprint.reduction {
        Reduction::Plane => {
            let properties = comptime::device_properties();
            let whole_plane = comptime!(blueprint.lanes == properties.hardware.plane_size_max);
            #[unroll]
            for i in 0..count {
                sums[i] = if whole_plane { plane_sum(sums[i]) } else { sum_of_lanes(sums[i], blueprint.lanes) };
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

/// The sum over each run of `lanes` lanes of a plane, in all of them.
#[cube]
fn sum_of_lanes(value: f32, #[comptime] lanes: u32) -> f32 {
    let mut sum = value;
    #[unroll]
    for step in 0..comptime!(lanes.ilog2()) {
        sum += plane_shuffle_xor(sum, comptime!(1u32 << step));
    }
    sum
}
