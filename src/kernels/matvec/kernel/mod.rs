//! The kernel: load, decode, multiply, reduce, store.
//!
//! A *group* of lanes takes `R` rows of weights at a time and multiplies them by `T` rows of activations: a *slice* of those of the
//! launch, of which each has cubes of its own. A lane's share of a row is *spans*: chunks of 32 values that it reads in whole
//! vectors of 16 bytes. Neighbouring lanes have neighbouring spans, and a *step* is one span, or `unroll` of them, for each lane of
//! the group.
//!
//! ```text
//! for each cube:                                  [mod]     as many as rows need, or a few a core which go on and on
//!     start loading the codebook and x            [inputs]  if the blueprint stages them
//!     start loading the group's first step        [blocks]  if prefetch
//!     shared codebook = codebook                  [inputs]  if the blueprint stages the codebook
//!     shared x = quantize(x)                      [inputs]  if the blueprint stages activations
//!     for each matrix, for each pass:             [mod]     up to four matrices of a format; one pass unless cubes go on
//!         acc[R][T] = 0
//!         for each step of the row:               [blocks]  floats: [dense], in vectors instead of spans
//!             for each span, for each chunk of it:
//!                 for r in R: w[r] = decode(loaded[r])
//!                 start loading the same chunk of the next step, in this pass or the next one
//!                 for t in T, for r in R: acc[r][t] += scale * dot(w[r], x[t][chunk])          [dot]
//!         acc = sum of acc over the group's lanes [reduce]  by plane operations, a share for each lane, or shared memory
//!         out[matrix][t][row + r] = acc[r][t]               [mod]     by the lane that has the sum
//! ```
//!
//! Where weights are a stack of experts, a cube takes rows of one expert for one row of activations, its pair: the matrix is the
//! expert's, and all else is the same.
//!
//! Without prefetching, a chunk is loaded where it is decoded. What lies past the last row, token or span repeats the last
//! one, so that no lane reads out of bounds or leaves the others of its plane; its sums are not stored.

mod blocks;
mod dense;
mod dot;
mod inputs;
mod lookup;
mod reduce;

use cubecl::frontend::comptime;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use self::blocks::{Step, load_step, multiply_blocks};
use self::dense::multiply_dense;
use self::inputs::{
    ActivationView, CubeWork, Inputs, load_activations, load_codebook, stage_activations, staging_of, store_codebook,
};
pub use self::inputs::{Codes, CodesLaunch, Extent, ExtentLaunch, MATRIX_BUFFERS, Matrix, MatrixLaunch};
use self::reduce::reduce_lanes;
use super::blueprint::Blueprint;
use crate::kernels::arch::schedule::issue_loads;
use crate::kernels::floats::{rounded, rounded_or_nan};
use crate::kernels::formats::{Prefetched, traits};
use crate::kernels::quantize::staged::Loaded;
use crate::kernels::routing::Pairs;
use crate::kernels::vector::Words;

/// The product with activations that a launch before this one quantized.
#[cube(launch_unchecked)]
pub fn multiply_codes<O: Float>(
    matrices: &Sequence<Matrix>,
    x: &Codes,
    out: &mut [O],
    extent: Extent,
    pairs: ComptimeOption<Pairs>,
    #[comptime] blueprint: Blueprint,
    #[define(O)] _dtype: ElemType,
) {
    let work = CubeWork::new(extent, &pairs, blueprint);
    let x = ActivationView::new_Codes(&x.codes, &x.scales);
    multiply_prepared(matrices, x, out, work);
}

/// The product with activations as f32 values.
#[cube(launch_unchecked)]
pub fn multiply_values<O: Float>(
    matrices: &Sequence<Matrix>,
    x: &[Vector<f32, Const<4>>],
    out: &mut [O],
    extent: Extent,
    pairs: ComptimeOption<Pairs>,
    #[comptime] blueprint: Blueprint,
    #[define(O)] _dtype: ElemType,
) {
    let work = CubeWork::new(extent, &pairs, blueprint);
    multiply_prepared(matrices, ActivationView::new_Values(x), out, work);
}

/// The product with activations that each cube quantizes for itself.
#[cube(launch_unchecked)]
pub fn multiply_staged<X: Float, O: Float>(
    matrices: &Sequence<Matrix>,
    x: &[Vector<X, Const<4>>],
    out: &mut [O],
    extent: Extent,
    pairs: ComptimeOption<Pairs>,
    #[comptime] blueprint: Blueprint,
    #[define(X, O)] _dtypes: [ElemType; 2],
) {
    let work = CubeWork::new(extent, &pairs, blueprint);
    let first = matrices.index(0usize);
    // Loads return in order. What is staged comes from the cache: behind the weights it would come 0.3 to 1.4 us later. (Measured
    // on an H200.) One turn of activations comes first anyway.
    let turns = comptime!(staging_of(blueprint).turns(blueprint.units() as usize));
    let several = comptime!(blueprint.codebook > 0 || turns > 1);
    let words = load_codebook(&first.view.codebook, blueprint);
    let values = load_activations(x, work);
    if several {
        issue_loads();
    }
    let mut prefetched = Sequence::<Prefetched>::new();
    if comptime!(blueprint.prefetch) {
        let group = group_of(work.cube, first.cubes);
        load_step(first, work, Step::first(group, blueprint), &mut prefetched);
    }
    if several {
        issue_loads();
    }
    if comptime!(blueprint.codebook > 0) {
        let mut codebook = Shared::<[u32]>::new_slice(blueprint.codebook);
        store_codebook(&words, &first.view.codebook, &mut codebook, blueprint);
        stage_and_multiply(matrices, &codebook, x, &values, out, work, &mut prefetched);
    } else {
        stage_and_multiply(matrices, &first.view.codebook, x, &values, out, work, &mut prefetched);
    }
}

/// [`multiply_matrices`] with activations in memory.
#[cube]
fn multiply_prepared<'x, O: Float>(matrices: &Sequence<Matrix>, x: ActivationView<'x>, out: &mut [O], work: CubeWork) {
    let blueprint = comptime!(work.blueprint);
    let from = &matrices.index(0usize).view.codebook;
    let mut prefetched = Sequence::<Prefetched>::new();
    if comptime!(blueprint.codebook > 0) {
        let mut codebook = Shared::<[u32]>::new_slice(blueprint.codebook);
        store_codebook(&load_codebook(from, blueprint), from, &mut codebook, blueprint);
        sync_cube();
        multiply_matrices(matrices, &Inputs::new(work, &codebook, x), out, &mut prefetched);
    } else {
        multiply_matrices(matrices, &Inputs::new(work, from, x), out, &mut prefetched);
    }
}

/// [`multiply_matrices`] with activations that the cube stages, after one barrier for all that it has for itself.
#[cube]
fn stage_and_multiply<X: Float, O: Float>(
    matrices: &Sequence<Matrix>,
    codebook: &[u32],
    x: &[Vector<X, Const<4>>],
    values: &Loaded,
    out: &mut [O],
    work: CubeWork,
    prefetched: &mut Sequence<Prefetched>,
) {
    let vectors = comptime!(staging_of(work.blueprint).vectors());
    let mut codes = Shared::<[Words]>::new_slice(comptime!(2 * vectors));
    let mut scales = Shared::<[Vector<f32, Const<4>>]>::new_slice(vectors);
    stage_activations(x, values, work, &mut codes, &mut scales);
    sync_cube();
    let x = ActivationView::new_Staged(&codes, &scales);
    multiply_matrices(matrices, &Inputs::new(work, codebook, x), out, prefetched);
}

/// This cube's rows of all matrices.
#[cube]
fn multiply_matrices<O: Float>(
    matrices: &Sequence<Matrix>,
    inputs: &Inputs,
    out: &mut [O],
    prefetched: &mut Sequence<Prefetched>,
) {
    let (count, work) = (matrices.len(), inputs.work);
    let blueprint = comptime!(work.blueprint);
    #[unroll]
    for m in 0..count {
        let matrix = matrices.index(m);
        if comptime!(blueprint.cubes.is_some()) {
            multiply_passes(matrix, inputs, out, prefetched, comptime!(m > 0));
        } else if comptime!(count == 1) {
            let row = group_of(work.cube, matrix.cubes) * blueprint.rows_per_group;
            multiply_rows(matrix, inputs, out, prefetched, row, Step::none());
        } else if work.cube >= matrix.before && work.cube - matrix.before < matrix.cubes {
            let row = group_of(work.cube - matrix.before, matrix.cubes) * blueprint.rows_per_group;
            multiply_rows(matrix, inputs, out, prefetched, row, Step::none());
        }
    }
}

/// Rows of a matrix again and again, until there are none. Where there are matrices before it, its first rows are for the
/// groups that those left without.
#[cube]
fn multiply_passes<O: Float>(
    matrix: &Matrix,
    inputs: &Inputs,
    out: &mut [O],
    prefetched: &mut Sequence<Prefetched>,
    #[comptime] has_before: bool,
) {
    let work = inputs.work;
    let blueprint = comptime!(work.blueprint);
    let groups = matrix.cubes * comptime!(blueprint.groups_per_cube as usize);
    let mut group = group_of(work.cube, matrix.cubes);
    if comptime!(has_before) {
        group = select(group < matrix.before, group + groups, group) - matrix.before;
        if comptime!(blueprint.prefetch) {
            load_step(matrix, work, Step::first(group, blueprint), prefetched);
        }
    }
    let properties = comptime::device_properties();
    let whole_planes = comptime!(blueprint.lanes_per_row == properties.hardware.plane_size_max);
    for pass in 0..matrix.passes {
        let row = (pass * groups + group) * blueprint.rows_per_group;
        // All lanes of a plane go on together, as they talk to each other, and where several planes share a row all of the cube,
        // as these meet at barriers.
        if !whole_planes || row < matrix.n {
            let next_row = row + groups * blueprint.rows_per_group;
            let any = pass + 1 < matrix.passes && next_row < matrix.n;
            let next = Step { row: next_row, span: UNIT_POS_X as usize, any };
            multiply_rows(matrix, inputs, out, prefetched, row, next);
        }
    }
}

/// The group's rows from `first_row` on, before those of `next`.
#[cube]
fn multiply_rows<O: Float>(
    matrix: &Matrix,
    inputs: &Inputs,
    out: &mut [O],
    prefetched: &mut Sequence<Prefetched>,
    first_row: usize,
    next: Step,
) {
    let work = inputs.work;
    let blueprint = comptime!(work.blueprint);
    let mut acc = Array::<f32>::new(comptime!(blueprint.sums()));
    #[unroll]
    for i in 0..comptime!(blueprint.sums()) {
        acc[i] = 0.0f32;
    }
    if comptime!(traits(blueprint.ty).dense) {
        multiply_dense(matrix, inputs, first_row, &mut acc);
    } else {
        multiply_blocks(matrix, inputs, prefetched, first_row, next, &mut acc);
    }
    let share = reduce_lanes(&mut acc, blueprint);
    if UNIT_POS_X < share.lanes {
        #[unroll]
        for i in 0..share.count {
            let sum = share.first + i;
            let row = first_row + sum / blueprint.tokens;
            let token = sum % blueprint.tokens;
            if row < matrix.n && work.extent.first_token + token < work.extent.tokens {
                let at = matrix.start + (work.result_row + token) * matrix.n + row;
                let product = matrix.epilogue.product(acc[i], work.expert_row + row, true);
                if comptime!(work.has_experts) {
                    out[at] = rounded_or_nan::<O>(product, work.is_known);
                } else {
                    out[at] = rounded::<O>(product);
                }
            }
        }
    }
}

/// This unit's group of lanes in a launch where cube `cube` is one of `cubes`. Groups of the same number in neighbouring cubes
/// are neighbours, so that all cubes work where there is too little for all groups.
#[cube]
fn group_of(cube: usize, cubes: usize) -> usize {
    UNIT_POS_Y as usize * cubes + cube
}

/// `index`, or the last of `len`.
#[cube]
fn clamped(index: usize, len: usize) -> usize {
    select(index < len, index, len - 1)
}
