//! Text from a GGUF file: the tokens that a model finds likeliest, as they come.
//!
//! `cargo run --release --features models,hip --example generate -- model.gguf rocm:0 "Once upon a time"`

use std::error::Error;
use std::io::Write;

use cube_gguf::Device;
use cube_gguf::gguf::Files;
use cube_gguf::models::Model;
use cube_gguf::text::{Detokenizer, Sampler, Sampling, Special, Tokenizer};

/// The most tokens of a prompt and what follows it together.
const CAPACITY: usize = 512;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(file), Some(device), Some(prompt)) = (arguments.next(), arguments.next(), arguments.next()) else {
        return Err("usage: generate FILE DEVICE PROMPT".into());
    };
    print!("{prompt}");
    generate(&Files::open(file)?, &device.parse()?, &prompt, |text| {
        print!("{text}");
        std::io::stdout().flush()
    })?;
    println!();
    Ok(())
}

/// Gives what follows `prompt` to `show`, a piece at a time, until the model ends it or there is no more room.
fn generate(
    files: &Files,
    device: &Device,
    prompt: &str,
    mut show: impl FnMut(&str) -> std::io::Result<()>,
) -> Result<(), Box<dyn Error>> {
    let file = files.parse()?;
    let tokenizer = Tokenizer::from_gguf(file.metadata())?;
    let model = Model::load(&file, device)?;
    let mut session = model.session(model.context().min(CAPACITY))?.with_recording();
    let mut sampler = Sampler::new(Sampling { temperature: 0.0, ..Sampling::default() })?;
    let mut detokenizer = Detokenizer::new(&tokenizer);
    let mut logits = session.feed(&tokenizer.encode(prompt, Special { add: true, ..Special::default() })?)?;
    loop {
        let next = sampler.sample(&logits)?;
        if tokenizer.is_end(next) || session.left() == 0 {
            break;
        }
        show(&detokenizer.push(next)?)?;
        logits = session.feed(&[next])?;
    }
    Ok(show(&detokenizer.finish())?)
}
