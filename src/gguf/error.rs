//! The error of reading, querying and writing GGUF files.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::{GgmlType, MAX_ARRAY_DEPTH, MAX_DIMS};

/// An error of reading or writing a GGUF file.
///
/// Messages name the metadata key or the tensor and the numbers that do not
/// fit; errors that come from [`Files`](super::Files) name the file too.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An error in a file whose path is known.
    #[error("{}: {error}", path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// The error in it.
        error: Box<Error>,
    },
    /// The operating system refused to open, map or write a file.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A file is shorter than it was when it was opened.
    #[error("the file has become shorter than the {bytes} bytes that it had")]
    Shrunk {
        /// What it had, in bytes.
        bytes: u64,
    },
    /// The path is a directory, a pipe or a device.
    #[error("not a regular file")]
    NotRegularFile,
    /// The file has no bytes.
    #[error("the file is empty")]
    EmptyFile,

    /// The first four bytes are not `GGUF`.
    #[error("not a GGUF file: it starts with \"{}\"", found.escape_ascii())]
    BadMagic {
        /// The bytes found.
        found: [u8; 4],
    },
    /// A version other than 1, 2 and 3, or to write one other than 2 and 3.
    #[error("GGUF version {version} is not supported (1, which is only read, 2 and 3 are)")]
    UnsupportedVersion {
        /// The version; of a file, in the byte order in which it is smaller.
        version: u32,
    },
    /// A file that ends before the part that is being read does.
    #[error("{place} needs {needed} bytes at byte {position}, {available} are left")]
    Truncated {
        /// The part of the file that was being read.
        place: String,
        /// Position of the read, in bytes from the start of the file.
        position: usize,
        /// The bytes needed.
        needed: u64,
        /// The bytes left.
        available: usize,
    },
    /// A count of entries that cannot fit in the rest of the file.
    #[error("{place} claims {count} entries, at most {limit} fit in the rest of the file")]
    CountTooLarge {
        /// The part of the file that was being read.
        place: String,
        /// The count in the file.
        count: u64,
        /// The most that can fit.
        limit: usize,
    },
    /// A string that is not UTF-8.
    #[error("{place}: the string at byte {position} is not UTF-8")]
    NotUtf8 {
        /// The part of the file that was being read.
        place: String,
        /// Where the string starts, in bytes from the start of the file.
        position: usize,
    },

    /// An empty metadata key.
    #[error("metadata key {index} is empty")]
    EmptyKey {
        /// Its place among the keys, from 0.
        index: usize,
    },
    /// A metadata key that occurs twice.
    #[error("metadata key `{key}` occurs twice")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// A metadata type number that the format does not define.
    #[error("{place} has unknown type {number}")]
    UnknownValueType {
        /// The part of the file that was being read.
        place: String,
        /// The type number in the file.
        number: u32,
    },
    /// A boolean that is neither 0 nor 1.
    #[error("{place}: {byte} is no boolean")]
    BadBool {
        /// The part of the file that was being read.
        place: String,
        /// The byte in the file.
        byte: u8,
    },
    /// Arrays nested deeper than [`MAX_ARRAY_DEPTH`].
    #[error("{place} nests arrays deeper than {MAX_ARRAY_DEPTH}")]
    ArrayTooDeep {
        /// The part of the file that was being read or written.
        place: String,
    },
    /// A metadata key that was asked for and is missing.
    #[error("metadata key `{key}` is missing")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A metadata value that is not of the type asked for, or does not fit it.
    #[error("metadata key `{key}`: wanted {wanted}, found {found}")]
    WrongType {
        /// The key.
        key: String,
        /// The type asked for.
        wanted: &'static str,
        /// The type found; when reading, with the value of a number or a
        /// boolean.
        found: String,
    },
    /// An alignment that is zero or no power of two.
    #[error("alignment {alignment} is not a power of two")]
    BadAlignment {
        /// The alignment, in bytes.
        alignment: u32,
    },

    /// A tensor that was asked for and is missing.
    #[error("tensor `{tensor}` is missing")]
    MissingTensor {
        /// The name.
        tensor: String,
    },
    /// A tensor name that occurs twice, in one file or in two shards.
    #[error("tensor `{tensor}` occurs twice")]
    DuplicateTensor {
        /// The name.
        tensor: String,
    },
    /// A tensor type number that ggml does not define, or has removed.
    #[error("tensor `{tensor}` has unknown type {number}")]
    UnknownTensorType {
        /// The tensor.
        tensor: String,
        /// The type number in the file.
        number: u32,
    },
    /// More than [`MAX_DIMS`] dimensions.
    #[error("tensor `{tensor}` has {count} dimensions, at most {MAX_DIMS} are allowed")]
    TooManyDims {
        /// The tensor.
        tensor: String,
        /// The number of dimensions.
        count: u64,
    },
    /// Dimensions whose product cannot be represented.
    #[error("tensor `{tensor}`: the size of dimensions {dims:?} overflows")]
    SizeOverflow {
        /// The tensor.
        tensor: String,
        /// The dimensions, contiguous first.
        dims: Vec<u64>,
    },
    /// Rows that are not a whole number of blocks.
    #[error(
        "tensor `{tensor}`: rows of {row} values are no multiple of {dtype}'s blocks of {}",
        dtype.block_size()
    )]
    PartialBlock {
        /// The tensor.
        tensor: String,
        /// Values in a row.
        row: u64,
        /// The tensor's type.
        dtype: GgmlType,
    },
    /// An offset that is no multiple of the alignment.
    #[error("tensor `{tensor}`: offset {offset} is no multiple of the alignment {alignment}")]
    Misaligned {
        /// The tensor.
        tensor: String,
        /// Its offset in the data section, in bytes.
        offset: u64,
        /// The file's alignment, in bytes.
        alignment: u32,
    },
    /// A tensor that ends after the file does.
    #[error(
        "tensor `{tensor}`: {size} bytes at offset {offset} reach outside the {available} bytes \
         of tensor data"
    )]
    OutOfFile {
        /// The tensor.
        tensor: String,
        /// Its offset in the data section, in bytes.
        offset: u64,
        /// Its size, in bytes.
        size: u64,
        /// The size of the data section, in bytes.
        available: u64,
    },
    /// Bytes to read that a tensor does not have, or has in other files.
    #[error("tensor `{tensor}` has no {len} bytes from byte {first} on in these files")]
    NoSuchBytes {
        /// The tensor.
        tensor: String,
        /// The first byte of its data that was asked for.
        first: usize,
        /// How many were.
        len: usize,
    },
    /// Two tensors that share bytes.
    #[error("tensors `{first}` and `{second}` overlap")]
    Overlap {
        /// The tensor that starts first.
        first: String,
        /// The tensor that starts inside it.
        second: String,
    },

    /// A missing shard of a split file.
    #[error("shard {number} of {count} is missing")]
    MissingShard {
        /// Its number, from 1.
        number: u32,
        /// The number of shards.
        count: u32,
        /// The error of opening it.
        source: io::Error,
    },
    /// A file that is one of several shards by its metadata, but not by its
    /// name.
    #[error("the file is one of {count} shards, but is not named `…-00001-of-{count:05}.gguf`")]
    ShardName {
        /// The number of shards that its metadata claims.
        count: u64,
    },
    /// A shard whose metadata contradicts its name or the other shards.
    #[error("metadata key `{key}` is {found}, the shards make it {expected}")]
    ShardMismatch {
        /// The key.
        key: &'static str,
        /// Its value.
        found: u64,
        /// The value that fits the shards.
        expected: u64,
    },
    /// A shard of another byte order than the first.
    #[error("the shard's byte order is not that of the first shard")]
    ShardEndian,

    /// Data of another size than its tensor.
    #[error("tensor `{tensor}` takes {expected} bytes, {found} were given")]
    DataSize {
        /// The tensor.
        tensor: String,
        /// The size by its type and dimensions, in bytes.
        expected: u64,
        /// The size given, in bytes.
        found: u64,
    },
    /// Data for more, or fewer, tensors than were declared.
    #[error("{declared} tensors were declared, data was given for {given}")]
    DataCount {
        /// Tensors declared.
        declared: usize,
        /// Tensors with data.
        given: usize,
    },
}

impl Error {
    /// The error without the file's path.
    pub fn without_path(&self) -> &Error {
        match self {
            Error::InFile { error, .. } => error.without_path(),
            other => other,
        }
    }

    pub(super) fn in_file(self, path: &Path) -> Self {
        Error::InFile { path: path.to_owned(), error: Box::new(self) }
    }
}

/// The part of a file that is being read; rendered only when an error needs it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place<'a> {
    Header,
    Keys,
    Key(usize),
    Value(&'a str),
    Tensors,
    TensorName(usize),
    Tensor(&'a str),
    Padding,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Header => write!(f, "the header"),
            Place::Keys => write!(f, "the metadata"),
            Place::Key(index) => write!(f, "metadata key {index}"),
            Place::Value(key) => write!(f, "metadata key `{key}`"),
            Place::Tensors => write!(f, "the list of tensors"),
            Place::TensorName(index) => write!(f, "the name of tensor {index}"),
            Place::Tensor(name) => write!(f, "tensor `{name}`"),
            Place::Padding => write!(f, "the padding before tensor data"),
        }
    }
}
