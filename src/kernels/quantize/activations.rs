//! Activations as int8 codes, in chunks of 32 with a scale each, by a launch of its own.

use cubecl::client::Client;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::codes::{SHARERS, Scale, codes_of_part, largest_of, of_chunk, round};
use crate::kernels::activations::{Activations, Tokens};
use crate::kernels::arch::dot::sum4;
use crate::kernels::formats::CHUNK;
use crate::kernels::launch::{Suballocation, buffer, elementwise, plane};

/// int8 codes of activations, in chunks of 32 with a scale each.
pub struct Quantized {
    /// Two vectors of 16 codes a chunk.
    pub codes: Handle,
    /// A vector a chunk: the scale, the scale times the sum of all codes, the sums of the first and of the last 16
    /// codes.
    pub scales: Handle,
}

/// Quantizes each chunk to the integers nearest to `x / d` with the scale `d = max|x| / 127`, as llama.cpp and Candle
/// do on GPUs.
///
/// A chunk with a NaN or an infinity gets a NaN scale, so that its products are NaN.
pub fn quantize(client: &Client, x: &Activations) -> Quantized {
    let (tokens, k) = (x.tokens(), x.k());
    let chunks = k.div_ceil(CHUNK);
    let parts = Suballocation::new(client, [tokens * chunks * CHUNK, tokens * chunks * 16]);
    let (codes, scales) = (parts.handle(0), parts.handle(1));
    let shared = shares_chunks(plane(client), SHARERS as u32);
    x.for_each_run(|run| {
        let (count, dim, grid) = elementwise(client, run.tokens * chunks * if shared { SHARERS } else { 1 });
        quantize_chunks::launch(
            client,
            count,
            dim,
            buffer(x.handle(), x.ty().bytes()),
            buffer(&codes, 4),
            buffer(&scales, 16),
            run.arg(grid),
            shared,
            x.ty().elem(),
        );
    });
    Quantized { codes, scales }
}

/// Whether lanes of a plane share chunks, up to [`SHARERS`] of them each, in a cube of `lanes` units.
pub fn shares_chunks(plane: Option<u32>, lanes: u32) -> bool {
    plane.is_some_and(|plane| lanes.min(plane).is_multiple_of(SHARERS as u32))
}

/// A chunk is the work of one lane, or of [`SHARERS`].
#[cube(launch)]
fn quantize_chunks<X: Float>(
    x: &[X],
    codes: &mut [u32],
    scales: &mut [Vector<f32, Const<4>>],
    tokens: Tokens,
    #[comptime] shared: bool,
    #[define(X)] _dtype: ElemType,
) {
    let position = tokens.grid.unit();
    let inside = position < tokens.grid.len;
    // All lanes that share a chunk take part in its shuffles: those past the end repeat the last and store nothing.
    let position = select(inside, position, tokens.grid.len - 1);
    let chunks = tokens.chunks();
    let first_chunk = tokens.first * chunks;
    if comptime!(shared) {
        let (at, part) = (position / SHARERS, position % SHARERS);
        let mut values = Sequence::<Vector<f32, Const<4>>>::new();
        values.push(load_four(x, tokens, at / chunks, at % chunks * CHUNK + part * 4));
        let (coded, of_chunk) = codes_of_part(&values, SHARERS);
        if inside {
            codes[(first_chunk + at) * SHARERS + part] = *coded.index(0usize);
            if part == 0 {
                scales[first_chunk + at] = of_chunk;
            }
        }
    } else if inside {
        let (token, column) = (position / chunks, position % chunks * CHUNK);
        let mut values = Sequence::<Vector<f32, Const<4>>>::new();
        let mut largest = 0u32;
        #[unroll]
        for part in 0..SHARERS {
            values.push(load_four(x, tokens, token, column + part * 4));
            largest = max(largest, largest_of(*values.index(part)));
        }
        let scale = Scale::of(largest);
        let chunk = first_chunk + position;
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
            codes[chunk * SHARERS + part] = word;
        }
        scales[chunk] = of_chunk(scale.scale, sum_low, sum_high);
    }
}

/// Four of a token's values from `column` on, zeros past the last.
#[cube]
fn load_four<X: Float>(x: &[X], tokens: Tokens, token: usize, column: usize) -> Vector<f32, Const<4>> {
    let mut four = Vector::<f32, Const<4>>::new(0.0f32);
    #[unroll]
    for i in 0..4usize {
        if column + i < tokens.k {
            four.insert(i, f32::cast_from(x[tokens.index(token, column + i)]));
        }
    }
    four
}
