//! Compiles the library's kernels for one architecture: launches them on the stand-in HIP library, which keeps the code
//! objects that CubeCL's HIP runtime gives it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use cube_gguf::internals::{
    Blueprint, CHUNK, Format, Hardware, Launch as Entry, Vectors, entries, for_row, format, vectors_per_chunk,
};
use cube_gguf::tune::ActivationType;
use cube_gguf::{Backend, CubeDevice, FloatType, GgmlType};
use cubecl::client::Client;

use crate::roofline::Launch;
use crate::row::{Arithmetic, Input, Row};

/// A kernel's row, and its launch for the roofline where it is one of those that it predicts.
#[derive(serde::Serialize, serde::Deserialize)]
pub struct Compiled {
    pub row: Row,
    pub launch: Option<Launch>,
}

/// Rows and columns of the weights that the roofline multiplies.
const SHAPE: (usize, usize) = (14336, 4096);

/// Which kernels are compiled.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Names of formats; all where there is none.
    pub formats: Vec<String>,
    /// Whether kernels are left out that differ little from others: [`in_sample`].
    pub sample: bool,
}

impl Selection {
    /// The arguments with which this program makes the same selection.
    pub fn arguments(&self) -> Vec<&str> {
        let formats = self.formats.iter().flat_map(|format| ["--format", format]);
        formats.chain(self.sample.then_some("--sample")).collect()
    }

    /// Kernels of no format are always there.
    fn has(&self, arch: &str, client: &Client, entry: &Entry) -> bool {
        let named = |ty: GgmlType| self.formats.iter().any(|format| ty.name().eq_ignore_ascii_case(format));
        let of_format = self.formats.is_empty() || entry.format.is_none_or(named);
        of_format && (!self.sample || in_sample(arch, client, entry))
    }

    /// An error for a name that no format has.
    fn check(&self) -> Result<(), String> {
        let known = |name: &&String| name.parse().is_ok_and(GgmlType::is_weights);
        match self.formats.iter().find(|name| !known(name)) {
            Some(name) => Err(format!("no format is called {name}")),
            None => Ok(()),
        }
    }
}

/// Writes a line of JSON to `out` for each kernel.
pub fn compile(
    arch: &str,
    folder: &Path,
    selection: &Selection,
    mut out: impl Write,
) -> Result<(), Box<dyn std::error::Error>> {
    selection.check()?;
    let device = CubeDevice::new(Backend::Rocm, 0)?;
    let client = device.client();
    let mut seen = BTreeSet::new();
    for entry in entries(&client) {
        if !selection.has(arch, &client, &entry) {
            continue;
        }
        let error = match entry.launch(&client).map(|handle| client.read_one(handle)) {
            Some(Ok(_)) => None,
            Some(Err(error)) => Some(error.to_string()),
            None => Some("the shape was refused".to_owned()),
        };
        let new: Vec<_> = code_objects(folder)?.difference(&seen).cloned().collect();
        let input = input(arch, &entry);
        let mut rows = Vec::new();
        for path in &new {
            rows.push(Row::of(input.clone(), &fs::read(path)?));
        }
        rows.extend(error.map(|error| Row::failed(input, error)));
        for row in rows {
            let launch = launch(&client, &entry).filter(|_| row.error.is_none());
            serde_json::to_writer(&mut out, &Compiled { row, launch })?;
            writeln!(out)?;
        }
        out.flush()?;
        seen.extend(new);
    }
    Ok(())
}

/// Architectures of waves of 64 lanes and of 32, for all others of as many.
const OF_EACH_WIDTH: [&str; 2] = ["gfx942", "gfx1100"];

/// Kernels in which an architecture changes the width of its waves alone, or what the matvec's kernels show of it too.
const BY_WIDTH: [&str; 3] = ["quantize weights", "matvec of several", "matvec of experts"];

/// The matvecs of f32 and of rows as long as the roofline's stand for those of other types and of shorter rows, dequantized f32
/// for halves, and two architectures for all in kernels of [`BY_WIDTH`].
fn in_sample(arch: &str, client: &Client, entry: &Entry) -> bool {
    entry.blueprint.is_none_or(|blueprint| is_of_shape(client, &blueprint))
        && [entry.activations, entry.values].iter().flatten().all(|&ty| ty == FloatType::F32)
        && (OF_EACH_WIDTH.contains(&arch) || !BY_WIDTH.contains(&entry.operation))
}

fn is_of_shape(client: &Client, blueprint: &Blueprint) -> bool {
    let Blueprint { ty, operand, tokens, .. } = *blueprint;
    *blueprint == for_row(&Hardware::of(client), ty, SHAPE.1 / CHUNK, operand, tokens)
}

/// Bytes of a chunk's codes in the components that are read 16 bytes at a time.
fn code_bytes(format: &Format) -> usize {
    let chunks = (format.ty.block_size() / CHUNK).max(1);
    let bits: usize =
        (format.layout)().components.iter().filter(|component| component.is_wide()).map(|p| p.block_bits()).sum();
    bits / chunks / 8
}

fn input(arch: &str, entry: &Entry) -> Input {
    let name = entry.format.map_or_else(String::new, |ty| ty.name().to_lowercase());
    let input = Input {
        arch: arch.to_owned(),
        operation: entry.operation.to_owned(),
        format: name,
        configuration: entry.configuration.clone(),
        arithmetic: match entry.arithmetic {
            Some("int8") => Some(Arithmetic::Int8),
            Some("float") => Some(Arithmetic::Float),
            Some(_) => Some(Arithmetic::MatrixUnits),
            None => None,
        },
        ..Input::default()
    };
    if let Some(tiles) = entry.tiles {
        let (workgroup_size, dynamic_lds_bytes) = (tiles.units() as u32, tiles.shared_bytes() as u32);
        return Input { workgroup_size, dynamic_lds_bytes, ..input };
    }
    let (Some(blueprint), Some(format)) = (entry.blueprint, entry.format.and_then(format)) else { return input };
    let Blueprint {
        operand, span, lanes_per_row: lanes, groups_per_cube: groups, rows_per_group: rows, tokens, ..
    } = blueprint;
    let (values, wide_bytes) = if format.traits.dense {
        // A vector of 16 bytes, and as many floats of activations as it has values.
        let values = 16 / format.ty.block_bytes();
        (values, rows * 16 + tokens * values * 4)
    } else {
        // The codes that a lane multiplies, and 32 bytes of int8 activations or 128 of floats for each chunk.
        let narrow = !span.is_multiple_of(format.vector_span(Vectors::All));
        let codes = if narrow { 0 } else { rows * code_bytes(format) };
        let activations = if operand == ActivationType::Int8 { 32 } else { 128 };
        (CHUNK * span, span * (codes + tokens * activations))
    };
    Input {
        weights_per_trip: (values * rows) as u32,
        tokens: tokens as u32,
        rows: rows as u32,
        wide_bytes_per_trip: wide_bytes as u32,
        workgroup_size: lanes * groups,
        ..input
    }
}

/// The launch of a product of one token in the arithmetic that the library picks for it.
fn launch(client: &Client, entry: &Entry) -> Option<Launch> {
    let (blueprint, format) = (entry.blueprint?, format(entry.format?)?);
    let usual = if format.traits.dense { ActivationType::Float } else { ActivationType::Int8 };
    let predicted = blueprint.tokens == 1
        && blueprint.operand == usual
        && entry.activations == Some(FloatType::F32)
        && is_of_shape(client, &blueprint);
    let (n, k) = SHAPE;
    let offsets = (format.layout)().place(n, k / format.ty.block_size()).filter(|_| predicted)?;
    let hardware = &client.properties().hardware;
    let Blueprint { span, lanes_per_row: lanes, groups_per_cube: groups, rows_per_group: rows, .. } = blueprint;
    let cubes = n.div_ceil(rows * groups as usize);
    Some(Launch {
        n: n as u64,
        k: k as u64,
        weight_bytes: 4 * offsets.words as u64,
        waves: (cubes * (lanes * groups / hardware.plane_size_max) as usize) as u64,
        trips: trips(format, k / CHUNK, span).div_ceil(lanes as usize) as u32,
    })
}

/// Trips of all lanes of a row: spans, or vectors of 16 bytes.
fn trips(format: &Format, chunks: usize, span: usize) -> usize {
    if format.traits.dense { chunks * vectors_per_chunk(format.ty) } else { chunks / span }
}

/// Kernels for NVIDIA's warpgroups, which no AMD GPU is given.
const NOT_FOR_AMD: [&str; 3] = ["pack_cores", "multiply_warpgroups", "add_splits"];

/// A sentence for each kernel of the library's sources that no row has: the catalogue lacks it.
pub fn forgotten(rows: &[Row]) -> io::Result<Vec<String>> {
    forgotten_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../src/kernels"), rows)
}

fn forgotten_in(folder: &Path, rows: &[Row]) -> io::Result<Vec<String>> {
    let mut sentences = Vec::new();
    for file in fs::read_dir(folder)? {
        let path = file?.path();
        if path.is_dir() {
            sentences.extend(forgotten_in(&path, rows)?);
        }
        let Ok(source) = fs::read_to_string(&path) else { continue };
        let kernels = missed(&source, rows);
        sentences.extend(kernels.map(|kernel| format!("{}: the kernel `{kernel}` is in no row", path.display())));
    }
    Ok(sentences)
}

/// The kernels of a source that no row has.
fn missed<'a>(source: &'a str, rows: &[Row]) -> impl Iterator<Item = &'a str> {
    launchable(source).filter(|kernel| !NOT_FOR_AMD.contains(kernel)).filter(|kernel| {
        let compiled =
            |row: &Row| row.kernel.strip_prefix(kernel).is_some_and(|rest| !rest.starts_with(char::is_alphabetic));
        !rows.iter().any(compiled)
    })
}

/// The names of a source's functions under `#[cube(launch..)]`.
fn launchable(source: &str) -> impl Iterator<Item = &str> {
    source.split("#[cube(launch").skip(1).filter_map(|rest| rest.split_once("fn ")?.1.split(['<', '(']).next())
}

/// The files that the stand-in has written so far, in order.
fn code_objects(folder: &Path) -> io::Result<BTreeSet<PathBuf>> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_no_row_has_is_missed() {
        let source = "#[cube(launch)]\nfn repack(words: &[u32]) {}\nfn host() {}\n\
                      #[cube(launch)]\nfn pack_cores<X: Float>(x: &[X]) {}\n\
                      #[cube(launch_unchecked, address_type = \"dynamic\")]\npub fn multiply<F: Float>(y: &mut [F]) {}";
        let missed_of = |names: &[&str]| {
            let rows: Vec<_> = names.iter().map(|name| Row { kernel: (*name).to_owned(), ..Row::default() }).collect();
            missed(source, &rows).collect::<Vec<_>>()
        };
        assert_eq!(missed_of(&[]), ["repack", "multiply"]);
        assert_eq!(missed_of(&["repack", "multiplies"]), ["multiply"]);
        assert!(missed_of(&["repack", "multiply_f32"]).is_empty());
    }

    #[test]
    fn the_librarys_kernels_are_looked_for() {
        let sentences = forgotten(&[]).unwrap();
        assert!(sentences.iter().any(|sentence| sentence.contains("matvec")), "{sentences:?}");
    }
}
