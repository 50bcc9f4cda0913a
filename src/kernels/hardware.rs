//! What a device is, as far as any choice depends on it.

use cubecl::client::Client;

use super::arch::target::Target;
use super::launch::{is_rasterizer, plane};

/// The facts of a device that settings and blueprints are chosen by: the only place where CubeCL is asked for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hardware {
    /// Whose code the device runs.
    pub target: Target,
    /// Lanes of a plane, where all planes are of one size and their lanes can talk to each other.
    pub plane: Option<u32>,
    /// Multiprocessors or compute units, where the driver tells.
    pub cores: Option<u32>,
    /// Cores of the host, where the device is CubeCL's CPU runtime.
    pub host_cores: Option<u32>,
    /// Whether the device is the host behind a graphics API.
    pub is_rasterizer: bool,
    /// The most units of a cube.
    pub max_units_per_cube: u32,
    /// Bytes of shared memory that a cube may have.
    pub shared_memory: usize,
}

impl Hardware {
    /// The facts of a client's device.
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
}
