//! What llama.cpp makes of texts, by vocabularies that are built here.

use std::collections::BTreeMap;

use cube_gguf::gguf::Gguf;
use cube_gguf::text::{Special, Tokenizer};
use serde::Deserialize;

use crate::vocabularies;

const FIXTURE: &str = include_str!("fixtures/llama_cpp_tokens.json");

/// A pre-tokenizer of each set of rules.
const PRE: [&str; 30] = [
    "afmoe",
    "bailingmoe",
    "chameleon",
    "deepseek-coder",
    "deepseek-llm",
    "deepseek-v3",
    "default",
    "exaone-moe",
    "falcon",
    "glm4",
    "gpt-2",
    "gpt-4o",
    "granite-embed-multi-97m",
    "jais-2",
    "kimi-k2",
    "laguna",
    "llama-bpe",
    "minicpm5",
    "poro-chat",
    "qwen2",
    "qwen35",
    "seed-coder",
    "spark2_5",
    "starcoder",
    "superbpe",
    "tekken",
    "tiny_aya",
    "ufakzeka",
    "viking",
    "youtu",
];

/// Texts, and what some vocabularies make of them.
#[derive(Deserialize)]
struct Group {
    texts: Vec<String>,
    /// By the name of a vocabulary.
    vocabularies: BTreeMap<String, Answers>,
}

/// The tokens of each text.
#[derive(Deserialize)]
struct Answers {
    /// With special tokens parsed and added.
    special: Vec<Vec<u32>>,
    /// With neither; of some vocabularies only.
    plain: Option<Vec<Vec<u32>>>,
}

fn vocabulary(name: &str) -> Vec<u8> {
    match name {
        "spm" => vocabularies::spm(true, false),
        "spm-plain" => vocabularies::spm(false, true),
        "spm-phi-3" => vocabularies::spm_phi_3(),
        _ => vocabularies::bpe(name.strip_prefix("bpe-").unwrap()),
    }
}

#[test]
fn texts_are_the_tokens_that_llama_cpp_makes_of_them() {
    let groups: Vec<Group> = serde_json::from_str(FIXTURE).unwrap();
    for (group, name, answers) in
        groups.iter().flat_map(|group| group.vocabularies.iter().map(move |(name, answers)| (group, name, answers)))
    {
        let file = vocabulary(name);
        let tokenizer = Tokenizer::from_gguf(Gguf::parse(&file).unwrap().metadata()).unwrap();
        let check = |special: Special, expected: &[Vec<u32>]| {
            assert_eq!(expected.len(), group.texts.len());
            for (text, expected) in group.texts.iter().zip(expected) {
                let found = tokenizer.encode(text, special).unwrap();
                assert_eq!(&found, expected, "{text:?} by {name}");
            }
        };
        check(Special { parse: true, add: true }, &answers.special);
        if let Some(plain) = &answers.plain {
            check(Special { parse: false, add: false }, plain);
        }
    }
}

/// Writes what the fixtures are made of; see `fixtures/README.md`.
#[test]
#[ignore = "writes files, into the directory that TEXT_FIXTURES names"]
fn write_vocabularies_for_llama_cpp() {
    let directory = std::path::PathBuf::from(std::env::var_os("TEXT_FIXTURES").expect("TEXT_FIXTURES is set"));
    for name in
        ["spm", "spm-plain", "spm-phi-3"].map(String::from).into_iter().chain(PRE.map(|pre| format!("bpe-{pre}")))
    {
        std::fs::write(directory.join(format!("{name}.gguf")), vocabulary(&name)).unwrap();
    }
    // A text a line, in hexadecimal, for there are newlines in them.
    let line = |text: &String| text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n";
    let texts: String = vocabularies::texts().iter().map(line).collect();
    std::fs::write(directory.join("texts.hex"), texts).unwrap();
}
