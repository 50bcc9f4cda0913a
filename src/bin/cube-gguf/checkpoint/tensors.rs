//! A checkpoint's tensors by the names, shapes and types that a GGUF file has them with.

use cube_gguf::GgmlType;
use half::{bf16, f16};

use super::shards::Shards;
use super::stack::Stack;
use crate::Outcome;
use crate::quantize::is_quantized;

/// A tensor of the model.
pub struct Tensor {
    pub name: String,
    /// Contiguous first.
    pub dims: Vec<u64>,
    /// That of its bytes: its file's, but for what is F32 in every GGUF file.
    pub ty: GgmlType,
    data: Data,
}

enum Data {
    /// Made of hyperparameters.
    Values(Vec<f32>),
    /// Floats of a type, to each of which one is added or not.
    Floats { stack: Stack, stored: GgmlType, adds_one: bool },
    /// Codes of 4 bits, two in a byte, and scales of 32 of them.
    Mxfp4 { codes: Stack, scales: Stack },
}

impl Tensor {
    /// A vector.
    pub fn of_values(name: String, values: Vec<f32>) -> Self {
        Self { name, dims: vec![values.len() as u64], ty: GgmlType::F32, data: Data::Values(values) }
    }

    /// Floats of type `stored`.
    pub fn of_floats(name: String, dims: Vec<u64>, stack: Stack, stored: GgmlType, adds_one: bool) -> Self {
        let keeps_type = is_quantized(&name, &dims) && !adds_one;
        let ty = if keeps_type { stored } else { GgmlType::F32 };
        Self { name, dims, ty, data: Data::Floats { stack, stored, adds_one } }
    }

    /// Blocks of MXFP4.
    pub fn of_mxfp4(name: String, dims: Vec<u64>, codes: Stack, scales: Stack) -> Self {
        Self { name, dims, ty: GgmlType::MXFP4, data: Data::Mxfp4 { codes, scales } }
    }

    /// Number of values: a tensor has as many bytes in its files.
    pub fn elements(&self) -> usize {
        self.dims.iter().map(|&extent| extent as usize).product()
    }

    /// Rows of the contiguous dimension, and columns.
    pub fn matrix(&self) -> (usize, usize) {
        (self.dims.iter().skip(1).map(|&extent| extent as usize).product(), self.dims[0] as usize)
    }

    /// Rows, as blocks of the tensor's type.
    pub fn rows(&self, shards: &Shards, first: usize, count: usize) -> Outcome<Vec<u8>> {
        let columns = self.matrix().1;
        let read = |stack: &Stack, row_bytes: usize| {
            // Some vectors are columns of theirs.
            let each = row_bytes / stack.row_bytes();
            stack.read(shards, first * each, count * each)
        };
        Ok(match &self.data {
            Data::Values(values) => bytes_of(values[first * columns..][..count * columns].iter().copied()),
            Data::Floats { stack, stored, adds_one } => {
                let bytes = read(stack, columns * stored.block_bytes())?;
                match *stored == self.ty && !adds_one {
                    true => bytes,
                    false => bytes_of(floats(&bytes, *stored).map(|x| if *adds_one { x + 1.0 } else { x })),
                }
            }
            Data::Mxfp4 { codes, scales } => {
                let (codes, scales) = (read(codes, columns / 2)?, read(scales, columns / 32)?);
                let blocks = codes.chunks_exact(16).zip(scales);
                blocks.flat_map(|(codes, scale)| block(codes, scale)).collect()
            }
        })
    }
}

/// Values of little-endian floats.
fn floats(bytes: &[u8], ty: GgmlType) -> impl Iterator<Item = f32> {
    bytes.chunks_exact(ty.block_bytes()).map(move |b| match ty {
        GgmlType::F16 => f16::from_le_bytes([b[0], b[1]]).to_f32(),
        GgmlType::BF16 => bf16::from_le_bytes([b[0], b[1]]).to_f32(),
        _ => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
    })
}

fn bytes_of(values: impl Iterator<Item = f32>) -> Vec<u8> {
    values.flat_map(f32::to_le_bytes).collect()
}

/// A block of MXFP4: its scale, then codes whose neighbours are 16 apart, where in a checkpoint they share a byte.
fn block(codes: &[u8], scale: u8) -> [u8; 17] {
    let code = |i: usize| codes[i / 2] >> (4 * (i % 2)) & 0xf;
    let mut block = [scale; 17];
    for (i, byte) in block[1..].iter_mut().enumerate() {
        *byte = code(i) | code(i + 16) << 4;
    }
    block
}
