//! Tensors in host memory: Candle's own blocks where Candle can multiply the format, else GGUF blocks and this crate's
//! host decoder.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QMatMul, QTensor, QuantizedType};
use candle_core::{Module, Storage, Tensor};
use rayon::prelude::*;

use crate::gguf::{Endian, GgmlType};
use crate::kernels::formats::{Format, format};
use crate::{Error, Result};

/// Candle's type of the same blocks, where Candle has it.
pub(super) fn candle_dtype(ty: GgmlType) -> Option<GgmlDType> {
    Some(match ty {
        GgmlType::F32 => GgmlDType::F32,
        GgmlType::F16 => GgmlDType::F16,
        GgmlType::BF16 => GgmlDType::BF16,
        GgmlType::Q4_0 => GgmlDType::Q4_0,
        GgmlType::Q4_1 => GgmlDType::Q4_1,
        GgmlType::Q5_0 => GgmlDType::Q5_0,
        GgmlType::Q5_1 => GgmlDType::Q5_1,
        GgmlType::Q8_0 => GgmlDType::Q8_0,
        GgmlType::Q8_1 => GgmlDType::Q8_1,
        GgmlType::Q2K => GgmlDType::Q2K,
        GgmlType::Q3K => GgmlDType::Q3K,
        GgmlType::Q4K => GgmlDType::Q4K,
        GgmlType::Q5K => GgmlDType::Q5K,
        GgmlType::Q6K => GgmlDType::Q6K,
        GgmlType::Q8K => GgmlDType::Q8K,
        _ => return None,
    })
}

/// Candle's type, where its CPU code can also multiply rows of `k` values: its products of Q4_1, Q5_0 and Q5_1 take
/// pairs of blocks, and it lacks a product of Q8_1.
pub(super) fn candle_product(ty: GgmlType, k: usize) -> Option<GgmlDType> {
    candle_dtype(ty).filter(|_| match ty {
        GgmlType::Q4_1 | GgmlType::Q5_0 | GgmlType::Q5_1 => k.is_multiple_of(64),
        GgmlType::Q8_1 => false,
        _ => true,
    })
}

/// The GGUF type of a Candle type.
pub(super) fn ggml_type(dtype: GgmlDType) -> GgmlType {
    match dtype {
        GgmlDType::F32 => GgmlType::F32,
        GgmlDType::F16 => GgmlType::F16,
        GgmlDType::BF16 => GgmlType::BF16,
        GgmlDType::Q4_0 => GgmlType::Q4_0,
        GgmlDType::Q4_1 => GgmlType::Q4_1,
        GgmlDType::Q5_0 => GgmlType::Q5_0,
        GgmlDType::Q5_1 => GgmlType::Q5_1,
        GgmlDType::Q8_0 => GgmlType::Q8_0,
        GgmlDType::Q8_1 => GgmlType::Q8_1,
        GgmlDType::Q2K => GgmlType::Q2K,
        GgmlDType::Q3K => GgmlType::Q3K,
        GgmlDType::Q4K => GgmlType::Q4K,
        GgmlDType::Q5K => GgmlType::Q5K,
        GgmlDType::Q6K => GgmlType::Q6K,
        GgmlDType::Q8K => GgmlType::Q8K,
    }
}

/// Candle's blocks from GGUF bytes of any alignment.
pub(super) fn candle_blocks(dtype: GgmlDType, data: &[u8]) -> Box<dyn QuantizedType> {
    // Candle reads the bytes as blocks in place, whose alignment is at most that of u32.
    if (data.as_ptr() as usize).is_multiple_of(align_of::<u32>()) {
        return dtype.from_data(Cow::Borrowed(data));
    }
    let mut words = vec![0u32; data.len().div_ceil(4)];
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
    bytes[..data.len()].copy_from_slice(data);
    dtype.from_data(Cow::Borrowed(&bytes[..data.len()]))
}

/// The largest magnitudes of a token that Candle's kernels take as they are. Some of them round activations to halves, others
/// their scales and their sums of 32: those of a token within these bounds are neither infinite nor subnormal.
const ORDINARY: std::ops::RangeInclusive<f32> = 1.0 / 128.0..=1024.0;

/// The power of two that brings a token's largest magnitude into [`ORDINARY`]; `None` where it has a NaN or an infinity.
fn scale_of(token: &[f32]) -> Option<f32> {
    // Compared as integers, NaN and infinity are above every finite magnitude.
    let largest = token.iter().map(|x| x.to_bits() & 0x7fff_ffff).max().unwrap_or(0);
    let magnitude = f32::from_bits(largest);
    match magnitude {
        _ if !magnitude.is_finite() => None,
        0.0 => Some(1.0),
        magnitude if ORDINARY.contains(&magnitude) => Some(1.0),
        _ => Some(2f32.powi(-((largest >> 23) as i32 - 127).clamp(-126, 126))),
    }
}

/// `x` `[tokens, k]`, contiguous f32, times the transpose of `tensor`, by Candle's kernels: of tokens whose magnitudes these
/// would lose, scaled by a power of two; of tokens with a NaN or an infinity, which some of these drop, in f32.
pub(super) fn candle_matmul(tensor: &Arc<QTensor>, ty: GgmlType, x: &Tensor) -> candle_core::Result<Tensor> {
    let product = QMatMul::QTensor(tensor.clone());
    let (tokens, k) = x.dims2()?;
    let scales: Vec<Option<f32>> = match &*x.storage_and_layout().0 {
        Storage::Cpu(storage) if ty != GgmlType::F32 && k > 0 => {
            let first = x.layout().start_offset();
            storage.as_slice::<f32>()?[first..first + tokens * k].chunks_exact(k).map(scale_of).collect()
        }
        _ => Vec::new(),
    };
    if scales.iter().all(|&scale| scale == Some(1.0)) {
        return product.forward(x);
    }
    let values = x.flatten_all()?.to_vec1::<f32>()?;
    let scaled = values.chunks_exact(k).zip(&scales);
    let scaled = scaled.flat_map(|(token, &scale)| token.iter().map(move |&x| scale.map_or(0.0, |scale| x * scale)));
    let y = product.forward(&Tensor::from_vec(scaled.collect(), (tokens, k), x.device())?)?;
    let n = y.dim(1)?;
    let mut y = y.flatten_all()?.to_vec1::<f32>()?;
    for (y, scale) in y.chunks_exact_mut(n.max(1)).zip(&scales) {
        if let Some(scale) = scale {
            y.iter_mut().for_each(|y| *y /= scale);
        }
    }
    if scales.contains(&None) {
        let blocks = HostBlocks::new(ty, tensor.data()?.into_owned())?;
        for ((token, scale), y) in values.chunks_exact(k).zip(&scales).zip(y.chunks_exact_mut(n.max(1))) {
            if scale.is_none() {
                y.copy_from_slice(&blocks.matmul(token, n, k));
            }
        }
    }
    Tensor::from_vec(y, (tokens, n), x.device())
}

/// GGUF blocks of a format that Candle lacks or cannot multiply, multiplied in f32.
pub struct HostBlocks {
    format: &'static Format,
    data: Vec<u8>,
    /// Factors, one for each of as many runs of rows; none where the values are the blocks'.
    scale: Vec<f32>,
}

impl HostBlocks {
    pub(super) fn new(ty: GgmlType, data: Vec<u8>) -> Result<Self> {
        let format = format(ty).ok_or(Error::NotWeights { ty })?;
        Ok(Self { format, data, scale: Vec::new() })
    }

    /// The same blocks with values that are so many times as large.
    pub(super) fn with_scale(self, scale: Vec<f32>) -> Self {
        Self { scale, ..self }
    }

    pub(super) fn ty(&self) -> GgmlType {
        self.format.ty
    }

    pub(super) fn data(&self) -> &[u8] {
        &self.data
    }

    /// Dequantizes row `row`, of `k` values, to `out`.
    fn row(&self, row: usize, k: usize, out: &mut [f32]) {
        let bytes = k / self.ty().block_size() * self.ty().block_bytes();
        self.format.dequantize_blocks(&self.data[row * bytes..][..bytes], out);
        let rows = self.data.len() / bytes.max(1);
        if let Some(scale) = self.scale.get(row * self.scale.len() / rows.max(1)) {
            out.iter_mut().for_each(|value| *value *= scale);
        }
    }

    pub(super) fn dequantize(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.data.len() / self.ty().block_bytes() * self.ty().block_size()];
        self.format.dequantize_blocks(&self.data, &mut out);
        let run = (out.len() / self.scale.len().max(1)).max(1);
        for (values, scale) in out.chunks_mut(run).zip(&self.scale) {
            values.iter_mut().for_each(|value| *value *= scale);
        }
        out
    }

    pub(super) fn rows(&self, ids: &[u32], rows: usize, k: usize) -> Result<Vec<f32>> {
        let mut out = vec![0.0; ids.len() * k];
        for (&id, out) in ids.iter().zip(out.chunks_exact_mut(k.max(1))) {
            if id as usize >= rows {
                return Err(Error::RowOutOfRange { id: id as i64, rows });
            }
            self.row(id as usize, k, out);
        }
        Ok(out)
    }

    /// `x` `[tokens, k]` times the transpose of the `n` x `k` blocks.
    pub(super) fn matmul(&self, x: &[f32], n: usize, k: usize) -> Vec<f32> {
        self.matmul_rows(x, 0, n, k)
    }

    /// `x` `[tokens, k]` times the transpose of `n` rows of `k` values, from row `first` on.
    pub(super) fn matmul_rows(&self, x: &[f32], first: usize, n: usize, k: usize) -> Vec<f32> {
        let tokens = x.len() / k;
        let mut columns = vec![0.0f32; n * tokens];
        columns.par_chunks_exact_mut(tokens.max(1)).enumerate().for_each_init(
            || vec![0.0; k],
            |weights, (row, out)| {
                self.row(first + row, k, weights);
                for (x, out) in x.chunks_exact(k).zip(out) {
                    *out = dot(x, weights);
                }
            },
        );
        let at = |i: usize| columns[i % n * tokens + i / n];
        (0..n * tokens).map(at).collect()
    }
}

/// The product of as many values, in sums side by side, which the compiler makes vectors of.
fn dot(x: &[f32], weights: &[f32]) -> f32 {
    const SUMS: usize = 16;
    let (mut sums, ragged) = ([0.0f32; SUMS], x.len() / SUMS * SUMS);
    for (x, weights) in x.chunks_exact(SUMS).zip(weights.chunks_exact(SUMS)) {
        for i in 0..SUMS {
            sums[i] += x[i] * weights[i];
        }
    }
    let rest: f32 = x[ragged..].iter().zip(&weights[ragged..]).map(|(x, w)| x * w).sum();
    sums.iter().sum::<f32>() + rest
}

/// Checks that `data` is whole blocks of `ty`.
pub(super) fn check_blocks(ty: GgmlType, data: &[u8]) -> Result<()> {
    match data.len().is_multiple_of(ty.block_bytes()) {
        true => Ok(()),
        false => {
            let k = data.len() / ty.block_bytes() * ty.block_size();
            Err(Error::Size { ty, n: 1, k, bytes: data.len() })
        }
    }
}

/// The byte order of Candle's blocks.
pub(super) const NATIVE: Endian = Endian::Little;

/// Values from -1 to 1, for tests.
#[cfg(test)]
pub(crate) fn noise(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::kernels::formats::FORMATS;

    const K: usize = 256;
    const N: usize = 2;

    /// The types that Candle multiplies.
    fn types() -> impl Iterator<Item = GgmlType> {
        FORMATS.iter().map(|format| format.ty).filter(|&ty| candle_product(ty, K).is_some())
    }

    fn quantized(ty: GgmlType) -> (Arc<QTensor>, Vec<f32>) {
        let weights = Tensor::from_vec(noise(1, N * K), (N, K), &Device::Cpu).unwrap();
        let dtype = candle_dtype(ty).unwrap();
        let tensor = Arc::new(QTensor::quantize(&weights, dtype).unwrap());
        let values = tensor.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        (tensor, values)
    }

    fn multiplied(tensor: &Arc<QTensor>, ty: GgmlType, x: &[f32]) -> Vec<f32> {
        let x = Tensor::from_slice(x, (x.len() / K, K), &Device::Cpu).unwrap();
        candle_matmul(tensor, ty, &x).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Against the same product of ordinary magnitudes, whose error is a format's own: a power of two changes no rounding.
    #[test]
    fn magnitudes_change_nothing_but_the_exponent() {
        for ty in types() {
            let (tensor, _) = quantized(ty);
            for one_signed in [false, true] {
                let x: Vec<f32> =
                    noise(2, K).iter().map(|&x| if one_signed { 1.0 + x.abs() / 2.0 } else { x * 1.9 }).collect();
                let ordinary = multiplied(&tensor, ty, &x);
                for exponent in [-60, -20, 12, 17, 30, 100] {
                    let factor = 2f32.powi(exponent);
                    let scaled: Vec<f32> = x.iter().map(|x| x * factor).collect();
                    for (found, ordinary) in multiplied(&tensor, ty, &scaled).iter().zip(&ordinary) {
                        let expected = ordinary * factor;
                        assert!(
                            (found - expected).abs() <= 1e-6 * expected.abs(),
                            "{ty} 2^{exponent}: {found} for {expected}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn values_that_are_not_finite_stay_in_their_token() {
        for ty in types() {
            let (tensor, weights) = quantized(ty);
            for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let clean = noise(3, 3 * K);
                let mut x = clean.clone();
                x[K + 7] = wrong;
                let (y, untouched) = (multiplied(&tensor, ty, &x), multiplied(&tensor, ty, &clean));
                assert_eq!((&y[..N], &y[2 * N..]), (&untouched[..N], &untouched[2 * N..]), "{ty}");
                for (row, y) in y[N..2 * N].iter().enumerate() {
                    let weight = weights[row * K + 7];
                    let expected = wrong * weight;
                    let same = y.is_nan() == expected.is_nan() && (y.is_nan() || *y == expected);
                    assert!(same, "{ty}: {y} for {wrong} times {weight}");
                }
            }
        }
    }

    #[test]
    fn a_large_token_leaves_others_as_they_are() {
        let (tensor, _) = quantized(GgmlType::Q4_1);
        let mut x = noise(4, 2 * K);
        let alone = multiplied(&tensor, GgmlType::Q4_1, &x[K..]);
        x[..K].iter_mut().for_each(|x| *x *= 1e9);
        assert_eq!(multiplied(&tensor, GgmlType::Q4_1, &x)[N..], alone);
    }
}
