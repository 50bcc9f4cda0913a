//! The order of instructions, where a compiler's own choice takes more registers than there are.

use cubecl::frontend::comptime;
use cubecl::prelude::*;

#[cfg(feature = "llvm")]
use super::llvm;
use super::target::Target;

/// Nothing that comes after is done before: keeps LLVM from loading for all of an unrolled loop at once on AMD, where it
/// takes more registers than there are.
#[cube]
pub fn schedule_barrier() {
    let properties = comptime::device_properties();
    if comptime!(matches!(Target::of(&properties), Target::Amd(_))) {
        amd_schedule_barrier();
    }
}

#[cube]
fn amd_schedule_barrier() {
    intrinsic!(|_scope| {
        #[cfg(feature = "llvm")]
        llvm::schedule_barrier(_scope);
    })
}

/// A [`schedule_barrier()`], and `index` after it: loads from there are not done before.
#[cube]
pub fn pin_after_barrier(index: usize) -> usize {
    let properties = comptime::device_properties();
    if comptime!(matches!(Target::of(&properties), Target::Amd(_))) { amd_pin_after_barrier(index) } else { index }
}

#[cube]
#[allow(unused_variables)]
fn amd_pin_after_barrier(index: usize) -> usize {
    intrinsic!(|_scope| {
        #[cfg(feature = "llvm")]
        return llvm::pin_after_barrier(_scope, index);
        #[cfg(not(feature = "llvm"))]
        unreachable!("only AMD's devices are pin_after_barrier")
    })
}
