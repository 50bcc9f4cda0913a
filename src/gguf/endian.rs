//! Byte order, and the numbers stored in it.

/// The byte order of a file: of its header and of its tensor data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Endian {
    /// Least significant byte first, as nearly every file is.
    #[default]
    Little,
    /// Most significant byte first.
    Big,
}

impl Endian {
    /// The byte order of this machine.
    pub const NATIVE: Endian = if cfg!(target_endian = "big") { Endian::Big } else { Endian::Little };
}

/// A number that the format stores.
pub(super) trait Number: Copy {
    /// Bytes in a file.
    const BYTES: usize;

    /// The number at the start of `bytes`; `None` when they are too few.
    fn take(bytes: &[u8], endian: Endian) -> Option<Self>;

    fn put(self, endian: Endian, out: &mut Vec<u8>);
}

macro_rules! numbers {
    ($($t:ty),*) => {$(
        impl Number for $t {
            const BYTES: usize = size_of::<$t>();

            fn take(bytes: &[u8], endian: Endian) -> Option<Self> {
                let bytes = *bytes.first_chunk()?;
                Some(match endian {
                    Endian::Little => <$t>::from_le_bytes(bytes),
                    Endian::Big => <$t>::from_be_bytes(bytes),
                })
            }

            fn put(self, endian: Endian, out: &mut Vec<u8>) {
                out.extend_from_slice(&match endian {
                    Endian::Little => self.to_le_bytes(),
                    Endian::Big => self.to_be_bytes(),
                });
            }
        }
    )*};
}

numbers!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64);
