//! Activations made ready for a product: contiguous, in whole units of 32, as floats or as int8 codes.

use cubecl::client::Client;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::floats::{FloatType, rounded};
use super::formats::{UNIT, Words};
use super::launch::{Grid, buffer, elementwise};

/// Floats on the device: `[.., k]` values of any strides.
#[derive(Clone)]
pub struct Activations {
    pub handle: Handle,
    /// Values that the handle holds.
    pub len: usize,
    pub ty: FloatType,
    /// Extents, the last one `k`.
    pub shape: Vec<usize>,
    /// In values, one for each extent.
    pub strides: Vec<usize>,
}

impl Activations {
    /// Contiguous values of the given shape.
    pub fn contiguous(handle: Handle, ty: FloatType, shape: Vec<usize>) -> Self {
        let mut strides = vec![1; shape.len()];
        for i in (1..shape.len()).rev() {
            strides[i - 1] = strides[i] * shape[i];
        }
        let len = shape.iter().product();
        Self { handle, len, ty, shape, strides }
    }

    /// Values of the last dimension; 1 for a scalar.
    pub fn k(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Rows of `k` values.
    pub fn tokens(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }

    /// Whether no stride reaches past the handle's values.
    pub fn in_bounds(&self) -> bool {
        let extents = self.shape.iter().zip(&self.strides);
        let last =
            extents.map(|(&n, &stride)| n.saturating_sub(1).saturating_mul(stride)).fold(0, usize::saturating_add);
        self.strides.len() == self.shape.len() && (self.shape.contains(&0) || last < self.len)
    }

    /// The batch dimensions as few as they can be, outermost first: neighbours that are one run are merged.
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

    /// Calls `launch(first token, tokens, base, dimensions)` for runs of tokens that two batch dimensions describe.
    fn for_each_run(&self, mut launch: impl FnMut(usize, usize, usize, [(usize, usize); 2])) {
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
            launch(run * tokens, tokens, base, [outer, inner]);
        }
    }
}

/// Where a token's values start and how far apart they are.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
#[expand(derive(Clone, Copy))]
struct Strides {
    base: usize,
    outer: usize,
    inner_extent: usize,
    inner: usize,
    column: usize,
}

#[cube]
impl Strides {
    fn index(&self, token: usize, column: usize) -> usize {
        let (outer, inner) = (token / self.inner_extent, token % self.inner_extent);
        self.base + outer * self.outer + inner * self.inner + column * self.column
    }
}

fn strides(x: &Activations, base: usize, [outer, inner]: [(usize, usize); 2]) -> StridesLaunch {
    let column = x.strides.last().copied().unwrap_or(1);
    StridesLaunch::new(base, outer.1, inner.0, inner.1, column)
}

/// int8 codes of activations, in units of 32 with a scale each.
pub struct Quantized {
    /// Two vectors of 16 codes a unit.
    pub codes: Handle,
    /// A vector a unit: the scale, the scale times the sum of all codes, the sums of the first and of the last 16 codes.
    pub sums: Handle,
    pub units: usize,
}

/// Quantizes each unit of 32 to `round(x / d)` with `d = max|x| / 127`, as llama.cpp and Candle do on GPUs.
///
/// A unit with a NaN or an infinity gets a NaN scale, so that its products are NaN.
pub fn quantize(client: &Client, x: &Activations) -> Quantized {
    let (tokens, k) = (x.tokens(), x.k());
    let units = k.div_ceil(UNIT);
    let codes = client.empty((tokens * units * UNIT).max(16));
    let sums = client.empty((tokens * units * 16).max(16));
    x.for_each_run(|first, run, base, batch| {
        let (count, dim, grid) = elementwise(client, run * units);
        quantize_units::launch(
            client,
            count,
            dim,
            buffer(&x.handle, x.len),
            strides(x, base, batch),
            buffer(&codes, tokens * units * 2),
            buffer(&sums, tokens * units),
            grid,
            first * units,
            units,
            k,
            x.ty.elem(),
        );
    });
    Quantized { codes, sums, units }
}

#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn quantize_units<X: Float>(
    x: &[X],
    strides: Strides,
    codes: &mut [Words],
    sums: &mut [Vector<f32, Const<4>>],
    grid: Grid,
    first_unit: usize,
    units: usize,
    k: usize,
    #[define(X)] _dtype: ElemType,
) {
    let position = grid.unit();
    if position >= grid.len {
        terminate!();
    }
    let token = position / units;
    let column = position % units * UNIT;
    let mut values = Array::<f32>::new(UNIT);
    let mut largest = 0.0f32;
    // By its bits: an optimizer may take a comparison of floats to mean that there is no NaN.
    let mut finite = true;
    for i in 0..UNIT {
        let mut value = 0.0f32;
        if column + i < k {
            value = f32::cast_from(x[strides.index(token, column + i)]);
        }
        values[i] = value;
        largest = max(largest, value.abs());
        finite = finite && (u32::reinterpret(value) & 0x7f80_0000) != 0x7f80_0000;
    }
    let inverse = select(largest > 0.0f32, 127.0f32 / largest, 0.0f32);
    let scale = select(finite, largest / 127.0f32, f32::reinterpret(0x7fc0_0000u32));
    let unit = first_unit + position;
    let mut of_unit = Vector::<f32, Const<4>>::empty();
    let mut of_codes = 0i32;
    #[unroll]
    for half in 0..2usize {
        let mut words = Words::empty();
        let mut sum = 0i32;
        #[unroll]
        for word in 0..4usize {
            let mut packed = 0u32;
            #[unroll]
            for byte in 0..4usize {
                let code = i32::cast_from((values[comptime!(16 * half + 4 * word + byte)] * inverse).round());
                sum += code;
                packed |= (u32::cast_from(code) & 0xff) << comptime!(8 * byte as u32);
            }
            words.insert(word, packed);
        }
        codes[2 * unit + half] = words;
        of_unit.insert(comptime!(2 + half), f32::cast_from(sum));
        of_codes += sum;
    }
    of_unit.insert(0usize, scale);
    of_unit.insert(1usize, scale * f32::cast_from(of_codes));
    sums[unit] = of_unit;
}

/// Contiguous `[tokens, units * 32]` values of type `to`, zeros past `k`.
pub fn pack(client: &Client, x: &Activations, to: FloatType) -> Handle {
    let (tokens, k) = (x.tokens(), x.k());
    let padded = k.next_multiple_of(UNIT);
    let out = client.empty((tokens * padded * to.bytes()).max(16));
    x.for_each_run(|first, run, base, batch| {
        let (count, dim, grid) = elementwise(client, run * padded);
        pack_values::launch(
            client,
            count,
            dim,
            buffer(&x.handle, x.len),
            strides(x, base, batch),
            buffer(&out, tokens * padded),
            grid,
            first * padded,
            padded,
            k,
            to,
            [x.ty.elem(), to.elem()],
        );
    });
    out
}

#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn pack_values<X: Float, Y: Float>(
    x: &[X],
    strides: Strides,
    out: &mut [Y],
    grid: Grid,
    first: usize,
    padded: usize,
    k: usize,
    #[comptime] to: FloatType,
    #[define(X, Y)] _dtypes: [ElemType; 2],
) {
    let position = grid.unit();
    if position >= grid.len {
        terminate!();
    }
    let (token, column) = (position / padded, position % padded);
    let mut value = Y::new(0.0f32);
    if column < k {
        value = rounded::<Y>(f32::cast_from(x[strides.index(token, column)]), to);
    }
    out[first + position] = value;
}

/// `len` f32 values as `to`.
pub fn cast(client: &Client, values: &Handle, len: usize, to: FloatType) -> Handle {
    let padded = len.next_multiple_of(UNIT);
    let x = Activations::contiguous(values.clone(), FloatType::F32, vec![1, len]);
    let out = pack(client, &x, to);
    out.offset_end(((padded - len) * to.bytes()) as u64)
}
