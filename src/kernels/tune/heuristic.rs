//! The rule: what suits a device's properties.

use cubecl::client::Client;

use crate::kernels::arch::target::Target;
use crate::kernels::formats::{Format, UNIT, format, traits};
use crate::kernels::launch::{has_planes, is_rasterizer};
use crate::kernels::matvec::{Key, Operand, Tunables};

/// What suits the device for a product.
pub fn rule(client: &Client, key: Key) -> Tunables {
    let hardware = &client.properties().hardware;
    let plane = hardware.plane_size_max;
    let one = Tunables {
        span: dividing(key, Format::span),
        lanes: 1,
        groups: 1,
        rows: 1,
        tokens: key.tokens.next_power_of_two(),
        unroll: 1,
        cubes_per_core: 0,
        stage: false,
        ahead: false,
        stage_codebook: false,
    };
    if let Some(cores) = hardware.num_cpu_cores {
        Tunables { groups: cores.min(hardware.max_units_per_cube), ..with_few_kernels(one, key) }
    } else if is_rasterizer(client) {
        with_few_kernels(one, key)
    } else if !has_planes(client) {
        Tunables { lanes: 64.min(hardware.max_units_per_cube), ..with_few_kernels(one, key) }
    } else if matches!(Target::of(client.properties()), Target::Amd(_))
        || hardware.num_streaming_multiprocessors.is_none()
    {
        few_registers(key, plane, with_few_kernels(one, key))
    } else if traits(key.ty).dense {
        dense(client, key, one)
    } else if key.operand == Operand::Float {
        let rows = if key.tokens > 1 { 1 } else { 2 };
        Tunables { lanes: plane, groups: 128 / plane, rows, ..with_few_kernels(one, key) }
    } else {
        few_tokens(client, key, one)
    }
}

/// Weights that are floats, on a GPU with registers for many loads: as many rows as leave groups for all cores, and not fewer
/// than make up for the loads of the activations.
fn dense(client: &Client, key: Key, one: Tunables) -> Tunables {
    let plane = client.properties().hardware.plane_size_max;
    let (units, unroll) = match key.tokens {
        1 => (256, 4),
        2 => (256, 2),
        _ => (128, 2),
    };
    let rows = power_of_two(key.n / (2 * groups_of(client, 256)), one.tokens.min(4), 4);
    Tunables { lanes: plane, groups: units / plane, rows, unroll, ..one }
}

/// int8 products on a GPU whose cubes quantize for themselves, and load for the next rows while they multiply.
fn few_tokens(client: &Client, key: Key, one: Tunables) -> Tunables {
    let hardware = &client.properties().hardware;
    let plane = hardware.plane_size_max;
    let few = key.n < groups_of(client, 512);
    let units = match key.tokens {
        // Long rows are quantized sooner by more lanes.
        1 if key.units > 256 => 1024,
        2 if !few => 1024,
        // Few rows are spread over more cubes.
        5.. if few => 256,
        _ => 512,
    };
    let units = units.min(hardware.max_units_per_cube);
    let span = dividing(key, Format::narrow_span);
    // Rows share the loads of the activations, where there are enough for all groups.
    let groups = groups_of(client, units);
    let most = match key.tokens {
        // Super-blocks have more to load and to decode.
        1 if key.ty.block_size() > UNIT => 1,
        ..=2 => 2,
        _ => 4,
    };
    let rows = power_of_two((key.n + groups / 2) / groups, 1, most);
    // More tokens take more registers.
    let words = if key.tokens == 1 { 32 } else { 20 };
    let unit_words = format(key.ty).map_or(1, Format::unit_words).max(1);
    let unroll = power_of_two(words / (unit_words * span * rows), 1, 4 / rows);
    Tunables {
        span,
        lanes: plane,
        groups: units / plane,
        rows,
        unroll,
        cubes_per_core: if rows > 2 { 1 } else { (1024 / units).max(1) },
        stage: true,
        ahead: true,
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
fn few_registers(key: Key, plane: u32, one: Tunables) -> Tunables {
    // Where a row has too few spans for all lanes of a plane, a quarter of them does not idle.
    let lanes = if key.units / one.span < plane as usize { (plane / 4).max(1) } else { plane };
    // Two rows share the loads of the activations, where the registers suffice for that.
    let decoded = key.operand == Operand::Float && !traits(key.ty).dense && key.tokens > 1;
    let rows = if one.tokens > 4 || one.span > 4 || decoded { 1 } else { 2 };
    Tunables { lanes, groups: 128.max(plane) / lanes, rows, ..one }
}

/// Few kernels to compile where the decoding to floats costs most: one for all tokens but the first. A long span leaves
/// registers for few tokens.
fn with_few_kernels(tunables: Tunables, key: Key) -> Tunables {
    let tokens = match key.operand {
        Operand::Float if !traits(key.ty).dense && key.tokens > 1 => 4,
        _ if tunables.span > 4 => tunables.tokens.min(4),
        _ => tunables.tokens,
    };
    Tunables { tokens, ..tunables }
}

/// `span` where it divides the row's units, else 1.
fn dividing(key: Key, span: impl Fn(&Format) -> usize) -> usize {
    let span = format(key.ty).map_or(1, span);
    if key.units.is_multiple_of(span) { span } else { 1 }
}
