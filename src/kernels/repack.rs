//! Upload: GGUF blocks into the components of the device layout, on the device.
//!
//! One kernel serves every format: each word of a component is gathered from the bit fields that the format's
//! [`Layout`] lists. The blocks come through staging buffers, so neither side ever holds a tensor twice.

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::formats::{ComponentOffsets, Format, Layout};
use super::launch::{Grid, buffer, elementwise};
use crate::gguf::Endian;

/// The most GGUF bytes staged at once.
const STAGING: usize = 16 << 20;

/// Blocks of a quantum: the fewest whose fields fill whole words in every component. A staging buffer holds whole
/// quanta.
fn blocks_per_quantum(layout: &Layout) -> usize {
    let whole =
        |blocks: usize| layout.components.iter().all(|component| (component.block_bits() * blocks).is_multiple_of(32));
    [1, 2, 4, 8, 16].into_iter().find(|&blocks| whole(blocks)).unwrap_or(32)
}

/// Repacks a matrix into `out`, which has the words of `offsets`.
///
/// `data` is GGUF blocks of a byte order that the format has. At most two staging buffers are in flight; a failure of
/// the device shows up at the next read of `out`.
pub fn upload(client: &Client, format: &Format, data: &[u8], endian: Endian, offsets: &ComponentOffsets, out: &Handle) {
    let layout = (format.layout)();
    let (rows, blocks) = (offsets.rows, offsets.blocks);
    let per_quantum = blocks_per_quantum(&layout);
    let block_bytes = layout.block_bytes;
    // Quanta of a row in the component that has most; another's surplus words lie past its row and are not written.
    let per_row = layout.components.iter().zip(&offsets.components);
    let per_row =
        per_row.map(|(component, at)| at.stride.div_ceil(component.block_bits() * per_quantum / 32)).max().unwrap_or(0);
    let tables: Vec<_> = layout.components.iter().map(|component| field_table(client, &component.fields)).collect();

    let first_block = |quantum: usize| quantum / per_row * blocks + (quantum % per_row * per_quantum).min(blocks);
    let step = (STAGING / (per_quantum * block_bytes)).max(1);
    for (chunk, first) in (0..rows * per_row).step_by(step).enumerate() {
        let end = (first + step).min(rows * per_row);
        let (from_block, to_block) = (first_block(first), first_block(end));
        let blocks_of_chunk = &data[from_block * block_bytes..to_block * block_bytes];
        let Some(bytes) = format.little_endian(blocks_of_chunk, endian) else { return };
        let mut bytes = bytes.into_owned();
        bytes.resize(bytes.len().next_multiple_of(4).max(4), 0);
        let staged = client.create(cubecl::bytes::Bytes::from_bytes_vec(bytes));
        for ((component, at), table) in layout.components.iter().zip(&offsets.components).zip(&tables) {
            let words_per_quantum = component.block_bits() * per_quantum / 32;
            let (count, dim, grid) = elementwise(client, (end - first) * words_per_quantum);
            let (from, fields, into) = (buffer(&staged, 4), buffer(table, 4), buffer(out, 4));
            let run = QuantaLaunch::new(grid, first, per_row, blocks, from_block, at.offset, at.stride);
            let shape = QuantumShape {
                width: component.width as usize,
                fields: component.fields.len(),
                block_bits: 8 * block_bytes,
                blocks: per_quantum,
            };
            repack::launch(client, count, dim, from, fields, into, run, shape);
        }
        // Bounds the memory of staging buffers: otherwise those of a whole tensor would be in flight.
        if chunk % 2 == 1 {
            let _ = cubecl::future::block_on(client.sync());
        }
    }
}

fn field_table(client: &Client, fields: &[u16]) -> Handle {
    let words: Vec<u32> = fields.iter().map(|&bit| bit as u32).collect();
    client.create_from_slice(bytemuck::cast_slice(&words))
}

/// The words of a component that a launch writes, and the source blocks that it reads.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
#[expand(derive(Clone, Copy))]
struct Quanta {
    grid: Grid,
    /// The first quantum, counted over all rows.
    first: usize,
    per_row: usize,
    /// Blocks of a row.
    blocks: usize,
    /// The block that the source begins with.
    from_block: usize,
    /// The component's first word.
    offset: usize,
    /// Words of the component from one row to the next.
    stride: usize,
}

/// The fields that a quantum of a component is gathered from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct QuantumShape {
    /// Bits of a field.
    width: usize,
    /// Fields of a block.
    fields: usize,
    block_bits: usize,
    /// Blocks of a quantum.
    blocks: usize,
}

/// One word of one component a unit.
#[cube(launch)]
fn repack(source: &[u32], fields: &[u32], out: &mut [u32], quanta: Quanta, #[comptime] shape: QuantumShape) {
    let position = quanta.grid.unit();
    if position >= quanta.grid.len {
        terminate!();
    }
    let per_word = comptime!(32 / shape.width);
    let words_per_quantum = comptime!(shape.fields * shape.blocks / per_word);
    let quantum = quanta.first + position / words_per_quantum;
    let in_quantum = position % words_per_quantum;
    let row = quantum / quanta.per_row;
    let row_quantum = quantum % quanta.per_row;
    let row_word = row_quantum * words_per_quantum + in_quantum;
    if row_word < quanta.stride {
        let mut word = 0u32;
        for i in 0..per_word {
            let field = in_quantum * per_word + i;
            let block = row_quantum * shape.blocks + field / shape.fields;
            // Past the row's last block: padding.
            if block < quanta.blocks {
                let start = (row * quanta.blocks + block - quanta.from_block) * shape.block_bits;
                let bit = start + usize::cast_from(fields[field % shape.fields]);
                let value = (source[bit / 32] >> u32::cast_from(bit % 32)) & comptime!(u32::MAX >> (32 - shape.width));
                word |= value << u32::cast_from(i * shape.width);
            }
        }
        out[quanta.offset + row * quanta.stride + row_word] = word;
    }
}
