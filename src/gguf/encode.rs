//! Encoding of Rust values as metadata values.

use super::cursor::Encoding;
use super::endian::{Endian, Number};
use super::value::{Array, Value, ValueType};

/// A value that can be written as metadata.
///
/// Slices, vectors and arrays of such values are arrays; they nest.
pub trait Encode {
    /// The type in the file.
    const TYPE: ValueType;

    /// Depth of nested arrays: 0 for a scalar or a string, 1 for an array of
    /// them.
    const DEPTH: usize = 0;

    /// Appends the value as a file stores it, without its type.
    fn encode(&self, endian: Endian, out: &mut Vec<u8>);
}

macro_rules! encode_numbers {
    ($($t:ty => $value_type:ident),*) => {$(
        impl Encode for $t {
            const TYPE: ValueType = ValueType::$value_type;

            fn encode(&self, endian: Endian, out: &mut Vec<u8>) {
                self.put(endian, out);
            }
        }
    )*};
}

encode_numbers!(
    u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32,
    u64 => U64, i64 => I64, f32 => F32, f64 => F64
);

impl Encode for bool {
    const TYPE: ValueType = ValueType::Bool;

    fn encode(&self, endian: Endian, out: &mut Vec<u8>) {
        u8::from(*self).put(endian, out);
    }
}

impl Encode for str {
    const TYPE: ValueType = ValueType::String;

    fn encode(&self, endian: Endian, out: &mut Vec<u8>) {
        encode_string(self.as_bytes(), endian, out);
    }
}

impl Encode for String {
    const TYPE: ValueType = ValueType::String;

    fn encode(&self, endian: Endian, out: &mut Vec<u8>) {
        self.as_str().encode(endian, out);
    }
}

impl<T: Encode> Encode for [T] {
    const TYPE: ValueType = ValueType::Array;
    const DEPTH: usize = 1 + T::DEPTH;

    fn encode(&self, endian: Endian, out: &mut Vec<u8>) {
        encode_array_head(T::TYPE, self.len(), endian, out);
        for element in self {
            element.encode(endian, out);
        }
    }
}

impl<T: Encode, const N: usize> Encode for [T; N] {
    const TYPE: ValueType = ValueType::Array;
    const DEPTH: usize = 1 + T::DEPTH;

    fn encode(&self, endian: Endian, out: &mut Vec<u8>) {
        self.as_slice().encode(endian, out);
    }
}

impl<T: Encode> Encode for Vec<T> {
    const TYPE: ValueType = ValueType::Array;
    const DEPTH: usize = 1 + T::DEPTH;

    fn encode(&self, endian: Endian, out: &mut Vec<u8>) {
        self.as_slice().encode(endian, out);
    }
}

impl<T: Encode + ?Sized> Encode for &T {
    const TYPE: ValueType = T::TYPE;
    const DEPTH: usize = T::DEPTH;

    fn encode(&self, endian: Endian, out: &mut Vec<u8>) {
        (**self).encode(endian, out);
    }
}

/// Appends a value read from a file, without its type.
pub(super) fn encode_value(value: Value<'_>, endian: Endian, out: &mut Vec<u8>) {
    match value {
        Value::U8(v) => v.put(endian, out),
        Value::I8(v) => v.put(endian, out),
        Value::U16(v) => v.put(endian, out),
        Value::I16(v) => v.put(endian, out),
        Value::U32(v) => v.put(endian, out),
        Value::I32(v) => v.put(endian, out),
        Value::F32(v) => v.put(endian, out),
        Value::U64(v) => v.put(endian, out),
        Value::I64(v) => v.put(endian, out),
        Value::F64(v) => v.put(endian, out),
        Value::Bool(v) => v.encode(endian, out),
        Value::String(v) => v.encode(endian, out),
        Value::Bytes(v) => encode_string(v, endian, out),
        Value::Array(array) => encode_read_array(array, endian, out),
    }
}

/// Appends a string, of UTF-8 or not.
fn encode_string(bytes: &[u8], endian: Endian, out: &mut Vec<u8>) {
    (bytes.len() as u64).put(endian, out);
    out.extend_from_slice(bytes);
}

fn encode_read_array(array: Array<'_>, endian: Endian, out: &mut Vec<u8>) {
    encode_array_head(array.element_type(), array.len(), endian, out);
    if array.encoding() == Encoding::new(super::VERSION, endian) {
        out.extend_from_slice(array.as_bytes());
    } else {
        for element in array {
            encode_value(element, endian, out);
        }
    }
}

pub(crate) fn encode_array_head(element_type: ValueType, len: usize, endian: Endian, out: &mut Vec<u8>) {
    element_type.number().put(endian, out);
    (len as u64).put(endian, out);
}
