//! IQ2 and IQ3: magnitudes by groups from a grid, with signs beside them, by the scale for which they fit best. The searches are
//! ggml's (`quantize_row_iq2_xxs_impl` to `quantize_row_iq3_s_impl`).
//!
//! A round makes codes of a sub-block's magnitudes by a scale, replaces each group's by those of a point of the grid, and finds the
//! scale that suits these points best. The best of the rounds stays. A last one starts from its scale, and takes groups again that
//! were not on the grid.

use cubecl::prelude::*;

use super::grid_fields::Found;
use super::grid_rule::{GridRule, weights_of};
use super::importance::Importance;
use super::neighbours::{Levels, Weighted, nearest_point, number};
use super::rounding::{floats_of, load_all, nearest, product};
use super::search::positive;
use crate::gguf::GgmlType;

/// Searches the sub-block from vector `first` on, which begins with value `of_chunk` of its chunk.
#[cube]
pub fn search_magnitudes<X: Float>(
    x: &[Vector<X, Const<4>>],
    first: usize,
    importance: &Importance<'_>,
    table: &[u32],
    #[comptime] of_chunk: usize,
    #[comptime] rule: GridRule,
) -> Found {
    let len = comptime!(32 / rule.subs());
    let vectors = load_all::<X>(x, first, comptime!(len / 4));
    let weights = floats_of(&weights_of(&vectors, importance, rule), len);
    let mut own = Weighted { values: floats_of(&vectors, len), weights: Array::<f32>::new(len) };
    let mut signs = take_signs(&mut own.values, &weights, of_chunk, rule);
    let mut greatest = 0.0f32;
    #[unroll]
    for i in 0..len {
        // Neighbours are weighed by the roots.
        own.weights[i] = f32::sqrt(weights[i]);
        greatest = max(greatest, own.values[i]);
    }
    let top = comptime!(rule.groups().most as f32 * 2.0 + 1.0).runtime();
    let mut divisor = greatest;
    let mut scale = greatest / top;
    if comptime!(rule.ty == GgmlType::IQ2XXS) {
        let (start, _) = positive(&own.values, &weights, len, comptime!(rule.groups().most as i32 + 2));
        scale = start;
        divisor = start * comptime!(rule.groups().most as f32 + 1.0).runtime();
    }
    let is_zero = greatest < comptime!(rule.least()) || divisor <= 0.0f32;
    let (scale, points) = search_points(&own, &weights, table, scale, divisor, rule);
    // Of numbers below 0, which take a flipped magnitude, the scale is negative: signs flip instead.
    signs = select(scale < 0.0f32, signs ^ comptime!(rule.signs_of(of_chunk, len)), signs);
    let mut kept = Array::<u32>::new(comptime!(len / rule.groups().len));
    #[unroll]
    for group in 0..comptime!(len / rule.groups().len) {
        kept[group] = select(is_zero, 0u32, points[group]);
    }
    Found { scale: select(is_zero, 0.0f32, f32::abs(scale)), signs: select(is_zero, 0u32, signs), points: kept }
}

/// Leaves magnitudes of values, and gives the signs. Where a format has room for an even number of minus signs alone, the value
/// that weighs least keeps the wrong one.
#[cube]
fn take_signs(
    values: &mut Array<f32>,
    weights: &Array<f32>,
    #[comptime] of_chunk: usize,
    #[comptime] rule: GridRule,
) -> u32 {
    let mut signs = 0u32;
    #[unroll]
    for eight in 0..comptime!(32 / rule.subs() / 8) {
        let mut minus = 0u32;
        let mut lightest = 0u32;
        let mut least = f32::MAX.runtime();
        #[unroll]
        for i in 0..8usize {
            let at = comptime!(8 * eight + i);
            let value = values[at];
            let weight = weights[at] * value * value;
            minus |= u32::cast_from(value < 0.0f32) << comptime!(i as u32);
            lightest = select(weight < least, comptime!(1u32 << i), lightest);
            least = min(weight, least);
            values[at] = f32::abs(value);
        }
        if comptime!(rule.has_even_signs()) {
            let flipped = select(u32::count_ones(minus) & 1 == 1, lightest, 0u32);
            minus ^= flipped;
            #[unroll]
            for i in 0..8usize {
                let at = comptime!(8 * eight + i);
                let is_flipped = flipped & comptime!(1u32 << i) != 0;
                values[at] = select(is_flipped, 0.0f32 - values[at], values[at]);
            }
        }
        #[unroll]
        for i in 0..8usize {
            if comptime!(rule.sign_bit(of_chunk + 8 * eight + i).is_some()) {
                let bit = comptime!(rule.sign_bit(of_chunk + 8 * eight + i).unwrap_or(0));
                signs |= ((minus >> comptime!(i as u32)) & 1) << bit;
            }
        }
    }
    signs
}

/// The best scale, and the points by it. Rounds are by numbers of `divisor`.
#[cube]
fn search_points(
    own: &Weighted,
    weights: &Array<f32>,
    table: &[u32],
    start: f32,
    divisor: f32,
    #[comptime] rule: GridRule,
) -> (f32, Array<u32>) {
    let groups = comptime!(rule.groups());
    let (len, count) = comptime!((32 / rule.subs(), 32 / rule.subs() / groups.len));
    let top = comptime!(groups.most as f32 * 2.0 + 1.0).runtime();
    let rounds = comptime!(rule.rounds());
    let last = comptime!(2 * rounds.side + 1).runtime();
    let mut scale = start;
    let mut best = 0.0f32;
    let mut points = Array::<u32>::new(count);
    #[unroll]
    for group in 0..count {
        points[group] = 0u32;
    }
    // A bit for each group whose codes are no point of the grid.
    let mut off_grid = comptime!(if rule.ty == GgmlType::IQ3S { 1u32 } else { 0 }).runtime();
    for round in 0..last + 1 {
        let is_last = round == last;
        let above = f32::cast_from(round) - comptime!(rounds.side as f32);
        let tried = (top + product(above, comptime!(rounds.hundredths as f32 / 100.0))) / divisor;
        let inverse = select(is_last, 1.0f32 / scale, tried);
        let levels = Levels { scale: select(is_last, scale, 1.0f32 / tried), least: 1.0f32.runtime() };
        let mut codes = Array::<u32>::new(len);
        #[unroll]
        for i in 0..len {
            let code = nearest(0.5f32 * (product(inverse, own.values[i]) - 1.0f32));
            codes[i] = u32::cast_from(clamp(code, 0i32, comptime!(groups.most as i32)));
        }
        let mut new = Array::<u32>::new(count);
        let mut new_off_grid = 0u32;
        let mut sum_qx = 0.0f32;
        let mut sum_q2 = 0.0f32;
        #[unroll]
        for group in 0..count {
            let first = comptime!(group * groups.len);
            let point = nearest_point(table, &codes, own, first, levels, groups);
            new_off_grid |= select(point.is_on_grid, 0u32, comptime!(1u32 << group));
            let stays = comptime!(!rule.takes_all_again()) && is_last && off_grid & comptime!(1u32 << group) == 0;
            new[group] = select(stays, points[group], point.word);
            #[unroll]
            for i in 0..groups.len {
                let weight = weights[comptime!(first + i)];
                let q = number(new[group], i, levels.least, groups);
                sum_qx += product(weight * own.values[comptime!(first + i)], q);
                sum_q2 += product(weight * q, q);
            }
        }
        let is_better = sum_q2 > 0.0f32 && sum_qx * sum_qx > best * sum_q2;
        let again = comptime!(rule.ty == GgmlType::IQ2XXS) || off_grid != 0;
        if (is_last && scale > 0.0f32 && again) || (!is_last && is_better) {
            scale = select(sum_q2 > 0.0f32, sum_qx / sum_q2, scale);
            best = scale * sum_qx;
            off_grid = new_off_grid;
            #[unroll]
            for group in 0..count {
                points[group] = new[group];
            }
        }
    }
    (scale, points)
}
