//! The points of a grid that are next to a group of codes, as a table on the device.
//!
//! ggml looks for the best point among those of the few least distances (`iq2xs_init_impl` and `iq3xs_init_impl` in
//! `ggml/src/ggml-quants.c`). The table has a word for every group of codes: the index of its point where the grid has one, else
//! where the list of its neighbours begins and how many there are. After these words come the lists, by distance and index: a
//! neighbour is a word, its codes above its index.

use cubecl::prelude::*;

use super::rounding::product;
use crate::gguf::GgmlType;
use crate::kernels::formats::Grid;

/// Bits of the number of neighbours, below the index or the beginning of the list.
const COUNT_BITS: u32 = 12;

/// Different distances among a group's neighbours.
fn distances(ty: GgmlType) -> usize {
    match ty {
        GgmlType::IQ2S => 1,
        GgmlType::IQ2XXS | GgmlType::IQ2XS | GgmlType::IQ3XXS => 2,
        _ => 3,
    }
}

/// The table of a format that has this grid.
pub fn table(ty: GgmlType, grid: Grid) -> Vec<u32> {
    let codes: Vec<Vec<usize>> = grid.points.iter().map(|&point| grid.codes(point).collect()).collect();
    let place = |codes: &[usize]| codes.iter().rev().fold(0, |place, code| place * grid.levels + code);
    let groups = grid.groups();
    let mut indices = vec![None; groups];
    for (index, codes) in codes.iter().enumerate() {
        indices[place(codes)] = Some(index);
    }
    let mut words = vec![0; groups];
    let mut by_distance = vec![Vec::new(); grid.values * (grid.levels - 1).pow(2) + 1];
    for group in 0..groups {
        if let Some(index) = indices[group] {
            words[group] = (index as u32) << COUNT_BITS;
            continue;
        }
        let own: Vec<usize> = (0..grid.values).map(|j| group / grid.levels.pow(j as u32) % grid.levels).collect();
        by_distance.iter_mut().for_each(Vec::clear);
        for (index, codes) in codes.iter().enumerate() {
            let distance: usize = codes.iter().zip(&own).map(|(&a, &b)| a.abs_diff(b).pow(2)).sum();
            by_distance[distance].push(index);
        }
        let first = words.len();
        let nearest = by_distance.iter().filter(|points| !points.is_empty()).take(distances(ty)).flatten();
        words.extend(nearest.map(|&index| u32::from(grid.points[index]) << 16 | index as u32));
        words[group] = (first as u32) << COUNT_BITS | (words.len() - first) as u32;
    }
    words
}

/// How the codes of a group are numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Groups {
    /// Values of a group.
    pub len: usize,
    /// The greatest code.
    pub most: u32,
    /// Whether a step of a code is 2, not 1.
    pub doubled: bool,
}

impl Groups {
    /// Bits of a code.
    pub fn bits(self) -> u32 {
        16 / self.len as u32
    }

    /// The code mask.
    fn mask(self) -> u32 {
        (1 << self.bits()) - 1
    }
}

/// Values, and the weights of their errors.
#[derive(CubeType)]
pub struct Weighted {
    pub values: Array<f32>,
    pub weights: Array<f32>,
}

/// What codes stand for.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub struct Levels {
    pub scale: f32,
    /// The number of code 0.
    pub least: f32,
}

/// A point that a group is quantized to.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub struct Point {
    /// Its codes above its index.
    pub word: u32,
    /// Whether the group's own codes are a point of the grid.
    pub is_on_grid: bool,
}

/// The number that code `i` of a point stands for, where `least` is that of code 0.
#[cube]
pub fn number(point: u32, #[comptime] i: usize, least: f32, #[comptime] groups: Groups) -> f32 {
    let code = (point >> comptime!(16 + groups.bits() * i as u32)) & comptime!(groups.mask());
    let step = comptime!(if groups.doubled { 2u32 } else { 1 });
    f32::cast_from(code * step) + least
}

/// The point for the group of values from `first` on: that of their codes, or the one among its neighbours whose numbers,
/// scaled, have the least error.
#[cube]
pub fn nearest_point(
    table: &[u32],
    codes: &Array<u32>,
    own: &Weighted,
    #[comptime] first: usize,
    levels: Levels,
    #[comptime] groups: Groups,
) -> Point {
    let mut place = 0u32;
    let mut packed = 0u32;
    #[unroll]
    for i in 0..groups.len {
        let code = codes[comptime!(first + groups.len - 1 - i)];
        place = place * comptime!(groups.most + 1) + code;
        packed = (packed << comptime!(groups.bits())) | code;
    }
    let entry = table[usize::cast_from(place)];
    let (found, count) = (entry >> comptime!(COUNT_BITS), entry & comptime!((1u32 << COUNT_BITS) - 1));
    let mut word = (packed << 16) | found;
    if count > 0 {
        let list = usize::cast_from(found);
        let mut least = f32::MAX.runtime();
        word = table[list];
        for neighbour in 0..usize::cast_from(count) {
            let point = table[list + neighbour];
            let mut error = 0.0f32;
            #[unroll]
            for i in 0..groups.len {
                let at = comptime!(first + i);
                let difference = product(levels.scale, number(point, i, levels.least, groups)) - own.values[at];
                error += product(own.weights[at] * difference, difference);
            }
            if error < least {
                least = error;
                word = point;
            }
        }
    }
    Point { word, is_on_grid: count == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of every group of codes: itself where it is a point, else all points no farther than the last of its list.
    #[test]
    fn lists_hold_the_nearest_points_and_no_others() {
        for ty in [GgmlType::IQ2S, GgmlType::IQ3XXS, GgmlType::IQ3S] {
            let grid = Grid::of(ty).unwrap();
            let words = table(ty, grid);
            let groups = grid.groups();
            assert!(words.len() < 1 << (32 - COUNT_BITS), "{ty}");
            let distance = |point: u16, group: usize| -> usize {
                let of =
                    |(j, code): (usize, usize)| code.abs_diff(group / grid.levels.pow(j as u32) % grid.levels).pow(2);
                grid.codes(point).enumerate().map(of).sum()
            };
            for group in (0..groups).step_by(7) {
                let (found, count) = ((words[group] >> COUNT_BITS) as usize, words[group] as usize & 0xfff);
                if count == 0 {
                    assert_eq!(distance(grid.points[found], group), 0, "{ty} {group}");
                    continue;
                }
                let list = &words[found..found + count];
                let far = list.iter().map(|&word| distance((word >> 16) as u16, group)).max().unwrap();
                let near = (0..grid.points.len()).filter(|&index| distance(grid.points[index], group) <= far);
                let mut listed: Vec<_> = list.iter().map(|&word| word as usize & 0xffff).collect();
                listed.sort_unstable();
                assert!(near.eq(listed), "{ty} {group}");
            }
        }
    }
}
