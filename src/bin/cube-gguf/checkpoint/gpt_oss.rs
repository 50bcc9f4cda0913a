//! gpt-oss.

use super::architecture::{Architecture, Change, Extent::*, Rule, Sizes, Vocabulary};
use super::config::Config;
use super::llama::{ENDS, no_vectors};
use super::metadata::{Keys, parameters};
use super::qwen::ATTENTION;
use crate::Outcome;

pub const GPT_OSS: Architecture = Architecture {
    name: "gpt-oss",
    classes: &["GptOssForCausalLM"],
    defaults: &[
        ("head_dim", 64.0),
        ("max_position_embeddings", 131_072.0),
        ("num_experts_per_tok", 4.0),
        ("num_key_value_heads", 8.0),
        ("num_local_experts", 128.0),
        ("rms_norm_eps", 1e-5),
        ("rope_theta", 150_000.0),
        ("sliding_window", 128.0),
    ],
    is_tied: false,
    has_head_width: true,
    ends: ENDS,
    layer: &[ATTENTION, LAYER],
    skipped: &[],
    vocabulary: Vocabulary::ByteLevel,
    parameters: of_gpt_oss,
    vectors: no_vectors,
};

const LAYER: &[Rule] = &[
    Rule::new("self_attn.sinks", "attn_sinks.weight", &[Heads]),
    Rule::new("input_layernorm.weight", "attn_norm.weight", &[Hidden]),
    Rule::new("post_attention_layernorm.weight", "post_attention_norm.weight", &[Hidden]),
    Rule::new("mlp.router.weight", "ffn_gate_inp.weight", &[Experts, Hidden]),
    Rule::new("mlp.router.bias", "ffn_gate_inp.bias", &[Experts]),
    Rule::new("mlp.experts.gate_up_proj", "ffn_gate_exps.weight", &[Experts, Hidden, ExpertBoth])
        .with(Change::Experts { first: 0, step: 2 }),
    Rule::new("mlp.experts.gate_up_proj", "ffn_up_exps.weight", &[Experts, Hidden, ExpertBoth])
        .with(Change::Experts { first: 1, step: 2 }),
    Rule::new("mlp.experts.down_proj", "ffn_down_exps.weight", &[Experts, ExpertFeedForward, Hidden])
        .with(Change::Experts { first: 0, step: 1 }),
    Rule::new("mlp.experts.gate_up_proj_bias", "ffn_gate_exps.bias", &[Experts, ExpertBoth])
        .with(Change::ExpertBiases { first: 0 }),
    Rule::new("mlp.experts.gate_up_proj_bias", "ffn_up_exps.bias", &[Experts, ExpertBoth])
        .with(Change::ExpertBiases { first: 1 }),
    Rule::new("mlp.experts.down_proj_bias", "ffn_down_exps.bias", &[Experts, Hidden]),
];

fn of_gpt_oss(config: &Config, sizes: &Sizes, keys: &mut Keys) -> Outcome {
    parameters(config, sizes, keys)?;
    keys.number("attention.sliding_window", config.extent("sliding_window")?)?;
    keys.number("expert_feed_forward_length", sizes.feed_forward)
}
