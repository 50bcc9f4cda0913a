//! Sums over lanes of a plane.

use cubecl::prelude::*;

/// The sum over each run of `lanes` lanes of a plane, in all of them.
#[cube]
pub fn sum_of_lanes(value: f32, #[comptime] lanes: u32) -> f32 {
    let mut sum = value;
    #[unroll]
    for step in 0..comptime!(lanes.ilog2()) {
        sum += plane_shuffle_xor(sum, comptime!(1u32 << step));
    }
    sum
}
