//! Files of importance matrices: what was measured of the columns of a model's matrices, as llama.cpp's `imatrix` writes it to a
//! GGUF file, and read also as it wrote it before.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use cube_gguf::GgmlType;
use cube_gguf::gguf::{self, Endian, Files, TensorInfo, Writer};
use cube_gguf::models::Importance;

use crate::Outcome;

/// The ends of the names of an entry's tensors.
const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";

/// The keys of the texts' names, and of the number of their chunks.
const DATASETS: &str = "imatrix.datasets";
const CHUNKS: &str = "imatrix.chunk_count";

/// What importances were measured on.
pub struct Source<'a> {
    /// The name of the text.
    pub text: &'a str,
    /// Chunks that the model was run on, and the tokens of each.
    pub chunks: [u32; 2],
}

/// Writes importances, each as its sums of squares and how many there were.
pub fn write<W: Write>(out: W, importances: &[Importance], source: &Source<'_>) -> Result<W, gguf::Error> {
    let [count, size] = source.chunks;
    let mut writer = Writer::new();
    writer.metadata("general.type", "imatrix")?.metadata(DATASETS, [source.text])?;
    writer.metadata(CHUNKS, count)?.metadata("imatrix.chunk_size", size)?;
    for Importance { name, sums, counts, .. } in importances {
        let matrices = counts.len() as u64;
        let columns = sums.len() as u64 / matrices.max(1);
        // ggml writes no ones after the other dimensions.
        let rows = |len| if matrices == 1 { vec![len] } else { vec![len, matrices] };
        writer.tensor(&format!("{name}{SUMS}"), &rows(columns), GgmlType::F32)?;
        writer.tensor(&format!("{name}{COUNTS}"), &rows(1), GgmlType::F32)?;
    }
    let mut out = writer.begin(out)?;
    for Importance { sums, counts, .. } in importances {
        out.data(&sums.iter().flat_map(|sum| sum.to_le_bytes()).collect::<Vec<_>>())?;
        out.data(&counts.iter().flat_map(|&count| (count as f32).to_le_bytes()).collect::<Vec<_>>())?;
    }
    out.finish()
}

/// The mean squares of the activations of each column, by the names of matrices.
pub struct Imatrix {
    pub path: PathBuf,
    /// What it was measured on, where it says so: the first text's name, and a number of chunks.
    pub dataset: Option<String>,
    pub chunks: Option<u32>,
    entries: HashMap<String, Vec<f32>>,
}

impl Imatrix {
    /// Reads a file of either format.
    pub fn read(path: &Path) -> Outcome<Self> {
        let at = |error: Box<dyn std::error::Error>| format!("{}: {error}", path.display());
        let mut magic = Vec::new();
        let read = File::open(path).and_then(|file| file.take(4).read_to_end(&mut magic));
        read.map_err(|error| at(error.into()))?;
        if [b"GGUF", b"FUGG"].iter().any(|gguf| magic == **gguf) {
            return Self::of_gguf(path);
        }
        let data = fs::read(path).map_err(|error| at(error.into()))?;
        let entries = of_pairs(&data).ok_or_else(|| at("no importance matrix".into()))?;
        Ok(Self { path: path.to_owned(), dataset: None, chunks: None, entries })
    }

    /// Sums of squares and how many there were, as tensors.
    fn of_gguf(path: &Path) -> Outcome<Self> {
        let files = Files::open(path)?;
        let gguf = files.parse()?;
        let mut entries = HashMap::new();
        for sums in gguf.tensors() {
            let Some(name) = sums.name().strip_suffix(SUMS) else { continue };
            entries.insert(name.to_owned(), means(&sums, &gguf.tensor(&format!("{name}{COUNTS}"))?)?);
        }
        if entries.is_empty() {
            return Err(format!("{}: no importance matrix: it has no `{SUMS}` tensors", path.display()).into());
        }
        let metadata = gguf.metadata();
        let dataset = metadata.elements::<&str>(DATASETS).ok().and_then(|mut names| names.next()?.ok());
        let chunks = metadata.optional(CHUNKS).ok().flatten();
        Ok(Self { path: path.to_owned(), dataset: dataset.map(str::to_owned), chunks, entries })
    }

    /// Number of matrices.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The importances of a tensor's columns, one row of them for each of its matrices, where there are some.
    pub fn of(&self, name: &str, dims: &[u64]) -> Outcome<Option<&[f32]>> {
        let Some(entry) = self.entries.get(name) else { return Ok(None) };
        let wanted = dims.first().unwrap_or(&1) * dims.get(2).unwrap_or(&1);
        match entry.len() as u64 == wanted {
            true => Ok(Some(entry)),
            // Nothing measures what looks up its rows.
            false if name.ends_with("token_embd.weight") => Ok(None),
            false => Err(format!("{} importances in {}, of {wanted}", entry.len(), self.path.display()).into()),
        }
    }
}

/// The mean squares of each matrix's columns.
fn means(sums: &TensorInfo<'_>, counts: &TensorInfo<'_>) -> Outcome<Vec<f32>> {
    let (mut means, counts) = (floats(sums)?, floats(counts)?);
    let columns = means.len().checked_div(counts.len()).filter(|columns| columns * counts.len() == means.len());
    let columns =
        columns.ok_or_else(|| format!("{}: {} sums for {} counts", sums.name(), means.len(), counts.len()))?;
    for (means, count) in means.chunks_exact_mut(columns.max(1)).zip(counts) {
        // A matrix that nothing was multiplied by has columns that are all as important.
        means.iter_mut().for_each(|mean| *mean = if count > 0.0 { *mean / count } else { 1.0 });
    }
    Ok(means)
}

fn floats(tensor: &TensorInfo<'_>) -> Outcome<Vec<f32>> {
    if tensor.dtype()? != GgmlType::F32 {
        return Err(format!("{}: not F32", tensor.name()).into());
    }
    let float = |b: &[u8]| match tensor.endian() {
        Endian::Little => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        Endian::Big => f32::from_be_bytes([b[0], b[1], b[2], b[3]]),
    };
    Ok(tensor.data()?.chunks_exact(4).map(float).collect())
}

/// The older format: a number of entries, each with its name, a number of calls, and sums of as many means.
fn of_pairs(data: &[u8]) -> Option<HashMap<String, Vec<f32>>> {
    let mut rest = data;
    let mut take = |len: usize| {
        let (taken, after) = rest.split_at_checked(len)?;
        rest = after;
        Some(taken)
    };
    let mut entries = HashMap::new();
    let count = number(take(4)?)?;
    for _ in 0..count {
        let len = number(take(4)?)?;
        let name = String::from_utf8(take(len)?.to_vec()).ok()?;
        let calls = number(take(4)?)?.max(1) as f32;
        let len = number(take(4)?)?;
        let sums = take(len.checked_mul(4)?)?;
        let means = sums.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]) / calls);
        entries.insert(name, means.collect());
    }
    (count > 0).then_some(entries)
}

/// A nonnegative number of 32 bits.
fn number(bytes: &[u8]) -> Option<usize> {
    let number = i32::from_le_bytes(bytes.try_into().ok()?);
    usize::try_from(number).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, calls: i32, sums: &[f32]) -> Vec<u8> {
        let mut file = 1i32.to_le_bytes().to_vec();
        file.extend((name.len() as i32).to_le_bytes());
        file.extend(name.as_bytes());
        file.extend(calls.to_le_bytes());
        file.extend((sums.len() as i32).to_le_bytes());
        file.extend(sums.iter().flat_map(|x| x.to_le_bytes()));
        file
    }

    #[test]
    fn the_older_format_is_read_and_nothing_shorter() {
        let whole = file("blk.0.attn_q.weight", 4, &[1.0, 2.0, 8.0]);
        let entries = of_pairs(&whole).unwrap();
        assert_eq!(entries["blk.0.attn_q.weight"], [0.25, 0.5, 2.0]);
        for len in 0..whole.len() {
            assert!(of_pairs(&whole[..len]).is_none(), "{len} bytes");
        }
        for hostile in [&[0xff; 4][..], &[1, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f], &[0; 4]] {
            assert!(of_pairs(hostile).is_none());
        }
    }
}
