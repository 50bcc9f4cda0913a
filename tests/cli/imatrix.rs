//! `cube-gguf imatrix` on tiny models of random weights, with a vocabulary of letters.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cube_gguf::gguf::{Files, GgmlType, Writer};

use super::generate::{model, vocabulary};
use super::tiny::{D_MODEL, Tiny};
use super::{DEVICES, Folder, command, error, floats, stdout};

/// A layer with experts, in whose place a file has a stack.
const MIXTURE: Tiny = Tiny { name: "mixture", layers: 1, experts: Some(EXPERTS), ..Tiny::ALL[0] };
/// Experts of a layer and of a token.
const EXPERTS: (usize, usize) = (4, 2);

/// `count` letters, which are as many tokens.
fn text(folder: &Folder, count: usize) -> String {
    let path = folder.path("text.txt");
    let letter = |i: usize| char::from(b'a' + (i * i % 26) as u8);
    fs::write(&path, (0..count).map(letter).collect::<String>()).unwrap();
    path
}

/// The tensors of a file: their dimensions and values, in its order.
fn tensors(path: &str) -> Vec<(String, Vec<u64>, Vec<f32>)> {
    let files = Files::open(path).unwrap();
    let gguf = files.parse().unwrap();
    let tensor = gguf.tensors().map(|tensor| {
        assert_eq!(tensor.dtype().unwrap(), GgmlType::F32);
        (tensor.name().to_owned(), tensor.dims().to_vec(), floats(tensor.data().unwrap()))
    });
    tensor.collect()
}

/// What llama.cpp's `imatrix` writes: two tensors for each matrix of a layer, in the order of their names.
#[test]
fn each_matrix_of_a_layer_has_its_sums_and_counts() {
    const CHUNKS: usize = 3;
    const CHUNK: usize = 8;
    let folder = Folder::new("imatrix");
    let (file, out) = (model(&folder, MIXTURE, None), folder.path("imatrix.gguf"));
    // The start of the text, its space, and letters: three chunks, and some that are left over.
    let text = text(&folder, CHUNKS * CHUNK + 1);
    let (rows, (experts, slots)) = ((CHUNKS * CHUNK) as f32, EXPERTS);
    let mut of_devices = Vec::new();
    for device in DEVICES {
        let arguments = ["imatrix", &file, "--text", &text, "-o", &out, "--chunk", "8", "--device", device];
        let printed = stdout(&arguments);
        assert!(printed.starts_with("chunks: 3, tokens: 24, matrices: 8, seconds: "), "{printed}");
        let files = Files::open(&out).unwrap();
        let gguf = files.parse().unwrap();
        let metadata = gguf.metadata();
        assert_eq!(metadata.str("general.type").unwrap(), "imatrix");
        let datasets: Vec<_> = metadata.array("imatrix.datasets").unwrap().iter().collect();
        assert_eq!(datasets, [cube_gguf::gguf::Value::String(&text)]);
        assert_eq!(metadata.value::<u32>("imatrix.chunk_count").unwrap(), CHUNKS as u32);
        assert_eq!(metadata.value::<u32>("imatrix.chunk_size").unwrap(), CHUNK as u32);

        let found = tensors(&out);
        let matrices = MIXTURE.tensors().into_iter().filter(|(name, dims)| name.starts_with("blk.") && dims.len() > 1);
        let matrices: BTreeMap<String, Vec<usize>> = matrices.collect();
        let names = matrices.keys().flat_map(|name| [format!("{name}.in_sum2"), format!("{name}.counts")]);
        assert!(found.iter().map(|(name, ..)| name).eq(&names.collect::<Vec<_>>()), "{found:?}");
        for ((name, shape), entry) in matrices.iter().zip(found.chunks_exact(2)) {
            let ((_, dims, sums), (_, dims_of_counts, counts)) = (&entry[0], &entry[1]);
            let columns = *shape.last().unwrap() as u64;
            match shape.len() {
                3 => {
                    assert_eq!(
                        (&dims[..], &dims_of_counts[..]),
                        (&[columns, experts as u64][..], &[1, experts as u64][..])
                    );
                    assert_eq!(counts.iter().sum::<f32>(), rows * slots as f32, "{name}");
                }
                _ => {
                    assert_eq!((&dims[..], &dims_of_counts[..]), (&[columns][..], &[1][..]), "{name}");
                    assert_eq!(*counts, [rows], "{name}");
                }
            }
            for (sums, &count) in sums.chunks_exact(columns as usize).zip(counts) {
                assert!(sums.iter().all(|&sum| if count > 0.0 { sum > 0.0 } else { sum == 0.0 }), "{name}: {sums:?}");
            }
        }
        let named =
            |of: &str| found.iter().find(|(name, ..)| *name == format!("blk.0.{of}.weight.in_sum2")).unwrap().2.clone();
        assert_eq!(named("attn_q"), named("attn_v"));
        assert_eq!(named("ffn_gate_exps"), named("ffn_up_exps"));
        assert_ne!(named("attn_q"), named("ffn_gate_inp"));
        of_devices.push(found);
    }
    // Candle's products and the kernels' differ in their last bits.
    for (one, other) in of_devices[0].iter().zip(&of_devices[1]) {
        let mut values = one.2.iter().zip(&other.2);
        assert!(values.all(|(a, b)| (a - b).abs() <= 1e-3 * a.abs().max(1.0)), "{one:?} and {other:?}");
    }
    assert_eq!(folder.names(), ["imatrix.gguf", "mixture.gguf", "text.txt"]);

    let arguments = ["imatrix", &file, "--text", &text, "-o", &out, "--chunk", "8", "--device", "cube-cpu"];
    let printed = stdout(&[&arguments[..], &["--chunks", "1", "--process-output"]].concat());
    assert!(printed.starts_with("chunks: 1, tokens: 8, matrices: 9, seconds: "), "{printed}");
    let last = tensors(&out);
    let [(sums, dims, _), (counts, _, values)] = &last[last.len() - 2..] else { unreachable!() };
    assert_eq!((&**sums, &**counts, &**values), ("output.weight.in_sum2", "output.weight.counts", &[8.0][..]));
    assert_eq!(*dims, [D_MODEL as u64]);
}

/// A chunk starts with the start of a text in place of its first token, and knows nothing of the chunks before it.
#[test]
fn chunks_are_texts_of_their_own() {
    let folder = Folder::new("imatrix-chunks");
    let tiny = Tiny { layers: 1, ..Tiny::ALL[0] };
    let (file, out) = (model(&folder, tiny, None), folder.path("imatrix.gguf"));
    let text = folder.path("text.txt");
    let sums = |of: &str| {
        fs::write(&text, of).unwrap();
        stdout(&["imatrix", &file, "--text", &text, "-o", &out, "--chunk", "8", "--device", "cube-cpu"]);
        tensors(&out)
    };
    // The start, a space and six letters, twice: the second time the start takes a letter's place.
    let (once, twice) = (sums("abcdef"), sums("abcdefx abcdef"));
    for ((name, _, once), (_, _, twice)) in once.iter().zip(&twice) {
        assert!(once.iter().zip(twice).all(|(once, twice)| 2.0 * once == *twice), "{name}: {once:?} and {twice:?}");
    }
}

/// Matrices get other blocks by what was measured, which the new file says.
#[test]
fn quantize_takes_what_was_measured() {
    let folder = Folder::new("imatrix-quantize");
    let (file, measured) = (model(&folder, MIXTURE, None), folder.path("imatrix.gguf"));
    let (plain, by_importance) = (folder.path("plain.gguf"), folder.path("by-importance.gguf"));
    let text = text(&folder, 64);
    stdout(&["imatrix", &file, "--text", &text, "-o", &measured, "--chunk", "32", "--device", "cpu"]);
    stdout(&["quantize", &file, &plain, "Q4_K_M", "--device", "cpu"]);
    stdout(&["quantize", &file, &by_importance, "Q4_K_M", "--device", "cpu", "--imatrix", &measured]);
    let files = [&plain, &by_importance].map(|path| Files::open(path).unwrap());
    let [plain, by_importance] = files.each_ref().map(|files| files.parse().unwrap());
    assert_eq!(by_importance.metadata().value::<u32>("quantize.imatrix.entries_count").unwrap(), 8);
    assert_eq!(by_importance.metadata().value::<u32>("quantize.imatrix.chunks_count").unwrap(), 2);
    assert_eq!(by_importance.metadata().value::<&str>("quantize.imatrix.dataset").unwrap(), text);
    for tensor in plain.tensors() {
        let other = by_importance.tensor(tensor.name()).unwrap();
        // No importance bears on Q8_0, which is the largest value's alone.
        let has_choices = !matches!(tensor.dtype().unwrap(), GgmlType::F32 | GgmlType::Q8_0);
        let is_measured = tensor.name().starts_with("blk.") && has_choices;
        assert_eq!(tensor.data().unwrap() != other.data().unwrap(), is_measured, "{}", tensor.name());
    }
}

#[test]
fn what_cannot_be_measured_is_a_sentence_and_leaves_no_file() {
    let folder = Folder::new("imatrix-errors");
    let (file, out) = (model(&folder, Tiny::ALL[0], None), folder.path("imatrix.gguf"));
    let text = text(&folder, 100);
    let empty = folder.path("empty.txt");
    fs::write(&empty, "").unwrap();
    let binary = folder.path("binary.txt");
    fs::write(&binary, [0xff; 8]).unwrap();
    let measure = |file: &str, text: &str, chunk: &str| {
        error(&["imatrix", file, "--text", text, "-o", &out, "--chunk", chunk, "--device", "cube-cpu"])
    };
    assert!(measure(&file, &empty, "8").ends_with("empty.txt: the text is empty"));
    assert!(measure(&file, &binary, "8").contains("binary.txt: "));
    assert!(measure(&file, &folder.path("missing.txt"), "8").contains("missing.txt: "));
    assert!(measure(&file, &text, "512").ends_with("text.txt: 102 tokens are no whole chunk of 512"));
    assert!(measure(&file, &text, "64").contains("room for 64 tokens was asked for: the model takes from 1 to 32"));
    let unknown = model(&folder, Tiny { name: "abacus", architecture: "abacus", ..Tiny::ALL[0] }, None);
    assert!(measure(&unknown, &text, "8").contains("\"abacus\" are not supported"));
    let words = folder.path("vocabulary.gguf");
    let mut writer = Writer::new();
    writer.metadata("general.architecture", "llama").unwrap();
    vocabulary(&mut writer);
    fs::write(&words, writer.begin(Vec::new()).unwrap().finish().unwrap()).unwrap();
    assert!(measure(&words, &text, "8").contains("llama.embedding_length"));
    let nowhere = folder.path("nowhere/imatrix.gguf");
    let message = error(&["imatrix", &file, "--text", &text, "-o", &nowhere, "--chunk", "8", "--device", "cube-cpu"]);
    assert!(message.starts_with(&nowhere), "{message}");
    assert_eq!(folder.names(), ["abacus.gguf", "binary.txt", "empty.txt", "llama.gguf", "text.txt", "vocabulary.gguf"]);
}

/// Ctrl-C ends it between two chunks, and nothing is left of the file.
#[cfg(unix)]
#[test]
fn an_interrupt_leaves_no_importances() {
    let folder = Folder::new("imatrix-interrupt");
    let (file, out) = (model(&folder, Tiny { layers: 1, ..Tiny::ALL[0] }, None), folder.path("imatrix.gguf"));
    let text = text(&folder, 1 << 20);
    let mut child = command(&["imatrix", &file, "--text", &text, "-o", &out, "--chunk", "8", "--device", "cube-cpu"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // The model is loaded and chunks are read once there is a file of another name.
    let start = Instant::now();
    while folder.names().len() < 3 {
        assert!(child.try_wait().unwrap().is_none() && start.elapsed() < Duration::from_secs(120));
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(folder.names(), ["llama.gguf", "text.txt"]);
}
