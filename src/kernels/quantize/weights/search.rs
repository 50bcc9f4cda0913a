//! The searches of scales, step by step those of ggml (`make_qkx2_quants`, `make_qkx3_quants`, `make_qx_quants`, `make_q3_quants` and
//! `make_qp_quants` in `ggml/src/ggml-quants.c`): scales around the obvious one are tried, each with the best scale for the codes
//! that it gives, and the one with the least error is kept.

use cubecl::prelude::*;

use super::codes::zeros;
use super::rounding::{nearest, product};

/// A sub-block's scale, its min with the sign turned, and its codes, four a word.
#[derive(CubeType)]
pub struct Found {
    pub scale: f32,
    pub min: f32,
    pub codes: Array<u32>,
}

/// A search of scale and min.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Steps {
    /// Values of the sub-block.
    pub len: usize,
    /// The greatest code.
    pub most: u32,
    /// What the first step adds to the greatest code, in hundredths.
    pub first: i32,
    /// What each step adds to the one before, likewise.
    pub up: i32,
    /// Number of the last step.
    pub last: usize,
    /// Whether errors are weighted as they are, not squared.
    pub absolute: bool,
}

/// Below this a sub-block is zeros, by ggml's `GROUP_MAX_EPS`.
pub const LEAST: f32 = 1e-15;

/// The best scale and min, by weights of the errors.
#[cube]
pub fn with_min(x: &Array<f32>, weights: &Array<f32>, #[comptime] steps: Steps) -> Found {
    let len = comptime!(steps.len);
    let (mut least, mut greatest) = (x[0], x[0]);
    let mut sum_w = weights[0];
    let mut sum_x = product(weights[0], x[0]);
    #[unroll]
    for i in 1..len {
        least = min(least, x[i]);
        greatest = max(greatest, x[i]);
        sum_w += weights[i];
        sum_x += product(weights[i], x[i]);
    }
    least = min(least, 0.0f32);
    let is_flat = greatest == least;
    let mut best = zeros(comptime!(len / 4));
    let mut lowest = least;
    let most = comptime!(steps.most as f32).runtime();
    let inverse = most / (greatest - lowest);
    let mut scale = 1.0f32 / inverse;
    let mut best_error = 0.0f32;
    #[unroll]
    for i in 0..len {
        let code = code_of(inverse * (x[i] - lowest), comptime!(steps.most));
        put(&mut best, i, u32::cast_from(code));
        best_error += product(weights[i], error(product(scale, code) + lowest - x[i], steps));
    }
    for step in 0..comptime!(steps.last + 1) {
        let up = product(comptime!(steps.up as f32 / 100.0).runtime(), f32::cast_from(step));
        let more = comptime!(steps.first as f32 / 100.0).runtime() + up;
        let inverse = (more + most) / (greatest - lowest);
        let mut codes = zeros(comptime!(len / 4));
        let mut sum_l = 0.0f32;
        let mut sum_l2 = 0.0f32;
        let mut sum_xl = 0.0f32;
        #[unroll]
        for i in 0..len {
            let code = code_of(inverse * (x[i] - lowest), comptime!(steps.most));
            put(&mut codes, i, u32::cast_from(code));
            let weighted = product(weights[i], code);
            sum_l += weighted;
            sum_l2 += product(weighted, code);
            sum_xl += product(weighted, x[i]);
        }
        let determinant = product(sum_w, sum_l2) - product(sum_l, sum_l);
        if determinant > 0.0f32 {
            let fitted = (product(sum_l2, sum_x) - product(sum_l, sum_xl)) / determinant;
            let has_min = fitted <= 0.0f32;
            let this_min = select(has_min, fitted, 0.0f32);
            let this_scale =
                select(has_min, (product(sum_w, sum_xl) - product(sum_x, sum_l)) / determinant, sum_xl / sum_l2);
            let mut this_error = 0.0f32;
            #[unroll]
            for i in 0..len {
                let code = f32::cast_from(code_at(&codes, i));
                this_error += product(weights[i], error(product(this_scale, code) + this_min - x[i], steps));
            }
            if this_error < best_error {
                #[unroll]
                for word in 0..comptime!(len / 4) {
                    best[word] = codes[word];
                }
                best_error = this_error;
                scale = this_scale;
                lowest = this_min;
            }
        }
    }
    #[unroll]
    for word in 0..comptime!(len / 4) {
        best[word] = select(is_flat, 0u32, best[word]);
    }
    Found { scale: select(is_flat, 0.0f32, scale), min: select(is_flat, 0.0f32 - least, 0.0f32 - lowest), codes: best }
}

/// The best scale of codes from `-half` to `half - 1`, to which `half` is added, by weights of the errors.
#[cube]
pub fn symmetric(x: &Array<f32>, weights: &Array<f32>, #[comptime] len: usize, #[comptime] half: i32) -> Found {
    let extreme = extreme_of(x, len);
    let mut best = zeros(comptime!(len / 4));
    let mut scale = 0.0f32;
    let mut best_product = 0.0f32;
    let most = comptime!(half as f32).runtime();
    // The first is the obvious one, then those from nine tenths below it to nine above.
    for step in 0..20u32 {
        let tenths = select(step == 0, 0.0f32, product(0.1f32, f32::cast_from(step) - 10.0f32));
        let inverse = (0.0f32 - (most + tenths)) / extreme;
        let mut codes = zeros(comptime!(len / 4));
        let mut sum_xl = 0.0f32;
        let mut sum_l2 = 0.0f32;
        #[unroll]
        for i in 0..len {
            let code = signed_code(inverse * x[i], half);
            put(&mut codes, i, u32::cast_from(code + half));
            let code = f32::cast_from(code);
            sum_xl += product(weights[i] * x[i], code);
            sum_l2 += product(weights[i] * code, code);
        }
        let is_better = step != 10 && sum_l2 > 0.0f32 && sum_xl * sum_xl > best_product * sum_l2;
        if step == 0 || is_better {
            #[unroll]
            for word in 0..comptime!(len / 4) {
                best[word] = codes[word];
            }
            scale = select(sum_l2 == 0.0f32, 0.0f32, sum_xl / sum_l2);
            best_product = scale * sum_xl;
        }
    }
    unless_zeros(extreme, scale, best, len)
}

/// The best scale of codes from `-half` to `half - 1`, to which `half` is added: code by code, whichever lowers the error, in five
/// rounds, by weights of the errors.
#[cube]
pub fn by_single_codes(x: &Array<f32>, weights: &Array<f32>, #[comptime] len: usize, #[comptime] half: i32) -> Found {
    let extreme = extreme_of(x, len);
    let inverse = comptime!(-half as f32).runtime() / extreme;
    let mut codes = Array::<i32>::new(len);
    let mut sum_xl = 0.0f32;
    let mut sum_l2 = 0.0f32;
    #[unroll]
    for i in 0..len {
        codes[i] = signed_code(inverse * x[i], half);
        let code = f32::cast_from(codes[i]);
        sum_xl += product(weights[i] * x[i], code);
        sum_l2 += product(weights[i] * code, code);
    }
    for _ in 0..5u32 {
        #[unroll]
        for i in 0..len {
            let old = f32::cast_from(codes[i]);
            let mut others_xl = sum_xl - product(weights[i] * x[i], old);
            if others_xl > 0.0f32 {
                let mut others_l2 = sum_l2 - product(weights[i] * old, old);
                let new = signed_code(x[i] * others_l2 / others_xl, half);
                if new != codes[i] {
                    let code = f32::cast_from(new);
                    others_xl += product(weights[i] * x[i], code);
                    others_l2 += product(weights[i] * code, code);
                    if others_l2 > 0.0f32 && others_xl * others_xl * sum_l2 > sum_xl * sum_xl * others_l2 {
                        codes[i] = new;
                        sum_xl = others_xl;
                        sum_l2 = others_l2;
                    }
                }
            }
        }
    }
    let mut packed = zeros(comptime!(len / 4));
    #[unroll]
    for i in 0..len {
        put(&mut packed, i, u32::cast_from(codes[i] + half));
    }
    unless_zeros(extreme, select(sum_l2 > 0.0f32, sum_xl / sum_l2, 0.0f32), packed, len)
}

/// The best scale of codes from 0 to `most` of nonnegative numbers, by weights of the errors, and the codes. The codes of numbers
/// below 0 are bytes that wrap, as in ggml.
#[cube]
pub fn positive(
    x: &Array<f32>,
    weights: &Array<f32>,
    #[comptime] len: usize,
    #[comptime] most: i32,
) -> (f32, Array<i32>) {
    let mut greatest = 0.0f32;
    #[unroll]
    for i in 0..len {
        greatest = max(greatest, x[i]);
    }
    let is_zero = greatest < comptime!(LEAST);
    let top = comptime!(most as f32).runtime();
    let mut inverse = top / greatest;
    let mut best_error = 0.0f32;
    // The first is the obvious one, then those from four tenths below it to four above.
    for step in 0..10u32 {
        let tenths = select(step == 0, 0.0f32, product(0.1f32, f32::cast_from(step) - 5.0f32));
        let this_inverse = (tenths + top) / greatest;
        let this_scale = 1.0f32 / this_inverse;
        let mut this_error = 0.0f32;
        #[unroll]
        for i in 0..len {
            let code = min(nearest(this_inverse * x[i]), most);
            let code = f32::cast_from(select(step == 0, code & 0xff, code));
            let difference = x[i] - product(this_scale, code);
            this_error += product(weights[i] * difference, difference);
        }
        if step == 0 || step != 5 && this_error < best_error {
            best_error = this_error;
            inverse = this_inverse;
        }
    }
    let mut codes = Array::<i32>::new(len);
    let mut sum_xl = 0.0f32;
    let mut sum_l2 = 0.0f32;
    #[unroll]
    for i in 0..len {
        let nearest = min(nearest(inverse * x[i]), most);
        codes[i] = nearest & 0xff;
        let code = f32::cast_from(nearest);
        sum_xl += product(weights[i] * x[i], code);
        sum_l2 += product(weights[i] * code, code);
    }
    for _ in 0..5u32 {
        #[unroll]
        for i in 0..len {
            let old = f32::cast_from(codes[i]);
            let mut others_xl = sum_xl - product(weights[i] * x[i], old);
            let mut others_l2 = sum_l2 - product(weights[i] * old, old);
            if others_xl > 0.0f32 && others_l2 > 0.0f32 {
                let new = min(nearest(x[i] * others_l2 / others_xl), most);
                if new != codes[i] {
                    let code = f32::cast_from(new);
                    others_xl += product(weights[i] * x[i], code);
                    others_l2 += product(weights[i] * code, code);
                    if others_xl * others_xl * sum_l2 > sum_xl * sum_xl * others_l2 {
                        codes[i] = new & 0xff;
                        sum_xl = others_xl;
                        sum_l2 = others_l2;
                    }
                }
            }
        }
    }
    #[unroll]
    for i in 0..len {
        codes[i] = select(is_zero, 0i32, codes[i]);
    }
    let scale = select(sum_l2 > 0.0f32, sum_xl / sum_l2, 0.0f32);
    (select(is_zero, 0.0f32, scale), codes)
}

/// What was found; nothing where the value of the largest magnitude is as good as zero.
#[cube]
fn unless_zeros(extreme: f32, scale: f32, codes: Array<u32>, #[comptime] len: usize) -> Found {
    let mut codes = codes;
    let is_zero = f32::abs(extreme) < comptime!(LEAST);
    #[unroll]
    for word in 0..comptime!(len / 4) {
        codes[word] = select(is_zero, 0u32, codes[word]);
    }
    Found { scale: select(is_zero, 0.0f32, scale), min: 0.0f32.runtime(), codes }
}

/// The value of the largest magnitude, the first of several.
#[cube]
pub fn extreme_of(x: &Array<f32>, #[comptime] len: usize) -> f32 {
    let mut largest = 0.0f32;
    let mut extreme = 0.0f32;
    #[unroll]
    for i in 0..len {
        let magnitude = f32::abs(x[i]);
        extreme = select(magnitude > largest, x[i], extreme);
        largest = max(largest, magnitude);
    }
    extreme
}

/// An error as it is weighted.
#[cube]
fn error(difference: f32, #[comptime] steps: Steps) -> f32 {
    if comptime!(steps.absolute) { f32::abs(difference) } else { difference * difference }
}

/// The nearest code from 0 to `most`, as a float.
#[cube]
fn code_of(number: f32, #[comptime] most: u32) -> f32 {
    f32::cast_from(clamp(nearest(number), 0i32, comptime!(most as i32)))
}

/// The nearest code from `-half` to `half - 1`.
#[cube]
fn signed_code(number: f32, #[comptime] half: i32) -> i32 {
    clamp(nearest(number), comptime!(-half), comptime!(half - 1))
}

/// Adds code `i`, a byte.
#[cube]
fn put(codes: &mut Array<u32>, #[comptime] i: usize, code: u32) {
    codes[comptime!(i / 4)] |= code << comptime!((8 * (i % 4)) as u32);
}

/// Code `i`.
#[cube]
pub fn code_at(codes: &Array<u32>, #[comptime] i: usize) -> u32 {
    (codes[comptime!(i / 4)] >> comptime!((8 * (i % 4)) as u32)) & 0xff
}
