//! The key-value pairs of a file, and typed access to them.

use super::cursor::{Cursor, Encoding, string_bytes_at};
use super::error::{Error, Place};
use super::value::{Array, Value, ValueType};

/// The fewest bytes of a pair beside the key's length: the type, a value of a byte.
const MIN_PAIR_BYTES: usize = 4 + 1;

/// The metadata of a file: keys and values, borrowed from it.
///
/// Errors of the getters name the key, the type wanted and the type found. The
/// getters convert integers of any width to any other that holds the value,
/// and an `f32` to an `f64`.
#[derive(Clone, Debug)]
pub struct Metadata<'a> {
    bytes: &'a [u8],
    encoding: Encoding,
    /// Start of each pair, in the order of the file.
    pairs: Vec<usize>,
    /// Start of each pair, sorted by key.
    by_key: Vec<usize>,
}

impl<'a> Metadata<'a> {
    /// The number of keys.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// The value of a key.
    ///
    /// The value is decoded at each call, which for an array of strings means
    /// a walk through it: keep the array rather than ask again.
    pub fn get(&self, key: &str) -> Option<Value<'a>> {
        let index = self
            .by_key
            .binary_search_by_key(&key.as_bytes(), |&pair| string_bytes_at(self.bytes, pair, self.encoding))
            .ok()?;
        self.pair(*self.by_key.get(index)?).map(|(_, value)| value)
    }

    /// The keys and values, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, Value<'a>)> + '_ {
        self.pairs.iter().filter_map(|&pair| self.pair(pair))
    }

    /// The value of a key, as a `T`.
    ///
    /// # Errors
    ///
    /// [`Error::MissingKey`] or [`Error::WrongType`].
    pub fn value<T: FromValue<'a>>(&self, key: &str) -> Result<T, Error> {
        self.optional(key)?.ok_or_else(|| Error::MissingKey { key: key.to_owned() })
    }

    /// The value of a key, as a `T`; `None` when there is no such key.
    ///
    /// # Errors
    ///
    /// [`Error::WrongType`].
    pub fn optional<T: FromValue<'a>>(&self, key: &str) -> Result<Option<T>, Error> {
        self.get(key).map(|value| convert(key, value)).transpose()
    }

    /// The elements of an array, each as a `T`, decoded as they are iterated.
    ///
    /// # Errors
    ///
    /// [`Error::MissingKey`], or [`Error::WrongType`] when the value is no
    /// array. The iterator yields [`Error::WrongType`] for an element that is
    /// no `T`.
    pub fn elements<T: FromValue<'a>>(
        &self,
        key: &str,
    ) -> Result<impl ExactSizeIterator<Item = Result<T, Error>>, Error> {
        let array = self.array(key)?;
        Ok(array.iter().map(move |value| convert(key, value)))
    }

    pub(super) fn read(cursor: &mut Cursor<'a>, bytes: &'a [u8], count: u64) -> Result<Self, Error> {
        cursor.place = Place::Keys;
        let count = cursor.check_count(count, cursor.encoding().count_bytes + MIN_PAIR_BYTES)?;
        let mut pairs = Vec::with_capacity(count);
        for index in 0..count {
            pairs.push(cursor.position());
            let (key, _) = read_pair(cursor, index)?;
            if key.is_empty() {
                return Err(Error::EmptyKey { index });
            }
        }
        let encoding = cursor.encoding();
        let key = |&pair: &usize| string_bytes_at(bytes, pair, encoding);
        let mut by_key = pairs.clone();
        by_key.sort_unstable_by_key(key);
        if let Some([first, _]) = by_key.array_windows().find(|[a, b]| key(a) == key(b)) {
            return Err(Error::DuplicateKey { key: String::from_utf8_lossy(key(first)).into_owned() });
        }
        Ok(Metadata { bytes, encoding, pairs, by_key })
    }

    /// The pair at a position that `read` checked.
    fn pair(&self, position: usize) -> Option<(&'a str, Value<'a>)> {
        read_pair(&mut Cursor::at(self.bytes, position, self.encoding), 0).ok()
    }
}

fn read_pair<'a>(cursor: &mut Cursor<'a>, index: usize) -> Result<(&'a str, Value<'a>), Error> {
    cursor.place = Place::Key(index);
    let key = cursor.string()?;
    cursor.place = Place::Value(key);
    let value_type = ValueType::read(cursor)?;
    Ok((key, Value::read(cursor, value_type)?))
}

fn convert<'a, T: FromValue<'a>>(key: &str, value: Value<'a>) -> Result<T, Error> {
    T::from_value(value).ok_or_else(|| Error::WrongType {
        key: key.to_owned(),
        wanted: T::NAME,
        found: value.describe(),
    })
}

/// A type that a metadata value converts to without loss.
pub trait FromValue<'a>: Sized {
    /// The type's name in errors.
    const NAME: &'static str;

    /// The value; `None` when it is of another type or does not fit.
    fn from_value(value: Value<'a>) -> Option<Self>;
}

impl<'a> FromValue<'a> for Value<'a> {
    const NAME: &'static str = "any value";

    fn from_value(value: Value<'a>) -> Option<Self> {
        Some(value)
    }
}

impl FromValue<'_> for f64 {
    const NAME: &'static str = "f64";

    fn from_value(value: Value<'_>) -> Option<Self> {
        match value {
            Value::F64(v) => Some(v),
            Value::F32(v) => Some(v.into()),
            _ => None,
        }
    }
}

macro_rules! from_integer {
    ($($t:ident),*) => {$(
        impl FromValue<'_> for $t {
            const NAME: &'static str = stringify!($t);

            fn from_value(value: Value<'_>) -> Option<Self> {
                value.integer()?.try_into().ok()
            }
        }
    )*};
}

from_integer!(u8, i8, u16, i16, u32, i32, u64, i64, usize);

macro_rules! from_variant {
    ($($variant:ident => $t:ty, $name:literal;)*) => {$(
        impl<'a> FromValue<'a> for $t {
            const NAME: &'static str = $name;

            fn from_value(value: Value<'a>) -> Option<Self> {
                match value {
                    Value::$variant(v) => Some(v),
                    _ => None,
                }
            }
        }
    )*};
}

from_variant! {
    F32 => f32, "f32";
    Bool => bool, "bool";
    String => &'a str, "string";
    Array => Array<'a>, "array";
}

macro_rules! getters {
    ($($name:ident -> $t:ty, $what:literal;)*) => {
        impl<'a> Metadata<'a> {
            $(
                #[doc = concat!("The value of a key, which must be ", $what, ".")]
                ///
                /// # Errors
                ///
                /// [`Error::MissingKey`] or [`Error::WrongType`].
                pub fn $name(&self, key: &str) -> Result<$t, Error> {
                    self.value(key)
                }
            )*
        }
    };
}

getters! {
    u8 -> u8, "an integer that a `u8` holds";
    i8 -> i8, "an integer that an `i8` holds";
    u16 -> u16, "an integer that a `u16` holds";
    i16 -> i16, "an integer that an `i16` holds";
    u32 -> u32, "an integer that a `u32` holds";
    i32 -> i32, "an integer that an `i32` holds";
    u64 -> u64, "an integer that a `u64` holds";
    i64 -> i64, "an integer that an `i64` holds";
    usize -> usize, "an integer that a `usize` holds";
    f32 -> f32, "an `f32`";
    f64 -> f64, "an `f64` or an `f32`";
    bool -> bool, "a boolean";
    str -> &'a str, "a string";
    array -> Array<'a>, "an array";
}
