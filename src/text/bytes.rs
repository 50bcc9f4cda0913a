//! Bytes as characters, as GPT-2's byte-level BPE writes them in its
//! vocabulary.
//!
//! A byte that Latin-1 prints stands for itself; the other 68 are written, in
//! their order, as the characters from U+0100 on: a space is `Ġ`.

/// The first of the characters that stand for bytes that do not print.
const FIRST_SHIFTED: u32 = 0x100;

/// Whether a byte is written as the character of its own number.
const fn prints(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// The character of each byte, by the byte.
pub(super) const CHARACTERS: [char; 256] = characters();

const fn characters() -> [char; 256] {
    let mut characters = ['\0'; 256];
    let mut shifted = FIRST_SHIFTED;
    let mut byte = 0;
    while byte < 256 {
        let code = if prints(byte as u8) { byte as u32 } else { shifted };
        shifted += (!prints(byte as u8)) as u32;
        characters[byte] = match char::from_u32(code) {
            Some(character) => character,
            None => unreachable!(),
        };
        byte += 1;
    }
    characters
}

/// The byte that a character stands for.
pub(super) fn byte_of(character: char) -> Option<u8> {
    match u8::try_from(character) {
        Ok(byte) => Some(byte).filter(|&byte| prints(byte)),
        Err(_) => shifted_byte(u32::from(character).checked_sub(FIRST_SHIFTED)?),
    }
}

/// The byte of a place among those that do not print: 0 to 32, 127 to 160,
/// and 173.
fn shifted_byte(place: u32) -> Option<u8> {
    let place = usize::try_from(place).ok()?;
    match place {
        0..=32 => u8::try_from(place).ok(),
        33..=66 => u8::try_from(place - 33 + 127).ok(),
        67 => Some(173),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_a_character_that_stands_for_no_other() {
        for byte in 0..=u8::MAX {
            assert_eq!(byte_of(CHARACTERS[usize::from(byte)]), Some(byte));
        }
        let known = (0..0x1000).filter_map(char::from_u32).filter(|&c| byte_of(c).is_some()).count();
        assert_eq!(known, 256);
    }

    #[test]
    fn a_space_is_written_as_gpt_2_does() {
        assert_eq!(CHARACTERS[usize::from(b' ')], 'Ġ');
        assert_eq!(CHARACTERS[usize::from(b'\n')], 'Ċ');
        assert_eq!(CHARACTERS[0xAD], 'Ń');
    }
}
