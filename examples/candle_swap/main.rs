//! One model, written for Candle, through Candle's import and through ours: the same tokens.
//!
//! `cargo run --release --features hip --example candle_swap -- gemma-3-270m-q4_k_m.gguf`, where the environment variable
//! `CUBE_GGUF_DEVICE` may name the device of the weights. After the file come token ids, which the model goes on from.

use std::error::Error;
use std::fs::File;
use std::io::BufReader;
use std::process::ExitCode;
use std::time::Instant;

use candle_core::{D, Device};

mod candle {
    use candle_core::quantized::{QMatMul, QTensor, gguf_file};

    include!("model.rs");
}

mod cube {
    use cube_gguf::candle::{QMatMul, QTensor, gguf_file};

    include!("model.rs");
}

/// "The capital of France is".
const PROMPT: [u32; 6] = [2, 818, 5279, 529, 7001, 563];
/// Tokens to generate.
const COUNT: usize = 32;

/// Generates by the likeliest token with one of the two models, and says how fast.
macro_rules! generate {
    ($import:ident :: gguf_file is $gguf_file:path, $file:expr, $prompt:expr) => {{
        use $gguf_file as gguf_file;
        let mut reader = BufReader::new(File::open($file)?);
        let content = gguf_file::Content::read(&mut reader)?;
        let mut model = $import::Model::from_gguf(&content, &mut reader, &Device::Cpu)?;
        let (mut tokens, mut position) = ($prompt.to_vec(), 0);
        let mut generated: Vec<u32> = Vec::new();
        let mut start = Instant::now();
        while generated.len() < COUNT {
            let logits = model.forward(&tokens, position, &Device::Cpu)?;
            position += tokens.len();
            tokens = vec![logits.argmax(D::Minus1)?.to_scalar::<u32>()?];
            if generated.is_empty() {
                start = Instant::now();
            }
            generated.extend(&tokens);
        }
        let rate = (COUNT - 1) as f64 / start.elapsed().as_secs_f64();
        println!("{:<8} {rate:>7.1} tokens/s  {generated:?}", stringify!($import));
        generated
    }};
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let file = arguments.next().ok_or("usage: candle_swap FILE [TOKEN...]")?;
    let given = arguments.map(|id| id.parse()).collect::<Result<Vec<u32>, _>>()?;
    let prompt = if given.is_empty() { &PROMPT[..] } else { &given };

    let theirs = generate!(candle::gguf_file is candle_core::quantized::gguf_file, &file, prompt);
    let ours = generate!(cube::gguf_file is cube_gguf::candle::gguf_file, &file, prompt);
    println!("weights of the second on {}", cube_gguf::candle::default_device()?);
    Ok(if ours == theirs { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
