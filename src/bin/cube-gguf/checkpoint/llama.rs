//! LLaMA, Mistral and Mixtral.

use std::error::Error;
use std::f32::consts::TAU;

use super::architecture::{Architecture, Change, Extent::*, Presence, Rule, Sizes, Vectors, Vocabulary};
use super::config::Config;
use super::metadata::{Keys, Rope, parameters};
use crate::Outcome;

pub const LLAMA: Architecture = Architecture {
    name: "llama",
    classes: &["LlamaForCausalLM"],
    defaults: &[("max_position_embeddings", 2048.0), ("rms_norm_eps", 1e-6), ("rope_theta", 10_000.0)],
    is_tied: false,
    has_head_width: true,
    ends: ENDS,
    layer: &[ATTENTION, NORMS, FEED_FORWARD],
    skipped: &[],
    vocabulary: Vocabulary::Llama,
    parameters: of_llama,
    vectors: factors,
};

pub const MISTRAL: Architecture = Architecture {
    classes: &["MistralForCausalLM"],
    defaults: &[
        ("max_position_embeddings", 131_072.0),
        ("num_key_value_heads", 8.0),
        ("rms_norm_eps", 1e-6),
        ("rope_theta", 10_000.0),
    ],
    has_head_width: false,
    ..LLAMA
};

pub const MIXTRAL: Architecture = Architecture {
    classes: &["MixtralForCausalLM"],
    defaults: &[
        ("max_position_embeddings", 131_072.0),
        ("num_key_value_heads", 8.0),
        ("num_experts_per_tok", 2.0),
        ("num_local_experts", 8.0),
        ("rms_norm_eps", 1e-5),
        ("rope_theta", 1_000_000.0),
    ],
    has_head_width: false,
    layer: &[ATTENTION, NORMS, EXPERTS],
    ..LLAMA
};

/// The tensors around the layers.
pub const ENDS: &[Rule] = &[
    Rule::new("model.embed_tokens.weight", "token_embd.weight", &[Tokens, Hidden]),
    Rule::new("model.norm.weight", "output_norm.weight", &[Hidden]),
    Rule { presence: Presence::Untied, ..Rule::new("lm_head.weight", "output.weight", &[Tokens, Hidden]) },
];

const ATTENTION: &[Rule] = &[
    Rule::new("self_attn.q_proj.weight", "attn_q.weight", &[Queries, Hidden]).with(Change::Halves),
    Rule::new("self_attn.k_proj.weight", "attn_k.weight", &[Keys, Hidden]).with(Change::Halves),
    Rule::new("self_attn.v_proj.weight", "attn_v.weight", &[Keys, Hidden]),
    Rule::new("self_attn.o_proj.weight", "attn_output.weight", &[Hidden, Queries]),
    Rule::new("self_attn.q_proj.bias", "attn_q.bias", &[Queries]).with(Change::Halves).optional(),
    Rule::new("self_attn.k_proj.bias", "attn_k.bias", &[Keys]).with(Change::Halves).optional(),
    Rule::new("self_attn.v_proj.bias", "attn_v.bias", &[Keys]).optional(),
    Rule::new("self_attn.o_proj.bias", "attn_output.bias", &[Hidden]).optional(),
];

/// The norms before a layer's blocks.
pub const NORMS: &[Rule] = &[
    Rule::new("input_layernorm.weight", "attn_norm.weight", &[Hidden]),
    Rule::new("post_attention_layernorm.weight", "ffn_norm.weight", &[Hidden]),
];

/// A gated block.
pub const FEED_FORWARD: &[Rule] = &[
    Rule::new("mlp.gate_proj.weight", "ffn_gate.weight", &[FeedForward, Hidden]),
    Rule::new("mlp.up_proj.weight", "ffn_up.weight", &[FeedForward, Hidden]),
    Rule::new("mlp.down_proj.weight", "ffn_down.weight", &[Hidden, FeedForward]),
    Rule::new("mlp.gate_proj.bias", "ffn_gate.bias", &[FeedForward]).optional(),
    Rule::new("mlp.up_proj.bias", "ffn_up.bias", &[FeedForward]).optional(),
    Rule::new("mlp.down_proj.bias", "ffn_down.bias", &[Hidden]).optional(),
];

const EXPERTS: &[Rule] = &[
    Rule::new("block_sparse_moe.gate.weight", "ffn_gate_inp.weight", &[Experts, Hidden]),
    Rule::new("block_sparse_moe.experts.{}.w1.weight", "ffn_gate_exps.weight", &[FeedForward, Hidden]),
    Rule::new("block_sparse_moe.experts.{}.w2.weight", "ffn_down_exps.weight", &[Hidden, FeedForward]),
    Rule::new("block_sparse_moe.experts.{}.w3.weight", "ffn_up_exps.weight", &[FeedForward, Hidden]),
];

fn of_llama(config: &Config, sizes: &Sizes, keys: &mut Keys) -> Outcome {
    parameters(config, sizes, keys)?;
    keys.number("vocab_size", sizes.vocabulary)?;
    keys.number("rope.dimension_count", sizes.head)
}

/// The factors by which Llama 3 slows the turns of pairs: 1 for those that turn fast, the whole factor for those that turn
/// slowly, something between for the others.
fn factors(config: &Config, sizes: &Sizes) -> Outcome<Vectors> {
    let rope = Rope::read(config)?;
    if !rope.is_type("llama3") {
        return Ok(Vec::new());
    }
    let number = |key: &str, default: f64| Ok::<_, Box<dyn Error>>(rope.number(key)?.unwrap_or(default));
    let (base, factor) = (number("rope_theta", 10_000.0)?, number("factor", 8.0)?);
    let (low, high) = (number("low_freq_factor", 1.0)?, number("high_freq_factor", 4.0)?);
    let context = number("original_max_position_embeddings", 8192.0)?;
    let of_pair = |pair: usize| {
        // As PyTorch rounds it in f32: a number by a tensor is the number times the tensor's inverse.
        let exponent = (2 * pair) as f32 / sizes.head as f32;
        let frequency = 1.0 / f64::from(base as f32).powf(exponent.into()) as f32;
        let wavelength = frequency.recip() * TAU;
        match f64::from(wavelength) {
            length if length < context / high => 1.0,
            length if length > context / low => factor as f32,
            _ => {
                let smooth = (wavelength.recip() * context as f32 - low as f32) / (high - low) as f32;
                ((1.0 - smooth) / factor as f32 + smooth).recip()
            }
        }
    };
    Ok(vec![("rope_freqs.weight", (0..sizes.head.div_ceil(2)).map(of_pair).collect())])
}

/// Architectures without vectors of their own.
pub fn no_vectors(_: &Config, _: &Sizes) -> Outcome<Vectors> {
    Ok(Vec::new())
}
