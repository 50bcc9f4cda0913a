//! The dot product of 16 bytes with 16 bytes, added to a 32-bit sum: four instructions where the device has one for four
//! bytes.
//!
//! CubeCL's own `dp4a` is one instruction through CUDA C++ and SPIR-V. Through LLVM, which compiles for AMD and by default
//! for NVIDIA, CubeCL 0.11.3 expands it to some thirty; there an operation of this crate's takes its place.

use cubecl::frontend::comptime;
use cubecl::ir::DeviceProperties;
use cubecl::prelude::*;

#[cfg(feature = "llvm")]
use super::llvm;
use super::target::Target;
use crate::kernels::vector::Words;

/// The signedness of the bytes of weights; those of activations are always signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bytes {
    /// From -128 to 127.
    Signed,
    /// From 0 to 255.
    Unsigned,
}

/// The instruction for a dot product of four bytes on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Instruction {
    /// None: multiplications of vectors.
    Expansion,
    /// CubeCL's `dp4a`: the device's own, or CubeCL's expansion.
    Dp4a,
    /// `v_dot4_i32_i8` of AMD's Vega 20, CDNA 1 to 3, Navi 12 and 14, and RDNA2, signed bytes alone.
    Sdot4,
    /// `v_dot4_i32_iu8` of AMD's RDNA3 and RDNA4, either sign on either side.
    Sudot4,
    /// PTX's `dp4a` by way of LLVM, either sign on either side.
    Idp4a,
}

impl Instruction {
    /// The instruction of a device.
    pub fn of(properties: &DeviceProperties) -> Self {
        match Target::of(properties) {
            Target::Amd(processor) => Self::of_gfx(&processor),
            // PTX has `dp4a` from sm_61 on.
            Target::Nvidia(61..) => Self::Idp4a,
            // CubeCL's expansion has scalar products, whose sums LLVM's SLP vectorizer (seen in 19 and 23) gets wrong on
            // hosts with AVX-512.
            Target::Host | Target::Nvidia(_) => Self::Expansion,
            Target::Other => Self::Dp4a,
        }
    }

    /// The instruction of an AMD processor, by its features in LLVM's `AMDGPU.td`: `dot1-insts` has sdot4, `dot8-insts`
    /// sudot4.
    fn of_gfx(processor: &str) -> Self {
        match processor {
            "gfx906" | "gfx908" | "gfx90a" | "gfx940" | "gfx941" | "gfx942" | "gfx1011" | "gfx1012" => Self::Sdot4,
            name if name.starts_with("gfx103") => Self::Sdot4,
            name if name.starts_with("gfx11") || name.starts_with("gfx120") => Self::Sudot4,
            _ => Self::Expansion,
        }
    }

    /// Whether it is the device's own, as far as that is known.
    pub fn is_native(self) -> bool {
        self != Self::Expansion
    }

    /// Whether unsigned bytes cost no more than signed ones.
    pub fn takes_unsigned(self) -> bool {
        matches!(self, Self::Expansion | Self::Sudot4 | Self::Idp4a)
    }
}

/// `c` plus the products of the bytes of `a` with the signed bytes of `b`. The sum wraps.
#[cube]
pub fn dot16(a: Words, b: Words, c: i32, #[comptime] bytes: Bytes) -> i32 {
    let properties = comptime::device_properties();
    let instruction = comptime!(Instruction::of(&properties));
    let mut sum = c;
    if comptime!(instruction == Instruction::Expansion) {
        sum += expansion(a, b, bytes);
    } else {
        #[unroll]
        for i in 0..4usize {
            sum = dot4(a.extract(i), b.extract(i), sum, instruction, bytes);
        }
    }
    sum
}

/// The sum of the four signed bytes of a word.
#[cube]
pub fn sum4(word: u32) -> i32 {
    let properties = comptime::device_properties();
    let instruction = comptime!(Instruction::of(&properties));
    if comptime!(instruction == Instruction::Expansion) {
        let ones = Words::new(0x0101_0101u32);
        let mut words = Words::new(0u32);
        words.insert(0usize, word);
        expansion(ones, words, Bytes::Signed)
    } else {
        dot4_of(0x0101_0101u32, word, 0i32, instruction, Bytes::Signed)
    }
}

#[cube]
fn dot4(a: u32, b: u32, c: i32, #[comptime] instruction: Instruction, #[comptime] bytes: Bytes) -> i32 {
    if comptime!(bytes == Bytes::Unsigned && !instruction.takes_unsigned()) {
        // `a ^ 0x80` is `a - 128` as signed bytes. 128 times the sum of `b`, its product with ones, makes up for that.
        let sum = dot4_of(0x0101_0101u32, b, 0i32, instruction, Bytes::Signed);
        dot4_of(a ^ 0x8080_8080, b, c + sum * 128, instruction, Bytes::Signed)
    } else {
        dot4_of(a, b, c, instruction, bytes)
    }
}

#[cube]
fn dot4_of(a: u32, b: u32, c: i32, #[comptime] instruction: Instruction, #[comptime] bytes: Bytes) -> i32 {
    if comptime!(instruction == Instruction::Dp4a) {
        dp4a(i32::cast_from(a), i32::cast_from(b), c)
    } else {
        by_llvm(a, b, c, instruction, bytes)
    }
}

/// The sum of products without an instruction for it.
#[cube]
fn expansion(a: Words, b: Words, #[comptime] bytes: Bytes) -> i32 {
    let mut sums = Vector::<i32, Const<4>>::new(0i32);
    #[unroll]
    for byte in 0..4u32 {
        sums += byte_of(a, byte, bytes) * byte_of(b, byte, Bytes::Signed);
    }
    (sums.extract(0usize) + sums.extract(1usize)) + (sums.extract(2usize) + sums.extract(3usize))
}

#[cube]
fn byte_of(words: Words, #[comptime] byte: u32, #[comptime] bytes: Bytes) -> Vector<i32, Const<4>> {
    let byte = (words >> Words::new(comptime!(8 * byte).runtime())) & Words::new(0xffu32);
    if comptime!(bytes == Bytes::Unsigned) {
        Vector::<i32, Const<4>>::cast_from(byte)
    } else {
        // CubeCL's `>>` extends no signs on the CPU runtime.
        Vector::<i32, Const<4>>::cast_from(byte ^ Words::new(0x80u32)) - Vector::new(128i32)
    }
}

#[cube]
#[allow(unused_variables)]
fn by_llvm(a: u32, b: u32, c: i32, #[comptime] instruction: Instruction, #[comptime] bytes: Bytes) -> i32 {
    intrinsic!(|scope| {
        #[cfg(feature = "llvm")]
        return llvm::dot4(scope, a, b, c, intrinsic(instruction, bytes), bytes == Bytes::Signed);
        #[cfg(not(feature = "llvm"))]
        unreachable!("{instruction:?} is only for devices that LLVM compiles for")
    })
}

/// LLVM's intrinsic for an instruction that has one.
#[cfg(feature = "llvm")]
fn intrinsic(instruction: Instruction, bytes: Bytes) -> &'static str {
    match (instruction, bytes) {
        (Instruction::Sdot4, _) => llvm::SDOT4,
        (Instruction::Sudot4, _) => llvm::SUDOT4,
        (_, Bytes::Signed) => llvm::IDP4A_SIGNED,
        (_, Bytes::Unsigned) => llvm::IDP4A_UNSIGNED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_have_the_instructions_that_llvm_gives_them() {
        let of = Instruction::of_gfx;
        assert_eq!(of("gfx1100"), Instruction::Sudot4);
        assert_eq!(of("gfx1151"), Instruction::Sudot4);
        assert_eq!(of("gfx1201"), Instruction::Sudot4);
        assert_eq!(of("gfx1030"), Instruction::Sdot4);
        assert_eq!(of("gfx1010"), Instruction::Expansion);
        assert_eq!(of("gfx90a"), Instruction::Sdot4);
        assert_eq!(of("gfx942"), Instruction::Sdot4);
    }
}
