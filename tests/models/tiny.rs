//! Tiny random models, written as GGUF files.

use cube_gguf::gguf::{GgmlType, Writer};

pub const CONTEXT: usize = 32;
pub const VOCABULARY: usize = 40;
pub const D_MODEL: usize = 64;
/// Where a model has a context from before its scaling.
pub const ORIGINAL_CONTEXT: usize = 16;
/// What turned values of LongRoPE are multiplied by.
pub const MAGNITUDE: f32 = 1.25;

/// A model of f32 tensors.
#[derive(Clone, Copy)]
pub struct Tiny {
    pub name: &'static str,
    pub architecture: &'static str,
    pub context: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head: usize,
    /// Features of the feed-forward block, by the hyperparameters.
    pub hidden: usize,
    /// And by the tensors, where these differ.
    pub written_hidden: Option<usize>,
    pub base: f32,
    /// The factor of a linear scaling of positions.
    pub factor: Option<f32>,
    /// Whether that scaling is YaRN's.
    pub yarn: bool,
    /// Whether pairs have factors of their own.
    pub pair_factors: bool,
    /// Whether they have others in longer runs.
    pub long_factors: bool,
    /// Whether q, k and v are one matrix, and gate and up another.
    pub fused: bool,
    pub window: Option<usize>,
    /// What bounds scores and logits.
    pub softcaps: Option<[f32; 2]>,
    pub biases: bool,
    pub head_norms: bool,
    pub after_norms: bool,
    pub tied: bool,
    /// Experts of a feed-forward block, and those of a token.
    pub experts: Option<(usize, usize)>,
    /// Whether each expert has a factor.
    pub scales: bool,
    /// Whether all products have biases, attention has sinks and the norm before a feed-forward block another name.
    pub gpt_oss: bool,
    /// A tensor that is left out.
    pub without: Option<&'static str>,
}

const LLAMA: Tiny = Tiny {
    name: "llama",
    architecture: "llama",
    context: CONTEXT,
    layers: 2,
    heads: 4,
    kv_heads: 2,
    head: 16,
    hidden: 96,
    written_hidden: None,
    base: 10_000.0,
    factor: None,
    yarn: false,
    pair_factors: false,
    long_factors: false,
    fused: false,
    window: None,
    softcaps: None,
    biases: false,
    head_norms: false,
    after_norms: false,
    tied: false,
    experts: None,
    scales: false,
    gpt_oss: false,
    without: None,
};

impl Tiny {
    pub const ALL: [Self; 10] = [
        LLAMA,
        Self { name: "llama 3", pair_factors: true, base: 500_000.0, kv_heads: 1, ..LLAMA },
        Self { name: "qwen 2", architecture: "qwen2", biases: true, tied: true, factor: Some(4.0), ..LLAMA },
        Self {
            name: "qwen 3",
            architecture: "qwen3",
            head_norms: true,
            head: 32,
            factor: Some(4.0),
            yarn: true,
            ..LLAMA
        },
        Self { name: "phi 3", architecture: "phi3", fused: true, long_factors: true, ..LLAMA },
        Self {
            name: "gemma 2",
            architecture: "gemma2",
            layers: 4,
            after_norms: true,
            tied: true,
            window: Some(3),
            softcaps: Some([1.5, 2.0]),
            ..LLAMA
        },
        Self {
            name: "gemma 3",
            architecture: "gemma3",
            layers: 6,
            head_norms: true,
            after_norms: true,
            tied: true,
            window: Some(3),
            base: 1_000_000.0,
            ..LLAMA
        },
        Self { name: "mixtral", experts: Some((4, 2)), ..LLAMA },
        Self {
            name: "qwen 3 mixture",
            architecture: "qwen3moe",
            head_norms: true,
            experts: Some((8, 3)),
            scales: true,
            ..LLAMA
        },
        Self {
            name: "gpt-oss",
            architecture: "gpt-oss",
            layers: 3,
            biases: true,
            experts: Some((5, 2)),
            gpt_oss: true,
            window: Some(3),
            factor: Some(4.0),
            yarn: true,
            ..LLAMA
        },
    ];

    /// The tensors with their shapes, outermost first.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (queries, kv) = (self.heads * self.head, self.kv_heads * self.head);
        let hidden = self.written_hidden.unwrap_or(self.hidden);
        let mut all = vec![("token_embd.weight".to_owned(), vec![VOCABULARY, D_MODEL])];
        let mut add = |name: String, shape: &[usize]| all.push((name, shape.to_vec()));
        for i in 0..self.layers {
            let name = |part: &str| format!("blk.{i}.{part}");
            let separate = [("attn_q", queries), ("attn_k", kv), ("attn_v", kv)];
            let fused = [("attn_qkv", queries + 2 * kv)];
            for &(part, outputs) in if self.fused { &fused[..] } else { &separate[..] } {
                add(name(&format!("{part}.weight")), &[outputs, D_MODEL]);
                if self.biases {
                    add(name(&format!("{part}.bias")), &[outputs]);
                }
            }
            add(name("attn_output.weight"), &[D_MODEL, queries]);
            if self.gpt_oss {
                add(name("attn_output.bias"), &[D_MODEL]);
                add(name("attn_sinks.weight"), &[self.heads]);
            }
            if let Some((experts, _)) = self.experts {
                add(name("ffn_gate_inp.weight"), &[experts, D_MODEL]);
                if self.gpt_oss {
                    add(name("ffn_gate_inp.bias"), &[experts]);
                }
                for (part, n, k) in [("gate", hidden, D_MODEL), ("up", hidden, D_MODEL), ("down", D_MODEL, hidden)] {
                    add(name(&format!("ffn_{part}_exps.weight")), &[experts, n, k]);
                    if self.gpt_oss {
                        add(name(&format!("ffn_{part}_exps.bias")), &[experts, n]);
                    }
                    if self.scales {
                        add(name(&format!("ffn_{part}_exps.scale")), &[experts]);
                    }
                }
            } else {
                if !self.fused {
                    add(name("ffn_gate.weight"), &[hidden, D_MODEL]);
                }
                add(name("ffn_up.weight"), &[if self.fused { 2 * hidden } else { hidden }, D_MODEL]);
                add(name("ffn_down.weight"), &[D_MODEL, hidden]);
            }
            add(name("attn_norm.weight"), &[D_MODEL]);
            add(name(if self.gpt_oss { "post_attention_norm.weight" } else { "ffn_norm.weight" }), &[D_MODEL]);
            if self.head_norms {
                add(name("attn_q_norm.weight"), &[self.head]);
                add(name("attn_k_norm.weight"), &[self.head]);
            }
            if self.after_norms {
                add(name("post_attention_norm.weight"), &[D_MODEL]);
                add(name("post_ffw_norm.weight"), &[D_MODEL]);
            }
        }
        add("output_norm.weight".to_owned(), &[D_MODEL]);
        if !self.tied {
            add("output.weight".to_owned(), &[VOCABULARY, D_MODEL]);
        }
        if self.pair_factors {
            add("rope_freqs.weight".to_owned(), &[self.head / 2]);
        }
        if self.long_factors {
            add("rope_factors_short.weight".to_owned(), &[self.head / 2]);
            add("rope_factors_long.weight".to_owned(), &[self.head / 2]);
        }
        all.retain(|(name, _)| Some(name.as_str()) != self.without);
        all
    }

    /// The values of a tensor: around 1 for norms and factors, else small enough that sums stay near 1.
    pub fn values(name: &str, shape: &[usize]) -> Vec<f32> {
        let seed = name.bytes().fold(0x2545_f491_u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
        let mut state = seed | 1;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        let count = shape.iter().product();
        let (middle, spread) = match shape {
            [_] if name.ends_with("bias") => (0.0, 0.5),
            [_] => (1.5, 0.5),
            // Wide enough that rounding turns no choice between experts.
            [_, k] if name.ends_with("gate_inp.weight") => (0.0, 8.0 / (*k as f32).sqrt()),
            [_, .., k] => (0.0, 1.5 / (*k as f32).sqrt()),
            [] => (0.0, 1.0),
        };
        (0..count).map(|_| middle + spread * random()).collect()
    }

    /// The file.
    #[allow(dead_code, reason = "the command's tests have more to write")]
    pub fn file(&self) -> Vec<u8> {
        self.file_with(|_| ())
    }

    /// The file with what `more` writes into its metadata.
    pub fn file_with(&self, more: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut writer = Writer::new();
        more(&mut writer);
        writer.metadata("general.architecture", self.architecture).unwrap();
        let mut number = |name: &str, value: usize| {
            writer.metadata(&format!("{}.{name}", self.architecture), value as u32).unwrap();
        };
        number("context_length", self.context);
        number("embedding_length", D_MODEL);
        number("block_count", self.layers);
        number("feed_forward_length", self.hidden);
        number("attention.head_count", self.heads);
        number("attention.head_count_kv", self.kv_heads);
        number("attention.key_length", self.head);
        number("attention.value_length", self.head);
        if let Some((experts, slots)) = self.experts {
            number("expert_count", experts);
            number("expert_used_count", slots);
            if self.architecture != "llama" {
                number("expert_feed_forward_length", self.hidden);
            }
        }
        if let Some(window) = self.window {
            number("attention.sliding_window", window);
        }
        if self.yarn || self.long_factors {
            number("rope.scaling.original_context_length", ORIGINAL_CONTEXT);
        }
        let key = |name: &str| format!("{}.{name}", self.architecture);
        if self.long_factors {
            writer.metadata(&key("rope.scaling.attn_factor"), MAGNITUDE).unwrap();
        }
        writer.metadata(&key("attention.layer_norm_rms_epsilon"), 1e-6f32).unwrap();
        writer.metadata(&key("rope.freq_base"), self.base).unwrap();
        if let Some([scores, logits]) = self.softcaps {
            writer.metadata(&key("attn_logit_softcapping"), scores).unwrap();
            writer.metadata(&key("final_logit_softcapping"), logits).unwrap();
        }
        if let Some(factor) = self.factor {
            writer.metadata(&key("rope.scaling.type"), if self.yarn { "yarn" } else { "linear" }).unwrap();
            writer.metadata(&key("rope.scaling.factor"), factor).unwrap();
        }
        let tensors = self.tensors();
        for (name, shape) in &tensors {
            let dims: Vec<u64> = shape.iter().rev().map(|&extent| extent as u64).collect();
            writer.tensor(name, &dims, GgmlType::F32).unwrap();
        }
        let mut data = writer.begin(Vec::new()).unwrap();
        for (name, shape) in &tensors {
            let bytes: Vec<u8> = Self::values(name, shape).into_iter().flat_map(f32::to_le_bytes).collect();
            data.data(&bytes).unwrap();
        }
        data.finish().unwrap()
    }
}
