//! Products of what is in registers: chunks of codes, and floats.

use cubecl::frontend::comptime;
use cubecl::prelude::*;

use super::inputs::ActivationChunk;
use super::lookup::{CodeForm, addends_of};
use crate::kernels::arch::dot::{Bytes, Instruction, dot16};
use crate::kernels::formats::{Chunk, Codes, Traits, traits};
use crate::kernels::matvec::blueprint::Blueprint;
use crate::kernels::vector::Words;

/// `sum` plus the product of a chunk of weights, from [`decode_chunk`](super::lookup::decode_chunk), with one of activations.
#[cube]
pub(super) fn add_int8(sum: f32, chunk: &Chunk, x: ActivationChunk, #[comptime] blueprint: Blueprint) -> f32 {
    let traits = comptime!(traits(blueprint.ty));
    let (scale, sum_low, sum_high) = (x.scales.extract(0usize), x.scales.extract(2usize), x.scales.extract(3usize));
    if comptime!(traits.scales == 1) {
        let dot_low = dot_half(chunk, x, SHIFT as i32, false, blueprint);
        let dot = dot_half(chunk, x, dot_low, true, blueprint);
        let product = chunk.scale_low * (scale * unbiased(dot, sum_low + sum_high, traits));
        if comptime!(traits.min) { sum + product + chunk.min_low * x.scales.extract(1usize) } else { sum + product }
    } else {
        let dot_low = unbiased(dot_half(chunk, x, SHIFT as i32, false, blueprint), sum_low, traits);
        let dot_high = unbiased(dot_half(chunk, x, SHIFT as i32, true, blueprint), sum_high, traits);
        let mut product = chunk.scale_low * dot_low + chunk.scale_high * dot_high;
        if comptime!(traits.min) {
            product += chunk.min_low * sum_low + chunk.min_high * sum_high;
        }
        sum + scale * product
    }
}

/// `start` plus the product of the codes of a half.
#[cube]
fn dot_half(
    chunk: &Chunk,
    x: ActivationChunk,
    start: i32,
    #[comptime] last: bool,
    #[comptime] blueprint: Blueprint,
) -> i32 {
    let properties = comptime::device_properties();
    let x = if comptime!(last) { x.high } else { x.low };
    match comptime!(CodeForm::of(blueprint, &properties)) {
        CodeForm::Indices(table) => {
            let (first, second) = addends_of(chunk.low, table, last);
            dot16(second, x, dot16(first, x, start, Bytes::Signed), Bytes::Signed)
        }
        _ => {
            dot_sixteen(if comptime!(last) { chunk.high } else { chunk.low }, x, start, comptime!(traits(blueprint.ty)))
        }
    }
}

/// `start` plus the product of 16 codes of weights with 16 of activations.
#[cube]
fn dot_sixteen(weights: Words, x: Words, start: i32, #[comptime] traits: Traits) -> i32 {
    let properties = comptime::device_properties();
    match comptime!(code_bytes(traits.codes, Instruction::of(&properties))) {
        CodeBytes::AsTheyAre { bytes, .. } => dot16(weights, x, start, bytes),
        CodeBytes::Centered => dot16(weights ^ Words::new(0x8080_8080u32), x, start, Bytes::Signed),
    }
}

/// What dot products start from, the bits of the float 1.5 * 2^23: an integer of up to 22 bits that is added to them is added
/// to the float too, without a conversion.
const SHIFT: u32 = 0x4b40_0000;

/// A product of codes, that started from [`SHIFT`], less that and what the codes' bias added to it, from the sum of the
/// activations' codes. Exact: all of these are integers of less than 24 bits.
#[cube]
fn unbiased(dot: i32, sum: f32, #[comptime] traits: Traits) -> f32 {
    let properties = comptime::device_properties();
    let shift = comptime!(f32::from_bits(SHIFT)).runtime();
    match comptime!(code_bytes(traits.codes, Instruction::of(&properties))) {
        CodeBytes::AsTheyAre { bias: 0, .. } | CodeBytes::Centered => f32::reinterpret(dot) - shift,
        CodeBytes::AsTheyAre { bias, .. } => f32::reinterpret(dot) - (comptime!(bias as f32) * sum + shift),
    }
}

/// How a dot product takes the codes of weights.
#[derive(Clone, Copy)]
enum CodeBytes {
    /// As bytes that are `bias` over their values.
    AsTheyAre { bytes: Bytes, bias: u32 },
    /// Codes biased by 128, less that: where the device has no product with unsigned bytes.
    Centered,
}

fn code_bytes(codes: Codes, instruction: Instruction) -> CodeBytes {
    match codes {
        Codes::Signed => CodeBytes::AsTheyAre { bytes: Bytes::Signed, bias: 0 },
        Codes::Biased(128) if !instruction.takes_unsigned() => CodeBytes::Centered,
        Codes::Biased(128) => CodeBytes::AsTheyAre { bytes: Bytes::Unsigned, bias: 128 },
        // These codes are less than 128, so that either sign reads them rightly.
        Codes::Biased(bias) => CodeBytes::AsTheyAre { bytes: Bytes::Signed, bias },
    }
}

/// The product of 32 values with those from vector `first` of the activations on.
#[cube]
pub(super) fn dot_float(values: &Sequence<Vector<f32, Const<4>>>, x: &[Vector<f32, Const<4>>], first: usize) -> f32 {
    let mut sums = Vector::<f32, Const<4>>::new(0.0f32);
    #[unroll]
    for i in 0..8usize {
        sums += *values.index(i) * x[first + i];
    }
    (sums.extract(0usize) + sums.extract(1usize)) + (sums.extract(2usize) + sums.extract(3usize))
}

/// `sum` plus the product of four values.
#[cube]
pub(super) fn dot_four(a: Vector<f32, Const<4>>, b: Vector<f32, Const<4>>, sum: f32) -> f32 {
    let mut sum = sum;
    #[unroll]
    for i in 0..4usize {
        sum = fma(a.extract(i), b.extract(i), sum);
    }
    sum
}
