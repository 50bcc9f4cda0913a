//! The compiler of a device's kernels and its target. Where the compiler is LLVM, kernels may use its intrinsics.

use cubecl::ir::DeviceProperties;

/// The target that a device's kernels are compiled for, as far as it matters to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// AMD's, by LLVM: the processor, as `gfx1100`.
    Amd(String),
    /// NVIDIA's, by LLVM: the compute capability, as 90.
    Nvidia(u32),
    /// The host's, by LLVM.
    Host,
    /// Any other, by CUDA C++, HIP C++, SPIR-V, WGSL or Metal.
    Other,
}

impl Target {
    /// The target of a device, by the name that its compiler generates code for.
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

impl Target {
    /// Whether it has an instruction that permutes the bytes of two words.
    pub fn permutes_bytes(&self) -> bool {
        matches!(self, Self::Amd(_) | Self::Nvidia(_))
    }
}

/// `gfx90a` of `gfx90a:sramecc+:xnack-`, as drivers have it.
fn processor(arch: &str) -> &str {
    arch.split_once(':').map_or(arch, |(processor, _)| processor)
}

/// Whether LLVM compiles for HIP. Another crate's features may have chosen HIP RTC, which has no LLVM intrinsics.
fn hip_is_by_llvm() -> bool {
    #[cfg(feature = "hip")]
    return cubecl::hip::compiler::HipBackend::default() == cubecl::hip::compiler::HipBackend::Llvm;
    #[cfg(not(feature = "hip"))]
    false
}

/// Whether LLVM compiles for CUDA. Another crate's features may have chosen NVRTC.
fn cuda_is_by_llvm() -> bool {
    #[cfg(feature = "cuda")]
    return cubecl::cuda::compiler::CudaBackend::default() == cubecl::cuda::compiler::CudaBackend::Llvm;
    #[cfg(not(feature = "cuda"))]
    false
}
