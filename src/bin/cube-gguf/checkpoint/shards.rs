//! Safetensors files: a header of JSON that says where each tensor lies, then their data.
//!
//! Data are read, not mapped: a file that becomes shorter is an error.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use cube_gguf::GgmlType;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::config::read_json;
use crate::Outcome;

/// The longest header, in bytes, by the format.
const MAX_HEADER: u64 = 100_000_000;
const SUFFIX: &str = ".safetensors";
const INDEX_SUFFIX: &str = ".safetensors.index.json";

/// Whether a path is a checkpoint's: a folder, a safetensors file or an index of such.
pub fn is_checkpoint(path: &Path) -> bool {
    has_suffix(path, SUFFIX) || has_suffix(path, INDEX_SUFFIX) || path.is_dir()
}

fn has_suffix(path: &Path, suffix: &str) -> bool {
    path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.ends_with(suffix))
}

/// A tensor of a file.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Number of the file.
    pub file: usize,
    /// From the start of the file, in bytes.
    pub offset: u64,
    pub dtype: Dtype,
    /// Outermost first.
    pub shape: Vec<usize>,
}

/// The type of a tensor's values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dtype {
    Float(GgmlType),
    Byte,
    /// Another, which nothing here is made of.
    Other(String),
}

impl Dtype {
    /// The type by its name, and how many bits a value has.
    fn of(name: &str) -> Option<(Self, u64)> {
        Some(match name {
            "F32" => (Self::Float(GgmlType::F32), 32),
            "F16" => (Self::Float(GgmlType::F16), 16),
            "BF16" => (Self::Float(GgmlType::BF16), 16),
            "U8" => (Self::Byte, 8),
            _ => (Self::Other(name.to_owned()), bits(name)?),
        })
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Float(ty) => write!(f, "{ty}"),
            Self::Byte => f.write_str("U8"),
            Self::Other(name) => f.write_str(name),
        }
    }
}

/// Bits of a value of the format's other types.
fn bits(name: &str) -> Option<u64> {
    Some(match name {
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        "BOOL" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" | "F8_E4M3FNUZ" | "F8_E5M2FNUZ" => 8,
        "I16" | "U16" => 16,
        "I32" | "U32" => 32,
        "C64" | "F64" | "I64" | "U64" => 64,
        _ => return None,
    })
}

/// The files of a checkpoint.
pub struct Shards {
    folder: PathBuf,
    files: Vec<Shard>,
    tensors: HashMap<String, Stored>,
}

struct Shard {
    path: PathBuf,
    file: File,
}

impl Shards {
    /// Opens a file, those of an index, or those of a folder that holds either.
    pub fn open(path: &Path) -> Outcome<Self> {
        let path = if path.is_dir() { in_folder(path)? } else { path.to_owned() };
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let mut shards = Self { folder, files: Vec::new(), tensors: HashMap::new() };
        match has_suffix(&path, INDEX_SUFFIX) {
            true => shards.add_index(&path)?,
            false => shards.add(path)?,
        }
        Ok(shards)
    }

    /// Where the files are, and what says more of the model beside them.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A tensor by its name.
    pub fn get(&self, name: &str) -> Option<&Stored> {
        self.tensors.get(name)
    }

    /// The names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Reads bytes of a file.
    pub fn read(&self, file: usize, offset: u64, out: &mut [u8]) -> Outcome {
        self.files[file].read(offset, out)
    }

    /// Adds the files of an index, which must have the tensors that it says, and no others.
    fn add_index(&mut self, path: &Path) -> Outcome {
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let at = |what: String| format!("{}: {what}", path.display());
        let Index { weight_map } = read_json(path)?.ok_or_else(|| at("no such file".to_owned()))?;
        let mut files: Vec<&str> = weight_map.values().map(String::as_str).collect();
        files.sort_unstable();
        files.dedup();
        for name in &files {
            let mut parts = Path::new(name).components();
            let is_plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
            if !is_plain || name.contains(['/', '\\']) {
                return Err(at(format!("{name:?} is no file beside it")).into());
            }
            self.add(self.folder.join(name))?;
        }
        for (tensor, file) in &weight_map {
            if self.tensors.get(tensor).is_none_or(|stored| files[stored.file] != file) {
                return Err(at(format!("tensor {tensor} is not in {file}")).into());
            }
        }
        match self.names().find(|name| !weight_map.contains_key(*name)) {
            Some(extra) => Err(at(format!("tensor {extra} is missing in it, but in one of its files")).into()),
            None => Ok(()),
        }
    }

    /// Adds a file.
    fn add(&mut self, path: PathBuf) -> Outcome {
        let at = |what: &dyn fmt::Display| format!("{}: {what}", path.display());
        // Checked before opening: opening a pipe would block.
        if !fs::metadata(&path).map_err(|error| at(&error))?.is_file() {
            return Err(at(&"not a regular file").into());
        }
        let file = File::open(&path).map_err(|error| at(&error))?;
        let len = file.metadata().map_err(|error| at(&error))?.len();
        let shard = Shard { path: path.clone(), file };
        let mut length = [0; 8];
        shard.read(0, &mut length)?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER || length > len.saturating_sub(8) {
            return Err(at(&format!("a header of {length} bytes in a file of {len}")).into());
        }
        let mut header = vec![0; length as usize];
        shard.read(8, &mut header)?;
        let Header(entries) = serde_json::from_slice(&header).map_err(|error| at(&format!("its header: {error}")))?;
        let (start, number) = (8 + length, self.files.len());
        for (name, entry) in entries {
            let stored = entry.check(number, start, len).map_err(|what| at(&format!("tensor {name}: {what}")))?;
            if self.tensors.insert(name.clone(), stored).is_some() {
                return Err(at(&format!("tensor {name} occurs twice")).into());
            }
        }
        self.files.push(shard);
        Ok(())
    }
}

impl Shard {
    /// One thread reads, so that the file's position is its own.
    fn read(&self, offset: u64, out: &mut [u8]) -> Outcome {
        let mut file = &self.file;
        let read = file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(out));
        Ok(read.map_err(|error| format!("{}: {} bytes at {offset}: {error}", self.path.display(), out.len()))?)
    }
}

/// The index or the file of a folder.
fn in_folder(folder: &Path) -> Outcome<PathBuf> {
    let at = |what: &dyn fmt::Display| format!("{}: {what}", folder.display());
    for suffix in [INDEX_SUFFIX, SUFFIX] {
        let usual = folder.join(format!("model{suffix}"));
        if usual.is_file() {
            return Ok(usual);
        }
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).map_err(|error| at(&error))? {
            let path = entry.map_err(|error| at(&error))?.path();
            if has_suffix(&path, suffix) {
                found.push(path);
            }
        }
        match found.len() {
            0 => (),
            1 => return Ok(found.remove(0)),
            count => return Err(at(&format!("{count} files end in {suffix}: name one")).into()),
        }
    }
    Err(at(&format!("no file in it ends in {SUFFIX} or {INDEX_SUFFIX}")).into())
}

/// What a header says of a tensor.
#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    /// From the end of the header, in bytes.
    data_offsets: [u64; 2],
}

impl Entry {
    /// The tensor, whose bytes are as many as its shape takes and inside the `len` of the file.
    fn check(self, file: usize, start: u64, len: u64) -> Result<Stored, String> {
        let Self { dtype, shape, data_offsets: [first, end] } = self;
        let (dtype, bits) = Dtype::of(&dtype).ok_or_else(|| format!("its type {dtype} is unknown"))?;
        let product = shape.iter().try_fold(bits, |product, &extent| product.checked_mul(extent as u64));
        let size = end.checked_sub(first);
        if size.and_then(|size| size.checked_mul(8)).is_none_or(|bits| Some(bits) != product) {
            return Err(format!("bytes {first} to {end} are not those of {dtype} of shape {shape:?}"));
        }
        match start.checked_add(end) {
            Some(last) if last <= len => Ok(Stored { file, offset: start + first, dtype, shape }),
            _ => Err(format!("bytes {first} to {end} reach outside the file's {}", len - start)),
        }
    }
}

/// The tensors of a header.
struct Header(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    match name.as_str() {
                        // Strings of whoever wrote the file.
                        "__metadata__" => drop(map.next_value::<IgnoredAny>()?),
                        _ => {
                            let entry =
                                map.next_value().map_err(|error| A::Error::custom(format!("tensor {name}: {error}")));
                            entries.push((name, entry?));
                        }
                    }
                }
                Ok(Header(entries))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}
