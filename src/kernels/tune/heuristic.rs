//! The heuristic: settings by the device's properties.

use std::num::NonZeroU32;

use cubecl::client::Client;

use crate::kernels::arch::target::Target;
use crate::kernels::formats::{CHUNK, Format, Vectors, format, traits};
use crate::kernels::launch::{has_planes, is_rasterizer};
use crate::kernels::matvec::{ActivationType, Problem, Settings};

/// What suits the device for a product.
pub fn heuristic(client: &Client, problem: Problem) -> Settings {
    let hardware = &client.properties().hardware;
    let plane = hardware.plane_size_max;
    let one = Settings {
        span: dividing(problem, Vectors::All),
        lanes_per_row: 1,
        groups_per_cube: 1,
        rows_per_group: 1,
        tokens: problem.tokens.next_power_of_two(),
        unroll: 1,
        persistent_cubes_per_core: None,
        stage: false,
        prefetch: false,
        stage_codebook: false,
    };
    if let Some(cores) = hardware.num_cpu_cores {
        Settings { groups_per_cube: cores.min(hardware.max_units_per_cube), ..with_few_kernels(one, problem) }
    } else if is_rasterizer(client) {
        with_few_kernels(one, problem)
    } else if !has_planes(client) {
        Settings { lanes_per_row: 64.min(hardware.max_units_per_cube), ..with_few_kernels(one, problem) }
    } else if matches!(Target::of(client.properties()), Target::Amd(_))
        || hardware.num_streaming_multiprocessors.is_none()
    {
        few_registers(problem, plane, with_few_kernels(one, problem))
    } else if traits(problem.ty).dense {
        dense(client, problem, one)
    } else if problem.operand == ActivationType::Float {
        let rows = if problem.tokens > 1 { 1 } else { 2 };
        Settings {
            lanes_per_row: plane,
            groups_per_cube: 128 / plane,
            rows_per_group: rows,
            ..with_few_kernels(one, problem)
        }
    } else {
        few_tokens(client, problem, one)
    }
}

/// Weights that are floats, on a GPU with registers for many loads: as many rows as leave groups for all cores, and not fewer
/// than make up for the loads of the activations.
fn dense(client: &Client, problem: Problem, one: Settings) -> Settings {
    let plane = client.properties().hardware.plane_size_max;
    let (units, unroll) = match problem.tokens {
        1 => (256, 4),
        2 => (256, 2),
        _ => (128, 2),
    };
    let rows = power_of_two(problem.n / (2 * groups_of(client, 256)), one.tokens.min(4), 4);
    Settings { lanes_per_row: plane, groups_per_cube: units / plane, rows_per_group: rows, unroll, ..one }
}

/// int8 products on a GPU whose cubes quantize for themselves, and load for the next rows while they multiply.
fn few_tokens(client: &Client, problem: Problem, one: Settings) -> Settings {
    let hardware = &client.properties().hardware;
    let plane = hardware.plane_size_max;
    let few = problem.n < groups_of(client, 512);
    let units = match problem.tokens {
        // Long rows are quantized sooner by more lanes.
        1 if problem.chunks > 256 => 1024,
        2 if !few => 1024,
        // Few rows are spread over more cubes.
        5.. if few => 256,
        _ => 512,
    };
    let units = units.min(hardware.max_units_per_cube);
    let span = dividing(problem, Vectors::Widest);
    // Rows share the loads of the activations, where there are enough for all groups.
    let groups = groups_of(client, units);
    let most = match problem.tokens {
        // Super-blocks have more to load and to decode.
        1 if problem.ty.block_size() > CHUNK => 1,
        ..=2 => 2,
        _ => 4,
    };
    let rows = power_of_two((problem.n + groups / 2) / groups, 1, most);
    // More tokens take more registers.
    let words = if problem.tokens == 1 { 32 } else { 20 };
    let chunk_words = format(problem.ty).map_or(1, Format::chunk_words).max(1);
    let unroll = power_of_two(words / (chunk_words * span * rows), 1, 4 / rows);
    Settings {
        span,
        lanes_per_row: plane,
        groups_per_cube: units / plane,
        rows_per_group: rows,
        unroll,
        persistent_cubes_per_core: NonZeroU32::new(if rows > 2 { 1 } else { (1024 / units).max(1) }),
        stage: true,
        prefetch: true,
        stage_codebook: true,
        ..one
    }
}

/// Groups of a plane each that the device's cores take together, in cubes of so many units, one a core.
fn groups_of(client: &Client, units: u32) -> usize {
    let hardware = &client.properties().hardware;
    hardware.num_streaming_multiprocessors.unwrap_or(1) as usize * (units / hardware.plane_size_max) as usize
}

/// The greatest power of two up to `count`, within bounds that are some.
fn power_of_two(count: usize, least: usize, most: usize) -> usize {
    1 << count.clamp(least, most).ilog2()
}

/// Registers for the waves that the report of AMD's machine code asks for.
fn few_registers(problem: Problem, plane: u32, one: Settings) -> Settings {
    // Where a row has too few spans for all lanes of a plane, a quarter of them does not idle.
    let lanes = if problem.chunks / one.span < plane as usize { (plane / 4).max(1) } else { plane };
    // Two rows share the loads of the activations, where the registers suffice for that.
    let decoded = problem.operand == ActivationType::Float && !traits(problem.ty).dense && problem.tokens > 1;
    let rows = if one.tokens > 4 || one.span > 4 || decoded { 1 } else { 2 };
    Settings { lanes_per_row: lanes, groups_per_cube: 128.max(plane) / lanes, rows_per_group: rows, ..one }
}

/// Few kernels to compile where the decoding to floats costs most: one for all tokens but the first. A long span leaves
/// registers for few tokens.
fn with_few_kernels(settings: Settings, problem: Problem) -> Settings {
    let tokens = match problem.operand {
        ActivationType::Float if !traits(problem.ty).dense && problem.tokens > 1 => 4,
        _ if settings.span > 4 => settings.tokens.min(4),
        _ => settings.tokens,
    };
    Settings { tokens, ..settings }
}

/// `span` where it divides the row's chunks, else 1.
fn dividing(problem: Problem, vectors: Vectors) -> usize {
    let span = format(problem.ty).map_or(1, |format| format.vector_span(vectors));
    if problem.chunks.is_multiple_of(span) { span } else { 1 }
}
