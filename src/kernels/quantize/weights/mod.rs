//! Quantization of weights: floats to blocks, in the device layout, by the rules of ggml's reference quantizers
//! (`quantize_row_*_ref` in `ggml/src/ggml-quants.c`).
//!
//! Of formats with a closed rule a unit takes as many blocks of a row as fill a word with their scales. A *rule* is a `#[cube]`
//! function that picks the scale of a block from its values and stores their codes; it returns the bits of the scale, and of
//! the min if there is one. Formats of super-blocks have [a kernel of their own](super_blocks).
//!
//! Rounding decides about bytes, in the searches too, where many scales are nearly as good: no product may be fused with the sum
//! that it goes into (see [`rounding::alone`]).

mod chunks;
mod codes;
mod fp4;
mod grid_fields;
mod grid_rule;
mod grids;
mod importance;
mod iq1;
mod iq2_iq3;
mod iq4;
mod k_quants;
mod legacy;
mod low_bits;
mod neighbours;
mod q8_k;
mod rounding;
mod search;
mod super_blocks;
mod super_rule;

use cubecl::client::Client;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::server::Handle;

pub use self::neighbours::table;

use self::chunks::{PAIR, Run, RunLaunch};
use self::codes::{Destination, DestinationLaunch, Place};
use self::grid_rule::GridRule;
use self::grids::quantize_by_grid;
use self::importance::Importance;
use self::rounding::Four;
use self::super_blocks::quantize_super_blocks;
use self::super_rule::SuperRule;
use crate::gguf::GgmlType;
use crate::kernels::floats::FloatType;
use crate::kernels::formats::{ComponentOffsets, format};
use crate::kernels::launch::{Grid, buffer, cubes, elementwise};
use crate::kernels::vector::Words;

/// Whether there is a kernel for the format.
pub fn quantizes(ty: GgmlType) -> bool {
    Rule::of(ty).is_some() || SuperRule::has(ty) || GridRule::has(ty)
}

/// Whether importances of columns bear on the format, as in ggml.
pub fn minds_importance(ty: GgmlType) -> bool {
    use GgmlType::{IQ4NL, IQ4XS, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K};
    let of_bits = matches!(ty, Q2K | Q3K | Q4K | Q5K | Q6K | IQ4XS | Q4_0 | Q4_1 | Q5_0 | Q5_1 | IQ4NL);
    of_bits || GridRule::has(ty)
}

/// Whether the format has no quantization without importances, as in ggml (`ggml_quantize_requires_imatrix`).
pub fn needs_importance(ty: GgmlType) -> bool {
    matches!(ty, GgmlType::IQ1S | GgmlType::IQ2XXS | GgmlType::IQ2XS)
}

/// Rows of a matrix of floats, contiguous in `values`, and the first of them in the quantized matrix.
pub struct Values<'a> {
    pub handle: &'a Handle,
    pub ty: FloatType,
    pub first_row: usize,
    pub rows: usize,
    /// Importances of columns, f32, each row of them for so many rows of the quantized matrix.
    pub importance: Option<(&'a Handle, usize)>,
    /// The [`table`] of a format that has a grid.
    pub table: Option<&'a Handle>,
}

/// Quantizes rows of floats into the components at `offsets` of `out`. Where a value is not finite, the word of `faults` becomes 1.
///
/// There must be [a kernel](quantizes) for the format.
pub fn quantize(
    client: &Client,
    values: &Values<'_>,
    ty: GgmlType,
    offsets: &ComponentOffsets,
    out: &Handle,
    faults: &Handle,
) {
    let destination = DestinationLaunch::of(offsets);
    let (from, into, faults) = (buffer(values.handle, 4 * values.ty.bytes()), buffer(out, 16), buffer(faults, 4));
    let elem = values.ty.elem();
    let rows_each = values.importance.map_or(1, |(_, rows)| rows);
    let run = |grid, units| RunLaunch::new(grid, values.first_row, offsets.blocks, units, rows_each);
    let weighted = values.importance.is_some() && minds_importance(ty);
    // A kernel without importances binds anything for them.
    let importance = buffer(values.importance.map_or(values.handle, |(handle, _)| handle), 16);
    if let Some(rule) = Rule::of(ty) {
        let rule = Rule { weighted, ..rule };
        let k = offsets.blocks * ty.block_size();
        let variances = rule.weighs_by_row().then(|| mean_squares(client, values, k));
        let variances = buffer(variances.as_ref().unwrap_or(values.handle), 4);
        let per_row = offsets.blocks.div_ceil(rule.blocks());
        let (count, dim, grid) = elementwise(client, values.rows * per_row);
        quantize_blocks::launch(
            client,
            count,
            dim,
            from,
            importance,
            variances,
            into,
            faults,
            run(grid, per_row),
            destination,
            rule,
            elem,
        );
    } else {
        let (units, chunks) = super_units(client);
        let pairs = offsets.blocks.div_ceil(2);
        let all = values.rows * pairs * PAIR;
        let (count, grid) = cubes(client, all.div_ceil(units * chunks), all);
        let dim = CubeDim::new_1d(units as u32);
        let run = run(grid, pairs);
        if let Some(table) = values.table {
            let table = buffer(table, 4);
            let rule = GridRule { ty, units, chunks, weighted };
            quantize_by_grid::launch(
                client,
                count,
                dim,
                from,
                importance,
                table,
                into,
                faults,
                run,
                destination,
                rule,
                elem,
            );
        } else {
            let rule = SuperRule { ty, units, chunks, weighted };
            quantize_super_blocks::launch(
                client,
                count,
                dim,
                from,
                importance,
                into,
                faults,
                run,
                destination,
                rule,
                elem,
            );
        }
    }
}

/// Units of a cube that quantizes super-blocks, and chunks of a unit: four pairs of super-blocks, a chunk each.
fn super_units(client: &Client) -> (usize, usize) {
    // CubeCL's CPU runtime runs a cube's units as threads, which wait for each other at every barrier.
    let is_host = client.properties().hardware.num_cpu_cores.is_some();
    if is_host { (1, PAIR) } else { (4 * PAIR, 1) }
}

/// What decides about the blocks of a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Rule {
    ty: GgmlType,
    /// Components before that of the scales.
    scales: usize,
    /// Bits of a block's scales: 8, 16 or 32.
    scale_bits: u32,
    /// Whether columns have importances.
    weighted: bool,
}

impl Rule {
    fn of(ty: GgmlType) -> Option<Self> {
        use GgmlType::{IQ4NL, MXFP4, NVFP4, Q1_0, Q2_0, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1};
        let has = matches!(ty, Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | Q8_1 | MXFP4 | NVFP4 | Q1_0 | Q2_0 | IQ4NL);
        let layout = (format(ty).filter(|_| has)?.layout)();
        let scales = layout.components.len() - 1;
        Some(Self { ty, scales, scale_bits: layout.components[scales].block_bits() as u32, weighted: false })
    }

    /// Whether weights of errors are measured by the row's squares; IQ4_NL's are by the block's.
    fn weighs_by_row(self) -> bool {
        self.weighted && self.ty != GgmlType::IQ4NL
    }

    /// Blocks of a unit.
    fn blocks(self) -> usize {
        (32 / self.scale_bits) as usize
    }
}

/// The mean of the squares of each row's values, f32.
fn mean_squares(client: &Client, values: &Values<'_>, k: usize) -> Handle {
    let out = client.empty(4 * values.rows.max(4));
    let (count, dim, grid) = elementwise(client, values.rows);
    let from = buffer(values.handle, 4 * values.ty.bytes());
    sum_squares::launch(client, count, dim, from, buffer(&out, 4), grid, k, values.ty.elem());
    out
}

/// A row a unit, one value after the other: so ggml rounds the sum.
#[cube(launch)]
fn sum_squares<X: Float>(
    x: &[Vector<X, Const<4>>],
    out: &mut [f32],
    grid: Grid,
    k: usize,
    #[define(X)] _dtype: ElemType,
) {
    let row = grid.unit();
    if row < grid.len {
        let sum = rounding::sum_of_squares::<X>(x, row * (k / 4), k / 4);
        out[row] = sum / f32::cast_from(k);
    }
}

#[cube(launch)]
fn quantize_blocks<X: Float>(
    x: &[Vector<X, Const<4>>],
    importance: &[Four],
    variances: &[f32],
    out: &mut [Words],
    faults: &mut [u32],
    run: Run,
    destination: Destination,
    #[comptime] rule: Rule,
    #[define(X)] _dtype: ElemType,
) {
    let position = run.grid.unit();
    if position >= run.grid.len {
        terminate!();
    }
    let (from_row, unit) = (position / run.units, position % run.units);
    let row = run.first_row + from_row;
    let fours = comptime!(rule.ty.block_size() / 4);
    let mut scales = 0u32;
    if comptime!(rule.ty == GgmlType::Q1_0) {
        let block = 2 * unit;
        let first = (from_row * run.blocks + block) * fours;
        let made = low_bits::q1_0::<X>(x, first, out, Place { destination, row, block }, block + 1 < run.blocks);
        rounding::check_finite(made.largest, faults);
        scales = made.scale;
    }
    #[unroll]
    for i in 0..comptime!(if rule.ty == GgmlType::Q1_0 { 0 } else { rule.blocks() }) {
        let block = unit * comptime!(rule.blocks()) + i;
        if block < run.blocks {
            let first = (from_row * run.blocks + block) * fours;
            let place = Place { destination, row, block };
            let columns = (row / run.rows_each * run.blocks + block) * fours;
            let of_row = if comptime!(rule.weighs_by_row()) { variances[from_row] } else { 0.0f32.runtime() };
            let importance = Importance::new(importance, columns, of_row);
            let made = match comptime!(rule.ty) {
                ty @ (GgmlType::Q4_0 | GgmlType::Q4_1 | GgmlType::Q5_0 | GgmlType::Q5_1) if rule.weighted => {
                    legacy::weighted::<X>(x, first, &importance, out, place, ty)
                }
                GgmlType::Q4_0 => legacy::signed::<X>(x, first, out, place, 4u32),
                GgmlType::Q5_0 => legacy::signed::<X>(x, first, out, place, 5u32),
                GgmlType::Q4_1 => legacy::ranged::<X>(x, first, out, place, 4u32),
                GgmlType::Q5_1 => legacy::ranged::<X>(x, first, out, place, 5u32),
                GgmlType::Q8_0 => legacy::bytes::<X>(x, first, out, place, false),
                GgmlType::Q8_1 => legacy::bytes::<X>(x, first, out, place, true),
                GgmlType::Q2_0 => low_bits::q2_0::<X>(x, first, out, place),
                GgmlType::IQ4NL => iq4::iq4_nl::<X>(x, first, &importance, out, place, rule.weighted),
                GgmlType::MXFP4 => fp4::mxfp4::<X>(x, first, out, place),
                GgmlType::NVFP4 => fp4::nvfp4::<X>(x, first, out, place),
                _ => comptime!(panic!("{} has no rule", rule.ty)),
            };
            rounding::check_finite(made.largest, faults);
            scales |= made.scale << comptime!(rule.scale_bits * i as u32 % 32);
        }
    }
    destination.store(out, comptime!(rule.scales), row, unit, scales);
    if unit + 1 == run.units {
        #[unroll]
        for component in 0..comptime!(rule.scales + 1) {
            destination.clear_after(out, component, row, run.blocks, rule.ty);
        }
    }
}
