//! Fuzzes the GGUF reader and, with what it accepts, the writer.
//!
//! ```sh
//! cd fuzz && mkdir -p corpus && cargo run --release -- \
//!     -max_total_time=30 -max_len=4096 -rss_limit_mb=512 corpus ../tests/gguf/corpus
//! ```
//!
//! `corpus` is where new inputs go; a crash leaves its input in `crash-…`.

#![no_main]

#[allow(dead_code, unused_imports)] // the target uses a part of the module
#[path = "../src/gguf/mod.rs"]
mod gguf;

use gguf::{Gguf, Value};
use libfuzzer_sys::fuzz_target;

/// Larger alignments are read, but make the writer pad without end.
const MAX_ALIGNMENT: u32 = 4096;

fuzz_target!(|bytes: &[u8]| {
    let Ok(gguf) = Gguf::parse(bytes) else {
        return;
    };
    for (key, value) in gguf.metadata().iter() {
        assert_eq!(
            gguf.metadata().get(key).map(|v| v.value_type()),
            Some(value.value_type())
        );
        walk(value);
    }
    assert_eq!(gguf.tensors().count(), gguf.tensor_count());
    for tensor in gguf.tensors() {
        let found = gguf
            .tensor(tensor.name())
            .expect("a listed tensor is found");
        assert_eq!(found.offset(), tensor.offset());
        assert_eq!(tensor.shape().iter().product::<usize>(), tensor.elements());
        if let (Ok(dtype), Ok(data)) = (tensor.dtype(), tensor.data()) {
            assert_eq!(dtype.row_bytes(tensor.elements()), Some(data.len()));
        }
    }
    if gguf.alignment() <= MAX_ALIGNMENT
        && let Ok(canonical) = gguf.write_to(Vec::new())
    {
        let again = Gguf::parse(&canonical).expect("what is written is read");
        let again = again.write_to(Vec::new()).expect("what is read is written");
        assert!(again == canonical, "writing twice makes two files");
    }
});

/// Decodes all elements: as many as an array says, at every depth.
fn walk(value: Value<'_>) {
    if let Value::Array(array) = value {
        assert_eq!(array.iter().map(walk).count(), array.len());
    }
}
