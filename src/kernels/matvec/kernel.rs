//! The kernel: load, decode, multiply, reduce, store.

use cubecl::frontend::comptime;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::blueprint::{Blueprint, Reduction};
use super::problem::ActivationType;
use crate::gguf::GgmlType;
use crate::kernels::arch::dot::{Bytes, Instruction, dot16};
use crate::kernels::arch::schedule::{pin_after_barrier, schedule_barrier};
use crate::kernels::floats::{FloatType, rounded};
use crate::kernels::formats::{
    At, Chunk, Codes, MatrixView, Prefetched, Traits, chunk, dense_vector, traits, values, vectors_per_chunk,
};
use crate::kernels::launch::Grid;
use crate::kernels::quantize::staged::{Staging, stage, staged};
use crate::kernels::vector::Words;

/// Buffers that a [`Matrix`] binds: its view as vectors and as words, and its codebook.
pub const MATRIX_BUFFERS: usize = 3;

/// A matrix of a launch.
#[derive(CubeType, CubeLaunch)]
pub struct Matrix {
    view: MatrixView,
    /// Rows.
    n: usize,
    /// Where its results begin.
    start: usize,
    /// Cubes that take its rows.
    cubes: usize,
    /// Where this matrix starts in the grid: cubes used by earlier matrices or, in a persistent launch, lane groups used in
    /// their last pass.
    before: usize,
    /// How often all groups take rows.
    passes: usize,
}

/// The product with activations from memory: `x` holds their values ([`ActivationType::Float`]), or their codes' scales and sums
/// ([`ActivationType::Int8`]).
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
    let work = CubeWork { cube: grid.cube(), spans, first_token, all_tokens };
    let codebook = &matrices.index(0usize).view.codebook;
    if comptime!(blueprint.codebook > 0) {
        let mut shared = Shared::<[u32]>::new_slice(blueprint.codebook);
        copy_codebook(codebook, &mut shared, blueprint);
        sync_cube();
        multiply_all(matrices, &shared, codes, x, out, work, &mut Sequence::new(), blueprint, ty);
    } else {
        multiply_all(matrices, codebook, codes, x, out, work, &mut Sequence::new(), blueprint, ty);
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
    let staging = comptime!(staging(blueprint));
    let mut codes = Shared::<[Words]>::new_slice(comptime!(2 * staging.vectors()));
    let mut scales = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime!(staging.vectors()));
    let work = CubeWork { cube: grid.cube(), spans, first_token, all_tokens };
    let matrix = matrices.index(0usize);
    let codebook = &matrix.view.codebook;
    // The first weights are on their way while the cube quantizes.
    let first =
        Step { row: group(work.cube, matrix.cubes) * blueprint.rows_per_group, span: UNIT_POS_X as usize, any: true };
    let mut prefetched = Sequence::<Prefetched>::new();
    if comptime!(blueprint.prefetch) {
        load_step(matrix, work, first, &mut prefetched, blueprint);
    }
    // One barrier for all that the cube has for itself.
    if comptime!(blueprint.codebook > 0) {
        let mut shared = Shared::<[u32]>::new_slice(blueprint.codebook);
        copy_codebook(codebook, &mut shared, blueprint);
        stage_all(x, stride, work, &mut codes, &mut scales, blueprint);
        sync_cube();
        multiply_all(matrices, &shared, &codes, &scales, out, work, &mut prefetched, blueprint, ty);
    } else {
        stage_all(x, stride, work, &mut codes, &mut scales, blueprint);
        sync_cube();
        multiply_all(matrices, codebook, &codes, &scales, out, work, &mut prefetched, blueprint, ty);
    }
}

/// The launch's activations as codes.
#[cube]
fn stage_all<X: Float>(
    x: &[Vector<X, Const<4>>],
    stride: usize,
    work: CubeWork,
    codes: &mut [Words],
    scales: &mut [Vector<f32, Const<4>>],
    #[comptime] blueprint: Blueprint,
) {
    stage(
        x,
        stride,
        work.first_token,
        work.all_tokens,
        work.spans * blueprint.span,
        codes,
        scales,
        comptime!(staging(blueprint)),
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
fn staging(blueprint: Blueprint) -> Staging {
    blueprint.staging.unwrap_or(Staging { tokens: 1, chunks: blueprint.span, span: blueprint.span })
}

/// This cube of a launch, and its activations.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
struct CubeWork {
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
    work: CubeWork,
    prefetched: &mut Sequence<Prefetched>,
    #[comptime] blueprint: Blueprint,
    #[comptime] ty: FloatType,
) {
    let count = matrices.len();
    #[unroll]
    for m in 0..count {
        let matrix = matrices.index(m);
        if comptime!(blueprint.cubes.is_some()) {
            multiply_passes(matrix, codebook, codes, x, out, work, prefetched, comptime!(m > 0), blueprint, ty);
        } else if comptime!(count == 1) {
            let row = group(work.cube, matrix.cubes) * blueprint.rows_per_group;
            multiply_from(matrix, codebook, codes, x, out, work, prefetched, row, Step::none(), blueprint, ty);
        } else if work.cube >= matrix.before && work.cube - matrix.before < matrix.cubes {
            let row = group(work.cube - matrix.before, matrix.cubes) * blueprint.rows_per_group;
            multiply_from(matrix, codebook, codes, x, out, work, prefetched, row, Step::none(), blueprint, ty);
        }
    }
}

/// What a lane takes in a step: `unroll` spans of the rows of its group, from the first of both on.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
struct Step {
    row: usize,
    span: usize,
    /// Whether there is any.
    any: bool,
}

#[cube]
impl Step {
    fn none() -> Step {
        Step { row: 0usize.runtime(), span: 0usize.runtime(), any: false.runtime() }
    }
}

/// This unit's group of lanes. Groups of the same number in neighbouring cubes are neighbours, so that all cubes work what
/// is too little for all groups.
#[cube]
fn group(cube: usize, cubes: usize) -> usize {
    UNIT_POS_Y as usize * cubes + cube
}

/// Rows of a matrix again and again, until there are none. Where there are matrices before it, its first rows are for the
/// groups that those left without.
#[cube]
#[allow(clippy::too_many_arguments)]
fn multiply_passes<O: Float>(
    matrix: &Matrix,
    codebook: &[u32],
    codes: &[Words],
    x: &[Vector<f32, Const<4>>],
    out: &mut [O],
    work: CubeWork,
    prefetched: &mut Sequence<Prefetched>,
    #[comptime] has_before: bool,
    #[comptime] blueprint: Blueprint,
    #[comptime] ty: FloatType,
) {
    let groups = matrix.cubes * comptime!(blueprint.groups_per_cube as usize);
    let mut group = group(work.cube, matrix.cubes);
    if comptime!(has_before) {
        group = select(group < matrix.before, group + groups, group) - matrix.before;
        if comptime!(blueprint.prefetch) {
            let first = Step { row: group * blueprint.rows_per_group, span: UNIT_POS_X as usize, any: true };
            load_step(matrix, work, first, prefetched, blueprint);
        }
    }
    let properties = comptime::device_properties();
    let whole_planes = comptime!(blueprint.lanes_per_row == properties.hardware.plane_size_max);
    for pass in 0..matrix.passes {
        let row = (pass * groups + group) * blueprint.rows_per_group;
        // All lanes of a plane go on together, as they talk to each other.
        if !whole_planes || row < matrix.n {
            let next_row = row + groups * blueprint.rows_per_group;
            let any = pass + 1 < matrix.passes && next_row < matrix.n;
            let next = Step { row: next_row, span: UNIT_POS_X as usize, any };
            multiply_from(matrix, codebook, codes, x, out, work, prefetched, row, next, blueprint, ty);
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
    work: CubeWork,
    prefetched: &mut Sequence<Prefetched>,
    first_row: usize,
    next: Step,
    #[comptime] blueprint: Blueprint,
    #[comptime] ty: FloatType,
) {
    let mut acc = Array::<f32>::new(comptime!(blueprint.rows_per_group * blueprint.tokens));
    #[unroll]
    for i in 0..comptime!(blueprint.rows_per_group * blueprint.tokens) {
        acc[i] = 0.0f32;
    }
    if comptime!(traits(blueprint.ty).dense) {
        multiply_dense(matrix, x, work, first_row, &mut acc, blueprint);
    } else {
        multiply_blocks(matrix, codebook, codes, x, work, prefetched, first_row, next, &mut acc, blueprint);
    }
    reduce(&mut acc, blueprint);
    if UNIT_POS_X == 0 {
        #[unroll]
        for r in 0..blueprint.rows_per_group {
            if first_row + r < matrix.n {
                #[unroll]
                for t in 0..blueprint.tokens {
                    let token = work.first_token + t;
                    if token < work.all_tokens {
                        out[matrix.start + token * matrix.n + first_row + r] =
                            rounded::<O>(acc[comptime!(r * blueprint.tokens + t)], ty);
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
    work: CubeWork,
    prefetched: &mut Sequence<Prefetched>,
    first_row: usize,
    next: Step,
    acc: &mut Array<f32>,
    #[comptime] blueprint: Blueprint,
) {
    let lanes = comptime!(blueprint.lanes_per_row as usize);
    let step = comptime!(lanes * blueprint.unroll);
    for first in range_stepped(UNIT_POS_X as usize, work.spans, step) {
        let more = first + step < work.spans;
        let next = Step {
            row: select(more, first_row, next.row),
            span: select(more, first + step, next.span),
            any: more || next.any,
        };
        #[unroll]
        for turn in 0..blueprint.unroll {
            let span = first + comptime!(turn * lanes);
            // In the tail some lanes have no span; they compute a clamped one and discard it.
            let inside = span < work.spans;
            let sure = comptime!(blueprint.whole || turn == 0);
            let span = if sure { span } else { clamped(span, work.spans) };
            #[unroll]
            for place in 0..blueprint.span {
                let mut u = span * blueprint.span + place;
                if comptime!(place > 0) {
                    if comptime!(blueprint.tokens >= 4) {
                        u = pin_after_barrier(u);
                    } else {
                        schedule_barrier();
                    }
                }
                if sure {
                    add_chunk(
                        matrix, codebook, codes, x, work, prefetched, first_row, span, u, next, turn, place, acc,
                        blueprint,
                    );
                } else {
                    let mut added = Array::<f32>::new(comptime!(blueprint.rows_per_group * blueprint.tokens));
                    #[unroll]
                    for i in 0..comptime!(blueprint.rows_per_group * blueprint.tokens) {
                        added[i] = acc[i];
                    }
                    add_chunk(
                        matrix, codebook, codes, x, work, prefetched, first_row, span, u, next, turn, place,
                        &mut added, blueprint,
                    );
                    #[unroll]
                    for i in 0..comptime!(blueprint.rows_per_group * blueprint.tokens) {
                        acc[i] = select(inside, added[i], acc[i]);
                    }
                }
            }
        }
    }
}

/// Loads what a step takes, in place of what was loaded before.
#[cube]
fn load_step(
    matrix: &Matrix,
    work: CubeWork,
    step: Step,
    prefetched: &mut Sequence<Prefetched>,
    #[comptime] blueprint: Blueprint,
) {
    #[unroll]
    for i in 0..blueprint.unroll {
        #[unroll]
        for place in 0..blueprint.span {
            load_chunks(matrix, work, step, prefetched, i, place, blueprint);
        }
    }
}

/// Loads the chunks of all rows in a place of a step's `index`-th span.
#[cube]
fn load_chunks(
    matrix: &Matrix,
    work: CubeWork,
    step: Step,
    prefetched: &mut Sequence<Prefetched>,
    #[comptime] index: usize,
    #[comptime] place: usize,
    #[comptime] blueprint: Blueprint,
) {
    let span = clamped(step.span + comptime!(index * blueprint.lanes_per_row as usize), work.spans);
    #[unroll]
    for r in 0..blueprint.rows_per_group {
        let at = At::in_span(clamped(step.row + r, matrix.n), span, blueprint.span, place);
        let i = comptime!(blueprint.prefetched(index, place, r));
        if comptime!(i == prefetched.len()) {
            prefetched.push(Prefetched::of(&matrix.view, at, blueprint.ty));
        } else {
            prefetched.index_mut(i).replace(&matrix.view, at, blueprint.ty);
        }
    }
}

/// As [`load_chunks`], where there is a next step.
#[cube]
fn load_next(
    matrix: &Matrix,
    work: CubeWork,
    next: Step,
    prefetched: &mut Sequence<Prefetched>,
    #[comptime] index: usize,
    #[comptime] place: usize,
    #[comptime] blueprint: Blueprint,
) {
    if next.any {
        load_chunks(matrix, work, next, prefetched, index, place, blueprint);
    }
}

/// Adds the products of chunk `u`, which is `place` of `span`, of all rows and tokens, with the chunks in the same place of the
/// next step on their way meanwhile.
#[cube]
#[allow(clippy::too_many_arguments)]
fn add_chunk(
    matrix: &Matrix,
    codebook: &[u32],
    codes: &[Words],
    x: &[Vector<f32, Const<4>>],
    work: CubeWork,
    prefetched: &mut Sequence<Prefetched>,
    first_row: usize,
    span: usize,
    u: usize,
    next: Step,
    #[comptime] turn: usize,
    #[comptime] place: usize,
    acc: &mut Array<f32>,
    #[comptime] blueprint: Blueprint,
) {
    let tokens = blueprint.tokens;
    // Rows of activations of which a chunk each takes as many registers as a wave should wait for.
    let at_once = comptime!(match blueprint.operand {
        ActivationType::Int8 if blueprint.span <= 4 => 4,
        ActivationType::Int8 => 2,
        ActivationType::Float => 1,
    });
    let mut u = u;
    if comptime!(blueprint.operand == ActivationType::Int8) {
        let mut chunks = Sequence::<Chunk>::new();
        #[unroll]
        for r in 0..blueprint.rows_per_group {
            let at = At::in_span(clamped(first_row + r, matrix.n), span, blueprint.span, place);
            if comptime!(blueprint.prefetch) {
                let i = comptime!(blueprint.prefetched(turn, place, r));
                chunks.push(prefetched.index(i).decode(codebook, at, blueprint.ty));
            } else {
                chunks.push(chunk(&matrix.view, codebook, at, blueprint.ty));
            }
        }
        if comptime!(blueprint.prefetch) {
            load_next(matrix, work, next, prefetched, turn, place, blueprint);
        }
        #[unroll]
        for t in 0..tokens {
            if comptime!(tokens >= 4 && t > 0 && t % at_once == 0) {
                u = pin_after_barrier(u);
            }
            let x = x_chunk(codes, x, work, span, u, place, t, blueprint);
            #[unroll]
            for r in 0..blueprint.rows_per_group {
                let i = comptime!(r * tokens + t);
                acc[i] = add_int8(acc[i], chunks.index(r), x, blueprint.ty);
            }
        }
    } else {
        #[unroll]
        for r in 0..blueprint.rows_per_group {
            let at = At::in_span(clamped(first_row + r, matrix.n), span, blueprint.span, place);
            let values = values(&matrix.view, codebook, at, blueprint.ty);
            #[unroll]
            for t in 0..tokens {
                if comptime!(tokens >= 4 && t > 0 && t % at_once == 0) {
                    u = pin_after_barrier(u);
                }
                let token = clamped(work.first_token + t, work.all_tokens);
                let first = (token * (work.spans * blueprint.span) + u) * 8;
                acc[comptime!(r * tokens + t)] += dot_float(&values, x, first);
            }
        }
    }
}

/// A chunk of activations: its codes, and its scale and scales.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
struct Activation {
    low: Words,
    high: Words,
    scales: Vector<f32, Const<4>>,
}

/// Chunk `u`, which is `place` of `span`, of token `t` of the launch.
#[cube]
#[allow(clippy::too_many_arguments)]
fn x_chunk(
    codes: &[Words],
    scales: &[Vector<f32, Const<4>>],
    work: CubeWork,
    span: usize,
    u: usize,
    #[comptime] place: usize,
    #[comptime] t: usize,
    #[comptime] blueprint: Blueprint,
) -> Activation {
    if comptime!(blueprint.staging.is_some()) {
        let staging = comptime!(staging(blueprint));
        let at = staged(t, span, place, staging);
        let high = at + comptime!(staging.vectors());
        Activation { low: codes[at], high: codes[high], scales: scales[at] }
    } else {
        let at = clamped(work.first_token + t, work.all_tokens) * (work.spans * blueprint.span) + u;
        Activation { low: codes[2 * at], high: codes[2 * at + 1], scales: scales[at] }
    }
}

/// Products with weights that are floats: neighbouring lanes read neighbouring vectors of 16 bytes.
#[cube]
fn multiply_dense(
    matrix: &Matrix,
    x: &[Vector<f32, Const<4>>],
    work: CubeWork,
    first_row: usize,
    acc: &mut Array<f32>,
    #[comptime] blueprint: Blueprint,
) {
    let (lanes, tokens) = comptime!((blueprint.lanes_per_row as usize, blueprint.tokens));
    let fours = comptime!(8 / vectors_per_chunk(blueprint.ty));
    let vectors = work.spans * comptime!(blueprint.span * vectors_per_chunk(blueprint.ty));
    for first in range_stepped(UNIT_POS_X as usize, vectors, comptime!(lanes * blueprint.unroll)) {
        #[unroll]
        for turn in 0..blueprint.unroll {
            let vector = first + comptime!(turn * lanes);
            let inside = vector < vectors;
            let vector = if comptime!(turn == 0) { vector } else { clamped(vector, vectors) };
            let mut weights = Sequence::<Vector<f32, Const<4>>>::new();
            #[unroll]
            for r in 0..blueprint.rows_per_group {
                dense_vector(&matrix.view, clamped(first_row + r, matrix.n), vector, &mut weights, blueprint.ty);
            }
            #[unroll]
            for t in 0..tokens {
                let token = clamped(work.first_token + t, work.all_tokens);
                let at = token * (work.spans * comptime!(8 * blueprint.span)) + vector * fours;
                #[unroll]
                for r in 0..blueprint.rows_per_group {
                    let i = comptime!(r * tokens + t);
                    let mut sum = acc[i];
                    #[unroll]
                    for four in 0..fours {
                        sum = dot_four(*weights.index(comptime!(r * fours + four)), x[at + four], sum);
                    }
                    acc[i] = if comptime!(turn == 0) { sum } else { select(inside, sum, acc[i]) };
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

/// `sum` plus the product of a chunk of weights with one of activations.
#[cube]
fn add_int8(sum: f32, chunk: &Chunk, x: Activation, #[comptime] ty: GgmlType) -> f32 {
    let traits = comptime!(traits(ty));
    let (scale, sum_low, sum_high) = (x.scales.extract(0usize), x.scales.extract(2usize), x.scales.extract(3usize));
    if comptime!(traits.scales == 1) {
        let dot = dot_sixteen(chunk.high, x.high, dot_sixteen(chunk.low, x.low, SHIFT as i32, traits), traits);
        let product = chunk.scale_low * (scale * unbiased(dot, sum_low + sum_high, traits));
        if comptime!(traits.min) { sum + product + chunk.min_low * x.scales.extract(1usize) } else { sum + product }
    } else {
        let dot_low = unbiased(dot_sixteen(chunk.low, x.low, SHIFT as i32, traits), sum_low, traits);
        let dot_high = unbiased(dot_sixteen(chunk.high, x.high, SHIFT as i32, traits), sum_high, traits);
        let mut product = chunk.scale_low * dot_low + chunk.scale_high * dot_high;
        if comptime!(traits.min) {
            product += chunk.min_low * sum_low + chunk.min_high * sum_high;
        }
        sum + scale * product
    }
}
/// `start` plus the product of 16 codes of weights with 16 of activations.
#[cube]
fn dot_sixteen(weights: Words, x: Words, start: i32, #[comptime] traits: Traits) -> i32 {
    let properties = comptime::device_properties();
    match comptime!(code_bytes(traits.codes, Instruction::of(&properties))) {
        CodeBytes::AsTheyAre { bytes, .. } => dot16(weights, x, start, bytes),
        CodeBytes::Centered => dot16(weights ^ Words::new(0x8080_8080u32), x, start, Bytes::Signed),
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
    match comptime!(code_bytes(traits.codes, Instruction::of(&properties))) {
        CodeBytes::AsTheyAre { bias: 0, .. } | CodeBytes::Centered => f32::reinterpret(dot) - shift,
        CodeBytes::AsTheyAre { bias, .. } => f32::reinterpret(dot) - (comptime!(bias as f32) * sum + shift),
    }
}

/// How a dot product takes the codes of weights.
#[derive(Clone, Copy)]
enum CodeBytes {
    /// As bytes that are `bias` over their values.
    AsTheyAre { bytes: Bytes, bias: u32 },
    /// Codes biased by 128, less that: where the device has no product with unsigned bytes.
    Centered,
}

fn code_bytes(codes: Codes, instruction: Instruction) -> CodeBytes {
    match codes {
        Codes::Signed => CodeBytes::AsTheyAre { bytes: Bytes::Signed, bias: 0 },
        Codes::Biased(128) if !instruction.takes_unsigned() => CodeBytes::Centered,
        Codes::Biased(128) => CodeBytes::AsTheyAre { bytes: Bytes::Unsigned, bias: 128 },
        // These codes are less than 128, so that either sign reads them rightly.
        Codes::Biased(bias) => CodeBytes::AsTheyAre { bytes: Bytes::Signed, bias },
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
fn reduce(acc: &mut Array<f32>, #[comptime] blueprint: Blueprint) {
    let count = comptime!(blueprint.rows_per_group * blueprint.tokens);
    match blueprint.reduction {
        Reduction::Plane => {
            let properties = comptime::device_properties();
            let whole_plane = comptime!(blueprint.lanes_per_row == properties.hardware.plane_size_max);
            #[unroll]
            for i in 0..count {
                acc[i] = if whole_plane { plane_sum(acc[i]) } else { sum_of_lanes(acc[i], blueprint.lanes_per_row) };
            }
        }
        Reduction::Shared => {
            // Half as many lanes hold acc after each step; `lanes` is a power of two, and the cube has one group.
            let mut shared = Shared::<[f32]>::new_slice(comptime!(count * blueprint.lanes_per_row as usize));
            let lane = UNIT_POS_X as usize;
            #[unroll]
            for i in 0..count {
                shared[lane * count + i] = acc[i];
            }
            sync_cube();
            #[unroll]
            for step in 0..comptime!(blueprint.lanes_per_row.ilog2()) {
                let half = comptime!((blueprint.lanes_per_row >> (step + 1)) as usize);
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
                acc[i] = shared[i];
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
