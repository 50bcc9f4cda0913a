//! The tokens of a file: their texts, types and scores.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use super::error::{Error, Result};
use crate::gguf::{Array, Metadata, Value};

pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";

/// What a token is, as numbered by `enum llama_token_type` in llama.cpp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Of no type: as unused.
    Undefined,
    /// A piece of text.
    Normal,
    /// What stands for text that no token stands for.
    Unknown,
    /// What text cannot write, unless asked to: `<bos>`.
    Control,
    /// Text that is always a token of its own.
    UserDefined,
    /// A place that is kept free.
    Unused,
    /// A byte.
    Byte(u8),
}

/// A token.
#[derive(Clone, Debug)]
pub(super) struct Token {
    pub text: Arc<str>,
    pub kind: Kind,
    /// Never NaN or -0.0, which the order of merges relies on.
    pub score: f32,
}

/// The tokens of a file, by id and by text.
#[derive(Clone, Debug)]
pub(super) struct Vocabulary {
    tokens: Vec<Token>,
    ids: HashMap<Arc<str>, u32>,
}

impl Vocabulary {
    pub fn read(metadata: &Metadata<'_>) -> Result<Self> {
        let texts = metadata.elements::<&str>(TOKENS)?;
        let count = texts.len();
        if count == 0 {
            return Err(Error::EmptyVocabulary { key: TOKENS });
        }
        if u32::try_from(count).is_err() {
            return Err(Error::TooManyTokens { key: TOKENS, found: count });
        }
        let mut vocabulary = Vocabulary { tokens: Vec::with_capacity(count), ids: HashMap::with_capacity(count) };
        for (id, text) in (0..).zip(texts) {
            vocabulary.add(id, text?)?;
        }
        vocabulary.read_scores(metadata)?;
        vocabulary.read_types(metadata)?;
        Ok(vocabulary)
    }

    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    pub fn get(&self, id: u32) -> Option<&Token> {
        self.tokens.get(usize::try_from(id).ok()?)
    }

    pub fn token(&self, id: u32) -> Result<&Token> {
        self.get(id).ok_or(Error::UnknownId { id, tokens: self.len() })
    }

    pub fn id(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }

    /// The ids and tokens, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Token)> {
        (0..).zip(&self.tokens)
    }

    /// Makes a token of another kind than the file says.
    pub fn set_kind(&mut self, id: u32, kind: Kind) {
        if let Some(token) = usize::try_from(id).ok().and_then(|index| self.tokens.get_mut(index)) {
            token.kind = kind;
        }
    }

    fn add(&mut self, id: u32, text: &str) -> Result<()> {
        // An empty token is in no text; this is the name that llama.cpp gives it.
        let text: Arc<str> = if text.is_empty() { format!("[EMPTY_{id}]").into() } else { text.into() };
        match self.ids.entry(Arc::clone(&text)) {
            Entry::Occupied(first) => {
                let (text, first) = (text.as_ref().to_owned(), *first.get());
                return Err(Error::DuplicateToken { key: TOKENS, text, first, second: id });
            }
            Entry::Vacant(entry) => entry.insert(id),
        };
        self.tokens.push(Token { text, kind: Kind::Normal, score: 0.0 });
        Ok(())
    }

    fn read_scores(&mut self, metadata: &Metadata<'_>) -> Result<()> {
        let Some(scores) = self.optional_array(metadata, SCORES)? else {
            return Ok(());
        };
        for ((id, token), value) in (0..).zip(&mut self.tokens).zip(scores) {
            let score = score(value).ok_or(Error::BadScore { key: SCORES, id })?;
            // Makes -0.0 be 0.0.
            token.score = score + 0.0;
        }
        Ok(())
    }

    fn read_types(&mut self, metadata: &Metadata<'_>) -> Result<()> {
        let Some(types) = self.optional_array(metadata, TYPES)? else {
            return Ok(());
        };
        for ((id, token), value) in (0..).zip(&mut self.tokens).zip(types) {
            let number = value.integer().and_then(|number| i64::try_from(number).ok()).unwrap_or(-1);
            token.kind = kind(number, id, &token.text)?;
        }
        Ok(())
    }

    /// An array of something about each token, if the file has it.
    fn optional_array<'a>(&self, metadata: &Metadata<'a>, key: &'static str) -> Result<Option<Array<'a>>> {
        let array = metadata.optional::<Array<'_>>(key)?;
        if let Some(array) = array
            && array.len() < self.len()
        {
            return Err(Error::ArrayLength { key, found: array.len(), tokens: self.len() });
        }
        Ok(array)
    }
}

fn score(value: Value<'_>) -> Option<f32> {
    let score = match value {
        Value::F32(score) => score,
        Value::I32(score) => score as f32, // as llama.cpp reads them
        _ => return None,
    };
    Some(score).filter(|score| !score.is_nan())
}

fn kind(number: i64, id: u32, text: &str) -> Result<Kind> {
    Ok(match number {
        0 => Kind::Undefined,
        1 => Kind::Normal,
        2 => Kind::Unknown,
        3 => Kind::Control,
        4 => Kind::UserDefined,
        5 => Kind::Unused,
        6 => Kind::Byte(byte(text).ok_or_else(|| Error::BadByteToken { key: TOKENS, id, text: text.to_owned() })?),
        _ => return Err(Error::UnknownTokenType { key: TYPES, id, found: number }),
    })
}

/// The byte of a text like `<0x0A>`.
fn byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_hex = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    if is_hex { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// The text of the token of a byte, in vocabularies that have such tokens.
pub(super) fn byte_text(byte: u8) -> String {
    format!("<0x{byte:02X}>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_token_is_two_hexadecimal_digits() {
        assert_eq!(byte("<0x0A>"), Some(10));
        assert_eq!(byte("<0xff>"), Some(255));
        for text in ["", "<0x>", "<0x+1>", "<0x0A", "0x0A>", "<0x0AB>", "<0x é>"] {
            assert_eq!(byte(text), None, "{text}");
        }
        assert!((0..=u8::MAX).all(|value| byte(&byte_text(value)) == Some(value)));
    }
}
