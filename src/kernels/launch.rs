//! What every launch needs: buffers as arguments, cubes for a number of units.

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;

/// Units in a cube of a kernel whose units do not talk to each other.
const UNITS: u32 = 128;

/// `handle` as an argument of `len` elements.
///
/// The callers are this module's launches, each of which sizes the buffer and the kernel's indices from the same
/// checked shape; CubeCL asks for `unsafe` because a wrong `len` would let a kernel read past the buffer.
pub fn buffer(handle: &Handle, len: usize) -> BufferArg {
    // SAFETY: see above; `len` elements were allocated for the handle.
    unsafe { BufferArg::from_raw_parts(handle.clone(), len) }
}

/// Cubes for `units` independent units: the count, the size of a cube, and the number at which surplus units stop.
pub fn elementwise(client: &Client, units: usize) -> (CubeCount, CubeDim, usize) {
    let properties = &client.properties().hardware;
    // A CPU runs a cube's units as threads that share nothing here; one unit of each core's is enough.
    let per_cube = match properties.num_cpu_cores {
        Some(cores) => cores.min(properties.max_units_per_cube),
        None => UNITS.min(properties.max_units_per_cube),
    };
    (cubes(client, units.div_ceil(per_cube as usize)), CubeDim::new_1d(per_cube), units)
}

/// `count` cubes, spread over the dimensions of the grid where one alone is too short. Surplus cubes must stop.
pub fn cubes(client: &Client, count: usize) -> CubeCount {
    let max = client.properties().hardware.max_cube_count;
    let x = count.min(max.0 as usize).max(1);
    let y = count.div_ceil(x).min(max.1 as usize).max(1);
    let z = count.div_ceil(x * y).max(1);
    match count {
        0 => CubeCount::Static(0, 0, 0),
        _ => CubeCount::Static(x as u32, y as u32, z as u32),
    }
}
