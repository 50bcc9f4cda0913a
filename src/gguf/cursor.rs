//! A bounds-checked reader of the bytes of a file.

use super::endian::{Endian, Number};
use super::error::{Error, Place};

#[derive(Clone, Debug)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
    endian: Endian,
    /// The part of the file that errors name.
    pub place: Place<'a>,
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8], endian: Endian) -> Self {
        Self::at(bytes, 0, endian)
    }

    pub fn at(bytes: &'a [u8], position: usize, endian: Endian) -> Self {
        Self { bytes, position, endian, place: Place::Header }
    }

    pub fn position(&self) -> usize {
        self.position
    }

    pub fn endian(&self) -> Endian {
        self.endian
    }

    pub fn set_endian(&mut self, endian: Endian) {
        self.endian = endian;
    }

    /// The bytes from `start` to the position.
    pub fn since(&self, start: usize) -> &'a [u8] {
        self.bytes.get(start..self.position).unwrap_or_default()
    }

    pub fn take(&mut self, count: u64) -> Result<&'a [u8], Error> {
        let rest = self.rest();
        let taken =
            usize::try_from(count).ok().and_then(|count| rest.get(..count)).ok_or_else(|| self.truncated(count))?;
        self.position += taken.len();
        Ok(taken)
    }

    pub fn number<T: Number>(&mut self) -> Result<T, Error> {
        let number = T::take(self.rest(), self.endian).ok_or_else(|| self.truncated(T::BYTES as u64))?;
        self.position += T::BYTES;
        Ok(number)
    }

    /// Reads the bytes of a string, without a check for UTF-8.
    pub fn string_bytes(&mut self) -> Result<&'a [u8], Error> {
        let length = self.number::<u64>()?;
        self.take(length)
    }

    pub fn string(&mut self) -> Result<&'a str, Error> {
        let start = self.position;
        str::from_utf8(self.string_bytes()?)
            .map_err(|_| Error::NotUtf8 { place: self.place.to_string(), position: start })
    }

    /// Reads a count of entries of at least `entry_bytes` each, and checks that
    /// so many fit in the rest of the file, so that reserving memory for them
    /// is safe.
    pub fn count(&mut self, entry_bytes: usize) -> Result<usize, Error> {
        let count = self.number::<u64>()?;
        self.check_count(count, entry_bytes)
    }

    pub fn check_count(&self, count: u64, entry_bytes: usize) -> Result<usize, Error> {
        let limit = self.rest().len() / entry_bytes;
        match usize::try_from(count) {
            Ok(count) if count <= limit => Ok(count),
            _ => Err(Error::CountTooLarge { place: self.place.to_string(), count, limit }),
        }
    }

    fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.position..).unwrap_or_default()
    }

    fn truncated(&self, needed: u64) -> Error {
        Error::Truncated {
            place: self.place.to_string(),
            position: self.position,
            needed,
            available: self.rest().len(),
        }
    }
}

/// The bytes of the string at `position`; empty where there is no string.
pub(super) fn string_bytes_at(bytes: &[u8], position: usize, endian: Endian) -> &[u8] {
    Cursor::at(bytes, position, endian).string_bytes().unwrap_or_default()
}
