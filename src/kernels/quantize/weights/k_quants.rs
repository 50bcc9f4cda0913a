//! Q2_K to Q6_K: sub-blocks of 16 or 32 values, whose scales, and mins where there are some, are quantized by their super-block's.

use cubecl::prelude::*;

use super::codes::{Destination, add_codes, chunk_words};
use super::rounding::{load, nearest, product};
use super::search::{Found, by_single_codes, symmetric, with_min};
use super::super_blocks::{CHUNKS, ChunkAt, Shares, SuperRule};
use crate::gguf::GgmlType;
use crate::kernels::floats::f16_bits;
use crate::kernels::formats::f16;
use crate::kernels::vector::Words;

/// Searches the scale of the sub-block from vector `first` on.
#[cube]
pub fn search_sub_block<X: Float>(x: &[Vector<X, Const<4>>], first: usize, #[comptime] rule: SuperRule) -> Found {
    let len = comptime!(32 / rule.subs());
    let mut values = Array::<f32>::new(len);
    #[unroll]
    for i in 0..comptime!(len / 4) {
        let four = load::<X>(x, first + i);
        #[unroll]
        for j in 0..4usize {
            values[comptime!(4 * i + j)] = four.extract(j);
        }
    }
    if comptime!(rule.has_min()) {
        let mut weights = Array::<f32>::new(len);
        let mut squares = 0.0f32;
        if comptime!(!rule.steps().absolute) {
            #[unroll]
            for i in 0..len {
                squares += product(values[i], values[i]);
            }
        }
        let mean = f32::sqrt(squares * comptime!(1.0 / len as f32));
        #[unroll]
        for i in 0..len {
            weights[i] = mean + f32::abs(values[i]);
        }
        with_min(&values, &weights, comptime!(rule.steps()))
    } else if comptime!(rule.ty == GgmlType::Q3K) {
        by_single_codes(&values, len, 4i32)
    } else {
        symmetric(&values, len, 32i32)
    }
}

/// The scale of a super-block, and what its sub-blocks' scales and mins are multiplied by to be quantized.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
struct BlockScale {
    /// The half of the scale, and above it that of the min.
    bits: u32,
    inverse: f32,
    inverse_min: f32,
}

#[cube]
impl BlockScale {
    /// From what was found of its sub-blocks, which begin at `first`.
    fn of(shares: &Shares<'_>, first: usize, #[comptime] rule: SuperRule) -> BlockScale {
        let count = comptime!(CHUNKS * rule.subs());
        let most = comptime!(rule.most_scale() as f32).runtime();
        if comptime!(rule.has_min()) {
            let mut scale = 0.0f32;
            let mut least = 0.0f32;
            for i in first..first + count {
                scale = max(scale, shares.scales[i]);
                least = max(least, shares.mins[i]);
            }
            BlockScale {
                bits: f16_bits(scale / most) | (f16_bits(least / most) << 16),
                inverse: select(scale > 0.0f32, most / scale, 0.0f32),
                inverse_min: select(least > 0.0f32, most / least, 0.0f32),
            }
        } else {
            let mut largest = 0.0f32;
            let mut extreme = 0.0f32;
            for i in first..first + count {
                let magnitude = f32::abs(shares.scales[i]);
                extreme = select(magnitude > largest, shares.scales[i], extreme);
                largest = max(largest, magnitude);
            }
            // ggml takes less for nothing in Q6_K alone.
            let least = comptime!(if rule.ty == GgmlType::Q6K { 1e-15f32 } else { f32::MIN_POSITIVE });
            let inverse = select(largest < least, 0.0f32, (0.0f32 - most) / extreme);
            let bits = select(largest < least, 0u32, f16_bits(1.0f32 / inverse));
            BlockScale { bits, inverse, inverse_min: 0.0f32.runtime() }
        }
    }

    /// The scale of a sub-block as a number.
    fn scale(&self, scale: f32, #[comptime] rule: SuperRule) -> i32 {
        let most = comptime!(rule.most_scale() as i32);
        let number = nearest(self.inverse * scale);
        if comptime!(rule.has_min()) { min(number, most) } else { clamp(number, -most, comptime!(most - 1)) }
    }

    /// The min of a sub-block as a number.
    fn min(&self, least: f32, #[comptime] rule: SuperRule) -> i32 {
        min(nearest(self.inverse_min * least), comptime!(rule.most_scale() as i32))
    }

    /// The float that the numbers of scales count.
    fn step(&self) -> f32 {
        f16(self.bits & 0xffff)
    }

    /// The float that the numbers of mins count.
    fn step_of_mins(&self) -> f32 {
        f16(self.bits >> 16)
    }
}

/// Quantizes a chunk, which is chunk `index` of the cube; the first of a super-block also stores its scales.
#[cube]
pub fn quantize_chunk<X: Float>(
    x: &[Vector<X, Const<4>>],
    out: &mut [Words],
    destination: &Destination,
    at: ChunkAt,
    shares: &Shares<'_>,
    index: usize,
    #[comptime] rule: SuperRule,
) {
    let (subs, bits) = comptime!((rule.subs(), rule.bits()));
    let first = index / CHUNKS * comptime!(CHUNKS * subs);
    let block = BlockScale::of(shares, first, rule);
    let low_bits = comptime!(if bits < 4 { 2 } else { 4 });
    let high_bits = comptime!(bits - low_bits);
    let mut low = chunk_words(comptime!(low_bits as usize));
    let mut high = chunk_words(comptime!(high_bits.max(1) as usize));
    #[unroll]
    for sub in 0..subs {
        let slot = index * subs + sub;
        let scale = block.step() * f32::cast_from(block.scale(shares.scales[slot], rule));
        let mut least = 0.0f32;
        if comptime!(rule.has_min()) {
            least = block.step_of_mins() * f32::cast_from(block.min(shares.mins[slot], rule));
        }
        #[unroll]
        for i in 0..comptime!(8 / subs) {
            let four = comptime!(sub * 8 / subs + i);
            let values = load::<X>(x, at.first + at.chunk * 8 + four);
            let mut codes = 0u32;
            #[unroll]
            for j in 0..4usize {
                codes |= code_of((values.extract(j) + least) / scale, rule) << comptime!(8 * j as u32);
            }
            // Values without a scale keep the codes that were found for them.
            let found = select(
                block.inverse == 0.0f32 && comptime!(rule.ty == GgmlType::Q6K),
                0u32,
                shares.codes[index * 8 + four],
            );
            let codes = select(scale == 0.0f32, found, codes);
            add_codes(
                &mut low,
                four,
                codes & comptime!(0x0101_0101u32 * ((1 << low_bits) - 1)),
                comptime!(low_bits as usize),
            );
            if comptime!(high_bits > 0) {
                let codes = (codes >> low_bits) & comptime!(0x0101_0101u32 * ((1 << high_bits) - 1));
                add_codes(&mut high, four, codes, comptime!(high_bits as usize));
            }
        }
    }
    let chunk = at.block * CHUNKS + at.chunk;
    destination.store_chunk(out, 0usize, at.row, chunk, &low, comptime!(low_bits as usize));
    if comptime!(high_bits > 0) {
        destination.store_chunk(out, 1usize, at.row, chunk, &high, comptime!(high_bits as usize));
    }
    if at.chunk == 0 {
        store_scales(out, destination, at, shares, first, block, rule);
    }
}

/// A value over its scale as a code.
#[cube]
fn code_of(number: f32, #[comptime] rule: SuperRule) -> u32 {
    let codes = comptime!(1i32 << rule.bits());
    if comptime!(rule.has_min()) {
        u32::cast_from(clamp(nearest(number), 0i32, comptime!(codes - 1)))
    } else {
        let half = comptime!(codes / 2);
        u32::cast_from(clamp(nearest(number), comptime!(-half), comptime!(half - 1)) + half)
    }
}

/// Stores the numbers of a super-block's scales and mins, and its own scale: after the components of codes.
#[cube]
fn store_scales(
    out: &mut [Words],
    destination: &Destination,
    at: ChunkAt,
    shares: &Shares<'_>,
    first: usize,
    block: BlockScale,
    #[comptime] rule: SuperRule,
) {
    let count = comptime!(CHUNKS * rule.subs());
    let component = comptime!(if matches!(rule.ty, GgmlType::Q2K | GgmlType::Q4K) { 1usize } else { 2 });
    let words = comptime!(if matches!(rule.ty, GgmlType::Q2K | GgmlType::Q6K) { 4usize } else { 3 });
    let mut packed = chunk_words(words);
    #[unroll]
    for i in 0..count {
        let scale = block.scale(shares.scales[first + i], rule);
        let mut least = 0u32;
        if comptime!(rule.has_min()) {
            least = u32::cast_from(block.min(shares.mins[first + i], rule));
        }
        match comptime!(rule.ty) {
            GgmlType::Q2K => {
                packed[comptime!(i / 4)] |= (u32::cast_from(scale) | (least << 4)) << comptime!((8 * (i % 4)) as u32)
            }
            GgmlType::Q3K => {
                // Where the super-block is zeros its scales are, too, not the zero that is in their middle.
                let number = select(block.inverse == 0.0f32, 0u32, u32::cast_from(scale + 32i32));
                packed[comptime!(i / 8)] |= (number & 0xf) << comptime!((4 * (i % 8)) as u32);
                packed[2] |= (number >> 4) << comptime!((2 * i) as u32);
            }
            GgmlType::Q6K => {
                packed[comptime!(i / 4)] |= (u32::cast_from(scale) & 0xff) << comptime!((8 * (i % 4)) as u32)
            }
            _ => {
                let scale = u32::cast_from(scale);
                packed[0] |= (scale & 0xf) << comptime!((4 * i) as u32);
                packed[1] |= (least & 0xf) << comptime!((4 * i) as u32);
                packed[2] |= ((scale >> 4) | ((least >> 4) << 2)) << comptime!((4 * i) as u32);
            }
        }
    }
    #[unroll]
    for word in 0..words {
        destination.store(out, component, at.row, at.block * words + word, packed[word]);
    }
    let own = comptime!(component + 1);
    if comptime!(rule.has_min()) {
        destination.store(out, own, at.row, at.block, block.bits);
    } else if at.block & 1 == 0 {
        // Two super-blocks have their scales in a word.
        let mut both = block.bits & 0xffff;
        if at.has_next {
            both |= BlockScale::of(shares, first + count, rule).bits << 16;
        }
        destination.store(out, own, at.row, at.block / 2, both);
    }
}
