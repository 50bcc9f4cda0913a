//! The command line, run on the fixtures: exit statuses, JSON, error sentences, files.

#![cfg(feature = "cli")]

mod checkpoints;
#[cfg(feature = "cpu")]
mod generate;
#[cfg(feature = "cpu")]
mod imatrix;
mod quantize;
#[cfg(all(feature = "hip", target_os = "linux"))]
mod rocm;
#[cfg(feature = "cpu")]
#[path = "../models/tiny.rs"]
mod tiny;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use approx::assert_relative_eq;
use cube_gguf::gguf::{Files, GgmlType, Writer};
use serde_json::Value;

/// The devices that every machine has.
const DEVICES: &[&str] = if cfg!(feature = "cpu") { &["cpu", "cube-cpu"] } else { &["cpu"] };

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cube-gguf"));
    command.args(arguments);
    command
}

fn run(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

/// What the command prints; it must succeed.
fn stdout(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&stdout(arguments)).unwrap()
}

/// The sentence of an error; nothing may be on stdout.
fn error(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    // Drivers may print lines of their own before it.
    stderr.lines().last().unwrap().strip_prefix("cube-gguf: ").unwrap().to_owned()
}

fn fixture(name: &str) -> String {
    format!("{}/tests/fixtures/{name}.gguf", env!("CARGO_MANIFEST_DIR"))
}

/// A folder of one test, empty at first.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cli-{test}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// A file of one I32 tensor `t`, two values long.
    fn integers(&self, metadata: &[(&str, &str)]) -> String {
        let mut writer = Writer::new();
        for (key, value) in metadata {
            writer.metadata(key, *value).unwrap();
        }
        writer.tensor("t", &[2], GgmlType::I32).unwrap();
        let mut tensors = writer.begin(Vec::new()).unwrap();
        tensors.data(&[0; 8]).unwrap();
        let path = self.path("integers.gguf");
        fs::write(&path, tensors.finish().unwrap()).unwrap();
        path
    }

    /// A .npy file of `<f4`.
    fn npy(&self, name: &str, shape: &[usize], values: &[f32]) -> String {
        let shape: String = shape.iter().map(|extent| format!("{extent}, ")).collect();
        let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}), }}\n", shape.trim_end());
        let mut bytes = b"\x93NUMPY\x01\0".to_vec();
        bytes.extend_from_slice(&(header.len() as u16).to_le_bytes());
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The header and the data of a .npy file.
fn read_npy(path: &str) -> (String, Vec<u8>) {
    let bytes = fs::read(path).unwrap();
    assert_eq!(bytes[..8], *b"\x93NUMPY\x01\0");
    let end = 10 + u16::from_le_bytes([bytes[8], bytes[9]]) as usize;
    assert_eq!(end % 64, 0);
    (String::from_utf8(bytes[10..end].to_vec()).unwrap(), bytes[end..].to_vec())
}

/// The expected values of a fixture's tensor, as bytes.
fn expected(name: &str, tensor: &str) -> Vec<u8> {
    let files = Files::open(fixture(name)).unwrap();
    files.parse().unwrap().tensor(&format!("{tensor}.expected")).unwrap().data().unwrap().to_vec()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

#[test]
fn help_and_usage_errors() {
    assert!(stdout(&["--help"]).contains("Examples:"));
    for name in
        ["devices", "generate", "inspect", "verify", "quantize", "imatrix", "dequantize", "matmul", "bench", "tune"]
    {
        assert!(stdout(&[name, "--help"]).contains("Usage: cube-gguf"), "{name}");
    }
    for arguments in [&[][..], &["verify"], &["frobnicate"], &["bench", "--tokens", "x"], &["bench", "f", "--n", "1"]] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn devices() {
    let all = json(&["devices", "--json"]);
    let devices = all["devices"].as_array().unwrap();
    let named = |name: &str| devices.iter().any(|device| device["name"] == name);
    assert!(DEVICES.iter().all(|name| named(name)));
    assert_eq!(devices.iter().filter(|device| device["default"] == true).count(), 1);
    let backends = all["backends"].as_array().unwrap();
    assert!(backends.iter().any(|backend| backend["name"] == "rocm" && backend["feature"] == "hip"));
    assert!(stdout(&["devices"]).contains("cpu"));
}

#[test]
fn inspect() {
    let file = json(&["inspect", &fixture("q4_k"), "--json"]);
    assert_eq!((&file["version"], &file["endian"]), (&3.into(), &"little".into()));
    assert!(file["metadata"]["source"].is_string());
    let tensor = file["tensors"].as_array().unwrap().iter().find(|tensor| tensor["name"] == "random").unwrap();
    assert_eq!(tensor["type"], "Q4_K");
    assert_eq!(tensor["shape"], serde_json::json!([6, 768]));
    assert_eq!(tensor["bytes"], 6 * 3 * 144);
    assert_eq!(tensor["bits_per_weight"], 4.5);
    assert_eq!(file["total"]["tensors"], 6);
    assert_eq!(json(&["inspect", &fixture("q4_k.be"), "--json"])["endian"], "big");
    let text = stdout(&["inspect", &fixture("q4_k")]);
    assert!(text.contains("random") && text.contains("Q4_K") && text.contains("[6, 768]"));
}

#[test]
fn inspect_shows_hostile_and_unknown_things() {
    let folder = Folder::new("inspect");
    let path = folder.integers(&[("k", "\u{1b}[2J\u{202e}")]);
    let text = stdout(&["inspect", &path]);
    assert!(!text.contains('\u{1b}') && !text.contains('\u{202e}'));
    assert!(text.contains("\\u{1b}[2J\\u{202e}"));
    assert_eq!(json(&["inspect", &path, "--json"])["metadata"]["k"], "\u{1b}[2J\u{202e}");

    // The type follows the name, the number of dimensions and the dimensions.
    let mut bytes = fs::read(&path).unwrap();
    let entry = [&b"t"[..], &1u32.to_le_bytes(), &2u64.to_le_bytes()].concat();
    let at = bytes.windows(entry.len()).position(|window| window == entry).unwrap() + entry.len();
    bytes[at..at + 4].copy_from_slice(&1234u32.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    assert!(stdout(&["inspect", &path]).contains("unknown (1234)"));
    let tensor = &json(&["inspect", &path, "--json"])["tensors"][0];
    assert_eq!((&tensor["type"], &tensor["type_number"], &tensor["bytes"]), (&Value::Null, &1234.into(), &Value::Null));
    let skipped = &json(&["verify", &path, "--json", "--device", "cpu"])["skipped"][0];
    assert!(skipped["reason"].as_str().unwrap().contains("1234"), "{skipped}");
}

#[test]
fn errors_are_sentences() {
    let file = fixture("q4_k");
    let readme = format!("{}/tests/fixtures/README.md", env!("CARGO_MANIFEST_DIR"));
    assert!(error(&["inspect", "missing.gguf"]).starts_with("missing.gguf: "));
    assert!(error(&["inspect", &readme]).contains("not a GGUF file"));
    let device = |name: &str| error(&["verify", &file, "--device", name]);
    assert!(device("gpu").starts_with("no device gpu: known are auto"));
    assert!(device("cuda:x").starts_with("no device cuda:x: known are auto"));
    assert!(device("rocm:99").starts_with("no device rocm:99: "));
    let glob = |pattern: &str| error(&["verify", &file, "--device", "cpu", "--tensor", pattern]);
    assert!(glob("blk.*").ends_with("q4_k.gguf matches `blk.*`"));
    assert!(glob("a[").contains("a["));
    assert!(error(&["bench", "--device", "cpu", "--types", "q9_9"]).contains("`q9_9` is no tensor type"));
    assert!(error(&["bench", "--device", "cpu", "--types", "i32"]).contains("hold no weights"));
    assert!(error(&["bench", "--device", "cpu", "--types", "q4_k", "--k", "100"]).contains("no multiple of 256"));
    assert!(error(&["bench", "--device", "cpu", "--tokens", "0"]).contains("1 or more"));
    assert!(error(&["bench", "--device", "cpu", "--graph"]).contains("which the host does not"));
    assert!(error(&["bench", "--device", "cpu", "--graph", "--op", "dequantize"]).contains("for products"));
}

#[test]
fn verify() {
    for device in DEVICES {
        for name in ["q4_0", "q6_k.be", "iq2_xxs", "f32"] {
            let report = json(&["verify", &fixture(name), "--device", device, "--json"]);
            assert_eq!((&report["device"], &report["ok"]), (&(*device).into(), &true.into()), "{name}");
            assert_eq!(report["skipped"], serde_json::json!([]));
            for tensor in report["tensors"].as_array().unwrap() {
                assert_eq!((&tensor["exact"], &tensor["mismatches"]), (&true.into(), &0.into()), "{tensor}");
                assert_eq!((&tensor["ok"], &tensor["round_trip"]), (&true.into(), &true.into()), "{tensor}");
                assert!(tensor["error_over_bound"].as_f64().unwrap() <= 1.0, "{tensor}");
                for key in ["max_error", "bound", "gbps"] {
                    assert!(tensor[key].is_f64(), "{key} of {tensor}");
                }
                assert!(tensor["gguf_bytes"].as_u64().unwrap() <= tensor["device_bytes"].as_u64().unwrap());
            }
        }
    }
}

#[test]
fn verify_takes_a_glob_and_skips_integers() {
    let report = json(&["verify", &fixture("q4_0"), "--device", "cpu", "--tensor", "r*m", "--json"]);
    let names: Vec<_> = report["tensors"].as_array().unwrap().iter().map(|tensor| &tensor["name"]).collect();
    assert_eq!(names, ["random"]);

    let folder = Folder::new("skips");
    let path = folder.integers(&[]);
    for device in DEVICES {
        let report = json(&["verify", &path, "--device", device, "--json"]);
        assert_eq!((&report["tensors"], &report["ok"]), (&serde_json::json!([]), &true.into()));
        assert_eq!(report["skipped"][0]["name"], "t");
        assert!(report["skipped"][0]["reason"].as_str().unwrap().starts_with("I32 tensors hold no weights"));
        assert!(stdout(&["verify", &path, "--device", device]).contains("skipped t: I32"));
    }
}

#[test]
fn dequantize() {
    let folder = Folder::new("dequantize");
    let out = folder.path("out.npy");
    for device in DEVICES {
        for name in ["q4_k", "iq3_s", "bf16"] {
            let values = floats(&expected(name, "random"));
            let k = values.len() / 6;
            let run = |dtype| {
                stdout(&["dequantize", &fixture(name), "random", "-o", &out, "--dtype", dtype, "--device", device]);
                let (header, data) = read_npy(&out);
                assert!(header.contains(&format!("'shape': (6, {k},)")), "{header}");
                (header, data)
            };
            let (header, data) = run("f32");
            assert!(header.contains("'<f4'"));
            assert!(floats(&data).iter().zip(&values).all(|(a, b)| a.to_bits() == b.to_bits()), "{name} on {device}");
            let (header, data) = run("f16");
            assert!(header.contains("'<f2'"));
            let halves = values.iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes());
            assert!(data.into_iter().eq(halves), "{name} on {device}");
            let (header, data) = run("bf16");
            assert!(header.contains("'<u2'"));
            let halves = values.iter().flat_map(|&value| half::bf16::from_f32(value).to_le_bytes());
            assert!(data.into_iter().eq(halves), "{name} on {device}");
        }
    }
    assert_eq!(folder.names(), ["out.npy"]);
    let missing = error(&["dequantize", &fixture("q4_k"), "nope", "-o", &out, "--device", "cpu"]);
    assert_eq!(missing, "tensor `nope` is missing");
    let nowhere = folder.path("nowhere/out.npy");
    assert!(
        error(&["dequantize", &fixture("q4_k"), "random", "-o", &nowhere, "--device", "cpu"]).starts_with(&nowhere)
    );
}

#[test]
fn matmul() {
    let folder = Folder::new("matmul");
    let values = floats(&expected("q4_k", "quantized"));
    let (n, k) = (6, values.len() / 6);
    // Rows of the identity take columns out, without any rounding.
    let columns = [0, 77, k - 1, 300];
    let mut x = vec![0.0; columns.len() * k];
    columns.iter().enumerate().for_each(|(row, column)| x[row * k + column] = 1.0);
    let x = folder.npy("x.npy", &[2, 2, k], &x);
    let y = folder.path("y.npy");
    let file = fixture("q4_k");
    for device in DEVICES {
        let arguments = ["matmul", &file, "quantized", "-x", &x, "-o", &y, "--device", device];
        stdout(&arguments);
        let (header, data) = read_npy(&y);
        assert!(header.contains("'<f4'") && header.contains("'shape': (2, 2, 6,)"), "{header}");
        let wanted = |i: usize| values[i % n * k + columns[i / n]];
        for (i, found) in floats(&data).into_iter().enumerate() {
            assert_relative_eq!(found, wanted(i), max_relative = 0.01);
        }
        let float = [&arguments[..], &["--arithmetic", "float"]].concat();
        match *device {
            "cpu" => assert!(error(&float).contains("int8 activations alone")),
            _ => {
                stdout(&float);
                assert!(floats(&read_npy(&y).1).into_iter().enumerate().all(|(i, found)| found == wanted(i)));
            }
        }
        let short = folder.npy("short.npy", &[2, 64], &[0.0; 128]);
        let message = error(&["matmul", &file, "quantized", "-x", &short, "-o", &y, "--device", device]);
        assert_eq!(message, "quantized: activations of shape [2, 64] do not fit weights of 768 input features");
        let lie = folder.npy("lie.npy", &[1 << 40, 768], &[0.0]);
        assert!(error(&["matmul", &file, "quantized", "-x", &lie, "-o", &y, "--device", device]).contains("found 4"));
    }
    let other = error(&["matmul", &file, "quantized", "-x", &file, "-o", &y, "--device", "cpu"]);
    assert!(other.contains("no .npy file"), "{other}");
}

#[test]
fn bench() {
    let header = "engine,type,n,k,tokens,us,gbps_weights,tflops";
    for device in DEVICES {
        let rows = |arguments: &[&str]| {
            let text = stdout(&[&["bench", "--csv", "--device", device], arguments].concat());
            let mut lines = text.lines().map(str::to_owned);
            assert_eq!(lines.next().as_deref(), Some(header));
            lines.collect::<Vec<_>>()
        };
        let starts = |rows: &[String], starts: &[&str]| {
            assert_eq!(rows.len(), starts.len(), "{rows:?}");
            for (row, start) in rows.iter().zip(starts) {
                assert!(row.starts_with(start), "{row}");
                assert_eq!(row.split(',').count(), 8, "{row}");
                assert!(row.split(',').skip(5).all(|cell| cell.parse::<f64>().unwrap() >= 0.0), "{row}");
            }
        };
        let products = rows(&["--types", "q4_0,F16", "--n", "8", "--k", "256", "--tokens", "1,3"]);
        let heads =
            ["cube-gguf,q4_0,8,256,1,", "cube-gguf,q4_0,8,256,3,", "cube-gguf,f16,8,256,1,", "cube-gguf,f16,8,256,3,"];
        starts(&products, &heads);
        let all = rows(&["--op", "dequantize", "--types", "iq2_xxs", "--n", "8", "--k", "256"]);
        starts(&all, &["cube-gguf,iq2_xxs,8,256,0,"]);
        let file = rows(&[&fixture("q8_0"), "--types", "q8_0"]);
        starts(&file, &["cube-gguf,q8_0,6,160,1,", "cube-gguf,q8_0,1,"]);
    }
    assert!(
        stdout(&["bench", "--device", "cpu", "--types", "q4_0", "--n", "8", "--k", "256"]).contains("gbps_weights")
    );
}

#[test]
fn bench_copies_and_chains() {
    for device in DEVICES {
        let copy = stdout(&["bench", "--csv", "--device", device, "--op", "copy"]);
        let row: Vec<&str> = copy.lines().nth(1).unwrap().split(',').collect();
        assert_eq!((row[0], row[1], row.len()), ("cube-gguf", "copy", 8), "{copy}");
        assert!(row[6].parse::<f64>().unwrap() > 0.0, "{copy}");
        let square = ["bench", "--csv", "--device", device, "--types", "q8_0", "--k", "32", "--chain", "--n"];
        assert!(stdout(&[&square[..], &["32"]].concat()).contains("cube-gguf,q8_0,32,32,1,"));
        assert!(error(&[&square[..], &["64"]].concat()).contains("as many rows as columns"));
    }
    let launch = stdout(&["bench", "--csv", "--device", "cube-cpu", "--op", "launch", "--types", "f32", "--n", "4"]);
    assert!(launch.contains("cube-gguf,f32,4,4096,1,"), "{launch}");
    assert!(error(&["bench", "--device", "cpu", "--op", "launch"]).contains("the host has not"));
    for device in DEVICES {
        let call =
            ["bench", "--csv", "--device", device, "--op", "call", "--types", "q8_0", "--n", "8", "--tokens", "1,3"];
        let (one, three) = ("cube-gguf,q8_0,8,4096,1,", "cube-gguf,q8_0,8,4096,3,");
        let call = stdout(&call);
        assert!(call.contains(one) && call.contains(three), "{call}");
    }
    assert!(error(&["bench", "--device", "cpu", "--op", "copy", "--chain"]).contains("for products"));
}

/// What was tuned is kept and found; what is wrong with it is a warning.
#[test]
fn tune() {
    let folder = Folder::new("tune");
    let with_table = |arguments: &[&str]| {
        let output = command(arguments).env("CUBE_GGUF_TUNE", &folder.0).output().unwrap();
        let [stdout, stderr] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        assert!(output.status.success(), "{arguments:?}: {stderr}");
        (stdout, stderr)
    };
    let tune = ["tune", "--device", "cube-cpu", "--types", "q4_0", "--shapes", "8x256", "--tokens", "1"];
    let (found, _) = with_table(&tune);
    let path = found.lines().last().unwrap().to_owned();
    let table = fs::read_to_string(&path).unwrap();
    assert!(found.lines().any(|line| line.starts_with("q4_0 ") && line.contains("lanes")), "{found}");
    assert_eq!(with_table(&tune).0, found, "searched again");

    let bench = ["bench", "--device", "cube-cpu", "--types", "q4_0", "--n", "8", "--k", "256"];
    let warned = |table: &str| {
        fs::write(&path, table).unwrap();
        let (_, stderr) = with_table(&bench);
        stderr.lines().any(|line| line.starts_with("cube-gguf: ") && line.contains("left out"))
    };
    assert!(!warned(&table));
    let groups = format!(
        "\"groups_per_cube\":{}",
        table.split_once("\"groups_per_cube\":").unwrap().1.split(',').next().unwrap()
    );
    assert!(warned(&table.replace(&groups, "\"groups_per_cube\":1000")));
    assert!(warned("{"));

    assert!(error(&["tune", "--device", "cpu"]).contains("nothing to tune"));
    assert!(error(&["tune", "--device", "cube-cpu", "--tokens", "9"]).contains("1 to 8"));
    assert!(error(&["tune", "--device", "cube-cpu", "--shapes", "8"]).contains("no shape"));
}

#[test]
fn a_closed_pipe_is_no_panic() {
    let mut child = command(&["inspect", &fixture("q4_k"), "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}
