//! The sum of what cubes with different splits of the depth have stored.

use cubecl::ir::ElemType;
use cubecl::prelude::*;

use crate::kernels::floats::rounded;
use crate::kernels::launch::Grid;

/// Adds up `splits` vectors of sums, `stride` vectors of four apart, and rounds.
#[cube(launch)]
pub fn add_splits<O: Float>(
    sums: &[Vector<f32, Const<4>>],
    out: &mut [Vector<O, Const<4>>],
    grid: Grid,
    #[comptime] splits: usize,
    stride: usize,
    #[define(O)] _dtype: ElemType,
) {
    let position = grid.unit();
    if position >= grid.len {
        terminate!();
    }
    let mut sum = sums[position];
    #[unroll]
    for split in 1..splits {
        sum += sums[position + split * stride];
    }
    let mut values = Vector::<O, Const<4>>::empty();
    #[unroll]
    for i in 0..4usize {
        values.insert(i, rounded::<O>(sum.extract(i)));
    }
    out[position] = values;
}
