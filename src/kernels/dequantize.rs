//! Weights to floats: a whole range of rows, or the rows that a list of ids names (an embedding).

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::floats::{FloatType, pack_two};
use super::formats::{At, CHUNK, MatrixView, traits, values};
use super::launch::{Grid, buffer, elementwise};
use super::vector::Words;
use super::weights::Weights;
use crate::gguf::GgmlType;

/// Rows `first..first + rows` of `weights` as contiguous `[rows, k]` floats. The range must lie in the matrix.
pub fn dequantize(client: &Client, weights: &Weights, first: usize, rows: usize, to: FloatType) -> Handle {
    decode(client, weights, None, first, rows, to)
}

/// The rows of `weights` that the u32 `ids` on the device name, as contiguous `[ids, k]` floats.
///
/// The ids must have been checked against the rows: a kernel cannot return an error.
pub fn rows(client: &Client, weights: &Weights, ids: &Handle, count: usize, to: FloatType) -> Handle {
    decode(client, weights, Some(ids), 0, count, to)
}

fn decode(
    client: &Client,
    weights: &Weights,
    ids: Option<&Handle>,
    first: usize,
    rows: usize,
    to: FloatType,
) -> Handle {
    let k = weights.k();
    let words = (rows * k * to.bytes()).div_ceil(4).next_multiple_of(4);
    let out = client.empty(4 * words.max(4));
    let gather = ids.is_some() as u32;
    let ids = ids.unwrap_or(&weights.codebook);
    if k.is_multiple_of(CHUNK) {
        let (count, dim, grid) = elementwise(client, rows * k / CHUNK);
        decode_chunks::launch(
            client,
            count,
            dim,
            weights.view(),
            buffer(ids, 4),
            buffer(&out, 16),
            grid,
            first,
            k / CHUNK,
            gather,
            weights.ty(),
            to,
        );
    } else {
        let (count, dim, grid) = elementwise(client, words);
        decode_ragged::launch(
            client,
            count,
            dim,
            weights.view(),
            buffer(ids, 4),
            buffer(&out, 4),
            grid,
            first,
            rows,
            k,
            gather,
            weights.ty(),
            to,
        );
    }
    out
}

/// The row of the matrix behind row `row` of the output: the one that its id names where `gather` is 1.
#[cube]
fn source_row(ids: &[u32], first: usize, row: usize, gather: u32) -> usize {
    let mut source = first + row;
    if gather == 1 {
        source = usize::cast_from(ids[row]);
    }
    source
}

/// 32 values a unit; rows are whole chunks, so that every store is 16 bytes.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn decode_chunks(
    view: &MatrixView,
    ids: &[u32],
    out: &mut [Words],
    grid: Grid,
    first: usize,
    chunks_per_row: usize,
    gather: u32,
    #[comptime] ty: GgmlType,
    #[comptime] to: FloatType,
) {
    let position = grid.unit();
    if position >= grid.len {
        terminate!();
    }
    let row = source_row(ids, first, position / chunks_per_row, gather);
    let values = values(view, &view.codebook, At::chunk(row, position % chunks_per_row), ty);
    if comptime!(to == FloatType::F32) {
        #[unroll]
        for i in 0..8usize {
            out[8 * position + i] = Words::reinterpret(*values.index(i));
        }
    } else {
        #[unroll]
        for i in 0..4usize {
            let front = *values.index(comptime!(2 * i));
            let back = *values.index(comptime!(2 * i + 1));
            let mut words = Words::empty();
            words.insert(0usize, pack_two(front.extract(0usize), front.extract(1usize), to));
            words.insert(1usize, pack_two(front.extract(2usize), front.extract(3usize), to));
            words.insert(2usize, pack_two(back.extract(0usize), back.extract(1usize), to));
            words.insert(3usize, pack_two(back.extract(2usize), back.extract(3usize), to));
            out[4 * position + i] = words;
        }
    }
}

/// One word of output a unit, for dense rows that end inside a chunk.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn decode_ragged(
    view: &MatrixView,
    ids: &[u32],
    out: &mut [u32],
    grid: Grid,
    first: usize,
    rows: usize,
    k: usize,
    gather: u32,
    #[comptime] ty: GgmlType,
    #[comptime] to: FloatType,
) {
    let position = grid.unit();
    if position >= grid.len {
        terminate!();
    }
    if comptime!(to == FloatType::F32) {
        out[position] = u32::reinterpret(element(view, ids, first, rows, k, position, gather, ty));
    } else {
        let low = element(view, ids, first, rows, k, 2 * position, gather, ty);
        let high = element(view, ids, first, rows, k, 2 * position + 1, gather, ty);
        out[position] = pack_two(low, high, to);
    }
}

/// Element `index` of the output, or zero past its end.
#[cube]
#[allow(clippy::too_many_arguments)]
fn element(
    view: &MatrixView,
    ids: &[u32],
    first: usize,
    rows: usize,
    k: usize,
    index: usize,
    gather: u32,
    #[comptime] ty: GgmlType,
) -> f32 {
    comptime!(assert!(traits(ty).dense, "rows of block formats are whole chunks"));
    let mut out = 0.0f32;
    if index < rows * k {
        let row = source_row(ids, first, index / k, gather);
        let column = index % k;
        let values = values(view, &view.codebook, At::chunk(row, column / CHUNK), ty);
        #[unroll]
        for i in 0..CHUNK {
            let value = values.index(comptime!(i / 4)).extract(comptime!(i % 4));
            out = select(column % CHUNK == i, value, out);
        }
    }
    out
}
