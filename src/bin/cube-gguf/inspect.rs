//! `cube-gguf inspect`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use cube_gguf::gguf::{Array, Endian, Files, Gguf, TensorInfo, Value};
use serde_json::{Map, Value as Json, json};

use crate::Outcome;
use crate::output::{escape, print, print_json, shape};
use crate::table::{Align, Table};

/// The most characters of a string in the text.
const MAX_CHARACTERS: usize = 72;
/// The most elements of an array in the text.
const MAX_SHOWN: usize = 6;
/// The most elements of an array in JSON; a longer one is its type and length.
const MAX_ELEMENTS: usize = 64;

#[derive(Args)]
#[command(after_help = "\
Long arrays are cut short in the text; in JSON one of more than 64 elements is {\"type\", \"len\"}.

Examples:
  cube-gguf inspect model-00001-of-00003.gguf
  cube-gguf inspect model.gguf --json | jq '.tensors[] | select(.type == \"Q6_K\").name'")]
pub struct Arguments {
    /// A GGUF file, or any shard of a split one.
    file: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> Outcome {
    let files = Files::open(&arguments.file)?;
    let gguf = files.parse()?;
    match arguments.json {
        true => print_json(&as_json(arguments, &files, &gguf))?,
        false => print(&as_text(&files, &gguf))?,
    }
    Ok(())
}

/// ggml's name of a tensor's type, or its number where ggml has no such type.
fn type_name(tensor: &TensorInfo<'_>) -> String {
    tensor.dtype().map_or_else(|_| format!("unknown ({})", tensor.type_number()), |ty| ty.to_string())
}

fn bits_per_weight(bytes: usize, elements: usize) -> Option<f64> {
    (elements > 0).then(|| 8.0 * bytes as f64 / elements as f64)
}

/// Tensors, values and known bytes of a type, or of all.
#[derive(Clone, Copy, Default)]
struct Total {
    tensors: usize,
    elements: usize,
    bytes: usize,
}

impl Total {
    fn add(&mut self, tensor: &TensorInfo<'_>) {
        self.tensors += 1;
        // The file's size does not bound the values of unknown types: a hostile sum may overflow.
        self.elements = self.elements.saturating_add(tensor.elements());
        self.bytes = self.bytes.saturating_add(tensor.size_in_bytes().unwrap_or(0));
    }

    fn json(&self) -> Json {
        json!({ "tensors": self.tensors, "elements": self.elements, "bytes": self.bytes })
    }
}

fn totals(gguf: &Gguf<'_>) -> (BTreeMap<String, Total>, Total) {
    let (mut types, mut all) = (BTreeMap::<String, Total>::new(), Total::default());
    for tensor in gguf.tensors() {
        types.entry(type_name(&tensor)).or_default().add(&tensor);
        all.add(&tensor);
    }
    (types, all)
}

fn endian(gguf: &Gguf<'_>) -> &'static str {
    match gguf.endian() {
        Endian::Little => "little",
        Endian::Big => "big",
    }
}

fn as_text(files: &Files, gguf: &Gguf<'_>) -> String {
    let mut text = String::new();
    for path in files.paths() {
        text.push_str(&format!("{}\n", escape(&path.display().to_string())));
    }
    let (version, alignment, bytes) = (gguf.version(), gguf.alignment(), files.total_bytes());
    text.push_str(&format!("GGUF {version}, {}-endian, alignment {alignment}, {bytes} bytes\n\n", endian(gguf)));

    let mut table = Table::new(&[("key", Align::Left), ("type", Align::Left), ("value", Align::Left)]);
    for (key, value) in gguf.metadata().iter() {
        let ty = match value {
            Value::Array(array) => format!("{}[{}]", array.element_type(), array.len()),
            other => other.value_type().to_string(),
        };
        table.row(vec![escape(key), ty, value_text(value)]);
    }
    text.push_str(&table.render());
    text.push('\n');

    let mut table = Table::new(&[
        ("tensor", Align::Left),
        ("type", Align::Left),
        ("shape", Align::Left),
        ("bytes", Align::Right),
        ("bits a weight", Align::Right),
    ]);
    for tensor in gguf.tensors() {
        let bytes = tensor.size_in_bytes().ok();
        let bits = bytes.and_then(|bytes| bits_per_weight(bytes, tensor.elements()));
        table.row(vec![
            escape(tensor.name()),
            type_name(&tensor),
            shape(&tensor.shape()),
            bytes.map_or_else(|| "?".to_owned(), |bytes| bytes.to_string()),
            bits.map_or_else(|| "?".to_owned(), |bits| format!("{bits:.4}")),
        ]);
    }
    text.push_str(&table.render());
    text.push('\n');

    let mut table = Table::new(&[
        ("type", Align::Left),
        ("tensors", Align::Right),
        ("weights", Align::Right),
        ("bytes", Align::Right),
        ("bits a weight", Align::Right),
    ]);
    let (types, all) = totals(gguf);
    for (name, total) in types.into_iter().chain([("all".to_owned(), all)]) {
        let bits = bits_per_weight(total.bytes, total.elements).map_or_else(String::new, |bits| format!("{bits:.4}"));
        table.row(vec![name, total.tensors.to_string(), total.elements.to_string(), total.bytes.to_string(), bits]);
    }
    text.push_str(&table.render());
    text
}

fn value_text(value: Value<'_>) -> String {
    match value {
        Value::Bool(v) => v.to_string(),
        Value::F32(v) => v.to_string(),
        Value::F64(v) => v.to_string(),
        Value::Array(array) => array_text(array),
        other => match other.lossy() {
            Some(string) => string_text(&string),
            None => other.integer().map_or_else(String::new, |v| v.to_string()),
        },
    }
}

fn string_text(string: &str) -> String {
    match string.char_indices().nth(MAX_CHARACTERS) {
        Some((end, _)) => format!("\"{}\"… ({} bytes)", escape(&string[..end]), string.len()),
        None => format!("\"{}\"", escape(string)),
    }
}

fn array_text(array: Array<'_>) -> String {
    let shown: Vec<String> = array.iter().take(MAX_SHOWN).map(value_text).collect();
    let more = if array.len() > MAX_SHOWN { format!(", … {} in all", array.len()) } else { String::new() };
    format!("[{}{more}]", shown.join(", "))
}

fn as_json(arguments: &Arguments, files: &Files, gguf: &Gguf<'_>) -> Json {
    let metadata: Map<_, _> = gguf.metadata().iter().map(|(key, value)| (key.to_owned(), value_json(value))).collect();
    let tensor = |tensor: TensorInfo<'_>| {
        let bytes = tensor.size_in_bytes().ok();
        json!({
            "name": tensor.name(),
            "type": tensor.dtype().ok().map(|ty| ty.name()),
            "type_number": tensor.type_number(),
            "shape": tensor.shape(),
            "bytes": bytes,
            "bits_per_weight": bytes.and_then(|bytes| bits_per_weight(bytes, tensor.elements())),
            "offset": tensor.offset(),
        })
    };
    let (types, all) = totals(gguf);
    let types: Map<_, _> = types.into_iter().map(|(name, total)| (name, total.json())).collect();
    json!({
        "file": arguments.file.to_string_lossy(),
        "files": files.paths().map(|path| path.to_string_lossy()).collect::<Vec<_>>(),
        "bytes": files.total_bytes(),
        "version": gguf.version(),
        "endian": endian(gguf),
        "alignment": gguf.alignment(),
        "metadata": metadata,
        "tensors": gguf.tensors().map(tensor).collect::<Vec<_>>(),
        "types": types,
        "total": all.json(),
    })
}

/// A JSON number with the digits of a float's text; null for NaN and infinity, which JSON lacks.
fn float_json(text: String) -> Json {
    text.parse::<f64>().map_or(Json::Null, Json::from)
}

fn value_json(value: Value<'_>) -> Json {
    match value {
        Value::Bool(v) => v.into(),
        Value::F32(v) => float_json(v.to_string()),
        Value::F64(v) => v.into(),
        Value::Array(array) if array.len() <= MAX_ELEMENTS => array.iter().map(value_json).collect(),
        Value::Array(array) => json!({ "type": array.element_type().name(), "len": array.len() }),
        Value::U64(v) => v.into(),
        other => match other.lossy() {
            Some(string) => string.into(),
            None => other.integer().and_then(|v| i64::try_from(v).ok()).map_or(Json::Null, Json::from),
        },
    }
}
