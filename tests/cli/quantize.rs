//! `cube-gguf quantize` on a small model.

use std::fs;
#[cfg(unix)]
use std::io::{BufRead, BufReader, Lines, Write};
#[cfg(unix)]
use std::process::{Child, ChildStdout, Command, Stdio};

use cube_gguf::gguf::{Files, GgmlType, Writer};

use super::{DEVICES, Folder, command, error, run, stdout};

/// Values of every magnitude, the same ones every time.
fn values(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 31 + seed * 17) as f32 * 0.37).sin() * 0.1).collect()
}

const TENSORS: [(&str, &[u64]); 6] = [
    ("token_embd.weight", &[256, 8]),
    ("blk.0.attn_norm.weight", &[256]),
    ("blk.0.attn_v.weight", &[256, 4]),
    ("blk.0.ffn_gate_inp.weight", &[256, 2]),
    // Rows that are no whole super-blocks.
    ("blk.0.ffn_down.weight", &[96, 4]),
    ("output_norm.weight", &[256]),
];

/// A model of two layers with the tensors of one, f32, `odd` in place of the value of the same index of the third.
fn model(folder: &Folder, odd: Option<(usize, f32)>) -> String {
    let mut writer = Writer::new();
    writer.metadata("general.architecture", "llama").unwrap();
    writer.metadata("general.file_type", 0u32).unwrap();
    writer.metadata("llama.block_count", 2u32).unwrap();
    for (name, dims) in TENSORS {
        writer.tensor(name, dims, GgmlType::F32).unwrap();
    }
    let mut out = writer.begin(Vec::new()).unwrap();
    for (place, (_, dims)) in TENSORS.iter().enumerate() {
        let mut values = values(dims.iter().product::<u64>() as usize, place);
        if let Some((index, odd)) = odd.filter(|_| place == 2) {
            values[index] = odd;
        }
        out.data(&values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>()).unwrap();
    }
    let path = folder.path("model.gguf");
    fs::write(&path, out.finish().unwrap()).unwrap();
    path
}

fn types(path: &str) -> Vec<GgmlType> {
    let files = Files::open(path).unwrap();
    let gguf = files.parse().unwrap();
    gguf.tensors().map(|tensor| tensor.dtype().unwrap()).collect()
}

/// The types are llama.cpp's: the embedding is the output, too, the last values' matrix has more bits, and rows that do not fit fall
/// back.
#[test]
fn matrices_get_the_types_of_the_recipe() {
    use GgmlType::{F32, Q5_0, Q5_1, Q6K};
    let folder = Folder::new("quantize-types");
    let file = model(&folder, None);
    for device in DEVICES {
        let out = folder.path("out.gguf");
        let printed = stdout(&["quantize", &file, &out, "q4_k_m", "--device", device]);
        assert!(printed.contains("attn_v.weight") && printed.contains("F32 -> Q6_K, error 1."), "{printed}");
        assert!(printed.lines().last().unwrap().contains("32.00 bits a weight"), "{printed}");
        assert_eq!(types(&out), [Q6K, F32, Q6K, F32, Q5_0, F32]);
        let files = Files::open(&out).unwrap();
        let gguf = files.parse().unwrap();
        assert_eq!(gguf.metadata().value::<u32>("general.file_type").unwrap(), 15);
        assert_eq!(gguf.metadata().value::<u32>("general.quantization_version").unwrap(), 2);
        assert_eq!(gguf.metadata().value::<u32>("llama.block_count").unwrap(), 2);

        stdout(&["quantize", &file, &out, "Q5_K_S", "--tensor", "*.ffn_*=Q5_1", "--device", device]);
        assert_eq!(types(&out), [Q6K, F32, GgmlType::Q5K, F32, Q5_1, F32]);
        stdout(&["quantize", &file, &out, "Q4_K_S", "--tensor", "blk.9.*=Q5_0", "--device", device]);
        assert_eq!(types(&out), [Q6K, F32, GgmlType::Q5K, F32, Q5_0, F32]);
    }
    assert_eq!(folder.names(), ["model.gguf", "out.gguf"]);
}

/// What keeps its type keeps its bytes; a type without loss there and back gives the same file.
#[test]
fn nothing_is_lost_without_need() {
    let folder = Folder::new("quantize-copies");
    let file = model(&folder, None);
    let (once, twice) = (folder.path("once.gguf"), folder.path("twice.gguf"));
    stdout(&["quantize", &file, &once, "F32", "--device", "cpu"]);
    let tensors = |path: &str| {
        let files = Files::open(path).unwrap();
        let gguf = files.parse().unwrap();
        gguf.tensors().map(|tensor| tensor.data().unwrap().to_vec()).collect::<Vec<_>>()
    };
    assert_eq!(tensors(&once), tensors(&file));
    stdout(&["quantize", &file, &once, "Q8_0", "--device", "cpu"]);
    stdout(&["quantize", &once, &twice, "Q8_0", "--device", "cpu"]);
    assert_eq!(fs::read(&once).unwrap(), fs::read(&twice).unwrap());
}

#[test]
fn what_cannot_be_quantized_leaves_no_file() {
    let folder = Folder::new("quantize-errors");
    let file = model(&folder, Some((300, f32::NAN)));
    let out = folder.path("out.gguf");
    for device in DEVICES {
        let output = run(&["quantize", &file, &out, "Q4_0", "--device", device]);
        assert_eq!(output.status.code(), Some(2));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains("blk.0.attn_v.weight: row 1 of the values to quantize has a NaN"), "{stderr}");
    }
    let message = error(&["quantize", &file, &out, "Q4_0", "--tensor", "*=IQ2_XXS", "--device", "cpu"]);
    assert!(message.contains("token_embd.weight: IQ2_XXS needs the importances"), "{message}");
    let message = error(&["quantize", &file, &out, "Q2_K_S", "--device", "cpu"]);
    assert!(message.contains("Q2_K needs the importances that --imatrix gives"), "{message}");
    let output = run(&["quantize", &file, &out, "Q9_Z"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("Q4_K_M"));
    let message = error(&["quantize", &file, &folder.path("missing/out.gguf"), "Q4_0", "--device", "cpu"]);
    assert!(message.contains("missing"), "{message}");
    assert_eq!(folder.names(), ["model.gguf"]);
}

/// A limit of files' sizes ends writing as a full disk does.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_no_file() {
    let folder = Folder::new("quantize-full");
    let (file, out) = (model(&folder, None), folder.path("out.gguf"));
    let script = "trap '' XFSZ; ulimit -f 8; exec \"$@\"";
    let mut limited = Command::new("sh");
    limited.args(["-c", script, "sh", env!("CARGO_BIN_EXE_cube-gguf")]);
    let output = limited.args(["quantize", &file, &out, "F32", "--device", "cpu"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8(output.stderr).unwrap();
    let message = stderr.lines().last().unwrap();
    assert!(message.starts_with("cube-gguf: ") && message.contains(&format!("{out}: ")), "{message}");
    assert_eq!(folder.names(), ["model.gguf"]);
}

/// Importances of the values' matrix and of the projection down, whose numbers of columns are given.
fn importances(columns: [usize; 2]) -> [(&'static str, Vec<f32>); 2] {
    let of = |columns: usize| (0..columns).map(|i| ((i * 7) as f32).sin().abs() + 0.01).collect();
    [("blk.0.attn_v.weight", of(columns[0])), ("blk.0.ffn_down.weight", of(columns[1]))]
}

/// As llama.cpp writes them: sums of squares, and how many there were.
fn imatrix(folder: &Folder, columns: [usize; 2]) -> String {
    let importances = importances(columns);
    let mut writer = Writer::new();
    writer.metadata("general.type", "imatrix").unwrap();
    for (name, values) in &importances {
        writer.tensor(&format!("{name}.in_sum2"), &[values.len() as u64, 1], GgmlType::F32).unwrap();
        writer.tensor(&format!("{name}.counts"), &[1, 1], GgmlType::F32).unwrap();
    }
    let mut out = writer.begin(Vec::new()).unwrap();
    for (_, values) in &importances {
        out.data(&values.iter().flat_map(|x| (x * 4.0).to_le_bytes()).collect::<Vec<_>>()).unwrap();
        out.data(&4.0f32.to_le_bytes()).unwrap();
    }
    let path = folder.path("imatrix.gguf");
    fs::write(&path, out.finish().unwrap()).unwrap();
    path
}

/// As llama.cpp wrote them before.
fn older_imatrix(folder: &Folder, columns: [usize; 2]) -> String {
    let importances = importances(columns);
    let mut bytes = (importances.len() as i32).to_le_bytes().to_vec();
    for (name, values) in importances {
        bytes.extend((name.len() as i32).to_le_bytes());
        bytes.extend(name.as_bytes());
        bytes.extend(2i32.to_le_bytes());
        bytes.extend((values.len() as i32).to_le_bytes());
        bytes.extend(values.iter().flat_map(|x| (x * 2.0).to_le_bytes()));
    }
    let path = folder.path("imatrix.dat");
    fs::write(&path, bytes).unwrap();
    path
}

/// Both formats give the same file, in which the matrices with importances have other blocks, and the others the same.
#[test]
fn importances_bear_on_their_matrices_alone() {
    let folder = Folder::new("quantize-imatrix");
    let file = model(&folder, None);
    let (plain, ours, older) = (folder.path("plain.gguf"), folder.path("ours.gguf"), folder.path("older.gguf"));
    let columns = [256, 96];
    let (imatrix, of_before) = (imatrix(&folder, columns), older_imatrix(&folder, columns));
    stdout(&["quantize", &file, &plain, "Q4_K_M", "--device", "cpu"]);
    stdout(&["quantize", &file, &ours, "Q4_K_M", "--device", "cpu", "--imatrix", &imatrix]);
    stdout(&["quantize", &file, &older, "Q4_K_M", "--device", "cpu", "--imatrix", &of_before]);
    let files = [&plain, &ours, &older].map(|path| Files::open(path).unwrap());
    let [plain, ours, older] = files.each_ref().map(|files| files.parse().unwrap());
    assert_eq!(ours.metadata().value::<u32>("quantize.imatrix.entries_count").unwrap(), 2);
    for (name, _) in TENSORS {
        let data = [&plain, &ours, &older].map(|gguf| gguf.tensor(name).unwrap().data().unwrap());
        assert_eq!(data[1], data[2], "{name}");
        let has_importances = ["blk.0.attn_v.weight", "blk.0.ffn_down.weight"].contains(&name);
        assert_eq!(data[0] != data[1], has_importances, "{name}");
    }
}

#[test]
fn importances_that_do_not_fit_are_refused() {
    let folder = Folder::new("quantize-imatrix-errors");
    let (file, out) = (model(&folder, None), folder.path("out.gguf"));
    let wrong = imatrix(&folder, [256, 95]);
    let output = run(&["quantize", &file, &out, "Q4_K_M", "--device", "cpu", "--imatrix", &wrong]);
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("blk.0.ffn_down.weight: 95 importances in"), "{stderr}");
    let message = error(&["quantize", &file, &out, "Q4_K_M", "--device", "cpu", "--imatrix", &file]);
    assert!(message.contains("no importance matrix"), "{message}");
    let junk = folder.path("junk.dat");
    fs::write(&junk, [0xffu8; 40]).unwrap();
    let message = error(&["quantize", &file, &out, "Q4_K_M", "--device", "cpu", "--imatrix", &junk]);
    assert!(message.contains("junk.dat: no importance matrix"), "{message}");
    assert_eq!(folder.names(), ["imatrix.gguf", "junk.dat", "model.gguf"]);
}

/// Matrices of [`many_layers`].
#[cfg(unix)]
const LAYERS: usize = 24;

/// A model whose quantization takes a while, and the command that does it, which has written the first matrix.
#[cfg(unix)]
fn many_layers(folder: &Folder) -> (String, Child, Lines<BufReader<ChildStdout>>) {
    let mut writer = Writer::new();
    writer.metadata("general.architecture", "llama").unwrap();
    for layer in 0..LAYERS {
        writer.tensor(&format!("blk.{layer}.attn_q.weight"), &[1024, 256], GgmlType::F32).unwrap();
    }
    let mut out = writer.begin(Vec::new()).unwrap();
    let data: Vec<u8> = values(1024 * 256, 0).iter().flat_map(|x| x.to_le_bytes()).collect();
    (0..LAYERS).for_each(|_| out.data(&data).unwrap());
    let (file, target) = (folder.path("model.gguf"), folder.path("out.gguf"));
    fs::write(&file, out.finish().unwrap()).unwrap();

    let mut child = command(&["quantize", &file, &target, "Q4_K_M", "--device", "cpu"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("blk.0.attn_q.weight"));
    (file, child, lines)
}

/// Ctrl-C ends it between two stripes, and nothing is left of what was written.
#[cfg(unix)]
#[test]
fn an_interrupt_leaves_no_file() {
    let folder = Folder::new("quantize-interrupt");
    let (_, mut child, lines) = many_layers(&folder);
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let rest = lines.count();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(rest < LAYERS - 1, "{rest} more tensors");
    assert_eq!(folder.names(), ["model.gguf"]);
}

/// A file that another process truncates ends it with a sentence, as reading does, where a map would fault.
#[cfg(unix)]
#[test]
fn a_file_that_shrinks_leaves_no_file() {
    let folder = Folder::new("quantize-shrinks");
    let (file, child, _lines) = many_layers(&folder);
    let half = fs::metadata(&file).unwrap().len() / 2;
    fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(half).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(
        stderr.contains("attn_q.weight: ") && stderr.contains("model.gguf: the file has become shorter"),
        "{stderr}"
    );
    assert_eq!(folder.names(), ["model.gguf"]);
}

/// Memory is that of some stripes, however large a tensor is: here its values are more than all that the process may have.
#[cfg(target_os = "linux")]
#[test]
fn a_tensor_need_not_fit_into_memory() {
    const LIMIT_KIB: u64 = 512 << 10;
    let folder = Folder::new("quantize-memory");
    let mut writer = Writer::new();
    let dims = [4096, 1 << 15];
    writer.metadata("general.architecture", "llama").unwrap();
    writer.tensor("blk.0.attn_q.weight", &dims, GgmlType::F16).unwrap();
    assert!(4 * dims.iter().product::<u64>() >= LIMIT_KIB << 10);
    // The data are a hole of zeros.
    let mut header = Vec::new();
    drop(writer.begin(&mut header).unwrap());
    let (file, out) = (folder.path("model.gguf"), folder.path("out.gguf"));
    let input = fs::File::create(&file).unwrap();
    (&input).write_all(&header).unwrap();
    input.set_len(header.len() as u64 + 2 * dims.iter().product::<u64>()).unwrap();
    let script = format!("ulimit -d {LIMIT_KIB}; exec \"$0\" \"$@\"");
    let output = Command::new("sh")
        .args(["-c", &script, env!("CARGO_BIN_EXE_cube-gguf"), "quantize", &file, &out, "Q4_0", "--device", "cpu"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(types(&out), [GgmlType::Q4_0]);
}
