//! Q8_K: bytes by the value of the largest magnitude, and their sums.

use cubecl::prelude::*;

use super::chunks::{CHUNKS, ChunkAt};
use super::codes::{bytes_of, zeros};
use super::rounding::{floats_at, load, nearest, product};
use super::search::extreme_of;
use super::super_rule::Shares;
use crate::kernels::vector::Words;

/// Quantizes a chunk, which is chunk `index` of the cube; the first of a super-block also stores its scale.
#[cube]
pub fn quantize_bytes<X: Float>(
    x: &[Vector<X, Const<4>>],
    out: &mut [Words],
    at: ChunkAt,
    shares: &Shares<'_>,
    index: usize,
) {
    let extreme = extreme_of(&floats_at(shares.scales, index / CHUNKS * CHUNKS, CHUNKS), CHUNKS);
    // Below it the scale has no inverse, and bytes of ggml's are of no use.
    let is_zero = f32::abs(extreme) < comptime!(127.0 * f32::MIN_POSITIVE);
    let factor = -127.0f32 / extreme;
    let mut words = zeros(8usize);
    let mut sums = zeros(2usize);
    #[unroll]
    for four in 0..8usize {
        let values = load::<X>(x, at.first + at.chunk * 8 + four);
        let mut bytes = Words::empty();
        #[unroll]
        for i in 0..4usize {
            let code = select(is_zero, 0i32, min(nearest(product(factor, values.extract(i))), 127i32));
            sums[comptime!(four / 4)] += u32::cast_from(code);
            bytes.insert(i, u32::cast_from(code) & 0xff);
        }
        words[four] = bytes_of(bytes);
    }
    let chunk = at.block * CHUNKS + at.chunk;
    at.destination.store_chunk(out, 0usize, at.row, chunk, &words, 8usize);
    at.destination.store(out, 2usize, at.row, chunk, (sums[0] & 0xffff) | (sums[1] << 16));
    if at.chunk == 0 {
        let scale = select(is_zero, 0.0f32, 1.0f32 / factor);
        at.destination.store(out, 1usize, at.row, at.block, u32::reinterpret(scale));
    }
}
