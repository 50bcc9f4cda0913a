//! Parts of every launch: buffer arguments, suballocations, grids of cubes, the plane size.

use std::sync::atomic::{AtomicUsize, Ordering};

use cubecl::client::Client;
use cubecl::ir::features::Plane;
use cubecl::prelude::*;
use cubecl::server::Handle;

/// Units in a cube of a kernel whose units exchange nothing.
const UNITS: u32 = 128;

static COMPILED: AtomicUsize = AtomicUsize::new(0);

/// Number of the library's kernels that this process has compiled, on all its devices: the cost of a test or a search.
pub fn compiled() -> usize {
    COMPILED.load(Ordering::Relaxed)
}

/// Counts a kernel that is compiled: every one asks once for its cube, where it is expanded.
fn count_kernel() {
    COMPILED.fetch_add(1, Ordering::Relaxed);
}

/// `handle` as an argument of as many elements of `bytes` bytes as it holds.
pub fn buffer(handle: &Handle, bytes: usize) -> BufferArg {
    let len = used_bytes(handle) / bytes;
    // SAFETY: `len` whole elements lie in the bytes that the handle uses.
    unsafe { BufferArg::from_raw_parts(handle.clone(), len) }
}

/// Bytes between a handle's offsets; 0 where the offsets, which callers may set, exceed its size.
pub fn used_bytes(handle: &Handle) -> usize {
    let offsets = handle.offset_start.unwrap_or(0).checked_add(handle.offset_end.unwrap_or(0));
    offsets.and_then(|offsets| handle.size().checked_sub(offsets)).unwrap_or(0) as usize
}

/// Several buffers in one allocation: every `client.empty` costs a message to the runtime's thread.
pub struct Suballocation {
    /// The allocation.
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
            // A kernel cannot bind an empty buffer.
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

    /// The buffer of a part.
    pub fn handle(&self, part: usize) -> Handle {
        let (begin, bytes) = self.places[part];
        let rest = self.whole.size_in_used().saturating_sub((begin + bytes) as u64);
        self.whole.clone().offset_start(begin as u64).offset_end(rest)
    }
}

/// A two-dimensional grid of cubes, and the number of its units with work: one dimension is too short on some devices.
///
/// The width is an argument: on AMD, a kernel that reads it from the device loads the dispatch packet.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub struct Grid {
    /// Cubes along x.
    width: usize,
    /// Units (or groups of units) with work; the surplus must stop.
    pub len: usize,
}

#[cube]
impl Grid {
    /// Linear index of this cube.
    pub fn cube(&self) -> usize {
        comptime!(count_kernel());
        CUBE_POS_Y as usize * self.width + CUBE_POS_X as usize
    }

    /// Linear index of this cube among those of its slice, which is `CUBE_POS_X`, in a grid of [`cubes_of_slices`].
    pub fn cube_of_slice(&self) -> usize {
        comptime!(count_kernel());
        CUBE_POS_Z as usize * self.width + CUBE_POS_Y as usize
    }

    /// Linear index of this unit, in one-dimensional cubes.
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

/// `count` cubes over two dimensions, and their grid of `len` units (or groups of units) with work.
pub fn cubes(client: &Client, count: usize, len: usize) -> (CubeCount, GridLaunch) {
    let [width, height] = over_two(count, client.properties().hardware.max_cube_count.0);
    (CubeCount::Static(width, height, 1), GridLaunch::new(width as usize, len))
}

/// `count` cubes for each of some slices, over the three dimensions, and their grid. Cubes of the same number start one after the
/// other: they find in the cache what the first of them has read.
pub fn cubes_of_slices(client: &Client, slices: usize, count: usize) -> (CubeCount, GridLaunch) {
    let [width, height] = over_two(count, client.properties().hardware.max_cube_count.1);
    (CubeCount::Static(slices as u32, width, height), GridLaunch::new(width as usize, count))
}

/// Width, of at most `most`, and height of a grid for `count` cubes, with none where that is 0. Its last row may be longer than need
/// be.
fn over_two(count: usize, most: u32) -> [u32; 2] {
    let width = count.min(most as usize);
    [width as u32, count.div_ceil(width.max(1)) as u32]
}

/// Whether the device is a software rasterizer, the host behind a graphics API: known by its name.
pub fn is_rasterizer(client: &Client) -> bool {
    let name = client.properties().identity.name.to_lowercase();
    ["llvmpipe", "lavapipe", "swiftshader", "warp"].iter().any(|software| name.contains(software))
}

/// Lanes of a plane, where all planes are of one size and have plane operations; `None` on software rasterizers.
pub fn plane(client: &Client) -> Option<u32> {
    let hardware = &client.properties().hardware;
    let plane = hardware.plane_size_max;
    let talks = client.features().plane.contains(Plane::Ops)
        && hardware.plane_size_min == plane
        && plane > 1
        && !is_rasterizer(client);
    talks.then_some(plane)
}
