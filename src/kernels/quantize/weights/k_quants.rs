//! Q2_K to Q6_K: super-blocks of 256 values, whose sub-blocks have quantized scales.
//!
//! A unit takes a chunk of 32 values: one sub-block of Q4_K and Q5_K, two of the others. It searches the scales of its sub-blocks,
//! shares them with the other units of the super-block, quantizes the scales as all of these do alike, and its values by what
//! became of the scales. Super-blocks go in pairs, as some have half a word for a scale. Where units are threads of the host, one
//! takes a pair.

use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::Run;
use super::codes::{Destination, add_codes, chunk_words};
use super::rounding::{largest, load, nearest, product};
use super::search::{Found, Steps, by_single_codes, symmetric, with_min};
use crate::gguf::GgmlType;
use crate::kernels::floats::f16_bits;
use crate::kernels::formats::f16;
use crate::kernels::vector::Words;

/// Chunks of a super-block.
const CHUNKS: usize = 8;
/// Chunks of a pair of super-blocks.
pub const PAIR: usize = 2 * CHUNKS;

/// How super-blocks are quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SuperRule {
    pub ty: GgmlType,
    /// Units of a cube.
    pub units: usize,
    /// Chunks that a unit takes: one, or a pair of super-blocks.
    pub chunks: usize,
}

impl SuperRule {
    pub fn has(ty: GgmlType) -> bool {
        matches!(ty, GgmlType::Q2K | GgmlType::Q3K | GgmlType::Q4K | GgmlType::Q5K | GgmlType::Q6K)
    }

    /// Sub-blocks of a chunk.
    fn subs(self) -> usize {
        if matches!(self.ty, GgmlType::Q4K | GgmlType::Q5K) { 1 } else { 2 }
    }

    /// Whether sub-blocks have a min.
    fn has_min(self) -> bool {
        matches!(self.ty, GgmlType::Q2K | GgmlType::Q4K | GgmlType::Q5K)
    }

    /// Bits of a code.
    fn bits(self) -> u32 {
        match self.ty {
            GgmlType::Q2K => 2,
            GgmlType::Q3K => 3,
            GgmlType::Q4K => 4,
            GgmlType::Q5K => 5,
            _ => 6,
        }
    }

    /// The greatest number that a scale, or a min, becomes; where there are no mins, the one that the largest becomes the negative
    /// of.
    fn most_scale(self) -> u32 {
        match self.ty {
            GgmlType::Q2K => 15,
            GgmlType::Q3K => 32,
            GgmlType::Q6K => 128,
            _ => 63,
        }
    }

    /// The search of scale and min.
    fn steps(self) -> Steps {
        let len = 32 / self.subs();
        let most = (1 << self.bits()) - 1;
        let (first, last) = if self.ty == GgmlType::Q4K { (-10, 20) } else { (-5, 15) };
        Steps { len, most, first, last, absolute: self.ty == GgmlType::Q2K }
    }

    /// Chunks of a cube.
    pub fn cube_chunks(self) -> usize {
        self.units * self.chunks
    }
}

/// A chunk of the matrix.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
struct ChunkAt {
    /// The row among those of the launch.
    from_row: usize,
    row: usize,
    block: usize,
    /// The chunk in its super-block.
    chunk: usize,
    /// Whether there is such a chunk: the last pair of a row may have one super-block.
    exists: bool,
    /// Whether the row has a super-block after this one.
    has_next: bool,
}

#[cube]
impl ChunkAt {
    /// The launch's chunk `index`, counted over pairs.
    fn new(run: Run, index: usize) -> ChunkAt {
        let (pair, in_pair) = (index / PAIR, index % PAIR);
        let (from_row, block) = (pair / run.units, pair % run.units * 2 + in_pair / CHUNKS);
        let exists = index < run.grid.len && block < run.blocks;
        let (row, has_next) = (run.first_row + from_row, block + 1 < run.blocks);
        ChunkAt { from_row, row, block, chunk: index % CHUNKS, exists, has_next }
    }
}

/// What the units of a cube share: of each sub-block its scale and min, of each chunk the codes that were found.
#[derive(CubeType)]
struct Shares<'a> {
    scales: &'a [f32],
    mins: &'a [f32],
    codes: &'a [u32],
}

#[cube]
impl<'a> Shares<'a> {
    fn new(scales: &'a [f32], mins: &'a [f32], codes: &'a [u32]) -> Shares<'a> {
        Shares::<'a> { scales, mins, codes }
    }
}

#[cube(launch)]
pub fn quantize_super_blocks<X: Float>(
    x: &[Vector<X, Const<4>>],
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
    let mut codes = Shared::<[u32]>::new_slice(comptime!(8 * rule.cube_chunks()));
    let first = run.grid.cube() * comptime!(rule.cube_chunks());
    let own = UNIT_POS as usize * rule.chunks;
    for i in own..own + rule.chunks {
        let at = ChunkAt::new(run, first + i);
        if at.exists {
            let from = ((at.from_row * run.blocks + at.block) * CHUNKS + at.chunk) * 8;
            let mut greatest = 0u32;
            for four in 0..8usize {
                greatest = max(greatest, largest::<X>(x, from + four));
            }
            if greatest >= 0x7f80_0000 {
                faults[at.row] = 1u32;
            }
            for sub in 0..subs {
                let found = search_sub_block::<X>(x, from + sub * comptime!(8 / subs), rule);
                scales[i * subs + sub] = found.scale;
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
    if comptime!(rule.chunks == 1) {
        sync_cube();
    }
    let shares = Shares::new(&scales, &mins, &codes);
    for i in own..own + rule.chunks {
        let at = ChunkAt::new(run, first + i);
        if at.exists {
            let from = ((at.from_row * run.blocks + at.block) * CHUNKS + at.chunk) * 8;
            quantize_chunk::<X>(x, from, out, &destination, at, &shares, i, rule);
        }
    }
}

/// Searches the scale of the sub-block from vector `first` on.
#[cube]
fn search_sub_block<X: Float>(x: &[Vector<X, Const<4>>], first: usize, #[comptime] rule: SuperRule) -> Found {
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

/// Quantizes the chunk from vector `from` on, which is chunk `index` of the cube; the first of a super-block also stores its scales.
#[cube]
fn quantize_chunk<X: Float>(
    x: &[Vector<X, Const<4>>],
    from: usize,
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
            let values = load::<X>(x, from + four);
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
