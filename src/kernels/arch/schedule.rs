//! Barriers to the scheduling of instructions, where the compiler's own order takes more registers than there are, or fewer.

use cubecl::frontend::comptime;
use cubecl::prelude::*;

#[cfg(feature = "llvm")]
use super::llvm;
use super::target::Target;
use super::warpgroup::statement;

/// A barrier to LLVM's scheduler on AMD, nothing elsewhere. It keeps LLVM from loading for all of an unrolled loop at once,
/// which takes more registers than there are.
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

/// A barrier to `ptxas` on Hopper and later, nothing elsewhere: the loads before it are issued before those after it, and before the
/// first of them is waited for. Else `ptxas` issues some only where registers are free, a latency later.
#[cube]
pub fn issue_loads() {
    let properties = comptime::device_properties();
    if comptime!(matches!(Target::of(&properties), Target::Nvidia(90..))) {
        // It lets programmatic dependent launches begin, of which CubeCL makes none.
        statement("griddepcontrol.launch_dependents;");
    }
}

/// `index` after a [`schedule_barrier()`], which loads at the index do not cross.
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
