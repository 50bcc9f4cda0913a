//! The product of activations with a weight matrix, transposed: which of the kernels does it.
//!
//! Few tokens go to [`matvec`](super::matvec). Many tokens go to the matrix units where the device has them: the weights
//! are dequantized in stripes of rows, so that no more than [`STRIPE_BYTES`] of them exist as floats at a time, and
//! multiplied by cubek-matmul.

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;
use cubek_matmul::definition::{MatmulElems, MatmulGlobalElems, MatmulSetupError};
use cubek_matmul::launch::launch_ref;
use cubek_matmul::multi_level::Strategy;
use cubek_std::InputBinding;

use super::activations::{Activations, pack};
use super::dequantize::dequantize;
use super::floats::FloatType;
use super::formats::traits;
use super::matvec::{MAX_TOKENS, Operand, matvec, matvec_many};
use super::product::Product;
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

/// The most bytes of dequantized weights at a time.
pub const STRIPE_BYTES: usize = 64 << 20;

/// Rows of a stripe are a multiple of this, so that the stripes of the output start at aligned addresses.
const STRIPE_ROWS: usize = 128;

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

/// `x` `[.., k]` times the transpose of `weights` `[n, k]`: contiguous `[.., n]` values of `x`'s type.
///
/// `x`'s last extent must be `k`, and its strides in bounds. What fails on the device shows up at the next read.
pub fn matmul(client: &Client, weights: &Weights, x: &Activations, arithmetic: Arithmetic) -> Handle {
    match resolve(client, weights.ty(), x.tokens(), arithmetic) {
        Product::Int8 { .. } => matvec(client, weights, x, Operand::Int8),
        // Halves are the host's alone; `resolve` never names them.
        Product::Float | Product::Halves { .. } => matvec(client, weights, x, Operand::Float),
        Product::MatrixUnits => {
            // A blueprint that does not fit the device is refused before anything is launched.
            striped(client, weights, x).unwrap_or_else(|_| matvec(client, weights, x, Operand::Float))
        }
    }
}

/// The [`matmul`] of each of some matrices, bit for bit: few tokens share the quantization of the activations, and launches
/// where the formats are the same.
pub fn matmul_many(client: &Client, weights: &[&Weights], x: &Activations, arithmetic: Arithmetic) -> Vec<Handle> {
    let products = weights.iter().map(|weights| resolve(client, weights.ty(), x.tokens(), arithmetic));
    let (mut int8, mut few) = (false, true);
    for product in products {
        int8 |= matches!(product, Product::Int8 { .. });
        few &= product != Product::MatrixUnits;
    }
    match few {
        true => matvec_many(client, weights, x, if int8 { Operand::Int8 } else { Operand::Float }),
        false => weights.iter().map(|weights| matmul(client, weights, x, arithmetic)).collect(),
    }
}

/// Whether the device's matrix units add up products of bf16, whose range is that of f32, in f32.
pub(super) fn has_matrix_units(client: &Client) -> bool {
    let (bf16, f32) = (FloatType::BF16.elem(), FloatType::F32.elem());
    client.features().matmul.cmma.iter().any(|c| (c.a_type, c.b_type, c.cd_type) == (bf16, bf16, f32))
}

fn striped(client: &Client, weights: &Weights, x: &Activations) -> Result<Handle, MatmulSetupError> {
    let ty = FloatType::BF16;
    let (tokens, n, k) = (x.tokens(), weights.n(), weights.k());
    let lhs = pack(client, x, ty);
    let padded = k.next_multiple_of(super::formats::UNIT);
    let out = client.empty((tokens * n * 4).next_multiple_of(16).max(16));
    let rows = (STRIPE_BYTES / (k * ty.bytes()) / STRIPE_ROWS * STRIPE_ROWS).max(STRIPE_ROWS);
    for first in (0..n).step_by(rows) {
        let rows = rows.min(n - first);
        let stripe = dequantize(client, weights, first, rows, ty);
        let lhs = binding(lhs.clone(), [tokens, k], [padded, 1]);
        let rhs = binding(stripe, [k, rows], [1, k]);
        let out = binding(out.clone().offset_start(4 * first as u64), [tokens, rows], [n, 1]);
        let elem = ty.elem();
        let mut elems =
            MatmulElems::from_globals(&MatmulGlobalElems { lhs: elem, rhs: elem, out: FloatType::F32.elem() });
        launch_ref(
            &Strategy::SimpleCyclicCmma(Default::default()).into(),
            client,
            InputBinding::new(lhs, elem),
            InputBinding::new(rhs, elem),
            out,
            &mut elems,
        )?;
    }
    let out_ty = x.ty();
    Ok(match out_ty {
        FloatType::F32 => out,
        _ => super::activations::cast(client, &out, tokens * n, out_ty),
    })
}

fn binding(handle: Handle, shape: [usize; 2], strides: [usize; 2]) -> TensorBinding {
    TensorBinding { handle: handle.binding(), strides: strides.into(), shape: shape.into(), tiling: Default::default() }
}
