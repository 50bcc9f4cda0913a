//! Formats whose codes are points of a grid, in super-blocks of 256 values: a unit takes a chunk of 32 of them, as in
//! [`super_blocks`](super::super_blocks).
//!
//! It searches the points of the chunk's sub-blocks and stores them: what becomes of the scales does not change them. It shares the
//! scales, and of what is stored beside them its part: the signs, or the upper bits of indices.

use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::chunks::{ChunkAt, Run};
use super::codes::Destination;
use super::grid_fields::{Fields, GridShares, store_scales};
use super::grid_rule::{GridRule, variance_at};
use super::importance::Importance;
use super::iq1::{search_shifted, store_shifted_block};
use super::iq2_iq3::search_magnitudes;
use super::rounding::{Four, check_finite};
use crate::gguf::GgmlType;
use crate::kernels::vector::Words;

#[cube(launch)]
pub fn quantize_by_grid<X: Float>(
    x: &[Vector<X, Const<4>>],
    importance: &[Four],
    table: &[u32],
    out: &mut [Words],
    faults: &mut [u32],
    run: Run,
    destination: Destination,
    #[comptime] rule: GridRule,
    #[define(X)] _dtype: ElemType,
) {
    let subs = comptime!(rule.subs());
    let mut scales = Shared::<[f32]>::new_slice(comptime!(rule.cube_chunks() * subs));
    let mut words = Shared::<[u32]>::new_slice(comptime!(rule.cube_chunks() * rule.shared_words()));
    let mut scratch = Shared::<[f32]>::new_slice(comptime!((rule.units * rule.scratch()).max(1)));
    let first = run.grid.cube() * comptime!(rule.cube_chunks());
    let own = UNIT_POS as usize * rule.chunks;
    for i in own..own + rule.chunks {
        let at = ChunkAt::new(run, destination, first + i);
        if at.exists {
            check_finite(at.largest::<X>(x), faults);
            let variance = variance_at::<X>(x, at, rule);
            let mut fields = Fields::new(rule);
            #[unroll]
            for sub in 0..subs {
                let in_chunk = comptime!(sub * 8 / subs);
                let from = at.first + at.chunk * 8 + in_chunk;
                let of_sub = Importance::new(importance, at.columns(run) + in_chunk, variance);
                let found = if comptime!(rule.is_shifted()) {
                    search_shifted::<X>(x, from, &of_sub, table, &mut scratch, rule)
                } else {
                    search_magnitudes::<X>(x, from, &of_sub, table, comptime!(32 / subs * sub), rule)
                };
                scales[i * subs + sub] = found.scale;
                fields.add(&found, sub, rule);
            }
            fields.store(out, at, rule);
            #[unroll]
            for word in 0..comptime!(rule.shared_words()) {
                words[i * comptime!(rule.shared_words()) + word] = fields.shared[word];
            }
        }
    }
    if comptime!(rule.chunks == 1) {
        sync_cube();
    }
    let shares = GridShares::new(&scales, &words);
    for i in own..own + rule.chunks {
        let at = ChunkAt::new(run, destination, first + i);
        if at.exists {
            if comptime!(rule.ty != GgmlType::IQ1M) {
                store_scales(out, at, &shares, i, rule);
            } else if at.chunk == 0 {
                let variance = variance_at::<X>(x, at, rule);
                let of_block = Importance::new(importance, at.columns(run), variance);
                store_shifted_block::<X>(x, out, at, &of_block, &shares, i, rule);
            }
        }
    }
}
