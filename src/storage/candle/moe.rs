//! The product of mixtures of experts that `candle_nn::moe` has for CUDA, on any device.

use candle_core::{D, DType, Result, Tensor};

use super::QTensor;

/// `candle_nn::moe::moe_gemm_gguf`: the products of pairs of tokens and experts, `[pairs, n]` f32, in the order of the pairs.
///
/// `input` has a row for each token where there are no `topk_weights`, else one for each of the token's `topk` pairs, whose product is
/// multiplied by the pair's weight. `sorted_token_ids` names pairs in any order, `experts_ids` the expert of each. How many tokens
/// there are says enough of `is_prefill` and `dtype`.
///
/// # Errors
///
/// Where shapes do not fit each other, an id names no pair or no expert, or the device failed.
#[expect(clippy::too_many_arguments, reason = "the arguments of Candle's function")]
pub fn moe_gemm_gguf(
    input: &Tensor,
    weights: &QTensor,
    topk_weights: &Option<Tensor>,
    sorted_token_ids: &Tensor,
    experts_ids: &Tensor,
    topk: usize,
    _is_prefill: bool,
    _dtype: DType,
) -> Result<Tensor> {
    let (rows, k) = input.dims2()?;
    let shared = topk_weights.is_none();
    let pairs = if shared { rows * topk } else { rows };
    if topk == 0 || !pairs.is_multiple_of(topk) {
        candle_core::bail!("{pairs} pairs are not {topk} for each token");
    }
    let words = |ids: &Tensor| ids.to_dtype(DType::U32)?.flatten_all()?.to_vec1::<u32>();
    let (order, experts) = (words(sorted_token_ids)?, words(experts_ids)?);
    if [order.len(), experts.len()] != [pairs; 2] {
        candle_core::bail!("{} pairs and {} experts for {pairs} pairs", order.len(), experts.len());
    }
    let mut ids = vec![u32::MAX; pairs];
    for (&pair, &expert) in order.iter().zip(&experts) {
        match ids.get_mut(pair as usize) {
            Some(id) => *id = expert,
            None => candle_core::bail!("pair {pair} of {pairs}"),
        }
    }
    let tokens = pairs / topk;
    let ids = Tensor::from_vec(ids, (tokens, topk), input.device())?;
    let x = input.reshape((tokens, if shared { 1 } else { topk }, k))?.to_dtype(DType::F32)?;
    let y = weights.indexed_moe_forward(&x, &ids)?.flatten_to(1)?;
    match topk_weights {
        Some(weights) => y.broadcast_mul(&weights.flatten_all()?.to_dtype(DType::F32)?.unsqueeze(D::Minus1)?),
        None => Ok(y),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::gguf::GgmlType;

    const TOPK: usize = 2;

    /// Of a gate, whose rows pairs share, and of what comes after, which is weighed.
    #[test]
    fn pairs_come_in_their_own_order() {
        let of = |values: Vec<f32>, shape: &[usize]| Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
        let experts = of((0..3 * 4 * 32).map(|i| (i % 7) as f32 - 3.0).collect(), &[3, 4, 32]);
        let stack = QTensor::quantize_onto(&experts, GgmlType::F32, &crate::Device::Cpu).unwrap();
        let experts: Vec<Vec<Vec<f32>>> = experts.to_vec3().unwrap();
        let ids = [2u32, 0, 1, 2, 0, 1];
        let (sorted, order) = Tensor::new(&ids, &Device::Cpu).unwrap().sort_last_dim(true).unwrap();
        let weights: Vec<f32> = (0..6).map(|i| 0.25 * i as f32).collect();
        for (rows, shared) in [(3, true), (6, false)] {
            let x: Vec<f32> = (0..rows * 32).map(|i| (i % 5) as f32 - 2.0).collect();
            let topk_weights = (!shared).then(|| of(weights.clone(), &[3, TOPK]));
            let input = of(x.clone(), &[rows, 32]);
            let y = moe_gemm_gguf(&input, &stack, &topk_weights, &order, &sorted, TOPK, true, DType::F32).unwrap();
            let y: Vec<Vec<f32>> = y.to_vec2().unwrap();
            for (pair, &id) in ids.iter().enumerate() {
                let row = &x[if shared { pair / TOPK } else { pair } * 32..][..32];
                let factor = if shared { 1.0 } else { weights[pair] };
                for (n, y) in y[pair].iter().enumerate() {
                    let dot: f32 = experts[id as usize][n].iter().zip(row).map(|(w, x)| w * x).sum();
                    // Small whole numbers, and quarters: exact.
                    assert_eq!(*y, factor * dot);
                }
            }
        }
        let input = of(vec![0.0; 32], &[1, 32]);
        assert!(moe_gemm_gguf(&input, &stack, &None, &order, &sorted, TOPK, true, DType::F32).is_err());
    }
}
