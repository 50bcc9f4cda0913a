//! Phi 3 and Phi 4.

use super::architecture::{Architecture, Extent::*, Rule, Sizes, Vectors, Vocabulary};
use super::config::Config;
use super::llama::{ENDS, NORMS};
use super::metadata::{Keys, Rope};
use crate::Outcome;

pub const PHI_3: Architecture = Architecture {
    name: "phi3",
    classes: &["Phi3ForCausalLM"],
    defaults: &[
        ("max_position_embeddings", 4096.0),
        ("original_max_position_embeddings", 4096.0),
        ("partial_rotary_factor", 1.0),
        ("rms_norm_eps", 1e-5),
        ("rope_theta", 10_000.0),
    ],
    is_tied: false,
    has_head_width: false,
    ends: ENDS,
    layer: &[LAYER, NORMS],
    skipped: &[],
    vocabulary: Vocabulary::Phi,
    parameters,
    vectors: factors,
};

const LAYER: &[Rule] = &[
    Rule::new("self_attn.qkv_proj.weight", "attn_qkv.weight", &[All, Hidden]),
    Rule::new("self_attn.o_proj.weight", "attn_output.weight", &[Hidden, Queries]),
    Rule::new("mlp.gate_up_proj.weight", "ffn_up.weight", &[Both, Hidden]),
    Rule::new("mlp.down_proj.weight", "ffn_down.weight", &[Hidden, FeedForward]),
];

fn parameters(config: &Config, sizes: &Sizes, keys: &mut Keys) -> Outcome {
    let rope = Rope::read(config)?;
    keys.float("rope.scaling.attn_factor", magnitude(config, &rope)?)?;
    keys.number("context_length", config.extent("max_position_embeddings")?)?;
    keys.number("rope.scaling.original_context_length", rope.whole("original_max_position_embeddings")?)?;
    keys.number("embedding_length", sizes.hidden)?;
    keys.number("feed_forward_length", sizes.feed_forward)?;
    keys.number("block_count", sizes.layers)?;
    keys.number("attention.head_count", sizes.heads)?;
    keys.number("attention.head_count_kv", sizes.kv_heads)?;
    keys.float("attention.layer_norm_rms_epsilon", config.float("rms_norm_eps")?)?;
    keys.number("rope.dimension_count", turned(sizes, &rope)?)?;
    keys.float("rope.freq_base", rope.number("rope_theta")?)?;
    // 0 tells Phi 4 from the others.
    keys.number("attention.sliding_window", config.optional("sliding_window")?.unwrap_or(0) as usize)
}

/// Values of a head that rotary embeddings turn.
fn turned(sizes: &Sizes, rope: &Rope<'_>) -> Outcome<usize> {
    let part = rope.number("partial_rotary_factor")?.unwrap_or(1.0);
    Ok((part * sizes.hidden as f64) as usize / sizes.heads)
}

/// What turned values are multiplied by in long contexts.
fn magnitude(config: &Config, rope: &Rope<'_>) -> Outcome<Option<f64>> {
    if rope.numbers("long_factor")?.is_none() {
        return Ok(None);
    }
    let (context, original) =
        (config.extent("max_position_embeddings")?, rope.whole("original_max_position_embeddings")?);
    let scale = context as f64 / original as f64;
    Ok(Some(match () {
        () if !(rope.is_type("su") || rope.is_type("longrope") || rope.is_type("yarn")) => {
            return Err(config.error("`rope_scaling` has factors, but is of neither type longrope nor yarn").into());
        }
        () if scale <= 1.0 => 1.0,
        () if rope.is_type("yarn") => 0.1 * scale.ln() + 1.0,
        () => (1.0 + scale.ln() / (original as f64).ln()).sqrt(),
    }))
}

fn factors(config: &Config, sizes: &Sizes) -> Outcome<Vectors> {
    let rope = Rope::read(config)?;
    let Some(long) = rope.numbers("long_factor")? else { return Ok(Vec::new()) };
    let short = rope.numbers("short_factor")?.ok_or_else(|| config.missing("rope_scaling.short_factor"))?;
    let pairs = turned(sizes, &rope)? / 2;
    if long.len() != pairs || short.len() != pairs {
        let lengths = format!("{} and {} factors of LongRoPE for {pairs} pairs of values", long.len(), short.len());
        return Err(config.error(&lengths).into());
    }
    Ok(vec![("rope_factors_long.weight", long), ("rope_factors_short.weight", short)])
}
