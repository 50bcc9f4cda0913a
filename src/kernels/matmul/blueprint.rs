//! The compile-time parameters of a matrix-unit kernel, and the rule that picks them.

use super::pack::{MAX_TOKENS, run};
use super::problem::Problem;
use crate::gguf::GgmlType;
use crate::kernels::arch::matrix_unit::MatrixUnit;
use crate::kernels::arch::target::Target;
use crate::kernels::formats::{CHUNK, traits};
use crate::kernels::hardware::Hardware;

/// Planes of a cube.
const PLANES: usize = 8;

/// Tokens of a tile for which decoding takes longer than multiplying.
const MAX_FEW: usize = 64;

/// Bytes of the sums of all splits at the most.
const MAX_SPLIT_BYTES: usize = 32 << 20;

/// Planes of a warpgroup.
const WARPGROUP: usize = 4;

/// A warpgroup's tile for more than 64 tokens.
struct Tile {
    tokens: usize,
    planes: usize,
    /// Steps that a split has at the least.
    least_steps: usize,
    /// The time that a value of the result takes, of the first tile's.
    percent: usize,
}

/// Those to choose from. (Measured on an H100, Q4_0, 512 tokens.)
const MANY: [Tile; 3] = [
    Tile { tokens: MAX_TOKENS, planes: 2 * WARPGROUP, least_steps: 48, percent: 100 },
    Tile { tokens: MAX_TOKENS, planes: WARPGROUP, least_steps: 48, percent: 120 },
    Tile { tokens: 128, planes: 2 * WARPGROUP, least_steps: 4, percent: 130 },
];

/// Everything about the kernel that is fixed when it is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Blueprint {
    /// The format of the weights.
    pub ty: GgmlType,
    /// The instruction that multiplies.
    pub unit: MatrixUnit,
    /// Rows of weights of a plane, in the instruction's tiles of 16.
    pub row_tiles: usize,
    /// Rows of activations of a cube, in the instruction's tiles of 8 or 16.
    pub token_tiles: usize,
    /// Planes of a cube with rows of their own.
    pub row_planes: usize,
    /// Planes that share rows: each takes its slices of the depth, and their sums are added up at the end.
    pub slices: usize,
    /// Cubes that share a tile of the result: each takes its steps of the depth, and their sums are added up by a kernel of
    /// its own.
    pub splits: usize,
    /// Values side by side of a row that are one lane's.
    pub run: usize,
    /// Whether a row is whole steps of all slices.
    pub whole: bool,
}

impl Blueprint {
    /// The rule's choice. (Measured on an H100: `slices` and `row_tiles` at 14336 x 4096 and 4096 x 4096.)
    pub fn of(hardware: &Hardware, unit: MatrixUnit, problem: Problem) -> Self {
        match unit {
            MatrixUnit::Wgmma { .. } => Self::for_warpgroups(hardware, problem),
            _ => Self::for_planes(hardware, unit, problem),
        }
    }

    /// The rule's choice for tiles of pairs of tokens and experts: `problem` has the pairs as tokens and the rows of an expert.
    pub fn of_experts(hardware: &Hardware, unit: MatrixUnit, problem: Problem, experts: usize) -> Self {
        let busy = experts.min(problem.tokens).max(1);
        // Some experts have more pairs than others, and weights are decoded for each tile.
        let tokens = (3 * problem.tokens.div_ceil(busy)).div_ceil(2);
        Self { splits: 1, ..Self::of(hardware, unit, Problem { tokens, n: busy * problem.n, ..problem }) }
    }

    /// Cubes of two warpgroups with rows of their own; where tokens are few, of two that share rows, or of one.
    fn for_warpgroups(hardware: &Hardware, problem: Problem) -> Self {
        let Problem { ty, tokens, n, chunks } = problem;
        let with = |tile: usize, row_planes: usize, slices: usize| {
            let unit = MatrixUnit::Wgmma { tokens: tile };
            let of = Self {
                ty,
                unit,
                row_tiles: 1,
                token_tiles: 1,
                row_planes,
                slices,
                splits: 1,
                run: CHUNK,
                whole: false,
            };
            of.for_row_of(chunks)
        };
        let cores = hardware.cores_or_few();
        let cubes = |of: &Self| n.div_ceil(of.rows()) * tokens.div_ceil(of.tokens());
        // As many splits as fill the cores with so many cubes each, of at least so many steps.
        let split = |of: Self, per_core: usize, least: usize| {
            let steps = chunks.div_ceil(of.step_chunks());
            let most = (steps / least).min(MAX_SPLIT_BYTES / (4 * n * tokens)).max(1);
            let splits = (per_core * cores / cubes(&of)).clamp(1, most);
            // None without a step.
            Self { splits: steps.div_ceil(steps.div_ceil(splits)), ..of }
        };
        // A core has one such cube at a time.
        let rounds = |of: &Self| (cubes(of) * of.splits).div_ceil(cores);
        // Beside the sums of 256 tokens, lanes have no registers for the words of F32.
        let most = if ty == GgmlType::F32 { 128 } else { MAX_TOKENS };
        let many = MANY.into_iter().filter(|of| tokens > of.tokens / 2 && of.tokens <= most);
        let many = many.map(|tile| {
            let of = split(with(tile.tokens, tile.planes, 1), 1, tile.least_steps);
            (rounds(&of) * of.rows() * of.tokens() / of.splits * tile.percent, of)
        });
        many.min_by_key(|&(time, _)| time).map(|(_, of)| of).unwrap_or_else(|| {
            let tile = tokens.next_power_of_two().max(16);
            let two = with(tile, WARPGROUP, 2);
            let is_few = tile <= 32 && two.step_chunks() <= chunks;
            split(if is_few { two } else { with(tile, WARPGROUP, 1) }, 2, 4)
        })
    }

    fn for_planes(hardware: &Hardware, unit: MatrixUnit, problem: Problem) -> Self {
        let Problem { ty, tokens, n, chunks } = problem;
        let few = tokens <= 64;
        // The words of floats take the registers of more rows: on RDNA, all that there are.
        let is_wide = ty == GgmlType::F32 || traits(ty).dense && unit.is_wmma();
        let row_tiles = if few || is_wide { 1 } else { 2 };
        let with = |tokens: usize, slices: usize| {
            let (token_tiles, row_planes) = (tokens / unit.tokens(), PLANES / slices);
            let of = Self { ty, unit, row_tiles, token_tiles, row_planes, slices, splits: 1, run: CHUNK, whole: false };
            of.for_row_of(chunks)
        };
        // The larger a tile, the fewer times weights are decoded. A second cube fits beside it, but on CDNA3, whose vector
        // instructions would else take longer than those of its matrix unit.
        let is_cdna3 = matches!(&hardware.target, Target::Amd(processor) if processor.starts_with("gfx94"));
        let cubes_per_core = if is_cdna3 { 1 } else { 2 };
        let fit = |&tokens: &usize| cubes_per_core * with(tokens, 1).shared_bytes() <= hardware.shared_memory;
        let most = tokens.next_power_of_two().clamp(16, 128);
        let tile = [128, 64, 32].into_iter().filter(|&tile| tile <= most).find(fit).unwrap_or(16);
        // The depth is split where rows alone leave cores without a cube.
        let cores = hardware.cores_or_few();
        let wanted = if few { cores * 3 / 2 } else { cores * 3 / 4 };
        let steps = chunks.div_ceil(unit.lanes_per_row());
        let fits = |slices: usize| slices <= steps && with(tile, slices).shared_bytes() <= hardware.shared_memory;
        let cubes = |slices: usize| n.div_ceil(with(tile, slices).rows()) * tokens.div_ceil(tile);
        let mut slices = [1, 2, 4, PLANES].into_iter().filter(|&slices| slices == 1 || fits(slices));
        let enough = slices.clone().find(|&slices| cubes(slices) >= wanted);
        with(tile, enough.or(slices.next_back()).unwrap_or(1))
    }

    /// The same for rows of so many chunks.
    fn for_row_of(self, chunks: usize) -> Self {
        Self { run: run(self.unit, self.ty, chunks), whole: chunks.is_multiple_of(self.step_chunks()), ..self }
    }

    /// Whether it is warpgroups that multiply.
    pub fn of_warpgroups(&self) -> bool {
        matches!(self.unit, MatrixUnit::Wgmma { .. })
    }

    /// Rows of weights of a cube.
    pub fn rows(&self) -> usize {
        self.row_planes * self.row_tiles * MatrixUnit::ROWS
    }

    /// Rows of activations of a cube.
    pub fn tokens(&self) -> usize {
        self.token_tiles * self.unit.tokens()
    }

    /// Planes of a cube.
    pub fn planes(&self) -> usize {
        self.row_planes * self.slices
    }

    /// Units of a cube.
    pub fn units(&self) -> usize {
        self.unit.plane() as usize * self.planes()
    }

    /// Chunks of a row that all slices take in a step.
    pub fn step_chunks(&self) -> usize {
        self.slices * self.unit.lanes_per_row()
    }

    /// Vectors of 16 bytes of activations that a cube stages in a step.
    pub fn staged_vectors(&self) -> usize {
        4 * self.step_chunks() * self.tokens()
    }

    /// Rows of weights that a lane holds values of.
    pub fn rows_per_lane(&self) -> usize {
        self.row_tiles * self.unit.rows_per_lane()
    }

    /// Vectors of sums of a lane.
    pub fn sums(&self) -> usize {
        self.row_tiles * self.token_tiles
    }

    /// Steps of activations in shared memory.
    pub fn stages(&self) -> usize {
        match self.unit {
            MatrixUnit::Wgmma { tokens } if tokens <= MAX_FEW => 4,
            MatrixUnit::Wgmma { .. } => 3,
            _ => 2,
        }
    }

    /// Groups of a step's products on warpgroups: the operands of one are written while those of others are multiplied.
    pub fn groups(&self) -> usize {
        if self.tokens() <= MAX_FEW { 1 } else { 2 }
    }

    /// Bytes of shared memory of a cube: steps of activations, with two barriers each on warpgroups, and the sums of all slices
    /// but the first.
    pub fn shared_bytes(&self) -> usize {
        let sums = (self.slices - 1) * self.rows() * self.tokens();
        let barriers = if self.of_warpgroups() { 2 } else { 0 };
        self.stages() * 16 * (self.staged_vectors() + barriers) + 4 * sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WGMMA: MatrixUnit = MatrixUnit::Wgmma { tokens: 256 };

    #[test]
    fn a_cube_fits_the_device() {
        let hardware = Hardware::sample(96, 64 << 10);
        for unit in MatrixUnit::OF_PLANES {
            for tokens in [9, 16, 17, 33, 64, 65, 128, 512, 2048] {
                for (n, chunks) in [(16, 1), (1024, 128), (4096, 448), (14336, 128), (128_256, 128), (640, 20)] {
                    let problem = Problem { ty: GgmlType::Q4_0, tokens, n, chunks };
                    let blueprint = Blueprint::of(&hardware, unit, problem);
                    assert!(blueprint.shared_bytes() <= 64 << 10, "{problem:?} {blueprint:?}");
                    assert!(blueprint.units() <= 1024 && blueprint.token_tiles > 0, "{problem:?} {blueprint:?}");
                    assert!(blueprint.step_chunks() <= chunks.next_multiple_of(unit.lanes_per_row()), "{blueprint:?}");
                    assert_eq!(blueprint.whole, chunks.is_multiple_of(blueprint.step_chunks()), "{blueprint:?}");
                }
            }
        }
    }

    #[test]
    fn warpgroups_fit_the_device() {
        let hardware = Hardware::sample(132, 227 << 10);
        for tokens in [9, 16, 33, 64, 100, 128, 129, 512, 2048] {
            for (n, chunks) in [(16, 1), (1024, 128), (4096, 448), (14336, 128), (128_256, 128), (640, 20)] {
                let problem = Problem { ty: GgmlType::Q4_0, tokens, n, chunks };
                let blueprint = Blueprint::of(&hardware, WGMMA, problem);
                assert!(blueprint.shared_bytes() <= 227 << 10, "{problem:?} {blueprint:?}");
                assert!(blueprint.row_planes.is_multiple_of(WARPGROUP), "{problem:?} {blueprint:?}");
                // Every lane has 255 registers, most of which are sums.
                assert!(blueprint.sums() * blueprint.unit.sums() <= 128, "{problem:?} {blueprint:?}");
                assert_eq!(blueprint.whole, chunks.is_multiple_of(blueprint.step_chunks()), "{blueprint:?}");
            }
        }
    }

    /// The fastest of those tried on an H100 for Q4_K (tile of tokens, planes with rows of their own, slices, splits), or within 3%.
    #[test]
    fn warpgroups_are_the_fastest_measured() {
        let choice = |n, tokens| {
            let problem = Problem { ty: GgmlType::Q4K, tokens, n, chunks: 128 };
            let Blueprint { unit, row_planes, slices, splits, .. } =
                Blueprint::of(&Hardware::sample(132, 227 << 10), WGMMA, problem);
            (unit.tokens(), row_planes, slices, splits)
        };
        let wide = [16, 32, 64, 128, 512, 2048].map(|tokens| choice(14336, tokens));
        assert_eq!(wide, [(16, 4, 2, 1), (32, 4, 2, 1), (64, 4, 1, 1), (128, 8, 1, 1), (256, 8, 1, 1), (256, 8, 1, 1)]);
        let square = [16, 64, 128, 512, 2048].map(|tokens| choice(4096, tokens));
        assert_eq!(square, [(16, 4, 2, 4), (64, 4, 1, 4), (128, 8, 1, 4), (256, 4, 1, 1), (256, 8, 1, 1)]);
    }

    #[test]
    fn the_depth_is_split_where_rows_are_few() {
        let slices = |tokens, n| {
            let problem = Problem { ty: GgmlType::Q4_0, tokens, n, chunks: 128 };
            Blueprint::of(&Hardware::sample(132, 227 << 10), MatrixUnit::MmaSync, problem).slices
        };
        assert_eq!([slices(16, 14336), slices(16, 4096), slices(16, 1024)], [2, 8, 8]);
        assert_eq!([slices(128, 14336), slices(512, 14336), slices(2048, 4096)], [2, 1, 1]);
    }
}
