//! Products of many tokens, the baseline on every device with matrix units: weights are dequantized in stripes of rows
//! of at most [`STRIPE_BYTES`] (but at least [`STRIPE_ROWS`] rows), each multiplied by cubek-matmul.

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;
use cubek_matmul::definition::{MatmulElems, MatmulGlobalElems, MatmulSetupError};
use cubek_matmul::launch::launch_ref;
use cubek_matmul::multi_level::Strategy;
use cubek_std::InputBinding;

use crate::kernels::activations::{Activations, cast, pack};
use crate::kernels::dequantize::dequantize;
use crate::kernels::epilogue::finish;
use crate::kernels::floats::FloatType;
use crate::kernels::formats::CHUNK;
use crate::kernels::weights::Weights;

/// Upper limit of a stripe's bytes, unless [`STRIPE_ROWS`] rows take more.
const STRIPE_BYTES: usize = 64 << 20;

/// Rows of a stripe are a multiple of this, so that the stripes of the output start at aligned addresses.
const STRIPE_ROWS: usize = 128;

/// Whether CubeCL's own operations reach matrix units of the device that add up products of bf16, whose range is that of
/// f32, in f32.
pub(super) fn has_cmma(client: &Client) -> bool {
    let (bf16, f32) = (FloatType::BF16.elem(), FloatType::F32.elem());
    client.features().matmul.cmma.iter().any(|c| (c.a_type, c.b_type, c.cd_type) == (bf16, bf16, f32))
}

/// `x` times the transpose of the weights, in stripes of their rows.
///
/// # Errors
///
/// Where cubek-matmul has no blueprint for the device.
pub fn striped(client: &Client, weights: &Weights, x: &Activations) -> Result<Handle, MatmulSetupError> {
    let ty = FloatType::BF16;
    let (tokens, n, k) = (x.tokens(), weights.n(), weights.k());
    let lhs = pack(client, x, ty);
    let padded = k.next_multiple_of(CHUNK);
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
    finish(client, &out, tokens, n, &weights.epilogues);
    let out_ty = x.ty();
    Ok(match out_ty {
        FloatType::F32 => out,
        _ => cast(client, &out, tokens * n, out_ty),
    })
}

fn binding(handle: Handle, shape: [usize; 2], strides: [usize; 2]) -> TensorBinding {
    TensorBinding { handle: handle.binding(), strides: strides.into(), shape: shape.into(), tiling: Default::default() }
}
