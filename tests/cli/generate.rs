//! `cube-gguf generate` on a tiny model of random weights, with a vocabulary of letters.

use std::fs;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};

use cube_gguf::gguf::Writer;

use super::tiny::{Tiny, VOCABULARY};
use super::{Folder, command, error, json, run, stdout};

/// A template that writes the start of a text, and each message after its role's first letter.
const TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}{{ message.role[0] }}{{ message.content }}{% endfor %}\
                        {% if add_generation_prompt %}a{% endif %}";

const LLAMA: Tiny = Tiny::ALL[0];

/// A llama's vocabulary: the unknown token, the ends of texts, a space, and letters.
pub fn vocabulary(writer: &mut Writer) {
    let letters = (b'a'..=b'z').chain(b'A'..=b'J').map(|letter| char::from(letter).to_string());
    let tokens: Vec<String> = ["<unk>", "<s>", "</s>", "▁"].map(str::to_owned).into_iter().chain(letters).collect();
    assert_eq!(tokens.len(), VOCABULARY);
    let types: Vec<i32> = (0..tokens.len()).map(|id| [2, 3, 3].get(id).copied().unwrap_or(1)).collect();
    let scores: Vec<f32> = (0..tokens.len()).map(|id| -(id as f32)).collect();
    writer.metadata("tokenizer.ggml.model", "llama").unwrap();
    writer.metadata("tokenizer.ggml.tokens", tokens).unwrap();
    writer.metadata("tokenizer.ggml.token_type", types).unwrap();
    writer.metadata("tokenizer.ggml.scores", scores).unwrap();
}

pub fn model(folder: &Folder, tiny: Tiny, template: Option<&str>) -> String {
    let path = folder.path(&format!("{}.gguf", tiny.name));
    let file = tiny.file_with(|writer| {
        vocabulary(writer);
        if let Some(template) = template {
            writer.metadata("tokenizer.chat_template", template).unwrap();
        }
    });
    fs::write(&path, file).unwrap();
    path
}

fn ids(value: &serde_json::Value) -> Vec<u64> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
}

#[test]
fn text_follows_a_prompt() {
    let folder = Folder::new("generate");
    let file = model(&folder, LLAMA, None);
    let arguments = ["generate", &file, "--prompt", "abc", "-n", "6", "--temp", "0", "--device", "cube-cpu"];
    let found = json(&[&arguments[..], &["--json"]].concat());
    // The start of a text, its space, the letters.
    assert_eq!(ids(&found["prompt_tokens"]), [1, 3, 4, 5, 6]);
    let tokens = ids(&found["tokens"]);
    assert!(tokens.len() <= 6 && tokens.iter().all(|&id| id < VOCABULARY as u64));
    let stops = if tokens.len() == 6 { "tokens" } else { "end" };
    assert_eq!((&found["stop"], &found["device"]), (&stops.into(), &"cube-cpu".into()));
    assert_eq!(found["prompt"]["tokens"], 5);
    for phase in ["prompt", "generation"] {
        assert!(found[phase]["seconds"].as_f64().unwrap() > 0.0 && found[phase]["tokens_per_second"].is_f64());
    }
    assert!(found["first_token_seconds"].as_f64() > found["load_seconds"].as_f64());
    assert!(found["memory_bytes"].as_u64().unwrap() > fs::metadata(&file).unwrap().len());

    let output = run(&arguments);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{}\n", found["text"].as_str().unwrap()));
    assert!(String::from_utf8(output.stderr).unwrap().contains("prompt 5 tokens"));
}

/// Mixtures of experts, by the device's kernels and by the host's.
#[test]
fn experts_write_the_same_text_everywhere() {
    let folder = Folder::new("generate-experts");
    for tiny in Tiny::ALL.into_iter().filter(|tiny| tiny.experts.is_some()) {
        let file = model(&folder, tiny, None);
        let text = |device| {
            stdout(&["generate", &file, "--prompt", "abcdefghijkl", "-n", "8", "--temp", "0", "--device", device])
        };
        assert_eq!(text("cube-cpu"), text("cpu"), "{}", tiny.name);
    }
}

#[test]
fn a_seed_gives_one_text() {
    let folder = Folder::new("generate-seed");
    let file = model(&folder, LLAMA, None);
    let text = |seed| {
        let sampling = ["--temp", "2", "--top-k", "0", "--top-p", "1", "--min-p", "0", "--seed", seed];
        stdout(&[&["generate", &file, "--prompt", "abc", "-n", "12", "--device", "cube-cpu"], &sampling[..]].concat())
    };
    assert_eq!(text("7"), text("7"));
    assert_ne!(text("7"), text("8"));
}

#[test]
fn a_conversation_answers_each_line() {
    let folder = Folder::new("generate-chat");
    let file = model(&folder, LLAMA, Some(TEMPLATE));
    let mut child = converse(&["generate", &file, "--chat", "-n", "4", "--temp", "0", "--device", "cube-cpu"]);
    child.stdin.take().unwrap().write_all(b"hi\n\nyo\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let answers: Vec<&str> = text.lines().collect();
    assert_eq!(answers.len(), 2, "{text}");
    // The first is the answer to the message alone; the second comes after both.
    let single = ["generate", &file, "--chat", "-n", "4", "--temp", "0", "--device", "cube-cpu", "--prompt"];
    assert_eq!(stdout(&[&single[..], &["hi"]].concat()).trim_end_matches('\n'), answers[0]);
    let whole = format!("uhia{}uyoa", answers[0]);
    let plain = ["generate", &file, "-n", "4", "--temp", "0", "--device", "cube-cpu", "--prompt", &whole];
    assert_eq!(stdout(&plain).trim_end_matches('\n'), answers[1]);
}

fn converse(arguments: &[&str]) -> Child {
    let mut command = command(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_text_and_then_a_conversation() {
    let folder = Folder::new("generate-interrupt");
    // Long enough to be in the middle of it.
    let file = model(&folder, Tiny { context: 1 << 16, ..LLAMA }, Some(TEMPLATE));
    let mut child =
        converse(&["generate", &file, "--chat", "-n", "65000", "--context", "65536", "--device", "cube-cpu"]);
    child.stdin.as_mut().unwrap().write_all(b"hi\n").unwrap();
    let mut first = [0];
    let interrupt = |child: &Child| {
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    };
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    interrupt(&child);
    // The answer's line ends, and the next is waited for.
    let mut rest = Vec::new();
    let mut byte = [0];
    while byte != *b"\n" {
        child.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
        rest.push(byte[0]);
    }
    assert!(rest.len() < 65_000);
    std::thread::sleep(std::time::Duration::from_millis(200));
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn what_cannot_be_generated_is_a_sentence() {
    let folder = Folder::new("generate-errors");
    let file = model(&folder, LLAMA, None);
    let generate = |arguments: &[&str]| error(&[&["generate", &file, "--device", "cube-cpu"], arguments].concat());
    assert!(generate(&["--prompt", ""]).contains("prompt is empty"));
    assert!(generate(&["--prompt", "abc", "--context", "3"]).contains("5 more tokens do not fit"));
    assert!(generate(&["--prompt", "abc", "--context", "4096"]).contains("from 1 to 32"));
    assert!(generate(&["--prompt", "abc", "--chat"]).contains("no chat template"));
    assert!(generate(&["--prompt", "abc", "--temp", "-1"]).contains("temperature is -1"));
    let of = |tiny| error(&["generate", &model(&folder, tiny, None), "--prompt", "abc", "--device", "cube-cpu"]);
    assert!(of(Tiny { name: "abacus", architecture: "abacus", ..LLAMA }).contains("gemma3"));
    assert!(
        of(Tiny { name: "missing", without: Some("blk.1.ffn_up.weight"), ..LLAMA }).contains("blk.1.ffn_up.weight")
    );
    let vocabulary_alone = folder.path("vocabulary.gguf");
    let mut writer = Writer::new();
    writer.metadata("general.architecture", "llama").unwrap();
    vocabulary(&mut writer);
    fs::write(&vocabulary_alone, writer.begin(Vec::new()).unwrap().finish().unwrap()).unwrap();
    assert!(error(&["generate", &vocabulary_alone, "--prompt", "abc"]).contains("llama.embedding_length"));
}
