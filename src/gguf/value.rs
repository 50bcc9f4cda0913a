//! Metadata values, decoded in place.

use std::borrow::Cow;
use std::fmt;
use std::iter::FusedIterator;

use super::MAX_ARRAY_DEPTH;
use super::cursor::{Cursor, Encoding};
use super::endian::Endian;
use super::error::Error;

/// The type of a metadata value, as numbered by `enum gguf_type` in ggml's
/// `gguf.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the names say it all
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    /// Every type, in the order of their numbers.
    pub const ALL: [ValueType; 13] = [
        ValueType::U8,
        ValueType::I8,
        ValueType::U16,
        ValueType::I16,
        ValueType::U32,
        ValueType::I32,
        ValueType::F32,
        ValueType::Bool,
        ValueType::String,
        ValueType::Array,
        ValueType::U64,
        ValueType::I64,
        ValueType::F64,
    ];

    /// The number that stands for the type in a file.
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// The type with this number; `None` where the format defines no such type.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }

    /// The type's name: `u8`, `string`, `array`.
    pub const fn name(self) -> &'static str {
        match self {
            ValueType::U8 => "u8",
            ValueType::I8 => "i8",
            ValueType::U16 => "u16",
            ValueType::I16 => "i16",
            ValueType::U32 => "u32",
            ValueType::I32 => "i32",
            ValueType::F32 => "f32",
            ValueType::Bool => "bool",
            ValueType::String => "string",
            ValueType::Array => "array",
            ValueType::U64 => "u64",
            ValueType::I64 => "i64",
            ValueType::F64 => "f64",
        }
    }

    /// The fewest bytes that a value takes in a file with counts of so many bytes.
    const fn min_bytes(self, count_bytes: usize) -> usize {
        match self {
            ValueType::U8 | ValueType::I8 | ValueType::Bool => 1,
            ValueType::U16 | ValueType::I16 => 2,
            ValueType::U32 | ValueType::I32 | ValueType::F32 => 4,
            ValueType::U64 | ValueType::I64 | ValueType::F64 => 8,
            ValueType::String => count_bytes,
            ValueType::Array => 4 + count_bytes,
        }
    }

    /// Whether every bit pattern of the type's width is a valid value.
    const fn is_number(self) -> bool {
        !matches!(self, ValueType::Bool | ValueType::String | ValueType::Array)
    }

    pub(super) fn read(cursor: &mut Cursor<'_>) -> Result<Self, Error> {
        let number = cursor.number()?;
        Self::from_number(number).ok_or_else(|| Error::UnknownValueType { place: cursor.place.to_string(), number })
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A metadata value; strings and arrays borrow from the file.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)] // the names say it all
pub enum Value<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(&'a str),
    /// A string that is not UTF-8, as some tools have written; [`Value::lossy`] makes text of it.
    Bytes(&'a [u8]),
    Array(Array<'a>),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl<'a> Value<'a> {
    /// The value's type.
    pub const fn value_type(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::F32(_) => ValueType::F32,
            Value::Bool(_) => ValueType::Bool,
            Value::String(_) | Value::Bytes(_) => ValueType::String,
            Value::Array(_) => ValueType::Array,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F64(_) => ValueType::F64,
        }
    }

    /// The text of a string, with U+FFFD for what is not UTF-8; `None` for any other type.
    pub fn lossy(&self) -> Option<Cow<'a, str>> {
        match *self {
            Value::String(v) => Some(v.into()),
            Value::Bytes(v) => Some(String::from_utf8_lossy(v)),
            _ => None,
        }
    }

    /// The value of an integer of any width; `None` for any other type.
    pub fn integer(&self) -> Option<i128> {
        match *self {
            Value::U8(v) => Some(v.into()),
            Value::I8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::I16(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::I32(v) => Some(v.into()),
            Value::U64(v) => Some(v.into()),
            Value::I64(v) => Some(v.into()),
            _ => None,
        }
    }

    /// The value as errors describe it: the type, with the value of a number or
    /// a boolean and the element type of an array.
    pub(super) fn describe(&self) -> String {
        let name = self.value_type();
        match self {
            Value::F32(v) => format!("{name} {v}"),
            Value::F64(v) => format!("{name} {v}"),
            Value::Bool(v) => format!("{name} {v}"),
            Value::Array(array) => format!("{name} of {}", array.element_type()),
            Value::Bytes(_) => format!("{name} that is not UTF-8"),
            other => match other.integer() {
                Some(v) => format!("{name} {v}"),
                None => name.to_string(),
            },
        }
    }

    /// Reads and checks a value. A value accepted once is accepted again, so
    /// arrays can be decoded lazily.
    pub(super) fn read(cursor: &mut Cursor<'a>, value_type: ValueType) -> Result<Self, Error> {
        Self::read_nested(cursor, value_type, MAX_ARRAY_DEPTH)
    }

    fn read_nested(cursor: &mut Cursor<'a>, value_type: ValueType, depth: usize) -> Result<Self, Error> {
        Ok(match value_type {
            ValueType::U8 => Value::U8(cursor.number()?),
            ValueType::I8 => Value::I8(cursor.number()?),
            ValueType::U16 => Value::U16(cursor.number()?),
            ValueType::I16 => Value::I16(cursor.number()?),
            ValueType::U32 => Value::U32(cursor.number()?),
            ValueType::I32 => Value::I32(cursor.number()?),
            ValueType::F32 => Value::F32(cursor.number()?),
            ValueType::U64 => Value::U64(cursor.number()?),
            ValueType::I64 => Value::I64(cursor.number()?),
            ValueType::F64 => Value::F64(cursor.number()?),
            ValueType::String => {
                let bytes = cursor.string_bytes()?;
                str::from_utf8(bytes).map_or(Value::Bytes(bytes), Value::String)
            }
            ValueType::Array => Value::Array(Array::read(cursor, depth)?),
            ValueType::Bool => match cursor.number()? {
                0u8 => Value::Bool(false),
                1 => Value::Bool(true),
                byte => {
                    return Err(Error::BadBool { place: cursor.place.to_string(), byte });
                }
            },
        })
    }
}

/// An array of metadata values, left in the file and decoded as it is
/// iterated: a vocabulary of any size takes no memory.
#[derive(Clone, Copy)]
pub struct Array<'a> {
    bytes: &'a [u8],
    element_type: ValueType,
    len: usize,
    encoding: Encoding,
}

impl<'a> Array<'a> {
    /// The type of every element.
    pub fn element_type(&self) -> ValueType {
        self.element_type
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements as stored in the file, in its byte order.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The byte order of [`as_bytes`](Self::as_bytes).
    pub fn endian(&self) -> Endian {
        self.encoding.endian
    }

    /// How [`as_bytes`](Self::as_bytes) store their numbers.
    pub(super) fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// The elements, in order.
    pub fn iter(&self) -> ArrayIter<'a> {
        ArrayIter { cursor: Cursor::new(self.bytes, self.encoding), element_type: self.element_type, left: self.len }
    }

    fn read(cursor: &mut Cursor<'a>, depth: usize) -> Result<Self, Error> {
        let Some(depth) = depth.checked_sub(1) else {
            return Err(Error::ArrayTooDeep { place: cursor.place.to_string() });
        };
        let element_type = ValueType::read(cursor)?;
        let element_bytes = element_type.min_bytes(cursor.encoding().count_bytes);
        let len = cursor.count(element_bytes)?;
        let start = cursor.position();
        if element_type.is_number() {
            // No overflow: `count` checked that `len` elements fit in the file.
            cursor.take((len * element_bytes) as u64)?;
        } else {
            for _ in 0..len {
                Value::read_nested(cursor, element_type, depth)?;
            }
        }
        Ok(Array { bytes: cursor.since(start), element_type, len, encoding: cursor.encoding() })
    }
}

/// Equality of the elements, whatever byte order they are stored in.
impl PartialEq for Array<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.element_type == other.element_type && self.len == other.len && self.iter().eq(other.iter())
    }
}

impl fmt::Debug for Array<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<'a> IntoIterator for Array<'a> {
    type Item = Value<'a>;
    type IntoIter = ArrayIter<'a>;

    fn into_iter(self) -> ArrayIter<'a> {
        self.iter()
    }
}

/// The elements of an [`Array`].
#[derive(Clone, Debug)]
pub struct ArrayIter<'a> {
    cursor: Cursor<'a>,
    element_type: ValueType,
    left: usize,
}

impl<'a> Iterator for ArrayIter<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        self.left = self.left.checked_sub(1)?;
        // Checked when the array was read, so it is always `Ok`.
        Value::read(&mut self.cursor, self.element_type).ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for ArrayIter<'_> {}
impl FusedIterator for ArrayIter<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_identify_types() {
        for value_type in ValueType::ALL {
            assert_eq!(ValueType::from_number(value_type.number()), Some(value_type));
        }
        assert_eq!(ValueType::from_number(13), None);
    }
}
