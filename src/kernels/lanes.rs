//! Reductions over lanes of a plane.

use cubecl::prelude::*;

/// The sum over runs of `lanes` lanes of a plane, each `distance` from the one before, in all of them.
#[cube]
pub fn sum_of_lanes(value: f32, #[comptime] lanes: u32, #[comptime] distance: u32) -> f32 {
    let mut sum = value;
    #[unroll]
    for step in 0..comptime!(lanes.ilog2()) {
        sum += plane_shuffle_xor(sum, comptime!(distance << step));
    }
    sum
}

/// The largest of the same lanes.
#[cube]
pub fn max_of_lanes(value: f32, #[comptime] lanes: u32, #[comptime] distance: u32) -> f32 {
    let mut largest = value;
    #[unroll]
    for step in 0..comptime!(lanes.ilog2()) {
        largest = max(largest, plane_shuffle_xor(largest, comptime!(distance << step)));
    }
    largest
}
