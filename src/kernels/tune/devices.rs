//! Devices of many kinds, for tests of the choices on each.

use crate::kernels::arch::target::Target;
use crate::kernels::hardware::Hardware;

/// The index of the H100 in [`devices`].
pub const H100: usize = 0;

/// The names of [`devices`].
pub const NAMES: [&str; 6] = ["H100", "gfx1100", "gfx942", "Apple M2", "rasterizer", "8-core host"];

/// The facts, as CubeCL reports them, of an NVIDIA H100, a Radeon RX 7900 XTX, an Instinct MI300X, an Apple M2 by Metal,
/// lavapipe, and CubeCL's CPU runtime on eight cores.
pub fn devices() -> Vec<Hardware> {
    let gpu = Hardware { cores: None, ..Hardware::sample(0, 64 << 10) };
    let amd = |name: &str, plane, cores| Hardware {
        target: Target::Amd(name.to_owned()),
        plane: Some(plane),
        cores: Some(cores),
        ..gpu.clone()
    };
    vec![
        Hardware { target: Target::Nvidia(90), cores: Some(132), shared_memory: 227 << 10, ..gpu.clone() },
        amd("gfx1100", 32, 96),
        amd("gfx942", 64, 304),
        Hardware { shared_memory: 32 << 10, ..gpu.clone() },
        Hardware { plane: None, is_rasterizer: true, shared_memory: 32 << 10, ..gpu.clone() },
        Hardware { target: Target::Host, plane: None, host_cores: Some(8), max_units_per_cube: 8, ..gpu },
    ]
}
