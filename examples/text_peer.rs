//! This library's side of a comparison with llama.cpp on whole models; `benches/peers/llama_cpp/text.cpp` is the other.
//!
//! ```text
//! text_peer agree MODEL DEVICE < greedy.jsonl          what `text greedy` printed, token for token
//! text_peer divergence MODEL DEVICE LOGITS < ids.jsonl what `text logits` wrote, by its KL divergence
//! text_peer between LOGITS LOGITS VOCABULARY           the same of two such files
//! text_peer speed MODEL DEVICE PROMPT NEW REPEATS      what `text speed` measures
//! text_peer random llama|gemma OUT                     a model of random blocks: LLaMA 3 8B's, Gemma 3 270M's in Q4_K_M
//! ```

use std::error::Error;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter};
use std::time::Instant;

use cube_gguf::Device;
use cube_gguf::gguf::{Files, GgmlType, Writer};
use cube_gguf::models::{Model, Session};
use half::f16;
use serde_json::{Value, json};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

fn main() -> Outcome {
    #[cfg(feature = "kernel-cache")]
    if let Some(folder) = std::env::var_os("CUBE_GGUF_KERNELS") {
        cube_gguf::keep_kernels(folder);
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["agree", file, device] => with_model(file, device, agree),
        ["divergence", file, device, logits] => with_model(file, device, |model| divergence(model, logits)),
        ["between", from, of, vocabulary] => between(from, of, vocabulary.parse()?),
        ["speed", file, device, prompt, new, repeats] => {
            let [prompt, new, repeats] = [prompt.parse()?, new.parse()?, repeats.parse()?];
            let start = Instant::now();
            with_model(file, device, |model| speed(model, [prompt, new, repeats], start))
        }
        ["random", "llama", out] => random(out, &LLAMA),
        ["random", "gemma", out] => random(out, &GEMMA),
        _ => Err("usage: text_peer agree | divergence | speed | random ... (see the example's first lines)".into()),
    }
}

fn with_model(file: &str, device: &str, run: impl FnOnce(&Model) -> Outcome) -> Outcome {
    let files = Files::open(file)?;
    run(&Model::load(&files.parse()?, &device.parse::<Device>()?)?)
}

fn ids(value: &Value) -> Outcome<Vec<u32>> {
    let list = value.as_array().ok_or("no array of ids")?;
    list.iter().map(|id| Ok(u32::try_from(id.as_u64().ok_or("an id is no number")?)?)).collect()
}

fn largest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

/// Whether the likeliest token after each of llama.cpp's is the one that it chose.
fn agree(model: &Model) -> Outcome {
    let (mut all, mut same, mut others) = (0, 0, Vec::new());
    for (prompt, line) in io::stdin().lock().lines().enumerate() {
        let line: Value = serde_json::from_str(&line?)?;
        let (start, tokens) = (ids(&line["prompt"])?, ids(&line["tokens"])?);
        let mut session = model.session(start.len() + tokens.len())?.with_recording();
        let mut logits = session.feed(&start)?;
        for (i, &token) in tokens.iter().enumerate() {
            all += 1;
            match largest(&logits) == token {
                true => same += 1,
                false => {
                    let behind = logits[largest(&logits) as usize] - logits[token as usize];
                    let margin = line["margins"][i].as_f64().unwrap_or(f64::NAN);
                    others.push(json!({ "prompt": prompt, "at": i, "its_margin": margin, "our_margin": behind }));
                }
            }
            logits = session.feed(&[token])?;
        }
    }
    for other in &others {
        println!("{other}");
    }
    let margins = others.iter().filter_map(|other| other["its_margin"].as_f64());
    println!("{}", json!({ "tokens": all, "same": same, "largest_margin_of_others": margins.fold(0.0, f64::max) }));
    Ok(())
}

/// The mean KL divergence of this library's logits from llama.cpp's, over all positions.
fn divergence(model: &Model, logits: &str) -> Outcome {
    let mut file = BufReader::new(File::open(logits)?);
    let mut divergences = Divergences::default();
    for line in io::stdin().lock().lines() {
        let tokens = ids(&serde_json::from_str(&line?)?)?;
        let mut session = model.session(tokens.len())?.with_recording();
        for token in tokens {
            let its = row(&mut file, model.vocabulary())?.ok_or("there are fewer logits than tokens")?;
            divergences.add(&its, &session.feed(&[token])?);
        }
    }
    divergences.print();
    Ok(())
}

/// The mean KL divergence of one file of logits from another.
fn between(from: &str, of: &str, vocabulary: usize) -> Outcome {
    let (mut from, mut of) = (BufReader::new(File::open(from)?), BufReader::new(File::open(of)?));
    let mut divergences = Divergences::default();
    while let (Some(its), Some(other)) = (row(&mut from, vocabulary)?, row(&mut of, vocabulary)?) {
        divergences.add(&its, &other);
    }
    divergences.print();
    Ok(())
}

/// The next row of a file of logits, if there is one.
fn row(file: &mut impl BufRead, vocabulary: usize) -> Outcome<Option<Vec<f32>>> {
    if file.fill_buf()?.is_empty() {
        return Ok(None);
    }
    let mut bytes = vec![0; 4 * vocabulary];
    file.read_exact(&mut bytes)?;
    Ok(Some(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()))
}

/// KL divergences of logits from others, position by position.
#[derive(Default)]
struct Divergences {
    positions: usize,
    sum: f64,
    largest: f64,
    same_likeliest: usize,
}

impl Divergences {
    fn add(&mut self, from: &[f32], of: &[f32]) {
        let (p, q) = (log_probabilities(from), log_probabilities(of));
        let divergence = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
        self.positions += 1;
        self.sum += divergence;
        self.largest = self.largest.max(divergence);
        self.same_likeliest += usize::from(largest(from) == largest(of));
    }

    fn print(&self) {
        let &Self { positions, sum, largest, same_likeliest } = self;
        let mean = sum / positions.max(1) as f64;
        println!(
            "{}",
            json!({ "positions": positions, "mean": mean, "largest": largest, "same_likeliest": same_likeliest })
        );
    }
}

fn log_probabilities(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().fold(f32::NEG_INFINITY, |most, &logit| most.max(logit));
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - most).exp()).sum();
    logits.iter().map(|&logit| f64::from(logit - most) - sum.ln()).collect()
}

/// Tokens a second of a prompt and of single tokens after an empty context: a warm-up, then the median and the best.
fn speed(model: &Model, [prompt, new, repeats]: [usize; 3], start: Instant) -> Outcome {
    let vocabulary = model.vocabulary() as u32;
    let tokens: Vec<u32> = (0..prompt as u32).map(|i| i.wrapping_mul(2_654_435_761) % vocabulary).collect();
    let read = || -> Outcome<f64> {
        let mut session = model.session(prompt)?;
        let start = Instant::now();
        session.feed(&tokens)?;
        Ok(start.elapsed().as_secs_f64())
    };
    let warm_up = read()?;
    let first = start.elapsed().as_secs_f64();
    let mut prompts = (0..repeats).map(|_| read()).collect::<Outcome<Vec<_>>>()?;
    let write = |session: &mut Session<'_>| -> Outcome<f64> {
        session.truncate(0);
        let start = Instant::now();
        let mut token = 1;
        for _ in 0..new {
            (token, _) = session.feed_for_likeliest(&[token])?;
        }
        Ok(start.elapsed().as_secs_f64())
    };
    let mut session = model.session(new)?.with_recording();
    write(&mut session)?;
    let mut generations = (0..repeats).map(|_| write(&mut session)).collect::<Outcome<Vec<_>>>()?;
    let rates = |times: &mut Vec<f64>, tokens: usize| {
        times.sort_by(f64::total_cmp);
        json!({ "median": tokens as f64 / times[times.len() / 2], "best": tokens as f64 / times[0] })
    };
    println!(
        "{}",
        json!({
            "prompt": rates(&mut prompts, prompt),
            "generation": rates(&mut generations, new),
            "cold_prompt_seconds": warm_up,
            "first_logits_seconds": first,
        })
    );
    Ok(())
}

/// What a random model is like.
struct Shape {
    architecture: &'static str,
    layers: usize,
    d_model: usize,
    hidden: usize,
    queries: usize,
    kv: usize,
    head: usize,
    vocabulary: usize,
    base: f32,
    /// The types of most matrices, of those that Q4_K_M keeps more of, where rows are whole blocks of 256 and where not.
    types: [[GgmlType; 2]; 2],
    embedding: GgmlType,
    /// The type of the output's own weights, if it has any.
    output: Option<GgmlType>,
}

const K_QUANTS: [GgmlType; 2] = [GgmlType::Q4K, GgmlType::Q6K];

/// LLaMA 3 8B.
const LLAMA: Shape = Shape {
    architecture: "llama",
    layers: 32,
    d_model: 4096,
    hidden: 14336,
    queries: 32,
    kv: 8,
    head: 128,
    vocabulary: 128_256,
    base: 500_000.0,
    types: [K_QUANTS, K_QUANTS],
    embedding: GgmlType::Q4K,
    output: Some(GgmlType::Q6K),
};

/// Gemma 3 270M.
const GEMMA: Shape = Shape {
    architecture: "gemma3",
    layers: 18,
    d_model: 640,
    hidden: 2048,
    queries: 4,
    kv: 1,
    head: 256,
    vocabulary: 262_144,
    base: 1_000_000.0,
    types: [K_QUANTS, [GgmlType::Q5_0, GgmlType::Q8_0]],
    embedding: GgmlType::Q8_0,
    output: None,
};

impl Shape {
    /// The tensors in Q4_K_M: their names, rows, columns and types.
    fn tensors(&self) -> Vec<(String, usize, usize, GgmlType)> {
        let &Self { layers, d_model, hidden, vocabulary, .. } = self;
        let (queries, kv) = (self.queries * self.head, self.kv * self.head);
        let mut tensors = vec![("token_embd.weight".to_owned(), vocabulary, d_model, self.embedding)];
        for i in 0..layers {
            let mut add = |part: &str, n: usize, k: usize, keeps_more: bool| {
                let ty = if n == 1 {
                    GgmlType::F32
                } else {
                    self.types[usize::from(!k.is_multiple_of(256))][usize::from(keeps_more)]
                };
                tensors.push((format!("blk.{i}.{part}.weight"), n, k, ty));
            };
            // More in the first and the last eighth of the layers, and in every third between.
            let more = i < layers / 8 || i >= 7 * layers / 8 || (i - layers / 8) % 3 == 2;
            add("attn_q", queries, d_model, false);
            add("attn_k", kv, d_model, false);
            add("attn_v", kv, d_model, more);
            add("attn_output", d_model, queries, false);
            add("ffn_gate", hidden, d_model, false);
            add("ffn_up", hidden, d_model, false);
            add("ffn_down", d_model, hidden, more);
            add("attn_norm", 1, d_model, false);
            add("ffn_norm", 1, d_model, false);
            if self.architecture == "gemma3" {
                add("attn_q_norm", 1, self.head, false);
                add("attn_k_norm", 1, self.head, false);
                add("post_attention_norm", 1, d_model, false);
                add("post_ffw_norm", 1, d_model, false);
            }
        }
        tensors.push(("output_norm.weight".to_owned(), 1, d_model, GgmlType::F32));
        tensors.extend(self.output.map(|ty| ("output.weight".to_owned(), vocabulary, d_model, ty)));
        tensors
    }
}

/// A model of random blocks, but for scales that keep values small.
fn random(out: &str, shape: &Shape) -> Outcome {
    let mut writer = Writer::new();
    writer.metadata("general.architecture", shape.architecture)?;
    writer.metadata("tokenizer.ggml.model", "no_vocab")?;
    let numbers = [
        ("vocab_size", shape.vocabulary),
        ("context_length", 8192),
        ("embedding_length", shape.d_model),
        ("block_count", shape.layers),
        ("feed_forward_length", shape.hidden),
        ("attention.head_count", shape.queries),
        ("attention.head_count_kv", shape.kv),
        ("attention.key_length", shape.head),
        ("attention.value_length", shape.head),
        ("attention.sliding_window", 512),
    ];
    let key = |name: &str| format!("{}.{name}", shape.architecture);
    for (name, value) in numbers {
        if name != "attention.sliding_window" || shape.architecture == "gemma3" {
            writer.metadata(&key(name), value as u32)?;
        }
    }
    writer.metadata(&key("rope.freq_base"), shape.base)?;
    writer.metadata(&key("attention.layer_norm_rms_epsilon"), 1e-5f32)?;
    let tensors = shape.tensors();
    for (name, n, k, ty) in &tensors {
        let (n, k) = (*n as u64, *k as u64);
        writer.tensor(name, if n == 1 { vec![k] } else { vec![k, n] }.as_slice(), *ty)?;
    }
    let mut data = writer.begin(BufWriter::new(File::create(out)?))?;
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for (_, n, k, ty) in &tensors {
        let bytes = ty.row_bytes(*k).ok_or("rows are whole blocks")? * n;
        data.data(&blocks(*ty, bytes, &mut state))?;
    }
    data.finish()?;
    Ok(())
}

fn blocks(ty: GgmlType, bytes: usize, state: &mut u64) -> Vec<u8> {
    if ty == GgmlType::F32 {
        return 1f32.to_le_bytes().repeat(bytes / 4);
    }
    let mut data = vec![0; bytes.next_multiple_of(8)];
    for word in data.chunks_exact_mut(8) {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    data.truncate(bytes);
    let half = |value: f32| f16::from_f32(value).to_le_bytes();
    for block in data.chunks_exact_mut(ty.block_bytes()) {
        match ty {
            GgmlType::Q6K => block[208..].copy_from_slice(&half(5e-6)),
            GgmlType::Q4K => {
                // The scales of scales and of mins.
                block[..2].copy_from_slice(&half(2e-5));
                block[2..4].copy_from_slice(&half(1.5e-4));
            }
            GgmlType::Q8_0 => block[..2].copy_from_slice(&half(2e-4)),
            _ => block[..2].copy_from_slice(&half(2e-3)),
        }
    }
    data
}
