//! Sums over the lanes that share rows, always in the same order.

use cubecl::frontend::comptime;
use cubecl::prelude::*;

use crate::kernels::lanes::{Share, reduce_scatter};
use crate::kernels::matvec::blueprint::{Blueprint, Reduction};

/// Adds up `acc` over the lanes of a group. The sums of a unit's share are at its front then.
#[cube]
pub(super) fn reduce_lanes(acc: &mut Array<f32>, #[comptime] blueprint: Blueprint) -> Share {
    let count = comptime!(blueprint.sums());
    match blueprint.reduction {
        Reduction::Plane => {
            let properties = comptime::device_properties();
            let plane = comptime!(properties.hardware.plane_size_max);
            let share = reduce_scatter(acc, UNIT_POS_X, count, comptime!(blueprint.lanes_per_row.min(plane)));
            if comptime!(blueprint.lanes_per_row > plane) {
                sum_planes(acc, share, plane, blueprint);
            }
            share
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
            Share { first: 0usize.runtime(), lanes: 1u32, count }
        }
        Reduction::None => Share { first: 0usize.runtime(), lanes: 1u32, count },
    }
}

/// Adds up a lane's share over the planes of its group, of which each has sums of its own.
#[cube]
fn sum_planes(acc: &mut Array<f32>, share: Share, #[comptime] plane: u32, #[comptime] blueprint: Blueprint) {
    let count = comptime!(blueprint.sums());
    let planes = comptime!((blueprint.lanes_per_row / plane) as usize);
    let mut shared = Shared::<[f32]>::new_slice(comptime!(blueprint.groups_per_cube as usize * planes * count));
    let first = UNIT_POS_Y as usize * comptime!(planes * count) + share.first;
    if UNIT_POS_PLANE < share.lanes {
        #[unroll]
        for i in 0..share.count {
            shared[first + (UNIT_POS_X / plane) as usize * count + i] = acc[i];
        }
    }
    sync_cube();
    #[unroll]
    for i in 0..share.count {
        acc[i] = shared[first + i];
        #[unroll]
        for other in 1..planes {
            acc[i] += shared[first + other * count + i];
        }
    }
    // Cubes that go on write there again.
    if comptime!(blueprint.cubes.is_some()) {
        sync_cube();
    }
}
