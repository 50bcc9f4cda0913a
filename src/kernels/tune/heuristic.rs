//! The heuristic: settings by a device's facts.
//!
//! Numbers of units, rows, loads and words were found by `cube-gguf tune` on an NVIDIA H200 for 14336 x 4096 and
//! 4096 x 4096; those of AMD fit the registers that the compiler has (`cargo xtask hip-report`).

use std::num::NonZeroU32;

use crate::gguf::GgmlType;
use crate::kernels::arch::target::Target;
use crate::kernels::formats::{CHUNK, Format, Vectors, format, traits};
use crate::kernels::hardware::Hardware;
use crate::kernels::matvec::{ActivationType, Problem, Settings};

/// The settings of a product for a device.
pub fn heuristic(hardware: &Hardware, problem: Problem) -> Settings {
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
    let few_kernels = with_few_kernels(one, problem);
    if let Some(cores) = hardware.host_cores {
        return Settings { groups_per_cube: cores.min(hardware.max_units_per_cube), ..few_kernels };
    }
    if hardware.is_rasterizer {
        return few_kernels;
    }
    let Some(plane) = hardware.plane else {
        return Settings { lanes_per_row: 64.min(hardware.max_units_per_cube), ..few_kernels };
    };
    match hardware.cores {
        Some(cores) if !matches!(hardware.target, Target::Amd(_)) => {
            let gpu = Gpu { plane, cores, max_units_per_cube: hardware.max_units_per_cube };
            gpu.many_registers(problem, one)
        }
        _ => few_registers(problem, plane, few_kernels),
    }
}

/// Chunks of weights that a lane has loads under way for.
const LOADED_CHUNKS: usize = 4;

/// Words of a span that a lane loads while it multiplies the span before: more take the registers of that.
const PREFETCHED_WORDS: usize = 12;

/// A GPU with registers for many loads, whose number of cores is known.
#[derive(Clone, Copy)]
struct Gpu {
    plane: u32,
    cores: u32,
    max_units_per_cube: u32,
}

impl Gpu {
    fn many_registers(self, problem: Problem, one: Settings) -> Settings {
        if traits(problem.ty).dense {
            self.dense(problem, one)
        } else if problem.operand == ActivationType::Int8 {
            let slices = self.slices(problem, one.tokens);
            let (tokens, cores) = (one.tokens / slices, self.cores / slices as u32);
            Self { cores, ..self }.int8(Problem { tokens, ..problem }, Settings { tokens, ..one })
        } else {
            let rows_per_group = if problem.tokens > 1 { 1 } else { 2 };
            let (lanes_per_row, groups_per_cube) = (self.plane, 128 / self.plane);
            Settings { lanes_per_row, groups_per_cube, rows_per_group, ..with_few_kernels(one, problem) }
        }
    }

    /// Dense weights: as many rows a group as leave groups for all cores, but enough to make up for the loads of the
    /// activations. Several planes share a row where there are few or long ones: more of each is on its way, from fewer places.
    fn dense(self, problem: Problem, one: Settings) -> Settings {
        let is_f32 = problem.ty == GgmlType::F32;
        let (least, most) = match (problem.tokens, is_f32) {
            (1, _) | (2, true) => (1, 4),
            (_, true) => (2, 2),
            (_, false) => (one.tokens.min(4), 4),
        };
        let rows_per_group = power_of_two(problem.n / (2 * self.groups(256)), least, most);
        let few = problem.n < self.groups(256);
        let (planes, units, unroll) = match (problem.tokens, is_f32) {
            (1, true) => (8, 256, 4),
            (2, true) => (4, 128, 4),
            (..=4, true) => (4, 256, 4),
            (_, true) => (4, 256, 8),
            (..=2, false) if few => (8, 256, 2),
            (..=2, false) if rows_per_group < most => (4, 128, 4),
            (1, false) => (1, 256, 4),
            (2, false) => (1, 128, 4),
            (_, false) => (1, 128, 2),
        };
        let lanes_per_row = planes * self.plane;
        let groups_per_cube = (units / lanes_per_row).max(1);
        Settings { lanes_per_row, groups_per_cube, rows_per_group, unroll, ..one }
    }

    /// Slices of the tokens, each with its share of the cores. Of twice as many, a cube quantizes half of the tokens, for twice as
    /// many rows, which it decodes for fewer tokens. (512 to 4096 rows of 2 to 8 tokens on an H200: twice as many are faster as long as
    /// that.)
    fn slices(self, problem: Problem, tokens: usize) -> usize {
        let (traits, cores) = (traits(problem.ty), self.cores as usize);
        let decodes_slowly = looks_up(problem.ty) || traits.lookup16.is_some() && traits.scales > 1;
        let most = if decodes_slowly { 12 } else { 18 } * tokens * cores;
        let pays = |slices: &usize| *slices <= tokens.min(cores) && slices * slices * problem.n <= most;
        [4, 2].into_iter().find(pays).unwrap_or(1)
    }

    /// int8 products: cubes that quantize the activations for themselves, and load the next rows while they multiply.
    fn int8(self, problem: Problem, one: Settings) -> Settings {
        let one = with_few_kernels(Settings { span: dividing(problem, Vectors::Widest), ..one }, problem);
        let few = problem.n < self.groups(512);
        // Two tokens leave too few registers for the look-ups of several chunks.
        let looks_up_one = problem.tokens == 2 && !few && one.span <= LOADED_CHUNKS && looks_up(problem.ty);
        let span = if looks_up_one { 1 } else { one.span };
        let units = match problem.tokens {
            // A long span takes the registers of several short ones.
            _ if span > LOADED_CHUNKS => 256,
            // More lanes quantize long rows sooner, and with spans of two chunks each waits for fewer loads.
            1 if problem.chunks > 256 || (span == 2 && !few) => 1024,
            2 if !few => 1024,
            // Few rows are spread over more cubes.
            5.. if few => 256,
            _ => 512,
        };
        let units = units.min(self.max_units_per_cube);
        let spans = problem.chunks / span;
        let steps = spans.div_ceil(self.plane as usize);
        // Rows share the loads of the activations, where there are enough for all groups.
        let most = match problem.tokens {
            // Super-blocks have more to load and to decode: the loads of one row are enough, where it has that many steps. IQ4_XS
            // decodes little.
            1 if problem.ty.block_size() > CHUNK && problem.ty != GgmlType::IQ4XS && steps >= LOADED_CHUNKS => 1,
            ..=2 => 2,
            _ if span > LOADED_CHUNKS => 2,
            _ => 4,
        };
        let rows = |units: u32| {
            let groups = self.groups(units);
            power_of_two((problem.n + groups / 2) / groups, 1, most)
        };
        // A core has registers for one cube of 512 units. Rows for more such cubes than cores, but not for twice as many, take
        // two rounds, of which the second is short: smaller cubes do them in one, and so do two on a core, with half of the registers
        // each.
        let cubes = problem.n.div_ceil(rows(units) * (units / self.plane) as usize);
        let is_short = problem.tokens == 1 && units == 512 && cubes.div_ceil(self.cores as usize) == 2;
        let decodes_much = problem.ty.block_size() > CHUNK || traits(problem.ty).lookup16.is_some();
        let shares_core = is_short && decodes_much && steps > LOADED_CHUNKS / 2;
        let units = if is_short && !shares_core { 256 } else { units };
        let rows = rows(units);
        let is_full = units == 1024 && (decodes_much || problem.tokens > 1);
        let spares_registers = is_full || shares_core;
        let loaded = if spares_registers { LOADED_CHUNKS / 2 } else { LOADED_CHUNKS };
        // More tokens take more registers.
        let (words, chunks) = if problem.tokens == 1 { (32, loaded / span) } else { (20, loaded) };
        let chunk_words = format(problem.ty).map_or(1, Format::chunk_words).max(1);
        // Rows of few long spans would leave most lanes of a plane without one; few rows leave most lanes without a row.
        let sharers = if few && problem.tokens == 1 { 2 } else { 4 };
        let lanes = match () {
            () if span > LOADED_CHUNKS => (self.plane / sharers).max(1),
            () if few && shares_rows(problem) => self.lanes_of_few_rows(problem, units, spans),
            () => self.plane,
        };
        // Spans past a row's last would be loaded for nothing.
        let unroll = (words / (chunk_words * span * rows)).min(chunks / rows).min(spans.div_ceil(lanes as usize));
        // Where rows are few, nothing else hides the loads.
        let prefetches = few || problem.tokens > 1 || chunk_words * span <= PREFETCHED_WORDS;
        let cubes = if rows > 2 { 1 } else { (1024 / units).max(1) };
        let groups = match units / lanes {
            most if problem.tokens > 1 || cubes == 1 || lanes != self.plane || looks_up(problem.ty) => most,
            most => self.balanced(problem.n.div_ceil(rows), most, cubes),
        };
        Settings {
            span,
            lanes_per_row: lanes,
            groups_per_cube: groups,
            rows_per_group: rows,
            unroll: power_of_two(unroll, 1, LOADED_CHUNKS),
            persistent_cubes_per_core: NonZeroU32::new(cubes),
            stage: true,
            prefetch: span <= LOADED_CHUNKS && prefetches,
            stage_codebook: true,
            ..one
        }
    }

    /// The groups of a cube, up to `most`, that take `tasks` in as many passes, of which the last is as full as the others: their
    /// units have the registers of those that would have idled then.
    fn balanced(self, tasks: usize, most: u32, cubes: u32) -> u32 {
        let (at_once, most) = ((self.cores * cubes) as usize, most as usize);
        let of_cube = tasks.div_ceil(at_once);
        if of_cube > most { of_cube.div_ceil(of_cube.div_ceil(most)) as u32 } else { most as u32 }
    }

    /// As many lanes for each of few rows as make cubes for all cores, in whole planes that have spans. Rows of a codebook's formats
    /// are spread further: each core has fewer look-ups.
    fn lanes_of_few_rows(self, problem: Problem, units: u32, spans: usize) -> u32 {
        let plane = self.plane as usize;
        let planes = (self.cores * units) as usize / (problem.n.max(1) * plane);
        let spread = if looks_up(problem.ty) && problem.tokens <= 2 { 2 } else { 1 };
        let most = (spread * spans.next_power_of_two()).min(units as usize) / plane;
        self.plane * power_of_two(planes, 1, most.max(1)) as u32
    }

    /// Groups, of one plane each, that all cores run together with a cube of `units` units on each.
    fn groups(self, units: u32) -> usize {
        (self.cores as usize * (units / self.plane) as usize).max(1)
    }
}

/// Whether several planes share each of few rows: for more tokens each plane has more to add up, and codes that are looked up cost
/// more than the loads that they wait for.
fn shares_rows(problem: Problem) -> bool {
    match problem.tokens {
        ..=2 => true,
        3..=4 => traits(problem.ty).lookup16.is_none(),
        _ => false,
    }
}

/// Whether codes are looked up in a codebook, of more than the sixteen entries that permutations of bytes serve.
fn looks_up(ty: GgmlType) -> bool {
    traits(ty).lookup16.is_none() && format(ty).is_some_and(|format| format.codebook.is_some())
}

/// The greatest power of two up to `count`, clamped to `least` and `most`, which are at least 1.
fn power_of_two(count: usize, least: usize, most: usize) -> usize {
    1 << count.clamp(least, most).ilog2()
}

/// Settings with registers for as many waves as the budgets of `cargo xtask hip-report` ask for.
fn few_registers(problem: Problem, plane: u32, one: Settings) -> Settings {
    // A row with too few spans for all lanes of a plane is for a quarter of them, which idle less.
    let lanes = if problem.chunks / one.span < plane as usize { (plane / 4).max(1) } else { plane };
    // Two rows share the loads of the activations, where the registers suffice for that.
    let decoded = problem.operand == ActivationType::Float && !traits(problem.ty).dense && problem.tokens > 1;
    let rows = if one.tokens > 4 || one.span > 4 || decoded { 1 } else { 2 };
    Settings { lanes_per_row: lanes, groups_per_cube: 128.max(plane) / lanes, rows_per_group: rows, ..one }
}

/// `settings` with few kernels to compile where the decoding to floats costs most: one for all numbers of tokens but 1. A
/// long span leaves registers for few tokens.
fn with_few_kernels(settings: Settings, problem: Problem) -> Settings {
    let tokens = match problem.operand {
        ActivationType::Float if !traits(problem.ty).dense && problem.tokens > 1 => 4,
        _ if settings.span > 4 => settings.tokens.min(4),
        _ => settings.tokens,
    };
    Settings { tokens, ..settings }
}

/// The format's vector span where it divides the row's chunks, else 1.
fn dividing(problem: Problem, vectors: Vectors) -> usize {
    let span = format(problem.ty).map_or(1, |format| format.vector_span(vectors));
    if problem.chunks.is_multiple_of(span) { span } else { 1 }
}
