//! Qwen 2, Qwen 3 and its mixtures.

use super::architecture::{Architecture, Extent::*, Rule, Sizes, Vocabulary};
use super::config::Config;
use super::llama::{ENDS, FEED_FORWARD, NORMS, no_vectors};
use super::metadata::{Keys, parameters};
use crate::Outcome;

pub const QWEN_2: Architecture = Architecture {
    name: "qwen2",
    classes: &["Qwen2ForCausalLM"],
    defaults: &[
        ("max_position_embeddings", 32_768.0),
        ("num_key_value_heads", 32.0),
        ("rms_norm_eps", 1e-6),
        ("rope_theta", 10_000.0),
    ],
    is_tied: false,
    has_head_width: false,
    ends: ENDS,
    layer: &[ATTENTION, NORMS, FEED_FORWARD],
    skipped: &[],
    vocabulary: Vocabulary::Either,
    parameters,
    vectors: no_vectors,
};

pub const QWEN_3: Architecture = Architecture {
    name: "qwen3",
    classes: &["Qwen3ForCausalLM"],
    defaults: &[
        ("head_dim", 128.0),
        ("max_position_embeddings", 32_768.0),
        ("num_key_value_heads", 32.0),
        ("rms_norm_eps", 1e-6),
        ("rope_theta", 10_000.0),
    ],
    has_head_width: true,
    layer: &[ATTENTION, HEAD_NORMS, NORMS, FEED_FORWARD],
    ..QWEN_2
};

pub const QWEN_3_MOE: Architecture = Architecture {
    name: "qwen3moe",
    classes: &["Qwen3MoeForCausalLM"],
    defaults: &[
        ("max_position_embeddings", 32_768.0),
        ("moe_intermediate_size", 768.0),
        ("num_experts", 128.0),
        ("num_experts_per_tok", 8.0),
        ("num_key_value_heads", 4.0),
        ("rms_norm_eps", 1e-6),
        ("rope_theta", 10_000.0),
    ],
    layer: &[ATTENTION, HEAD_NORMS, NORMS, EXPERTS],
    vocabulary: Vocabulary::ByteLevel,
    parameters: of_experts,
    ..QWEN_2
};

/// With the halves of heads as they are.
pub const ATTENTION: &[Rule] = &[
    Rule::new("self_attn.q_proj.weight", "attn_q.weight", &[Queries, Hidden]),
    Rule::new("self_attn.k_proj.weight", "attn_k.weight", &[Keys, Hidden]),
    Rule::new("self_attn.v_proj.weight", "attn_v.weight", &[Keys, Hidden]),
    Rule::new("self_attn.o_proj.weight", "attn_output.weight", &[Hidden, Queries]),
    Rule::new("self_attn.q_proj.bias", "attn_q.bias", &[Queries]).optional(),
    Rule::new("self_attn.k_proj.bias", "attn_k.bias", &[Keys]).optional(),
    Rule::new("self_attn.v_proj.bias", "attn_v.bias", &[Keys]).optional(),
    Rule::new("self_attn.o_proj.bias", "attn_output.bias", &[Hidden]).optional(),
];

const HEAD_NORMS: &[Rule] = &[
    Rule::new("self_attn.q_norm.weight", "attn_q_norm.weight", &[Head]),
    Rule::new("self_attn.k_norm.weight", "attn_k_norm.weight", &[Head]),
];

const EXPERTS: &[Rule] = &[
    Rule::new("mlp.gate.weight", "ffn_gate_inp.weight", &[Experts, Hidden]),
    Rule::new("mlp.experts.{}.gate_proj.weight", "ffn_gate_exps.weight", &[ExpertFeedForward, Hidden]),
    Rule::new("mlp.experts.{}.up_proj.weight", "ffn_up_exps.weight", &[ExpertFeedForward, Hidden]),
    Rule::new("mlp.experts.{}.down_proj.weight", "ffn_down_exps.weight", &[Hidden, ExpertFeedForward]),
];

fn of_experts(config: &Config, sizes: &Sizes, keys: &mut Keys) -> Outcome {
    parameters(config, sizes, keys)?;
    keys.number("expert_feed_forward_length", sizes.expert_feed_forward)
}
