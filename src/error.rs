//! The errors of storage and operations.

use crate::gguf;

/// What went wrong, as one sentence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A GGUF file or its contents.
    #[error(transparent)]
    Gguf(#[from] gguf::Error),
    /// A device that this build or this machine does not have.
    #[error("no device {device}: {reason}")]
    NoDevice {
        /// The device by its name, as `rocm:0`.
        device: String,
        /// What is missing, and what to do.
        reason: String,
    },
    /// A type that no operation takes: integers and f64.
    #[error("{ty} tensors hold no weights: only block formats, F32, F16 and BF16 do")]
    NotWeights {
        /// The tensor's type.
        ty: gguf::GgmlType,
    },
    /// A format whose big-endian form is not defined.
    #[error("{ty} has no big-endian form: ggml reads some of its fields both as bytes and as words")]
    BigEndian {
        /// The tensor's type.
        ty: gguf::GgmlType,
    },
    /// Data whose size is not that of the shape.
    #[error("{ty} data of {bytes} bytes is no {n} x {k} matrix{}", expected_bytes(*ty, *n, *k))]
    Size {
        /// The data's type.
        ty: gguf::GgmlType,
        /// Rows of the shape.
        n: usize,
        /// Columns of the shape.
        k: usize,
        /// Bytes of the data.
        bytes: usize,
    },
    /// Activations that do not fit the weights.
    #[error("activations of shape {shape:?} do not fit weights of {k} input features")]
    Activations {
        /// Extents of the activations.
        shape: Vec<usize>,
        /// Columns of the weights.
        k: usize,
    },
    /// Extents and strides of values that are not all in their buffer.
    #[error("activations of shape {shape:?} and strides {strides:?} do not lie in a buffer of {len} values")]
    Strides {
        /// Extents of the activations.
        shape: Vec<usize>,
        /// Their strides, in values.
        strides: Vec<usize>,
        /// Values of the buffer.
        len: usize,
    },
    /// Activations in the memory of another device than the weights'.
    #[error("the activations are not in the memory of the {device} device, which has the weights")]
    ForeignActivations {
        /// The device of the weights.
        device: String,
    },
    /// Weights of several devices for one call.
    #[error("weights on {first} and on {other}: one call multiplies those of one device")]
    Devices {
        /// The device of the first weights.
        first: String,
        /// The device of others.
        other: String,
    },
    /// A float type that the device cannot hold.
    #[error("the {device} device has no {ty} buffers")]
    NoFloat {
        /// The device by its name.
        device: String,
        /// The type by its name, as `bf16`.
        ty: &'static str,
    },
    /// A row that the matrix does not have.
    #[error("row {id} of a matrix of {rows} rows was asked for")]
    RowOutOfRange {
        /// The row that was asked for.
        id: i64,
        /// Rows of the matrix.
        rows: usize,
    },
    /// A matrix that one buffer of the device cannot hold.
    #[error("{bytes} bytes are more than one buffer of the {device} device holds ({most})")]
    TooLarge {
        /// The device by its name.
        device: String,
        /// Bytes of the matrix in the device's layout.
        bytes: usize,
        /// Bytes of the device's largest buffer.
        most: u64,
    },
    /// The device refused or failed: no memory, a kernel that did not compile, a fault.
    #[error("{device}: {reason}")]
    Device {
        /// The device by its name.
        device: String,
        /// What it reported.
        reason: String,
    },
    /// What Candle's CPU code reported.
    #[cfg(feature = "candle")]
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

fn expected_bytes(ty: gguf::GgmlType, n: usize, k: usize) -> String {
    match ty.row_bytes(k).and_then(|row| row.checked_mul(n)) {
        Some(bytes) => format!(", which has {bytes} bytes"),
        None => format!(": rows of {ty} are multiples of {} values", ty.block_size()),
    }
}

/// A result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

#[cfg(feature = "candle")]
impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(error) => error,
            error => candle_core::Error::wrap(error),
        }
    }
}
