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
/// An id past the last row gives the last row: a kernel cannot return an error. The matrix must have rows.
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
    let ids = buffer(ids.unwrap_or(&weights.codebook), 4);
    let rows_of = |grid| RowsLaunch::new(grid, ids, gather, first, rows, weights.n(), k);
    let (view, ty) = (weights.view(), weights.ty());
    if k.is_multiple_of(CHUNK) {
        let (count, dim, grid) = elementwise(client, rows * k / CHUNK);
        let units = client.properties().hardware.num_cpu_cores.is_none().then_some(dim.num_elems() as usize);
        decode_chunks::launch(client, count, dim, view, rows_of(grid), buffer(&out, 16), ty, to, units);
    } else {
        let (count, dim, grid) = elementwise(client, words);
        decode_ragged::launch(client, count, dim, view, rows_of(grid), buffer(&out, 4), ty, to);
    }
    out
}

/// Rows of a matrix, and the units of a launch that decode them.
#[derive(CubeType, CubeLaunch)]
struct Rows {
    grid: Grid,
    /// Indices of rows, where `gather` is 1.
    ids: Box<[u32]>,
    /// 1 to read the rows that `ids` name, 0 for a range.
    gather: u32,
    /// The first row of the range.
    first: usize,
    /// Number of rows.
    count: usize,
    /// Rows of the matrix.
    n: usize,
    /// Values of a row.
    k: usize,
}

#[cube]
impl Rows {
    /// The row of the matrix behind row `row` of the output.
    fn source(&self, row: usize) -> usize {
        let mut source = self.first + row;
        if self.gather == 1 {
            source = min(usize::cast_from(self.ids[row]), self.n - 1);
        }
        source
    }
}

/// 32 values a unit; rows are whole chunks, so that every store is 16 bytes.
///
/// On GPUs the `units` of a cube exchange their vectors by way of shared memory, so that neighbours store neighbours.
#[cube(launch)]
fn decode_chunks(
    view: &MatrixView,
    rows: &Rows,
    out: &mut [Words],
    #[comptime] ty: GgmlType,
    #[comptime] to: FloatType,
    #[comptime] units: Option<usize>,
) {
    let position = rows.grid.unit();
    let vectors = comptime!(to.bytes() * CHUNK / 16);
    if comptime!(units.is_some()) {
        let units = comptime!(units.unwrap_or(1));
        let mut exchanged = Shared::<[Words]>::new_slice(comptime!(units * vectors));
        let unit = UNIT_POS as usize;
        let decoded = chunk_of(view, rows, min(position, rows.grid.len - 1), ty, to);
        #[unroll]
        for i in 0..vectors {
            exchanged[exchanged_at(unit, i.runtime(), vectors)] = *decoded.index(i);
        }
        sync_cube();
        let first = (position - unit) * vectors;
        #[unroll]
        for i in 0..vectors {
            let at = unit + comptime!(i * units);
            if first + at < rows.grid.len * vectors {
                out[first + at] = exchanged[exchanged_at(at / vectors, at % vectors, vectors)];
            }
        }
    } else {
        if position >= rows.grid.len {
            terminate!();
        }
        let decoded = chunk_of(view, rows, position, ty, to);
        #[unroll]
        for i in 0..vectors {
            out[position * vectors + i] = *decoded.index(i);
        }
    }
}

/// Where vector `i` of a unit's `vectors` lies in shared memory: eight neighbours that store together hit different banks.
#[cube]
fn exchanged_at(unit: usize, i: usize, #[comptime] vectors: usize) -> usize {
    unit * vectors + (i ^ (unit / comptime!(8 / vectors) % vectors))
}

/// The output's chunk `position`, in vectors of 16 bytes.
#[cube]
fn chunk_of(
    view: &MatrixView,
    rows: &Rows,
    position: usize,
    #[comptime] ty: GgmlType,
    #[comptime] to: FloatType,
) -> Sequence<Words> {
    let chunks = rows.k / CHUNK;
    let at = At::chunk(rows.source(position / chunks), position % chunks);
    let values = values(view, &view.codebook, at, ty);
    let mut out = Sequence::<Words>::new();
    if comptime!(to == FloatType::F32) {
        #[unroll]
        for i in 0..8usize {
            out.push(Words::reinterpret(*values.index(i)));
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
            out.push(words);
        }
    }
    out
}

/// One word of output a unit, for dense rows that end inside a chunk.
#[cube(launch)]
fn decode_ragged(view: &MatrixView, rows: &Rows, out: &mut [u32], #[comptime] ty: GgmlType, #[comptime] to: FloatType) {
    let position = rows.grid.unit();
    if position >= rows.grid.len {
        terminate!();
    }
    if comptime!(to == FloatType::F32) {
        out[position] = u32::reinterpret(element(view, rows, position, ty));
    } else {
        out[position] = pack_two(element(view, rows, 2 * position, ty), element(view, rows, 2 * position + 1, ty), to);
    }
}

/// Element `index` of the output, or zero past its end.
#[cube]
fn element(view: &MatrixView, rows: &Rows, index: usize, #[comptime] ty: GgmlType) -> f32 {
    comptime!(assert!(traits(ty).dense, "rows of block formats are whole chunks"));
    let mut out = 0.0f32;
    if index < rows.count * rows.k {
        let row = rows.source(index / rows.k);
        let column = index % rows.k;
        let values = values(view, &view.codebook, At::chunk(row, column / CHUNK), ty);
        #[unroll]
        for i in 0..CHUNK {
            let value = values.index(comptime!(i / 4)).extract(comptime!(i % 4));
            out = select(column % CHUNK == i, value, out);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn exchanged_vectors_have_places_of_their_own_in_different_banks() {
        for vectors in [4, 8] {
            let place = |unit, i| exchanged_at(unit, i, vectors);
            let places: BTreeSet<_> = (0..32).flat_map(|unit| (0..vectors).map(move |i| place(unit, i))).collect();
            assert_eq!(places, (0..32 * vectors).collect());
            for first in (0..32).step_by(8) {
                let banks: BTreeSet<_> = (first..first + 8).map(|unit| place(unit, 1) % 8).collect();
                assert_eq!(banks.len(), 8, "{vectors} vectors, units from {first}");
            }
        }
    }
}
