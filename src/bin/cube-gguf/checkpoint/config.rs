//! `config.json`: a model's class and hyperparameters.

use std::fs;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::Outcome;

/// More than any file of JSON beside a checkpoint has.
const MAX_BYTES: u64 = 64 << 20;

/// The bytes of a file beside a checkpoint; nothing where there is none.
pub fn read_file(path: &Path) -> Outcome<Option<Vec<u8>>> {
    let at = |error: std::io::Error| format!("{}: {error}", path.display());
    // Checked before opening: opening a pipe would block.
    match fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at(error).into()),
        Ok(file) if !file.is_file() => return Err(format!("{}: not a regular file", path.display()).into()),
        Ok(file) if file.len() > MAX_BYTES => {
            return Err(format!("{}: {} bytes, more than {MAX_BYTES}", path.display(), file.len()).into());
        }
        Ok(_) => (),
    }
    Ok(Some(fs::read(path).map_err(at)?))
}

/// What a file of JSON beside a checkpoint holds; nothing where there is none.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Outcome<Option<T>> {
    let Some(bytes) = read_file(path)? else { return Ok(None) };
    Ok(Some(serde_json::from_slice(&bytes).map_err(|error| format!("{}: {error}", path.display()))?))
}

/// The value of a key that is there and not null.
pub fn get<'a>(values: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    values.get(key).filter(|value| !value.is_null())
}

/// A value as an error shows it: its beginning, if it is long.
pub fn shown(value: &Value) -> String {
    const LONGEST: usize = 200;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text,
    }
}

/// The hyperparameters of a checkpoint's language model, with those that its class has where the file names none.
pub struct Config {
    path: PathBuf,
    /// As the file has them.
    raw: Map<String, Value>,
    /// The same with those of the language model, where it is part of another, on the outermost level.
    values: Map<String, Value>,
    defaults: &'static [(&'static str, f64)],
}

impl Config {
    /// Reads the file of a folder.
    pub fn read(folder: &Path) -> Outcome<Self> {
        let path = folder.join("config.json");
        let raw: Map<String, Value> = read_json(&path)?.ok_or_else(|| format!("{}: no such file", path.display()))?;
        let mut values = raw.clone();
        if let Some(Value::Object(text)) = raw.get("text_config") {
            values.extend(text.clone());
        }
        Ok(Self { path, raw, values, defaults: &[] })
    }

    /// The same with the numbers that are meant where the file has none.
    pub fn with_defaults(self, defaults: &'static [(&'static str, f64)]) -> Self {
        Self { defaults, ..self }
    }

    /// The class that the checkpoint was made for.
    pub fn class(&self) -> Outcome<&str> {
        let classes = get(&self.values, "architectures").and_then(Value::as_array);
        let class = classes.and_then(|classes| classes.first()).and_then(Value::as_str);
        Ok(class.ok_or_else(|| self.error("`architectures` names no class"))?)
    }

    /// The file as it is.
    pub fn raw(&self) -> &Map<String, Value> {
        &self.raw
    }

    /// Any value.
    pub fn get(&self, key: &str) -> Option<&Value> {
        get(&self.values, key)
    }

    /// A nonnegative whole number.
    pub fn optional(&self, key: &str) -> Outcome<Option<u32>> {
        match self.get(key) {
            Some(value) => self.whole(key, value).map(Some),
            None => Ok(self.default(key).map(|number| number as u32)),
        }
    }

    /// A nonnegative whole number that must be there.
    pub fn number(&self, key: &str) -> Outcome<u32> {
        Ok(self.optional(key)?.ok_or_else(|| self.missing(key))?)
    }

    /// A whole number above 0 that must be there.
    pub fn extent(&self, key: &str) -> Outcome<usize> {
        match self.number(key)? {
            0 => Err(self.error(&format!("`{key}` is 0")).into()),
            number => Ok(number as usize),
        }
    }

    /// A number.
    pub fn float(&self, key: &str) -> Outcome<Option<f64>> {
        match self.get(key) {
            Some(value) => self.real(key, value).map(Some),
            None => Ok(self.default(key)),
        }
    }

    /// `value`, of a key, as a nonnegative whole number.
    pub fn whole(&self, key: &str, value: &Value) -> Outcome<u32> {
        let number =
            value.as_u64().or_else(|| value.as_f64().filter(|x| x.fract() == 0.0 && *x >= 0.0).map(|x| x as u64));
        let number = number.and_then(|number| u32::try_from(number).ok());
        Ok(number
            .ok_or_else(|| self.error(&format!("`{key}` is {}, not a number from 0 to {}", shown(value), u32::MAX)))?)
    }

    /// `value`, of a key, as a number.
    pub fn real(&self, key: &str, value: &Value) -> Outcome<f64> {
        Ok(value.as_f64().ok_or_else(|| self.error(&format!("`{key}` is {}, not a number", shown(value))))?)
    }

    /// An error of a key that is not there.
    pub fn missing(&self, key: &str) -> String {
        self.error(&format!("`{key}` is missing"))
    }

    /// An error of this file.
    pub fn error(&self, what: &str) -> String {
        format!("{}: {what}", self.path.display())
    }

    fn default(&self, key: &str) -> Option<f64> {
        self.defaults.iter().find(|(name, _)| *name == key).map(|&(_, number)| number)
    }
}
