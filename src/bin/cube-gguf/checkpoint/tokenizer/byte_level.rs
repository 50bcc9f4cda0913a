//! Byte-level BPE, of `tokenizer.json`.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use serde::Deserialize;
use serde_json::Value;

use super::super::config::shown;
use super::{Files, Kind, Tokens, added};
use crate::Outcome;

/// The model of `tokenizer.json`.
#[derive(Default, Deserialize)]
pub struct Bpe {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    vocab: HashMap<String, u32>,
    #[serde(default)]
    merges: Vec<Merge>,
    #[serde(default)]
    ignore_merges: bool,
    #[serde(default)]
    byte_fallback: bool,
}

/// Two tokens, as older files have them in one string and newer ones in two.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Line(String),
    Pair([String; 2]),
}

impl Merge {
    /// The tokens with a space between them, in which their own spaces are as bytes.
    fn line(&self) -> String {
        match self {
            Self::Line(line) => line.clone(),
            Self::Pair(pair) => pair.each_ref().map(|part| part.replace(' ', "Ġ")).join(" "),
        }
    }
}

/// A vocabulary with its merges.
pub struct Vocabulary {
    pub tokens: Tokens,
    pub merges: Vec<String>,
    pub pre_tokenizer: &'static str,
}

/// Reads `size` tokens: those that no file has are unused.
pub fn read(files: &Files<'_>, size: usize) -> Outcome<Vocabulary> {
    let path = files.folder.join("tokenizer.json");
    let at = |what: String| format!("{}: {what}", path.display());
    let file = files.file.as_ref().ok_or_else(|| at("no such file".to_owned()))?;
    let model = &file.model;
    if model.kind.as_deref().is_some_and(|kind| kind != "BPE") || model.byte_fallback {
        return Err(at("no byte-level BPE, and tokenizer.model is missing".to_owned()).into());
    }
    let pre_tokenizer = pre_tokenizer(file.pre_tokenizer.as_ref(), model.ignore_merges).map_err(at)?;

    let mut texts: Vec<Option<(String, Kind)>> = vec![None; size];
    let mut put = |id: u32, text: String, kind: Kind| {
        let place = texts.get_mut(id as usize).ok_or_else(|| format!("token {id} of a vocabulary of {size}"))?;
        *place = Some((text, kind));
        Ok::<_, String>(())
    };
    for (text, &id) in &model.vocab {
        put(id, text.clone(), Kind::Normal).map_err(at)?;
    }
    let known: HashSet<&str> = file.added_tokens.iter().map(|token| token.content.as_str()).collect();
    let configured = files.configured()?;
    let others = configured.iter().filter(|token| !known.contains(token.content.as_str()));
    for token in file.added_tokens.iter().chain(others) {
        let (text, kind) = added(token);
        put(token.id, text, kind).map_err(at)?;
    }
    let unused = |id: usize| (format!("[PAD{id}]"), Kind::Unused);
    let (texts, kinds) = (0..).zip(texts).map(|(id, token)| token.unwrap_or_else(|| unused(id))).unzip();
    let tokens = Tokens { texts, kinds, scores: None };
    Ok(Vocabulary { tokens, merges: model.merges.iter().map(Merge::line).collect(), pre_tokenizer })
}

/// English contractions in either case, as most files write them, and as some do.
const CONTRACTIONS: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const OTHER_CONTRACTIONS: [&str; 2] =
    ["'(?i:[sdmt]|ll|ve|re)", "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"];

/// A pre-tokenizer that llama.cpp has a name for.
struct Known {
    name: &'static str,
    steps: &'static [Step<'static>],
    /// Whether words that are tokens are taken whole, where names differ by it: of the others llama.cpp has one way.
    ignores_merges: Option<bool>,
}

/// What a pre-tokenizer does to a text.
#[derive(Debug, PartialEq, Eq)]
enum Step<'a> {
    /// Words are what matches.
    Split(Cow<'a, str>),
    /// Each digit is a word.
    Digits,
    /// Words are split as GPT-2 does it.
    Gpt2,
}

macro_rules! tail {
    ($after:literal) => {
        concat!(r" ?[^\s\p{L}\p{N}]+[\r\n", $after, r"]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    };
}

macro_rules! upper {
    () => {
        r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
    };
}

macro_rules! lower {
    () => {
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    };
}

const fn split(regex: &'static str) -> Step<'static> {
    Step::Split(Cow::Borrowed(regex))
}

const LLAMA_3: Step<'static> =
    split(concat!("(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|", tail!("")));
const QWEN_2: Step<'static> =
    split(concat!("(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|", tail!("")));
const GPT_4O: Step<'static> = split(concat!(
    r"[^\r\n\p{L}\p{N}]?",
    upper!(),
    "*",
    lower!(),
    "+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?",
    upper!(),
    "+",
    lower!(),
    "*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}|",
    tail!("/")
));
const TEKKEN: Step<'static> = split(concat!(
    r"[^\r\n\p{L}\p{N}]?",
    upper!(),
    "*",
    lower!(),
    "+",
    r"|[^\r\n\p{L}\p{N}]?",
    upper!(),
    "+",
    lower!(),
    "*",
    r"|\p{N}|",
    tail!("/")
));

/// Those of the architectures at hand. Of names that stand for the same the first is here.
const KNOWN: [Known; 7] = [
    Known { name: "llama-bpe", steps: &[LLAMA_3], ignores_merges: Some(true) },
    Known { name: "dbrx", steps: &[LLAMA_3], ignores_merges: Some(false) },
    Known { name: "qwen2", steps: &[QWEN_2], ignores_merges: None },
    Known { name: "gpt-4o", steps: &[GPT_4O], ignores_merges: None },
    Known { name: "tekken", steps: &[TEKKEN], ignores_merges: None },
    Known { name: "smollm", steps: &[Step::Digits, Step::Gpt2], ignores_merges: None },
    Known { name: "gpt-2", steps: &[Step::Gpt2], ignores_merges: None },
];

/// The name of a pre-tokenizer by what it does. llama.cpp's script takes a hash of what a whole vocabulary makes of a text, and
/// knows no vocabulary but those that it was told of.
fn pre_tokenizer(value: Option<&Value>, ignores_merges: bool) -> Result<&'static str, String> {
    let value = value.ok_or("it has no pre-tokenizer")?;
    let mut found = Vec::new();
    if steps(value, &mut found).is_some() {
        let is_found = |known: &&Known| {
            let ignores = known.ignores_merges.unwrap_or(ignores_merges);
            known.steps == found && ignores == ignores_merges
        };
        if let Some(known) = KNOWN.iter().find(is_found) {
            return Ok(known.name);
        }
    }
    let known: Vec<_> = KNOWN.iter().map(|known| known.name).collect();
    Err(format!("its pre-tokenizer is none of {}: {}", known.join(", "), shown(value)))
}

/// Adds what a pre-tokenizer does; `None` where that is nothing known.
fn steps(value: &Value, found: &mut Vec<Step<'static>>) -> Option<()> {
    let is = |key: &str| value.get(key).and_then(Value::as_bool);
    match value.get("type")?.as_str()? {
        "Sequence" => value.get("pretokenizers")?.as_array()?.iter().try_for_each(|step| steps(step, found)),
        "Split" => {
            let regex = value.get("pattern")?.get("Regex")?.as_str()?;
            // What is between matches goes or stays: there is nothing between them.
            match (value.get("behavior")?.as_str()?, is("invert")?) {
                ("Isolated", false) | ("Removed", true) => (),
                _ => return None,
            }
            let usual = |regex: String, other: &&str| regex.replace(other, CONTRACTIONS);
            found.push(Step::Split(OTHER_CONTRACTIONS.iter().fold(regex.to_owned(), usual).into()));
            Some(())
        }
        "Digits" if is("individual_digits")? => {
            found.push(Step::Digits);
            Some(())
        }
        "ByteLevel" if !is("add_prefix_space")? => {
            if is("use_regex").unwrap_or(true) {
                found.push(Step::Gpt2);
            }
            Some(())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn name(steps: Value, ignores_merges: bool) -> Result<&'static str, String> {
        pre_tokenizer(Some(&json!({ "type": "Sequence", "pretokenizers": steps })), ignores_merges)
    }

    fn split(regex: &str) -> Value {
        json!({ "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false })
    }

    fn bytes(use_regex: bool) -> Value {
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex })
    }

    const TAIL: &str = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

    /// The sections that Llama 3, Phi 4, Qwen 2.5, Mistral Nemo and SmolLM have.
    #[test]
    fn pre_tokenizers_are_known_by_what_they_do() {
        let cl100k = format!(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}{TAIL}");
        assert_eq!(name(json!([split(&cl100k), bytes(false)]), true), Ok("llama-bpe"));
        assert_eq!(name(json!([split(&cl100k), bytes(false)]), false), Ok("dbrx"));
        let mut removed = split(&cl100k);
        (removed["behavior"], removed["invert"]) = (json!("Removed"), json!(true));
        assert_eq!(name(json!([removed, bytes(false)]), false), Ok("dbrx"));
        let qwen = format!(r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{TAIL}");
        assert_eq!(name(json!([split(&qwen), bytes(false)]), false), Ok("qwen2"));
        let tekken = concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
            r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        );
        assert_eq!(name(json!([split(tekken), bytes(false)]), true), Ok("tekken"));
        let digits = json!({ "type": "Digits", "individual_digits": true });
        assert_eq!(name(json!([digits, bytes(true)]), false), Ok("smollm"));
        assert_eq!(pre_tokenizer(Some(&bytes(true)), false), Ok("gpt-2"));
    }

    #[test]
    fn a_pre_tokenizer_that_does_more_is_refused() {
        let numbers = split(r"\p{N}{1,3}");
        let groups = json!({ "type": "Digits", "individual_digits": false });
        let spaced = json!({ "type": "ByteLevel", "add_prefix_space": true, "use_regex": true });
        for steps in
            [json!([numbers, bytes(true)]), json!([groups, bytes(true)]), json!([spaced]), json!([bytes(false)])]
        {
            assert!(name(steps.clone(), false).unwrap_err().contains("none of llama-bpe, dbrx, qwen2"), "{steps}");
        }
        assert!(pre_tokenizer(Some(&json!({ "type": "Metaspace" })), false).is_err());
        assert!(pre_tokenizer(None, false).is_err());
    }

    #[test]
    fn merges_are_lines_whose_spaces_are_bytes() {
        let merges: Vec<Merge> = serde_json::from_value(json!(["a b", ["a", "b"], ["a ", "b"]])).unwrap();
        assert_eq!(merges.iter().map(Merge::line).collect::<Vec<_>>(), ["a b", "a b", "aĠ b"]);
    }
}
