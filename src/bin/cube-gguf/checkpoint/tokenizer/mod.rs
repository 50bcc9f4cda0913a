//! The tokenizer of a checkpoint, as the metadata of a GGUF file.

mod byte_level;
mod sentence_piece;
mod special;

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use self::special::Special;
use super::architecture::Vocabulary;
use super::config::{Config, get, read_json, shown};
use super::metadata::Keys;
use crate::Outcome;

/// What a token is, as numbered by `enum llama_token_type` in llama.cpp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

/// The tokens of a file, all of which have a kind, and those of SentencePiece a score.
struct Tokens {
    texts: Vec<String>,
    kinds: Vec<Kind>,
    scores: Option<Vec<f32>>,
}

/// `tokenizer.json`.
#[derive(Deserialize)]
struct TokenizerFile {
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    model: byte_level::Bpe,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
}

/// A token that is found in a text before all else.
#[derive(Clone, Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    special: bool,
}

/// The files of a tokenizer.
struct Files<'a> {
    folder: &'a Path,
    file: Option<TokenizerFile>,
    /// `tokenizer_config.json`.
    config: Option<Map<String, Value>>,
}

impl Files<'_> {
    /// The tokens that `tokenizer_config.json` adds.
    fn configured(&self) -> Outcome<Vec<Added>> {
        let Some(decoder) = self.config.as_ref().and_then(|config| get(config, "added_tokens_decoder")) else {
            return Ok(Vec::new());
        };
        let wrong = |what: &str| format!("{}: `added_tokens_decoder`: {what}", self.folder.join(CONFIG).display());
        let tokens = decoder.as_object().ok_or_else(|| wrong("not an object"))?;
        let token = |(id, token): (&String, &Value)| {
            let content = token.get("content").and_then(Value::as_str);
            let special = token.get("special").and_then(Value::as_bool).unwrap_or(false);
            let id = id.parse().ok();
            let (id, content) = id.zip(content).ok_or_else(|| wrong(&format!("{} is no token", shown(token))))?;
            Ok(Added { id, content: content.to_owned(), special })
        };
        tokens.iter().map(token).collect()
    }

    fn config(&self, key: &str) -> Option<&Value> {
        self.config.as_ref().and_then(|config| get(config, key))
    }
}

const CONFIG: &str = "tokenizer_config.json";

/// Writes the tokens and what is special about some.
pub fn write(vocabulary: Vocabulary, config: &Config, folder: &Path, keys: &mut Keys) -> Outcome {
    let size = config.extent("vocab_size")?;
    let files =
        Files { folder, file: read_json(&folder.join("tokenizer.json"))?, config: read_json(&folder.join(CONFIG))? };
    let model = folder.join("tokenizer.model");
    let class = files.config("tokenizer_class").and_then(Value::as_str);
    let is_byte_level = match vocabulary {
        Vocabulary::ByteLevel => true,
        Vocabulary::Phi => class == Some("GPT2Tokenizer"),
        Vocabulary::Either | Vocabulary::Llama => !model.is_file(),
        Vocabulary::Gemma => false,
    };
    let (tokens, merges) = match is_byte_level {
        true => {
            let vocabulary = byte_level::read(&files, size)?;
            keys.general("tokenizer.ggml.model", "gpt2")?;
            keys.general("tokenizer.ggml.pre", vocabulary.pre_tokenizer)?;
            (vocabulary.tokens, Some(vocabulary.merges))
        }
        false => {
            keys.general("tokenizer.ggml.model", "llama")?;
            keys.general("tokenizer.ggml.pre", "default")?;
            (sentence_piece::read(&model, &files, size, vocabulary == Vocabulary::Phi)?, None)
        }
    };
    keys.general("tokenizer.ggml.tokens", tokens.texts)?;
    keys.optional("tokenizer.ggml.scores", tokens.scores)?;
    keys.general("tokenizer.ggml.token_type", tokens.kinds.iter().map(|&kind| kind as i32).collect::<Vec<_>>())?;
    keys.optional("tokenizer.ggml.merges", merges.filter(|merges| !merges.is_empty()))?;

    let mut special = Special::read(&files, config, (!is_byte_level).then_some(size))?;
    if vocabulary == Vocabulary::Llama {
        let adds_space = files.config("add_prefix_space").and_then(Value::as_bool);
        keys.optional("tokenizer.ggml.add_space_prefix", adds_space)?;
        special.know_code(size);
    }
    if vocabulary == Vocabulary::Gemma {
        keys.general("tokenizer.ggml.add_space_prefix", false)?;
    }
    special.write(keys)
}

/// Whether a token is control for llama.cpp's script, whatever its file says.
fn looks_special(text: &str) -> bool {
    let is_between = |start: &str, end: &str| text.starts_with(start) && text.ends_with(end);
    matches!(text, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
        || is_between("<|", "|>")
        || is_between("<｜", "｜>")
        || is_between("<unused", ">")
}

/// The text and the kind of an added token.
fn added(token: &Added) -> (String, Kind) {
    match token.special || looks_special(&token.content) {
        true => (token.content.clone(), Kind::Control),
        // Found in a text before spaces are replaced.
        false => (token.content.replace('\u{2581}', " "), Kind::UserDefined),
    }
}
