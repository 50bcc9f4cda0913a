//! The candidates of a search for settings.

use std::num::NonZeroU32;

use crate::kernels::formats::{Vectors, format, traits};
use crate::kernels::hardware::Hardware;
use crate::kernels::matvec::{ActivationType, Problem, Settings};

/// Planes that may share a row.
const MOST_PLANES: u32 = 8;

/// `from` with one of its settings changed, in each way that makes sense on the device.
pub fn neighbours(hardware: &Hardware, problem: Problem, from: Settings) -> Vec<Settings> {
    let units = from.lanes_per_row * from.groups_per_cube;
    let int8 = problem.operand == ActivationType::Int8;
    let mut found = Vec::new();
    let mut add = |settings: Settings| {
        if settings != from && settings.is_supported(hardware, problem) && !found.contains(&settings) {
            found.push(settings);
        }
    };
    for units in [units / 2, units * 2] {
        if (from.lanes_per_row..=hardware.max_units_per_cube).contains(&units) && units >= 32.min(from.lanes_per_row) {
            // As many units a core as before.
            let as_many = |cubes: NonZeroU32| {
                NonZeroU32::new(cubes.get() * from.lanes_per_row * from.groups_per_cube / units)
                    .or(Some(NonZeroU32::MIN))
            };
            let persistent_cubes_per_core = from.persistent_cubes_per_core.and_then(as_many);
            add(Settings { groups_per_cube: units / from.lanes_per_row, persistent_cubes_per_core, ..from });
            add(Settings { groups_per_cube: units / from.lanes_per_row, ..from });
        }
    }
    for rows in [1, 2, 4, 8].into_iter().filter(|rows| rows * from.tokens <= 64) {
        add(Settings { rows_per_group: rows, ..from });
        // As many loads under way as before.
        add(Settings { rows_per_group: rows, unroll: (from.unroll * from.rows_per_group / rows).max(1), ..from });
    }
    for unroll in [1, 2, 4, 8] {
        add(Settings { unroll, ..from });
    }
    if from.persistent_cubes_per_core.is_some() {
        for cubes in [1, 2, 4] {
            add(Settings { persistent_cubes_per_core: NonZeroU32::new(cubes), ..from });
        }
    }
    if let Some(format) = format(problem.ty).filter(|_| !traits(problem.ty).dense) {
        for span in [1, format.vector_span(Vectors::Widest), format.vector_span(Vectors::All)] {
            if problem.chunks.is_multiple_of(span) {
                add(Settings { span, unroll: (from.unroll * from.span / span).max(1), ..from });
            }
        }
        if format.codebook_on(&hardware.target).is_some() {
            add(Settings { stage_codebook: !from.stage_codebook, ..from });
        }
    }
    if hardware.plane.is_some() && int8 && hardware.cores.is_some() {
        let persistent_cubes_per_core = if from.stage { None } else { Some(NonZeroU32::MIN) };
        add(Settings { stage: !from.stage, persistent_cubes_per_core, ..from });
    }
    if from.stage {
        add(Settings { prefetch: !from.prefetch, ..from });
        if let Some(plane) = hardware.plane {
            add(of_codes(problem, from, plane));
        }
    }
    if hardware.plane.is_some() && from.lanes_per_row > 8 {
        add(Settings { lanes_per_row: from.lanes_per_row / 2, groups_per_cube: from.groups_per_cube * 2, ..from });
    }
    if hardware.plane.is_some_and(|plane| from.lanes_per_row < MOST_PLANES * plane) {
        add(Settings {
            lanes_per_row: from.lanes_per_row * 2,
            groups_per_cube: (from.groups_per_cube / 2).max(1),
            ..from
        });
    }
    if from.tokens > 1 {
        add(Settings { tokens: from.tokens / 2, ..from });
    }
    found
}

/// A product of codes that a launch of its own quantizes: a chunk for each lane, and small cubes, of which a core has several.
///
/// Where a core has few rows of many tokens, most of its time goes into quantizing what all others quantize, too. (2 tokens of
/// 4096 x 14336, IQ1_S, take an H200 14 us instead of 19 so, but a host that launches products one by one waited 23 us instead of
/// 11 for 8 tokens of 1024 x 4096. So the heuristic leaves it to a search.)
fn of_codes(problem: Problem, from: Settings, plane: u32) -> Settings {
    let planes = problem.chunks.div_ceil(plane as usize).next_power_of_two().min(MOST_PLANES as usize) as u32;
    Settings {
        span: 1,
        lanes_per_row: plane * planes,
        groups_per_cube: 1,
        rows_per_group: 4,
        tokens: problem.tokens.next_power_of_two(),
        unroll: 1,
        persistent_cubes_per_core: None,
        stage: false,
        prefetch: false,
        stage_codebook: from.stage_codebook,
    }
}
