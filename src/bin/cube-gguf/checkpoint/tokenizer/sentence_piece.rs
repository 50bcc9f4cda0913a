//! SentencePiece, of `tokenizer.model`: a message of Protocol Buffers whose field 1 is a piece, with a text, a score and a
//! type in fields 1, 2 and 3.

use std::collections::BTreeMap;
use std::path::Path;

use super::super::config::{read_file, read_json};
use super::{Added, Files, Kind, Tokens, added};
use crate::Outcome;

/// The score of tokens that are found before all else.
const ADDED: f32 = -1000.0;
/// That of places without a token.
const UNUSED: f32 = -10_000.0;

/// Reads `size` tokens: those of the model, then in their places those that were added, by `tokenizer.json` too where
/// `takes_file`.
pub fn read(model: &Path, files: &Files<'_>, size: usize, takes_file: bool) -> Outcome<Tokens> {
    let at = |what: &str| format!("{}: {what}", model.display());
    let bytes = read_file(model)?.ok_or_else(|| at("no such file"))?;
    let pieces = pieces(&bytes).ok_or_else(|| at("no SentencePiece model"))?;
    let mut tokens = Tokens {
        texts: (0..size).map(|id| format!("[PAD{id}]")).collect(),
        kinds: vec![Kind::Unused; size],
        scores: None,
    };
    let mut scores = vec![UNUSED; size];
    for (id, piece) in pieces.into_iter().enumerate().take(size) {
        tokens.texts[id] = piece.text;
        tokens.kinds[id] = piece.kind;
        scores[id] = piece.score;
    }
    let mut put = |id: u32, text: String, kind: Kind| {
        let id = id as usize;
        if id < size {
            (tokens.texts[id], tokens.kinds[id], scores[id]) = (text, kind, ADDED);
        }
    };
    let older: BTreeMap<String, u32> = read_json(&files.folder.join("added_tokens.json"))?.unwrap_or_default();
    for (text, id) in older {
        put(id, text, Kind::UserDefined);
    }
    let as_it_is = |token: &Added| {
        let kind = if token.special { Kind::Control } else { Kind::UserDefined };
        (token.content.clone(), kind)
    };
    for token in files.configured()? {
        let (text, kind) = if takes_file { as_it_is(&token) } else { added(&token) };
        put(token.id, text, kind);
    }
    if takes_file {
        for token in files.file.iter().flat_map(|file| &file.added_tokens) {
            let (text, kind) = as_it_is(token);
            put(token.id, text, kind);
        }
    }
    tokens.scores = Some(scores);
    Ok(tokens)
}

/// A piece of a model.
#[derive(Debug, PartialEq)]
struct Piece {
    text: String,
    score: f32,
    kind: Kind,
}

/// The value of a field.
enum Field<'a> {
    Number(u64),
    Four([u8; 4]),
    Bytes(&'a [u8]),
    /// Of a width that no field here has.
    Eight,
}

/// The pieces of a model; `None` where the bytes are none.
fn pieces(bytes: &[u8]) -> Option<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        if let (1, Field::Bytes(bytes)) = field(&mut rest)? {
            pieces.push(piece(bytes)?);
        }
    }
    Some(pieces).filter(|pieces| !pieces.is_empty())
}

fn piece(bytes: &[u8]) -> Option<Piece> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: Kind::Normal };
    let mut rest = bytes;
    while !rest.is_empty() {
        match field(&mut rest)? {
            (1, Field::Bytes(text)) => piece.text = str::from_utf8(text).ok()?.to_owned(),
            (2, Field::Four(score)) => piece.score = f32::from_le_bytes(score),
            (3, Field::Number(number)) => {
                piece.kind = match number {
                    // Those that a user defined are told by other files.
                    1 | 4 => Kind::Normal,
                    2 => Kind::Unknown,
                    3 => Kind::Control,
                    5 => Kind::Unused,
                    6 => Kind::Byte,
                    _ => return None,
                }
            }
            _ => (),
        }
    }
    Some(piece)
}

/// Takes a field: its number and its value.
fn field<'a>(rest: &mut &'a [u8]) -> Option<(u64, Field<'a>)> {
    let tag = number(rest)?;
    let value = match tag & 7 {
        0 => Field::Number(number(rest)?),
        1 => {
            take(rest, 8)?;
            Field::Eight
        }
        2 => {
            let len = number(rest)?;
            Field::Bytes(take(rest, usize::try_from(len).ok()?)?)
        }
        5 => Field::Four(take(rest, 4)?.try_into().ok()?),
        _ => return None,
    };
    Some((tag >> 3, value))
}

/// Takes a number: 7 bits of each byte, the lowest first, as long as its highest bit is set.
fn number(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for place in 0..10 {
        let [byte] = *take(rest, 1)? else { return None };
        number |= u64::from(byte & 0x7f) << (7 * place);
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(len)?;
    *rest = after;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A piece "ab" of score -1.5 and type 3, then one of text alone, between fields of every width that are something else.
    const MODEL: &[u8] = &[
        0x0a, 0x0b, 0x0a, 2, b'a', b'b', 0x15, 0, 0, 0xc0, 0xbf, 0x18, 3, 0x12, 1, 0xff, 0x18, 0x80, 0x01, 0x25, 1, 2,
        3, 4, 0x29, 1, 2, 3, 4, 5, 6, 7, 8, 0x0a, 3, 0x0a, 1, b'c',
    ];

    #[test]
    fn pieces_are_read_from_between_other_fields() {
        let expected = [
            Piece { text: "ab".to_owned(), score: -1.5, kind: Kind::Control },
            Piece { text: "c".to_owned(), score: 0.0, kind: Kind::Normal },
        ];
        assert_eq!(pieces(MODEL).unwrap(), expected);
    }

    #[test]
    fn bytes_that_are_no_model_are_refused() {
        assert!(pieces(&[]).is_none());
        // An endless number, a length that reaches outside, a type that is none, a text that is not UTF-8.
        for bytes in [&[0xff; 12][..], &[0x0a, 0x7f, 0], &[0x0a, 2, 0x18, 9], &[0x0a, 3, 0x0a, 1, 0xff]] {
            assert!(pieces(bytes).is_none(), "{bytes:?}");
        }
        // Cut anywhere, but between fields.
        for len in (1..MODEL.len()).filter(|len| ![13, 16, 19, 24, 33].contains(len)) {
            assert!(pieces(&MODEL[..len]).is_none(), "{len} bytes");
        }
    }
}
