//! Activations as int8 codes, in units of 32 with a scale each: by a launch of their own, or by the cube that multiplies.

use cubecl::client::Client;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::activations::{Activations, Strides, strides};
use super::dot::{Bytes, dot16};
use super::formats::{UNIT, Words};
use super::launch::{Grid, Parts, buffer, elementwise, has_planes};

/// int8 codes of activations, in units of 32 with a scale each.
pub struct Quantized {
    /// Two vectors of 16 codes a unit.
    pub codes: Handle,
    /// A vector a unit: the scale, the scale times the sum of all codes, the sums of the first and of the last 16 codes.
    pub sums: Handle,
    pub units: usize,
}

/// Quantizes each unit of 32 to the nearest of `x / d` with `d = max|x| / 127`, as llama.cpp and Candle do on GPUs.
///
/// A unit with a NaN or an infinity gets a NaN scale, so that its products are NaN.
pub fn quantize(client: &Client, x: &Activations) -> Quantized {
    let (tokens, k) = (x.tokens(), x.k());
    let units = k.div_ceil(UNIT);
    let parts = Parts::new(client, [tokens * units * UNIT, tokens * units * 16]);
    let (codes, sums) = (parts.handle(0), parts.handle(1));
    let pairs = has_planes(client);
    x.for_each_run(|first, run, base, batch| {
        let (count, dim, grid) = elementwise(client, run * units * if pairs { 2 } else { 1 });
        quantize_units::launch(
            client,
            count,
            dim,
            buffer(&x.handle, x.len),
            strides(x, base, batch),
            buffer(&codes, tokens * units * 2),
            buffer(&sums, tokens * units),
            grid,
            first * units,
            units,
            k,
            pairs,
            x.ty.elem(),
        );
    });
    Quantized { codes, sums, units }
}

/// A unit is the work of one lane, or of a pair of lanes that exchange what they know of its halves.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn quantize_units<X: Float>(
    x: &[X],
    strides: Strides,
    codes: &mut [Words],
    sums: &mut [Vector<f32, Const<4>>],
    grid: Grid,
    first_unit: usize,
    units: usize,
    k: usize,
    #[comptime] pairs: bool,
    #[define(X)] _dtype: ElemType,
) {
    let position = grid.unit();
    let inside = position < grid.len;
    // The lanes of a pair stay together: what is past the end repeats the last and stores nothing.
    let position = select(inside, position, grid.len - 1);
    if comptime!(pairs) {
        let (at, half) = (position / 2, position % 2);
        let values = load_half(x, strides, at / units, at % units * UNIT + half * 16, k);
        let (words, of_unit) = half_of_pair(&values, half);
        if inside {
            codes[2 * (first_unit + at) + half] = words;
            if half == 0 {
                sums[first_unit + at] = of_unit;
            }
        }
    } else if inside {
        let (token, column) = (position / units, position % units * UNIT);
        let low = load_half(x, strides, token, column, k);
        let high = load_half(x, strides, token, column + 16, k);
        let scale = Scale::of(max(largest(&low), largest(&high)));
        let (low, sum_low) = round(&low, scale.inverse);
        let (high, sum_high) = round(&high, scale.inverse);
        let unit = first_unit + position;
        codes[2 * unit] = low;
        codes[2 * unit + 1] = high;
        sums[unit] = of_unit(scale.scale, sum_low, sum_high);
    }
}

/// Half a unit's values from `column` on, zeros past `k`.
#[cube]
fn load_half<X: Float>(
    x: &[X],
    strides: Strides,
    token: usize,
    column: usize,
    k: usize,
) -> Sequence<Vector<f32, Const<4>>> {
    let mut values = Sequence::<Vector<f32, Const<4>>>::new();
    #[unroll]
    for group in 0..4usize {
        let mut four = Vector::<f32, Const<4>>::new(0.0f32);
        #[unroll]
        for i in 0..4usize {
            let column = column + comptime!(4 * group + i);
            if column < k {
                four.insert(i, f32::cast_from(x[strides.index(token, column)]));
            }
        }
        values.push(four);
    }
    values
}

/// Codes of `tokens` rows of activations in a cube's shared memory, as [`staged()`] places them.
///
/// Row `t` starts at vector `t * stride` of `x`; rows past the last repeat it.
#[cube]
#[allow(clippy::too_many_arguments)]
pub fn stage<X: Float>(
    x: &[Vector<X, Const<4>>],
    stride: usize,
    first_token: usize,
    all_tokens: usize,
    units: usize,
    codes: &mut [Words],
    sums: &mut [Vector<f32, Const<4>>],
    #[comptime] staging: Staging,
    #[comptime] lanes: usize,
) {
    let halves = comptime!(staging.tokens) * units * 2;
    let lane = UNIT_POS as usize;
    // All lanes take each turn, as pairs of them talk to each other.
    for turn in 0..halves.div_ceil(lanes) {
        let position = turn * lanes + lane;
        let inside = position < halves;
        let position = select(inside, position, halves - 1);
        let (at, half) = (position / 2, position % 2);
        let (token, unit) = if comptime!(staging.tokens == 1) { (0usize, at) } else { (at / units, at % units) };
        let row = first_token + token;
        let row = select(row < all_tokens, row, all_tokens - 1);
        let from = row * stride + unit * 8 + half * 4;
        let mut values = Sequence::<Vector<f32, Const<4>>>::new();
        #[unroll]
        for i in 0..4usize {
            values.push(Vector::<f32, Const<4>>::cast_from(x[from + i]));
        }
        let (words, of_unit) = half_of_pair(&values, half);
        if inside {
            let place = staged(token, unit / staging.span, unit % staging.span, staging);
            codes[place + half * comptime!(staging.tokens * staging.units)] = words;
            if half == 0 {
                sums[place] = of_unit;
            }
        }
    }
}

/// Room in shared memory for the codes of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Staging {
    /// Rows of activations.
    pub tokens: usize,
    /// Units of a row, a multiple of the span.
    pub units: usize,
    /// Units that a lane multiplies together.
    pub span: usize,
}

impl Staging {
    /// Bytes of shared memory.
    pub const fn bytes(self) -> usize {
        self.tokens * self.units * (UNIT + 16)
    }
}

/// Where the first codes and the sums of unit `place` of a span are: side by side for the lanes that read them at once,
/// which have neighbouring spans. The last codes of all units come after the first of all.
#[cube]
pub fn staged(token: usize, span: usize, place: usize, #[comptime] staging: Staging) -> usize {
    token * comptime!(staging.units) + place * comptime!(staging.units / staging.span) + span
}

/// The codes of a half unit, and what [`Quantized::sums`] has of the unit, from two neighbouring lanes with a half each.
#[cube]
fn half_of_pair(values: &Sequence<Vector<f32, Const<4>>>, half: usize) -> (Words, Vector<f32, Const<4>>) {
    let mine = largest(values);
    let scale = Scale::of(max(mine, plane_shuffle_xor(mine, 1u32)));
    let (words, sum) = round(values, scale.inverse);
    let other = plane_shuffle_xor(sum, 1u32);
    (words, of_unit(scale.scale, select(half == 0, sum, other), select(half == 0, other, sum)))
}

/// The bits of the largest magnitude: past those of any number where there is a NaN or an infinity. An optimizer may take a
/// comparison of floats to mean that there is no NaN.
#[cube]
fn largest(values: &Sequence<Vector<f32, Const<4>>>) -> u32 {
    let mut largest = 0u32;
    #[unroll]
    for group in 0..4usize {
        let bits = Words::reinterpret(*values.index(group)) & Words::new(0x7fff_ffffu32);
        #[unroll]
        for i in 0..4usize {
            largest = max(largest, bits.extract(i));
        }
    }
    largest
}

/// A unit's scale and what its values are multiplied by before they are rounded.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
struct Scale {
    scale: f32,
    inverse: f32,
}

#[cube]
impl Scale {
    /// By the bits of the largest magnitude. A scale too small for an inverse makes all codes zeros.
    fn of(largest: u32) -> Scale {
        let value = f32::reinterpret(largest);
        Scale {
            scale: select(largest < 0x7f80_0000, value / 127.0f32, f32::reinterpret(0x7fc0_0000u32)),
            inverse: select(largest > 0x0300_0000, 127.0f32 / value, 0.0f32),
        }
    }
}

/// Values times `inverse` as codes, and the sum of these.
#[cube]
fn round(values: &Sequence<Vector<f32, Const<4>>>, inverse: f32) -> (Words, i32) {
    let mut words = Words::empty();
    #[unroll]
    for group in 0..4usize {
        // Added to 1.5 * 2^23, a small number leaves its nearest integer in the low bits.
        let near = *values.index(group) * Vector::new(inverse) + Vector::new(12_582_912.0f32);
        let bytes = Words::reinterpret(near) & Words::new(0xffu32);
        let low = bytes.extract(0usize) | (bytes.extract(1usize) << 8);
        let high = bytes.extract(2usize) | (bytes.extract(3usize) << 8);
        words.insert(group, low | (high << 16));
    }
    (words, dot16(Words::new(0x0101_0101u32), words, 0i32, Bytes::Signed))
}

/// What [`Quantized::sums`] has of a unit.
#[cube]
fn of_unit(scale: f32, sum_low: i32, sum_high: i32) -> Vector<f32, Const<4>> {
    let mut out = Vector::<f32, Const<4>>::empty();
    out.insert(0usize, scale);
    out.insert(1usize, scale * f32::cast_from(sum_low + sum_high));
    out.insert(2usize, f32::cast_from(sum_low));
    out.insert(3usize, f32::cast_from(sum_high));
    out
}
