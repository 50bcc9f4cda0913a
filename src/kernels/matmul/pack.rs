//! Activations as matrix units take them.

use cubecl::client::Client;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::server::Handle;

use crate::gguf::GgmlType;
use crate::kernels::activations::{self, Activations};
use crate::kernels::arch::matrix_unit::MatrixUnit;
use crate::kernels::arch::warpgroup::CORE_ROWS;
use crate::kernels::floats::{FloatType, pack_two};
use crate::kernels::formats::{CHUNK, traits};
use crate::kernels::launch::{Grid, buffer, elementwise};
use crate::kernels::routing::{Sorted, Sources, SourcesLaunch};
use crate::kernels::vector::Words;

/// Chunks of a row that a warpgroup takes in a step: one for each lane that shares a row.
pub const STEP_CHUNKS: usize = 4;

/// Core matrices side by side in a step: 8 values each.
pub const CORES_PER_STEP: usize = STEP_CHUNKS * CHUNK / 8;

/// Bytes of eight rows in a step.
pub const GROUP_BYTES: usize = 16 * CORES_PER_STEP * CORE_ROWS;

/// The most rows of activations of a cube of warpgroups. Past the last rows there is room for so many more: a copy takes all of
/// a cube's.
pub const MAX_TOKENS: usize = 256;

/// Rows of bf16 as a matrix unit takes them: contiguous rows of whole chunks, or core matrices for warpgroups.
#[derive(Clone, Debug)]
pub struct PackedActivations {
    pub handle: Handle,
    pub tokens: usize,
}

/// Values side by side in a row that are one lane's in a step: a chunk, or, where rows of plain floats are whole steps on
/// warpgroups, those of 16 bytes, so that lanes side by side load vectors side by side.
pub fn run(unit: MatrixUnit, ty: GgmlType, chunks: usize) -> usize {
    match unit {
        MatrixUnit::Wgmma { .. } if traits(ty).dense && chunks.is_multiple_of(STEP_CHUNKS) => 16 / ty.block_bytes(),
        _ => CHUNK,
    }
}

/// `x` as `unit` takes it, whose lanes have runs of so many values (see [`run`]).
pub fn pack(client: &Client, x: &Activations, unit: MatrixUnit, run: usize) -> PackedActivations {
    let handle = match unit {
        MatrixUnit::Wgmma { .. } => in_core_matrices(client, x, run, x.tokens(), None),
        _ => activations::pack(client, x, FloatType::BF16),
    };
    PackedActivations { handle, tokens: x.tokens() }
}

/// The rows of `x` that sorted pairs have, each of which `sharers` pairs side by side share, as `unit` takes them.
pub fn pack_sorted(
    client: &Client,
    x: &Activations,
    unit: MatrixUnit,
    run: usize,
    sorted: &Sorted,
    sharers: usize,
) -> PackedActivations {
    let sources = sorted.sources(sharers);
    let handle = match unit {
        MatrixUnit::Wgmma { .. } => in_core_matrices(client, x, run, sorted.rows, Some(sources)),
        _ => gathered(client, x, sorted.rows, sources),
    };
    PackedActivations { handle, tokens: sorted.rows }
}

/// Activations whose rows kernels may read in vectors of four values: the same, or a copy. Their type, and values from one row to
/// the next.
fn in_vectors(client: &Client, x: &Activations) -> (Handle, FloatType, usize) {
    match x.vector_stride() {
        Some(stride) => (x.handle().clone(), x.ty(), stride),
        None => (activations::pack(client, x, FloatType::F32), FloatType::F32, x.k().next_multiple_of(CHUNK)),
    }
}

fn gathered(client: &Client, x: &Activations, tokens: usize, sources: SourcesLaunch) -> Handle {
    let (handle, ty, stride) = in_vectors(client, x);
    let vectors = x.k().div_ceil(CHUNK) * CHUNK / 8;
    let out = client.empty(16 * tokens * vectors);
    let (count, dim, grid) = elementwise(client, tokens * vectors);
    let groups = tokens.div_ceil(CORE_ROWS);
    let rows = RowsLaunch::new(grid, tokens, x.k().div_ceil(4), stride / 4, groups, Some(sources).into());
    pack_rows::launch(client, count, dim, buffer(&handle, 4 * ty.bytes()), buffer(&out, 16), rows, ty.elem());
    out
}

fn in_core_matrices(
    client: &Client,
    x: &Activations,
    run: usize,
    tokens: usize,
    sources: Option<SourcesLaunch>,
) -> Handle {
    let (handle, ty, stride) = in_vectors(client, x);
    let k = x.k();
    let steps = k.div_ceil(STEP_CHUNKS * CHUNK);
    let groups = tokens.div_ceil(CORE_ROWS);
    let out = client.empty(GROUP_BYTES * (groups * steps + MAX_TOKENS / CORE_ROWS));
    // A unit has the two core matrices of an instruction's depth, of one row.
    let (count, dim, grid) = elementwise(client, groups * CORE_ROWS * steps * CORES_PER_STEP / 2);
    let rows = RowsLaunch::new(grid, tokens, k.div_ceil(4), stride / 4, groups, sources.into());
    pack_cores::launch(client, count, dim, buffer(&handle, 4 * ty.bytes()), buffer(&out, 16), rows, run, ty.elem());
    out
}

/// Rows of activations and the units that pack them.
#[derive(CubeType, CubeLaunch)]
struct Rows {
    grid: Grid,
    tokens: usize,
    /// Vectors of four values of a row.
    vectors: usize,
    /// From one row to the next, in vectors.
    stride: usize,
    /// Rows, in groups of those of a core matrix.
    groups: usize,
    /// The rows that they are packed from, where not from the first one on.
    sources: ComptimeOption<Sources>,
}

#[cube]
impl Rows {
    /// The first vector of the row that packed row `row` comes from; of the last one for those past it. Ends units of rows that have
    /// none.
    fn source(&self, row: usize) -> usize {
        #[comptime]
        let token = match &self.sources {
            ComptimeOption::Some(sources) => {
                if !sources.has(row) {
                    terminate!();
                }
                sources.token(row)
            }
            ComptimeOption::None => min(row, self.tokens - 1),
        };
        token * self.stride
    }
}

/// Rounds rows to bf16, in whole chunks.
#[cube(launch)]
fn pack_rows<X: Float>(x: &[Vector<X, Const<4>>], out: &mut [Words], rows: &Rows, #[define(X)] _dtype: ElemType) {
    let position = rows.grid.unit();
    if position >= rows.grid.len {
        terminate!();
    }
    let vectors = (rows.vectors + comptime!(CHUNK / 4 - 1)) / comptime!(CHUNK / 4) * comptime!(CHUNK / 8);
    let (row, vector) = (position / vectors, position % vectors);
    let source = rows.source(row);
    let mut words = Words::empty();
    #[unroll]
    for i in 0..2usize {
        let four = 2 * vector + i;
        let mut values = Vector::<f32, Const<4>>::new(0.0f32);
        if four < rows.vectors {
            values = Vector::cast_from(x[source + four]);
        }
        words.insert(2 * i, pack_two(values.extract(0usize), values.extract(1usize), FloatType::BF16));
        words.insert(2 * i + 1, pack_two(values.extract(2usize), values.extract(3usize), FloatType::BF16));
    }
    out[position] = words;
}

/// Rounds rows to bf16 and puts them into core matrices: step by step, and in a step eight rows after eight others, so that what
/// a cube takes is in one piece.
///
/// Lane `c` of the four that share a row of weights has every fourth run of a step from run `c` on, and gives an instruction
/// the next 4 of its values: the first two at places `2 * c` and `2 * c + 1` of the depth, the other two 8 places later. So the
/// values `4 * i..4 * i + 4` of all four lanes are the depth of instruction `i`, in two core matrices.
#[cube(launch)]
fn pack_cores<X: Float>(
    x: &[Vector<X, Const<4>>],
    out: &mut [Words],
    rows: &Rows,
    #[comptime] run: usize,
    #[define(X)] _dtype: ElemType,
) {
    let position = rows.grid.unit();
    if position >= rows.grid.len {
        terminate!();
    }
    let instructions = comptime!(CORES_PER_STEP / 2);
    let (instruction, rest) = (position % instructions, position / instructions);
    let (row, rest) = (rest % CORE_ROWS, rest / CORE_ROWS);
    let (group, step) = (rest % rows.groups, rest / rows.groups);
    let source = rows.source(group * CORE_ROWS + row);
    let (mut front, mut back) = (Words::empty(), Words::empty());
    let of_run = comptime!(run / 4);
    let (nth, in_run) = (instruction / of_run, instruction % of_run);
    #[unroll]
    for lane in 0..STEP_CHUNKS {
        let vector = step * comptime!(STEP_CHUNKS * CHUNK / 4) + (nth * STEP_CHUNKS + lane) * of_run + in_run;
        let mut values = Vector::<f32, Const<4>>::new(0.0f32);
        if vector < rows.vectors {
            values = Vector::cast_from(x[source + vector]);
        }
        front.insert(lane, pack_two(values.extract(0usize), values.extract(1usize), FloatType::BF16));
        back.insert(lane, pack_two(values.extract(2usize), values.extract(3usize), FloatType::BF16));
    }
    let at = ((step * rows.groups + group) * CORES_PER_STEP + 2 * instruction) * CORE_ROWS + row;
    out[at] = front;
    out[at + CORE_ROWS] = back;
}
