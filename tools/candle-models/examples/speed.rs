//! Tokens a second of Gemma 3 on the host, by Candle's own model with Candle's tensors and with this crate's, and by this crate's
//! own: `cargo xtask candle-models --speed gemma-3-270m-q4_k_m.gguf`. Weights of the second are where `CUBE_GGUF_DEVICE` says.

use std::error::Error;
use std::fs::File;
use std::io::BufReader;
use std::time::Instant;

use candle_core::{Device, IndexOp, Tensor};
use cube_gguf::gguf::Files;
use cube_gguf::models::Model;

/// "The capital of France is".
const PROMPT: [u32; 6] = [2, 818, 5279, 529, 7001, 563];
/// Tokens of a long prompt.
const LONG: usize = 256;
/// Tokens to generate.
const COUNT: usize = 32;
const ROUNDS: usize = 3;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Tokens a second of a long prompt, and of tokens one by one after a short one, with these tokens. `feed` takes tokens at a
/// position and gives the likeliest next one.
fn rates(mut feed: impl FnMut(&[u32], usize) -> Outcome<u32>) -> Outcome<(f64, f64, Vec<u32>)> {
    let long: Vec<u32> = PROMPT.iter().copied().cycle().take(LONG).collect();
    feed(&long, 0)?;
    let start = Instant::now();
    feed(&long, 0)?;
    let prompt = LONG as f64 / start.elapsed().as_secs_f64();
    let mut tokens = vec![feed(&PROMPT, 0)?];
    let start = Instant::now();
    while tokens.len() < COUNT {
        tokens.push(feed(&tokens[tokens.len() - 1..], PROMPT.len() + tokens.len() - 1)?);
    }
    Ok((prompt, (COUNT - 1) as f64 / start.elapsed().as_secs_f64(), tokens))
}

/// [`rates`] of `quantized_gemma3` with Candle's or with this crate's tensors.
macro_rules! gemma {
    ($transformers:path, $quantized:path, $file:expr) => {{
        use $quantized as quantized;
        use $transformers as transformers;
        let mut reader = BufReader::new(File::open($file)?);
        let content = quantized::gguf_file::Content::read(&mut reader)?;
        let mut model =
            transformers::models::quantized_gemma3::ModelWeights::from_gguf(content, &mut reader, &Device::Cpu)?;
        rates(|tokens, position| {
            let logits = model.forward(&Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?, position)?;
            Ok(logits.i(0)?.argmax(0)?.to_scalar::<u32>()?)
        })?
    }};
}

fn own(file: &str) -> Outcome<(f64, f64, Vec<u32>)> {
    let files = Files::open(file)?;
    let model = Model::load(&files.parse()?, &cube_gguf::Device::Cpu)?;
    let mut session = model.session(LONG + COUNT)?;
    rates(|tokens, position| {
        session.truncate(position);
        Ok(session.feed_for_likeliest(tokens)?.0)
    })
}

fn main() -> Outcome<()> {
    let file = std::env::args().nth(1).ok_or("usage: speed GEMMA.gguf")?;
    let mut same = true;
    for _ in 0..ROUNDS {
        let theirs = gemma!(candle_models::theirs, candle_core::quantized, &file);
        let ours = gemma!(candle_models::ours, cube_gguf::candle, &file);
        same &= theirs.2 == ours.2;
        for (name, (prompt, generation, _)) in
            [("Candle", theirs), ("Candle over cube-gguf", ours), ("cube-gguf", own(&file)?)]
        {
            println!("{name:<22} prompt of {LONG} {prompt:>7.1}/s  generation {generation:>6.1}/s");
        }
    }
    // Candle's model has SiLU where Gemma has GELU, so that the third has others.
    println!("the same tokens through both imports: {same}");
    Ok(())
}
