//! Diagnosis of HIP devices: the reason that there is none, or that CubeCL cannot use one, and the remedy.
//!
//! CubeCL's HIP runtime checks a device by assertions, on a thread of its own, when it is first used. The checks here
//! come before that, so that an unsuitable device is an error, not a panic.

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

/// The reason that HIP has no device.
pub fn missing() -> String {
    if !cubecl_hip_sys::is_available() {
        return NO_LIBRARIES.to_owned();
    }
    if let Some((name, value)) = HIDING.iter().find_map(|name| Some((name, std::env::var(name).ok()?))) {
        return format!("HIP finds no AMD GPU, and {name} is {value:?}: it may hide them");
    }
    format!("HIP finds no AMD GPU: {}", kernel_driver())
}

/// The state of the kernel driver, from opening `/dev/kfd` as HIP does.
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

/// The reason that HIP's `index`-th device cannot be used; `None` where it can.
pub fn unusable(index: usize) -> Option<String> {
    let mut properties = MaybeUninit::uninit();
    // SAFETY: `properties` has room for the struct that this version of the call writes.
    let status = unsafe { cubecl_hip_sys::hipGetDevicePropertiesR0600(properties.as_mut_ptr(), index as i32) };
    if status != cubecl_hip_sys::hipError_t_hipSuccess {
        return Some(format!("HIP does not describe it (error {status})"));
    }
    // SAFETY: the call succeeded, so HIP wrote all of the struct.
    let properties = unsafe { properties.assume_init() };
    disagreement(&text(&properties.gcnArchName), properties.warpSize)
}

/// The mismatch between a device and the code that CubeCL generates, if any.
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

/// The C string in a field; the whole field where it has no NUL.
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
