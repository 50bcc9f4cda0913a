//! Gemma 2 and Gemma 3.

use super::architecture::{Architecture, Change, Extent::*, Presence, Rule, Sizes, Vocabulary};
use super::config::Config;
use super::llama::{FEED_FORWARD, no_vectors};
use super::metadata::{Keys, parameters};
use super::qwen::ATTENTION;
use crate::Outcome;

pub const GEMMA_2: Architecture = Architecture {
    name: "gemma2",
    classes: &["Gemma2ForCausalLM"],
    defaults: &[
        ("attn_logit_softcapping", 50.0),
        ("final_logit_softcapping", 30.0),
        ("head_dim", 256.0),
        ("max_position_embeddings", 8192.0),
        ("num_key_value_heads", 4.0),
        ("rms_norm_eps", 1e-6),
        ("sliding_window", 4096.0),
    ],
    is_tied: true,
    has_head_width: true,
    ends: &[EMBEDDING, NORM],
    layer: &[ATTENTION, NORMS, FEED_FORWARD],
    // The embedding is the output, whatever else a file has for it.
    skipped: &["lm_head.weight"],
    vocabulary: Vocabulary::Gemma,
    parameters: of_gemma_2,
    vectors: no_vectors,
};

pub const GEMMA_3: Architecture = Architecture {
    name: "gemma3",
    classes: &["Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"],
    defaults: &[
        ("head_dim", 256.0),
        ("max_position_embeddings", 131_072.0),
        ("num_attention_heads", 8.0),
        ("num_key_value_heads", 4.0),
        ("rms_norm_eps", 1e-6),
        ("rope_local_base_freq", 10_000.0),
        ("rope_theta", 1_000_000.0),
        ("sliding_window", 4096.0),
        ("vocab_size", 262_208.0),
    ],
    ends: &[EMBEDDING, NORM, OUTPUT],
    layer: &[ATTENTION, HEAD_NORMS, NORMS, FEED_FORWARD],
    // The vision tower, and what projects its output.
    skipped: &["vision_", "vision.", "projector."],
    parameters: of_gemma_3,
    ..GEMMA_2
};

const EMBEDDING: Rule =
    Rule::new("model.embed_tokens.weight", "token_embd.weight", &[Tokens, Hidden]).with(Change::Cut);
const NORM: Rule = Rule::new("model.norm.weight", "output_norm.weight", &[Hidden]).with(Change::AddOne);
const OUTPUT: Rule =
    Rule { presence: Presence::Untied, ..Rule::new("lm_head.weight", "output.weight", &[Tokens, Hidden]) };

const NORMS: &[Rule] = &[
    Rule::new("input_layernorm.weight", "attn_norm.weight", &[Hidden]).with(Change::AddOne),
    Rule::new("post_attention_layernorm.weight", "post_attention_norm.weight", &[Hidden]).with(Change::AddOne),
    Rule::new("pre_feedforward_layernorm.weight", "ffn_norm.weight", &[Hidden]).with(Change::AddOne),
    Rule::new("post_feedforward_layernorm.weight", "post_ffw_norm.weight", &[Hidden]).with(Change::AddOne),
];

const HEAD_NORMS: &[Rule] = &[
    Rule::new("self_attn.q_norm.weight", "attn_q_norm.weight", &[Head]).with(Change::AddOne),
    Rule::new("self_attn.k_norm.weight", "attn_k_norm.weight", &[Head]).with(Change::AddOne),
];

fn of_gemma_2(config: &Config, sizes: &Sizes, keys: &mut Keys) -> Outcome {
    keys.number("context_length", config.extent("max_position_embeddings")?)?;
    keys.number("embedding_length", sizes.hidden)?;
    keys.number("block_count", sizes.layers)?;
    keys.number("feed_forward_length", sizes.feed_forward)?;
    keys.number("attention.head_count", sizes.heads)?;
    keys.number("attention.head_count_kv", sizes.kv_heads)?;
    keys.float("attention.layer_norm_rms_epsilon", config.float("rms_norm_eps")?)?;
    keys.number("attention.key_length", sizes.head)?;
    keys.number("attention.value_length", sizes.head)?;
    keys.float("attn_logit_softcapping", config.float("attn_logit_softcapping")?)?;
    keys.float("final_logit_softcapping", config.float("final_logit_softcapping")?)?;
    keys.number("attention.sliding_window", config.extent("sliding_window")?)
}

fn of_gemma_3(config: &Config, sizes: &Sizes, keys: &mut Keys) -> Outcome {
    parameters(config, sizes, keys)?;
    if config.get("attn_logit_softcapping").is_some() {
        return Err(config.error("`attn_logit_softcapping` is nothing that Gemma 3 has").into());
    }
    keys.float("final_logit_softcapping", config.float("final_logit_softcapping")?.filter(|&cap| cap != 0.0))?;
    match config.optional("sliding_window_pattern")? {
        // All layers see all tokens.
        Some(1) => Ok(()),
        _ => keys.number("attention.sliding_window", config.extent("sliding_window")?),
    }
}
