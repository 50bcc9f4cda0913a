//! A file of the choices on devices that need not be here, so that a change of the heuristic is a diff to read.

use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

use super::candidates::neighbours;
use super::devices::{NAMES, devices};
use super::heuristic::heuristic;
use crate::gguf::GgmlType;
use crate::kernels::formats::{CHUNK, FORMATS, traits};
use crate::kernels::hardware::Hardware;
use crate::kernels::matvec::{ActivationType, Problem, Settings};

/// The environment variable that has the test write the file anew.
const WRITE: &str = "CUBE_GGUF_WRITE_CHOICES";

const TYPES: [GgmlType; 7] =
    [GgmlType::Q4_0, GgmlType::Q4K, GgmlType::Q6K, GgmlType::IQ3S, GgmlType::MXFP4, GgmlType::TQ1_0, GgmlType::F16];

const SHAPES: [(usize, usize); 3] = [(14336, 4096), (4096, 14336), (1024, 4096)];

fn problems(types: impl IntoIterator<Item = GgmlType>) -> Vec<Problem> {
    let mut problems = Vec::new();
    for ty in types {
        let operands: &[_] = match traits(ty).dense {
            true => &[ActivationType::Float],
            false => &[ActivationType::Int8, ActivationType::Float],
        };
        for (n, k) in SHAPES {
            for &operand in operands {
                problems.extend([1, 2, 4, 8].map(|tokens| Problem { ty, operand, tokens, n, chunks: k / CHUNK }));
            }
        }
    }
    problems
}

fn line(hardware: &Hardware, problem: Problem) -> String {
    let Problem { ty, operand, tokens, n, chunks } = problem;
    let settings = heuristic(hardware, problem);
    let Settings { span, lanes_per_row, groups_per_cube, rows_per_group, unroll, .. } = settings;
    let cubes = settings.persistent_cubes_per_core.map_or_else(|| "-".to_owned(), |cubes| cubes.to_string());
    let flags = [(settings.stage, "stage"), (settings.prefetch, "prefetch"), (settings.stage_codebook, "codebook")];
    let flags: Vec<_> = flags.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect();
    format!(
        "{:<6} {operand:<5} {n:>5} x {:<5} tokens {tokens} of {} span {span} lanes {lanes_per_row} groups {groups_per_cube} \
         rows {rows_per_group} unroll {unroll} cubes {cubes} {}",
        ty.name().to_lowercase(),
        chunks * CHUNK,
        settings.tokens,
        flags.join(" "),
        operand = format!("{operand:?}").to_lowercase(),
    )
}

#[test]
fn choices_are_those_of_the_file() {
    let mut text = format!("# Written by a test: {WRITE}=1 cargo test --lib choices\n");
    for (name, hardware) in NAMES.iter().zip(devices()) {
        let _ = writeln!(text, "\n{name}");
        for problem in problems(TYPES) {
            let _ = writeln!(text, "{}", line(&hardware, problem).trim_end());
        }
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kernels/tune/choices.txt");
    if env::var_os(WRITE).is_some() {
        fs::write(&path, &text).unwrap();
    }
    let expected = fs::read_to_string(path).unwrap();
    for (line, (new, old)) in text.lines().zip(expected.lines()).enumerate() {
        assert_eq!(new, old, "line {} of choices.txt; {WRITE}=1 writes it anew", line + 1);
    }
    assert_eq!(text.lines().count(), expected.lines().count());
}

#[test]
fn choices_and_their_neighbours_are_supported() {
    for (name, hardware) in NAMES.iter().zip(devices()) {
        for problem in problems(FORMATS.iter().map(|format| format.ty)) {
            let settings = heuristic(&hardware, problem);
            assert!(settings.is_supported(&hardware, problem), "{name} {problem:?} {settings:?}");
            let neighbours = neighbours(&hardware, problem, settings);
            assert!(!neighbours.is_empty(), "{name} {problem:?}");
            for (i, neighbour) in neighbours.iter().enumerate() {
                assert!(neighbour.is_supported(&hardware, problem), "{name} {problem:?} {neighbour:?}");
                assert!(*neighbour != settings && !neighbours[..i].contains(neighbour), "{name} {neighbour:?}");
            }
        }
    }
}
