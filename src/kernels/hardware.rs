//! [`Hardware`]: the properties of a device that the choice of a kernel depends on.

use cubecl::client::Client;

use super::arch::target::Target;
use super::launch::{is_rasterizer, plane};

/// Cores of a device whose driver tells none.
pub const FEW_CORES: u32 = 32;

/// Properties of a device that settings and blueprints are chosen by, read from CubeCL in this one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hardware {
    /// The compiler of the device's code, and its processor.
    pub target: Target,
    /// Lanes of a plane, where all planes are of one size and have plane operations; `None` on software rasterizers.
    pub plane: Option<u32>,
    /// Multiprocessors or compute units, where the driver tells.
    pub cores: Option<u32>,
    /// Cores of the host, where the device is CubeCL's CPU runtime.
    pub host_cores: Option<u32>,
    /// Whether the device is a software rasterizer: the host behind a graphics API.
    pub is_rasterizer: bool,
    /// The most units of a cube.
    pub max_units_per_cube: u32,
    /// Bytes of shared memory that a cube may have.
    pub shared_memory: usize,
}

impl Hardware {
    /// The properties of a client's device.
    pub fn of(client: &Client) -> Self {
        let properties = client.properties();
        let hardware = &properties.hardware;
        Self {
            target: Target::of(properties),
            plane: plane(client),
            cores: hardware.num_streaming_multiprocessors,
            host_cores: hardware.num_cpu_cores,
            is_rasterizer: is_rasterizer(client),
            max_units_per_cube: hardware.max_units_per_cube,
            shared_memory: hardware.max_shared_memory_size,
        }
    }

    /// Multiprocessors or compute units, or a few where the driver tells none.
    pub fn cores_or_few(&self) -> usize {
        self.cores.unwrap_or(FEW_CORES) as usize
    }

    /// Some GPU of planes of 32 lanes, for tests.
    #[cfg(test)]
    pub fn sample(cores: u32, shared_memory: usize) -> Self {
        Self {
            target: Target::Other,
            plane: Some(32),
            cores: Some(cores),
            host_cores: None,
            is_rasterizer: false,
            max_units_per_cube: 1024,
            shared_memory,
        }
    }
}
