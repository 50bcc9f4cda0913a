//! Special tokens: which there are, which end a text, and how they are found
//! in one.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::error::{Error, Result};
use super::vocabulary::{Kind, Vocabulary};
use crate::gguf::Metadata;

/// How a text is encoded where special tokens are concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Special {
    /// Whether the text of a control token in the text is that token. Leave
    /// it off for text that a user wrote, which could otherwise end its turn.
    pub parse: bool,
    /// Whether the tokens that the model wants at the start and at the end of
    /// a text are added. Leave it off for what a chat template rendered, which
    /// has them already.
    pub add: bool,
}

pub(super) const BOS: &str = "tokenizer.ggml.bos_token_id";
pub(super) const EOS: &str = "tokenizer.ggml.eos_token_id";
const EOT: &str = "tokenizer.ggml.eot_token_id";
const EOM: &str = "tokenizer.ggml.eom_token_id";
const UNKNOWN: &str = "tokenizer.ggml.unknown_token_id";
const PADDING: &str = "tokenizer.ggml.padding_token_id";

/// The special tokens that have a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SpecialIds {
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub eot: Option<u32>,
    pub eom: Option<u32>,
    pub unknown: Option<u32>,
    pub padding: Option<u32>,
}

impl SpecialIds {
    /// Those that the file names, else those of `default` that exist; the end
    /// of a turn and of a message are [`find_ends`]'s to find.
    pub fn read(metadata: &Metadata<'_>, vocabulary: &Vocabulary, default: SpecialIds) -> Result<Self> {
        let id = |key, default: Option<u32>| {
            Ok::<_, Error>(read_id(metadata, key, vocabulary)?.or(default.filter(|&id| vocabulary.get(id).is_some())))
        };
        Ok(SpecialIds {
            bos: id(BOS, default.bos)?,
            eos: id(EOS, default.eos)?,
            unknown: id(UNKNOWN, default.unknown)?,
            // Nothing here pads, and there are files whose padding is no token.
            padding: id(PADDING, default.padding).unwrap_or_default(),
            ..default
        })
    }
}

fn read_id(metadata: &Metadata<'_>, key: &'static str, vocabulary: &Vocabulary) -> Result<Option<u32>> {
    let Some(id) = metadata.optional::<u64>(key)? else {
        return Ok(None);
    };
    let found = u32::try_from(id).ok().filter(|&id| vocabulary.get(id).is_some());
    found.map(Some).ok_or(Error::SpecialOutOfRange { key, id, tokens: vocabulary.len() })
}

/// Tokens that are known by their text where the file does not name them: the
/// first of `texts` that is a token is one, and it is a control token.
struct Known {
    /// The metadata keys that may name the token, of which the first counts.
    keys: &'static [&'static str],
    texts: &'static [&'static str],
    /// Whether the token ends a text.
    ends: bool,
}

const END_OF_TURN: Known = Known {
    keys: &[EOT],
    texts: &[
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "<｜end▁of▁sentence｜>",
        "<end_of_utterance>",
    ],
    ends: true,
};

const END_OF_MESSAGE: Known = Known { keys: &[EOM], texts: &["<|eom_id|>"], ends: true };

const FILL_IN_THE_MIDDLE: [Known; 6] = [
    Known {
        keys: &["tokenizer.ggml.prefix_token_id", "tokenizer.ggml.fim_pre_token_id"],
        texts: &[
            "<|fim_prefix|>",
            "<fim-prefix>",
            "<fim_prefix>",
            "<｜fim▁begin｜>",
            "<PRE>",
            "▁<PRE>",
            "<|code_prefix|>",
            "<|prefix|>",
        ],
        ends: false,
    },
    Known {
        keys: &["tokenizer.ggml.suffix_token_id", "tokenizer.ggml.fim_suf_token_id"],
        texts: &[
            "<|fim_suffix|>",
            "<fim-suffix>",
            "<fim_suffix>",
            "<｜fim▁hole｜>",
            "<SUF>",
            "▁<SUF>",
            "<|code_suffix|>",
            "<|suffix|>",
        ],
        ends: false,
    },
    Known {
        keys: &["tokenizer.ggml.middle_token_id", "tokenizer.ggml.fim_mid_token_id"],
        texts: &[
            "<|fim_middle|>",
            "<fim-middle>",
            "<fim_middle>",
            "<｜fim▁end｜>",
            "<MID>",
            "▁<MID>",
            "<|code_middle|>",
            "<|middle|>",
        ],
        ends: false,
    },
    Known {
        keys: &["tokenizer.ggml.fim_pad_token_id"],
        texts: &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
        ends: true,
    },
    Known {
        keys: &["tokenizer.ggml.fim_rep_token_id"],
        texts: &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"],
        ends: true,
    },
    Known { keys: &["tokenizer.ggml.fim_sep_token_id"], texts: &["<|file_sep|>"], ends: true },
];

/// The texts of tokens that end a text, whatever the file says of them.
const ENDS: [&str; 22] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// Tokens of gpt-oss that are text, though the file says control.
const SHOWN: [&str; 4] = ["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// Finds the tokens that end a text: those that the file names and those that
/// are known by their text. Completes `special` and corrects the kinds of
/// tokens as llama.cpp does.
pub(super) fn find_ends(
    metadata: &Metadata<'_>,
    vocabulary: &mut Vocabulary,
    special: &mut SpecialIds,
) -> Result<BTreeSet<u32>> {
    special.eot = find_known(metadata, vocabulary, &END_OF_TURN)?.or(special.eot);
    special.eom = find_known(metadata, vocabulary, &END_OF_MESSAGE)?.or(special.eom);
    let mut ends = BTreeSet::new();
    for known in &FILL_IN_THE_MIDDLE {
        ends.extend(find_known(metadata, vocabulary, known)?.filter(|_| known.ends));
    }
    for id in ENDS.iter().filter_map(|text| vocabulary.id(text)).collect::<Vec<_>>() {
        vocabulary.set_kind(id, Kind::Control);
        ends.insert(id);
    }
    for id in SHOWN.iter().filter_map(|text| vocabulary.id(text)).collect::<Vec<_>>() {
        vocabulary.set_kind(id, Kind::UserDefined);
    }
    ends.extend([special.eos, special.eot, special.eom].into_iter().flatten());
    keep_what_continues(vocabulary, &mut ends);
    Ok(ends)
}

/// The token that the file names, else the first that is known by its text.
fn find_known(metadata: &Metadata<'_>, vocabulary: &mut Vocabulary, known: &Known) -> Result<Option<u32>> {
    for key in known.keys {
        if let Some(id) = read_id(metadata, key, vocabulary)? {
            return Ok(Some(id));
        }
    }
    let found = known.texts.iter().find_map(|text| vocabulary.id(text));
    if let Some(id) = found {
        vocabulary.set_kind(id, Kind::Control);
    }
    Ok(found)
}

/// Takes from `ends` what, beside certain others, ends nothing.
fn keep_what_continues(vocabulary: &mut Vocabulary, ends: &mut BTreeSet<u32>) {
    let end = |text: &str| vocabulary.id(text).filter(|id| ends.contains(id));
    let is_end = |text: &str| end(text).is_some();
    // gpt-oss and Solar Open end a message with it, and go on.
    let calls = is_end("<|call|>") || is_end("<|calls|>");
    let message_end = end("<|end|>").filter(|_| calls && (is_end("<|return|>") || is_end("<|flush|>")));
    // Gemma 4 and PLaMo have it as plain text.
    let markup = end("</s>").filter(|_| is_end("<|tool_response>") || is_end("<|plamo:eos|>"));
    if let Some(id) = message_end {
        ends.remove(&id);
        vocabulary.set_kind(id, Kind::UserDefined);
    }
    if let Some(id) = markup {
        ends.remove(&id);
        vocabulary.set_kind(id, Kind::Normal);
    }
}

/// A stretch of a text: a special token, or what is left to encode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fragment<'a> {
    Text(&'a str),
    Token(u32),
}

/// A token that is found in a text before all else.
#[derive(Clone, Debug)]
struct Pattern {
    id: u32,
    text: Arc<str>,
    /// Whether the text is the token only where special tokens are parsed.
    is_hidden: bool,
    /// Whether the token takes the whitespace before it.
    strips_left: bool,
    /// Whether the token takes the whitespace after it.
    strips_right: bool,
}

/// The special tokens, longest first.
#[derive(Clone, Debug)]
pub(super) struct Partitioner {
    patterns: Vec<Pattern>,
}

impl Partitioner {
    pub fn new(metadata: &Metadata<'_>, vocabulary: &Vocabulary) -> Result<Self> {
        let strips = Strips::read(metadata)?;
        let mut patterns: Vec<Pattern> = vocabulary
            .iter()
            .filter(|(_, token)| matches!(token.kind, Kind::Control | Kind::UserDefined | Kind::Unknown))
            .map(|(id, token)| Pattern {
                id,
                text: Arc::clone(&token.text),
                is_hidden: token.kind != Kind::UserDefined,
                strips_left: strips.left(&token.text),
                strips_right: strips.right(&token.text),
            })
            .collect();
        patterns.sort_by_key(|pattern| std::cmp::Reverse(pattern.text.len()));
        Ok(Partitioner { patterns })
    }

    /// Splits a text at its special tokens: the longest token wins, wherever
    /// in the text it is; of its own occurrences the first does.
    pub fn split<'a>(&self, text: &'a str, parse: bool) -> Vec<Fragment<'a>> {
        let mut fragments: Vec<_> = Some(Fragment::Text(text)).filter(|_| !text.is_empty()).into_iter().collect();
        for pattern in self.patterns.iter().filter(|pattern| parse || !pattern.is_hidden) {
            // Most tokens are in no text, so look before building anything.
            if text.contains(pattern.text.as_ref()) {
                fragments = fragments.into_iter().flat_map(|fragment| pattern.split(fragment)).collect();
            }
        }
        fragments
    }
}

impl Pattern {
    fn split<'a>(&self, fragment: Fragment<'a>) -> Vec<Fragment<'a>> {
        let Fragment::Text(mut text) = fragment else {
            return vec![fragment];
        };
        let mut fragments = Vec::new();
        while let Some((mut before, mut after)) = text.split_once(self.text.as_ref()) {
            if self.strips_left {
                before = before.trim_end_matches(is_c_space);
            }
            if self.strips_right {
                after = after.trim_start_matches(is_c_space);
            }
            fragments.extend(Some(Fragment::Text(before)).filter(|_| !before.is_empty()));
            fragments.push(Fragment::Token(self.id));
            text = after;
        }
        fragments.extend(Some(Fragment::Text(text)).filter(|_| !text.is_empty()));
        fragments
    }
}

/// What C's `isspace` takes for whitespace.
fn is_c_space(character: char) -> bool {
    matches!(character, ' ' | '\t'..='\r')
}

/// Which special tokens take the whitespace beside them. A file does not say;
/// these are the models that llama.cpp knows to want it.
enum Strips {
    None,
    /// A mask takes what is before it.
    Mask(&'static str),
    /// Phi-3: nearly all take what is after them.
    Phi3,
}

impl Strips {
    fn read(metadata: &Metadata<'_>) -> Result<Self> {
        let name = metadata.optional::<&str>("general.name")?.unwrap_or_default().to_ascii_lowercase();
        let architecture = metadata.optional::<&str>("general.architecture")?.unwrap_or_default();
        let pre = metadata.optional::<&str>(super::pre_tokenizer::KEY)?.unwrap_or_default();
        let contains = |text: &str, parts: &[&str]| parts.iter().any(|part| text.contains(part));
        let masks = contains(pre, &["jina-v2-de", "jina-v2-es", "jina-v2-code", "mmbert"])
            || contains(architecture, &["nomic-bert-moe", "jina-bert-v3"]);
        Ok(match () {
            () if masks => Strips::Mask("<mask>"),
            () if contains(&name, &["phi-3", "phi3"]) => Strips::Phi3,
            () if name.contains("modern-bert") => Strips::Mask("[MASK]"),
            () => Strips::None,
        })
    }

    fn left(&self, text: &str) -> bool {
        matches!(self, Strips::Mask(mask) if *mask == text)
    }

    fn right(&self, text: &str) -> bool {
        matches!(self, Strips::Phi3) && !matches!(text, "<unk>" | "<s>" | "<|endoftext|>")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partitioner(patterns: &[(&str, bool, bool)]) -> Partitioner {
        let pattern = |(id, &(text, strips_left, strips_right)): (u32, &(&str, bool, bool))| Pattern {
            id,
            text: text.into(),
            is_hidden: false,
            strips_left,
            strips_right,
        };
        Partitioner { patterns: (0..).zip(patterns).map(pattern).collect() }
    }

    #[test]
    fn the_longer_token_wins_even_where_a_shorter_one_starts_first() {
        let tokens = partitioner(&[("bcd", false, false), ("ab", false, false)]);
        assert_eq!(
            tokens.split("abcd ab", true),
            [Fragment::Text("a"), Fragment::Token(0), Fragment::Text(" "), Fragment::Token(1)]
        );
    }

    #[test]
    fn a_token_takes_the_whitespace_beside_it_where_it_is_to() {
        let tokens = partitioner(&[("<m>", true, true)]);
        assert_eq!(
            tokens.split("a \t<m>\n <m> \u{a0}b", true),
            [Fragment::Text("a"), Fragment::Token(0), Fragment::Token(0), Fragment::Text("\u{a0}b")]
        );
        assert_eq!(tokens.split(" <m> ", true), [Fragment::Token(0)]);
        assert_eq!(tokens.split("", true), []);
    }
}
