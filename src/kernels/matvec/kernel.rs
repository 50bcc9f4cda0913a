//! The kernel: load, decode, multiply, reduce, store.

use cubecl::frontend::comptime;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::blueprint::{Blueprint, Reduction};
use super::problem::Operand;
use crate::gguf::GgmlType;
use crate::kernels::arch::dot::{Bytes, Instruction, dot16};
use crate::kernels::arch::schedule::{schedule_barrier, scheduled};
use crate::kernels::floats::{FloatType, rounded};
use crate::kernels::formats::{
    At, Codes, Loads, Planes, Traits, Unit, dense_vector, traits, unit, values, vectors_per_unit,
};
use crate::kernels::launch::Grid;
use crate::kernels::quantize::staged::{Staging, stage, staged};
use crate::kernels::vector::Words;

/// Buffers that a [`Matrix`] binds: its planes as vectors and as words, and its codebook.
pub const MATRIX_BUFFERS: usize = 3;

/// A matrix of a launch.
#[derive(CubeType, CubeLaunch)]
pub struct Matrix {
    planes: Planes,
    /// Rows.
    n: usize,
    /// Where its results begin.
    start: usize,
    /// Cubes that take its rows.
    cubes: usize,
    /// What the matrices before it took: cubes, or groups of the last turn where all cubes take rows of all matrices.
    before: usize,
    /// How often all groups take rows.
    turns: usize,
}

/// The product with activations from memory: `x` holds their values ([`Operand::Float`]), or their codes' scales and sums
/// ([`Operand::Int8`]).
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
pub fn multiply_rows<O: Float>(
    matrices: &Sequence<Matrix>,
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
    let share = Share { cube: grid.cube(), spans, first_token, all_tokens };
    let codebook = &matrices.index(0usize).planes.codebook;
    if comptime!(blueprint.codebook > 0) {
        let mut shared = Shared::<[u32]>::new_slice(blueprint.codebook);
        copy_codebook(codebook, &mut shared, blueprint);
        sync_cube();
        multiply_all(matrices, &shared, codes, x, out, share, &mut Sequence::new(), blueprint, ty);
    } else {
        multiply_all(matrices, codebook, codes, x, out, share, &mut Sequence::new(), blueprint, ty);
    }
}

/// The product with activations that each cube quantizes for itself. Token `t` starts at vector `t * stride` of `x`.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
pub fn multiply_staged<X: Float, O: Float>(
    matrices: &Sequence<Matrix>,
    x: &[Vector<X, Const<4>>],
    out: &mut [O],
    grid: Grid,
    spans: usize,
    stride: usize,
    first_token: usize,
    all_tokens: usize,
    #[comptime] blueprint: Blueprint,
    #[comptime] ty: FloatType,
    #[define(X, O)] _dtypes: [ElemType; 2],
) {
    let staging = comptime!(room(blueprint));
    let mut codes = Shared::<[Words]>::new_slice(comptime!(2 * staging.vectors()));
    let mut sums = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime!(staging.vectors()));
    let share = Share { cube: grid.cube(), spans, first_token, all_tokens };
    let matrix = matrices.index(0usize);
    let codebook = &matrix.planes.codebook;
    // The first weights are on their way while the cube quantizes.
    let first = Turn { row: group(share.cube, matrix.cubes) * blueprint.rows, span: UNIT_POS_X as usize, any: true };
    let mut loads = Sequence::<Loads>::new();
    if comptime!(blueprint.ahead) {
        load_turn(matrix, share, first, &mut loads, blueprint);
    }
    // One barrier for all that the cube has for itself.
    if comptime!(blueprint.codebook > 0) {
        let mut shared = Shared::<[u32]>::new_slice(blueprint.codebook);
        copy_codebook(codebook, &mut shared, blueprint);
        stage_all(x, stride, share, &mut codes, &mut sums, blueprint);
        sync_cube();
        multiply_all(matrices, &shared, &codes, &sums, out, share, &mut loads, blueprint, ty);
    } else {
        stage_all(x, stride, share, &mut codes, &mut sums, blueprint);
        sync_cube();
        multiply_all(matrices, codebook, &codes, &sums, out, share, &mut loads, blueprint, ty);
    }
}

/// The launch's activations as codes.
#[cube]
fn stage_all<X: Float>(
    x: &[Vector<X, Const<4>>],
    stride: usize,
    share: Share,
    codes: &mut [Words],
    sums: &mut [Vector<f32, Const<4>>],
    #[comptime] blueprint: Blueprint,
) {
    stage(
        x,
        stride,
        share.first_token,
        share.all_tokens,
        share.spans * blueprint.span,
        codes,
        sums,
        comptime!(room(blueprint)),
        comptime!(blueprint.units() as usize),
    );
}

/// The format's codebook, by all units of the cube.
#[cube]
fn copy_codebook(from: &[u32], to: &mut [u32], #[comptime] blueprint: Blueprint) {
    let units = comptime!(blueprint.units() as usize);
    for i in range_stepped(UNIT_POS as usize, blueprint.codebook, units) {
        to[i] = from[i];
    }
}

/// The staging of a blueprint that has one.
fn room(blueprint: Blueprint) -> Staging {
    blueprint.staging.unwrap_or(Staging { tokens: 1, units: blueprint.span, span: blueprint.span })
}

/// This cube of a launch, and its activations.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
struct Share {
    cube: usize,
    /// Spans of a row.
    spans: usize,
    first_token: usize,
    all_tokens: usize,
}

/// This cube's rows of all matrices.
#[cube]
#[allow(clippy::too_many_arguments)]
fn multiply_all<O: Float>(
    matrices: &Sequence<Matrix>,
    codebook: &[u32],
    codes: &[Words],
    x: &[Vector<f32, Const<4>>],
    out: &mut [O],
    share: Share,
    loads: &mut Sequence<Loads>,
    #[comptime] blueprint: Blueprint,
    #[comptime] ty: FloatType,
) {
    let count = matrices.len();
    #[unroll]
    for m in 0..count {
        let matrix = matrices.index(m);
        if comptime!(blueprint.cubes.is_some()) {
            multiply_turns(matrix, codebook, codes, x, out, share, loads, comptime!(m > 0), blueprint, ty);
        } else if comptime!(count == 1) {
            let row = group(share.cube, matrix.cubes) * blueprint.rows;
            multiply_from(matrix, codebook, codes, x, out, share, loads, row, Turn::none(), blueprint, ty);
        } else if share.cube >= matrix.before && share.cube - matrix.before < matrix.cubes {
            let row = group(share.cube - matrix.before, matrix.cubes) * blueprint.rows;
            multiply_from(matrix, codebook, codes, x, out, share, loads, row, Turn::none(), blueprint, ty);
        }
    }
}

/// What a lane takes in a turn: `unroll` spans of the rows of its group, from the first of both on.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
struct Turn {
    row: usize,
    span: usize,
    /// Whether there is any.
    any: bool,
}

#[cube]
impl Turn {
    fn none() -> Turn {
        Turn { row: 0usize.runtime(), span: 0usize.runtime(), any: false.runtime() }
    }
}

/// This unit's group of lanes. Groups of the same number in neighbouring cubes are neighbours, so that all cubes share what
/// is too little for all groups.
#[cube]
fn group(cube: usize, cubes: usize) -> usize {
    UNIT_POS_Y as usize * cubes + cube
}

/// Rows of a matrix again and again, until there are none. Where there are matrices before it, its first rows are for the
/// groups that those left without.
#[cube]
#[allow(clippy::too_many_arguments)]
fn multiply_turns<O: Float>(
    matrix: &Matrix,
    codebook: &[u32],
    codes: &[Words],
    x: &[Vector<f32, Const<4>>],
    out: &mut [O],
    share: Share,
    loads: &mut Sequence<Loads>,
    #[comptime] has_before: bool,
    #[comptime] blueprint: Blueprint,
    #[comptime] ty: FloatType,
) {
    let groups = matrix.cubes * comptime!(blueprint.groups as usize);
    let mut group = group(share.cube, matrix.cubes);
    if comptime!(has_before) {
        group = select(group < matrix.before, group + groups, group) - matrix.before;
        if comptime!(blueprint.ahead) {
            let first = Turn { row: group * blueprint.rows, span: UNIT_POS_X as usize, any: true };
            load_turn(matrix, share, first, loads, blueprint);
        }
    }
    let properties = comptime::device_properties();
    let whole_planes = comptime!(blueprint.lanes == properties.hardware.plane_size_max);
    for turn in 0..matrix.turns {
        let row = (turn * groups + group) * blueprint.rows;
        // All lanes of a plane go on together, as they talk to each other.
        if !whole_planes || row < matrix.n {
            let next_row = row + groups * blueprint.rows;
            let any = turn + 1 < matrix.turns && next_row < matrix.n;
            let next = Turn { row: next_row, span: UNIT_POS_X as usize, any };
            multiply_from(matrix, codebook, codes, x, out, share, loads, row, next, blueprint, ty);
        }
    }
}

/// The rows of a group from `first_row` on, before those of `next`. What is past the last row or token multiplies that again
/// and stores nothing.
#[cube]
#[allow(clippy::too_many_arguments)]
fn multiply_from<O: Float>(
    matrix: &Matrix,
    codebook: &[u32],
    codes: &[Words],
    x: &[Vector<f32, Const<4>>],
    out: &mut [O],
    share: Share,
    loads: &mut Sequence<Loads>,
    first_row: usize,
    next: Turn,
    #[comptime] blueprint: Blueprint,
    #[comptime] ty: FloatType,
) {
    let mut sums = Array::<f32>::new(comptime!(blueprint.rows * blueprint.tokens));
    #[unroll]
    for i in 0..comptime!(blueprint.rows * blueprint.tokens) {
        sums[i] = 0.0f32;
    }
    if comptime!(traits(blueprint.ty).dense) {
        multiply_dense(matrix, x, share, first_row, &mut sums, blueprint);
    } else {
        multiply_blocks(matrix, codebook, codes, x, share, loads, first_row, next, &mut sums, blueprint);
    }
    reduce(&mut sums, blueprint);
    if UNIT_POS_X == 0 {
        #[unroll]
        for r in 0..blueprint.rows {
            if first_row + r < matrix.n {
                #[unroll]
                for t in 0..blueprint.tokens {
                    let token = share.first_token + t;
                    if token < share.all_tokens {
                        out[matrix.start + token * matrix.n + first_row + r] =
                            rounded::<O>(sums[comptime!(r * blueprint.tokens + t)], ty);
                    }
                }
            }
        }
    }
}

/// Products with weights in blocks.
#[cube]
#[allow(clippy::too_many_arguments)]
fn multiply_blocks(
    matrix: &Matrix,
    codebook: &[u32],
    codes: &[Words],
    x: &[Vector<f32, Const<4>>],
    share: Share,
    loads: &mut Sequence<Loads>,
    first_row: usize,
    next: Turn,
    sums: &mut Array<f32>,
    #[comptime] blueprint: Blueprint,
) {
    let lanes = comptime!(blueprint.lanes as usize);
    let step = comptime!(lanes * blueprint.unroll);
    for first in range_stepped(UNIT_POS_X as usize, share.spans, step) {
        let more = first + step < share.spans;
        let next = Turn {
            row: select(more, first_row, next.row),
            span: select(more, first + step, next.span),
            any: more || next.any,
        };
        #[unroll]
        for turn in 0..blueprint.unroll {
            let span = first + comptime!(turn * lanes);
            // Of the last turns some lanes may have none: they multiply what is there, and leave it out.
            let inside = span < share.spans;
            let sure = comptime!(blueprint.whole || turn == 0);
            let span = if sure { span } else { clamped(span, share.spans) };
            #[unroll]
            for place in 0..blueprint.span {
                let mut u = span * blueprint.span + place;
                if comptime!(place > 0) {
                    if comptime!(blueprint.tokens >= 4) {
                        u = scheduled(u);
                    } else {
                        schedule_barrier();
                    }
                }
                if sure {
                    add_unit(
                        matrix, codebook, codes, x, share, loads, first_row, span, u, next, turn, place, sums,
                        blueprint,
                    );
                } else {
                    let mut added = Array::<f32>::new(comptime!(blueprint.rows * blueprint.tokens));
                    #[unroll]
                    for i in 0..comptime!(blueprint.rows * blueprint.tokens) {
                        added[i] = sums[i];
                    }
                    add_unit(
                        matrix, codebook, codes, x, share, loads, first_row, span, u, next, turn, place, &mut added,
                        blueprint,
                    );
                    #[unroll]
                    for i in 0..comptime!(blueprint.rows * blueprint.tokens) {
                        sums[i] = select(inside, added[i], sums[i]);
                    }
                }
            }
        }
    }
}

/// Loads what a turn takes, in place of what was loaded before.
#[cube]
fn load_turn(matrix: &Matrix, share: Share, turn: Turn, loads: &mut Sequence<Loads>, #[comptime] blueprint: Blueprint) {
    #[unroll]
    for i in 0..blueprint.unroll {
        #[unroll]
        for place in 0..blueprint.span {
            load_units(matrix, share, turn, loads, i, place, blueprint);
        }
    }
}

/// Loads the units of all rows in a place of a turn's `index`-th span.
#[cube]
fn load_units(
    matrix: &Matrix,
    share: Share,
    turn: Turn,
    loads: &mut Sequence<Loads>,
    #[comptime] index: usize,
    #[comptime] place: usize,
    #[comptime] blueprint: Blueprint,
) {
    let span = clamped(turn.span + comptime!(index * blueprint.lanes as usize), share.spans);
    #[unroll]
    for r in 0..blueprint.rows {
        let at = At::in_span(clamped(turn.row + r, matrix.n), span, blueprint.span, place);
        let i = comptime!(blueprint.loaded(index, place, r));
        if comptime!(i == loads.len()) {
            loads.push(Loads::of(&matrix.planes, at, blueprint.ty));
        } else {
            loads.index_mut(i).replace(&matrix.planes, at, blueprint.ty);
        }
    }
}

/// As [`load_units`], where there is a next turn.
#[cube]
fn load_next(
    matrix: &Matrix,
    share: Share,
    next: Turn,
    loads: &mut Sequence<Loads>,
    #[comptime] index: usize,
    #[comptime] place: usize,
    #[comptime] blueprint: Blueprint,
) {
    if next.any {
        load_units(matrix, share, next, loads, index, place, blueprint);
    }
}

/// Adds the products of unit `u`, which is `place` of `span`, of all rows and tokens, with the units in the same place of the
/// next turn on their way meanwhile.
#[cube]
#[allow(clippy::too_many_arguments)]
fn add_unit(
    matrix: &Matrix,
    codebook: &[u32],
    codes: &[Words],
    x: &[Vector<f32, Const<4>>],
    share: Share,
    loads: &mut Sequence<Loads>,
    first_row: usize,
    span: usize,
    u: usize,
    next: Turn,
    #[comptime] turn: usize,
    #[comptime] place: usize,
    sums: &mut Array<f32>,
    #[comptime] blueprint: Blueprint,
) {
    let tokens = blueprint.tokens;
    // Rows of activations of which a unit each takes as many registers as a wave should wait for.
    let at_once = comptime!(match blueprint.operand {
        Operand::Int8 if blueprint.span <= 4 => 4,
        Operand::Int8 => 2,
        Operand::Float => 1,
    });
    let mut u = u;
    if comptime!(blueprint.operand == Operand::Int8) {
        let mut units = Sequence::<Unit>::new();
        #[unroll]
        for r in 0..blueprint.rows {
            let at = At::in_span(clamped(first_row + r, matrix.n), span, blueprint.span, place);
            if comptime!(blueprint.ahead) {
                let i = comptime!(blueprint.loaded(turn, place, r));
                units.push(loads.index(i).decode(&matrix.planes, codebook, at, blueprint.ty));
            } else {
                units.push(unit(&matrix.planes, codebook, at, blueprint.ty));
            }
        }
        if comptime!(blueprint.ahead) {
            load_next(matrix, share, next, loads, turn, place, blueprint);
        }
        #[unroll]
        for t in 0..tokens {
            if comptime!(tokens >= 4 && t > 0 && t % at_once == 0) {
                u = scheduled(u);
            }
            let x = x_unit(codes, x, share, span, u, place, t, blueprint);
            #[unroll]
            for r in 0..blueprint.rows {
                let i = comptime!(r * tokens + t);
                sums[i] = add_int8(sums[i], units.index(r), x, blueprint.ty);
            }
        }
    } else {
        #[unroll]
        for r in 0..blueprint.rows {
            let at = At::in_span(clamped(first_row + r, matrix.n), span, blueprint.span, place);
            let values = values(&matrix.planes, codebook, at, blueprint.ty);
            #[unroll]
            for t in 0..tokens {
                if comptime!(tokens >= 4 && t > 0 && t % at_once == 0) {
                    u = scheduled(u);
                }
                let token = clamped(share.first_token + t, share.all_tokens);
                let first = (token * (share.spans * blueprint.span) + u) * 8;
                sums[comptime!(r * tokens + t)] += dot_float(&values, x, first);
            }
        }
    }
}

/// A unit of activations: its codes, and its scale and sums.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
struct Activation {
    low: Words,
    high: Words,
    sums: Vector<f32, Const<4>>,
}

/// Unit `u`, which is `place` of `span`, of token `t` of the launch.
#[cube]
#[allow(clippy::too_many_arguments)]
fn x_unit(
    codes: &[Words],
    sums: &[Vector<f32, Const<4>>],
    share: Share,
    span: usize,
    u: usize,
    #[comptime] place: usize,
    #[comptime] t: usize,
    #[comptime] blueprint: Blueprint,
) -> Activation {
    if comptime!(blueprint.staging.is_some()) {
        let staging = comptime!(room(blueprint));
        let at = staged(t, span, place, staging);
        let high = at + comptime!(staging.vectors());
        Activation { low: codes[at], high: codes[high], sums: sums[at] }
    } else {
        let at = clamped(share.first_token + t, share.all_tokens) * (share.spans * blueprint.span) + u;
        Activation { low: codes[2 * at], high: codes[2 * at + 1], sums: sums[at] }
    }
}

/// Products with weights that are floats: neighbouring lanes read neighbouring vectors of 16 bytes.
#[cube]
fn multiply_dense(
    matrix: &Matrix,
    x: &[Vector<f32, Const<4>>],
    share: Share,
    first_row: usize,
    sums: &mut Array<f32>,
    #[comptime] blueprint: Blueprint,
) {
    let (lanes, tokens) = comptime!((blueprint.lanes as usize, blueprint.tokens));
    let fours = comptime!(8 / vectors_per_unit(blueprint.ty));
    let vectors = share.spans * comptime!(blueprint.span * vectors_per_unit(blueprint.ty));
    for first in range_stepped(UNIT_POS_X as usize, vectors, comptime!(lanes * blueprint.unroll)) {
        #[unroll]
        for turn in 0..blueprint.unroll {
            let vector = first + comptime!(turn * lanes);
            let inside = vector < vectors;
            let vector = if comptime!(turn == 0) { vector } else { clamped(vector, vectors) };
            let mut weights = Sequence::<Vector<f32, Const<4>>>::new();
            #[unroll]
            for r in 0..blueprint.rows {
                dense_vector(&matrix.planes, clamped(first_row + r, matrix.n), vector, &mut weights, blueprint.ty);
            }
            #[unroll]
            for t in 0..tokens {
                let token = clamped(share.first_token + t, share.all_tokens);
                let at = token * (share.spans * comptime!(8 * blueprint.span)) + vector * fours;
                #[unroll]
                for r in 0..blueprint.rows {
                    let i = comptime!(r * tokens + t);
                    let mut sum = sums[i];
                    #[unroll]
                    for four in 0..fours {
                        sum = dot_four(*weights.index(comptime!(r * fours + four)), x[at + four], sum);
                    }
                    sums[i] = if comptime!(turn == 0) { sum } else { select(inside, sum, sums[i]) };
                }
            }
        }
    }
}

/// `sum` plus the product of four values.
#[cube]
fn dot_four(a: Vector<f32, Const<4>>, b: Vector<f32, Const<4>>, sum: f32) -> f32 {
    let mut sum = sum;
    #[unroll]
    for i in 0..4usize {
        sum = fma(a.extract(i), b.extract(i), sum);
    }
    sum
}

#[cube]
fn clamped(index: usize, len: usize) -> usize {
    select(index < len, index, len - 1)
}

/// `sum` plus the product of a unit of weights with one of activations.
#[cube]
fn add_int8(sum: f32, unit: &Unit, x: Activation, #[comptime] ty: GgmlType) -> f32 {
    let traits = comptime!(traits(ty));
    let (scale, sum_low, sum_high) = (x.sums.extract(0usize), x.sums.extract(2usize), x.sums.extract(3usize));
    if comptime!(traits.scales == 1) {
        let dot = dot_sixteen(unit.high, x.high, dot_sixteen(unit.low, x.low, SHIFT as i32, traits), traits);
        let product = unit.scale_low * (scale * unbiased(dot, sum_low + sum_high, traits));
        if comptime!(traits.min) { sum + product + unit.min_low * x.sums.extract(1usize) } else { sum + product }
    } else {
        let dot_low = unbiased(dot_sixteen(unit.low, x.low, SHIFT as i32, traits), sum_low, traits);
        let dot_high = unbiased(dot_sixteen(unit.high, x.high, SHIFT as i32, traits), sum_high, traits);
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

/// What dot products start from, the bits of the float 1.5 * 2^23: an integer of up to 22 bits that is added to them is added
/// to the float too, without a conversion.
const SHIFT: u32 = 0x4b40_0000;

/// A product of codes, that started from [`SHIFT`], less that and what the codes' bias added to it, from the sum of the
/// activations' codes. Exact: all of these are integers of less than 24 bits.
#[cube]
fn unbiased(dot: i32, sum: f32, #[comptime] traits: Traits) -> f32 {
    let properties = comptime::device_properties();
    let shift = comptime!(f32::from_bits(SHIFT)).runtime();
    match comptime!(reading(traits.codes, Instruction::of(&properties))) {
        Reading::AsTheyAre { bias: 0, .. } | Reading::Centered => f32::reinterpret(dot) - shift,
        Reading::AsTheyAre { bias, .. } => f32::reinterpret(dot) - (comptime!(bias as f32) * sum + shift),
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
