//! Why HIP has no device, or one that CubeCL cannot drive, and what to do about it.
//!
//! CubeCL's HIP runtime asserts what it needs of a device, on a thread of its own, when the device is first used: asked
//! for here before that, it is an error instead.

use std::ffi::{CStr, c_char};
use std::fs::File;
use std::io::ErrorKind;
use std::mem::MaybeUninit;

use cubecl::ir::amd::GfxArch;

/// The architectures that CubeCL compiles for.
const KNOWN: &str = "gfx908, gfx90a, gfx94x, gfx101x, gfx103x, gfx11xx, gfx12xx";

const NO_LIBRARIES: &str = if cfg!(windows) {
    "HIP's libraries are not here: install AMD's driver and HIP SDK, or set HIP_PATH to the folder of amdhip64.dll and \
     hiprtc.dll"
} else {
    "HIP's libraries are not here: install ROCm's HIP runtime, or set ROCM_PATH to the folder whose lib has \
     libamdhip64.so and libhiprtc.so"
};

/// The variables that hide GPUs from HIP.
const HIDING: [&str; 3] = ["HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL"];

/// Why there is no device at all.
pub fn missing() -> String {
    if !cubecl_hip_sys::is_available() {
        return NO_LIBRARIES.to_owned();
    }
    if let Some((name, value)) = HIDING.iter().find_map(|name| Some((name, std::env::var(name).ok()?))) {
        return format!("HIP finds no AMD GPU, and {name} is {value:?}: it may hide them");
    }
    format!("HIP finds no AMD GPU: {}", kernel_driver())
}

/// What the kernel's driver says to a program that asks it, as HIP does.
fn kernel_driver() -> &'static str {
    if !cfg!(target_os = "linux") {
        return "is AMD's driver installed?";
    }
    match File::options().read(true).write(true).open("/dev/kfd") {
        Ok(_) => "/dev/kfd opens, so this ROCm may not know the GPU, or may lack /dev/dri/renderD*",
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            "/dev/kfd is not for this user, who must be in the groups `render` and `video`"
        }
        Err(_) => {
            "there is no /dev/kfd, so the driver `amdgpu` is not loaded (a container needs --device=/dev/kfd \
             --device=/dev/dri)"
        }
    }
}

/// Why the `index`-th of HIP's devices cannot be used, if it cannot.
pub fn unusable(index: usize) -> Option<String> {
    let mut properties = MaybeUninit::uninit();
    // SAFETY: there is room for the properties, which HIP writes all of where it answers 0.
    let status = unsafe { cubecl_hip_sys::hipGetDevicePropertiesR0600(properties.as_mut_ptr(), index as i32) };
    if status != cubecl_hip_sys::hipError_t_hipSuccess {
        return Some(format!("HIP does not describe it (error {status})"));
    }
    // SAFETY: HIP answered 0.
    let properties = unsafe { properties.assume_init() };
    disagreement(&text(&properties.gcnArchName), properties.warpSize)
}

/// What CubeCL would not generate code for.
fn disagreement(arch: &str, wavefront: i32) -> Option<String> {
    let gfx = GfxArch::parse(arch);
    match gfx.plane_dim() {
        None => Some(format!(
            "CubeCL compiles for {KNOWN}, and this GPU is {}; for one that runs the code of another, set \
             HSA_OVERRIDE_GFX_VERSION (as 10.3.0 for gfx1030)",
            gfx.name()
        )),
        Some(width) if wavefront != width as i32 => Some(format!(
            "its driver says that {} has wavefronts of {wavefront} lanes, and CubeCL compiles for {width}",
            gfx.name()
        )),
        Some(_) => None,
    }
}

/// A C string in a field; all of it where the end is missing.
fn text(field: &[c_char]) -> String {
    let bytes: Vec<u8> = field.iter().map(|&byte| byte as u8).collect();
    CStr::from_bytes_until_nul(&bytes)
        .map_or_else(|_| String::from_utf8_lossy(&bytes), CStr::to_string_lossy)
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cubecl_compiles_for_is_known() {
        for known in KNOWN.split(", ") {
            let arch = GfxArch::parse(known.trim_end_matches('x'));
            let width = arch.plane_dim().unwrap_or_else(|| panic!("{known}")) as i32;
            assert_eq!(disagreement(arch.name(), width), None);
            assert!(disagreement(arch.name(), 96 - width).unwrap().contains(&format!("wavefronts of {}", 96 - width)));
        }
        assert_eq!(disagreement("gfx90a:sramecc+:xnack-", 64), None);
        for unknown in ["gfx803", "gfx906", "gfx1337", ""] {
            assert!(disagreement(unknown, 32).unwrap().contains(&format!("this GPU is {unknown};")));
        }
    }
}
