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
    let mut best = f32::NEG_INFINITY.runtime();
    // Past all others: the first value takes its place.
    let mut place = u32::MAX.runtime();
    for at in range_stepped(first + unit_of(team), end, comptime!(team.units() as usize)) {
        let bits = if comptime!(of_values) { from[at] } else { from[2 * at + 1] };
        let index = if comptime!(of_values) { at as u32 } else { from[2 * at] };
        let is_nan = bits & 0x7fff_ffff > 0x7f80_0000;
        let value = select(is_nan, f32::INFINITY.runtime(), f32::reinterpret(bits));
        let is_better = is_better(value, index, best, place);
        best = select(is_better, value, best);
        place = select(is_better, index, place);
    }
    #[unroll]
    for step in 0..comptime!(team.lanes.ilog2()) {
        let distance = comptime!(1u32 << step);
        let value = plane_shuffle_xor(best, distance);
        let index = plane_shuffle_xor(place, distance);
        let is_better = is_better(value, index, best, place);
        best = select(is_better, value, best);
        place = select(is_better, index, place);
    }
    if unit_of(team) == 0 {
        to[2 * part] = place;
        to[2 * part + 1] = u32::reinterpret(best);
    }
}

/// Whether a value goes before the best so far: it is larger, or equal and at a smaller index.
#[cube]
pub(super) fn is_better(value: f32, index: u32, best: f32, place: u32) -> bool {
    value > best || (value == best && index < place)
}
