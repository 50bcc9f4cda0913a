//! The float types of inputs and outputs, and rounding to the small ones.

use cubecl::frontend::comptime;
use cubecl::ir::features::{Features, TypeUsage};
use cubecl::ir::{ElemType, FloatKind, UIntKind};
use cubecl::prelude::*;
use half::{bf16, f16};

/// A float type of activations and outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FloatType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    BF16,
}

impl FloatType {
    /// Bytes a value.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// The name, in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
        }
    }

    /// CubeCL's element type.
    pub fn elem(self) -> ElemType {
        match self {
            Self::F32 => ElemType::Float(FloatKind::F32),
            Self::F16 => ElemType::Float(FloatKind::F16),
            Self::BF16 => ElemType::Float(FloatKind::BF16),
        }
    }

    /// The first `len` values of the device's `bytes`, as f32. `bytes` must hold as many.
    pub fn to_f32(self, bytes: &[u8], len: usize) -> Vec<f32> {
        let halves = || bytes.chunks_exact(2).take(len).map(|b| u16::from_le_bytes([b[0], b[1]]));
        match self {
            Self::F32 => {
                bytes.chunks_exact(4).take(len).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            }
            Self::F16 => halves().map(|bits| f16::from_bits(bits).to_f32()).collect(),
            Self::BF16 => halves().map(|bits| bf16::from_bits(bits).to_f32()).collect(),
        }
    }
}

/// Whether the device can hold a half in a register, convert it, and read it as a word.
pub fn has_f16(features: &Features) -> bool {
    let half = features.type_usage(ElemType::Float(FloatKind::F16));
    let word = features.type_usage(ElemType::UInt(UIntKind::U16));
    half.contains(TypeUsage::Conversion) && word.contains(TypeUsage::Conversion)
}

/// Two values rounded to `to`, f16 or bf16, to nearest even; the first in the low half.
#[cube]
pub fn pack_two(low: f32, high: f32, #[comptime] to: FloatType) -> u32 {
    if comptime!(to == FloatType::F16) {
        f16_bits(low) | (f16_bits(high) << 16)
    } else {
        bf16_bits(low) | (bf16_bits(high) << 16)
    }
}

/// Two values rounded to halves, to nearest even, as a word; the first in the low half. What is past the largest half becomes
/// infinite, and a negative zero may lose its sign. For devices that have the type.
#[cube]
pub fn half_pair(low: f32, high: f32) -> u32 {
    let (low, high) = (u16::reinterpret(f16::cast_from(low)), u16::reinterpret(f16::cast_from(high)));
    u32::cast_from(low) | (u32::cast_from(high) << 16)
}

/// `value`, or the largest half of its sign where it is past that. NaN stays NaN.
#[cube]
pub fn within_halves(value: f32) -> f32 {
    let most = comptime!(f16::MAX.to_f32());
    select(value > most, most.runtime(), select(value < -most, -most.runtime(), value))
}

/// `value` rounded to nearest even.
#[cube]
pub fn rounded<O: Float>(value: f32) -> O {
    let elem = elem_type_of::<O>();
    if comptime!(elem == FloatType::BF16.elem()) {
        // CubeCL 0.11.3's CPU runtime converts f32 to bf16 as if to f16.
        O::reinterpret(u16::cast_from(bf16_bits(value)))
    } else {
        O::cast_from(value)
    }
}

/// [`rounded`] where `is_number`, else a NaN, which is chosen among bits: of floats a compiler may assume that there is none.
#[cube]
pub fn rounded_or_nan<O: Float>(value: f32, is_number: bool) -> O {
    rounded::<O>(f32::reinterpret(select(is_number, u32::reinterpret(value), 0x7fc0_0000u32.runtime())))
}

/// The bits of a half, rounded to nearest even.
#[cube]
pub fn f16_bits(value: f32) -> u32 {
    let properties = comptime::device_properties();
    if comptime!(has_f16(&properties.features)) {
        // The sign is that of the f32: where `value` is a product, LLVM 23.1 fuses it with the conversion on RDNA3 and
        // RDNA4 as a multiply-add of +0, which makes a negative zero positive (llvm-project #214544).
        let magnitude = u32::cast_from(u16::reinterpret(f16::cast_from(value))) & 0x7fff;
        magnitude | ((u32::reinterpret(value) >> 16) & 0x8000)
    } else {
        f16_bits_portable(value)
    }
}

/// Rounding to a half in integer arithmetic, for devices without the type.
#[cube]
fn f16_bits_portable(value: f32) -> u32 {
    let bits = u32::reinterpret(value);
    let sign = (bits >> 16) & 0x8000;
    let magnitude = bits & 0x7fff_ffff;
    // Normal halves: drop 13 bits of the mantissa, rounding to nearest even; a carry moves the exponent up rightly.
    let odd = (magnitude >> 13) & 1;
    let normal = (magnitude - 0x3800_0000 + 0xfff + odd) >> 13;
    // Subnormal halves: the mantissa with its hidden one, shifted to units of 2^-24.
    let exponent = magnitude >> 23;
    let mantissa = (magnitude & 0x7f_ffff) | 0x80_0000;
    let shift = select(exponent < 95, 31u32, select(exponent > 126, 0u32, 126 - exponent));
    let kept = mantissa >> shift;
    let dropped = mantissa - (kept << shift);
    let half = (1u32 << shift) >> 1;
    let up = dropped > half || (dropped == half && (kept & 1) == 1);
    let subnormal = select(shift >= 25, 0u32, kept + u32::cast_from(up));
    let finite = select(magnitude < 0x3880_0000, subnormal, select(magnitude >= 0x4780_0000, 0x7c00u32, normal));
    sign | select(magnitude > 0x7f80_0000, 0x7e00u32, finite)
}

#[cube]
fn bf16_bits(value: f32) -> u32 {
    let bits = u32::reinterpret(value);
    let odd = (bits >> 16) & 1;
    let rounded = (bits + 0x7fff + odd) >> 16;
    // Rounding could carry a NaN into infinity or zero; keep its top bits and make it quiet.
    select((bits & 0x7fff_ffff) > 0x7f80_0000, (bits >> 16) | 0x40, rounded)
}

/// Whether kernels can read and write buffers of `ty` on the device.
pub fn has_buffers(features: &Features, ty: FloatType) -> bool {
    let usage = features.type_usage(ty.elem());
    ty == FloatType::F32 || usage.contains(TypeUsage::Buffer) && usage.contains(TypeUsage::Conversion)
}
