//! What is written is read back, whatever it is; what cannot be is refused.

use std::collections::BTreeMap;

use cube_gguf::gguf::{Endian, Error, GgmlType, Gguf, Value, Writer};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Meta {
    U8(u8),
    I16(i16),
    U64(u64),
    F32(f32),
    Bool(bool),
    String(String),
    I64s(Vec<i64>),
    Bools(Vec<bool>),
    Strings(Vec<String>),
    Nested(Vec<Vec<Vec<u16>>>),
}

fn meta() -> impl Strategy<Value = Meta> {
    prop_oneof![
        any::<u8>().prop_map(Meta::U8),
        any::<i16>().prop_map(Meta::I16),
        any::<u64>().prop_map(Meta::U64),
        any::<f32>().prop_map(Meta::F32),
        any::<bool>().prop_map(Meta::Bool),
        any::<String>().prop_map(Meta::String),
        vec(any::<i64>(), 0..5).prop_map(Meta::I64s),
        vec(any::<bool>(), 0..5).prop_map(Meta::Bools),
        vec(any::<String>(), 0..5).prop_map(Meta::Strings),
        vec(vec(vec(any::<u16>(), 0..3), 0..3), 0..3).prop_map(Meta::Nested),
    ]
}

fn add(writer: &mut Writer, key: &str, meta: &Meta) {
    match meta {
        Meta::U8(v) => writer.metadata(key, v),
        Meta::I16(v) => writer.metadata(key, v),
        Meta::U64(v) => writer.metadata(key, v),
        Meta::F32(v) => writer.metadata(key, v),
        Meta::Bool(v) => writer.metadata(key, v),
        Meta::String(v) => writer.metadata(key, v),
        Meta::I64s(v) => writer.metadata(key, v),
        Meta::Bools(v) => writer.metadata(key, v),
        Meta::Strings(v) => writer.metadata(key, v),
        Meta::Nested(v) => writer.metadata(key, v),
    }
    .unwrap();
}

fn matches(meta: &Meta, value: Value<'_>) -> bool {
    match (meta, value) {
        (Meta::U8(a), Value::U8(b)) => *a == b,
        (Meta::I16(a), Value::I16(b)) => *a == b,
        (Meta::U64(a), Value::U64(b)) => *a == b,
        (Meta::F32(a), Value::F32(b)) => a.to_bits() == b.to_bits(),
        (Meta::Bool(a), Value::Bool(b)) => *a == b,
        (Meta::String(a), Value::String(b)) => a == b,
        (Meta::I64s(a), Value::Array(b)) => b.iter().eq(a.iter().map(|&v| Value::I64(v))),
        (Meta::Bools(a), Value::Array(b)) => b.iter().eq(a.iter().map(|&v| Value::Bool(v))),
        (Meta::Strings(a), Value::Array(b)) => b.iter().eq(a.iter().map(|v| Value::String(v))),
        (Meta::Nested(a), Value::Array(b)) => {
            let flat = a.iter().flatten().flatten().map(|&v| Value::U16(v));
            b.iter().flat_map(inner).flat_map(inner).eq(flat)
        }
        _ => false,
    }
}

fn inner<'a>(value: Value<'a>) -> impl Iterator<Item = Value<'a>> {
    match value {
        Value::Array(array) => array.iter(),
        other => panic!("{other:?}"),
    }
}

/// Dimensions, as blocks and as other dimensions, and a type.
fn tensor() -> impl Strategy<Value = (Vec<u64>, GgmlType)> {
    (prop::sample::select(&GgmlType::ALL[..]), 0u64..3, vec(0u64..4, 0..4)).prop_map(|(dtype, blocks, outer)| {
        let mut dims = vec![blocks * dtype.block_size() as u64];
        dims.extend(outer);
        (dims, dtype)
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        version in 2u32..=3,
        endian in prop::sample::select(&[Endian::Little, Endian::Big][..]),
        alignment in prop::option::of(0u32..9),
        metadata in btree_map("[a-zα-ω.]{1,12}", meta(), 0..6),
        tensors in btree_map(any::<String>(), tensor(), 0..6),
        fill: u8,
    ) {
        let mut writer = Writer::with_format(version, endian).unwrap();
        for (key, meta) in &metadata {
            add(&mut writer, key, meta);
        }
        if let Some(log2) = alignment {
            writer.metadata("general.alignment", 1u32 << log2).unwrap();
        }
        let mut data = BTreeMap::new();
        for (name, (dims, dtype)) in &tensors {
            writer.tensor(name, dims, *dtype).unwrap();
            let values: u64 = dims.iter().product();
            let size = values as usize / dtype.block_size() * dtype.block_bytes();
            data.insert(name.as_str(), vec![fill; size]);
        }
        let mut out = writer.begin(Vec::new()).unwrap();
        for bytes in data.values() {
            out.data(bytes).unwrap();
        }
        let file = out.finish().unwrap();

        let gguf = Gguf::parse(&file).unwrap();
        prop_assert_eq!(gguf.version(), version);
        prop_assert_eq!(gguf.endian(), endian);
        prop_assert_eq!(gguf.alignment(), alignment.map_or(32, |log2| 1 << log2));
        prop_assert_eq!(gguf.metadata().len(), metadata.len() + usize::from(alignment.is_some()));
        for (key, meta) in &metadata {
            let value = gguf.metadata().get(key).unwrap();
            prop_assert!(matches(meta, value), "{meta:?} {value:?}");
        }
        prop_assert!(gguf.tensors().map(|tensor| tensor.name()).eq(tensors.keys()));
        for (name, (dims, dtype)) in &tensors {
            let tensor = gguf.tensor(name).unwrap();
            prop_assert_eq!(tensor.dims(), &dims[..]);
            prop_assert_eq!(tensor.dtype().unwrap(), *dtype);
            prop_assert_eq!(tensor.data().unwrap(), &data[name.as_str()][..]);
        }
        prop_assert_eq!(gguf.write_to(Vec::new()).unwrap(), file);
    }

    /// Any change of any byte is either harmless or an error.
    #[test]
    fn a_changed_byte_never_panics(
        file in prop::sample::select(crate::files("valid")),
        position: prop::sample::Index,
        byte: u8,
    ) {
        let (_, mut bytes) = file;
        let position = position.index(bytes.len());
        bytes[position] = byte;
        if let Ok(gguf) = Gguf::parse(&bytes) {
            for tensor in gguf.tensors() {
                let _ = tensor.data();
            }
            for (_, value) in gguf.metadata().iter() {
                let _ = format!("{value:?}");
            }
        }
    }
}

#[test]
fn values_change_byte_order_between_files() {
    let (_, little) = crate::files("valid").swap_remove(4);
    let little = Gguf::parse(&little).unwrap();
    let mut writer = Writer::with_format(3, Endian::Big).unwrap();
    for (key, value) in little.metadata().iter() {
        writer.value(key, value).unwrap();
    }
    let big = writer.begin(Vec::new()).unwrap().finish().unwrap();
    let big = Gguf::parse(&big).unwrap();
    assert_ne!(little.endian(), big.endian());
    assert!(little.metadata().iter().eq(big.metadata().iter()));
}

#[test]
fn the_writer_refuses_what_the_reader_would() {
    let mut writer = Writer::new();
    writer.metadata("k", 1u8).unwrap();
    writer.tensor("t", &[32], GgmlType::Q4_0).unwrap();
    let deep = [[[[[[[[[0u8]]]]]]]]];
    let errors = [
        Writer::with_format(1, Endian::Little).unwrap_err(),
        writer.metadata("", 1u8).unwrap_err(),
        writer.metadata("k", 2u8).unwrap_err(),
        writer.metadata("deep", deep).unwrap_err(),
        writer.metadata("general.alignment", 32u64).unwrap_err(),
        writer.metadata("general.alignment", 24u32).unwrap_err(),
        writer.tensor("t", &[32], GgmlType::Q4_0).unwrap_err(),
        writer.tensor("u", &[31], GgmlType::Q4_0).unwrap_err(),
        writer.tensor("u", &[1; 5], GgmlType::F32).unwrap_err(),
        writer.tensor("u", &[1 << 32; 2], GgmlType::F32).unwrap_err(),
    ]
    .map(|error| error.to_string());
    assert_eq!(
        errors,
        [
            "GGUF version 1 is not supported (1, which is only read, 2 and 3 are)",
            "metadata key 1 is empty",
            "metadata key `k` occurs twice",
            "metadata key `deep` nests arrays deeper than 8",
            "metadata key `general.alignment`: wanted u32, found u64",
            "alignment 24 is not a power of two",
            "tensor `t` occurs twice",
            "tensor `u`: rows of 31 values are no multiple of Q4_0's blocks of 32",
            "tensor `u` has 5 dimensions, at most 4 are allowed",
            "tensor `u`: the size of dimensions [4294967296, 4294967296] overflows",
        ]
    );

    let mut data = writer.clone().begin(Vec::new()).unwrap();
    assert!(matches!(data.data(&[0; 17]), Err(Error::DataSize { expected: 18, found: 17, .. })));
    data.data(&[0; 18]).unwrap();
    assert!(matches!(data.data(&[0; 18]), Err(Error::DataCount { declared: 1, given: 2 })));
    data.finish().unwrap();
    let data = writer.begin(Vec::new()).unwrap();
    assert!(matches!(data.finish(), Err(Error::DataCount { declared: 1, given: 0 })));
}
