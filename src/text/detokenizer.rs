//! The text of tokens as they come.

use super::error::Result;
use super::tokenizer::Tokenizer;

/// Gives the text of tokens as they come, in whole characters.
///
/// A token may be part of a character; its bytes are kept until the character
/// is whole. All that was given, and then [`finish`](Self::finish), is what
/// [`Tokenizer::decode`] makes of the same tokens, save for a space in front:
/// the tokens go on from a prompt, and the space is theirs.
#[derive(Clone, Debug)]
pub struct Detokenizer<'a> {
    tokenizer: &'a Tokenizer,
    /// The start of a character, without its end.
    pending: Vec<u8>,
}

impl<'a> Detokenizer<'a> {
    /// One before the first token.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Detokenizer { tokenizer, pending: Vec::new() }
    }

    /// Takes a token, and gives the characters that are whole with it. Bytes
    /// that cannot be part of any are U+FFFD.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownId`](super::Error::UnknownId).
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.pending.extend_from_slice(&self.tokenizer.text_piece(id)?);
        let whole = whole(&self.pending);
        let rest = self.pending.split_off(whole);
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending = rest;
        Ok(text)
    }

    /// Gives what is left: U+FFFD for a character that was never whole.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}

/// How many bytes are not the start of a character that may still be whole.
fn whole(bytes: &[u8]) -> usize {
    let Some(last) = bytes.utf8_chunks().last() else {
        return 0;
    };
    let tail = last.invalid();
    match std::str::from_utf8(tail) {
        // Only the very end can lack bytes, rather than have wrong ones.
        Err(error) if error.error_len().is_none() => bytes.len() - tail.len(),
        _ => bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_character_that_may_still_be_whole_is_kept_back() {
        assert_eq!(whole(b""), 0);
        assert_eq!(whole("aé".as_bytes()), 3);
        assert_eq!(whole(b"a\xF0\x9F\x98"), 1);
        assert_eq!(whole(b"a\xE2"), 1);
        assert_eq!(whole(b"a\xFF"), 2);
        assert_eq!(whole(b"\xE2a"), 2);
        assert_eq!(whole(b"\xE0\x80"), 2);
        assert_eq!(whole(b"\xFF\xE2\x96"), 1);
    }
}
