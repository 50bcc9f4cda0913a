//! Files of gguf-py: what is in them, and that writing them changes nothing.

use cube_gguf::gguf::{ALIGNMENT_KEY, Array, Endian, Error, Files, GgmlType, Gguf, Value, ValueType};

use crate::{corpus, files, first_version};

#[test]
fn reading_and_writing_changes_no_byte() {
    for directory in ["valid", "split"] {
        for (name, bytes) in files(directory) {
            let gguf = Gguf::parse(&bytes).unwrap();
            assert!(gguf.write_to(Vec::new()).unwrap() == bytes, "{name}");
        }
    }
}

#[test]
fn every_cut_is_an_error() {
    for (name, bytes) in files("valid") {
        let whole = Gguf::parse(&bytes).unwrap();
        let tensors = whole.tensors().map(|tensor| tensor.data().unwrap());
        // Padding at the end of the file carries nothing and may be missing.
        let Some(end) = tensors.map(|data| data.as_ptr_range().end).max() else {
            continue;
        };
        let end = end as usize - bytes.as_ptr() as usize;
        for length in 0..end {
            let error = Gguf::parse(&bytes[..length]).unwrap_err();
            assert!(
                matches!(error, Error::Truncated { .. } | Error::CountTooLarge { .. } | Error::OutOfFile { .. }),
                "{name} cut at {length}: {error:?}"
            );
        }
        let uncut = Gguf::parse(&bytes[..end]).unwrap();
        assert!(uncut.write_to(Vec::new()).unwrap() == bytes, "{name}");
    }
}

#[test]
fn strings_need_not_be_utf8() {
    let of = |name: &str, check: fn(Value<'_>)| {
        let files = Files::open(corpus("valid").join(name)).unwrap();
        let gguf = files.parse().unwrap();
        check(gguf.metadata().get("k").unwrap());
        let error = gguf.metadata().str("k").unwrap_err();
        assert!(matches!(error, Error::WrongType { .. }), "{error}");
    };
    of("string-not-utf8.gguf", |value| {
        assert_eq!(value, Value::Bytes(b"\xc3("));
        assert_eq!((value.value_type(), value.lossy().as_deref()), (ValueType::String, Some("\u{fffd}(")));
    });
    of("array-of-strings-not-utf8.gguf", |value| match value {
        Value::Array(array) => assert_eq!(array.iter().collect::<Vec<_>>(), [Value::Bytes(b"\x80")]),
        other => panic!("{other:?}"),
    });
}

#[test]
fn all_metadata_types_in_all_formats() {
    for (name, version, endian) in [
        ("v2-le.gguf", 2, Endian::Little),
        ("v2-be.gguf", 2, Endian::Big),
        ("v3-le.gguf", 3, Endian::Little),
        ("v3-be.gguf", 3, Endian::Big),
    ] {
        let files = Files::open(corpus("valid").join(name)).unwrap();
        let gguf = files.parse().unwrap();
        assert_eq!((gguf.version(), gguf.endian()), (version, endian));
        assert_eq!(gguf.alignment(), 32);

        let metadata = gguf.metadata();
        assert_eq!(metadata.get("kv.u8"), Some(Value::U8(200)));
        assert_eq!(metadata.get("kv.i8"), Some(Value::I8(-100)));
        assert_eq!(metadata.get("kv.u16"), Some(Value::U16(60000)));
        assert_eq!(metadata.get("kv.i16"), Some(Value::I16(-30000)));
        assert_eq!(metadata.get("kv.u32"), Some(Value::U32(4000000000)));
        assert_eq!(metadata.get("kv.i32"), Some(Value::I32(-2000000000)));
        assert_eq!(metadata.get("kv.u64"), Some(Value::U64(u64::MAX)));
        assert_eq!(metadata.get("kv.i64"), Some(Value::I64(i64::MIN)));
        assert_eq!(metadata.get("kv.f32"), Some(Value::F32(1.5)));
        assert_eq!(metadata.get("kv.f64"), Some(Value::F64(-2.25)));
        assert_eq!(metadata.get("kv.bool"), Some(Value::Bool(true)));
        assert_eq!(metadata.get("kv.string"), Some(Value::String("grüße")));
        assert_eq!(metadata.get("kv.none"), None);

        assert_eq!(strings(metadata.array("kv.strings").unwrap()), ["a", "", "bc"]);
        assert_eq!(integers(metadata.array("kv.ints").unwrap()), [1, -2, 3]);
        assert_eq!(integers(metadata.array("kv.u16s").unwrap()), [1, 2, 65535]);
        let bools: Vec<bool> = metadata.elements("kv.bools").unwrap().collect::<Result<_, _>>().unwrap();
        assert_eq!(bools, [true, false]);

        let nested = metadata.array("kv.nested").unwrap();
        assert_eq!((nested.len(), nested.element_type()), (3, ValueType::Array));
        let nested: Vec<_> = arrays(nested).map(integers).collect();
        assert_eq!(nested, [vec![1, 2], vec![3], vec![4, 5, 6]]);
        let nested: Vec<Vec<_>> = arrays(metadata.array("kv.nested_strings").unwrap())
            .map(|inner| arrays(inner).map(strings).collect())
            .collect();
        assert_eq!(nested, [[vec!["x"], vec!["y", "z"]]]);

        let keys: Vec<_> = metadata.iter().map(|(key, _)| key).collect();
        assert_eq!(keys[..3], ["general.architecture", "kv.u8", "kv.i8"]);
        assert_eq!(keys.len(), metadata.len());
    }
}

#[test]
fn the_first_version_is_read_and_written_as_the_third() {
    let (file, data) = first_version::file();
    let first = Gguf::parse(&file).unwrap();
    assert_eq!(first.version(), 1);
    let written = first.write_to(Vec::new()).unwrap();
    let third = Gguf::parse(&written).unwrap();
    assert_eq!(third.version(), 3);
    for gguf in [&first, &third] {
        let metadata = gguf.metadata();
        assert_eq!(metadata.get("a.number"), Some(Value::U32(7)));
        assert_eq!(metadata.get("a.string"), Some(Value::String("grüße")));
        assert_eq!(strings(metadata.array("strings").unwrap()), ["x", "yz"]);
        let tensor = gguf.tensor("first").unwrap();
        assert_eq!((tensor.shape(), tensor.dtype().unwrap()), (vec![2, 32], GgmlType::Q8_0));
        assert_eq!(tensor.data().unwrap(), &file[data..][..68]);
        let tensor = gguf.tensor("second").unwrap();
        assert_eq!((tensor.shape(), tensor.data().unwrap()), (vec![3], &file[data + 96..]));
    }
    for length in 0..file.len() {
        Gguf::parse(&file[..length]).unwrap_err();
    }
}

/// Candle's reader is another's work.
#[cfg(feature = "candle")]
#[test]
fn the_first_version_is_as_candle_reads_it() {
    use cube_gguf::candle::gguf_file;
    let (file, data) = first_version::file();
    let read = || std::io::Cursor::new(&file);
    let its = candle_core::quantized::gguf_file::Content::read(&mut read()).unwrap();
    let ours = gguf_file::Content::read(&mut read()).unwrap();
    assert!(matches!(ours.magic, gguf_file::VersionedMagic::GgufV1));
    assert_eq!((ours.tensor_data_offset, its.tensor_data_offset), (data as u64, data as u64));
    assert_eq!((ours.metadata.len(), ours.tensor_infos.len()), (3, 2));
    for (key, value) in &its.metadata {
        assert_eq!(format!("{:?}", ours.metadata[key]), format!("{value:?}"));
    }
    for (name, info) in &its.tensor_infos {
        assert_eq!((&ours.tensor_infos[name].shape, ours.tensor_infos[name].offset), (&info.shape, info.offset));
    }
}

#[test]
fn tensors_in_both_byte_orders() {
    for (name, one) in [("v3-le.gguf", 1f32.to_le_bytes()), ("v3-be.gguf", 1f32.to_be_bytes())] {
        let files = Files::open(corpus("valid").join(name)).unwrap();
        let gguf = files.parse().unwrap();
        let names: Vec<_> = gguf.tensors().map(|tensor| tensor.name()).collect();
        assert_eq!(names, ["f32", "q8_0", "i16"]);

        let tensor = gguf.tensor("f32").unwrap();
        assert_eq!(tensor.dims(), [3, 2]);
        assert_eq!(tensor.shape(), [2, 3]);
        assert_eq!(tensor.elements(), 6);
        assert_eq!(tensor.dtype().unwrap(), GgmlType::F32);
        assert_eq!(tensor.size_in_bytes().unwrap(), 24);
        assert_eq!(tensor.endian(), gguf.endian());
        assert_eq!(tensor.data().unwrap()[4..8], one);

        let tensor = gguf.tensor("q8_0").unwrap();
        assert_eq!((tensor.dims(), tensor.elements()), (&[32, 2][..], 64));
        assert_eq!(tensor.data().unwrap().len(), 68);

        let error = gguf.tensor("f16").unwrap_err();
        assert_eq!(error.to_string(), "tensor `f16` is missing");
    }
}

#[test]
fn sizes_of_types_are_those_of_gguf_py() {
    let files = Files::open(corpus("valid").join("types.gguf")).unwrap();
    let gguf = files.parse().unwrap();
    assert_eq!(gguf.alignment(), 8);
    assert_eq!(gguf.metadata().u8(ALIGNMENT_KEY).unwrap(), 8);
    for tensor in gguf.tensors() {
        let dtype = tensor.dtype().unwrap();
        assert_eq!(dtype.name(), tensor.name());
        assert_eq!(tensor.dims(), [dtype.block_size() as u64]);
        let data = tensor.data().unwrap();
        assert_eq!(data.len(), dtype.block_bytes());
        assert!(data.iter().all(|&byte| usize::from(byte) == data.len() % 251));
    }
    // gguf-py 0.19 has another size for Q8_1, and no Q2_0 yet.
    let known: Vec<_> = gguf.tensors().map(|tensor| tensor.dtype().unwrap()).collect();
    let unknown: Vec<_> = GgmlType::ALL.into_iter().filter(|dtype| !known.contains(dtype)).collect();
    assert_eq!(unknown, [GgmlType::Q8_1, GgmlType::Q2_0]);
}

#[test]
fn tensors_without_values_and_dimensions() {
    let files = Files::open(corpus("valid").join("dims-0.gguf")).unwrap();
    let gguf = files.parse().unwrap();
    let none = gguf.tensor("none").unwrap();
    assert_eq!((none.shape(), none.elements()), (vec![0, 32], 0));
    assert!(none.data().unwrap().is_empty());

    let files = Files::open(corpus("valid").join("scalar.gguf")).unwrap();
    let gguf = files.parse().unwrap();
    let scalar = gguf.tensor("t").unwrap();
    assert_eq!((scalar.dims(), scalar.elements()), (&[][..], 1));
    assert_eq!(scalar.data().unwrap(), [0, 1, 2, 3]);
}

#[test]
fn typed_access_converts_or_names_the_key() {
    let files = Files::open(corpus("valid").join("v3-le.gguf")).unwrap();
    let gguf = files.parse().unwrap();
    let metadata = gguf.metadata();
    assert_eq!(metadata.u64("kv.u8").unwrap(), 200);
    assert_eq!(metadata.i16("kv.u8").unwrap(), 200);
    assert_eq!(metadata.i64("kv.i8").unwrap(), -100);
    assert_eq!(metadata.f64("kv.f32").unwrap(), 1.5);
    assert_eq!(metadata.optional::<u32>("kv.none").unwrap(), None);

    let messages = [
        metadata.u32("kv.none").unwrap_err(),
        metadata.i8("kv.u8").unwrap_err(),
        metadata.u64("kv.i8").unwrap_err(),
        metadata.f32("kv.f64").unwrap_err(),
        metadata.str("kv.bool").unwrap_err(),
        metadata.bool("kv.ints").unwrap_err(),
        metadata.optional::<u32>("kv.string").unwrap_err(),
        metadata.elements::<u8>("kv.ints").unwrap().nth(1).unwrap().unwrap_err(),
    ]
    .map(|error| error.to_string());
    assert_eq!(
        messages,
        [
            "metadata key `kv.none` is missing",
            "metadata key `kv.u8`: wanted i8, found u8 200",
            "metadata key `kv.i8`: wanted u64, found i8 -100",
            "metadata key `kv.f64`: wanted f32, found f64 -2.25",
            "metadata key `kv.bool`: wanted string, found bool true",
            "metadata key `kv.ints`: wanted bool, found array of i32",
            "metadata key `kv.string`: wanted u32, found string",
            "metadata key `kv.ints`: wanted u8, found i32 -2",
        ]
    );
}

fn arrays<'a>(array: Array<'a>) -> impl Iterator<Item = Array<'a>> {
    array.iter().map(|value| match value {
        Value::Array(inner) => inner,
        other => panic!("{other:?}"),
    })
}

fn strings(array: Array<'_>) -> Vec<&str> {
    let string = |value| match value {
        Value::String(string) => string,
        other => panic!("{other:?}"),
    };
    array.iter().map(string).collect()
}

fn integers(array: Array<'_>) -> Vec<i128> {
    array.iter().map(|value| value.integer().unwrap()).collect()
}
