//! The crate's error type.

use crate::gguf;

/// An error of a file, a device or an operation; its message is one sentence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A GGUF file or its contents.
    #[error(transparent)]
    Gguf(#[from] gguf::Error),
    /// A device that this build or this machine does not have, or that CubeCL cannot use.
    #[error("no device {device}: {reason}")]
    NoDevice {
        /// The device by its name, as `rocm:0`.
        device: String,
        /// The cause and, where known, the remedy.
        reason: String,
    },
    /// A type that holds no weights: integers and f64.
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
    /// Data whose size does not match the shape.
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
    /// A shape that weights of the type cannot have: a scalar's, rows that are not whole blocks, or more than can be counted.
    #[error("{}", impossible_shape(*ty, shape))]
    Shape {
        /// The weights' type.
        ty: gguf::GgmlType,
        /// Extents, outermost first.
        shape: Vec<usize>,
    },
    /// Activations that are no floats.
    #[error("activations of type {ty}: weights multiply floats")]
    IntegerActivations {
        /// Their type by its name, as `u32`.
        ty: &'static str,
    },
    /// Activations that do not fit the weights.
    #[error("activations of shape {shape:?} do not fit weights of {k} input features")]
    Activations {
        /// Extents of the activations.
        shape: Vec<usize>,
        /// Columns of the weights.
        k: usize,
    },
    /// A type that no kernel quantizes to.
    #[error("there is no kernel that quantizes to {ty}")]
    NoQuantizer {
        /// The type.
        ty: gguf::GgmlType,
    },
    /// A type that takes importances to quantize to, without them.
    #[error("to quantize to {ty} takes an importance for each column: without them too little is left of a model")]
    NeedsImportance {
        /// The type.
        ty: gguf::GgmlType,
    },
    /// A format that Candle's own tensors cannot have.
    #[error("Candle has no type for {ty}")]
    NoCandleType {
        /// The type.
        ty: gguf::GgmlType,
    },
    /// A matrix that Candle's own tensors cannot have elsewhere than in host memory.
    #[error(
        "Candle's CPU code reads the blocks of {ty} matrices as {n} x {k} and multiplies them itself: with this crate's QMatMul the device does"
    )]
    Repacked {
        /// The type.
        ty: gguf::GgmlType,
        /// Rows.
        n: usize,
        /// Columns.
        k: usize,
    },
    /// Values that are no matrix of whole blocks.
    #[error("{values} values are no {n} x {k} matrix to quantize to {ty}, whose blocks have {} values", ty.block_size())]
    Values {
        /// The type.
        ty: gguf::GgmlType,
        /// Rows.
        n: usize,
        /// Columns.
        k: usize,
        /// The number of values.
        values: usize,
    },
    /// Values to quantize that are not finite.
    #[error("row {row} of the values to quantize has a NaN or an infinity")]
    NotFinite {
        /// The first such row.
        row: usize,
    },
    /// Importances of columns that do not fit the matrix.
    #[error(
        "{values} importances for a matrix of {n} x {k}: it has one for each column, or as many for each of some runs of rows"
    )]
    Importances {
        /// Their number.
        values: usize,
        /// Rows.
        n: usize,
        /// Columns.
        k: usize,
    },
    /// An importance that is none.
    #[error("an importance of {value}: they are finite and not negative")]
    Importance {
        /// The number.
        value: f32,
    },
    /// Activations whose extents and strides do not describe aligned values of their buffer.
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
    /// Weights on several devices in one call.
    #[error("weights on {first} and on {other}: one call multiplies those of one device")]
    Devices {
        /// The device of the first matrix.
        first: String,
        /// The device of the first matrix that is on another.
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
    /// A result of another rank than the operation gives.
    #[error("a result of {rank} dimensions was asked for, where there are {wanted}")]
    Rank {
        /// The rank that was asked for.
        rank: usize,
        /// The rank of the result.
        wanted: usize,
    },
    /// A row index outside the matrix.
    #[error("row {id} of a matrix of {rows} rows was asked for")]
    RowOutOfRange {
        /// The row index.
        id: i64,
        /// Rows of the matrix.
        rows: usize,
    },
    /// Scales or biases that do not fit the rows that they are for.
    #[error("{values} {what} for a matrix of {rows} rows")]
    Companion {
        /// `scales` or `biases`.
        what: &'static str,
        /// Their number.
        values: usize,
        /// Rows of the matrix.
        rows: usize,
    },
    /// A matrix that is no stack of so many experts.
    #[error("a matrix of {rows} rows is no stack of {experts} experts")]
    Experts {
        /// Rows of the matrix.
        rows: usize,
        /// The number of experts.
        experts: usize,
    },
    /// Weights that are no stack of experts, where one is asked for.
    #[error("weights of shape {shape:?} are no stack of experts, which has three dimensions")]
    Stack {
        /// Extents of the weights.
        shape: Vec<usize>,
    },
    /// An expert that the weights do not have.
    #[error("expert {id} of {experts} was asked for")]
    ExpertOutOfRange {
        /// The expert's index.
        id: i64,
        /// The number of experts.
        experts: usize,
    },
    /// Ids of experts that their buffer does not hold, or that name nothing.
    #[error("{tokens} tokens with {slots} of {experts} experts each, and {len} ids for them")]
    Ids {
        /// Number of tokens.
        tokens: usize,
        /// Experts of a token.
        slots: usize,
        /// Number of experts.
        experts: usize,
        /// Number of ids.
        len: usize,
    },
    /// Activations that do not fit the experts of their tokens.
    #[error(
        "activations of shape {shape:?} for {tokens} tokens with {slots} experts each: they have a row a token, or one for each of its experts"
    )]
    Routed {
        /// Extents of the activations.
        shape: Vec<usize>,
        /// Number of tokens.
        tokens: usize,
        /// Experts of a token.
        slots: usize,
    },
    /// A matrix that one buffer of the device cannot hold.
    #[error("{bytes} bytes are more than one buffer of the {device} device holds ({most})")]
    TooLarge {
        /// The device by its name.
        device: String,
        /// Bytes of the matrix as GGUF blocks.
        bytes: usize,
        /// Bytes of the device's largest buffer.
        most: u64,
    },
    /// A failure of the device: out of memory, a kernel that it does not support or compile, a fault.
    #[error("{device}: {reason}")]
    Device {
        /// The device by its name.
        device: String,
        /// The cause.
        reason: String,
    },
    /// An error of Candle's CPU code.
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

fn impossible_shape(ty: gguf::GgmlType, shape: &[usize]) -> String {
    match shape.last() {
        None => format!("a scalar of {ty}: weights have rows"),
        Some(&k) if !k.is_multiple_of(ty.block_size()) => {
            format!("rows of {k} values are not whole blocks of {ty}, which have {} values", ty.block_size())
        }
        Some(_) => format!("weights of {ty} and shape {shape:?} have more bytes than can be counted"),
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
