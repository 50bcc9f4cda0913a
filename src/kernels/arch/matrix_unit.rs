//! [`MatrixUnit`]: the instruction that multiplies small matrices of 16-bit floats, and what of them each lane of a plane holds.
//!
//! Every instruction here adds the product of 16 rows of weights with 8 or 16 rows of activations, 16 values deep. Which lane
//! holds which of the 16 values of a row is the same for both operands, so that any 16 values will do as long as both have
//! them in the same places. Kernels use that: a lane decodes chunks of its own, and gives an instruction as many of a chunk's
//! values as it holds of a row.

use cubecl::ir::DeviceProperties;
use cubecl::prelude::*;

#[cfg(feature = "llvm")]
use super::llvm;
use super::permute::byte_permute;
use super::target::Target;
use crate::kernels::floats::FloatType;
use crate::kernels::lanes::{max_of_lanes, sum_of_lanes};

/// Rows of activations of a warpgroup's instruction at the most.
const MAX_WARPGROUP_TOKENS: usize = 256;

/// An instruction for the product of two small matrices of bf16 with sums in f32. That for f16 has the same shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MatrixUnit {
    /// `mma.sync.m16n8k16` of PTX, from sm_80 on.
    MmaSync,
    /// A plane's share of `wgmma.mma_async.m64nNk16` of PTX, of sm_90 alone: 16 of the rows of weights, which come from
    /// registers, times all rows of activations, which come from shared memory (see [`warpgroup`](super::warpgroup)).
    Wgmma {
        /// Rows of activations: a multiple of 8, at most 256.
        tokens: usize,
    },
    /// `v_wmma_f32_16x16x16_bf16` of RDNA3, whose two half planes hold the same operands.
    WmmaRdna3,
    /// The same of RDNA4, whose half planes hold half of the depth each.
    WmmaRdna4,
    /// `v_mfma_f32_16x16x16_bf16_1k` of CDNA2 and CDNA3.
    Mfma,
}

impl MatrixUnit {
    /// Those whose instructions are a plane's alone.
    #[cfg(test)]
    pub const OF_PLANES: [Self; 4] = [Self::MmaSync, Self::WmmaRdna3, Self::WmmaRdna4, Self::Mfma];

    /// Rows of weights of an instruction.
    pub const ROWS: usize = 16;

    /// Values of a row that one instruction multiplies.
    pub const DEPTH: usize = 16;

    /// The instruction of a device, at its largest; `None` where it has none, or its compiler is not LLVM.
    pub fn of(properties: &DeviceProperties) -> Option<Self> {
        let (unit, plane) = match Target::of(properties) {
            Target::Nvidia(90) => (Self::Wgmma { tokens: MAX_WARPGROUP_TOKENS }, 32),
            Target::Nvidia(80..) => (Self::MmaSync, 32),
            Target::Amd(processor) => (Self::of_gfx(&processor)?, if processor.starts_with("gfx9") { 64 } else { 32 }),
            Target::Nvidia(_) | Target::Host | Target::Other => return None,
        };
        let hardware = &properties.hardware;
        (hardware.plane_size_min == plane && hardware.plane_size_max == plane).then_some(unit)
    }

    /// The same of planes alone: of a warpgroup's instruction, that of its planes.
    pub fn of_planes(properties: &DeviceProperties) -> Option<Self> {
        Self::of(properties).map(|unit| if matches!(unit, Self::Wgmma { .. }) { Self::MmaSync } else { unit })
    }

    /// The instruction of an AMD processor.
    fn of_gfx(processor: &str) -> Option<Self> {
        match processor {
            "gfx90a" | "gfx940" | "gfx941" | "gfx942" => Some(Self::Mfma),
            name if name.starts_with("gfx11") => Some(Self::WmmaRdna3),
            name if name.starts_with("gfx120") => Some(Self::WmmaRdna4),
            _ => None,
        }
    }

    /// Lanes of a plane.
    pub const fn plane(self) -> u32 {
        match self {
            Self::Mfma => 64,
            _ => 32,
        }
    }

    /// Rows of activations of an instruction.
    pub const fn tokens(self) -> usize {
        match self {
            Self::MmaSync => 8,
            Self::Wgmma { tokens } => tokens,
            _ => 16,
        }
    }

    /// Lanes that share the depth of a row.
    pub const fn lanes_per_row(self) -> usize {
        match self {
            Self::MmaSync | Self::Wgmma { .. } | Self::Mfma => 4,
            Self::WmmaRdna4 => 2,
            Self::WmmaRdna3 => 1,
        }
    }

    /// Rows of weights that a lane holds values of.
    pub const fn rows_per_lane(self) -> usize {
        match self {
            Self::MmaSync | Self::Wgmma { .. } => 2,
            _ => 1,
        }
    }

    /// Words of bf16 that a lane holds of a row.
    pub const fn words_per_row(self) -> usize {
        Self::DEPTH / self.lanes_per_row() / 2
    }

    /// Sums that a lane holds.
    pub const fn sums(self) -> usize {
        Self::ROWS * self.tokens() / self.plane() as usize
    }

    /// Lanes that hold sums of a row of weights, and from one of them to the next.
    const fn lanes_of_sums(self) -> (u32, u32) {
        let lanes = self.plane() * self.rows_per_lane() as u32 / Self::ROWS as u32;
        (lanes, if self.is_nvidia() { 1 } else { 16 })
    }

    /// Whether it is RDNA's.
    pub const fn is_wmma(self) -> bool {
        matches!(self, Self::WmmaRdna3 | Self::WmmaRdna4)
    }

    /// Whether it is NVIDIA's, on which the lanes that share a row are neighbours.
    const fn is_nvidia(self) -> bool {
        matches!(self, Self::MmaSync | Self::Wgmma { .. })
    }
}

/// Which of the lanes that share a row `lane` is.
#[cube]
pub fn part_of_row(lane: u32, #[comptime] unit: MatrixUnit) -> u32 {
    if comptime!(unit.is_nvidia()) {
        lane % 4
    } else if comptime!(unit.lanes_per_row() == 1) {
        0u32.runtime()
    } else {
        lane / 16
    }
}

/// The `r`th row of weights that a lane holds values of.
#[cube]
pub fn weight_row(lane: u32, #[comptime] r: usize, #[comptime] unit: MatrixUnit) -> u32 {
    if comptime!(unit.is_nvidia()) { lane / 4 + comptime!(8 * r as u32) } else { lane % 16 }
}

/// The row of activations that a lane holds values of.
#[cube]
pub fn token_row(lane: u32, #[comptime] unit: MatrixUnit) -> u32 {
    if comptime!(unit.is_nvidia()) { lane / 4 } else { lane % 16 }
}

/// The row of weights of the `i`th sum of a lane.
#[cube]
pub fn sum_row(lane: u32, #[comptime] i: usize, #[comptime] unit: MatrixUnit) -> u32 {
    if comptime!(unit.is_nvidia()) { lane / 4 + comptime!(8 * (i as u32 / 2 % 2)) } else { lane % 16 }
}

/// The row of activations of the `i`th sum of a lane.
#[cube]
pub fn sum_token(lane: u32, #[comptime] i: usize, #[comptime] unit: MatrixUnit) -> u32 {
    let i = comptime!(i as u32);
    if comptime!(unit.is_nvidia()) {
        2 * (lane % 4) + comptime!(i / 4 * 8 + i % 2)
    } else if comptime!(unit == MatrixUnit::WmmaRdna3) {
        lane / 16 + comptime!(2 * i)
    } else if comptime!(unit == MatrixUnit::WmmaRdna4) {
        8 * (lane / 16) + i
    } else {
        4 * (lane / 16) + i
    }
}

/// The largest `value` of the lanes that hold sums of the same row of weights.
#[cube]
pub fn max_of_row(value: f32, #[comptime] unit: MatrixUnit) -> f32 {
    let (lanes, distance) = comptime!(unit.lanes_of_sums());
    max_of_lanes(value, lanes, distance)
}

/// The sum over the lanes that hold sums of the same row of weights.
#[cube]
pub fn sum_of_row(value: f32, #[comptime] unit: MatrixUnit) -> f32 {
    let (lanes, distance) = comptime!(unit.lanes_of_sums());
    sum_of_lanes(value, lanes, distance)
}

/// `sums` plus the product of weights and activations of type `ty`, f16 or bf16, two values a word: of the rows of weights of a
/// lane, word by word.
///
/// All lanes of a plane must get here together.
#[cube]
#[allow(unused_variables)]
pub fn multiply_add<W: Size, X: Size, S: Size>(
    weights: Vector<u32, W>,
    x: Vector<u32, X>,
    sums: Vector<f32, S>,
    #[comptime] unit: MatrixUnit,
    #[comptime] ty: FloatType,
) -> Vector<f32, S> {
    intrinsic!(|scope| {
        #[cfg(feature = "llvm")]
        {
            let operands = [weights.read_value(scope), x.read_value(scope), sums.read_value(scope)];
            return llvm::matrix_product(scope, operands, unit, ty).into();
        }
        #[cfg(not(feature = "llvm"))]
        unreachable!("only LLVM's targets have a matrix unit")
    })
}

/// Two values rounded to the nearest bf16, as a word; the first in the low half. NaN must be [`quiet`].
#[cube]
pub fn bf16_pair(low: f32, high: f32, #[comptime] unit: MatrixUnit) -> u32 {
    if comptime!(unit.is_nvidia()) {
        pair_by_llvm(low, high)
    } else {
        // Ties go away from zero: AMD's processors before gfx950 have no conversion, and evenness takes twice as long.
        let (low, high) = (u32::reinterpret(low) + 0x8000, u32::reinterpret(high) + 0x8000);
        byte_permute(high, low, 0x0706_0302u32, true)
    }
}

/// `value`, or the NaN whose rounding by [`bf16_pair`] does not carry into another number, as that of others might.
#[cube]
pub fn quiet(value: f32, #[comptime] unit: MatrixUnit) -> f32 {
    if comptime!(unit.is_nvidia()) {
        value
    } else {
        let bits = u32::reinterpret(value);
        f32::reinterpret(select((bits & 0x7fff_ffff) > 0x7f80_0000, 0x7fc0_0000u32.runtime(), bits))
    }
}

#[cube]
#[allow(unused_variables)]
fn pair_by_llvm(low: f32, high: f32) -> u32 {
    intrinsic!(|scope| {
        #[cfg(feature = "llvm")]
        return llvm::bf16_pair(scope, low, high);
        #[cfg(not(feature = "llvm"))]
        unreachable!("only LLVM's targets have a matrix unit")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_hold_all_of_both_operands() {
        for unit in MatrixUnit::OF_PLANES {
            let lanes = unit.plane() as usize;
            // RDNA3's two half planes hold the same.
            let copies = if unit == MatrixUnit::WmmaRdna3 { 2 } else { 1 };
            let held = lanes * unit.rows_per_lane() * 2 * unit.words_per_row();
            assert_eq!(held, copies * MatrixUnit::ROWS * MatrixUnit::DEPTH, "{unit:?}");
            assert_eq!(lanes * 2 * unit.words_per_row(), copies * unit.tokens() * MatrixUnit::DEPTH, "{unit:?}");
        }
    }

    #[test]
    fn architectures_have_their_instruction() {
        for (processor, unit) in [
            ("gfx90a", Some(MatrixUnit::Mfma)),
            ("gfx942", Some(MatrixUnit::Mfma)),
            ("gfx1030", None),
            ("gfx1100", Some(MatrixUnit::WmmaRdna3)),
            ("gfx1151", Some(MatrixUnit::WmmaRdna3)),
            ("gfx1201", Some(MatrixUnit::WmmaRdna4)),
            ("gfx908", None),
        ] {
            assert_eq!(MatrixUnit::of_gfx(processor), unit, "{processor}");
        }
    }
}
