//! The one door into the kernels: which of them does a product of activations with a weight matrix, transposed.
//!
//! Few tokens go to [`matvec`](super::matvec), many to [`matmul`](super::matmul) where the device has matrix units.

use cubecl::client::Client;
use cubecl::server::Handle;

use super::accuracy::Product;
use super::activations::Activations;
use super::formats::traits;
use super::matmul::{has_matrix_units, striped};
use super::matvec::{MAX_TOKENS, Operand, matvec_many_with, matvec_with};
use super::tune::Selection;
use super::weights::Weights;
use crate::gguf::GgmlType;

/// How activations and weights are multiplied. [`Product::error_bound`] states how exactly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// `Int8` up to [`MAX_TOKENS`] tokens, then `Float`.
    #[default]
    Auto,
    /// Activations quantized to int8 in units of 32, integer products: what llama.cpp and Candle do on GPUs. Weights
    /// that are floats themselves (F32, F16, BF16) are multiplied as such.
    Int8,
    /// Floating-point products, f32 sums: f32 products up to [`MAX_TOKENS`] tokens, products of bf16 on the matrix units for
    /// more where the device has them.
    Float,
}

/// What `arithmetic` means for so many tokens of weights of type `ty` on this device.
pub fn resolve(client: &Client, ty: GgmlType, tokens: usize, arithmetic: Arithmetic) -> Product {
    let few = tokens <= MAX_TOKENS;
    let int8 = arithmetic == Arithmetic::Int8 || arithmetic == Arithmetic::Auto && few;
    match () {
        () if int8 && !traits(ty).dense => Product::INT8,
        () if !few && has_matrix_units(client) => Product::MatrixUnits,
        () => Product::Float,
    }
}

/// A matrix, and what was selected for its products.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    pub weights: &'a Weights,
    pub selection: &'a Selection,
}

/// `x` `[.., k]` times the transpose of a matrix `[n, k]`: contiguous `[.., n]` values of `x`'s type.
///
/// `x`'s last extent must be `k`. What fails on the device shows up at the next read.
pub fn matmul(client: &Client, matrix: Matrix, x: &Activations, arithmetic: Arithmetic) -> Handle {
    let Matrix { weights, selection } = matrix;
    let matvec = |operand| {
        let pick = |tokens| selection.blueprint(client, weights, operand, tokens);
        matvec_with(client, weights, x, operand, pick)
    };
    match resolve(client, weights.ty(), x.tokens(), arithmetic) {
        Product::Int8 { .. } => matvec(Operand::Int8),
        // Halves are the host's alone; `resolve` never names them.
        Product::Float | Product::Halves { .. } => matvec(Operand::Float),
        Product::MatrixUnits => {
            // A blueprint that does not fit the device is refused before anything is launched.
            striped(client, weights, x).unwrap_or_else(|_| matvec(Operand::Float))
        }
    }
}

/// The [`matmul`] of each of some matrices, bit for bit: few tokens share the quantization of the activations, and launches
/// where the formats are the same.
pub fn matmul_many(client: &Client, matrices: &[Matrix], x: &Activations, arithmetic: Arithmetic) -> Vec<Handle> {
    let products = matrices.iter().map(|matrix| resolve(client, matrix.weights.ty(), x.tokens(), arithmetic));
    let (mut int8, mut few) = (false, true);
    for product in products {
        int8 |= matches!(product, Product::Int8 { .. });
        few &= product != Product::MatrixUnits;
    }
    if !few {
        return matrices.iter().map(|&matrix| matmul(client, matrix, x, arithmetic)).collect();
    }
    let weights: Vec<&Weights> = matrices.iter().map(|matrix| matrix.weights).collect();
    let operand = if int8 { Operand::Int8 } else { Operand::Float };
    matvec_many_with(client, &weights, x, operand, |i, operand, tokens| {
        matrices[i].selection.blueprint(client, weights[i], operand, tokens)
    })
}
