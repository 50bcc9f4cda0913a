//! One file for each thing that can be wrong, and the error that it must be.

use std::collections::BTreeSet;

use cube_gguf::gguf::{Error, Files, Gguf};

use crate::{corpus, files};

macro_rules! hostile {
    ($($name:literal => $variant:ident, $message:literal;)*) => {
        const NAMES: &[&str] = &[$($name),*];

        /// Whether the error is the one of the file.
        fn is_expected(name: &str, error: &Error) -> bool {
            match name {
                $($name => matches!(error, Error::$variant { .. })
                    && error.to_string().contains($message),)*
                _ => false,
            }
        }
    };
}

// The file, the error, and a part of its message.
hostile! {
    "header-cut" => Truncated, "the header needs 8 bytes at byte 8, 4 are left";
    "magic" => BadMagic, "\"GGML\"";
    "version-0" => UnsupportedVersion, "version 0";
    "version-4" => UnsupportedVersion, "version 4";
    "version-4-big-endian" => UnsupportedVersion, "version 4";
    "key-count-huge" => CountTooLarge, "the metadata claims 18446744073709551615 entries";
    "key-count-one-too-many" => CountTooLarge, "the metadata claims 2 entries, at most 1";
    "tensor-count-huge" => CountTooLarge, "the list of tensors claims";
    "tensor-count-one-too-many" => CountTooLarge, "the list of tensors claims 2";
    "key-length-huge" => Truncated, "metadata key 0 needs 18446744073709551615 bytes";
    "key-not-utf8" => NotUtf8, "metadata key 0: the string at byte 24";
    "key-empty" => EmptyKey, "metadata key 0";
    "key-duplicate" => DuplicateKey, "`one`";
    "value-type-13" => UnknownValueType, "`k` has unknown type 13";
    "value-cut" => Truncated, "`k` needs 8 bytes at byte 37, 4 are left";
    "bool-2" => BadBool, "`k`: 2 is no boolean";
    "bool-2-in-array" => BadBool, "`k`: 2 is no boolean";
    "string-length-huge" => Truncated, "`k` needs 9223372036854775808 bytes";
    "array-count-huge" => CountTooLarge, "`k` claims 18446744073709551615 entries";
    "array-count-wraps" => CountTooLarge, "`k` claims 2305843009213693953 entries";
    "array-type-13" => UnknownValueType, "`k` has unknown type 13";
    "array-of-strings-cut" => Truncated, "`k` needs 99 bytes";
    "array-depth-9" => ArrayTooDeep, "`k` nests arrays deeper than 8";
    "array-depth-60" => ArrayTooDeep, "`k` nests arrays deeper than 8";
    "alignment-0" => BadAlignment, "alignment 0";
    "alignment-48" => BadAlignment, "alignment 48";
    "alignment-u64" => WrongType, "`general.alignment`: wanted u32, found u64 32";
    "tensor-name-length-huge" => Truncated, "the name of tensor 0 needs 1099511627776 bytes";
    "tensor-name-not-utf8" => NotUtf8, "the name of tensor 0";
    "tensor-duplicate" => DuplicateTensor, "`t`";
    "dims-5" => TooManyDims, "`t` has 5 dimensions";
    "dims-4-billion" => TooManyDims, "`t` has 4294967295 dimensions";
    "dims-product-wraps" => SizeOverflow, "`t`: the size of dimensions [4294967296, 4294967296]";
    "dims-product-wraps-with-0" => SizeOverflow, "`t`: the size of dimensions [0, 1099";
    "dims-bytes-wrap" => SizeOverflow, "`t`: the size of dimensions [4611686018427387904]";
    "row-partial-block" => PartialBlock, "`t`: rows of 48 values are no multiple of Q4_0's blocks of 32";
    "scalar-partial-block" => PartialBlock, "`t`: rows of 1 values";
    "offset-misaligned" => Misaligned, "`t`: offset 16 is no multiple of the alignment 32";
    "offset-outside" => OutOfFile, "`t`: 32 bytes at offset 64 reach outside the 64 bytes";
    "offset-wraps" => OutOfFile, "`t`: 32 bytes at offset 18446744073709551584";
    "data-cut" => OutOfFile, "`u`: 32 bytes at offset 32 reach outside the 63 bytes";
    "data-padding-cut" => Truncated, "the padding before tensor data needs 7 bytes";
    "overlap" => Overlap, "tensors `t` and `u` overlap";
    "overlap-same-offset" => Overlap, "tensors `t` and `u` overlap";
    "overlap-unknown-type" => Overlap, "tensors `t` and `u` overlap";
    "type-unknown-offset-outside" => OutOfFile, "`t`: 1 bytes at offset 64";
    "type-unknown-misaligned" => Misaligned, "`t`: offset 1";
    "type-unknown-dims-wrap" => SizeOverflow, "`t`";
    "type-99" => UnknownTensorType, "tensor `t` has unknown type 99";
    "type-removed" => UnknownTensorType, "tensor `t` has unknown type 4";
}

#[test]
fn each_file_is_its_error() {
    for (name, bytes) in files("hostile") {
        assert!(bytes.len() < 1024, "{name}");
        let error = match Gguf::parse(&bytes) {
            Err(error) => error,
            Ok(gguf) => gguf.tensor("t").unwrap().data().unwrap_err(),
        };
        let name = name.strip_suffix(".gguf").unwrap();
        assert!(is_expected(name, &error), "{name}: {error}: {error:?}");
    }
}

#[test]
fn the_table_has_every_file() {
    let in_table: BTreeSet<_> = NAMES.iter().map(|name| format!("{name}.gguf")).collect();
    let in_corpus: BTreeSet<_> = files("hostile").into_iter().map(|(name, _)| name).collect();
    assert_eq!(in_table, in_corpus);
}

#[test]
fn an_unknown_type_leaves_the_other_tensors() {
    for (name, number) in [("type-99.gguf", 99), ("type-removed.gguf", 4)] {
        let files = Files::open(corpus("hostile").join(name)).unwrap();
        let gguf = files.parse().unwrap();
        let unknown = gguf.tensor("t").unwrap();
        assert_eq!(unknown.type_number(), number);
        assert_eq!(unknown.elements(), 8);
        for error in [
            unknown.dtype().unwrap_err(),
            unknown.data().unwrap_err(),
            unknown.size_in_bytes().unwrap_err(),
            gguf.write_to(Vec::new()).unwrap_err(),
        ] {
            assert!(matches!(error, Error::UnknownTensorType { number: n, .. } if n == number));
        }
        assert_eq!(gguf.tensor("u").unwrap().data().unwrap()[0], 32);
    }
}

#[test]
fn errors_of_files_name_the_file() {
    let path = corpus("hostile").join("alignment-0.gguf");
    let error = Files::open(&path).unwrap().parse().unwrap_err();
    assert!(matches!(error.without_path(), Error::BadAlignment { alignment: 0 }));
    assert_eq!(error.to_string(), format!("{}: alignment 0 is not a power of two", path.display()));

    let error = Files::open(corpus("hostile")).unwrap_err();
    assert!(matches!(error.without_path(), Error::NotRegularFile));
    let error = Files::open(corpus("missing.gguf")).unwrap_err();
    assert!(matches!(error.without_path(), Error::Io(_)));
    assert!(error.to_string().contains("missing.gguf: "));

    let empty = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("empty.gguf");
    std::fs::write(&empty, []).unwrap();
    let error = Files::open(&empty).unwrap_err();
    assert!(matches!(error.without_path(), Error::EmptyFile));
}
