//! `cube-gguf quantize` on checkpoints of Transformers: the fixtures of `hugging_face`, and what is wrong with others.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use cube_gguf::gguf::{Files, GgmlType, Gguf, Value, Writer};
use serde_json::{Value as Json, json};

use super::{Folder, error, stdout};

/// A checkpoint, and the types that llama.cpp's script wrote it with.
const CHECKPOINTS: [(&str, &[&str]); 9] = [
    ("llama", &["BF16"]),
    ("qwen2", &["F32"]),
    ("qwen3moe", &["BF16"]),
    ("mixtral", &["F16"]),
    ("gemma2", &["BF16"]),
    ("gemma3", &["BF16"]),
    ("phi3", &["BF16"]),
    ("gpt_oss", &["BF16", "--tensor", "*_exps.weight=MXFP4"]),
    ("gpt_oss_bf16", &["BF16"]),
];

fn checkpoint(name: &str) -> String {
    format!("{}/tests/fixtures/hugging_face/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// What llama.cpp's script made of a checkpoint.
fn expected(name: &str) -> String {
    format!("{}.gguf", checkpoint(name))
}

fn quantize(input: &str, output: &str, arguments: &[&str]) {
    stdout(&[&["quantize", input, output, "--device", "cpu"], arguments].concat());
}

fn metadata<'a>(gguf: &Gguf<'a>) -> BTreeMap<&'a str, Value<'a>> {
    gguf.metadata().iter().collect()
}

fn names<'a>(gguf: &'a Gguf<'_>) -> Vec<&'a str> {
    let mut names: Vec<_> = gguf.tensors().map(|tensor| tensor.name()).collect();
    names.sort_unstable();
    names
}

/// Key by key and tensor by tensor: types, shapes and bytes.
#[test]
fn a_checkpoint_becomes_the_file_that_llama_cpp_makes_of_it() {
    let folder = Folder::new("checkpoints");
    let out = folder.path("out.gguf");
    for (name, arguments) in CHECKPOINTS {
        quantize(&checkpoint(name), &out, arguments);
        let files = [&out, &expected(name)].map(|path| Files::open(path).unwrap());
        let [ours, theirs] = files.each_ref().map(|files| files.parse().unwrap());
        let [mut keys, mut expected] = [&ours, &theirs].map(metadata);
        // The script has no types but one for a file of blocks.
        if name == "gpt_oss" {
            assert_eq!(expected.remove("general.file_type"), Some(Value::U32(38)));
            keys.remove("general.file_type");
        }
        for (key, value) in &expected {
            assert_eq!(keys.get(key), Some(value), "{name}: {key}");
        }
        assert_eq!(keys.len(), expected.len(), "{name}: {:?}", keys.keys());
        assert_eq!(names(&ours), names(&theirs), "{name}");
        for tensor in theirs.tensors() {
            let found = ours.tensor(tensor.name()).unwrap();
            assert_eq!(found.dims(), tensor.dims(), "{name}: {}", tensor.name());
            assert_eq!(found.dtype().unwrap(), tensor.dtype().unwrap(), "{name}: {}", tensor.name());
            assert!(found.data().unwrap() == tensor.data().unwrap(), "{name}: {}", tensor.name());
        }
    }
}

/// llama.cpp's order is that of layers, not of their names: the recipes count by it.
#[test]
fn layers_are_in_the_order_of_their_numbers() {
    let folder = Folder::new("checkpoints-order");
    let out = folder.path("out.gguf");
    quantize(&checkpoint("llama"), &out, &["BF16"]);
    let files = Files::open(&out).unwrap();
    let gguf = files.parse().unwrap();
    let names: Vec<_> = gguf.tensors().map(|tensor| tensor.name()).collect();
    assert_eq!(names[..4], ["output.weight", "output_norm.weight", "rope_freqs.weight", "token_embd.weight"]);
    assert!(names[4..].is_sorted() && names[4].starts_with("blk.0.") && names[21].starts_with("blk.1."), "{names:?}");
}

#[test]
fn a_folder_its_index_and_its_one_file_are_the_same_checkpoint() {
    let folder = Folder::new("checkpoints-forms");
    let bytes = |input: &str| {
        let out = folder.path("out.gguf");
        quantize(input, &out, &["Q8_0"]);
        fs::read(&out).unwrap()
    };
    let llama = checkpoint("llama");
    assert!(bytes(&llama) == bytes(&format!("{llama}/model.safetensors.index.json")));
    let qwen = checkpoint("qwen2");
    assert!(bytes(&qwen) == bytes(&format!("{qwen}/model.safetensors")));
}

/// An importance matrix for the experts of Mixtral's fixture.
fn imatrix(folder: &Folder) -> String {
    let name = "blk.0.ffn_gate_exps.weight";
    let mut writer = Writer::new();
    writer.tensor(&format!("{name}.in_sum2"), &[32, 3], GgmlType::F32).unwrap();
    writer.tensor(&format!("{name}.counts"), &[1, 3], GgmlType::F32).unwrap();
    let mut out = writer.begin(Vec::new()).unwrap();
    out.data(&(0..96).flat_map(|i| (((i * 7) as f32).sin().abs() + 0.01).to_le_bytes()).collect::<Vec<_>>()).unwrap();
    out.data(&[1.0f32; 3].map(f32::to_le_bytes).concat()).unwrap();
    let path = folder.path("imatrix.gguf");
    fs::write(&path, out.finish().unwrap()).unwrap();
    path
}

/// The blocks are those of the script's file: importances and named types count as they do there.
#[test]
fn a_checkpoint_is_quantized_as_its_file_is() {
    let folder = Folder::new("checkpoints-quantized");
    let imatrix = imatrix(&folder);
    let more = ["Q4_0", "--tensor", "*.attn_v.weight=Q5_1", "--imatrix", &imatrix];
    for (name, arguments) in [("mixtral", &more[..]), ("gpt_oss", &["MXFP4_MOE"]), ("phi3", &["Q8_0"])] {
        let (ours, theirs) = (folder.path("ours.gguf"), folder.path("theirs.gguf"));
        quantize(&checkpoint(name), &ours, arguments);
        quantize(&expected(name), &theirs, arguments);
        let files = [ours, theirs].map(|path| Files::open(path).unwrap());
        let [ours, theirs] = files.each_ref().map(|files| files.parse().unwrap());
        assert_eq!(metadata(&ours), metadata(&theirs), "{name}");
        for tensor in theirs.tensors() {
            let found = ours.tensor(tensor.name()).unwrap();
            assert_eq!(found.dtype().unwrap(), tensor.dtype().unwrap(), "{name}: {}", tensor.name());
            assert!(found.data().unwrap() == tensor.data().unwrap(), "{name}: {}", tensor.name());
        }
    }
}

/// The likeliest tokens of a checkpoint are those of the script's file.
#[cfg(feature = "cpu")]
#[test]
fn a_checkpoint_runs_as_its_file_does() {
    let folder = Folder::new("checkpoints-generate");
    for name in ["llama", "gemma3", "gpt_oss"] {
        let out = folder.path("out.gguf");
        quantize(&checkpoint(name), &out, &["F32"]);
        let tokens = |file: &str| {
            let more = ["-n", "6", "--temp", "0", "--json", "--prompt", "The capital", "--device", "cube-cpu"];
            let answer = super::json(&[&["generate", file], &more[..]].concat());
            answer.get("tokens").and_then(Json::as_array).unwrap_or_else(|| panic!("{answer}")).clone()
        };
        let ours = tokens(&out);
        assert_eq!(ours.len(), 6, "{name}");
        assert_eq!(ours, tokens(&expected(name)), "{name}");
    }
}

/// A copy of Qwen 2's fixture, which a test spoils.
struct Spoiled {
    folder: Folder,
}

impl Spoiled {
    fn new(test: &str) -> Self {
        let folder = Folder::new(test);
        let spoiled = Self { folder };
        for entry in fs::read_dir(checkpoint("qwen2")).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, spoiled.path(path.file_name().unwrap().to_str().unwrap())).unwrap();
        }
        spoiled
    }

    fn path(&self, name: &str) -> String {
        self.folder.path(name)
    }

    /// Changes a file of JSON.
    fn change(&self, name: &str, change: impl FnOnce(&mut Json)) {
        let path = self.path(name);
        let mut json = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut json);
        fs::write(&path, serde_json::to_vec(&json).unwrap()).unwrap();
    }

    /// Changes the header of the tensors' file.
    fn change_header(&self, change: impl FnOnce(&mut Json)) {
        let path = self.path("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        let (len, rest) = bytes.split_at(8);
        let (header, data) = rest.split_at(u64::from_le_bytes(len.try_into().unwrap()) as usize);
        let mut header = serde_json::from_slice(header).unwrap();
        change(&mut header);
        let header = serde_json::to_vec(&header).unwrap();
        fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], &header, data].concat()).unwrap();
    }

    /// The sentence of its error, after which there is no file.
    fn error(&self) -> String {
        let input = self.folder.path("");
        let message = error(&["quantize", &input, &self.path("out.gguf"), "Q8_0", "--device", "cpu"]);
        assert!(self.folder.names().iter().all(|name| !name.contains("out.gguf")), "{message}");
        message
    }
}

/// A case's name, what spoils a file, and a part of the error's sentence.
type Case = (&'static str, fn(&mut Json), &'static str);

const NORM: &str = "model.layers.0.input_layernorm.weight";
const QUERIES: &str = "model.layers.0.self_attn.q_proj.weight";

#[test]
fn tensors_that_do_not_hold_up_are_named() {
    let cases: [Case; 8] = [
        ("offset", |header| header[NORM]["data_offsets"] = json!([1u64 << 40, (1u64 << 40) + 128]), "reach outside"),
        ("size", |header| header[NORM]["shape"] = json!([31]), "bytes"),
        ("product", |header| header[NORM]["shape"] = json!([1u64 << 40, 1u64 << 40]), "bytes"),
        ("type", |header| header[NORM]["dtype"] = json!("F65"), "type F65 is unknown"),
        ("integers", |header| header[NORM]["dtype"] = json!("I32"), "is of type I32: F32, F16 and BF16 are read"),
        (
            "shape",
            |header| header[QUERIES]["shape"] = json!([16, 64]),
            "has shape [16, 64], which config.json makes [32, 32]",
        ),
        ("entry", |header| header[NORM] = json!("here"), "its header: tensor"),
        (
            "name",
            |header| {
                let norm = header.as_object_mut().unwrap().remove(NORM).unwrap();
                header["model.layers.0.norm.weight"] = norm;
            },
            "is missing",
        ),
    ];
    for (name, spoil, part) in cases {
        let spoiled = Spoiled::new(&format!("checkpoints-tensor-{name}"));
        spoiled.change_header(spoil);
        let message = spoiled.error();
        let tensor = if name == "shape" { QUERIES } else { NORM };
        assert!(message.contains(part) && message.contains(tensor), "{name}: {message}");
    }
    let spoiled = Spoiled::new("checkpoints-tensor-unknown");
    spoiled.change_header(|header| header["model.layers.1.mlp.up_proj.weight"] = header[NORM].clone());
    let message = spoiled.error();
    assert!(message.contains("model.layers.1.mlp.up_proj.weight is nothing that Qwen2ForCausalLM has"), "{message}");
}

#[test]
fn files_of_tensors_that_do_not_hold_up_are_named() {
    let spoiled = Spoiled::new("checkpoints-header");
    let path = spoiled.path("model.safetensors");
    let whole = fs::read(&path).unwrap();
    for (bytes, part) in [
        (&[][..], "8 bytes at 0"),
        (&[0xff; 8], "a header of 18446744073709551615 bytes in a file of 8"),
        (&[2, 0, 0, 0, 0, 0, 0, 0, b'[', b']'], "its header: invalid type"),
        (&whole[..whole.len() - 1], "reach outside"),
    ] {
        fs::write(&path, bytes).unwrap();
        let message = spoiled.error();
        assert!(message.contains("model.safetensors") && message.contains(part), "{message}");
    }
    fs::remove_file(&path).unwrap();
    assert!(spoiled.error().contains("no file in it ends in .safetensors"));
    fs::write(spoiled.path("a.safetensors"), &whole).unwrap();
    fs::write(spoiled.path("b.safetensors"), &whole).unwrap();
    assert!(spoiled.error().contains("2 files end in .safetensors: name one"));
}

#[test]
fn an_index_names_files_beside_it_and_what_is_in_them() {
    let spoiled = Spoiled::new("checkpoints-index");
    let names = {
        let bytes = fs::read(spoiled.path("model.safetensors")).unwrap();
        let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: BTreeMap<String, Json> = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
        header.into_keys().filter(|name| name != "__metadata__").collect::<Vec<_>>()
    };
    let index = |file: &str, names: &[String]| {
        let map: BTreeMap<&str, &str> = names.iter().map(|name| (name.as_str(), file)).collect();
        fs::write(spoiled.path("model.safetensors.index.json"), json!({ "weight_map": map }).to_string()).unwrap();
        spoiled.error()
    };
    for file in ["../model.safetensors", "/etc/passwd", "..", ""] {
        assert!(index(file, &names).contains("is no file beside it"), "{file}");
    }
    assert!(index("other.safetensors", &names).contains("other.safetensors"));
    assert!(index("model.safetensors", &names[1..]).contains(&format!("tensor {} is missing in it", names[0])));
    let more = [&names[..], &["more".to_owned()]].concat();
    assert!(index("model.safetensors", &more).contains("tensor more is not in model.safetensors"));
}

#[test]
fn configurations_that_do_not_hold_up_are_sentences() {
    let cases: [Case; 11] = [
        (
            "class",
            |config| config["architectures"] = json!(["AbacusForCausalLM"]),
            "those that are known are Gemma2ForCausalLM",
        ),
        ("no-class", |config| config["architectures"] = json!([]), "`architectures` names no class"),
        ("missing", |config| config["hidden_size"] = Json::Null, "`hidden_size` is missing"),
        ("text", |config| config["hidden_size"] = json!("wide"), "`hidden_size` is \"wide\", not a number"),
        ("negative", |config| config["num_hidden_layers"] = json!(-1), "`num_hidden_layers` is -1"),
        ("zero", |config| config["num_attention_heads"] = json!(0), "`num_attention_heads` is 0"),
        ("heads", |config| config["num_attention_heads"] = json!(64), "have no width"),
        (
            "layers",
            |config| config["num_hidden_layers"] = json!(4_000_000_000u32),
            "model.layers.1.self_attn.q_proj.weight is missing",
        ),
        ("vocabulary", |config| config["vocab_size"] = json!(4_000_000_000u32), "model.embed_tokens.weight has shape"),
        (
            "quantized",
            |config| config["quantization_config"] = json!({ "quant_method": "gptq" }),
            "quantized by \"gptq\"",
        ),
        (
            "yarn",
            |config| config["rope_scaling"] = json!({ "type": "yarn", "factor": 2 }),
            "`original_max_position_embeddings` is missing",
        ),
    ];
    for (name, spoil, part) in cases {
        let spoiled = Spoiled::new(&format!("checkpoints-config-{name}"));
        spoiled.change("config.json", spoil);
        let message = spoiled.error();
        assert!(message.contains("config.json") || message.contains("tensor"), "{name}: {message}");
        assert!(message.contains(part), "{name}: {message}");
    }
    let spoiled = Spoiled::new("checkpoints-config-none");
    fs::remove_file(spoiled.path("config.json")).unwrap();
    assert!(spoiled.error().contains("config.json: no such file"));
}

#[test]
fn the_help_names_every_class_that_is_known() {
    let spoiled = Spoiled::new("checkpoints-help");
    spoiled.change("config.json", |config| config["architectures"] = json!(["AbacusForCausalLM"]));
    let message = spoiled.error();
    let known: Vec<_> = message.rsplit_once(" are ").unwrap().1.split(", ").collect();
    let help = stdout(&["quantize", "--help"]);
    assert_eq!(known.len(), 11);
    assert!(known.iter().all(|class| help.contains(class)), "{known:?}");
}

#[test]
fn tokenizers_that_do_not_hold_up_are_sentences() {
    let cases: [Case; 4] = [
        (
            "pre",
            |file| file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!("a|b"),
            "its pre-tokenizer is none of llama-bpe",
        ),
        ("id", |file| file["model"]["vocab"]["!"] = json!(294), "token 294 of a vocabulary of 294"),
        ("merges", |file| file["model"]["merges"] = json!([["a"]]), "tokenizer.json"),
        ("model", |file| file["model"]["type"] = json!("Unigram"), "no byte-level BPE"),
    ];
    for (name, spoil, part) in cases {
        let spoiled = Spoiled::new(&format!("checkpoints-tokenizer-{name}"));
        spoiled.change("tokenizer.json", spoil);
        let message = spoiled.error();
        assert!(message.contains("tokenizer.json") && message.contains(part), "{name}: {message}");
    }
    let spoiled = Spoiled::new("checkpoints-tokenizer-none");
    fs::remove_file(spoiled.path("tokenizer.json")).unwrap();
    assert!(spoiled.error().contains("tokenizer.json: no such file"));
    // A model of SentencePiece goes first where there is one.
    fs::write(spoiled.path("tokenizer.model"), [0xff; 8]).unwrap();
    assert!(spoiled.error().contains("tokenizer.model: no SentencePiece model"));
    assert!(Path::new(&spoiled.path("config.json")).exists());
}
