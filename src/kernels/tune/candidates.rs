//! What a search tries.

use cubecl::client::Client;

use crate::kernels::formats::{Format, format, traits};
use crate::kernels::launch::has_planes;
use crate::kernels::matvec::{Key, Operand, Tunables};

/// `from` with one of its tunables changed, in each way that makes sense on the device.
pub fn neighbours(client: &Client, key: Key, from: Tunables) -> Vec<Tunables> {
    let hardware = &client.properties().hardware;
    let (planes, units) = (has_planes(client), from.lanes * from.groups);
    let int8 = key.operand == Operand::Int8;
    let mut found = Vec::new();
    let mut add = |tunables: Tunables| {
        if tunables != from && tunables.suit(client, key) && !found.contains(&tunables) {
            found.push(tunables);
        }
    };
    for units in [units / 2, units * 2] {
        if (from.lanes..=hardware.max_units_per_cube).contains(&units) && units >= 32.min(from.lanes) {
            // As many units a core as before.
            let cubes_per_core = from.cubes_per_core * from.lanes * from.groups / units;
            let cubes_per_core = if from.cubes_per_core > 0 { cubes_per_core.max(1) } else { 0 };
            add(Tunables { groups: units / from.lanes, cubes_per_core, ..from });
            add(Tunables { groups: units / from.lanes, ..from });
        }
    }
    for rows in [1, 2, 4, 8].into_iter().filter(|rows| rows * from.tokens <= 64) {
        add(Tunables { rows, ..from });
        // As many loads under way as before.
        add(Tunables { rows, unroll: (from.unroll * from.rows / rows).max(1), ..from });
    }
    for unroll in [1, 2, 4, 8] {
        add(Tunables { unroll, ..from });
    }
    for cubes_per_core in [1, 2, 4] {
        if from.cubes_per_core > 0 {
            add(Tunables { cubes_per_core, ..from });
        }
    }
    if let Some(format) = format(key.ty).filter(|_| !traits(key.ty).dense) {
        for span in [1, Format::narrow_span(format), format.span()] {
            if key.units.is_multiple_of(span) {
                add(Tunables { span, unroll: (from.unroll * from.span / span).max(1), ..from });
            }
        }
        if format.codebook_on(client.properties()).is_some() {
            add(Tunables { stage_codebook: !from.stage_codebook, ..from });
        }
    }
    if planes && int8 && hardware.num_streaming_multiprocessors.is_some() {
        add(Tunables { stage: !from.stage, cubes_per_core: if from.stage { 0 } else { 1 }, ..from });
    }
    if from.stage {
        add(Tunables { ahead: !from.ahead, ..from });
    }
    if planes && from.lanes > 8 {
        add(Tunables { lanes: from.lanes / 2, groups: from.groups * 2, ..from });
    }
    if planes && from.lanes < hardware.plane_size_max {
        add(Tunables { lanes: from.lanes * 2, groups: (from.groups / 2).max(1), ..from });
    }
    if from.tokens > 1 {
        add(Tunables { tokens: from.tokens / 2, ..from });
    }
    found
}
