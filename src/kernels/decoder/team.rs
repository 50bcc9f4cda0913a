//! [`Team`]: the units that share a row.

use cubecl::client::Client;
use cubecl::prelude::*;

use crate::kernels::launch::{Grid, GridLaunch, cubes, elementwise, plane};

/// The units that share a row: the planes of a cube, or one unit where planes have no operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Team {
    /// Units of a plane; 1 where a row is one unit's.
    pub lanes: u32,
    /// Planes of a cube.
    pub planes: u32,
}

/// The most units of a team: more would wait for each other longer than they read.
const MAX_UNITS: u32 = 512;

impl Team {
    /// One plane, or one unit.
    pub fn plane(client: &Client) -> Self {
        Self { lanes: plane(client).unwrap_or(1), planes: 1 }
    }

    /// As many planes as find four values each in a row.
    pub fn of_row(client: &Client, width: usize) -> Self {
        let Self { lanes, .. } = Self::plane(client);
        let most = MAX_UNITS.min(client.properties().hardware.max_units_per_cube) / lanes.max(1);
        let planes = match lanes {
            1 => 1,
            _ => ((width / 4) as u32 / lanes).clamp(1, most.max(1)),
        };
        Self { lanes, planes }
    }

    /// Units of the team.
    pub fn units(self) -> u32 {
        self.lanes * self.planes
    }

    /// The launch of a team for each of `rows` rows.
    pub fn launch(self, client: &Client, rows: usize) -> (CubeCount, CubeDim, GridLaunch) {
        if self.units() == 1 {
            return elementwise(client, rows);
        }
        let (count, grid) = cubes(client, rows, rows);
        (count, CubeDim::new_1d(self.units()), grid)
    }
}

/// The row of this unit's team; those from `grid.len` on are none.
#[cube]
pub fn row_of(grid: &Grid, #[comptime] team: Team) -> usize {
    if comptime!(team.units() == 1) { grid.unit() } else { grid.cube() }
}

/// This unit's place in its team.
#[cube]
pub fn unit_of(#[comptime] team: Team) -> usize {
    if comptime!(team.units() == 1) { 0usize.runtime() } else { UNIT_POS_X as usize }
}

/// The sum over the team, in each of its units.
#[cube]
pub fn sum_of_team(value: f32, #[comptime] team: Team) -> f32 {
    if comptime!(team.lanes == 1) {
        value
    } else {
        let sum = plane_sum(value);
        if comptime!(team.planes == 1) {
            sum
        } else {
            let mut shared = Shared::<[f32]>::new_slice(comptime!(team.planes as usize));
            if UNIT_POS_PLANE == 0 {
                shared[(UNIT_POS_X / team.lanes) as usize] = sum;
            }
            sync_cube();
            let mut total = 0.0f32;
            #[unroll]
            for plane in 0..comptime!(team.planes as usize) {
                total += shared[plane];
            }
            total
        }
    }
}
