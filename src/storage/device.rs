//! Devices of tensors: the host, and those of CubeCL's runtimes.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, Once, PoisonError};

use cubecl::bytes::Bytes;
use cubecl::client::Client;
use cubecl::device::WgpuBackend;
use cubecl::server::Handle;

use crate::gguf::GgmlType;
use crate::kernels::formats::{Grid, format};
use crate::kernels::launch::is_rasterizer;
use crate::kernels::quantize::weights::table;
use crate::kernels::routing::Routing;
#[cfg(feature = "hip")]
use crate::storage::rocm;
use crate::storage::wgpu;
use crate::{Error, Result};

/// A device that holds tensors.
///
/// ```
/// use cube_gguf::Device;
///
/// // The best of what this build and this machine have.
/// let device = Device::best();
/// # assert!(device.to_string().len() > 2);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// The host, with Candle's CPU kernels (feature `candle`), and ours by CubeCL's CPU runtime (feature `cpu`) for formats that
    /// Candle lacks.
    Cpu,
    /// A device of a CubeCL runtime.
    Cube(CubeDevice),
}

/// A runtime of CubeCL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Backend {
    /// The host, by way of CubeCL's CPU runtime: the same kernels as on a GPU.
    CubeCpu,
    /// AMD, by HIP.
    Rocm,
    /// NVIDIA, by CUDA.
    Cuda,
    /// Any GPU with Vulkan.
    Vulkan,
    /// Any GPU, by the API that wgpu picks.
    Wgpu,
    /// Apple's GPUs, by wgpu on Metal.
    Metal,
}

impl Backend {
    /// All backends, in the order in which [`Device::best`] tries them.
    pub const ALL: [Self; 6] = [Self::Rocm, Self::Cuda, Self::Metal, Self::Vulkan, Self::Wgpu, Self::CubeCpu];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CubeCpu => "cube-cpu",
            Self::Rocm => "rocm",
            Self::Cuda => "cuda",
            Self::Vulkan => "vulkan",
            Self::Wgpu => "wgpu",
            Self::Metal => "metal",
        }
    }

    /// The feature of this crate that links the runtime.
    pub const fn feature(self) -> &'static str {
        match self {
            Self::CubeCpu => "cpu",
            Self::Rocm => "hip",
            Self::Cuda => "cuda",
            Self::Vulkan => "vulkan",
            Self::Wgpu => "wgpu",
            Self::Metal => "metal",
        }
    }

    /// Whether this build links the runtime.
    pub const fn is_linked(self) -> bool {
        match self {
            Self::CubeCpu => cfg!(feature = "cpu"),
            Self::Rocm => cfg!(feature = "hip"),
            Self::Cuda => cfg!(feature = "cuda"),
            Self::Vulkan => cfg!(feature = "vulkan"),
            Self::Wgpu => cfg!(any(feature = "wgpu", feature = "vulkan", feature = "metal")),
            Self::Metal => cfg!(feature = "metal"),
        }
    }

    /// Whether CubeCL can call the libraries that the machine has for it.
    fn is_fit(self) -> bool {
        match self {
            #[cfg(feature = "hip")]
            Self::Rocm => rocm::unfit().is_none(),
            _ => true,
        }
    }

    /// CubeCL's devices behind the backend, in order of their index.
    fn devices(self) -> Vec<cubecl::Device> {
        if !self.is_linked() || !self.is_fit() {
            return Vec::new();
        }
        let first = match self {
            Self::CubeCpu => cubecl::Device::cpu(),
            Self::Rocm => cubecl::Device::rocm(0),
            Self::Cuda => cubecl::Device::cuda(0),
            Self::Vulkan => return wgpu::devices(WgpuBackend::Vulkan),
            Self::Wgpu => return wgpu::devices(WgpuBackend::Auto),
            Self::Metal => return wgpu::devices(WgpuBackend::Metal),
        };
        let Ok(first) = first else { return Vec::new() };
        cubecl::Device::enumerate(first.to_id()).into_iter().map(cubecl::Device::from_id).collect()
    }

    /// Why the machine has no device of a backend that the build links.
    fn missing(self) -> String {
        match self {
            #[cfg(feature = "hip")]
            Self::Rocm => rocm::missing(),
            _ => format!("this machine has none that {} reaches (no such GPU, driver or library)", self.name()),
        }
    }

    /// Every device of the backend in order of their index, or why it cannot be used.
    fn open_all(self) -> impl Iterator<Item = Result<CubeDevice>> {
        (0..self.devices().len()).map(move |index| CubeDevice::new(self, index))
    }

    /// Orders the devices, best first: whether one shares the host's memory, and how much it has. All alike where the driver
    /// is not asked.
    #[cfg_attr(not(feature = "hip"), expect(unused_variables))]
    fn rank(self, index: usize) -> (bool, Reverse<u64>) {
        match self {
            #[cfg(feature = "hip")]
            Self::Rocm => rocm::rank(index),
            _ => (false, Reverse(0)),
        }
    }

    /// Why CubeCL cannot use a device that the machine has; `None` where it can.
    #[cfg_attr(not(feature = "hip"), expect(unused_variables))]
    fn unusable(self, index: usize) -> Option<String> {
        match self {
            #[cfg(feature = "hip")]
            Self::Rocm => rocm::unusable(index),
            _ => None,
        }
    }
}

/// A device of a CubeCL runtime, with the codebooks that its tensors share.
#[derive(Clone)]
pub struct CubeDevice {
    backend: Backend,
    index: usize,
    device: cubecl::Device,
    /// Each format's codebook on the device, uploaded at its first use; clones share them.
    codebooks: Tables,
    /// The same of what points of a grid are looked for in.
    neighbours: Tables,
}

/// Words of formats on a device.
#[derive(Clone, Debug, Default)]
struct Tables(Arc<Mutex<HashMap<GgmlType, Handle>>>);

impl Tables {
    /// Those of a format, which are made at their first use.
    fn of(&self, client: &Client, ty: GgmlType, words: impl FnOnce() -> Vec<u32>) -> Handle {
        let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tables.entry(ty).or_insert_with(|| client.create_from_slice(bytemuck::cast_slice(&words()))).clone()
    }
}

impl CubeDevice {
    /// The `index`-th device of a backend.
    ///
    /// # Errors
    ///
    /// [`Error::NoDevice`] where the build does not link the runtime, the machine lacks its library or driver, `index`
    /// is past the last device, or CubeCL does not compile for the device.
    pub fn new(backend: Backend, index: usize) -> Result<Self> {
        let no_device = |reason| Error::NoDevice { device: format!("{}:{index}", backend.name()), reason };
        if !backend.is_linked() {
            return Err(no_device(format!("this build lacks the feature `{}`", backend.feature())));
        }
        let devices = backend.devices();
        let Some(device) = devices.get(index).cloned() else {
            return Err(no_device(match devices.len() {
                0 => backend.missing(),
                1 => "this machine has one".to_owned(),
                count => format!("this machine has {count}"),
            }));
        };
        if let Some(reason) = backend.unusable(index) {
            return Err(no_device(reason));
        }
        Ok(Self { backend, index, device, codebooks: Tables::default(), neighbours: Tables::default() })
    }

    /// The device that CubeCL names so.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new); [`Error::NoDevice`] also for one that no backend lists.
    pub fn from_cubecl(device: &cubecl::Device) -> Result<Self> {
        let found = Backend::ALL.into_iter().find_map(|backend| {
            let index = backend.devices().iter().position(|listed| listed == device)?;
            Some((backend, index))
        });
        let unknown = || Error::NoDevice {
            device: format!("{device:?}"),
            reason: "no backend of this build lists it".to_owned(),
        };
        let (backend, index) = found.ok_or_else(unknown)?;
        Self::new(backend, index)
    }

    /// The runtime.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// The device's number in its backend.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The device as CubeCL's own type.
    pub fn cubecl(&self) -> &cubecl::Device {
        &self.device
    }

    /// The client that launches on the device.
    pub fn client(&self) -> Client {
        self.device.client()
    }

    /// The driver's name for the device.
    pub fn description(&self) -> String {
        self.client().properties().identity.name.clone()
    }

    /// Routing by ids of `experts` experts in host memory, `slots` a token.
    ///
    /// # Errors
    ///
    /// [`Error::ExpertOutOfRange`] with the first id that names no expert, [`Error::Ids`] where the ids are not `slots` for each of
    /// some tokens.
    pub fn routing<I: Copy + Into<i64>>(&self, ids: &[I], slots: usize, experts: usize) -> Result<Routing> {
        let tokens = ids.len().checked_div(slots).unwrap_or(0);
        if tokens * slots != ids.len() {
            return Err(Error::Ids { tokens, slots, experts, len: ids.len() });
        }
        let ids = indices(ids, experts, |id| Error::ExpertOutOfRange { id, experts })?;
        // A kernel cannot bind an empty buffer.
        let ids = bytemuck::cast_slice(if ids.is_empty() { &[0] } else { &ids[..] });
        Routing::new(self.client().create_from_slice(ids), tokens, slots, experts)
    }

    /// Checks that a buffer is in the memory of the device.
    pub(crate) fn check_own(&self, handle: &Handle) -> Result<()> {
        match handle.service == self.client().service_id() {
            true => Ok(()),
            false => Err(Error::ForeignActivations { device: self.to_string() }),
        }
    }

    /// The device's copy of a format's codebook; one zero word where the format has none.
    pub(crate) fn codebook(&self, client: &Client, ty: GgmlType) -> Handle {
        let words = || format(ty).and_then(|format| format.codebook).map_or_else(|| vec![0], |codebook| codebook());
        self.codebooks.of(client, ty, words)
    }

    /// The device's copy of the table that a format's quantizer looks for points of its grid in, where it has one.
    pub(crate) fn neighbours(&self, client: &Client, ty: GgmlType) -> Option<Handle> {
        Grid::of(ty).map(|grid| self.neighbours.of(client, ty, || table(ty, grid)))
    }

    /// The bytes of a buffer, read back.
    pub(crate) fn read(&self, handle: Handle) -> Result<Bytes> {
        self.client().read_one(handle).map_err(|error| self.failed(error))
    }

    /// The [`Error::Device`] of a failure on this device.
    pub(crate) fn failed(&self, error: impl fmt::Display) -> Error {
        Error::Device { device: self.to_string(), reason: error.to_string() }
    }
}

/// `ids` as indices below `count`, or the error of the first that is none.
pub(crate) fn indices<I: Copy + Into<i64>>(ids: &[I], count: usize, error: impl Fn(i64) -> Error) -> Result<Vec<u32>> {
    let index = |id: &I| {
        let id: i64 = (*id).into();
        u32::try_from(id).ok().filter(|&index| (index as usize) < count).ok_or_else(|| error(id))
    };
    ids.iter().map(index).collect()
}

impl PartialEq for CubeDevice {
    fn eq(&self, other: &Self) -> bool {
        (self.backend, self.index) == (other.backend, other.index)
    }
}

impl Eq for CubeDevice {}

impl fmt::Display for CubeDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.backend {
            Backend::CubeCpu => f.write_str(self.backend.name()),
            Backend::Wgpu | Backend::Metal if self.index == 0 => f.write_str(self.backend.name()),
            backend => write!(f, "{}:{}", backend.name(), self.index),
        }
    }
}

impl fmt::Debug for CubeDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CubeDevice({self})")
    }
}

impl Device {
    /// The `index`-th AMD GPU, by HIP (feature `hip`).
    ///
    /// # Errors
    ///
    /// [`Error::NoDevice`], which says what is missing; the other constructors likewise.
    pub fn new_rocm(index: usize) -> Result<Self> {
        CubeDevice::new(Backend::Rocm, index).map(Self::Cube)
    }

    /// The `index`-th NVIDIA GPU, by CUDA (feature `cuda`).
    pub fn new_cuda(index: usize) -> Result<Self> {
        CubeDevice::new(Backend::Cuda, index).map(Self::Cube)
    }

    /// The `index`-th GPU that Vulkan reaches (feature `vulkan`): 0 is wgpu's default, which `CUBECL_WGPU_DEFAULT_DEVICE` names; then
    /// come the others, discrete ones first.
    pub fn new_vulkan(index: usize) -> Result<Self> {
        CubeDevice::new(Backend::Vulkan, index).map(Self::Cube)
    }

    /// The GPU that wgpu prefers, on the API it prefers (feature `wgpu`). Others there have a [`CubeDevice`] by their index, as
    /// [`new_vulkan`](Self::new_vulkan) has it.
    pub fn new_wgpu() -> Result<Self> {
        CubeDevice::new(Backend::Wgpu, 0).map(Self::Cube)
    }

    /// The `index`-th of Apple's GPUs, by Metal (feature `metal`): as [`new_vulkan`](Self::new_vulkan).
    pub fn new_metal(index: usize) -> Result<Self> {
        CubeDevice::new(Backend::Metal, index).map(Self::Cube)
    }

    /// The host, by way of CubeCL's CPU runtime (feature `cpu`): it runs the kernels of a GPU.
    pub fn new_cube_cpu() -> Result<Self> {
        CubeDevice::new(Backend::CubeCpu, 0).map(Self::Cube)
    }

    /// Every device of this build and this machine, GPUs first, [`Device::Cpu`] last.
    pub fn all() -> Vec<Self> {
        Backend::ALL.into_iter().flat_map(Backend::open_all).flatten().map(Self::Cube).chain([Self::Cpu]).collect()
    }

    /// The best GPU of the first backend, in the order of [`Backend::ALL`], that has one that can be used: by HIP one with memory
    /// of its own before one that shares the host's, and the one with the most; else the first. Software rasterizers are left
    /// out. Without a GPU [`Device::Cpu`] where the build has Candle's kernels, else CubeCL's CPU runtime.
    ///
    /// The first call logs a warning for each GPU that was passed over because it cannot be used.
    pub fn best() -> Self {
        static TOLD: Once = Once::new();
        let mut passed_over = Vec::new();
        let mut gpus = Backend::ALL.into_iter().filter(|&backend| backend != Backend::CubeCpu);
        let best = gpus.find_map(|backend| {
            let mut usable: Vec<_> =
                backend.open_all().filter_map(|device| device.map_err(|error| passed_over.push(error)).ok()).collect();
            usable.sort_by_key(|device| backend.rank(device.index));
            // Asking needs a client: no device behind the first that will do gets one.
            usable.into_iter().find(|device| !device.is_software())
        });
        TOLD.call_once(|| passed_over.iter().for_each(|error| log::warn!("{error}")));
        let host = || match cfg!(feature = "candle") {
            true => Self::Cpu,
            false => Self::new_cube_cpu().unwrap_or(Self::Cpu),
        };
        best.map_or_else(host, Self::Cube)
    }

    /// Whether this is the host with Candle's kernels.
    pub fn is_cpu(&self) -> bool {
        matches!(self, Self::Cpu)
    }
}

impl CubeDevice {
    /// Whether the device is the host: CubeCL's CPU runtime, or a software rasterizer behind a graphics API.
    pub fn is_software(&self) -> bool {
        self.backend == Backend::CubeCpu || is_rasterizer(&self.client())
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cube(device) => device.fmt(f),
        }
    }
}

impl FromStr for Device {
    type Err = Error;

    /// `auto`, `cpu`, `cube-cpu`, `rocm[:i]`, `cuda[:i]`, `vulkan[:i]`, `wgpu[:i]` or `metal[:i]`.
    fn from_str(s: &str) -> Result<Self> {
        let unknown = || Error::NoDevice {
            device: s.to_owned(),
            reason: "known are auto, cpu, cube-cpu, rocm[:i], cuda[:i], vulkan[:i], wgpu[:i] and metal[:i]".to_owned(),
        };
        let (name, index) = match s.split_once(':') {
            Some((name @ ("rocm" | "cuda" | "vulkan" | "wgpu" | "metal"), index)) => {
                (name, index.parse().map_err(|_| unknown())?)
            }
            Some(_) => return Err(unknown()),
            None => (s, 0),
        };
        match name {
            "auto" => Ok(Self::best()),
            "cpu" => Ok(Self::Cpu),
            _ => {
                let backend = Backend::ALL.into_iter().find(|backend| backend.name() == name).ok_or_else(unknown)?;
                CubeDevice::new(backend, index).map(Self::Cube)
            }
        }
    }
}
