//! Activations as int8 codes, in units of 32 with a scale each: by a launch of their own, or by the cube that multiplies.

use cubecl::client::Client;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::activations::{Activations, Strides, strides};
use super::dot::sum4;
use super::formats::{UNIT, Words};
use super::launch::{Grid, Parts, buffer, elementwise, has_planes};
use super::target::{low_bytes, reciprocal};

/// int8 codes of activations, in units of 32 with a scale each.
pub struct Quantized {
    /// Two vectors of 16 codes a unit.
    pub codes: Handle,
    /// A vector a unit: the scale, the scale times the sum of all codes, the sums of the first and of the last 16 codes.
    pub sums: Handle,
}

/// Quantizes each unit of 32 to the nearest of `x / d` with `d = max|x| / 127`, as llama.cpp and Candle do on GPUs.
///
/// A unit with a NaN or an infinity gets a NaN scale, so that its products are NaN.
pub fn quantize(client: &Client, x: &Activations) -> Quantized {
    let (tokens, k) = (x.tokens(), x.k());
    let units = k.div_ceil(UNIT);
    let parts = Parts::new(client, [tokens * units * UNIT, tokens * units * 16]);
    let (codes, sums) = (parts.handle(0), parts.handle(1));
    let shared = shares_units(client, SHARERS as u32);
    x.for_each_run(|first, run, base, batch| {
        let (count, dim, grid) = elementwise(client, run * units * if shared { SHARERS } else { 1 });
        quantize_units::launch(
            client,
            count,
            dim,
            buffer(x.handle(), x.ty().bytes()),
            strides(x, base, batch),
            buffer(&codes, 4),
            buffer(&sums, 16),
            grid,
            first * units,
            units,
            k,
            shared,
            x.ty().elem(),
        );
    });
    Quantized { codes, sums }
}

/// Lanes that share a unit where they can talk to each other, with four values each.
const SHARERS: usize = UNIT / 4;

/// Whether lanes of the device share units, in a cube of so many lanes.
pub fn shares_units(client: &Client, lanes: u32) -> bool {
    has_planes(client) && lanes.min(client.properties().hardware.plane_size_max).is_multiple_of(SHARERS as u32)
}

/// A unit is the work of one lane, or of [`SHARERS`].
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn quantize_units<X: Float>(
    x: &[X],
    strides: Strides,
    codes: &mut [u32],
    sums: &mut [Vector<f32, Const<4>>],
    grid: Grid,
    first_unit: usize,
    units: usize,
    k: usize,
    #[comptime] shared: bool,
    #[define(X)] _dtype: ElemType,
) {
    let position = grid.unit();
    let inside = position < grid.len;
    // Lanes that share a unit stay together: what is past the end repeats the last and stores nothing.
    let position = select(inside, position, grid.len - 1);
    if comptime!(shared) {
        let (at, part) = (position / SHARERS, position % SHARERS);
        let mut values = Sequence::<Vector<f32, Const<4>>>::new();
        values.push(load_four(x, strides, at / units, at % units * UNIT + part * 4, k));
        let (coded, of_unit) = codes_of_part(&values, SHARERS);
        if inside {
            codes[(first_unit + at) * SHARERS + part] = *coded.index(0usize);
            if part == 0 {
                sums[first_unit + at] = of_unit;
            }
        }
    } else if inside {
        let (token, column) = (position / units, position % units * UNIT);
        let mut values = Sequence::<Vector<f32, Const<4>>>::new();
        let mut largest = 0u32;
        #[unroll]
        for part in 0..SHARERS {
            values.push(load_four(x, strides, token, column + part * 4, k));
            largest = max(largest, largest_of(*values.index(part)));
        }
        let scale = Scale::of(largest);
        let unit = first_unit + position;
        let mut sum_low = 0i32;
        let mut sum_high = 0i32;
        #[unroll]
        for part in 0..SHARERS {
            let word = round(*values.index(part), scale.inverse);
            if comptime!(part < SHARERS / 2) {
                sum_low += sum4(word);
            } else {
                sum_high += sum4(word);
            }
            codes[unit * SHARERS + part] = word;
        }
        sums[unit] = of_unit(scale.scale, sum_low, sum_high);
    }
}

/// Four of a token's values from `column` on, zeros past `k`.
#[cube]
fn load_four<X: Float>(x: &[X], strides: Strides, token: usize, column: usize, k: usize) -> Vector<f32, Const<4>> {
    let mut four = Vector::<f32, Const<4>>::new(0.0f32);
    #[unroll]
    for i in 0..4usize {
        if column + i < k {
            four.insert(i, f32::cast_from(x[strides.index(token, column + i)]));
        }
    }
    four
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
    let fours = comptime!(staging.fours(lanes));
    let (parts, row_parts) = comptime!((SHARERS / fours, staging.units * SHARERS / fours));
    let all = comptime!(staging.tokens * row_parts);
    let at_once = comptime!((LOADED_FOURS / fours).min(all.div_ceil(lanes)));
    // All lanes take each turn, as those of a unit talk to each other.
    for first in range_stepped(0usize, all, comptime!(at_once * lanes)) {
        // All loads come before the first that is waited for.
        let mut loaded = Sequence::<Sequence<Vector<f32, Const<4>>>>::new();
        #[unroll]
        for turn in 0..at_once {
            let position = first + comptime!(turn * lanes) + UNIT_POS as usize;
            let (token, at) = (first_token + position / row_parts, position % row_parts * fours);
            let token = select(token < all_tokens, token, all_tokens - 1);
            let at = select(at < units * SHARERS, at, 0);
            let mut values = Sequence::<Vector<f32, Const<4>>>::new();
            #[unroll]
            for i in 0..fours {
                values.push(Vector::<f32, Const<4>>::cast_from(x[token * stride + at + i]));
            }
            loaded.push(values);
        }
        #[unroll]
        for turn in 0..at_once {
            let first = first + comptime!(turn * lanes);
            if comptime!(turn == 0) || first < all {
                let position = first + UNIT_POS as usize;
                let (token, at) = (position / row_parts, position % row_parts);
                let (unit, part) = (at / parts, at % parts);
                let (coded, of_unit) = codes_of_part(loaded.index(turn), parts);
                if position < all && unit < units {
                    let place = staged(token, unit / staging.span, unit % staging.span, staging);
                    let (half, four) = (part / comptime!(parts / 2), part % comptime!(parts / 2) * fours);
                    store(codes, place + half * comptime!(staging.vectors()), four, &coded);
                    if part == 0 {
                        sums[place] = of_unit;
                    }
                }
            }
        }
    }
}

/// Stores words of a vector from word `first` on.
#[cube]
fn store(vectors: &mut [Words], index: usize, first: usize, words: &Sequence<u32>) {
    let count = words.len();
    if comptime!(count == 4) {
        let mut vector = Words::empty();
        #[unroll]
        for i in 0..count {
            vector.insert(i, *words.index(i));
        }
        vectors[index] = vector;
    } else {
        let single = vectors.with_vector_size_mut::<Const<1>>();
        #[unroll]
        for i in 0..count {
            single[4 * index + first + i] = Vector::new(*words.index(i));
        }
    }
}

/// Vectors of four activations that a lane has under way while it stages.
const LOADED_FOURS: usize = 8;

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
        self.vectors() * (UNIT + 16)
    }

    /// Vectors that the sums of all units take, and either half of their codes.
    pub const fn vectors(self) -> usize {
        self.tokens * self.stride()
    }

    /// Vectors of four values that each of a cube's lanes takes together, up to half a unit: as few as leave no lane idle.
    fn fours(self, lanes: usize) -> usize {
        let fours = self.tokens * self.units * SHARERS / lanes;
        if fours < 2 { 1 } else { fours.min(4).next_multiple_of(2) }
    }

    /// Vectors from one token to the next: with the same unit of two tokens in different banks.
    const fn stride(self) -> usize {
        if self.tokens > 1 { self.units + 4 } else { self.units }
    }
}

/// Where the first codes and the sums of unit `place` of a span are: side by side for the lanes that read them at once,
/// which have neighbouring spans. The last codes of all units come after the first of all.
#[cube]
pub fn staged(token: usize, span: usize, place: usize, #[comptime] staging: Staging) -> usize {
    token * comptime!(staging.stride()) + place * comptime!(staging.units / staging.span) + span
}

/// The codes of a lane's part of a unit, four values a word, and in the first of the `parts` lanes that share the unit what
/// [`Quantized::sums`] has of it.
#[cube]
fn codes_of_part(
    values: &Sequence<Vector<f32, Const<4>>>,
    #[comptime] parts: usize,
) -> (Sequence<u32>, Vector<f32, Const<4>>) {
    let fours = values.len();
    let mut largest = 0u32;
    #[unroll]
    for i in 0..fours {
        largest = max(largest, largest_of(*values.index(i)));
    }
    #[unroll]
    for step in 0..comptime!(parts.ilog2()) {
        largest = max(largest, plane_shuffle_xor(largest, comptime!(1u32 << step)));
    }
    let scale = Scale::of(largest);
    let mut codes = Sequence::<u32>::new();
    let mut sum = 0i32;
    #[unroll]
    for i in 0..fours {
        let word = round(*values.index(i), scale.inverse);
        sum += sum4(word);
        codes.push(word);
    }
    // Half of the lanes have either half of the unit.
    let half = comptime!(parts.ilog2() - 1);
    #[unroll]
    for step in 0..half {
        sum += plane_shuffle_xor(sum, comptime!(1u32 << step));
    }
    (codes, of_unit(scale.scale, sum, plane_shuffle_xor(sum, comptime!(1u32 << half))))
}

/// The bits of the largest magnitude: past those of any number where there is a NaN or an infinity. An optimizer may take a
/// comparison of floats to mean that there is no NaN.
#[cube]
fn largest_of(values: Vector<f32, Const<4>>) -> u32 {
    let bits = Words::reinterpret(values) & Words::new(0x7fff_ffffu32);
    max(max(bits.extract(0usize), bits.extract(1usize)), max(bits.extract(2usize), bits.extract(3usize)))
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
            scale: select(largest < 0x7f80_0000, value * comptime!(1.0f32 / 127.0), f32::reinterpret(0x7fc0_0000u32)),
            inverse: select(largest > 0x0300_0000, 127.0f32 * reciprocal(value), 0.0f32),
        }
    }
}

/// Four values times `inverse` as codes.
#[cube]
fn round(values: Vector<f32, Const<4>>, inverse: f32) -> u32 {
    // Added to 1.5 * 2^23, a small number leaves its nearest integer in the low bits.
    low_bytes(Words::reinterpret(values * Vector::new(inverse) + Vector::new(12_582_912.0f32)))
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
