//! Reading takes no more memory than the file has bytes, plus a constant.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use cube_gguf::gguf::{GgmlType, Gguf, Value, Writer};

use crate::{files, first_version};

/// Room for an error's message and for keys of one or two bytes, whose
/// positions take a byte or two more than the pairs.
const CONSTANT: usize = 4096;

/// Counts what each thread holds, as tests run in parallel.
struct Counting;

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.get().wrapping_add(layout.size());
        HELD.set(held);
        PEAK.set(PEAK.get().max(held));
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.set(HELD.get().saturating_sub(layout.size()));
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes that reading all of a file holds at once.
fn peak(bytes: &[u8]) -> usize {
    HELD.set(0);
    PEAK.set(0);
    if let Ok(gguf) = Gguf::parse(bytes) {
        for tensor in gguf.tensors() {
            let _ = tensor.data();
        }
        for (_, value) in gguf.metadata().iter() {
            if let Value::Array(array) = value {
                assert_eq!(array.iter().count(), array.len());
            }
        }
    }
    PEAK.get()
}

#[test]
fn files_of_the_corpus_are_bounded() {
    for directory in ["valid", "hostile", "split"] {
        for (name, bytes) in files(directory) {
            let peak = peak(&bytes);
            assert!(peak <= bytes.len() + CONSTANT, "{name}: {peak}");
        }
    }
}

#[test]
fn files_of_nothing_but_entries_are_bounded() {
    let mut writer = Writer::new();
    for index in 0..50_000 {
        writer.metadata(&format!("{index:x}"), false).unwrap();
        writer.tensor(&format!("{index:x}"), &[], GgmlType::I8).unwrap();
    }
    writer.metadata("general.alignment", 1u32).unwrap();
    let mut data = writer.begin(Vec::new()).unwrap();
    for _ in 0..50_000 {
        data.data(&[0]).unwrap();
    }
    let bytes = data.finish().unwrap();
    let peak = peak(&bytes);
    assert!(peak <= bytes.len() + CONSTANT, "{peak} of {}", bytes.len());
}

#[test]
fn files_of_the_first_versions_shorter_entries_are_bounded() {
    let bytes = first_version::entries(50_000);
    assert_eq!(Gguf::parse(&bytes).unwrap().tensor_count(), 50_000);
    let peak = peak(&bytes);
    assert!(peak <= bytes.len() * 5 / 3 + CONSTANT, "{peak} of {}", bytes.len());
}

#[test]
fn a_vocabulary_takes_no_memory() {
    let tokens: Vec<String> = (0..100_000).map(|index| format!("token {index}")).collect();
    let mut writer = Writer::new();
    writer.metadata("tokenizer.ggml.tokens", &tokens).unwrap();
    let bytes = writer.begin(Vec::new()).unwrap().finish().unwrap();
    let peak = peak(&bytes);
    assert!(peak < 1024, "{peak}");
}
