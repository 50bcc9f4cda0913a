//! What every launch needs: buffers as arguments, cubes for a number of units.

use std::sync::atomic::{AtomicUsize, Ordering};

use cubecl::client::Client;
use cubecl::ir::features::Plane;
use cubecl::prelude::*;
use cubecl::server::Handle;

/// Units in a cube of a kernel whose units do not talk to each other.
const UNITS: u32 = 128;

static COMPILED: AtomicUsize = AtomicUsize::new(0);

/// How many of the library's kernels this process has compiled, on all its devices: what a test or a search costs.
pub fn compiled() -> usize {
    COMPILED.load(Ordering::Relaxed)
}

/// `handle` as an argument of as many elements of `bytes` bytes as it holds.
pub fn buffer(handle: &Handle, bytes: usize) -> BufferArg {
    let len = used_bytes(handle) / bytes;
    // SAFETY: the elements lie in the handle's part of its memory.
    unsafe { BufferArg::from_raw_parts(handle.clone(), len) }
}

/// Bytes that a handle holds; none where its offsets, which anyone may set, leave none.
pub fn used_bytes(handle: &Handle) -> usize {
    let offsets = handle.offset_start.unwrap_or(0).checked_add(handle.offset_end.unwrap_or(0));
    offsets.and_then(|offsets| handle.size().checked_sub(offsets)).unwrap_or(0) as usize
}

/// One allocation for several buffers: each is a task for the runtime's own thread.
pub struct Suballocation {
    /// The buffer of all.
    pub whole: Handle,
    /// Where each part begins and how long it is, in bytes.
    places: Vec<(usize, usize)>,
}

impl Suballocation {
    /// Parts of so many bytes, each of which may be bound to a kernel as a buffer of its own.
    pub fn new(client: &Client, sizes: impl IntoIterator<Item = usize>) -> Self {
        let alignment = (client.properties().memory.alignment as usize).max(16);
        let (mut places, mut bytes) = (Vec::new(), 0usize);
        for size in sizes {
            // An empty buffer is none to a kernel.
            let size = size.next_multiple_of(16).max(16);
            let begin = bytes.next_multiple_of(alignment);
            places.push((begin, size));
            bytes = begin + size;
        }
        Self { whole: client.empty(bytes.max(16)), places }
    }

    /// Where a part begins, in bytes.
    pub fn begin(&self, part: usize) -> usize {
        self.places[part].0
    }

    /// A part.
    pub fn handle(&self, part: usize) -> Handle {
        let (begin, bytes) = self.places[part];
        let rest = self.whole.size_in_used().saturating_sub((begin + bytes) as u64);
        self.whole.clone().offset_start(begin as u64).offset_end(rest)
    }
}

/// A grid of cubes in two dimensions, as one is too short on some devices, and how many of its units have work.
///
/// The width comes as an argument: asking the device for it costs a load of the dispatch packet on AMD.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub struct Grid {
    /// Cubes in a line of the grid.
    width: usize,
    /// Units (or groups of units) with work; the surplus must stop.
    pub len: usize,
}

#[cube]
impl Grid {
    /// The number of this cube.
    pub fn cube(&self) -> usize {
        // Every kernel asks this once, and what is here runs once for each that is compiled.
        comptime!(COMPILED.fetch_add(1, Ordering::Relaxed));
        CUBE_POS_Y as usize * self.width + CUBE_POS_X as usize
    }

    /// The number of this unit among those of one-dimensional cubes.
    pub fn unit(&self) -> usize {
        self.cube() * CUBE_DIM_X as usize + UNIT_POS_X as usize
    }
}

/// The launch of `units` independent units: the count and size of cubes, and the grid.
pub fn elementwise(client: &Client, units: usize) -> (CubeCount, CubeDim, GridLaunch) {
    let properties = &client.properties().hardware;
    // CubeCL's CPU runtime runs a cube's units as threads; more of them than cores would only wait.
    let per_cube = match properties.num_cpu_cores {
        Some(cores) => cores.min(properties.max_units_per_cube),
        None => UNITS.min(properties.max_units_per_cube),
    };
    let (count, grid) = cubes(client, units.div_ceil(per_cube as usize), units);
    (count, CubeDim::new_1d(per_cube), grid)
}

/// `count` cubes over two dimensions, and their grid, where `len` is what the kernel counts.
pub fn cubes(client: &Client, count: usize, len: usize) -> (CubeCount, GridLaunch) {
    let most = client.properties().hardware.max_cube_count.0 as usize;
    let width = count.min(most);
    let height = count.div_ceil(width.max(1));
    (CubeCount::Static(width as u32, height as u32, (count > 0) as u32), GridLaunch::new(width, len))
}

/// Whether the device is the host behind a graphics API, by the names that software rasterizers go by.
pub fn is_rasterizer(client: &Client) -> bool {
    let name = client.properties().identity.name.to_lowercase();
    ["llvmpipe", "lavapipe", "swiftshader", "warp"].iter().any(|software| name.contains(software))
}

/// Lanes of a plane, where all planes are of one size and their lanes can talk to each other.
pub fn plane(client: &Client) -> Option<u32> {
    let hardware = &client.properties().hardware;
    let plane = hardware.plane_size_max;
    let talks = client.features().plane.contains(Plane::Ops)
        && hardware.plane_size_min == plane
        && plane > 1
        && !is_rasterizer(client);
    talks.then_some(plane)
}
