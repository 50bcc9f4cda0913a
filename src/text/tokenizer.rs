//! The tokenizer of a file.

use std::borrow::Cow;
use std::collections::BTreeSet;

use super::bpe::Bpe;
use super::bytes::byte_of;
use super::error::{Error, Result};
use super::pre_tokenizer::PreTokenizer;
use super::special::{self, Fragment, Partitioner, Special, SpecialIds};
use super::spm::{SPACE, Spm};
use super::vocabulary::{Kind, Token, Vocabulary};
use crate::gguf::Metadata;

const MODEL: &str = "tokenizer.ggml.model";
const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
const ADD_EOS: &str = "tokenizer.ggml.add_eos_token";
const ADD_SPACE_PREFIX: &str = "tokenizer.ggml.add_space_prefix";

/// The tokenizer that a GGUF file holds.
///
/// It encodes as llama.cpp's `llama_tokenize` does, token for token, and
/// decodes as its `llama_token_to_piece` does: `clean_up_tokenization_spaces`,
/// which loses text, is left alone. As in llama.cpp,
/// `tokenizer.ggml.remove_extra_whitespaces` has no meaning for these kinds of
/// vocabularies and is not read.
///
/// It copies what it needs: the file may be closed after it was made.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    vocabulary: Vocabulary,
    encoder: Encoder,
    special: SpecialIds,
    ends: BTreeSet<u32>,
    partitioner: Partitioner,
    /// The token that is added at the start of a text.
    first: Option<u32>,
    /// The token that is added at the end of a text.
    last: Option<u32>,
    /// Whether text at the start, and after a special token, is given a space.
    adds_space: bool,
}

#[derive(Clone, Debug)]
enum Encoder {
    Spm(Spm),
    Bpe(Bpe),
}

/// What a kind of vocabulary is by itself, before the file's own settings.
struct Defaults {
    special: SpecialIds,
    adds_bos: bool,
    adds_space: bool,
}

/// LLaMA's, which have been the defaults of its kind ever since.
const LLAMA: Defaults = Defaults {
    special: SpecialIds { unknown: Some(0), bos: Some(1), eos: Some(2), eot: None, eom: None, padding: None },
    adds_bos: true,
    adds_space: true,
};

/// Those of byte-level vocabularies. llama.cpp's are token 11 for both ends of
/// a text, as in Falcon: no file relies on it, and where token 11 is a comma a
/// text should not end at it.
const NONE: SpecialIds = SpecialIds { unknown: None, bos: None, eos: None, eot: None, eom: None, padding: None };

impl Tokenizer {
    /// The tokenizer that a file's metadata describes, of kind `llama` or
    /// `gpt2`. Of the latter, one without `tokenizer.ggml.pre` is read as
    /// llama.cpp reads it, whose warning is that its answers will be worse.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownModel`] and [`Error::UnknownPreTokenizer`] of what is
    /// not supported. [`Error::Gguf`] of keys that are missing or of another
    /// type. Any other [`Error`] of a vocabulary that does not hold up: empty,
    /// with the same token twice, scores or types that are fewer than the
    /// tokens, merges of what are no tokens, ids that are no tokens.
    pub fn from_gguf(metadata: &Metadata<'_>) -> Result<Self> {
        let model = metadata.str(MODEL)?;
        // Before the vocabulary, which takes a while to read.
        let pre_tokenizer = match model {
            "llama" => None,
            "gpt2" => Some(PreTokenizer::read(metadata)?),
            _ => return Err(Error::UnknownModel { key: MODEL, found: model.to_owned() }),
        };
        let defaults = match &pre_tokenizer {
            None => LLAMA,
            Some(pre) => Defaults { special: NONE, adds_bos: pre.adds_bos(), adds_space: false },
        };
        let mut vocabulary = Vocabulary::read(metadata)?;
        let mut special = SpecialIds::read(metadata, &vocabulary, defaults.special)?;
        let encoder = match pre_tokenizer {
            None => Encoder::Spm(Spm::new(&vocabulary, special.unknown)),
            Some(pre) => Encoder::Bpe(Bpe::read(metadata, &vocabulary, pre)?),
        };
        let ends = special::find_ends(metadata, &mut vocabulary, &mut special)?;
        Ok(Tokenizer {
            partitioner: Partitioner::new(metadata, &vocabulary)?,
            first: added(metadata, ADD_BOS, defaults.adds_bos, (special::BOS, special.bos))?,
            last: added(metadata, ADD_EOS, false, (special::EOS, special.eos))?,
            adds_space: metadata.optional(ADD_SPACE_PREFIX)?.unwrap_or(defaults.adds_space),
            vocabulary,
            encoder,
            special,
            ends,
        })
    }

    /// The tokens of a text.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use cube_gguf::{gguf::Files, text::{Special, Tokenizer}};
    /// # let files = Files::open("model.gguf")?;
    /// let tokenizer = Tokenizer::from_gguf(files.parse()?.metadata())?;
    /// let ids = tokenizer.encode("Hello, world!", Special { add: true, ..Special::default() })?;
    /// assert_eq!(tokenizer.decode(&ids)?, "Hello, world!");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NoTokenFor`] a character that the vocabulary has no way to
    /// write.
    pub fn encode(&self, text: &str, special: Special) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        ids.extend(self.first.filter(|_| special.add));
        let mut is_first = true;
        for fragment in self.partitioner.split(text, special.parse) {
            match fragment {
                Fragment::Token(id) => ids.push(id),
                Fragment::Text(text) => self.encode_text(text, is_first, &mut ids)?,
            }
            is_first = matches!(fragment, Fragment::Token(_));
        }
        ids.extend(self.last.filter(|_| special.add));
        Ok(ids)
    }

    /// The text of tokens, without control and unknown tokens. Bytes that are
    /// not UTF-8 become U+FFFD. A space that was added in front of the text
    /// when it was encoded is taken away again.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownId`].
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let mut bytes = Vec::new();
        let mut may_be_added = self.adds_space;
        for &id in ids {
            let piece = self.text_piece(id)?;
            // User-defined tokens are found before any space is added.
            let added = may_be_added && self.vocabulary.token(id)?.kind == Kind::Normal && piece.starts_with(b" ");
            bytes.extend_from_slice(if added { &piece[1..] } else { &piece });
            may_be_added &= piece.is_empty();
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The bytes that a token stands for: part of a character, maybe, and for
    /// a control token its name.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownId`].
    pub fn piece(&self, id: u32) -> Result<Cow<'_, [u8]>> {
        let token = self.vocabulary.token(id)?;
        Ok(match token.kind {
            Kind::Normal => self.normal_piece(token),
            Kind::Control | Kind::Unknown | Kind::UserDefined => Cow::Borrowed(token.text.as_bytes()),
            Kind::Byte(byte) => Cow::Owned(vec![byte]),
            Kind::Unused | Kind::Undefined => Cow::Borrowed(&[]),
        })
    }

    /// A token as the vocabulary writes it: `▁the` or `Ġthe` for " the".
    ///
    /// # Errors
    ///
    /// [`Error::UnknownId`].
    pub fn token(&self, id: u32) -> Result<&str> {
        self.vocabulary.token(id).map(|token| token.text.as_ref())
    }

    /// The id of a token, as the vocabulary writes it.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.vocabulary.id(token)
    }

    /// Whether a token ends what is generated: that of the end of a text, a
    /// turn or a message, and those that llama.cpp knows by their text.
    pub fn is_end(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }

    /// The token that [`encode`](Self::encode) puts before every text where it is asked to [add](Special::add) one: nothing where
    /// the file's texts start without.
    pub fn added_start(&self) -> Option<u32> {
        self.first
    }

    /// The token of the start of a text.
    pub fn bos(&self) -> Option<u32> {
        self.special.bos
    }

    /// The token of the end of a text.
    pub fn eos(&self) -> Option<u32> {
        self.special.eos
    }

    /// The token of the end of a turn.
    pub fn eot(&self) -> Option<u32> {
        self.special.eot
    }

    /// The token of the end of a message.
    pub fn eom(&self) -> Option<u32> {
        self.special.eom
    }

    /// The token of what no token stands for.
    pub fn unknown(&self) -> Option<u32> {
        self.special.unknown
    }

    /// The token that fills up batches.
    pub fn padding(&self) -> Option<u32> {
        self.special.padding
    }

    /// The number of tokens.
    pub fn len(&self) -> usize {
        self.vocabulary.len()
    }

    /// Whether there are no tokens, which no file that was read has.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What a token adds to a text: nothing for control and unknown tokens.
    pub(super) fn text_piece(&self, id: u32) -> Result<Cow<'_, [u8]>> {
        match self.vocabulary.token(id)?.kind {
            Kind::Control | Kind::Unknown => Ok(Cow::Borrowed(&[])),
            _ => self.piece(id),
        }
    }

    fn encode_text(&self, text: &str, is_first: bool, ids: &mut Vec<u32>) -> Result<()> {
        match &self.encoder {
            Encoder::Bpe(bpe) => bpe.encode(&self.vocabulary, text, ids),
            Encoder::Spm(spm) => {
                let added = if self.adds_space && is_first { " " } else { "" };
                let text = format!("{added}{text}").replace(' ', SPACE.encode_utf8(&mut [0; 4]));
                spm.encode(&self.vocabulary, &text, ids)
            }
        }
    }

    fn normal_piece<'a>(&self, token: &'a Token) -> Cow<'a, [u8]> {
        match self.encoder {
            Encoder::Spm(_) if token.text.contains(SPACE) => Cow::Owned(token.text.replace(SPACE, " ").into_bytes()),
            Encoder::Spm(_) => Cow::Borrowed(token.text.as_bytes()),
            Encoder::Bpe(_) => Cow::Owned(token.text.chars().flat_map(bytes_of).collect()),
        }
    }
}

/// The byte that a character of a byte-level vocabulary stands for; of a
/// character that stands for none, its own bytes.
fn bytes_of(character: char) -> impl Iterator<Item = u8> {
    let mut utf8 = [0; 4];
    let len = match byte_of(character) {
        Some(byte) => {
            utf8[0] = byte;
            1
        }
        None => character.encode_utf8(&mut utf8).len(),
    };
    utf8.into_iter().take(len)
}

/// The token to add to every text, if the file, or else `default`, asks for
/// one. `named` is the key that names it, and its id.
fn added(
    metadata: &Metadata<'_>,
    key: &'static str,
    default: bool,
    named: (&'static str, Option<u32>),
) -> Result<Option<u32>> {
    let (missing, id) = named;
    match metadata.optional::<bool>(key)? {
        Some(true) if id.is_none() => Err(Error::NothingToAdd { key, missing }),
        asked => Ok(id.filter(|_| asked.unwrap_or(default))),
    }
}
