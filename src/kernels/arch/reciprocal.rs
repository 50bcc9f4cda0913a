//! The reciprocal, by the device's approximate instruction.

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
        Target::Amd(_) => reciprocal_by_llvm(value, true),
        Target::Nvidia(_) => reciprocal_by_llvm(value, false),
        _ => 1.0f32 / value,
    }
}

#[cube]
#[allow(unused_variables)]
fn reciprocal_by_llvm(value: f32, #[comptime] amd: bool) -> f32 {
    intrinsic!(|_scope| {
        #[cfg(feature = "llvm")]
        return llvm::reciprocal(_scope, value, amd);
        #[cfg(not(feature = "llvm"))]
        unreachable!("only LLVM has the instruction")
    })
}
