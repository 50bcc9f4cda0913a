//! Times reading the header of a GGUF file in memory: `cargo bench --package benches --bench gguf`.
//!
//! The file has the tensors and the metadata of a language model of 32 layers, and little data. Peers are compared by
//! `cargo xtask bench`.

use std::error::Error;
use std::hint::black_box;

use criterion::Throughput;
use cube_gguf::gguf::{GgmlType, Gguf, Writer};

const LAYERS: usize = 32;
/// Tensors of a layer.
const ROLES: [&str; 9] =
    ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"];
/// Tokens of the vocabulary.
const TOKENS: usize = 32_000;
/// Dimensions of each tensor, contiguous first; its blocks are zeros.
const DIMS: [u64; 2] = [256, 4];
const DATA: [u8; 4 * 8 * 34] = [0; 4 * 8 * 34];

fn main() -> Result<(), Box<dyn Error>> {
    let names = names();
    let file = file(&names)?;
    let gguf = Gguf::parse(&file)?;
    // The data of each tensor is a multiple of the alignment.
    let header = file.len() - names.len() * DATA.len();

    let mut criterion = benches::criterion();
    let mut group = criterion.benchmark_group("gguf");
    group.throughput(Throughput::Bytes(header as u64));
    group.bench_function("parse", |bencher| bencher.iter(|| Gguf::parse(black_box(&file))));
    group.throughput(Throughput::Elements(names.len() as u64));
    group.bench_function("tensors", |bencher| {
        bencher.iter(|| black_box(&gguf).tensors().map(|tensor| tensor.elements()).sum::<usize>());
    });
    group.bench_function("tensors by name", |bencher| {
        bencher.iter(|| names.iter().filter(|&name| black_box(&gguf).tensor(name).is_ok()).count());
    });
    group.throughput(Throughput::Elements(TOKENS as u64));
    group.bench_function("vocabulary", |bencher| {
        bencher.iter(|| black_box(&gguf).metadata().array("tokenizer.ggml.tokens").map(|tokens| tokens.iter().count()));
    });
    group.finish();
    criterion.final_summary();
    Ok(())
}

/// The tensors of a model.
fn names() -> Vec<String> {
    let layer = |layer: usize| ROLES.map(|role| format!("blk.{layer}.{role}.weight"));
    let outer = ["token_embd.weight", "output_norm.weight", "output.weight"].map(str::to_owned);
    outer.into_iter().chain((0..LAYERS).flat_map(layer)).collect()
}

/// The bytes of a file with these tensors.
fn file(names: &[String]) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut writer = Writer::new();
    writer.metadata("general.architecture", "llama")?;
    writer.metadata("llama.block_count", LAYERS as u32)?;
    writer.metadata("llama.rope.freq_base", 10_000f32)?;
    writer.metadata("tokenizer.ggml.tokens", (0..TOKENS).map(|token| format!("token {token}")).collect::<Vec<_>>())?;
    writer.metadata("tokenizer.ggml.scores", (0..TOKENS).map(|token| -(token as f32)).collect::<Vec<_>>())?;
    for name in names {
        writer.tensor(name, &DIMS, GgmlType::Q8_0)?;
    }
    let mut tensors = writer.begin(Vec::new())?;
    for _ in names {
        tensors.data(&DATA)?;
    }
    Ok(tensors.finish()?)
}
