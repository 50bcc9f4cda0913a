//! Activations as int8 codes in a cube's shared memory, by the cube that multiplies them.

use cubecl::prelude::*;

use super::codes::{SHARERS, codes_of_part};
use crate::kernels::arch::permute::alternate;
use crate::kernels::arch::schedule::issue_loads;
use crate::kernels::formats::CHUNK;
use crate::kernels::vector::Words;

/// Rows of activations.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub struct Rows {
    /// Vectors from one row to the next.
    pub stride: usize,
    /// The first row that is staged.
    pub first: usize,
    /// Number of rows; indices past the last read the last.
    pub all: usize,
    /// Chunks of a row.
    pub chunks: usize,
}

/// Vectors of values on their way to a lane: of some turns, each of which is a part of a chunk.
pub type Loaded = Sequence<Sequence<Vector<f32, Const<4>>>>;

/// Quantizes the staging's rows of activations to codes and scales in a cube's shared memory, at the indices that
/// [`staged()`] gives, by `lanes` units. The first round is `loaded`.
#[cube]
pub fn stage<X: Float>(
    x: &[Vector<X, Const<4>>],
    rows: Rows,
    loaded: &Loaded,
    codes: &mut [Words],
    scales: &mut [Vector<f32, Const<4>>],
    #[comptime] staging: Staging,
    #[comptime] lanes: usize,
) {
    stage_loaded(loaded, rows, 0usize.runtime(), codes, scales, staging, lanes);
    let (parts, of_round) = comptime!((staging.parts(lanes), staging.turns(lanes) * lanes));
    if comptime!(parts > of_round) {
        for first in range_stepped(of_round, parts, of_round) {
            let loaded = load(x, rows, first, staging, lanes);
            issue_loads();
            stage_loaded(&loaded, rows, first, codes, scales, staging, lanes);
        }
    }
}

/// Starts to load a round of parts, from part `first` on.
#[cube]
pub fn load<X: Float>(
    x: &[Vector<X, Const<4>>],
    rows: Rows,
    first: usize,
    #[comptime] staging: Staging,
    #[comptime] lanes: usize,
) -> Loaded {
    let fours = comptime!(staging.fours(lanes));
    let row_parts = comptime!(staging.chunks * SHARERS / fours);
    let mut loaded = Loaded::new();
    #[unroll]
    for turn in 0..comptime!(staging.turns(lanes)) {
        let position = first + comptime!(turn * lanes) + UNIT_POS as usize;
        let (token, at) = (rows.first + position / row_parts, position % row_parts * fours);
        let token = select(token < rows.all, token, rows.all - 1);
        let at = select(at < rows.chunks * SHARERS, at, 0);
        let mut values = Sequence::<Vector<f32, Const<4>>>::new();
        #[unroll]
        for i in 0..fours {
            values.push(Vector::<f32, Const<4>>::cast_from(x[token * rows.stride + at + i]));
        }
        loaded.push(values);
    }
    loaded
}

/// Quantizes a round of parts. All lanes take each turn, as those that share a chunk exchange values.
#[cube]
fn stage_loaded(
    loaded: &Loaded,
    rows: Rows,
    first: usize,
    codes: &mut [Words],
    scales: &mut [Vector<f32, Const<4>>],
    #[comptime] staging: Staging,
    #[comptime] lanes: usize,
) {
    let (fours, all) = comptime!((staging.fours(lanes), staging.parts(lanes)));
    let (parts, row_parts) = comptime!((SHARERS / fours, staging.chunks * SHARERS / fours));
    #[unroll]
    for turn in 0..loaded.len() {
        let first = first + comptime!(turn * lanes);
        if comptime!(turn == 0) || first < all {
            let position = first + UNIT_POS as usize;
            let (token, at) = (position / row_parts, position % row_parts);
            let (chunk, part) = (at / parts, at % parts);
            let (coded, of_chunk) = codes_of_part(loaded.index(turn), parts);
            let coded = if comptime!(staging.alternating) { alternating(&coded, part, parts) } else { coded };
            if position < all && chunk < rows.chunks {
                let place = staged(token, chunk / staging.span, chunk % staging.span, staging);
                let (half, four) = (part / comptime!(parts / 2), part % comptime!(parts / 2) * fours);
                store(codes, place + half * comptime!(staging.vectors()), four, &coded);
                if part == 0 {
                    scales[place] = of_chunk;
                }
            }
        }
    }
}

/// The words of a part in the alternating order: a part of the first half has what alternates at the front of its words and of
/// the same words of the other half, that part has what alternates at their back.
#[cube]
fn alternating(words: &Sequence<u32>, part: usize, #[comptime] parts: usize) -> Sequence<u32> {
    let half = comptime!(parts / 2);
    let mut out = Sequence::<u32>::new();
    #[unroll]
    for i in 0..words.len() {
        let mine = *words.index(i);
        out.push(alternate(mine, plane_shuffle_xor(mine, comptime!(half as u32)), part < half));
    }
    out
}

/// Stores words of a vector from word `first` on.
#[cube]
fn store(vectors: &mut [Words], index: usize, first: usize, words: &Sequence<u32>) {
    let count = words.len();
    if comptime!(count == 4) {
        let mut vector = Words::empty();
        #[unroll]
        for i in 0..count {
            vector.insert(i, *words.index(i));
        }
        vectors[index] = vector;
    } else {
        let single = vectors.with_vector_size_mut::<Const<1>>();
        #[unroll]
        for i in 0..count {
            single[4 * index + first + i] = Vector::new(*words.index(i));
        }
    }
}

/// Vectors of four activations whose loads a lane has in flight while it stages: those of a cube take half of a core's registers.
fn loaded_fours(lanes: usize) -> usize {
    (8192 / lanes).clamp(8, 32)
}

/// Room in shared memory for the codes of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Staging {
    /// Rows of activations.
    pub tokens: usize,
    /// Chunks of a row, a multiple of the span.
    pub chunks: usize,
    /// Chunks that a lane multiplies together.
    pub span: usize,
    /// Whether the codes of a chunk's two halves alternate: words `i` of both hold codes `4 * i` and `4 * i + 1` of each half, and
    /// codes `4 * i + 2` and `4 * i + 3`, as nibbles lie that are the low and the high ones of bytes.
    pub alternating: bool,
}

impl Staging {
    /// Bytes of shared memory.
    pub const fn bytes(self) -> usize {
        self.vectors() * (CHUNK + 16)
    }

    /// Vectors of the scales of all chunks, and of either half of their codes: one a chunk, with padding.
    pub const fn vectors(self) -> usize {
        self.tokens * self.stride()
    }

    /// Vectors of four values that a lane takes together: its share of the cube's, as 1, 2 or 4 (half a chunk).
    fn fours(self, lanes: usize) -> usize {
        let fours = self.tokens * self.chunks * SHARERS / lanes;
        if fours < 2 { 1 } else { fours.min(4).next_multiple_of(2) }
    }

    /// Parts of chunks, the work of a turn of a lane, of all rows.
    fn parts(self, lanes: usize) -> usize {
        self.tokens * self.chunks * SHARERS / self.fours(lanes)
    }

    /// Turns of a lane whose loads are on their way together.
    pub fn turns(self, lanes: usize) -> usize {
        (loaded_fours(lanes) / self.fours(lanes)).min(self.parts(lanes).div_ceil(lanes))
    }

    /// Vectors from one token to the next, padded so that the same chunk of two tokens lies in different banks.
    const fn stride(self) -> usize {
        if self.tokens > 1 { self.chunks + 4 } else { self.chunks }
    }
}

/// Index of the first 16 codes, and of the scales, of chunk `place` of a span. Lanes that read at once have
/// neighbouring spans, so their vectors are side by side. The last 16 codes lie [`Staging::vectors`] further on.
#[cube]
pub fn staged(token: usize, span: usize, place: usize, #[comptime] staging: Staging) -> usize {
    token * comptime!(staging.stride()) + place * comptime!(staging.chunks / staging.span) + span
}
