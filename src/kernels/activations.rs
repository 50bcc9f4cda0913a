//! Activations: floats of any strides on the device, and their packing to contiguous rows of whole chunks.

use cubecl::client::Client;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::floats::{FloatType, rounded};
use super::formats::CHUNK;
use super::launch::{Grid, GridLaunch, buffer, elementwise, used_bytes};
use crate::{Error, Result};

/// Floats on the device: `[.., k]` values of any strides, all of which lie in their buffer.
#[derive(Clone)]
pub struct Activations {
    handle: Handle,
    ty: FloatType,
    /// Extents, the last one `k`.
    shape: Vec<usize>,
    /// In values, one for each extent.
    strides: Vec<usize>,
}

impl Activations {
    /// Values of `handle` by their extents, the last of which is the weights' number of columns, and strides in values.
    ///
    /// # Errors
    ///
    /// [`Error::Strides`] where a value would lie outside the handle, the handle's offset is not a multiple of a
    /// value's bytes, or `shape` and `strides` differ in length.
    pub fn new(handle: Handle, ty: FloatType, shape: Vec<usize>, strides: Vec<usize>) -> Result<Self> {
        let len = used_bytes(&handle) / ty.bytes();
        let extents = shape.iter().zip(&strides);
        let last =
            extents.map(|(&n, &stride)| n.saturating_sub(1).saturating_mul(stride)).fold(0, usize::saturating_add);
        let aligned = handle.offset_start.unwrap_or(0).is_multiple_of(ty.bytes() as u64);
        let count = shape.iter().try_fold(1usize, |count, &n| count.checked_mul(n));
        let inside = count == Some(0) || last < len;
        match strides.len() == shape.len() && aligned && count.is_some() && inside {
            true => Ok(Self { handle, ty, shape, strides }),
            false => Err(Error::Strides { shape, strides, len }),
        }
    }

    /// Contiguous values of the given extents.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn contiguous(handle: Handle, ty: FloatType, shape: Vec<usize>) -> Result<Self> {
        let mut strides = vec![1usize; shape.len()];
        for i in (1..shape.len()).rev() {
            // No handle is as long as a saturated stride, so `new` refuses it.
            strides[i - 1] = strides[i].saturating_mul(shape[i]);
        }
        Self::new(handle, ty, shape, strides)
    }

    /// The buffer.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// The type of the values.
    pub fn ty(&self) -> FloatType {
        self.ty
    }

    /// Extents, the last one `k`.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Strides in values, one for each extent.
    pub fn strides(&self) -> &[usize] {
        &self.strides
    }

    /// Values of the last dimension; 1 for a scalar.
    pub fn k(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Rows of `k` values.
    pub fn tokens(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }

    /// Extent and stride of the batch dimensions, outermost first; neighbours that one stride describes are merged.
    fn batch(&self) -> Vec<(usize, usize)> {
        let rank = self.shape.len().saturating_sub(1);
        let mut merged: Vec<(usize, usize)> = Vec::new();
        for (&extent, &stride) in self.shape[..rank].iter().zip(&self.strides) {
            match merged.last_mut() {
                _ if extent == 1 => {}
                Some(outer) if outer.1 == extent * stride => *outer = (outer.0 * extent, stride),
                _ => merged.push((extent, stride)),
            }
        }
        merged
    }

    /// Values from one token to the next, where each token's values are contiguous and the tokens evenly apart.
    pub(super) fn token_stride(&self) -> Option<usize> {
        let mut batch = self.batch();
        let (_, stride) = batch.pop().unwrap_or((1, self.k()));
        (batch.is_empty() && (self.strides.last() == Some(&1) || self.k() == 1)).then_some(stride)
    }

    /// [`token_stride`](Self::token_stride), where kernels may read every token in vectors of four values.
    pub(crate) fn vector_stride(&self) -> Option<usize> {
        let aligned = self.handle.offset_start.unwrap_or(0).is_multiple_of(4 * self.ty.bytes() as u64);
        self.token_stride().filter(|stride| aligned && stride.is_multiple_of(4) && self.k().is_multiple_of(4))
    }

    /// Calls `launch` for each run of tokens that two batch dimensions describe.
    pub(super) fn for_each_run(&self, mut launch: impl FnMut(Run)) {
        let mut batch = self.batch();
        let inner = batch.pop().unwrap_or((1, 0));
        let outer = batch.pop().unwrap_or((1, 0));
        let tokens = inner.0 * outer.0;
        let runs: usize = batch.iter().map(|&(extent, _)| extent).product();
        for run in 0..runs {
            let (mut rest, mut base) = (run, 0);
            for &(extent, stride) in batch.iter().rev() {
                base += rest % extent * stride;
                rest /= extent;
            }
            launch(Run { x: self, first: run * tokens, tokens, base, outer: outer.1, inner });
        }
    }
}

/// Tokens of activations that one launch reads.
pub(super) struct Run<'a> {
    x: &'a Activations,
    /// The first token.
    first: usize,
    pub tokens: usize,
    /// Index of its first value.
    base: usize,
    /// The stride of the outer batch dimension.
    outer: usize,
    /// Extent and stride of the inner one.
    inner: (usize, usize),
}

impl Run<'_> {
    /// The run as an argument of a kernel.
    pub fn arg(&self, grid: GridLaunch) -> TokensLaunch {
        let column = self.x.strides.last().copied().unwrap_or(1);
        let (extent, inner) = self.inner;
        TokensLaunch::new(grid, self.first, self.x.k(), self.base, self.outer, extent, inner, column)
    }
}

/// A [`Run`] of tokens, and the units of a launch that read them.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub(super) struct Tokens {
    pub grid: Grid,
    /// The first token of the run among all.
    pub first: usize,
    /// Values of a token.
    pub k: usize,
    base: usize,
    outer: usize,
    inner_extent: usize,
    inner: usize,
    column: usize,
}

#[cube]
impl Tokens {
    /// Chunks of a token.
    pub fn chunks(&self) -> usize {
        (self.k + comptime!(CHUNK - 1)) / CHUNK
    }

    /// Index of value `column` of the run's token `token`.
    pub fn index(&self, token: usize, column: usize) -> usize {
        let (outer, inner) = (token / self.inner_extent, token % self.inner_extent);
        self.base + outer * self.outer + inner * self.inner + column * self.column
    }
}

/// Contiguous `[tokens, chunks * 32]` values of type `to`, zeros past `k`.
pub fn pack(client: &Client, x: &Activations, to: FloatType) -> Handle {
    let (tokens, k) = (x.tokens(), x.k());
    let padded = k.next_multiple_of(CHUNK);
    let out = client.empty((tokens * padded * to.bytes()).max(16));
    x.for_each_run(|run| {
        let (count, dim, grid) = elementwise(client, run.tokens * padded);
        let (from, into) = (buffer(&x.handle, x.ty.bytes()), buffer(&out, to.bytes()));
        pack_values::launch(client, count, dim, from, into, run.arg(grid), [x.ty.elem(), to.elem()]);
    });
    out
}

#[cube(launch)]
fn pack_values<X: Float, Y: Float>(x: &[X], out: &mut [Y], tokens: Tokens, #[define(X, Y)] _dtypes: [ElemType; 2]) {
    let position = tokens.grid.unit();
    if position >= tokens.grid.len {
        terminate!();
    }
    let padded = tokens.chunks() * CHUNK;
    let (token, column) = (position / padded, position % padded);
    let mut value = Y::new(0.0f32);
    if column < tokens.k {
        value = rounded::<Y>(f32::cast_from(x[tokens.index(token, column)]));
    }
    out[tokens.first * padded + position] = value;
}

/// The first `len` f32 values of a handle, converted to `to`. The handle must hold as many.
pub fn cast(client: &Client, values: &Handle, len: usize, to: FloatType) -> Handle {
    let padded = len.next_multiple_of(CHUNK);
    let x = Activations { handle: values.clone(), ty: FloatType::F32, shape: vec![1, len], strides: vec![len, 1] };
    let out = pack(client, &x, to);
    out.offset_end(((padded - len) * to.bytes()) as u64)
}
