//! Sums over the lanes that share rows, always in the same order.

use cubecl::frontend::comptime;
use cubecl::prelude::*;

use crate::kernels::lanes::sum_of_lanes;
use crate::kernels::matvec::blueprint::{Blueprint, Reduction};

/// Each sum over the lanes of a group, in lane 0.
#[cube]
pub(super) fn reduce_lanes(acc: &mut Array<f32>, #[comptime] blueprint: Blueprint) {
    let count = comptime!(blueprint.sums());
    match blueprint.reduction {
        Reduction::Plane => {
            let properties = comptime::device_properties();
            let whole_plane = comptime!(blueprint.lanes_per_row == properties.hardware.plane_size_max);
            #[unroll]
            for i in 0..count {
                acc[i] =
                    if whole_plane { plane_sum(acc[i]) } else { sum_of_lanes(acc[i], blueprint.lanes_per_row, 1u32) };
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
