//! The tensor types that ggml numbers.

use std::fmt;
use std::str::FromStr;

macro_rules! ggml_types {
    ($($variant:ident = $number:literal, $name:literal, $size:literal, $bytes:expr;)*) => {
        /// A tensor type, as numbered by `enum ggml_type` in ggml's `ggml.h`.
        ///
        /// Values are stored in blocks of [`block_size`](Self::block_size)
        /// values, [`block_bytes`](Self::block_bytes) bytes each. The numbers
        /// 4, 5, 31 to 33 and 36 to 38 belonged to types that ggml removed.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
        #[allow(non_camel_case_types)] // `Q40` would run the digits of `Q4_0` together
        #[non_exhaustive]
        pub enum GgmlType {
            $(
                #[doc = concat!("`", $name, "`, number ", $number, ".")]
                $variant = $number,
            )*
        }

        impl GgmlType {
            /// Every type, in the order of their numbers.
            pub const ALL: [GgmlType; [$($number),*].len()] = [$(GgmlType::$variant),*];

            /// The number that stands for the type in a file.
            pub const fn number(self) -> u32 {
                self as u32
            }

            /// The type with this number; `None` where ggml does not define it
            /// or has removed it.
            pub fn from_number(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(GgmlType::$variant),)*
                    _ => None,
                }
            }

            /// ggml's name, in upper case: `Q4_K`, `IQ2_XXS`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(GgmlType::$variant => $name,)*
                }
            }

            /// Values in a block.
            pub const fn block_size(self) -> usize {
                match self {
                    $(GgmlType::$variant => $size,)*
                }
            }

            /// Bytes in a block, under Candle's name for
            /// [`block_bytes`](Self::block_bytes).
            pub const fn type_size(self) -> usize {
                self.block_bytes()
            }

            /// Bytes in a block.
            pub const fn block_bytes(self) -> usize {
                match self {
                    $(GgmlType::$variant => $bytes,)*
                }
            }
        }
    };
}

// Number, name, values per block, bytes per block: from `ggml.h`, and from the
// sizes of block structs that `ggml-common.h` asserts.
ggml_types! {
    F32     = 0,  "F32",     1,   4;
    F16     = 1,  "F16",     1,   2;
    Q4_0    = 2,  "Q4_0",    32,  2 + 16;
    Q4_1    = 3,  "Q4_1",    32,  2 + 2 + 16;
    Q5_0    = 6,  "Q5_0",    32,  2 + 4 + 16;
    Q5_1    = 7,  "Q5_1",    32,  2 + 2 + 4 + 16;
    Q8_0    = 8,  "Q8_0",    32,  2 + 32;
    Q8_1    = 9,  "Q8_1",    32,  2 + 2 + 32;
    Q2K     = 10, "Q2_K",    256, 2 + 2 + 16 + 64;
    Q3K     = 11, "Q3_K",    256, 2 + 64 + 32 + 12;
    Q4K     = 12, "Q4_K",    256, 2 + 2 + 12 + 128;
    Q5K     = 13, "Q5_K",    256, 2 + 2 + 12 + 128 + 32;
    Q6K     = 14, "Q6_K",    256, 2 + 16 + 192;
    Q8K     = 15, "Q8_K",    256, 4 + 256 + 32;
    IQ2XXS  = 16, "IQ2_XXS", 256, 2 + 64;
    IQ2XS   = 17, "IQ2_XS",  256, 2 + 64 + 8;
    IQ3XXS  = 18, "IQ3_XXS", 256, 2 + 96;
    IQ1S    = 19, "IQ1_S",   256, 2 + 32 + 16;
    IQ4NL   = 20, "IQ4_NL",  32,  2 + 16;
    IQ3S    = 21, "IQ3_S",   256, 2 + 104 + 4;
    IQ2S    = 22, "IQ2_S",   256, 2 + 64 + 16;
    IQ4XS   = 23, "IQ4_XS",  256, 2 + 2 + 4 + 128;
    I8      = 24, "I8",      1,   1;
    I16     = 25, "I16",     1,   2;
    I32     = 26, "I32",     1,   4;
    I64     = 27, "I64",     1,   8;
    F64     = 28, "F64",     1,   8;
    IQ1M    = 29, "IQ1_M",   256, 32 + 16 + 8;
    BF16    = 30, "BF16",    1,   2;
    TQ1_0   = 34, "TQ1_0",   256, 2 + 4 + 48;
    TQ2_0   = 35, "TQ2_0",   256, 2 + 64;
    MXFP4   = 39, "MXFP4",   32,  1 + 16;
    NVFP4   = 40, "NVFP4",   64,  4 + 32;
    Q1_0    = 41, "Q1_0",    128, 2 + 16;
    Q2_0    = 42, "Q2_0",    64,  2 + 16;
}

impl GgmlType {
    /// Whether tensors of this type are weights, which can be dequantized and multiplied: all but integers and f64.
    pub const fn is_weights(self) -> bool {
        !matches!(self, Self::I8 | Self::I16 | Self::I32 | Self::I64 | Self::F64)
    }

    /// Bytes of a row of `k` values; `None` when `k` is no multiple of the
    /// block, or the number of bytes overflows.
    pub fn row_bytes(self, k: usize) -> Option<usize> {
        k.is_multiple_of(self.block_size()).then(|| (k / self.block_size()).checked_mul(self.block_bytes()))?
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A string that names no tensor type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is no tensor type of ggml")]
pub struct ParseGgmlTypeError {
    name: String,
}

impl FromStr for GgmlType {
    type Err = ParseGgmlTypeError;

    /// The type of a [`name`](Self::name), in upper or lower case.
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|dtype| dtype.name().eq_ignore_ascii_case(name))
            .ok_or_else(|| ParseGgmlTypeError { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_identify_types() {
        for dtype in GgmlType::ALL {
            assert_eq!(GgmlType::from_number(dtype.number()), Some(dtype));
            assert_eq!(dtype.name().to_lowercase().parse(), Ok(dtype));
        }
        assert!(GgmlType::ALL.is_sorted());
        assert!("Q4_4".parse::<GgmlType>().is_err());
    }

    #[test]
    fn removed_and_future_numbers_are_unknown() {
        for number in [4, 5, 31, 32, 33, 36, 37, 38, 43, u32::MAX] {
            assert_eq!(GgmlType::from_number(number), None);
        }
    }

    #[test]
    fn rows_are_whole_blocks() {
        assert_eq!(GgmlType::Q4K.row_bytes(512), Some(288));
        assert_eq!(GgmlType::Q4K.row_bytes(0), Some(0));
        assert_eq!(GgmlType::Q4K.row_bytes(255), None);
        assert_eq!(GgmlType::F64.row_bytes(usize::MAX), None);
    }
}
