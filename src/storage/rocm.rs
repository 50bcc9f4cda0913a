//! Diagnosis of HIP devices: the reason that there is none, or that CubeCL cannot use one, and the remedy.
//!
//! CubeCL's HIP runtime checks a device by assertions, on a thread of its own, when it is first used. The checks here
//! come before that, so that an unsuitable device is an error, not a panic.

use std::cmp::Reverse;
use std::env;
use std::ffi::{CStr, c_char, c_int};
use std::fs::File;
use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cubecl::ir::amd::GfxArch;
use cubecl_hip_sys::hipDeviceProp_tR0600;
use libloading::Library;

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

/// HIP's functions that CubeCL calls: one that is missing ends the process. The first came with ROCm 6.0.
const FUNCTIONS: [&str; 33] = [
    "hipGetDevicePropertiesR0600",
    "hipDeviceGetPCIBusId",
    "hipEventCreateWithFlags",
    "hipEventDestroy",
    "hipEventElapsedTime",
    "hipEventRecord",
    "hipEventSynchronize",
    "hipFree",
    "hipFreeHost",
    "hipGetDeviceCount",
    "hipGraphDestroy",
    "hipGraphExecDestroy",
    "hipGraphGetNodes",
    "hipGraphInstantiate",
    "hipGraphLaunch",
    "hipGraphNodeGetType",
    "hipGraphUpload",
    "hipHostMalloc",
    "hipMalloc",
    "hipMemGetInfo",
    "hipMemcpyDtoDAsync",
    "hipMemcpyDtoHAsync",
    "hipMemcpyHtoDAsync",
    "hipModuleGetFunction",
    "hipModuleLaunchKernel",
    "hipModuleLoadData",
    "hipSetDevice",
    "hipStreamBeginCapture",
    "hipStreamCreateWithFlags",
    "hipStreamDestroy",
    "hipStreamEndCapture",
    "hipStreamSynchronize",
    "hipStreamWaitEvent",
];

/// The reason that HIP's libraries are of no use; `None` where they are.
pub fn unfit() -> Option<&'static str> {
    static UNFIT: OnceLock<Option<String>> = OnceLock::new();
    let unfit = || match cubecl_hip_sys::is_available() {
        true => library().and_then(|hip| outdated(&hip)),
        false => Some(NO_LIBRARIES.to_owned()),
    };
    UNFIT.get_or_init(unfit).as_deref()
}

/// HIP's library, which `cubecl_hip_sys` has found in one of the same places, looked for in the same order.
fn library() -> Option<Library> {
    let folders = ["ROCM_PATH", "HIP_PATH"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let folders: Vec<_> = folders.flat_map(|path| [path.join("lib"), path]).chain([PathBuf::new()]).collect();
    let names: &[&str] = match cfg!(windows) {
        true => &["amdhip64.dll"],
        false => &["libamdhip64.so", "libamdhip64.so.1", "libamdhip64.so.0"],
    };
    // SAFETY: the library is loaded already, so that nothing of it runs now.
    let open = |path: &Path| unsafe { Library::new(path) }.ok();
    folders.iter().flat_map(|folder| names.iter().map(|name| folder.join(name))).find_map(|path| open(&path))
}

/// What an old library lacks.
fn outdated(hip: &Library) -> Option<String> {
    // SAFETY: the function is looked up, and not called.
    let has = |name: &&str| unsafe { hip.get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_ok();
    let lacks = FUNCTIONS.iter().find(|name| !has(name))?;
    let mut version = 0;
    // SAFETY: the type is the function's in every version of HIP.
    let status = unsafe { hip.get::<unsafe extern "C" fn(*mut c_int) -> u32>(b"hipRuntimeGetVersion") }
        // SAFETY: there is room for the number.
        .map(|get| unsafe { get(&mut version) });
    let found = match status {
        Ok(0) => format!("HIP {}.{}", version / 10_000_000, version / 100_000 % 100),
        _ => "HIP of an unknown version".to_owned(),
    };
    Some(format!("{found} was found, which has no {lacks}: ROCm 6.0 or newer is needed"))
}

/// The reason that HIP has no device.
pub fn missing() -> String {
    if let Some(reason) = unfit() {
        return reason.to_owned();
    }
    if let Some((name, value)) = HIDING.iter().find_map(|name| Some((name, env::var(name).ok()?))) {
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
    match properties(index) {
        Ok(properties) => disagreement(&text(&properties.gcnArchName), properties.warpSize),
        Err(reason) => Some(reason),
    }
}

/// Orders HIP's devices, best first: those with memory of their own, then those with more of it.
pub fn rank(index: usize) -> (bool, Reverse<u64>) {
    let of = |properties: hipDeviceProp_tR0600| (properties.integrated != 0, Reverse(properties.totalGlobalMem as u64));
    properties(index).map_or((true, Reverse(0)), of)
}

fn properties(index: usize) -> Result<hipDeviceProp_tR0600, String> {
    let mut properties = MaybeUninit::uninit();
    // SAFETY: `properties` has room for the struct that this version of the call writes.
    let status = unsafe { cubecl_hip_sys::hipGetDevicePropertiesR0600(properties.as_mut_ptr(), index as i32) };
    match status {
        // SAFETY: the call succeeded, so HIP wrote all of the struct.
        cubecl_hip_sys::hipError_t_hipSuccess => Ok(unsafe { properties.assume_init() }),
        _ => Err(format!("HIP does not describe it (error {status})")),
    }
}

/// The mismatch between a device and the code that CubeCL generates, if any.
fn disagreement(arch: &str, wavefront: i32) -> Option<String> {
    let gfx = GfxArch::parse(arch);
    match gfx.plane_dim() {
        None => {
            let name = gfx.name();
            Some(format!("CubeCL compiles for {KNOWN}, and this GPU is {name}{}", way_out(name)))
        }
        Some(width) if wavefront != width as i32 => Some(format!(
            "its driver says that {} has wavefronts of {wavefront} lanes, and CubeCL compiles for {width}",
            gfx.name()
        )),
        Some(_) => None,
    }
}

/// What the owner of a GPU that CubeCL does not compile for can do.
fn way_out(arch: &str) -> &'static str {
    if arch.starts_with("gfx1") {
        "; for one that runs the code of another, set HSA_OVERRIDE_GFX_VERSION (as 10.3.0 for gfx1030)"
    } else if arch.starts_with("gfx8") || arch.starts_with("gfx90") {
        "; the device `vulkan` (feature `vulkan`) reaches it"
    } else {
        ""
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
        for (unknown, way_out) in
            [("gfx803", "`vulkan`"), ("gfx906", "`vulkan`"), ("gfx1337", "HSA_OVERRIDE"), ("gfx950", "")]
        {
            let reason = disagreement(unknown, 32).unwrap();
            assert!(reason.contains(&format!("this GPU is {unknown}")) && reason.contains(way_out), "{reason}");
        }
    }
}
