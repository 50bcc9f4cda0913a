//! [`HostMatrix`], [`HostExperts`]: weights on the host, which Candle's kernels multiply.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::Tensor;
use half::f16;

use crate::Result;
use crate::gguf::GgmlType;
use crate::kernels::accuracy::Accuracy;
use crate::kernels::formats::{CHUNK, Format};
use crate::kernels::ops::Arithmetic;
use crate::kernels::weights::GgufMatrix;
use crate::storage::Device;
use crate::storage::candle::{QTensor, is_repacked};

/// What is done to products: they are scaled, then biased.
#[derive(Clone, Debug)]
struct Companions {
    /// A factor of all rows, or one an expert.
    scales: Option<Vec<f32>>,
    /// A value for each row, of each expert.
    biases: Option<Vec<f32>>,
}

impl Companions {
    /// Turns the sums of an expert, or of the only matrix, into products.
    fn finish(&self, sums: &mut [f32], expert: usize) {
        if let Some(scales) = &self.scales {
            sums.iter_mut().for_each(|sum| *sum *= scales[expert]);
        }
        if let Some(biases) = &self.biases {
            let biases = &biases[expert * sums.len()..];
            sums.iter_mut().zip(biases).for_each(|(sum, bias)| *sum += bias);
        }
    }
}

/// A matrix in host memory.
#[derive(Clone, Debug)]
pub struct HostMatrix {
    tensor: Arc<QTensor>,
    n: usize,
    has_tiles: bool,
    /// Whether Candle rounds activations to int8 codes with a scale for each [`CODED`] of them.
    rounds_coarsely: bool,
    companions: Companions,
}

/// Values of a block of Q8_K, which has one scale.
const CODED: usize = 256;

/// The most that a row may lose as such blocks, as a part of its length. A value far above the others of its block, as there are in
/// front of many models' second feed-forward matrix, would cost the others most of their bits.
const LOSS: f32 = 1.0 / 64.0;

/// Rows of activations from which on the weights' values are multiplied sooner than their codes, where Candle has no tiles.
/// (Measured for Q5_0 and Q8_0 of 640 columns on two cores with AVX-512.)
const MANY: usize = 32;

/// Rows of weights whose values are in memory at a time.
const STRIPE: usize = 1024;

impl HostMatrix {
    /// A matrix of a file, with products that are scaled and biased.
    pub fn load(matrix: GgufMatrix<'_>, scales: Option<Vec<f32>>, biases: Option<Vec<f32>>) -> Result<Self> {
        let (n, k) = (matrix.n, matrix.k);
        let tensor = Arc::new(tensor(matrix, &[n, k])?);
        // Candle multiplies many rows of activations by tiles of what it repacks.
        let has_tiles = is_repacked(tensor.dtype(), n, k);
        let accuracy = tensor.accuracy(1, Arithmetic::Auto);
        let rounds_coarsely = matches!(accuracy, Accuracy::Int8 { block: CODED, .. });
        Ok(Self { tensor, n, has_tiles, rounds_coarsely, companions: Companions { scales, biases } })
    }

    /// Rows.
    pub fn n(&self) -> usize {
        self.n
    }

    /// The rows of tokens, of an embedding.
    pub fn rows(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let ids = Tensor::new(ids, &candle_core::Device::Cpu)?;
        Ok(self.tensor.embedding(&ids)?.flatten_all()?.to_vec1()?)
    }

    /// `rows` rows times the transpose of the matrix.
    pub fn product(&self, x: &[f32], rows: usize) -> Result<Vec<f32>> {
        match rows >= MANY && !self.has_tiles {
            true => self.product_closely(x, rows),
            false => self.product_of_codes(x, rows),
        }
    }

    /// The same by Candle's products of int8, those of few rows that would lose too much in two parts. (Of prompts that would cost a
    /// third of their speed; of one token it is 4%.)
    fn product_of_codes(&self, x: &[f32], rows: usize) -> Result<Vec<f32>> {
        let k = x.len() / rows;
        let (mut parts, mut rests, mut of_rests) = (x.to_vec(), Vec::new(), Vec::new());
        if self.rounds_coarsely && rows < MANY {
            for (row, values) in parts.chunks_exact_mut(k).enumerate() {
                if let Some(rest) = split_off_rest(values) {
                    rests.extend(rest);
                    of_rests.push(row);
                }
            }
        }
        parts.extend(rests);
        let x = Tensor::from_vec(parts, (rows + of_rests.len(), k), &candle_core::Device::Cpu)?;
        let mut sums = self.tensor.matmul_t(&x, Arithmetic::Auto)?.flatten_all()?.to_vec1::<f32>()?;
        let sums_of_rests = sums.split_off(rows * self.n);
        for (row, rest) in of_rests.into_iter().zip(sums_of_rests.chunks_exact(self.n.max(1))) {
            sums[row * self.n..][..self.n].iter_mut().zip(rest).for_each(|(sum, rest)| *sum += rest);
        }
        Ok(self.finished(sums))
    }

    /// The same by products of f32.
    pub fn product_closely(&self, x: &[f32], rows: usize) -> Result<Vec<f32>> {
        let x = Tensor::from_slice(x, (rows, x.len() / rows), &candle_core::Device::Cpu)?;
        // The values of some rows of weights at a time.
        let stripe = |first: usize| {
            let ids = Tensor::arange(first as u32, (first + STRIPE).min(self.n) as u32, x.device())?;
            x.matmul(&self.tensor.embedding(&ids)?.t()?)
        };
        let stripes: Vec<Tensor> = (0..self.n).step_by(STRIPE).map(stripe).collect::<candle_core::Result<_>>()?;
        Ok(self.finished(Tensor::cat(&stripes, 1)?.flatten_all()?.to_vec1()?))
    }

    fn finished(&self, mut sums: Vec<f32>) -> Vec<f32> {
        sums.chunks_exact_mut(self.n.max(1)).for_each(|sums| self.companions.finish(sums, 0));
        sums
    }
}

/// Rounds a row to what blocks of [`CODED`] codes hold, and gives what that leaves of each value; `None`, with the row as it was,
/// where that is little, or where a value is not finite.
fn split_off_rest(row: &mut [f32]) -> Option<Vec<f32>> {
    let largest = |block: &[f32]| block.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let squares: f32 = row.iter().map(|x| x * x).sum();
    // A step is a 128th of the largest value, and the error spread evenly over it: a twelfth of its square for each value.
    let lost: f32 = row.chunks(CODED).map(|block| (largest(block) / 128.0).powi(2) / 12.0 * block.len() as f32).sum();
    if !(lost.is_finite() && squares.is_finite() && lost > LOSS * LOSS * squares) {
        return None;
    }
    let mut rests = vec![0.0; row.len()];
    for (block, rests) in row.chunks_mut(CODED).zip(rests.chunks_mut(CODED)) {
        let step = largest(block) / 128.0;
        if step > 0.0 {
            for (x, rest) in block.iter_mut().zip(rests) {
                let rounded = (*x / step).round() * step;
                *rest = *x - rounded;
                *x = rounded;
            }
        }
    }
    Some(rests)
}

/// A stack of experts in host memory.
#[derive(Debug)]
pub struct HostExperts {
    tensor: QTensor,
    /// Rows of an expert.
    n: usize,
    companions: Companions,
}

impl HostExperts {
    /// A stack of a file, whose experts are one after the other, with products that are scaled by a factor an expert and biased.
    pub fn load(
        matrix: GgufMatrix<'_>,
        experts: usize,
        scales: Option<Vec<f32>>,
        biases: Option<Vec<f32>>,
    ) -> Result<Self> {
        let (n, k) = (matrix.n / experts.max(1), matrix.k);
        Ok(Self { tensor: tensor(matrix, &[experts, n, k])?, n, companions: Companions { scales, biases } })
    }

    /// Rows of an expert.
    pub fn n(&self) -> usize {
        self.n
    }

    /// The products of each pair of tokens and experts, of which a token has `slots`; `x` has a row for each token or for each pair.
    pub fn products(&self, x: &[f32], width: usize, pairs: HostPairs<'_>) -> Result<Vec<f32>> {
        let HostPairs { ids, slots } = pairs;
        let (host, tokens) = (candle_core::Device::Cpu, ids.len() / slots);
        let rows = Tensor::from_slice(x, (tokens, x.len() / width / tokens, width), &host)?;
        let named = Tensor::from_slice(ids, (tokens, slots), &host)?;
        let mut out = self.tensor.indexed_moe_forward(&rows, &named)?.flatten_all()?.to_vec1::<f32>()?;
        for (sums, &id) in out.chunks_exact_mut(self.n.max(1)).zip(ids) {
            self.companions.finish(sums, id as usize);
        }
        Ok(out)
    }
}

/// The experts of some tokens, `slots` for each.
#[derive(Clone, Copy, Debug)]
pub struct HostPairs<'a> {
    pub ids: &'a [u32],
    pub slots: usize,
}

/// The weights of a file as a tensor of a shape, in a format that Candle multiplies fast.
fn tensor(matrix: GgufMatrix<'_>, shape: &[usize]) -> Result<QTensor> {
    let (format, data) = matrix.little_endian()?;
    let (ty, data) = match matrix.ty {
        // Candle's kernels of the one are not vectorized, of the other it has none.
        GgmlType::Q5_0 | GgmlType::IQ4NL => (GgmlType::Q8_0, Cow::Owned(as_q8_0(format, &data))),
        ty => (ty, data),
    };
    Ok(QTensor::from_gguf(ty, data, shape, &Device::Cpu)?)
}

/// The same values in Q8_0, of blocks that begin with their scale, an f16, and whose values are whole multiples of it.
fn as_q8_0(format: &Format, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len() / format.ty.block_bytes() * GgmlType::Q8_0.block_bytes());
    let (mut values, mut unit) = ([0.0; CHUNK], Vec::new());
    for block in data.chunks_exact(format.ty.block_bytes()) {
        let (scale, codes) = block.split_at(size_of::<f16>());
        unit.clear();
        unit.extend_from_slice(&f16::ONE.to_le_bytes());
        unit.extend_from_slice(codes);
        (format.dequantize)(&unit, &mut values);
        out.extend_from_slice(scale);
        out.extend(values.iter().map(|&value| value as i8 as u8));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Endian;
    use crate::kernels::formats::format;
    use crate::storage::candle::noise;

    /// Values of which one is a hundred times the others: multiplied at once, their products are off by more than this bound.
    #[test]
    fn values_beside_a_large_one_keep_their_bits() {
        let (n, k, rows) = (16, 2 * CODED, 3);
        let host = candle_core::Device::Cpu;
        let weights = Tensor::from_vec(noise(1, n * k), (n, k), &host).unwrap();
        let weights = QTensor::quantize_onto(&weights, GgmlType::Q4K, &Device::Cpu).unwrap();
        let data = weights.data().unwrap();
        let matrix = GgufMatrix { ty: GgmlType::Q4K, n, k, data: &data, endian: Endian::Little };
        let matrix = HostMatrix::load(matrix, None, None).unwrap();
        let mut x = noise(2, rows * k);
        (x[k + 7], x[k + CODED + 9], x[2 * k]) = (100.0, -100.0, f32::NAN);
        let found = matrix.product(&x, rows).unwrap();
        let at_once = Tensor::from_slice(&x, (rows, k), &host).unwrap();
        let at_once = weights.matmul_t(&at_once, Arithmetic::Auto).unwrap().flatten_all().unwrap();
        let at_once = at_once.to_vec1::<f32>().unwrap();
        let values = weights.dequantize(&host).unwrap().to_vec2::<f32>().unwrap();
        // A step of the values is a 128th of the largest, and one of what it leaves a 256th of that.
        let step = 100.0 / 128.0 / 256.0;
        let mut worst = 0.0f64;
        for (i, weights) in values.iter().enumerate() {
            let products = || weights.iter().zip(&x[k..2 * k]).map(|(&w, &x)| f64::from(w) * f64::from(x));
            let bound = step * weights.iter().map(|w| f64::from(w.abs())).sum::<f64>()
                + 1e-6 * products().map(f64::abs).sum::<f64>();
            let exact: f64 = products().sum();
            let off = |sum: f32| (f64::from(sum) - exact).abs();
            assert!(off(found[n + i]) <= bound, "row {i}: {} for {exact}, bound {bound}", found[n + i]);
            worst = worst.max(off(at_once[n + i]) / bound);
        }
        assert!(worst > 2.0, "at once they are off by {worst} bounds");
        assert_eq!(found[..n], at_once[..n], "a row without a large value");
        assert!(found[2 * n..].iter().all(|sum| sum.is_nan()), "a row with a NaN");
    }

    #[test]
    fn two_parts_of_a_row_are_the_row() {
        let mut row = noise(3, 2 * CODED);
        row[300] = 80.0;
        row[..CODED].fill(0.0);
        let mut rounded = row.clone();
        let rest = split_off_rest(&mut rounded).unwrap();
        for ((&x, &rounded), &rest) in row.iter().zip(&rounded).zip(&rest) {
            assert!(rest.abs() <= 80.0 / 256.0, "{rest} of {x}");
            approx::assert_abs_diff_eq!(x, rounded + rest, epsilon = 1e-5);
        }
        for ordinary in [noise(4, 2 * CODED), vec![0.0; CODED], vec![f32::INFINITY; CODED], vec![f32::NAN; CODED]] {
            let mut kept = ordinary.clone();
            assert!(split_off_rest(&mut kept).is_none());
            assert_eq!(format!("{kept:?}"), format!("{ordinary:?}"));
        }
    }

    #[test]
    fn values_stay_the_same_in_q8_0() {
        for ty in [GgmlType::Q5_0, GgmlType::IQ4NL] {
            let from = format(ty).unwrap();
            let mut state = 1u32;
            let mut block = vec![0; 64 * ty.block_bytes()];
            for byte in &mut block {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *byte = (state >> 24) as u8;
            }
            for block in block.chunks_exact_mut(ty.block_bytes()) {
                // A finite scale.
                block[1] &= 0x3f;
            }
            let dequantized = |format: &Format, data: &[u8]| {
                let mut values = vec![0.0; 64 * CHUNK];
                format.dequantize_blocks(data, &mut values);
                values
            };
            let to = format(GgmlType::Q8_0).unwrap();
            assert_eq!(dequantized(to, &as_q8_0(from, &block)), dequantized(from, &block), "{ty}");
        }
    }
}
