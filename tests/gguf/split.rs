//! Split files: three shards of gguf-py, whole and spoiled.

use std::fs;
use std::path::{Path, PathBuf};

use cube_gguf::gguf::{Encode, Endian, Error, Files, GgmlType, Gguf, Writer};

use crate::corpus;

const SHARDS: [&str; 3] = ["model-00001-of-00003.gguf", "model-00002-of-00003.gguf", "model-00003-of-00003.gguf"];

#[test]
fn any_shard_opens_the_model() {
    for shard in SHARDS {
        let files = Files::open(corpus("split").join(shard)).unwrap();
        let paths: Vec<_> = SHARDS.iter().map(|name| corpus("split").join(name)).collect();
        assert!(files.paths().eq(&paths));
        let bytes: u64 = paths.iter().map(|path| fs::metadata(path).unwrap().len()).sum();
        assert_eq!(files.total_bytes(), bytes);

        let gguf = files.parse().unwrap();
        assert_eq!(gguf.shard_count(), 3);
        assert_eq!(gguf.metadata().str("general.architecture").unwrap(), "test");
        let names: Vec<_> = gguf.tensors().map(|tensor| tensor.name()).collect();
        assert_eq!(names, ["t0", "t1", "t2", "t3", "t4"]);
        for (index, name) in (0u8..).zip(names) {
            let data = gguf.tensor(name).unwrap().data().unwrap();
            assert_eq!(data, f32::from(index).to_le_bytes().repeat(6));
        }
    }
}

#[test]
fn bytes_are_read_as_they_are_mapped_until_a_shard_shrinks() {
    let directory = split_into("shrunk");
    let files = Files::open(directory.join(SHARDS[0])).unwrap();
    let gguf = files.parse().unwrap();
    let read = |name: &str, first: usize, len: usize| {
        let mut bytes = vec![0xff; len];
        files.read(&gguf.tensor(name).unwrap(), first, &mut bytes).map(|()| bytes)
    };
    for tensor in gguf.tensors() {
        let data = tensor.data().unwrap();
        assert_eq!(read(tensor.name(), 0, data.len()).unwrap(), data);
        assert_eq!(read(tensor.name(), 5, 7).unwrap(), data[5..12]);
        assert!(read(tensor.name(), data.len(), 0).unwrap().is_empty());
    }
    assert!(matches!(read("t0", 20, 5), Err(Error::NoSuchBytes { first: 20, len: 5, .. })));
    let others = Files::open(corpus("split").join(SHARDS[0])).unwrap();
    let foreign = others.read(&gguf.tensor("t0").unwrap(), 0, &mut [0; 4]);
    assert!(matches!(foreign, Err(Error::NoSuchBytes { first: 0, len: 4, .. })));
    let last = directory.join(SHARDS[2]);
    let bytes = fs::metadata(&last).unwrap().len();
    // The last tensor's 24 bytes are padded to 32.
    fs::OpenOptions::new().write(true).open(&last).unwrap().set_len(bytes - 9).unwrap();
    assert_eq!(read("t0", 0, 24).unwrap().len(), 24);
    assert_eq!(read("t4", 0, 23).unwrap().len(), 23);
    let error = read("t4", 0, 24).unwrap_err();
    assert!(error.to_string().contains(SHARDS[2]), "{error}");
    assert!(matches!(error.without_path(), Error::Shrunk { bytes: had } if *had == bytes), "{error}");
}

#[test]
fn writing_a_split_model_joins_it() {
    let files = Files::open(corpus("split").join(SHARDS[0])).unwrap();
    let joined = files.parse().unwrap().write_to(Vec::new()).unwrap();
    let path = directory("joined").join("model.gguf");
    fs::write(&path, &joined).unwrap();

    let files = Files::open(&path).unwrap();
    let gguf = files.parse().unwrap();
    assert_eq!((gguf.shard_count(), gguf.tensor_count()), (1, 5));
    assert_eq!(gguf.metadata().len(), 1);
}

#[test]
fn a_whole_model_under_a_shards_name_is_one_file() {
    let path = directory("whole").join(SHARDS[1]);
    fs::copy(corpus("valid").join("v3-le.gguf"), &path).unwrap();
    let files = Files::open(&path).unwrap();
    assert!(files.paths().eq([&path]));
    assert_eq!(files.parse().unwrap().tensor_count(), 3);
}

#[test]
fn a_missing_shard_is_named() {
    let directory = split_into("missing");
    fs::remove_file(directory.join(SHARDS[1])).unwrap();
    let error = Files::open(directory.join(SHARDS[0])).unwrap_err();
    assert!(matches!(error.without_path(), Error::MissingShard { number: 2, count: 3, .. }));
    assert!(error.to_string().contains(SHARDS[1]), "{error}");
}

#[test]
fn a_shard_under_another_name_is_no_model() {
    let directory = split_into("renamed");
    let path = directory.join("model.gguf");
    fs::rename(directory.join(SHARDS[0]), &path).unwrap();
    let error = parse_error(&path);
    assert!(matches!(error.without_path(), Error::ShardName { count: 3 }));
    assert!(error.to_string().contains("-00001-of-00003.gguf"), "{error}");
}

#[test]
fn shards_in_the_wrong_order_are_an_error() {
    let directory = split_into("order");
    fs::copy(corpus("split").join(SHARDS[2]), directory.join(SHARDS[1])).unwrap();
    let error = parse_error(&directory.join(SHARDS[0]));
    assert!(matches!(error.without_path(), Error::ShardMismatch { key: "split.no", found: 2, expected: 1 }));
}

#[test]
fn what_shards_claim_must_agree() {
    let one = shard(0, 2, 2, "a", Endian::Little);
    for (name, second, expected) in [
        ("number", shard(0, 2, 2, "b", Endian::Little), "`split.no` is 0, the shards make it 1"),
        ("count", shard(1, 3, 2, "b", Endian::Little), "`split.count` is 3, the shards make it 2"),
        ("tensors", shard(1, 2, 3, "b", Endian::Little), "`split.tensors.count` is 3, the shards make it 2"),
        ("negative", shard(-1, 2, 2, "b", Endian::Little), "`split.no`: wanted u64, found i32 -1"),
        ("endian", shard(1, 2, 2, "b", Endian::Big), "byte order"),
        ("duplicate", shard(1, 2, 2, "a", Endian::Little), "tensor `a` occurs twice"),
        ("unsplit", Writer::new().begin(Vec::new()).unwrap().finish().unwrap(), "`split.no` is missing"),
    ] {
        let directory = directory(name);
        let path = directory.join("m-00001-of-00002.gguf");
        fs::write(&path, &one).unwrap();
        fs::write(directory.join("m-00002-of-00002.gguf"), second).unwrap();
        let error = parse_error(&path).to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
}

#[test]
fn shards_have_their_own_alignment() {
    let mut writer = Writer::new();
    writer.metadata("general.alignment", 8u32).unwrap();
    let two = finish(&mut writer, 1, 2, 3, &["b", "c"]);
    let directory = directory("alignment");
    fs::write(directory.join("m-00001-of-00002.gguf"), shard(0, 2, 3, "a", Endian::Little)).unwrap();
    fs::write(directory.join("m-00002-of-00002.gguf"), two).unwrap();

    let files = Files::open(directory.join("m-00002-of-00002.gguf")).unwrap();
    let gguf = files.parse().unwrap();
    assert_eq!(gguf.alignment(), 32);
    assert_eq!(gguf.tensor("c").unwrap().offset(), 8);
    assert_eq!(gguf.tensor("c").unwrap().data().unwrap(), [7; 4]);
}

#[test]
fn a_shard_alone_parses_from_bytes() {
    let bytes = fs::read(corpus("split").join(SHARDS[2])).unwrap();
    assert_eq!(Gguf::parse(&bytes).unwrap().tensor_count(), 1);
}

/// A shard of one tensor.
fn shard(number: i32, count: u16, tensors: i32, name: &str, endian: Endian) -> Vec<u8> {
    let mut writer = Writer::with_format(3, endian).unwrap();
    finish(&mut writer, number, count, tensors, &[name])
}

fn finish(writer: &mut Writer, number: impl Encode, count: u16, tensors: i32, names: &[&str]) -> Vec<u8> {
    writer.metadata("split.no", number).unwrap();
    writer.metadata("split.count", count).unwrap();
    writer.metadata("split.tensors.count", tensors).unwrap();
    for name in names {
        writer.tensor(name, &[1], GgmlType::F32).unwrap();
    }
    let mut data = writer.clone().begin(Vec::new()).unwrap();
    for _ in names {
        data.data(&[7; 4]).unwrap();
    }
    data.finish().unwrap()
}

fn parse_error(path: &Path) -> Error {
    Files::open(path).unwrap().parse().unwrap_err()
}

fn directory(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("split").join(name);
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).unwrap();
    directory
}

/// A copy of the split model, to be spoiled.
fn split_into(name: &str) -> PathBuf {
    let directory = directory(name);
    for shard in SHARDS {
        fs::copy(corpus("split").join(shard), directory.join(shard)).unwrap();
    }
    directory
}
