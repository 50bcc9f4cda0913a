//! The largest of many values and where it is.

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::team::{Team, row_of, unit_of};
use super::values;
use crate::kernels::launch::{Grid, buffer};

/// Values of a part, which a team goes through alone.
const PART: usize = 1024;

/// The index of the largest of `count` values, the first of equals, and the value's bits: two u32. NaN counts as infinity.
pub fn largest(client: &Client, x: &Handle, count: usize) -> Handle {
    let parts = count.div_ceil(PART);
    let of_parts = values(client, 2 * parts);
    find(client, [x, &of_parts], [count, PART], true);
    let out = values(client, 2);
    find(client, [&of_parts, &out], [parts, parts], false);
    out
}

/// Finds the largest of each part of `len` of `count` values, or of what was found before.
fn find(client: &Client, [from, to]: [&Handle; 2], [count, len]: [usize; 2], of_values: bool) {
    let team = Team::plane(client);
    let (cubes, dim, grid) = team.launch(client, count.div_ceil(len));
    let parts = PartsLaunch::new(grid, count, len);
    largest_of_part::launch(client, cubes, dim, buffer(from, 4), buffer(to, 4), parts, of_values, team);
}

/// Parts of `len` of `count` values, and the teams that go through them.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
#[expand(derive(Clone, Copy))]
struct Parts {
    grid: Grid,
    count: usize,
    len: usize,
}

#[cube(launch)]
fn largest_of_part(from: &[u32], to: &mut [u32], parts: &Parts, #[comptime] of_values: bool, #[comptime] team: Team) {
    let part = row_of(&parts.grid, team);
    if part >= parts.grid.len {
        terminate!();
    }
    let (first, end) = (part * parts.len, min((part + 1) * parts.len, parts.count));
    let mut best = Best::none();
    for at in range_stepped(first + unit_of(team), end, comptime!(team.units() as usize)) {
        let bits = if comptime!(of_values) { from[at] } else { from[2 * at + 1] };
        let index = if comptime!(of_values) { at as u32 } else { from[2 * at] };
        best.take(Best::of(bits, index));
    }
    best.take_of_team(team);
    if unit_of(team) == 0 {
        to[2 * part] = best.place;
        to[2 * part + 1] = u32::reinterpret(best.value);
    }
}

/// A value and its place among others. NaN counts as infinity.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub(super) struct Best {
    pub value: f32,
    pub place: u32,
}

#[cube]
impl Best {
    /// What every value goes before.
    pub fn none() -> Best {
        Best { value: f32::NEG_INFINITY.runtime(), place: u32::MAX.runtime() }
    }

    /// The value of these bits.
    pub fn of(bits: u32, place: u32) -> Best {
        let is_nan = bits & 0x7fff_ffff > 0x7f80_0000;
        Best { value: select(is_nan, f32::INFINITY.runtime(), f32::reinterpret(bits)), place }
    }

    /// Whether it is the larger one, or of equals the first.
    pub fn is_before(&self, other: Best) -> bool {
        self.value > other.value || (self.value == other.value && self.place < other.place)
    }

    /// Becomes the other where that goes before it.
    pub fn take(&mut self, other: Best) {
        let is_before = other.is_before(Best { value: self.value, place: self.place });
        self.value = select(is_before, other.value, self.value);
        self.place = select(is_before, other.place, self.place);
    }

    /// Becomes the first of all those of a team's units, in each of them.
    pub fn take_of_team(&mut self, #[comptime] team: Team) {
        #[unroll]
        for step in 0..comptime!(team.lanes.ilog2()) {
            let distance = comptime!(1u32 << step);
            let value = plane_shuffle_xor(self.value, distance);
            let place = plane_shuffle_xor(self.place, distance);
            self.take(Best { value, place });
        }
    }
}
