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

/// Sums that a lane is left with.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub struct Share {
    /// The first of them among all, which is 0 in lane 0.
    pub first: usize,
    /// How many lanes have others: as many from lane 0 on, and the lanes after those have the same again.
    #[cube(comptime)]
    pub lanes: u32,
    /// How many it is, at the front of what were the lane's own.
    #[cube(comptime)]
    pub count: usize,
}

/// Adds up each of `sums`, whose number is a power of two, over runs of `lanes` lanes of a plane, in the order of
/// [`sum_of_lanes`]. Where that gives each in all lanes, lane `lane` of a run is left with its share: each exchange of a pair of
/// lanes halves what both go on with.
#[cube]
pub fn reduce_scatter(sums: &mut Array<f32>, lane: u32, #[comptime] all: usize, #[comptime] lanes: u32) -> Share {
    let holders = comptime!(lanes.min(all as u32));
    let mut first = 0usize.runtime();
    #[unroll]
    for step in 0..comptime!(holders.ilog2()) {
        let (half, distance) = comptime!((all >> (step + 1), 1u32 << step));
        let keeps_last = lane & distance != 0;
        first += select(keeps_last, half, 0usize);
        #[unroll]
        for i in 0..half {
            let (kept, given) =
                (select(keeps_last, sums[i + half], sums[i]), select(keeps_last, sums[i], sums[i + half]));
            sums[i] = kept + plane_shuffle_xor(given, distance);
        }
    }
    // Lanes that are left with the same sum.
    if comptime!(holders < lanes) {
        sums[0] = sum_of_lanes(sums[0], comptime!(lanes / holders), holders);
    }
    Share { first, lanes: holders, count: comptime!(all / holders as usize) }
}
