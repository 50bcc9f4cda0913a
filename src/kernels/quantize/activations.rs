//! Activations as int8 codes, in units of 32 with a scale each, by a launch of its own.

use cubecl::client::Client;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::codes::{SHARERS, Scale, codes_of_part, largest_of, of_unit, round};
use crate::kernels::activations::{Activations, Strides, strides};
use crate::kernels::arch::dot::sum4;
use crate::kernels::formats::UNIT;
use crate::kernels::launch::{Grid, Parts, buffer, elementwise, has_planes};

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
