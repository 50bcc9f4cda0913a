//! A bounds-checked reader of the bytes of a file.

use super::endian::{Endian, Number};
use super::error::{Error, Place};

/// How a file stores numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Encoding {
    pub endian: Endian,
    /// Bytes of the count of pairs, tensors or elements, of the length of a string, of a dimension.
    pub count_bytes: usize,
}

impl Encoding {
    /// That of a file of this version; the first one counted in `u32`.
    pub fn new(version: u32, endian: Endian) -> Self {
        Self { endian, count_bytes: if version == 1 { u32::BYTES } else { u64::BYTES } }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
    encoding: Encoding,
    /// The part of the file that errors name.
    pub place: Place<'a>,
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8], encoding: Encoding) -> Self {
        Self::at(bytes, 0, encoding)
    }

    pub fn at(bytes: &'a [u8], position: usize, encoding: Encoding) -> Self {
        Self { bytes, position, encoding, place: Place::Header }
    }

    pub fn position(&self) -> usize {
        self.position
    }

    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    pub fn set_encoding(&mut self, encoding: Encoding) {
        self.encoding = encoding;
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
        let number = T::take(self.rest(), self.encoding.endian).ok_or_else(|| self.truncated(T::BYTES as u64))?;
        self.position += T::BYTES;
        Ok(number)
    }

    /// Reads a count, a length or a dimension.
    pub fn size(&mut self) -> Result<u64, Error> {
        if self.encoding.count_bytes == u32::BYTES { self.number::<u32>().map(u64::from) } else { self.number() }
    }

    /// Reads the bytes of a string, without a check for UTF-8.
    pub fn string_bytes(&mut self) -> Result<&'a [u8], Error> {
        let length = self.size()?;
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
        let count = self.size()?;
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
pub(super) fn string_bytes_at(bytes: &[u8], position: usize, encoding: Encoding) -> &[u8] {
    Cursor::at(bytes, position, encoding).string_bytes().unwrap_or_default()
}
