//! The tiny models' logits by llama.cpp, where `CUBE_GGUF_LLAMA_CPP` names `benches/peers/llama_cpp`'s program `text`.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use super::tiny::{Tiny, VOCABULARY};
use super::{CONTEXT, TOKENS, load};

/// llama.cpp keeps keys and values as f16: some hundred terms that are 2^-11 off, through a few layers.
const TOLERANCE: f32 = 2e-2;

#[test]
fn logits_are_those_of_llama_cpp() {
    let Some(program) = std::env::var_os("CUBE_GGUF_LLAMA_CPP") else {
        println!("skipped: CUBE_GGUF_LLAMA_CPP names no program");
        return;
    };
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("llama-cpp-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    for tiny in Tiny::ALL {
        let file = tiny.file_with(|writer| {
            writer.metadata("tokenizer.ggml.model", "no_vocab").unwrap();
            writer.metadata(&format!("{}.vocab_size", tiny.architecture), VOCABULARY as u32).unwrap();
        });
        let (path, out) = (folder.join("model.gguf"), folder.join("logits"));
        fs::write(&path, &file).unwrap();
        let mut command = Command::new(&program);
        command.arg("logits").arg(&path).arg(&out).args(["1", "0", &CONTEXT.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        writeln!(child.stdin.take().unwrap(), "{TOKENS:?}").unwrap();
        assert!(child.wait().unwrap().success(), "{}", tiny.name);
        let expected = fs::read(&out).unwrap();
        let expected = expected.chunks_exact(4).map(|value| f32::from_le_bytes(value.try_into().unwrap()));
        let expected: Vec<f32> = expected.skip((TOKENS.len() - 1) * VOCABULARY).collect();
        let found = load(&file).session(CONTEXT).unwrap().feed(&TOKENS).unwrap();
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            let near = TOLERANCE * expected.abs().max(1.0);
            assert!((found - expected).abs() < near, "{}: {found} for {expected}", tiny.name);
        }
    }
    fs::remove_dir_all(&folder).unwrap();
}
