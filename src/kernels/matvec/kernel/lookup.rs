//! Codes that are looked up in a table of 16 values, as a product has most use of them.

use cubecl::frontend::comptime;
use cubecl::ir::DeviceProperties;
use cubecl::prelude::*;

use crate::kernels::arch::permute::{NibbleOrder, addends16};
use crate::kernels::arch::target::Target;
use crate::kernels::formats::{At, Chunk, Raw, codes_of, decode, indices, traits};
use crate::kernels::matvec::blueprint::Blueprint;
use crate::kernels::vector::Words;

/// What a kernel's chunks of weights hold for codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CodeForm {
    /// Codes as the format decodes them.
    Decoded,
    /// Codes looked up in a table, in the device's cheapest order.
    LookedUp([i8; 16], NibbleOrder),
    /// Indices into a table. The product looks addends up, in the device's cheapest order: twice the dot products for half of
    /// the permutations, which pays for one row of activations.
    Indices([i8; 16]),
}

impl CodeForm {
    pub(super) fn of(blueprint: Blueprint, properties: &DeviceProperties) -> Self {
        let cheapest = NibbleOrder::cheapest(&Target::of(properties));
        let activations = match blueprint.staging {
            Some(staging) if staging.alternating => NibbleOrder::Sequential,
            _ => NibbleOrder::LowHigh,
        };
        match (traits(blueprint.ty).lookup16, cheapest) {
            (Some(table), Some(order)) if order == activations && blueprint.tokens == 1 => Self::Indices(*table),
            (Some(table), Some(order)) if order == activations => Self::LookedUp(*table, order),
            _ => Self::Decoded,
        }
    }
}

/// A chunk of weights, from its words, with the codes of [`CodeForm`].
#[cube]
pub(super) fn decode_chunk(raw: &Raw, codebook: &[u32], at: At, #[comptime] blueprint: Blueprint) -> Chunk {
    let properties = comptime::device_properties();
    match comptime!(CodeForm::of(blueprint, &properties)) {
        CodeForm::Decoded => decode(raw, codebook, at, blueprint.ty),
        CodeForm::LookedUp(table, order) => codes_of(indices(raw, at, blueprint.ty), table, order),
        CodeForm::Indices(_) => indices(raw, at, blueprint.ty),
    }
}

/// Words of [`addends16()`] for the first or the last 16 of a chunk's indices.
#[cube]
pub(super) fn addends_of(indices: Words, #[comptime] table: [i8; 16], #[comptime] last: bool) -> (Words, Words) {
    let mut first = Words::empty();
    let mut second = Words::empty();
    #[unroll]
    for i in 0..4usize {
        let (one, other) = addends16(indices.extract(i), table, last);
        first.insert(i, one);
        second.insert(i, other);
    }
    (first, second)
}
