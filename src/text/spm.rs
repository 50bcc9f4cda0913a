//! SentencePiece BPE: characters merge into the token of the highest score.
//!
//! That is not BPE by a list of merges: any two symbols whose texts together
//! are a token may merge, however either came to be.

use super::error::{Error, Result};
use super::merge::{Symbol, merge};
use super::vocabulary::{Vocabulary, byte_text};

/// What a space is written as in the vocabulary.
pub(super) const SPACE: char = '▁';

/// The encoder of vocabularies of kind `llama`.
#[derive(Clone, Debug)]
pub(super) struct Spm {
    /// The token of each byte, for characters that are no token.
    bytes: Vec<Option<u32>>,
    unknown: Option<u32>,
}

/// A score, which the reader of the vocabulary saw to be a number.
#[derive(PartialEq)]
struct Score(f32);

impl Eq for Score {}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Score {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl Spm {
    pub fn new(vocabulary: &Vocabulary, unknown: Option<u32>) -> Self {
        let bytes = (0..=u8::MAX).map(|byte| vocabulary.id(&byte_text(byte))).collect();
        Spm { bytes, unknown }
    }

    /// Appends the tokens of a text, in which spaces are [`SPACE`]s already.
    pub fn encode(&self, vocabulary: &Vocabulary, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        let symbols = text.char_indices().map(|(start, character)| {
            let len = character.len_utf8();
            Symbol { start, len, id: vocabulary.id(&text[start..start + len]) }
        });
        let token_of = |left: &Symbol, right: &Symbol| {
            let id = vocabulary.id(&text[left.start..right.end()])?;
            Some((Score(vocabulary.get(id)?.score), id))
        };
        for symbol in merge(symbols.collect(), token_of) {
            match symbol.id {
                Some(id) => ids.push(id),
                // What merged is a token, so this is one character.
                None => self.fall_back(&text[symbol.start..symbol.end()], ids)?,
            }
        }
        Ok(())
    }

    /// Appends the bytes of a character that is no token.
    fn fall_back(&self, character: &str, ids: &mut Vec<u32>) -> Result<()> {
        let bytes: Option<Vec<u32>> = character.bytes().map(|byte| self.bytes[usize::from(byte)]).collect();
        match (bytes, self.unknown) {
            (Some(bytes), _) => ids.extend(bytes),
            (None, Some(unknown)) => ids.push(unknown),
            (None, None) => {
                return Err(Error::NoTokenFor { character: character.chars().next().unwrap_or_default() });
            }
        }
        Ok(())
    }
}
