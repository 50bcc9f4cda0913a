//! The GGUF file format: reading, writing, metadata and split files.
//!
//! The layout is the one that ggml documents (`docs/gguf.md`) and defines
//! (`include/gguf.h`, `include/ggml.h`): versions 1 to 3, little- and
//! big-endian; version 1, whose counts are `u32`, is only read. Files are
//! untrusted: every length, count and offset is checked against the bytes that
//! are there before it is used, and a mismatch is an [`Error`].
//!
//! A parsed [`Gguf`] borrows from the file. It holds the position of each
//! metadata key and tensor, never a copy of them. Whatever the header claims, a
//! file that parses takes no more memory than its size plus a constant, and one
//! that does not at most a seventh more; of version 1, whose header is shorter, at
//! most two thirds more.
//!
//! ```no_run
//! # fn main() -> Result<(), cube_gguf::gguf::Error> {
//! use cube_gguf::gguf::Files;
//!
//! let files = Files::open("model-00001-of-00003.gguf")?;
//! let model = files.parse()?;
//! let architecture = model.metadata().str("general.architecture")?;
//! for tensor in model.tensors() {
//!     println!("{architecture} {} {:?} {}", tensor.name(), tensor.shape(), tensor.dtype()?);
//! }
//! # Ok(())
//! # }
//! ```

mod cursor;
mod encode;
mod endian;
mod error;
mod files;
mod ggml_type;
#[cfg(feature = "candle")]
mod header;
mod metadata;
mod reader;
mod split;
mod tensor;
mod value;
mod writer;

pub use encode::Encode;
#[cfg(feature = "candle")]
pub(crate) use encode::encode_array_head;
pub use endian::Endian;
pub use error::Error;
pub use files::Files;
pub use ggml_type::{GgmlType, ParseGgmlTypeError};
#[cfg(feature = "candle")]
pub(crate) use header::Header;
pub use metadata::{FromValue, Metadata};
pub use reader::Gguf;
pub use tensor::TensorInfo;
pub use value::{Array, ArrayIter, Value, ValueType};
pub use writer::{TensorWriter, Writer};

/// Alignment of tensor data, in bytes, of a file that sets no
/// [`ALIGNMENT_KEY`].
pub const DEFAULT_ALIGNMENT: u32 = 32;

/// Metadata key (a `u32`, a power of two) of the alignment of tensor data.
pub const ALIGNMENT_KEY: &str = "general.alignment";

/// Deepest nesting of metadata arrays, an array of scalars being 1.
///
/// ggml reads no nested array at all; the bound keeps a hostile file from
/// exhausting the stack.
pub const MAX_ARRAY_DEPTH: usize = 8;

/// Most dimensions of a tensor, as in ggml.
pub const MAX_DIMS: usize = 4;

const MAGIC: [u8; 4] = *b"GGUF";

/// The latest version of the format.
const VERSION: u32 = 3;
