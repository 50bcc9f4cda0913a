//! Special tokens and the chat template, as gguf-py's `SpecialVocab` finds them.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::super::config::{Config, get, read_file, read_json};
use super::super::metadata::Keys;
use super::{Added, Files};
use crate::Outcome;

/// The jobs of tokens, by their names in the files of Transformers and in the keys of GGUF files.
const JOBS: [(&str, &str); 8] = [
    ("bos", "bos"),
    ("eos", "eos"),
    ("unk", "unknown"),
    // As llama.cpp spells it.
    ("sep", "seperator"),
    ("pad", "padding"),
    ("mask", "mask"),
    // These two are named by a text's template alone.
    ("eot", "eot"),
    ("eom", "eom"),
];

/// The jobs whose tokens may be added to every text.
const MAY_BE_ADDED: [&str; 3] = ["bos", "eos", "sep"];

/// What is special about some tokens.
#[derive(Default)]
pub struct Special {
    /// The ids of jobs.
    ids: HashMap<&'static str, u32>,
    /// Whether a text is given the tokens of jobs.
    adds: HashMap<&'static str, bool>,
    template: Option<String>,
    /// Other templates, by their names.
    templates: BTreeMap<String, String>,
}

/// The texts of the tokens that have jobs.
struct Texts(HashMap<&'static str, String>);

impl Texts {
    /// By `tokenizer_config.json`, which has a text or a token of several fields.
    fn of(config: Option<&Map<String, Value>>) -> Self {
        let text = |job: &'static str| {
            let entry = get(config?, &format!("{job}_token"))?;
            let text = entry.as_str().or_else(|| entry.get("content")?.as_str())?;
            Some((job, text.to_owned())).filter(|(_, text)| !text.is_empty())
        };
        Self(["bos", "eos", "unk", "sep", "pad", "cls", "mask"].into_iter().filter_map(text).collect())
    }

    fn get(&self, job: &str) -> Option<&str> {
        self.0.get(job).map(String::as_str)
    }

    fn is(&self, job: &str, text: &str) -> bool {
        self.get(job) == Some(text)
    }

    /// Sets a job's text if it has none.
    fn default(&mut self, job: &'static str, text: Option<&str>) {
        if let Some(text) = text {
            self.0.entry(job).or_insert_with(|| text.to_owned());
        }
    }
}

/// What is added to a text, as a template of pieces.
#[derive(Deserialize)]
struct Template {
    #[serde(default)]
    single: Vec<Piece>,
    #[serde(default)]
    pair: Vec<Piece>,
}

/// A piece of a template.
#[derive(Deserialize)]
enum Piece {
    SpecialToken { id: String },
    Sequence { id: String },
}

impl Piece {
    fn token(&self) -> Option<&str> {
        match self {
            Self::SpecialToken { id } => Some(id),
            Self::Sequence { .. } => None,
        }
    }

    fn is_sequence(&self, name: &str) -> bool {
        matches!(self, Self::Sequence { id } if id == name)
    }
}

impl Special {
    /// Reads what the files of a tokenizer say, then `config.json`, whose ids are held to `size` tokens where there is one.
    pub fn read(files: &Files<'_>, config: &Config, size: Option<usize>) -> Outcome<Self> {
        let mut special = Self::default();
        let mut texts = Texts::of(files.config.as_ref());
        if let Some(file) = &files.file {
            let (first, last) = (texts.get("cls").map(str::to_owned), texts.get("sep").map(str::to_owned));
            texts.default("bos", first.as_deref());
            texts.default("eos", last.as_deref());
            if let Some(processor) = &file.post_processor {
                special.add_by(processor, &mut texts, files)?;
            }
        }
        let mut set = |job: &'static str, id: u32| {
            if size.is_none_or(|size| (id as usize) < size) {
                special.ids.entry(job).or_insert(id);
            }
        };
        if files.config.is_some() {
            let added: &[Added] = files.file.as_ref().map_or(&[], |file| &file.added_tokens);
            for (job, _) in JOBS {
                let id = texts.get(job).and_then(|text| added.iter().find(|token| token.content == text));
                id.into_iter().for_each(|token| set(job, token.id));
            }
        }
        let inner = get(config.raw(), "text_config").and_then(Value::as_object);
        for (job, _) in JOBS {
            // Without a text that names it nothing ends a turn.
            let is_asked = !matches!(job, "eot" | "eom") || texts.get(job).is_some();
            let key = format!("{job}_token_id");
            let id = get(config.raw(), &key).or_else(|| get(inner?, &key)).and_then(Value::as_u64);
            if let Some(id) = id.and_then(|id| u32::try_from(id).ok()).filter(|_| is_asked) {
                set(job, id);
            }
        }
        for job in MAY_BE_ADDED {
            if let Some(adds) = files.config(&format!("add_{job}_token")).and_then(Value::as_bool) {
                special.adds.entry(job).or_insert(adds);
            }
        }
        special.read_templates(files)?;
        Ok(special)
    }

    /// Finds which tokens a post-processor adds to a text.
    fn add_by(&mut self, processor: &Value, texts: &mut Texts, files: &Files<'_>) -> Outcome {
        let alone = std::slice::from_ref(processor);
        for processor in processor.get("processors").and_then(Value::as_array).map_or(alone, Vec::as_slice) {
            match processor.get("type").and_then(Value::as_str) {
                Some("ByteLevel") => {
                    self.adds.entry("bos").or_insert(false);
                    self.adds.entry("eos").or_insert(false);
                }
                Some("TemplateProcessing") => {
                    let at = |error| format!("{}: {error}", files.folder.join("tokenizer.json").display());
                    self.add_by_template(&Template::deserialize(processor).map_err(at)?, texts);
                }
                _ => (),
            }
        }
        Ok(())
    }

    fn add_by_template(&mut self, template: &Template, texts: &mut Texts) {
        let ends = match template.single.as_slice() {
            [first, .., last] => (first.token(), last.token()),
            _ => (None, None),
        };
        if let Some(first) = ends.0 {
            texts.default("bos", Some(first));
            texts.default("cls", Some(first));
            self.adds.insert("bos", texts.is("bos", first) || texts.is("cls", first));
        }
        if let Some(last) = ends.1 {
            // What ended a text so far ends a turn.
            if !texts.is("eos", last) {
                let before = texts.0.insert("eos", last.to_owned());
                let job = if texts.get("eot").is_none() { "eot" } else { "eom" };
                texts.default(job, before.as_deref());
            }
            self.adds.insert("eos", true);
        }
        let mut pair = template.pair.as_slice();
        if let [first, rest @ ..] = pair
            && ends.0.is_some()
            && first.token() == ends.0
        {
            pair = rest;
        }
        if let [rest @ .., last] = pair
            && ends.1.is_some()
            && last.token() == ends.1
        {
            pair = rest;
        }
        if let [a, between @ .., b] = pair
            && a.is_sequence("A")
            && b.is_sequence("B")
            && !between.is_empty()
        {
            let separates =
                |piece: &Piece| piece.token().is_some_and(|text| texts.is("sep", text) || texts.is("eos", text));
            let adds =
                separates(&between[0]) && ends.1.is_none() || matches!(between, [_, second] if separates(second));
            self.adds.insert("sep", adds);
            if adds {
                let end = texts.get("eos").map(str::to_owned);
                texts.default("sep", end.as_deref());
            }
        }
    }

    /// The templates: of `tokenizer_config.json`, else of files of their own.
    fn read_templates(&mut self, files: &Files<'_>) -> Outcome {
        let Some(config) = &files.config else { return Ok(()) };
        match config.get("chat_template") {
            Some(Value::String(template)) => self.template = Some(template.clone()),
            Some(Value::Array(templates)) => {
                for template in templates {
                    let part = |key| template.get(key).and_then(Value::as_str);
                    if let (Some(name), Some(template)) = (part("name"), part("template")) {
                        self.add_template(name, template.to_owned());
                    }
                }
            }
            Some(_) => (),
            None => return self.read_template_files(files),
        }
        Ok(())
    }

    fn read_template_files(&mut self, files: &Files<'_>) -> Outcome {
        let path = files.folder.join("chat_template.jinja");
        let text = |path: &Path, bytes: Vec<u8>| {
            String::from_utf8(bytes).map_err(|_| format!("{}: not UTF-8", path.display()))
        };
        if let Some(bytes) = read_file(&path)? {
            self.template = Some(text(&path, bytes)?);
            // Most checkpoints have no such folder.
            let Ok(others) = fs::read_dir(files.folder.join("additional_chat_templates")) else { return Ok(()) };
            for other in others {
                let path = other?.path();
                let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".jinja"));
                if let (Some(name), Some(bytes)) = (name, read_file(&path)?) {
                    self.add_template(name, text(&path, bytes)?);
                }
            }
            return Ok(());
        }
        let older: Option<Map<String, Value>> = read_json(&files.folder.join("chat_template.json"))?;
        self.template = older.and_then(|older| Some(get(&older, "chat_template")?.as_str()?.to_owned()));
        Ok(())
    }

    fn add_template(&mut self, name: &str, template: String) {
        let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        match name.as_str() {
            "" => (),
            "default" => self.template = Some(template),
            _ => drop(self.templates.insert(name, template)),
        }
    }

    /// What llama.cpp's script knows of two families by the sizes of their vocabularies.
    pub fn know_code(&mut self, size: usize) {
        match size {
            // Code Llama.
            32_016 => drop(self.ids.entry("eot").or_insert(32_010)),
            // Granite's and SmolLM's.
            49_152 => drop(self.adds.insert("bos", false)),
            _ => (),
        }
    }

    /// Writes the keys of a file.
    pub fn write(self, keys: &mut Keys) -> Outcome {
        for (job, key) in JOBS {
            keys.optional(&format!("tokenizer.ggml.{key}_token_id"), self.ids.get(job).copied())?;
        }
        for job in MAY_BE_ADDED {
            keys.optional(&format!("tokenizer.ggml.add_{job}_token"), self.adds.get(job).copied())?;
        }
        if !self.templates.is_empty() {
            keys.general("tokenizer.chat_templates", self.templates.keys().cloned().collect::<Vec<_>>())?;
        }
        for (name, template) in self.templates {
            keys.general(&format!("tokenizer.chat_template.{name}"), template)?;
        }
        keys.optional("tokenizer.chat_template", self.template)
    }
}
