//! Every kernel that the library can launch on a device, for tools that need all of them: a report of the compiler's
//! code, the filling of a cache.

use std::num::NonZeroU32;

use cubecl::client::Client;
use cubecl::server::Handle;

use super::activations::{self, Activations};
use super::arch::matrix_unit::MatrixUnit;
use super::decoder::attention::{Attention, attend};
use super::decoder::elementwise::{Activation, Map, gate, map, take_row};
use super::decoder::experts::{Choice, choose, mix};
use super::decoder::largest::largest;
use super::decoder::norm::{RmsNorm, add_norm, norm};
use super::decoder::rotary::{Heads, KeyValues, Pairs, Rotary, Turns, turn_and_store};
use super::decoder::squares::Squares;
use super::dequantize;
use super::epilogue::{Epilogues, RowsOf, finish, scale_rows};
use super::floats::{FloatType, has_buffers};
use super::formats::{CHUNK, FORMATS, Format, Grid, Vectors, format, traits};
use super::hardware::Hardware;
use super::matmul::{
    Blueprint as MatmulBlueprint, Problem as MatmulProblem, has_matrix_units, multiply, multiply_experts, pack,
    pack_sorted, striped,
};
use super::matvec::{
    ActivationType, Blueprint, MAX_TOKENS, Problem, Settings, matvec_experts_with, matvec_many_with, matvec_with,
};
use super::quantize::activations::quantize;
use super::quantize::weights::{Values, minds_importance, needs_importance, quantizes};
use super::routing::{Route, Routing};
use super::tune::{for_row, heuristic};
use super::weights::{GgufMatrix, Weights};
use crate::gguf::{Endian, GgmlType};

/// A launch that compiles at least one kernel that no earlier entry does.
pub struct Entry {
    /// The operation's name.
    pub operation: &'static str,
    /// The format of the weights, where the kernel depends on it.
    pub format: Option<GgmlType>,
    /// Other parameters of the kernel's compilation, in words.
    pub configuration: String,
    /// The arithmetic of a product.
    pub arithmetic: Option<&'static str>,
    /// The blueprint of a matrix-vector product.
    pub blueprint: Option<Blueprint>,
    /// The blueprint of a product on matrix units.
    pub tiles: Option<MatmulBlueprint>,
    /// The type of the activations of a product.
    pub activations: Option<FloatType>,
    /// The type that weights are dequantized to.
    pub values: Option<FloatType>,
    launch: Box<Launch>,
}

type Launch = dyn Fn(&Client) -> Option<Handle> + Send;

impl Entry {
    /// Launches on small operands of zeros. A failure of the device shows up when the result is read; `None` where an
    /// operand or the launch is refused.
    pub fn launch(&self, client: &Client) -> Option<Handle> {
        (self.launch)(client)
    }

    fn new(
        operation: &'static str,
        format: Option<GgmlType>,
        configuration: impl Into<String>,
        launch: impl Fn(&Client) -> Option<Handle> + Send + 'static,
    ) -> Self {
        let launch = Box::new(launch);
        let configuration = configuration.into();
        Self {
            operation,
            format,
            configuration,
            arithmetic: None,
            blueprint: None,
            tiles: None,
            activations: None,
            values: None,
            launch,
        }
    }
}

/// The entries of a device, those of one format together.
pub fn entries(client: &Client) -> Vec<Entry> {
    let floats: Vec<_> = [FloatType::F32, FloatType::F16, FloatType::BF16]
        .into_iter()
        .filter(|&ty| has_buffers(client.features(), ty))
        .collect();
    let mut entries = of_activations(&floats);
    entries.extend(of_routing(client, &floats));
    entries.extend(of_factors());
    for format in FORMATS {
        entries.extend(of_weights(format));
        entries.extend(of_quantizers(format, &floats));
        entries.extend(of_products(client, format, &floats));
        entries.extend(of_staged_products(client, format));
        entries.push(of_several_matrices(format));
        entries.extend(of_tiles(client, format));
        // Files have factors of the one's experts, and biases of the other's.
        let companions: &[bool] =
            if matches!(format.ty, GgmlType::NVFP4 | GgmlType::MXFP4) { &[false, true] } else { &[false] };
        companions.iter().for_each(|&has| entries.extend(of_experts(client, format, has)));
    }
    entries.extend(of_stripes(client));
    entries.extend(of_decoders(client));
    entries
}

fn of_activations(floats: &[FloatType]) -> Vec<Entry> {
    let mut entries = Vec::new();
    for &from in floats {
        let x = move |client: &Client| zeros(client, from, 1, CHUNK);
        entries.push(Entry::new("quantize activations", None, from.name(), move |client| {
            Some(quantize(client, &x(client)?).codes)
        }));
        // f32 for float products, bf16 for matrix units, whose f32 results become any type.
        for &to in floats.iter().filter(|&&to| to != FloatType::F16 || from == FloatType::F32) {
            let types = format!("{} to {}", from.name(), to.name());
            let pack = move |client: &Client| Some(activations::pack(client, &x(client)?, to));
            entries.push(Entry::new("pack activations", None, types, pack));
        }
    }
    entries
}

/// What products of sorted pairs launch before: whatever the format.
fn of_routing(client: &Client, floats: &[FloatType]) -> Vec<Entry> {
    let Some(unit) = MatrixUnit::of(client.properties()) else { return Vec::new() };
    let sorted = move |client: &Client| Some(zero_routing(client, 1)?.sorted(client, 1));
    let sort = move |client: &Client| Some(sorted(client)?.pairs().clone());
    let mut entries = vec![Entry::new("sort pairs by expert", None, "", sort)];
    for &ty in floats {
        let pack = move |client: &Client| {
            Some(pack_sorted(client, &zeros(client, ty, 1, CHUNK)?, unit, CHUNK, &*sorted(client)?, 1).handle)
        };
        entries.push(Entry::new("pack sorted activations", None, ty.name(), pack));
    }
    entries
}

/// Experts of the products that stand for all numbers of them.
const EXPERTS: usize = 2;

/// Tokens whose only expert is the first.
fn zero_routing(client: &Client, tokens: usize) -> Option<Routing> {
    Routing::new(client.create_from_slice(&vec![0; 4 * tokens]), tokens, 1, EXPERTS).ok()
}

/// Factors of dequantized rows, and of products that another kernel has summed: whatever the format.
fn of_factors() -> Vec<Entry> {
    let scaled = |client: &Client, by_ids: bool| {
        let zeros = |count: usize| client.create_from_slice(&vec![0; 4 * count]);
        let (values, ids) = (zeros(CHUNK), zeros(1));
        let rows = if by_ids { RowsOf::Ids(&ids) } else { RowsOf::Range(0) };
        scale_rows(client, &values, [1, 1, CHUNK], rows, &zeros(1));
        Some(values)
    };
    let entry = |configuration: &str, by_ids| {
        Entry::new("scale rows", None, configuration, move |client: &Client| scaled(client, by_ids))
    };
    let finished = move |client: &Client| {
        let zeros = || client.create_from_slice(&[0; 4]);
        let (sums, epilogues) = (zeros(), Epilogues { scales: Some(zeros()), biases: Some(zeros()) });
        finish(client, &sums, 1, 1, &epilogues);
        Some(sums)
    };
    vec![entry("a range", false), entry("by ids", true), Entry::new("finish sums", None, "", finished)]
}

fn of_weights(format: &'static Format) -> Vec<Entry> {
    let ty = Some(format.ty);
    let mut entries =
        vec![Entry::new("upload", ty, "", move |client| Some(weights(client, format, false)?.handle().clone()))];
    // Rows of dense formats may end inside a chunk.
    let ragged: &[bool] = if format.traits.dense { &[false, true] } else { &[false] };
    for to in [FloatType::F32, FloatType::F16, FloatType::BF16] {
        for &ragged in ragged {
            let configuration = format!("{}{}", to.name(), if ragged { ", ragged rows" } else { "" });
            let launch = move |client: &Client| {
                let weights = weights(client, format, ragged)?;
                Some(dequantize::dequantize(client, &weights, 0, weights.n(), to))
            };
            entries.push(Entry { values: Some(to), ..Entry::new("dequantize", ty, configuration, launch) });
        }
    }
    entries
}

/// The quantization of weights. Kernels of one format differ in the loads of their values alone, so one has all.
fn of_quantizers(format: &'static Format, floats: &[FloatType]) -> Vec<Entry> {
    let floats = if format.ty == GgmlType::Q4_0 { floats } else { &[FloatType::F32] };
    let is_plain = quantizes(format.ty) && !needs_importance(format.ty);
    let plain = floats.iter().filter(|_| is_plain).map(|&from| (from, false));
    let weighted = minds_importance(format.ty).then_some((FloatType::F32, true));
    let entry = |(from, by_importance): (FloatType, bool)| {
        let configuration = format!("{}{}", from.name(), if by_importance { ", by importance" } else { "" });
        Entry::new("quantize weights", Some(format.ty), configuration, move |client: &Client| {
            let weights = weights(client, format, false)?;
            let values = zeros(client, from, weights.n(), weights.k())?;
            let faults = client.create_from_slice(&[0; 4]);
            let importance = by_importance.then_some((values.handle(), weights.n()));
            // Every group of codes as a point of the grid.
            let table = Grid::of(format.ty).map(|grid| client.create_from_slice(&vec![0; 4 * grid.groups()]));
            let rows = Values {
                handle: values.handle(),
                ty: from,
                first_row: 0,
                rows: weights.n(),
                importance,
                table: table.as_ref(),
            };
            weights.quantize_rows(client, &rows, &faults);
            Some(weights.handle().clone())
        })
    };
    plain.chain(weighted).map(entry).collect()
}

fn of_products(client: &Client, format: &'static Format, floats: &[FloatType]) -> Vec<Entry> {
    let mut entries = Vec::new();
    for blueprint in blueprints(&Hardware::of(client), format.ty) {
        for &ty in floats {
            let Blueprint { operand, lanes_per_row: lanes, rows_per_group: rows, tokens, span, .. } = blueprint;
            let configuration = format!("{}, {tokens} tokens, {rows} rows, {lanes} lanes, spans of {span}", ty.name());
            let launch = move |client: &Client| {
                let weights = weights(client, format, false)?;
                let x = zeros(client, ty, tokens.min(MAX_TOKENS), weights.k())?;
                Some(matvec_with(client, &weights, &x, operand, |_| blueprint))
            };
            entries.push(Entry {
                arithmetic: Some(match operand {
                    ActivationType::Int8 => "int8",
                    ActivationType::Float => "float",
                }),
                blueprint: Some(blueprint),
                activations: Some(ty),
                ..Entry::new("matvec", Some(format.ty), configuration, launch)
            });
        }
    }
    entries
}

/// All blueprints that the heuristic gives for weights of a type on a device.
fn blueprints(hardware: &Hardware, ty: GgmlType) -> Vec<Blueprint> {
    let operands: &[_] =
        if traits(ty).dense { &[ActivationType::Float] } else { &[ActivationType::Int8, ActivationType::Float] };
    // Rows with and without enough spans for a plane of lanes, of whole spans and not.
    let block = (ty.block_size() / CHUNK).max(1);
    let span = format(ty).map_or(1, |format| format.vector_span(Vectors::All));
    let rows = [1024 * block, 1001 * block, span.max(block), block];
    let mut all = Vec::new();
    for &operand in operands {
        for tokens in 1..=MAX_TOKENS {
            for chunks in rows {
                let blueprint = for_row(hardware, ty, chunks, operand, tokens);
                if !all.contains(&blueprint) {
                    all.push(blueprint);
                }
            }
        }
    }
    all
}

/// Products whose cubes quantize for themselves, which a table may ask for where the heuristic does not.
fn of_staged_products(client: &Client, format: &'static Format) -> Option<Entry> {
    let hardware = Hardware::of(client);
    let chunks = (format.ty.block_size() / CHUNK).max(format.vector_span(Vectors::All));
    let problem = Problem { ty: format.ty, operand: ActivationType::Int8, tokens: 1, n: 2, chunks };
    // With one row, registers suffice for the prefetched loads of any format.
    let settings = Settings {
        rows_per_group: 1,
        stage: true,
        prefetch: true,
        stage_codebook: true,
        persistent_cubes_per_core: Some(NonZeroU32::MIN),
        ..heuristic(&hardware, problem)
    };
    let blueprint = Blueprint::of(&hardware, problem, settings);
    blueprint.staging.filter(|_| !format.traits.dense)?;
    let launch = move |client: &Client| {
        let weights = weights(client, format, false)?;
        let x = zeros(client, FloatType::F32, 1, weights.k())?;
        Some(matvec_with(client, &weights, &x, ActivationType::Int8, |_| blueprint))
    };
    Some(Entry { arithmetic: Some("int8"), ..Entry::new("staged matvec", Some(format.ty), "f32, 1 token", launch) })
}

/// A product of matrices that share a launch. The kernel repeats the code of one matrix, so two matrices and one token
/// stand for all numbers of them.
fn of_several_matrices(format: &'static Format) -> Entry {
    let launch = move |client: &Client| {
        let weights = weights(client, format, false)?;
        let x = zeros(client, FloatType::F32, 1, weights.k())?;
        let hardware = Hardware::of(client);
        let pick = |_, operand, tokens| for_row(&hardware, format.ty, weights.chunks(), operand, tokens);
        matvec_many_with(client, &[&weights, &weights], &x, ActivationType::Int8, pick).pop()
    };
    let arithmetic = Some(if format.traits.dense { "float" } else { "int8" });
    Entry { arithmetic, ..Entry::new("matvec of several", Some(format.ty), "f32, 1 token, 2 matrices", launch) }
}

/// Numbers of tokens for which kernels on matrix units differ in their tiles.
const TILES_OF_TOKENS: [usize; 2] = [16, 128];

/// The product of a format on the device's matrix unit.
fn of_tiles(client: &Client, format: &'static Format) -> Vec<Entry> {
    let hardware = Hardware::of(client);
    let entry = |tokens: usize| {
        let unit = MatrixUnit::of(client.properties())?;
        let problem = MatmulProblem { ty: format.ty, tokens, n: 4096, chunks: 128 };
        let blueprint = MatmulBlueprint::of(&hardware, unit, problem);
        let launch = move |client: &Client| {
            let k = format.ty.block_size().max(CHUNK * blueprint.step_chunks());
            let weights = upload(client, format, MatrixUnit::ROWS, k)?;
            let x = pack(client, &zeros(client, FloatType::F32, tokens, k)?, unit, blueprint.run);
            Some(multiply(client, &weights, &x, FloatType::F32, blueprint))
        };
        let entry = Entry::new("matmul", Some(format.ty), format!("f32, {tokens} tokens"), launch);
        Some(Entry { arithmetic: Some("bf16"), tiles: Some(blueprint), ..entry })
    };
    TILES_OF_TOKENS.into_iter().filter_map(entry).collect()
}

/// Products with experts: the kernels of one token and of a tile whose rows have others' places.
fn of_experts(client: &Client, format: &'static Format, has_companions: bool) -> Vec<Entry> {
    let companions = if has_companions { ", factors and biases" } else { "" };
    let with_companions = move |client: &Client, weights: Weights| match has_companions {
        true => {
            let ones = |count: usize| Some(client.create_from_slice(&vec![0; 4 * count]));
            weights.with(ones(EXPERTS), ones(weights.n()))
        }
        false => weights,
    };
    let arithmetic = Some(if format.traits.dense { "float" } else { "int8" });
    let one = move |client: &Client| {
        let weights = with_companions(client, weights(client, format, false)?);
        let (x, routing) = (zeros(client, FloatType::F32, 1, weights.k())?, zero_routing(client, 1)?);
        let operand = if format.traits.dense { ActivationType::Float } else { ActivationType::Int8 };
        let blueprint = for_row(&Hardware::of(client), format.ty, weights.chunks(), operand, 1);
        let route = Route { routing: &routing, sharers: 1 };
        matvec_experts_with(client, &[&weights], &x, route, operand, blueprint).pop()
    };
    let one = Entry {
        arithmetic,
        ..Entry::new("matvec of experts", Some(format.ty), format!("f32, 1 token{companions}"), one)
    };
    let tokens = TILES_OF_TOKENS[0];
    let tile = MatrixUnit::of(client.properties()).map(|unit| {
        let problem = MatmulProblem { ty: format.ty, tokens, n: 4096, chunks: 128 };
        let blueprint = MatmulBlueprint::of_experts(&Hardware::of(client), unit, problem, EXPERTS);
        let launch = move |client: &Client| {
            let k = format.ty.block_size().max(CHUNK * blueprint.step_chunks());
            let weights = with_companions(client, upload(client, format, EXPERTS * MatrixUnit::ROWS, k)?);
            let (x, routing) = (zeros(client, FloatType::F32, tokens, k)?, zero_routing(client, tokens)?);
            let sorted = routing.sorted(client, blueprint.tokens());
            let packed = pack_sorted(client, &x, unit, blueprint.run, &sorted, 1);
            Some(multiply_experts(client, &weights, &packed, &routing, FloatType::F32, blueprint))
        };
        let configuration = format!("f32, {tokens} tokens{companions}");
        let entry = Entry::new("matmul of experts", Some(format.ty), configuration, launch);
        Entry { arithmetic: Some("bf16"), tiles: Some(blueprint), ..entry }
    });
    [one].into_iter().chain(tile).collect()
}

/// Numbers of tokens on both sides of the sizes at which cubek-matmul infers another blueprint.
const MANY_TOKENS: [usize; 4] = [16, 64, 512, 2048];

/// Products by cubek-matmul, for devices whose matrix units only CubeCL's own operations reach.
fn of_stripes(client: &Client) -> Vec<Entry> {
    let mut entries = Vec::new();
    if !has_matrix_units(client) || MatrixUnit::of(client.properties()).is_some() {
        return entries;
    }
    let Some(format) = format(GgmlType::F32) else { return entries };
    for tokens in MANY_TOKENS {
        let launch = move |client: &Client| {
            let (n, k) = (128, 256);
            let weights = upload(client, format, n, k)?;
            striped(client, &weights, &zeros(client, FloatType::F32, tokens, k)?).ok()
        };
        let entry = Entry::new("matmul", None, format!("{tokens} tokens"), launch);
        entries.push(Entry { arithmetic: Some("bf16"), ..entry });
    }
    entries
}

/// Heads as in LLaMA 3 8B and as in Gemma 3 270M, with all that a head may go through.
const HEADS: [(Heads, Pairs); 2] = [
    (Heads { queries: 32, kv: 8, len: 128 }, Pairs::Neighbours),
    (Heads { queries: 4, kv: 1, len: 256 }, Pairs::Halves),
];

fn of_decoders(client: &Client) -> Vec<Entry> {
    const WIDTH: usize = 4096;
    let f32s = |client: &Client, values: usize| client.create_from_slice(&vec![0; 4 * values]);
    let rms = move |client: &Client| RmsNorm { weight: f32s(client, WIDTH), width: WIDTH, epsilon: 1e-6 };
    let mut entries = Vec::new();
    let mut add = |operation, configuration: String, launch: Box<Launch>| {
        entries.push(Entry::new(operation, None, configuration, launch));
    };
    let of_row = move |client: &Client| Some(norm(client, &f32s(client, WIDTH), 1, &rms(client)));
    add("norm", String::new(), Box::new(of_row));
    for after in [false, true] {
        let launch = move |client: &Client| {
            let (x, by) = (f32s(client, WIDTH), rms(client));
            Some(add_norm(client, [&x, &x], 1, after.then_some(&by), &by).1)
        };
        add("norm of a sum", if after { "of a norm" } else { "" }.to_owned(), Box::new(launch));
    }
    for (heads, pairs) in HEADS {
        let Heads { queries, kv, len } = heads;
        let words = format!("{queries} and {kv} heads of {len}");
        let cache = move |client: &Client| KeyValues {
            keys: f32s(client, kv * len),
            values: f32s(client, kv * len),
            capacity: 1,
            position: f32s(client, 1),
        };
        for plain in [true, false] {
            let launch = move |client: &Client| {
                let turns = Turns { pairs, count: len / 2, table: f32s(client, len) };
                let bias = (!plain).then(|| f32s(client, (queries + 2 * kv) * len));
                let norms = (!plain).then(|| (f32s(client, 2 * len), 1e-6));
                let (q, k) = (f32s(client, queries * len), f32s(client, kv * len));
                let rotary = Rotary { heads, bias, norms, scale: 1.0 };
                Some(turn_and_store(client, [&q, &k, &k], 1, &rotary, &turns, &cache(client)))
            };
            let before = if plain { "" } else { ", biases and norms" };
            add("rotary embedding", format!("{words}{before}"), Box::new(launch));
        }
        // One token's keys are seen in parts, those of as many as give every core work as a whole; on matrix units those of
        // a few in slices.
        let many = 1 << 13;
        let mut steps = vec![(1, 0.0, false), (1, 50.0, false), (1, 0.0, true), (many, 0.0, false), (many, 0.0, true)];
        if MatrixUnit::of_planes(client.properties()).is_some() {
            steps.push((16, 50.0, false));
        }
        for (tokens, softcap, has_sinks) in steps {
            let launch = move |client: &Client| {
                let sinks = has_sinks.then(|| f32s(client, queries));
                let attention = Attention { heads, window: 0, softcap, sinks };
                Some(attend(client, &f32s(client, queries * len), tokens, &attention, &cache(client)))
            };
            let sinks = if has_sinks { ", sinks" } else { "" };
            add("attention", format!("{words}, {tokens} tokens, cap {softcap}{sinks}"), Box::new(launch));
        }
    }
    for activation in [Activation::Silu, Activation::Gelu, Activation::ClampedSwiglu] {
        let launch = move |client: &Client| {
            let x = f32s(client, WIDTH);
            Some(gate(client, [&x, &x], WIDTH, activation))
        };
        add("gate", format!("{activation:?}"), Box::new(launch));
    }
    for function in [Map::Scale, Map::Softcap] {
        let launch = move |client: &Client| Some(map(client, &f32s(client, WIDTH), WIDTH, function, 1.0));
        add("map", format!("{function:?}"), Box::new(launch));
    }
    let chosen = move |client: &Client| {
        Some(choose(client, &f32s(client, WIDTH), 1, Choice { experts: WIDTH, slots: 2, scale: 1.0 }).ids)
    };
    add("choice of experts", String::new(), Box::new(chosen));
    let mixed = move |client: &Client| Some(mix(client, &f32s(client, WIDTH), &f32s(client, 1), [1, 1, WIDTH]));
    add("mixture of experts", String::new(), Box::new(mixed));
    let found = move |client: &Client| Some(largest(client, &f32s(client, WIDTH), WIDTH));
    add("largest", String::new(), Box::new(found));
    let taken = move |client: &Client| Some(take_row(client, &f32s(client, WIDTH), 0, WIDTH));
    add("row", String::new(), Box::new(taken));
    let summed = move |client: &Client| {
        let squares = Squares::new(client, 1, WIDTH);
        squares.add(client, &f32s(client, WIDTH), 1);
        Some(squares.sums)
    };
    add("sums of squares", String::new(), Box::new(summed));
    let of_experts = move |client: &Client| {
        let squares = Squares::new(client, EXPERTS, WIDTH);
        let routing = zero_routing(client, 1)?;
        squares.add_pairs(client, &f32s(client, WIDTH), Route { routing: &routing, sharers: 1 });
        Some(squares.sums)
    };
    add("sums of squares", "of experts".to_owned(), Box::new(of_experts));
    entries
}

fn zeros(client: &Client, ty: FloatType, tokens: usize, k: usize) -> Option<Activations> {
    let handle = client.create_from_slice(&vec![0; tokens * k * ty.bytes()]);
    Activations::contiguous(handle, ty, vec![tokens, k]).ok()
}

/// Two rows of zeros, each one block or span of the format, whichever is longer, and one value more where `ragged`.
fn weights(client: &Client, format: &'static Format, ragged: bool) -> Option<Weights> {
    let k = format.ty.block_size().max(CHUNK * format.vector_span(Vectors::All));
    upload(client, format, 2, k + ragged as usize)
}

fn upload(client: &Client, format: &'static Format, n: usize, k: usize) -> Option<Weights> {
    let data = vec![0; format.ty.row_bytes(k)? * n];
    let words = format.codebook.map_or_else(|| vec![0], |codebook| codebook());
    let codebook = client.create_from_slice(bytemuck::cast_slice(&words));
    let matrix = GgufMatrix { ty: format.ty, n, k, data: &data, endian: Endian::Little };
    Weights::upload(client, matrix, codebook)
}
