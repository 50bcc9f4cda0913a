//! Q2_K to Q6_K: sub-blocks of 16 or 32 values, whose scales, and mins where there are some, are quantized by their super-block's.

use cubecl::prelude::*;

use super::chunks::{CHUNKS, ChunkAt};
use super::codes::{add_codes, zeros};
use super::importance::Importance;
use super::rounding::{floats_at, floats_of, load, load_all, nearest, product};
use super::search::{Found, LEAST, by_single_codes, code_at, extreme_of, positive, symmetric, with_min};
use super::super_rule::{Shares, SuperRule};
use crate::gguf::GgmlType;
use crate::kernels::floats::f16_bits;
use crate::kernels::formats::f16;
use crate::kernels::vector::Words;

/// Searches the scale of the sub-block from vector `first` on. The importances of its columns are those from `importance.first` on.
#[cube]
pub fn search_sub_block<X: Float>(
    x: &[Vector<X, Const<4>>],
    first: usize,
    importance: &Importance<'_>,
    #[comptime] rule: SuperRule,
) -> (Found, f32) {
    let len = comptime!(32 / rule.subs());
    let values = floats_of(&load_all::<X>(x, first, comptime!(len / 4)), len);
    let mut weights = Array::<f32>::new(len);
    if comptime!(rule.weighted) {
        let columns = floats_of(&load_all::<f32>(importance.values, importance.first, comptime!(len / 4)), len);
        #[unroll]
        for i in 0..len {
            weights[i] = columns[i];
            if comptime!(rule.ty != GgmlType::Q6K) {
                let deviation = f32::sqrt(importance.variance + product(values[i], values[i]));
                weights[i] = product(columns[i], deviation);
            }
        }
    } else if comptime!(rule.has_min()) {
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
    } else {
        #[unroll]
        for i in 0..len {
            weights[i] = product(values[i], values[i]);
        }
    }
    let mut weight = 0.0f32;
    #[unroll]
    for i in 0..len {
        weight += weights[i];
    }
    let found = if comptime!(rule.has_min()) {
        with_min(&values, &weights, comptime!(rule.steps()))
    } else if comptime!(rule.ty == GgmlType::Q6K) {
        symmetric(&values, &weights, len, 32i32)
    } else if comptime!(rule.weighted) {
        symmetric(&values, &weights, len, 4i32)
    } else {
        by_single_codes(&values, &weights, len, 4i32)
    };
    (found, weight)
}

/// The scale of a super-block, and those of its sub-blocks as numbers that count it.
#[derive(CubeType)]
struct BlockScale {
    /// The half of the scale, and above it that of the min.
    bits: u32,
    numbers: Array<i32>,
    min_numbers: Array<i32>,
    /// Whether all scales are as good as zero.
    is_zero: bool,
}

#[cube]
impl BlockScale {
    /// From what was found of its sub-blocks, which begin at `first`.
    fn of(shares: &Shares<'_>, first: usize, #[comptime] rule: SuperRule) -> BlockScale {
        let count = comptime!(CHUNKS * rule.subs());
        let scales = floats_at(shares.scales, first, count);
        if comptime!(rule.has_min()) {
            let mins = floats_at(shares.mins, first, count);
            let most = comptime!(rule.most_scale() as i32);
            let (scale, numbers, least, min_numbers) = if comptime!(rule.weighted) {
                let weights = floats_at(shares.weights, first, count);
                let (scale, numbers) = positive(&scales, &weights, count, most);
                let (least, min_numbers) = positive(&mins, &weights, count, most);
                (scale, numbers, least, min_numbers)
            } else {
                let (scale, numbers) = by_the_greatest(&scales, count, most);
                let (least, min_numbers) = by_the_greatest(&mins, count, most);
                (scale, numbers, least, min_numbers)
            };
            let bits = f16_bits(scale) | (f16_bits(least) << 16);
            BlockScale { bits, numbers, min_numbers, is_zero: false.runtime() }
        } else if comptime!(rule.weighted && rule.ty == GgmlType::Q3K) {
            let found = symmetric(&scales, &floats_at(shares.weights, first, count), count, 32i32);
            let mut numbers = Array::<i32>::new(count);
            #[unroll]
            for i in 0..count {
                numbers[i] = i32::cast_from(code_at(&found.codes, i)) - 32;
            }
            BlockScale {
                bits: f16_bits(found.scale),
                numbers,
                min_numbers: Array::new(1usize),
                is_zero: false.runtime(),
            }
        } else {
            let most = comptime!(rule.most_scale() as i32);
            let extreme = extreme_of(&scales, count);
            // ggml takes less for nothing in Q6_K alone.
            let least = comptime!(if rule.ty == GgmlType::Q6K { LEAST } else { f32::MIN_POSITIVE });
            let is_zero = f32::abs(extreme) < least;
            let inverse = (0.0f32 - comptime!(most as f32).runtime()) / extreme;
            let mut numbers = Array::<i32>::new(count);
            #[unroll]
            for i in 0..count {
                let number = clamp(nearest(inverse * scales[i]), -most, comptime!(most - 1));
                // The fields of zeros are zeros: of Q3_K, whose numbers have 32 added, too.
                let none = comptime!(if rule.ty == GgmlType::Q3K { -32i32 } else { 0 });
                numbers[i] = select(is_zero, none, number);
            }
            let bits = select(is_zero, 0u32, f16_bits(1.0f32 / inverse));
            BlockScale { bits, numbers, min_numbers: Array::new(1usize), is_zero }
        }
    }

    /// The scale of sub-block `sub`.
    fn scale(&self, sub: usize, #[comptime] count: usize) -> f32 {
        f16(self.bits & 0xffff) * f32::cast_from(number_at(&self.numbers, sub, count))
    }

    /// The min of sub-block `sub`.
    fn min(&self, sub: usize, #[comptime] count: usize) -> f32 {
        f16(self.bits >> 16) * f32::cast_from(number_at(&self.min_numbers, sub, count))
    }
}

/// Nonnegative numbers as multiples of a step, of which the greatest has `most`; and the step.
#[cube]
fn by_the_greatest(x: &Array<f32>, #[comptime] count: usize, #[comptime] most: i32) -> (f32, Array<i32>) {
    let top = comptime!(most as f32).runtime();
    let mut greatest = 0.0f32;
    #[unroll]
    for i in 0..count {
        greatest = max(greatest, x[i]);
    }
    let inverse = select(greatest > 0.0f32, top / greatest, 0.0f32);
    let mut numbers = Array::<i32>::new(count);
    #[unroll]
    for i in 0..count {
        numbers[i] = min(nearest(inverse * x[i]), most);
    }
    (greatest / top, numbers)
}

/// Number `index`: registers have no indices but constants.
#[cube]
fn number_at(numbers: &Array<i32>, index: usize, #[comptime] count: usize) -> i32 {
    let mut number = 0i32;
    #[unroll]
    for i in 0..count {
        number = select(index == i, numbers[i], number);
    }
    number
}

/// Quantizes a chunk, which is chunk `index` of the cube; the first of a super-block also stores its scales.
#[cube]
pub fn quantize_chunk<X: Float>(
    x: &[Vector<X, Const<4>>],
    out: &mut [Words],
    at: ChunkAt,
    shares: &Shares<'_>,
    index: usize,
    #[comptime] rule: SuperRule,
) {
    let (subs, bits) = comptime!((rule.subs(), rule.bits()));
    let count = comptime!(CHUNKS * subs);
    let first = index / CHUNKS * count;
    let block = BlockScale::of(shares, first, rule);
    let low_bits = comptime!(if bits < 4 { 2 } else { 4 });
    let high_bits = comptime!(bits - low_bits);
    let mut low = zeros(comptime!(low_bits as usize));
    let mut high = zeros(comptime!(high_bits.max(1) as usize));
    #[unroll]
    for sub in 0..subs {
        let own = at.chunk * subs + sub;
        let scale = block.scale(own, count);
        let mut least = 0.0f32;
        if comptime!(rule.has_min()) {
            least = block.min(own, count);
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
            // Values without a scale keep the codes that were found for them, but where ggml clears the block.
            let is_cleared = comptime!(rule.ty == GgmlType::Q6K) && block.is_zero;
            let found = select(is_cleared, 0u32, shares.codes[index * 8 + four]);
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
    at.destination.store_chunk(out, 0usize, at.row, chunk, &low, comptime!(low_bits as usize));
    if comptime!(high_bits > 0) {
        at.destination.store_chunk(out, 1usize, at.row, chunk, &high, comptime!(high_bits as usize));
    }
    if at.chunk == 0 {
        store_scales(out, at, shares, first, &block, rule);
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
    at: ChunkAt,
    shares: &Shares<'_>,
    first: usize,
    block: &BlockScale,
    #[comptime] rule: SuperRule,
) {
    let count = comptime!(CHUNKS * rule.subs());
    let component = comptime!(if matches!(rule.ty, GgmlType::Q2K | GgmlType::Q4K) { 1usize } else { 2 });
    let words = comptime!(if matches!(rule.ty, GgmlType::Q2K | GgmlType::Q6K) { 4usize } else { 3 });
    let mut packed = zeros(words);
    #[unroll]
    for i in 0..count {
        let scale = block.numbers[i];
        let mut least = 0u32;
        if comptime!(rule.has_min()) {
            least = u32::cast_from(block.min_numbers[i]);
        }
        match comptime!(rule.ty) {
            GgmlType::Q2K => {
                packed[comptime!(i / 4)] |= (u32::cast_from(scale) | (least << 4)) << comptime!((8 * (i % 4)) as u32)
            }
            GgmlType::Q3K => {
                let number = u32::cast_from(scale + 32i32);
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
        at.destination.store(out, component, at.row, at.block * words + word, packed[word]);
    }
    let own = comptime!(component + 1);
    if comptime!(rule.has_min()) {
        at.destination.store(out, own, at.row, at.block, block.bits);
    } else {
        let mut next = 0u32;
        if at.has_both() {
            next = BlockScale::of(shares, first + count, rule).bits;
        }
        at.store_halves(out, own, block.bits & 0xffff, next);
    }
}
