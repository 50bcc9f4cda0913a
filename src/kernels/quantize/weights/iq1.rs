//! IQ1: values of -1, 0 and 1 by groups from a grid, all shifted by an eighth up or down. The searches are ggml's
//! (`quantize_row_iq1_s_impl` and `quantize_row_iq1_m_impl`).
//!
//! With three numbers a sub-block's values, sorted, are split in three runs, each of one number. Sums over the sorted values tell how
//! good any split is, for each way to shift: all are tried. Then groups are replaced by points of the grid. A unit sorts in shared
//! memory, its floats a cube's units apart.

use cubecl::prelude::*;

use super::chunks::ChunkAt;
use super::codes::zeros;
use super::grid_fields::{BlockScale, DOWN, Found, GridShares};
use super::grid_rule::{GridRule, weights_of};
use super::importance::Importance;
use super::neighbours::{Levels, Weighted, nearest_point, number};
use super::rounding::{floats_of, load_all, product};
use crate::gguf::GgmlType;
use crate::kernels::vector::Words;

/// The number of code 0, shifted down or up.
#[cube]
fn least(is_down: bool) -> f32 {
    select(is_down, -1.125f32, -0.875f32)
}

/// The best split of sorted values.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
struct Split {
    scale: f32,
    /// What is compared: the square of the one sum over the other.
    score: f32,
    /// Values before the second run, and before the third.
    first: u32,
    second: u32,
    /// A bit for each group that is shifted down.
    down: u32,
    is_found: bool,
}

#[cube]
impl Split {
    /// Nothing, with the scale that is left where nothing is found.
    fn none(scale: f32) -> Split {
        Split {
            scale,
            score: f32::MIN.runtime(),
            first: 0u32.runtime(),
            second: 0u32.runtime(),
            down: 0u32.runtime(),
            is_found: false.runtime(),
        }
    }

    /// Takes another one if it is better.
    fn try_this(&mut self, sum_qx: f32, sum_q2: f32, first: u32, second: u32, #[comptime] down: u32) {
        if sum_q2 > 0.0f32 && sum_qx * sum_qx > self.score * sum_q2 {
            self.scale = sum_qx / sum_q2;
            self.score = self.scale * sum_qx;
            self.first = first;
            self.second = second;
            self.down = comptime!(down).runtime();
            self.is_found = true.runtime();
        }
    }
}

/// Where a unit sorts.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
struct Sums {
    /// The floats of one array: a value more than there are.
    len: usize,
    /// Units of the cube.
    units: usize,
}

#[cube]
impl Sums {
    /// The place of float `index` of an array.
    fn at(&self, array: usize, index: usize) -> usize {
        (array * self.len + index) * self.units + UNIT_POS as usize
    }
}

/// Searches the sub-block from vector `first` on.
#[cube]
pub fn search_shifted<X: Float>(
    x: &[Vector<X, Const<4>>],
    first: usize,
    importance: &Importance<'_>,
    table: &[u32],
    scratch: &mut [f32],
    #[comptime] rule: GridRule,
) -> Found {
    let (len, groups) = comptime!((32 / rule.subs(), rule.groups()));
    let vectors = load_all::<X>(x, first, comptime!(len / 4));
    let weights = weights_of(&vectors, importance, rule);
    let own = Weighted { values: floats_of(&vectors, len), weights: floats_of(&weights, len) };
    let mut greatest = 0.0f32;
    #[unroll]
    for i in 0..len {
        greatest = max(greatest, f32::abs(own.values[i]));
    }
    let sums = Sums { len: comptime!(len + 1).runtime(), units: comptime!(rule.units).runtime() };
    let ranks = sort(&own, scratch, sums, rule);
    let split = if comptime!(rule.ty == GgmlType::IQ1S) {
        split_as_one(&*scratch, sums, greatest)
    } else {
        split_by_halves(&*scratch, sums, greatest)
    };
    // A negative scale turns all numbers round.
    let is_turned = split.scale < 0.0f32;
    let mut down = select(is_turned, split.down ^ 15, split.down);
    let mut codes = Array::<u32>::new(len);
    #[unroll]
    for i in 0..len {
        let code = u32::cast_from(ranks[i] >= split.first) + u32::cast_from(ranks[i] >= split.second);
        codes[i] = select(is_turned, 2 - code, code);
    }
    let mut scale = f32::abs(split.scale);
    let mut points = Array::<u32>::new(comptime!(len / groups.len));
    let mut all_on_grid = true.runtime();
    let mut sum_qx = 0.0f32;
    let mut sum_q2 = 0.0f32;
    #[unroll]
    for group in 0..comptime!(len / groups.len) {
        let least = least((down >> comptime!(group as u32)) & 1 == 1);
        let first = comptime!(group * groups.len);
        let point = nearest_point(table, &codes, &own, first, Levels { scale, least }, groups);
        all_on_grid = all_on_grid && point.is_on_grid;
        points[group] = point.word;
        #[unroll]
        for i in 0..groups.len {
            let weight = own.weights[comptime!(first + i)];
            let q = number(point.word, i, least, groups);
            sum_qx += product(weight * q, own.values[comptime!(first + i)]);
            sum_q2 += product(weight * q, q);
        }
    }
    if !all_on_grid && sum_qx > 0.0f32 && sum_q2 > 0.0f32 {
        scale = sum_qx / sum_q2;
    }
    let is_zero = greatest < comptime!(rule.least()) || !split.is_found;
    down = select(is_zero, 0u32, down);
    #[unroll]
    for group in 0..comptime!(len / groups.len) {
        points[group] = select(is_zero, 0u32, points[group]);
    }
    Found { scale: select(is_zero, 0.0f32, scale), signs: down, points }
}

/// The rank of each value among those of its sub-block, of equal ones by their places. Leaves sums of weighted values and of weights
/// over the values of lower ranks in the arrays before the last: of IQ1_M, over those of either half.
#[cube]
fn sort(own: &Weighted, scratch: &mut [f32], sums: Sums, #[comptime] rule: GridRule) -> Array<u32> {
    let len = comptime!(32 / rule.subs());
    let halves = comptime!(if rule.ty == GgmlType::IQ1S { 1usize } else { 2 });
    let mut ranks = Array::<u32>::new(len);
    #[unroll]
    for i in 0..len {
        scratch[sums.at(comptime!(2 * halves), i)] = own.values[i];
    }
    #[unroll]
    for i in 0..len {
        let mut rank = 0u32;
        for j in 0..comptime!(len).runtime() {
            let other = scratch[sums.at(comptime!(2 * halves), j)];
            rank += u32::cast_from(other < own.values[i] || (other == own.values[i] && j < i));
        }
        ranks[i] = rank;
        let place = usize::cast_from(rank) + 1;
        #[unroll]
        for half in 0..halves {
            let is_own = comptime!(halves == 1 || i / (len / 2) == half);
            let value = if is_own { product(own.weights[i], own.values[i]) } else { 0.0f32.runtime() };
            let weight = if is_own { own.weights[i] } else { 0.0f32.runtime() };
            scratch[sums.at(half, place)] = value;
            scratch[sums.at(comptime!(halves + half), place)] = weight;
        }
    }
    #[unroll]
    for array in 0..comptime!(2 * halves) {
        let mut sum = 0.0f32;
        scratch[sums.at(array, 0usize)] = sum;
        for rank in 1..comptime!(len + 1).runtime() {
            sum += scratch[sums.at(array, rank)];
            scratch[sums.at(array, rank)] = sum;
        }
    }
    ranks
}

/// The best split where all values are shifted alike.
#[cube]
fn split_as_one(scratch: &[f32], sums: Sums, greatest: f32) -> Split {
    let mut split = Split::none(greatest);
    let all = sums.len - 1;
    let (all_x, all_w) = (scratch[sums.at(0usize, all)], scratch[sums.at(1usize, all)]);
    for first in 0..sums.len {
        let (low_x, low_w) = (scratch[sums.at(0usize, first)], scratch[sums.at(1usize, first)]);
        for second in first..sums.len {
            let (x, w) = (scratch[sums.at(0usize, second)], scratch[sums.at(1usize, second)]);
            let (middle_x, middle_w) = (x - low_x, w - low_w);
            let (high_x, high_w) = (all_x - x, all_w - w);
            #[unroll]
            for down in 0..2u32 {
                let (p, q, r) =
                    comptime!(if down == 0 { (-0.875f32, 0.125f32, 1.125f32) } else { (-1.125, -0.125, 0.875) });
                let sum_qx = product(low_x, p) + product(middle_x, q) + product(high_x, r);
                let sum_q2 = product(low_w * p, p) + product(middle_w * q, q) + product(high_w * r, r);
                let bits = comptime!(15 * down);
                split.try_this(sum_qx, sum_q2, u32::cast_from(first), u32::cast_from(second), bits);
            }
        }
    }
    split
}

/// The best split where each half has a shift of its own.
#[cube]
fn split_by_halves(scratch: &[f32], sums: Sums, greatest: f32) -> Split {
    let mut split = Split::none(greatest);
    let all = sums.len - 1;
    for first in 0..sums.len {
        for second in first..sums.len {
            // Of either half shifted up, then down.
            let mut qx = Array::<f32>::new(4usize);
            let mut q2 = Array::<f32>::new(4usize);
            #[unroll]
            for half in 0..2usize {
                let weights = comptime!(2 + half);
                let x = scratch[sums.at(half, first)] + scratch[sums.at(half, second)];
                let (low, high) = (scratch[sums.at(weights, first)], scratch[sums.at(weights, second)]);
                let (all_x, all_w) = (scratch[sums.at(half, all)], scratch[sums.at(weights, all)]);
                #[unroll]
                for down in 0..2usize {
                    let (p, q, r) =
                        comptime!(if down == 0 { (-0.875f32, 0.125f32, 1.125f32) } else { (-1.125, -0.125, 0.875) });
                    let place = comptime!(2 * half + down);
                    qx[place] = product(all_x, r) - x;
                    q2[place] = product(all_w * r, r)
                        + product(low, comptime!(p * p - q * q))
                        + product(high, comptime!(q * q - r * r));
                }
            }
            #[unroll]
            for down in 0..4usize {
                // ggml counts by the first half's shift first.
                let (of_first, of_second) = comptime!((down / 2, 2 + down % 2));
                let bits = comptime!((down / 2 + 2 * (down % 2)) as u32);
                let (sum_qx, sum_q2) = (qx[of_first] + qx[of_second], q2[of_first] + q2[of_second]);
                split.try_this(sum_qx, sum_q2, u32::cast_from(first), u32::cast_from(second), bits);
            }
        }
    }
    split
}

/// Stores the upper bits of the indices of a super-block of IQ1_M, its shifts and its scales, by the one scale that suits all its
/// points best. Chunk `index` of the cube is its first.
#[cube]
pub fn store_shifted_block<X: Float>(
    x: &[Vector<X, Const<4>>],
    out: &mut [Words],
    at: ChunkAt,
    importance: &Importance<'_>,
    shares: &GridShares<'_>,
    index: usize,
    #[comptime] rule: GridRule,
) {
    let block = BlockScale::of(shares, index * 2, rule);
    let mut sum_qx = 0.0f32;
    let mut sum_q2 = 0.0f32;
    let mut numbers = zeros(2usize);
    for sub in 0..16usize {
        let number_of_scale = block.number(shares.scales[index * 2 + sub], rule);
        // Three bits a number, four numbers in each 16.
        let placed = number_of_scale << u32::cast_from(sub % 8 / 4 * 16 + sub % 4 * 3);
        numbers[0] |= select(sub < 8, placed, 0u32);
        numbers[1] |= select(sub < 8, 0u32, placed);
        let step = f32::cast_from(2 * number_of_scale + 1);
        let vectors = load_all::<X>(x, at.first + sub * 4, 4usize);
        let of_sub = Importance::new(importance.values, importance.first + sub * 4, importance.variance);
        let (values, weights) =
            (floats_of(&vectors, 16usize), floats_of(&weights_of(&vectors, &of_sub, rule), 16usize));
        #[unroll]
        for group in 0..2usize {
            let point = shares.words[index * 4 + sub * 2 + group];
            let least = least((point >> comptime!(DOWN)) & 1 == 1);
            #[unroll]
            for i in 0..8usize {
                let q = number(point, i, least, comptime!(rule.groups())) * step;
                let weight = weights[comptime!(8 * group + i)];
                sum_qx += product(weight * q, values[comptime!(8 * group + i)]);
                sum_q2 += product(weight * q, q);
            }
        }
    }
    let scale = select(sum_q2 > 0.0f32, sum_qx / sum_q2, block.scale);
    let bits = block.bits(scale, rule);
    #[unroll]
    for word in 0..2usize {
        let low = (bits >> comptime!(8 * word as u32)) & 0xf;
        let high = (bits >> comptime!(8 * word as u32 + 4)) & 0xf;
        let packed = numbers[word] | (low << 12) | (high << 28);
        at.destination.store(out, 2usize, at.row, at.block * 2 + word, packed);
    }
    for word in 0..4usize {
        let mut packed = 0u32;
        #[unroll]
        for i in 0..8usize {
            // Nothing is shifted where there is no scale.
            let upper = (shares.words[index * 4 + word * 8 + i] >> 8) & select(block.is_zero, 7u32, 15u32);
            packed |= upper << comptime!(4 * i as u32);
        }
        at.destination.store(out, 1usize, at.row, at.block * 4 + word, packed);
    }
}
