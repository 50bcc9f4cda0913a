//! Functions by the device's approximate instructions.

use cubecl::frontend::comptime;
use cubecl::prelude::*;

#[cfg(feature = "llvm")]
use super::llvm;
use super::target::Target;

/// One over a positive normal number, to about its last bit.
#[cube]
pub fn reciprocal(value: f32) -> f32 {
    let properties = comptime::device_properties();
    match comptime!(Target::of(&properties)) {
        Target::Amd(_) => by_llvm(value, "llvm.amdgcn.rcp.f32"),
        Target::Nvidia(_) => by_llvm(value, "llvm.nvvm.rcp.approx.ftz.f"),
        _ => 1.0f32 / value,
    }
}

/// Two to the power of `value`, to about its last bit; 0 for what is no normal number.
#[cube]
pub fn exp2(value: f32) -> f32 {
    let properties = comptime::device_properties();
    match comptime!(Target::of(&properties)) {
        Target::Amd(_) => by_llvm(value, "llvm.amdgcn.exp2.f32"),
        Target::Nvidia(_) => by_llvm(value, "llvm.nvvm.ex2.approx.ftz.f32"),
        _ => f32::exp(value * comptime!(std::f32::consts::LN_2)),
    }
}

#[cube]
#[allow(unused_variables)]
fn by_llvm(value: f32, #[comptime] intrinsic: &'static str) -> f32 {
    intrinsic!(|_scope| {
        #[cfg(feature = "llvm")]
        return llvm::approximate(_scope, value, intrinsic);
        #[cfg(not(feature = "llvm"))]
        unreachable!("only LLVM has the instruction")
    })
}
