//! The GGUF reader and writer, on the files of `corpus/` and on generated ones.
//!
//! `make_corpus.py` writes the corpus.

mod first_version;
mod hostile;
mod memory;
mod round_trip;
mod split;
mod valid;

use std::path::{Path, PathBuf};

fn corpus(directory: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gguf/corpus").join(directory)
}

/// The names and the bytes of the files of a directory, by name.
fn files(directory: &str) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(corpus(directory))
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, std::fs::read(entry.path()).unwrap())
        })
        .collect();
    files.sort();
    assert!(!files.is_empty());
    files
}
