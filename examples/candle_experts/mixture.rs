use std::io::{Read, Seek};

use candle_core::{D, Device, Module, Result, Tensor};

/// A layer's mixture of experts, as in Qwen 3 and Mixtral: for each token the experts of the largest probabilities, whose sum is
/// made 1.
pub struct Mixture {
    router: QMatMul,
    gate: QMatMul,
    up: QMatMul,
    down: QMatMul,
    /// Experts of a token.
    used: usize,
}

impl Mixture {
    pub fn from_gguf<R: Read + Seek>(
        content: &gguf_file::Content,
        reader: &mut R,
        layer: usize,
        device: &Device,
    ) -> Result<Self> {
        let architecture = content.metadata["general.architecture"].to_string()?;
        let used = content.metadata[&format!("{architecture}.expert_used_count")].to_u32()? as usize;
        let mut matrix = |name: &str| {
            QMatMul::from_qtensor(content.tensor(reader, &format!("blk.{layer}.{name}.weight"), device)?)
        };
        Ok(Self {
            router: matrix("ffn_gate_inp")?,
            gate: matrix("ffn_gate_exps")?,
            up: matrix("ffn_up_exps")?,
            down: matrix("ffn_down_exps")?,
            used,
        })
    }

    /// The mixture of `x`, `[tokens, width]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (weights, ids) = self.route(x)?;
        let x = x.unsqueeze(1)?;
        let hidden = (self.gate.indexed_moe_forward(&x, &ids)?.silu()? * self.up.indexed_moe_forward(&x, &ids)?)?;
        let each = self.down.indexed_moe_forward(&hidden, &ids)?;
        each.broadcast_mul(&weights.unsqueeze(2)?)?.sum(1)
    }

    /// The weights of each token's experts, and which they are: both `[tokens, used]`.
    pub fn route(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let logits = self.router.forward(x)?;
        let ids = logits.arg_sort_last_dim(false)?.narrow(D::Minus1, 0, self.used)?.contiguous()?;
        let chosen = logits.gather(&ids, D::Minus1)?;
        // The softmax over the chosen is that over all, made to sum to 1.
        let weights = chosen.broadcast_sub(&chosen.max_keepdim(D::Minus1)?)?.exp()?;
        Ok((weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?, ids))
    }
}
