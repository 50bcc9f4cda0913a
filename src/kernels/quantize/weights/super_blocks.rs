//! Formats of super-blocks of 256 values: a unit takes a chunk of 32 of them.
//!
//! It finds the scale of the chunk, or those of its two sub-blocks, shares them with the other units of the super-block, and
//! quantizes its values by what became of the scales, as all of these work out alike. Super-blocks go in pairs, as some have half
//! a word for a scale. Where units are threads of the host, one takes a pair.

use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::chunks::{ChunkAt, Run};
use super::codes::Destination;
use super::importance::{Importance, weights_of_columns};
use super::iq4::{quantize_iq4_chunk, search_scale};
use super::k_quants::{quantize_chunk, search_sub_block};
use super::low_bits::quantize_ternary_chunk;
use super::q8_k::quantize_bytes;
use super::rounding::{Four, check_finite, extreme, load_all, squares};
use super::super_rule::{Shares, SuperRule};
use crate::gguf::GgmlType;
use crate::kernels::vector::Words;

#[cube(launch)]
pub fn quantize_super_blocks<X: Float>(
    x: &[Vector<X, Const<4>>],
    importance: &[Four],
    out: &mut [Words],
    faults: &mut [u32],
    run: Run,
    destination: Destination,
    #[comptime] rule: SuperRule,
    #[define(X)] _dtype: ElemType,
) {
    let subs = comptime!(rule.subs());
    let mut scales = Shared::<[f32]>::new_slice(comptime!(rule.cube_chunks() * subs));
    let mut mins = Shared::<[f32]>::new_slice(comptime!(if rule.has_min() { rule.cube_chunks() * subs } else { 1 }));
    let words = comptime!(if rule.has_no_codes() { 1 } else { 8 * rule.cube_chunks() });
    let mut codes = Shared::<[u32]>::new_slice(words);
    let mut weights = Shared::<[f32]>::new_slice(comptime!(if rule.weighted { rule.cube_chunks() * subs } else { 1 }));
    let first = run.grid.cube() * comptime!(rule.cube_chunks());
    let own = UNIT_POS as usize * rule.chunks;
    for i in own..own + rule.chunks {
        let at = ChunkAt::new(run, destination, first + i);
        if at.exists {
            let greatest = at.largest::<X>(x);
            check_finite(greatest, faults);
            let mut variance = 0.0f32;
            if comptime!(rule.weighted) {
                variance = at.mean_square::<X>(x) * comptime!(if rule.ty == GgmlType::Q2K { 1.0f32 } else { 2.0 });
            }
            let from = at.first + at.chunk * 8;
            let columns = at.columns(run);
            if comptime!(rule.is_ternary()) {
                scales[i] = f32::reinterpret(greatest);
            } else if comptime!(rule.is_bytes()) {
                scales[i] = extreme(&load_all::<X>(x, from, 8usize));
            } else if comptime!(rule.has_table()) {
                let values = load_all::<X>(x, from, 8usize);
                let weights = if comptime!(rule.weighted) {
                    weights_of_columns(&values, &Importance::new(importance, columns, variance))
                } else {
                    squares(&values)
                };
                scales[i] = search_scale(&values, &weights);
            } else {
                for sub in 0..subs {
                    let in_chunk = sub * comptime!(8 / subs);
                    let of_sub = Importance::new(importance, columns + in_chunk, variance);
                    let (found, weight) = search_sub_block::<X>(x, from + in_chunk, &of_sub, rule);
                    scales[i * subs + sub] = found.scale;
                    if comptime!(rule.weighted) {
                        weights[i * subs + sub] = weight;
                    }
                    if comptime!(rule.has_min()) {
                        mins[i * subs + sub] = found.min;
                    }
                    #[unroll]
                    for word in 0..comptime!(8 / subs) {
                        codes[i * 8 + sub * comptime!(8 / subs) + word] = found.codes[word];
                    }
                }
            }
        }
    }
    if comptime!(rule.chunks == 1) {
        sync_cube();
    }
    let shares = Shares::new(&scales, &mins, &codes, &weights);
    for i in own..own + rule.chunks {
        let at = ChunkAt::new(run, destination, first + i);
        if at.exists {
            if comptime!(rule.is_ternary()) {
                quantize_ternary_chunk::<X>(x, out, at, &shares, i, rule);
            } else if comptime!(rule.is_bytes()) {
                quantize_bytes::<X>(x, out, at, &shares, i);
            } else if comptime!(rule.has_table()) {
                quantize_iq4_chunk::<X>(x, out, at, &shares, i);
            } else {
                quantize_chunk::<X>(x, out, at, &shares, i, rule);
            }
        }
    }
}
