//! What a cube reads: matrices, activations, the codebook.

use cubecl::prelude::*;

use super::clamped;
use crate::kernels::epilogue::Epilogue;
use crate::kernels::formats::{At, MatrixView};
use crate::kernels::launch::Grid;
use crate::kernels::matvec::blueprint::Blueprint;
use crate::kernels::quantize::staged::{Loaded, Rows, Staging, load, stage, staged};
use crate::kernels::routing::{Pair, Pairs};
use crate::kernels::vector::Words;

/// Buffers that a [`Matrix`] binds beside those of its epilogue: its view as vectors and as words, and its codebook.
pub const MATRIX_BUFFERS: usize = 3;

/// A matrix of a launch.
#[derive(CubeType, CubeLaunch)]
pub struct Matrix {
    pub(super) view: MatrixView,
    pub(super) epilogue: Epilogue,
    /// Rows.
    pub(super) n: usize,
    /// Where its results begin.
    pub(super) start: usize,
    /// Cubes that take its rows.
    pub(super) cubes: usize,
    /// Where this matrix starts in the grid: cubes used by earlier matrices or, in a persistent launch, lane groups used in
    /// their last pass.
    pub(super) before: usize,
    /// How often all groups take rows.
    pub(super) passes: usize,
}

/// How much a launch multiplies.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub struct Extent {
    grid: Grid,
    /// Spans of a row.
    pub(super) spans: usize,
    /// From one row of activations to the next: vectors of values, or chunks of codes.
    pub(super) stride: usize,
    /// The first row of activations, of the launch where it is an argument, then of the cube's slice.
    pub(super) first_token: usize,
    /// All rows of activations, of this launch and of others.
    pub(super) tokens: usize,
}

/// A cube of a launch.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub(super) struct CubeWork {
    /// Its number, among those of its slice of the activations, or of its pair where there are experts.
    pub(super) cube: usize,
    pub(super) extent: Extent,
    /// The first row of weights of its expert; 0 without experts.
    pub(super) expert_row: usize,
    /// The row of the result of the cube's first row of activations.
    pub(super) result_row: usize,
    /// Whether there is such an expert.
    pub(super) is_known: bool,
    #[cube(comptime)]
    pub(super) has_experts: bool,
    #[cube(comptime)]
    pub(super) blueprint: Blueprint,
}

#[cube]
impl CubeWork {
    /// This cube, which is one of a pair's where there are such.
    pub(super) fn new(extent: Extent, pairs: &ComptimeOption<Pairs>, #[comptime] blueprint: Blueprint) -> CubeWork {
        let cube = extent.grid.cube_of_slice();
        #[comptime]
        let pair = match pairs {
            ComptimeOption::Some(pairs) => {
                // Some grids have more cubes than there are.
                if cube >= extent.grid.len {
                    terminate!();
                }
                pairs.of_cube(cube)
            }
            ComptimeOption::None => {
                let (token, first_row) =
                    (extent.first_token + CUBE_POS_X as usize * blueprint.tokens, 0usize.runtime());
                Pair { index: token, token, first_row, is_known: true.runtime(), cube }
            }
        };
        let has_experts = comptime!(pairs.is_some());
        let Extent { grid, spans, stride, tokens, .. } = extent;
        let tokens = if has_experts { pair.token + 1 } else { tokens };
        CubeWork {
            cube: pair.cube,
            extent: Extent { grid, spans, stride, first_token: pair.token, tokens },
            expert_row: pair.first_row,
            result_row: pair.index,
            is_known: pair.is_known,
            has_experts,
            blueprint,
        }
    }

    /// Row `t` of the cube's activations, among all.
    pub(super) fn token(&self, #[comptime] t: usize) -> usize {
        clamped(self.extent.first_token + t, self.extent.tokens)
    }
}

/// What all units of a cube read beside the matrices.
#[derive(CubeType)]
pub(super) struct Inputs<'codebook, 'x> {
    pub(super) work: CubeWork,
    /// The format's codebook.
    pub(super) codebook: &'codebook [u32],
    pub(super) x: ActivationView<'x>,
}

#[cube]
impl<'codebook, 'x> Inputs<'codebook, 'x> {
    pub(super) fn new(work: CubeWork, codebook: &'codebook [u32], x: ActivationView<'x>) -> Inputs<'codebook, 'x> {
        Inputs::<'codebook, 'x> { work, codebook, x }
    }
}

/// Activations in memory as int8 codes, in chunks of 32.
#[derive(CubeType, CubeLaunch)]
pub struct Codes {
    /// Two vectors of 16 codes a chunk.
    pub(super) codes: Box<[Words]>,
    /// What [`Quantized::scales`](crate::kernels::quantize::activations::Quantized::scales) has of each chunk.
    pub(super) scales: Box<[Vector<f32, Const<4>>]>,
}

/// What an [`ActivationView`] is of: known when the kernel is compiled.
#[derive(CubeType)]
#[expect(dead_code, reason = "made where a kernel is expanded, by the macro's own names")]
pub(super) enum AnyActivations<C: CubeType, V: CubeType> {
    /// Those of [`Codes`].
    Codes { codes: C, scales: V },
    /// The same in shared memory, where [`staged()`] places them.
    Staged { codes: C, scales: V },
    /// Values.
    Values { values: V },
}

/// Activations as a cube reads them. (CubeCL's enums have no lifetimes of their own.)
pub(super) type ActivationView<'x> = AnyActivations<&'x [Words], &'x [Vector<f32, Const<4>>]>;

/// A chunk of activations as codes: the first and the last 16, and what
/// [`Quantized::scales`](crate::kernels::quantize::activations::Quantized::scales) has of it.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub(super) struct ActivationChunk {
    pub(super) low: Words,
    pub(super) high: Words,
    pub(super) scales: Vector<f32, Const<4>>,
}

/// Where a lane is in the rows of its group.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub(super) struct Position {
    /// The first row of weights of the cube's expert.
    pub(super) expert_row: usize,
    /// The first row of the group, among the expert's.
    pub(super) row: usize,
    /// The span of a row.
    pub(super) span: usize,
    /// Which of the lane's spans of a step that is.
    #[cube(comptime)]
    pub(super) turn: usize,
    /// The chunk's place in its span.
    #[cube(comptime)]
    pub(super) place: usize,
}

#[cube]
impl Position {
    /// The chunk of row `r` of the group.
    pub(super) fn of_row(&self, matrix: &Matrix, #[comptime] r: usize, #[comptime] blueprint: Blueprint) -> At {
        At::in_span(self.expert_row + clamped(self.row + r, matrix.n), self.span, blueprint.span, self.place)
    }

    /// The chunk in its row.
    pub(super) fn chunk(&self, #[comptime] blueprint: Blueprint) -> usize {
        self.span * blueprint.span + self.place
    }
}

#[cube]
impl<'x> AnyActivations<&'x [Words], &'x [Vector<f32, Const<4>>]> {
    /// The codes at a position, which is that of chunk `chunk` of a row, of row `t` of the cube.
    pub(super) fn chunk(
        &self,
        work: CubeWork,
        position: Position,
        chunk: usize,
        #[comptime] t: usize,
    ) -> ActivationChunk {
        match self {
            AnyActivations::Codes { codes, scales } => {
                let at = work.token(t) * work.extent.stride + chunk;
                ActivationChunk { low: codes[2 * at], high: codes[2 * at + 1], scales: scales[at] }
            }
            AnyActivations::Staged { codes, scales } => {
                let staging = comptime!(staging_of(work.blueprint));
                let at = staged(t, position.span, comptime!(position.place), staging);
                let high = at + comptime!(staging.vectors());
                ActivationChunk { low: codes[at], high: codes[high], scales: scales[at] }
            }
            AnyActivations::Values { .. } => comptime!(panic!("values have no codes")),
        }
    }

    /// The values.
    pub(super) fn values(&self) -> &'x [Vector<f32, Const<4>>] {
        match self {
            AnyActivations::Values { values } => values,
            _ => comptime!(panic!("codes are no values")),
        }
    }
}

/// Words of a codebook that a unit has on their way at the most.
const LOADED_WORDS: usize = 8;

/// The unit's first words of the format's codebook, on their way.
#[cube]
pub(super) fn load_codebook(from: &[u32], #[comptime] blueprint: Blueprint) -> Sequence<u32> {
    let units = comptime!(blueprint.units() as usize);
    let mut words = Sequence::<u32>::new();
    #[unroll]
    for i in 0..comptime!(blueprint.codebook.div_ceil(units).min(LOADED_WORDS)) {
        words.push(from[clamped(UNIT_POS as usize + comptime!(i * units), blueprint.codebook)]);
    }
    words
}

/// Stores the format's codebook, of which a unit has loaded the first words, by all units of the cube.
#[cube]
pub(super) fn store_codebook(words: &Sequence<u32>, from: &[u32], to: &mut [u32], #[comptime] blueprint: Blueprint) {
    let units = comptime!(blueprint.units() as usize);
    let loaded = comptime!(words.len() * units);
    #[unroll]
    for i in 0..words.len() {
        let place = UNIT_POS as usize + comptime!(i * units);
        if place < blueprint.codebook {
            to[place] = *words.index(i);
        }
    }
    if comptime!(loaded < blueprint.codebook) {
        for place in range_stepped(loaded + UNIT_POS as usize, blueprint.codebook, units) {
            to[place] = from[place];
        }
    }
}

#[cube]
impl CubeWork {
    /// Its rows of activations, as [`stage`] takes them.
    fn rows(&self) -> Rows {
        let Extent { spans, stride, first_token, tokens, .. } = self.extent;
        Rows { stride, first: first_token, all: tokens, chunks: spans * self.blueprint.span }
    }
}

/// The unit's first activations of those that the cube stages, on their way.
#[cube]
pub(super) fn load_activations<X: Float>(x: &[Vector<X, Const<4>>], work: CubeWork) -> Loaded {
    let blueprint = comptime!(work.blueprint);
    let (staging, units) = comptime!((staging_of(blueprint), blueprint.units() as usize));
    load(x, work.rows(), 0usize.runtime(), staging, units)
}

/// The cube's activations as codes.
#[cube]
pub(super) fn stage_activations<X: Float>(
    x: &[Vector<X, Const<4>>],
    loaded: &Loaded,
    work: CubeWork,
    codes: &mut [Words],
    scales: &mut [Vector<f32, Const<4>>],
) {
    let blueprint = comptime!(work.blueprint);
    let (staging, units) = comptime!((staging_of(blueprint), blueprint.units() as usize));
    stage(x, work.rows(), loaded, codes, scales, staging, units);
}

/// The staging of a blueprint that has one.
pub(super) fn staging_of(blueprint: Blueprint) -> Staging {
    let span = blueprint.span;
    blueprint.staging.unwrap_or(Staging { tokens: 1, chunks: span, span, alternating: false })
}
