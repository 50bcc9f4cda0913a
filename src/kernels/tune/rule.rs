//! The rule: what suits a device's properties.

use cubecl::client::Client;

use super::{Key, Tunables};
use crate::kernels::formats::{Format, format, traits};
use crate::kernels::launch::{has_planes, is_rasterizer};
use crate::kernels::matvec::Operand;
use crate::kernels::target::Target;

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
        Tunables { groups: cores.min(hardware.max_units_per_cube), ..one.with_few_kernels(key) }
    } else if is_rasterizer(client) {
        one.with_few_kernels(key)
    } else if !has_planes(client) {
        Tunables { lanes: 64.min(hardware.max_units_per_cube), ..one.with_few_kernels(key) }
    } else if matches!(Target::of(client.properties()), Target::Amd(_))
        || hardware.num_streaming_multiprocessors.is_none()
    {
        few_registers(key, plane, one.with_few_kernels(key))
    } else if traits(key.ty).dense {
        Tunables { lanes: plane, groups: 256 / plane, rows: 4, unroll: if key.tokens > 1 { 1 } else { 4 }, ..one }
    } else if key.operand == Operand::Float {
        let rows = if key.tokens > 1 { 1 } else { 2 };
        Tunables { lanes: plane, groups: 128 / plane, rows, ..one.with_few_kernels(key) }
    } else {
        few_tokens(client, key, one)
    }
}

/// int8 products on a GPU whose cubes quantize for themselves, several of them a core: while some load, others multiply.
fn few_tokens(client: &Client, key: Key, one: Tunables) -> Tunables {
    let hardware = &client.properties().hardware;
    let plane = hardware.plane_size_max;
    let cores = hardware.num_streaming_multiprocessors.unwrap_or(1) as usize;
    // As many units as there are half units of activations to quantize. More tokens take more registers.
    let halves = (2 * key.units).next_power_of_two().clamp(256, 1024) as u32;
    let (units, units_per_core, lanes, most) = match key.tokens {
        1 => (halves, 1024, plane, 2),
        2 => (256, 1024, plane / 2, 4),
        3..=4 => (256, 512, plane / 2, 4),
        _ => (512, 1024, plane / 2, 4),
    };
    let units = units.min(hardware.max_units_per_cube);
    let span = dividing(key, Format::narrow_span);
    // Rows share the loads of the activations, where there are enough for all groups.
    let rows = key.n / (cores * (units_per_core / lanes) as usize);
    let rows = rows.next_power_of_two().clamp(1, most);
    let words = format(key.ty).map_or(1, Format::unit_words).max(1);
    let unroll = if key.tokens == 1 { LOADED_WORDS / (words * span * rows) } else { 1 };
    Tunables {
        span,
        lanes,
        groups: units / lanes,
        rows,
        unroll: 1 << unroll.max(1).ilog2().min(2),
        cubes_per_core: (units_per_core / units).max(1),
        stage: true,
        ahead: key.tokens <= 4,
        stage_codebook: true,
        ..one
    }
}

/// Words of weights that a lane has registers for while they are on their way.
const LOADED_WORDS: usize = 20;

/// Registers for the waves that the report of AMD's machine code asks for.
fn few_registers(key: Key, plane: u32, one: Tunables) -> Tunables {
    // Where a row has too few spans for all lanes of a plane, a quarter of them does not idle.
    let lanes = if key.units / one.span < plane as usize { (plane / 4).max(1) } else { plane };
    // Two rows share the loads of the activations, where the registers suffice for that.
    let decoded = key.operand == Operand::Float && !traits(key.ty).dense && key.tokens > 1;
    let rows = if one.tokens > 4 || one.span > 4 || decoded { 1 } else { 2 };
    Tunables { lanes, groups: 128.max(plane) / lanes, rows, ..one }
}

impl Tunables {
    /// Few kernels to compile where the decoding to floats costs most: one for all tokens but the first. A long span leaves
    /// registers for few tokens.
    fn with_few_kernels(self, key: Key) -> Self {
        let tokens = match key.operand {
            Operand::Float if !traits(key.ty).dense && key.tokens > 1 => 4,
            _ if self.span > 4 => self.tokens.min(4),
            _ => self.tokens,
        };
        Self { tokens, ..self }
    }
}

/// `span` where it divides the row's units, else 1.
fn dividing(key: Key, span: impl Fn(&Format) -> usize) -> usize {
    let span = format(key.ty).map_or(1, span);
    if key.units.is_multiple_of(span) { span } else { 1 }
}
