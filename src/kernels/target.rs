//! Which compiler makes a device's code, and for what: where LLVM does, kernels may use its intrinsics.

use cubecl::frontend::comptime;
use cubecl::ir::DeviceProperties;
use cubecl::prelude::*;

#[cfg(feature = "llvm")]
use super::llvm;

/// A device's code, as far as it matters to kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// AMD's, by LLVM: the processor, as `gfx1100`.
    Amd(String),
    /// NVIDIA's, by LLVM: the compute capability, as 90.
    Nvidia(u32),
    /// The host's, by LLVM.
    Host,
    /// By CUDA C++, SPIR-V, WGSL or Metal.
    Other,
}

impl Target {
    /// By the name that the device's compiler generates code for.
    pub fn of(properties: &DeviceProperties) -> Self {
        let name = &properties.identity.fingerprint;
        let nvidia = || name.strip_prefix("ptx_sm")?.parse().ok();
        match name.strip_prefix("hip-kernel_") {
            Some(arch) if hip_is_by_llvm() => Self::Amd(processor(arch).to_owned()),
            None if properties.hardware.num_cpu_cores.is_some() => Self::Host,
            None if cuda_is_by_llvm() => nvidia().map_or(Self::Other, Self::Nvidia),
            _ => Self::Other,
        }
    }
}

/// `gfx90a` of `gfx90a:sramecc+:xnack-`, as drivers have it.
fn processor(arch: &str) -> &str {
    arch.split_once(':').map_or(arch, |(processor, _)| processor)
}

/// Another crate's features may have chosen HIP RTC, which knows nothing of LLVM's intrinsics.
fn hip_is_by_llvm() -> bool {
    #[cfg(feature = "hip")]
    return cubecl::hip::compiler::HipBackend::default() == cubecl::hip::compiler::HipBackend::Llvm;
    #[cfg(not(feature = "hip"))]
    false
}

/// As [`hip_is_by_llvm`], for NVRTC.
fn cuda_is_by_llvm() -> bool {
    #[cfg(feature = "cuda")]
    return cubecl::cuda::compiler::CudaBackend::default() == cubecl::cuda::compiler::CudaBackend::Llvm;
    #[cfg(not(feature = "cuda"))]
    false
}

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
pub fn scheduled(index: usize) -> usize {
    let properties = comptime::device_properties();
    if comptime!(matches!(Target::of(&properties), Target::Amd(_))) { amd_scheduled(index) } else { index }
}

#[cube]
#[allow(unused_variables)]
fn amd_scheduled(index: usize) -> usize {
    intrinsic!(|_scope| {
        #[cfg(feature = "llvm")]
        return llvm::scheduled(_scope, index);
        #[cfg(not(feature = "llvm"))]
        unreachable!("only AMD's devices are scheduled")
    })
}

/// 0xff for each byte of `ones` that is 1, where the others are 0.
#[cube]
pub fn filled(ones: u32) -> u32 {
    let properties = comptime::device_properties();
    // A product of 32 bits takes AMD four times as long as other instructions.
    if comptime!(matches!(Target::of(&properties), Target::Amd(_))) {
        amd_perm(0x0000_ff00u32, ones)
    } else {
        ones * 0xff
    }
}

/// The bytes of `low` that the bytes of `selector` count.
#[cube]
#[allow(unused_variables)]
fn amd_perm(low: u32, selector: u32) -> u32 {
    intrinsic!(|_scope| {
        #[cfg(feature = "llvm")]
        return llvm::perm(_scope, low, low, selector);
        #[cfg(not(feature = "llvm"))]
        unreachable!("only AMD's devices permute bytes")
    })
}
