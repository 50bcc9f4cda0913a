// A quantized Gemma 3 in Candle's style. It is included below an import of `QMatMul`, `QTensor` and `gguf_file`, from Candle
// or from cube-gguf, and knows no more of them than Candle's names.

use std::io::{Read, Seek};
use std::sync::Arc;

use candle_core::{D, DType, Device, Module, Result, Tensor};

/// Every so many layers attend to all positions, the others to a window.
const GLOBAL_EVERY: usize = 6;
/// RoPE's base in the layers with a window.
const LOCAL_BASE: f64 = 10_000.0;

/// A file that is being read.
struct Source<'a, R> {
    content: &'a gguf_file::Content,
    reader: &'a mut R,
    device: &'a Device,
}

impl<R: Read + Seek> Source<'_, R> {
    fn value(&self, key: &str) -> Result<&gguf_file::Value> {
        match self.content.metadata.get(&format!("gemma3.{key}")) {
            Some(value) => Ok(value),
            None => candle_core::bail!("no metadata key gemma3.{key}"),
        }
    }

    fn count(&self, key: &str) -> Result<usize> {
        Ok(self.value(key)?.to_u32()? as usize)
    }

    fn tensor(&mut self, name: &str) -> Result<QTensor> {
        self.content.tensor(self.reader, &format!("{name}.weight"), self.device)
    }

    fn layer(&mut self, name: &str) -> Result<QMatMul> {
        QMatMul::from_qtensor(self.tensor(name)?)
    }

    fn norm(&mut self, name: &str) -> Result<Norm> {
        let epsilon = self.value("attention.layer_norm_rms_epsilon")?.to_f32()?;
        Ok(Norm { weight: self.tensor(name)?.dequantize(self.device)?, epsilon: epsilon as f64 })
    }
}

/// A norm by the root of the mean square, over the last extent.
struct Norm {
    weight: Tensor,
    epsilon: f64,
}

impl Norm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
        x.broadcast_div(&(mean + self.epsilon)?.sqrt()?)?.broadcast_mul(&self.weight)
    }
}

struct Attention {
    q: QMatMul,
    k: QMatMul,
    v: QMatMul,
    output: QMatMul,
    q_norm: Norm,
    k_norm: Norm,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    rope_base: f64,
    window: Option<usize>,
    /// Keys and values of all positions so far, `[kv_heads, positions, head_dim]`.
    cache: Option<(Tensor, Tensor)>,
}

impl Attention {
    /// `x` `[tokens, hidden]`, whose first token is at `position`.
    fn forward(&mut self, x: &Tensor, position: usize) -> Result<Tensor> {
        let tokens = x.dim(0)?;
        let split = |x: Tensor, heads: usize| x.reshape((tokens, heads, self.head_dim));
        let q = self.q_norm.forward(&split(self.q.forward(x)?, self.heads)?)?;
        let k = self.k_norm.forward(&split(self.k.forward(x)?, self.kv_heads)?)?;
        let v = split(self.v.forward(x)?, self.kv_heads)?.transpose(0, 1)?;
        let q = self.rotate(&q.transpose(0, 1)?, position)?;
        let k = self.rotate(&k.transpose(0, 1)?, position)?;
        let (k, v) = match &self.cache {
            Some((keys, values)) => (Tensor::cat(&[keys, &k], 1)?, Tensor::cat(&[values, &v.contiguous()?], 1)?),
            None => (k, v.contiguous()?),
        };
        self.cache = Some((k.clone(), v.clone()));

        // Query heads of one key head are rows of one product.
        let positions = k.dim(1)?;
        let grouped = (self.kv_heads, self.heads / self.kv_heads * tokens, ());
        let scores = (q.contiguous()?.reshape(grouped)?.matmul(&k.t()?)? / (self.head_dim as f64).sqrt())?;
        let scores = scores.reshape((self.heads, tokens, positions))?;
        let scores = scores.broadcast_add(&self.mask(tokens, positions, x.device())?)?;
        let weights = softmax(&scores)?.reshape(grouped)?;
        let y = weights.matmul(&v)?.reshape((self.heads, tokens, self.head_dim))?;
        self.output.forward(&y.transpose(0, 1)?.reshape((tokens, ()))?)
    }

    /// Rotates the pairs of `x` `[heads, tokens, head_dim]`, which are half a head apart, by their positions.
    fn rotate(&self, x: &Tensor, position: usize) -> Result<Tensor> {
        let (tokens, half) = (x.dim(1)?, self.head_dim / 2);
        let turn = |i: usize| self.rope_base.powf(-(i as f64) / half as f64);
        let angles: Vec<f32> = (position..position + tokens)
            .flat_map(|position| (0..half).map(move |i| (position as f64 * turn(i)) as f32))
            .collect();
        let angles = Tensor::from_vec(angles, (tokens, half), x.device())?;
        let (cos, sin) = (angles.cos()?, angles.sin()?);
        let (a, b) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
        let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
        Tensor::cat(&[first, second], D::Minus1)
    }

    /// `[tokens, positions]`: 0 where a token may look, minus infinity elsewhere.
    fn mask(&self, tokens: usize, positions: usize, device: &Device) -> Result<Tensor> {
        let window = self.window.unwrap_or(usize::MAX);
        let allowed = |token: usize, position: usize| position <= token && token - position < window;
        let mask: Vec<f32> = (positions - tokens..positions)
            .flat_map(|token| (0..positions).map(move |p| if allowed(token, p) { 0.0 } else { f32::NEG_INFINITY }))
            .collect();
        Tensor::from_vec(mask, (tokens, positions), device)
    }
}

/// Over the last extent.
fn softmax(x: &Tensor) -> Result<Tensor> {
    let exp = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?.exp()?;
    exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)
}

struct Layer {
    attention: Attention,
    before_attention: Norm,
    after_attention: Norm,
    gate: QMatMul,
    up: QMatMul,
    down: QMatMul,
    before_feed_forward: Norm,
    after_feed_forward: Norm,
}

impl Layer {
    fn forward(&mut self, x: &Tensor, position: usize) -> Result<Tensor> {
        let y = self.attention.forward(&self.before_attention.forward(x)?, position)?;
        let x = (x + self.after_attention.forward(&y)?)?;
        let y = self.before_feed_forward.forward(&x)?;
        let y = (self.gate.forward(&y)?.gelu()? * self.up.forward(&y)?)?;
        &x + self.after_feed_forward.forward(&self.down.forward(&y)?)?
    }
}

/// Gemma 3, with what it has seen so far.
pub struct Model {
    embedding: Arc<QTensor>,
    hidden: usize,
    layers: Vec<Layer>,
    norm: Norm,
    output: QMatMul,
}

impl Model {
    /// Reads the weights of a file whose header is `content`.
    pub fn from_gguf<R: Read + Seek>(content: &gguf_file::Content, reader: &mut R, device: &Device) -> Result<Self> {
        let mut source = Source { content, reader, device };
        let hidden = source.count("embedding_length")?;
        let heads = source.count("attention.head_count")?;
        let kv_heads = source.count("attention.head_count_kv")?;
        let head_dim = source.count("attention.key_length")?;
        let window = source.count("attention.sliding_window")?;
        let global_base = source.value("rope.freq_base")?.to_f32()? as f64;
        let mut layers = Vec::new();
        for i in 0..source.count("block_count")? {
            let name = |part: &str| format!("blk.{i}.{part}");
            let is_global = (i + 1) % GLOBAL_EVERY == 0;
            let attention = Attention {
                q: source.layer(&name("attn_q"))?,
                k: source.layer(&name("attn_k"))?,
                v: source.layer(&name("attn_v"))?,
                output: source.layer(&name("attn_output"))?,
                q_norm: source.norm(&name("attn_q_norm"))?,
                k_norm: source.norm(&name("attn_k_norm"))?,
                heads,
                kv_heads,
                head_dim,
                rope_base: if is_global { global_base } else { LOCAL_BASE },
                window: (!is_global).then_some(window),
                cache: None,
            };
            layers.push(Layer {
                attention,
                before_attention: source.norm(&name("attn_norm"))?,
                after_attention: source.norm(&name("post_attention_norm"))?,
                gate: source.layer(&name("ffn_gate"))?,
                up: source.layer(&name("ffn_up"))?,
                down: source.layer(&name("ffn_down"))?,
                before_feed_forward: source.norm(&name("ffn_norm"))?,
                after_feed_forward: source.norm(&name("post_ffw_norm"))?,
            });
        }
        let embedding = Arc::new(source.tensor("token_embd")?);
        let output = match content.tensor_infos.contains_key("output.weight") {
            true => source.layer("output")?,
            false => QMatMul::from_arc(embedding.clone())?,
        };
        Ok(Self { embedding, hidden, layers, norm: source.norm("output_norm")?, output })
    }

    /// The logits `[vocabulary]` after `tokens`, the first of which is at `position`.
    pub fn forward(&mut self, tokens: &[u32], position: usize, device: &Device) -> Result<Tensor> {
        let ids = Tensor::new(tokens, device)?;
        let mut x = (self.embedding.embedding(&ids)? * (self.hidden as f64).sqrt())?;
        for layer in &mut self.layers {
            x = layer.forward(&x, position)?;
        }
        let last = self.norm.forward(&x.narrow(0, tokens.len() - 1, 1)?)?;
        self.output.forward(&last)?.to_dtype(DType::F32)?.squeeze(0)
    }
}
