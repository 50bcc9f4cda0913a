//! Byte-level BPE: the bytes of a word merge by the ranks of a list.

use std::cmp::Reverse;
use std::collections::HashMap;

use super::bytes::CHARACTERS;
use super::error::{Error, Result};
use super::merge::{Symbol, merge};
use super::pre_tokenizer::PreTokenizer;
use super::vocabulary::Vocabulary;
use crate::gguf::Metadata;

const MERGES: &str = "tokenizer.ggml.merges";

/// The encoder of vocabularies of kind `gpt2`.
#[derive(Clone, Debug)]
pub(super) struct Bpe {
    pre_tokenizer: PreTokenizer,
    /// The rank, and the token made, of each two tokens that merge.
    merges: HashMap<(u32, u32), Merge>,
    /// The token of each byte. One without a token is left out of what is
    /// encoded, as llama.cpp does.
    bytes: Vec<Option<u32>>,
}

#[derive(Clone, Copy, Debug)]
struct Merge {
    rank: usize,
    id: u32,
}

impl Bpe {
    pub fn read(metadata: &Metadata<'_>, vocabulary: &Vocabulary, pre_tokenizer: PreTokenizer) -> Result<Self> {
        let bytes = CHARACTERS.iter().map(|character| vocabulary.id(character.encode_utf8(&mut [0; 4]))).collect();
        Ok(Bpe { pre_tokenizer, merges: read_merges(metadata, vocabulary)?, bytes })
    }

    /// Appends the tokens of a text.
    pub fn encode(&self, vocabulary: &Vocabulary, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        for word in self.pre_tokenizer.split(text)? {
            self.encode_word(vocabulary, word, ids);
        }
        Ok(())
    }

    fn encode_word(&self, vocabulary: &Vocabulary, word: &str, ids: &mut Vec<u32>) {
        if self.pre_tokenizer.ignores_merges() {
            let written: String = word.bytes().map(|byte| CHARACTERS[usize::from(byte)]).collect();
            if let Some(id) = vocabulary.id(&written) {
                return ids.push(id);
            }
        }
        let symbols = word.bytes().enumerate();
        let symbols = symbols.map(|(start, byte)| Symbol { start, len: 1, id: self.bytes[usize::from(byte)] });
        let token_of = |left: &Symbol, right: &Symbol| {
            let merge = self.merges.get(&(left.id?, right.id?))?;
            Some((Reverse(merge.rank), merge.id))
        };
        ids.extend(merge(symbols.collect(), token_of).filter_map(|symbol| symbol.id));
    }
}

fn read_merges(metadata: &Metadata<'_>, vocabulary: &Vocabulary) -> Result<HashMap<(u32, u32), Merge>> {
    let lines = metadata.elements::<&str>(MERGES)?;
    let mut merges = HashMap::with_capacity(lines.len());
    for (rank, line) in lines.enumerate() {
        let line = line?;
        let (left, right) =
            split_merge(line).ok_or_else(|| Error::BadMerge { key: MERGES, index: rank, merge: line.to_owned() })?;
        let id_of = |text: &str| {
            vocabulary.id(text).ok_or_else(|| Error::UnknownMerge { key: MERGES, index: rank, text: text.to_owned() })
        };
        let pair = (id_of(left)?, id_of(right)?);
        let id = id_of(&format!("{left}{right}"))?;
        // Of two ranks of a pair the first counts.
        merges.entry(pair).or_insert(Merge { rank, id });
    }
    Ok(merges)
}

/// The two tokens of a merge, at its first space that does not start it.
fn split_merge(line: &str) -> Option<(&str, &str)> {
    let space = 1 + line.bytes().skip(1).position(|byte| byte == b' ')?;
    let (left, right) = line.split_at(space);
    Some((left, &right[1..])).filter(|(_, right)| !right.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_merge_is_split_at_its_first_space_that_does_not_start_it() {
        assert_eq!(split_merge("Ġ t"), Some(("Ġ", "t")));
        assert_eq!(split_merge("a b c"), Some(("a", "b c")));
        assert_eq!(split_merge("  a"), Some((" ", "a")));
        for line in ["", " ", "a", " a", "a ", "é"] {
            assert_eq!(split_merge(line), None, "{line:?}");
        }
    }
}
