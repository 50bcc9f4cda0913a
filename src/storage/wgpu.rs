//! The GPUs behind wgpu's backends, which wgpu numbers by kind.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use cubecl::device::{WgpuBackend, WgpuDevice, WgpuDeviceKind};

/// The variable by which CubeCL is told which adapter its default device is, spelled as a [`WgpuDeviceKind`].
const DEFAULT: &str = "CUBECL_WGPU_DEFAULT_DEVICE";

/// wgpu's kinds of GPUs, in the order in which it prefers them (`Instance::request_adapter` of wgpu-core 30, for performance).
const KINDS: [fn(usize) -> WgpuDeviceKind; 4] =
    [WgpuDeviceKind::DiscreteGpu, WgpuDeviceKind::IntegratedGpu, WgpuDeviceKind::Other, WgpuDeviceKind::VirtualGpu];

/// wgpu's default device on an API, and then its other GPUs, the preferred ones first. None where there is no default.
///
/// The first answer with any is kept: for each, wgpu starts the drivers once more.
pub(super) fn devices(api: WgpuBackend) -> Vec<cubecl::Device> {
    static KNOWN: LazyLock<Mutex<HashMap<WgpuBackend, Vec<cubecl::Device>>>> = LazyLock::new(Mutex::default);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(devices) = known.get(&api) {
        return devices.clone();
    }
    let device = |kind: WgpuDeviceKind| cubecl::Device::Wgpu(WgpuDevice::new(kind).on(api));
    let listed = |kind| cubecl::Device::enumerate(device(kind).to_id());
    if listed(WgpuDeviceKind::DefaultDevice).is_empty() {
        return Vec::new();
    }
    let found = KINDS.iter().flat_map(|kind| (0..listed(kind(0)).len()).map(kind)).collect();
    let named = std::env::var(DEFAULT).ok();
    let devices: Vec<_> = [WgpuDeviceKind::DefaultDevice]
        .into_iter()
        .chain(beside_default(found, named.as_deref()))
        .map(device)
        .collect();
    known.insert(api, devices.clone());
    devices
}

/// All of `found`, in the order of wgpu's preference, but the one that the default device is.
fn beside_default(mut found: Vec<WgpuDeviceKind>, named: Option<&str>) -> Vec<WgpuDeviceKind> {
    let default = match named {
        Some(named) => found.iter().position(|kind| format!("{kind:?}") == named),
        None => (!found.is_empty()).then_some(0),
    };
    if let Some(default) = default {
        found.remove(default);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use WgpuDeviceKind::{DiscreteGpu, IntegratedGpu, VirtualGpu};

    #[test]
    fn no_gpu_is_listed_twice() {
        let all = || vec![DiscreteGpu(0), DiscreteGpu(1), IntegratedGpu(0), VirtualGpu(0)];
        let beside = |named| beside_default(all(), named);
        assert_eq!(beside(None), all()[1..]);
        assert_eq!(beside(Some("DiscreteGpu(0)")), all()[1..]);
        assert_eq!(beside(Some("IntegratedGpu(0)")), [DiscreteGpu(0), DiscreteGpu(1), VirtualGpu(0)]);
        // A rasterizer, which is no GPU.
        assert_eq!(beside(Some("Cpu")), all());
        assert!(beside_default(Vec::new(), None).is_empty());
        assert!(beside_default(vec![IntegratedGpu(0)], None).is_empty());
    }
}
