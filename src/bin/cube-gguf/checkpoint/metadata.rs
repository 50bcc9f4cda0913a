//! The metadata of a GGUF file: a model's name, its hyperparameters and how it likes to be sampled.

use std::fs;
use std::path::Path;

use cube_gguf::gguf::{Encode, Writer};
use serde_json::{Map, Value};

use super::architecture::Sizes;
use super::config::{Config, get, read_json, shown};
use super::naming::Name;
use super::tensors::Tensor;
use crate::Outcome;

/// The keys of a file, with those of an architecture by their own names.
pub struct Keys {
    writer: Writer,
    architecture: &'static str,
}

impl Keys {
    pub fn new(architecture: &'static str) -> Outcome<Self> {
        let mut keys = Self { writer: Writer::new(), architecture };
        keys.general("general.architecture", architecture)?;
        keys.general("general.type", "model")?;
        Ok(keys)
    }

    /// A key by its whole name.
    pub fn general(&mut self, key: &str, value: impl Encode) -> Outcome {
        self.writer.metadata(key, value)?;
        Ok(())
    }

    /// A key by its whole name, where there is something to say.
    pub fn optional(&mut self, key: &str, value: Option<impl Encode>) -> Outcome {
        value.map_or(Ok(()), |value| self.general(key, value))
    }

    /// A hyperparameter.
    pub fn number(&mut self, name: &str, number: usize) -> Outcome {
        let key = format!("{}.{name}", self.architecture);
        let number = u32::try_from(number).map_err(|_| format!("{key}: {number} is more than {}", u32::MAX))?;
        self.general(&key, number)
    }

    /// A hyperparameter that may be none.
    pub fn float(&mut self, name: &str, value: Option<f64>) -> Outcome {
        self.optional(&format!("{}.{name}", self.architecture), value.map(|value| value as f32))
    }

    /// A hyperparameter of text.
    fn text(&mut self, name: &str, text: &str) -> Outcome {
        self.general(&format!("{}.{name}", self.architecture), text)
    }

    /// A file of the metadata alone.
    pub fn finish(self) -> Outcome<Vec<u8>> {
        Ok(self.writer.begin(Vec::new())?.finish()?)
    }
}

/// How rotary embeddings are made in layers that see all tokens, and by which base in those that do not.
pub struct Rope<'a> {
    config: &'a Config,
    values: Map<String, Value>,
    local_base: Option<f64>,
}

impl<'a> Rope<'a> {
    /// Reads `rope_parameters` as newer files have them, or what older ones have in several keys.
    pub fn read(config: &'a Config) -> Outcome<Self> {
        let scaling = config.get("rope_parameters").or_else(|| config.get("rope_scaling"));
        let mut values = match scaling {
            None => Map::new(),
            Some(Value::Object(values)) => values.clone(),
            Some(other) => {
                return Err(config.error(&format!("`rope_scaling` is {}, not an object", shown(other))).into());
            }
        };
        let of_kind = |kind: &str| values.get(kind).and_then(Value::as_object).cloned();
        let base = |values: &Map<String, Value>| {
            get(values, "rope_theta").map(|value| config.real("rope_theta", value)).transpose()
        };
        let (global, local) = (of_kind("full_attention"), of_kind("sliding_attention"));
        if global.is_some() || local.is_some() {
            let local_base = local.as_ref().map(base).transpose()?.flatten();
            return Ok(Self { config, values: global.unwrap_or(values), local_base });
        }
        for key in ["rope_theta", "partial_rotary_factor", "original_max_position_embeddings"] {
            if get(&values, key).is_none()
                && let Some(number) = config.float(key)?
            {
                values.insert(key.to_owned(), number.into());
            }
        }
        if get(&values, "rope_type").is_none()
            && let Some(kind) = values.get("type").cloned()
        {
            values.insert("rope_type".to_owned(), kind);
        }
        Ok(Self { config, values, local_base: config.float("rope_local_base_freq")? })
    }

    /// Whether they are scaled in this way.
    pub fn is_type(&self, name: &str) -> bool {
        self.kind().is_some_and(|kind| kind.eq_ignore_ascii_case(name))
    }

    fn kind(&self) -> Option<&str> {
        get(&self.values, "rope_type").and_then(Value::as_str)
    }

    /// A number.
    pub fn number(&self, key: &str) -> Outcome<Option<f64>> {
        get(&self.values, key).map(|value| self.config.real(key, value)).transpose()
    }

    /// A whole number above 0 that must be there.
    pub fn whole(&self, key: &str) -> Outcome<usize> {
        let value = get(&self.values, key).ok_or_else(|| self.config.missing(key))?;
        match self.config.whole(key, value)? {
            0 => Err(self.config.error(&format!("`{key}` is 0")).into()),
            number => Ok(number as usize),
        }
    }

    /// A list of numbers, if there are any in it.
    pub fn numbers(&self, key: &str) -> Outcome<Option<Vec<f32>>> {
        let Some(value) = get(&self.values, key) else { return Ok(None) };
        let wrong = || self.config.error(&format!("`{key}` is no list of numbers"));
        let list = value.as_array().ok_or_else(wrong)?;
        let numbers: Option<Vec<_>> = list.iter().map(|number| number.as_f64().map(|number| number as f32)).collect();
        Ok(Some(numbers.ok_or_else(wrong)?).filter(|numbers| !numbers.is_empty()))
    }

    /// The keys of a file.
    fn write(&self, keys: &mut Keys) -> Outcome {
        let factor = self.number("factor")?;
        match (self.kind(), factor) {
            (Some("linear"), Some(_)) => {
                keys.text("rope.scaling.type", "linear")?;
                keys.float("rope.scaling.factor", factor)?;
            }
            (Some("yarn"), Some(_)) => {
                keys.text("rope.scaling.type", "yarn")?;
                keys.float("rope.scaling.factor", factor)?;
                let original = self.whole("original_max_position_embeddings")?;
                keys.number("rope.scaling.original_context_length", original)?;
                let magnitude = self.number("attention_factor")?.or(self.number("attn_factor")?);
                keys.float("rope.scaling.yarn_ext_factor", self.number("extrapolation_factor")?)?;
                keys.float("rope.scaling.yarn_attn_factor", magnitude)?;
                keys.float("rope.scaling.yarn_beta_fast", self.number("beta_fast")?)?;
                keys.float("rope.scaling.yarn_beta_slow", self.number("beta_slow")?)?;
            }
            (Some("su" | "longrope"), _) => keys.text("rope.scaling.type", "longrope")?,
            _ => (),
        }
        keys.float("rope.freq_base", self.number("rope_theta")?)?;
        keys.float("rope.freq_base_swa", self.local_base)
    }
}

/// The hyperparameters that most architectures have.
pub fn parameters(config: &Config, sizes: &Sizes, keys: &mut Keys) -> Outcome {
    keys.number("block_count", sizes.layers)?;
    keys.number("context_length", config.extent("max_position_embeddings")?)?;
    keys.number("embedding_length", sizes.hidden)?;
    keys.number("feed_forward_length", sizes.feed_forward)?;
    keys.number("attention.head_count", sizes.heads)?;
    keys.number("attention.head_count_kv", sizes.kv_heads)?;
    Rope::read(config)?.write(keys)?;
    keys.float("attention.layer_norm_rms_epsilon", config.float("rms_norm_eps")?)?;
    if sizes.experts > 0 {
        keys.number("expert_count", sizes.experts)?;
        keys.number("expert_used_count", config.extent("num_experts_per_tok")?)?;
    }
    if sizes.has_head_width {
        keys.number("attention.key_length", sizes.head)?;
        keys.number("attention.value_length", sizes.head)?;
    }
    Ok(())
}

/// Writes what a model is called, and how `generation_config.json` would have it sampled.
pub fn general(config: &Config, folder: &Path, tensors: &[Tensor], keys: &mut Keys) -> Outcome {
    let sampling: Map<String, Value> = read_json(&folder.join("generation_config.json"))?.unwrap_or_default();
    for (key, name) in [("top_k", "top_k"), ("penalty_last_n", "penalty_last_n"), ("mirostat", "mirostat")] {
        let number = get(&sampling, key).and_then(Value::as_i64).and_then(|number| i32::try_from(number).ok());
        keys.optional(&format!("general.sampling.{name}"), number)?;
    }
    const FLOATS: [(&[&str], &str); 8] = [
        (&["top_p"], "top_p"),
        (&["min_p"], "min_p"),
        (&["xtc_probability"], "xtc_probability"),
        (&["xtc_threshold"], "xtc_threshold"),
        (&["temperature"], "temp"),
        (&["penalty_repeat", "repetition_penalty"], "penalty_repeat"),
        (&["mirostat_tau"], "mirostat_tau"),
        (&["mirostat_eta"], "mirostat_eta"),
    ];
    for (names, key) in FLOATS {
        let value = names.iter().find_map(|name| get(&sampling, name)).and_then(Value::as_f64);
        keys.optional(&format!("general.sampling.{key}"), value.map(|value| value as f32))?;
    }
    keys.optional("general.sampling.sequence", get(&sampling, "sequence").and_then(Value::as_str))?;

    let count = Parameters::of(tensors);
    let folder = fs::canonicalize(folder).unwrap_or_default();
    let folder = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let path = get(config.raw(), "_name_or_path").and_then(Value::as_str);
    // Where it is a path on somebody's machine it says nothing.
    let id = path.filter(|path| !path.is_empty() && path.matches('/').count() <= 1);
    let names = [id.map(|id| Name::of(id, count.all)), Some(Name::of(&folder, count.all))];
    let first = |part: fn(&Name) -> &Option<String>| names.iter().flatten().find_map(|name| part(name).clone());
    keys.general("general.name", first(|name| &name.title).unwrap_or(folder))?;
    keys.optional("general.version", first(|name| &name.version))?;
    keys.optional("general.organization", first(|name| &name.organization))?;
    keys.optional("general.finetune", first(|name| &name.finetune))?;
    keys.optional("general.basename", first(|name| &name.base))?;
    keys.general("general.size_label", first(|name| &name.size).unwrap_or_else(|| count.label()))
}

/// How many numbers a model has.
struct Parameters {
    all: u64,
    /// Those outside of experts.
    shared: u64,
    /// Those of one expert of each layer.
    of_expert: u64,
    experts: u64,
}

impl Parameters {
    fn of(tensors: &[Tensor]) -> Self {
        let mut count = Self { all: 0, shared: 0, of_expert: 0, experts: 0 };
        for tensor in tensors {
            let elements = tensor.elements() as u64;
            count.all += elements;
            // Biases of experts are matrices, too, and counted as shared.
            match tensor.dims[..] {
                [_, _, experts] if tensor.name.contains("_exps.") => {
                    count.of_expert += elements / experts.max(1);
                    count.experts = experts;
                }
                _ => count.shared += elements,
            }
        }
        count
    }

    /// As 7B or 8x22B.
    fn label(&self) -> String {
        let rounded = |count: u64| {
            let (scale, suffix) = match count {
                count if count > 1_000_000_000_000 => (1e-12, "T"),
                count if count > 1_000_000_000 => (1e-9, "B"),
                count if count > 1_000_000 => (1e-6, "M"),
                _ => (1e-3, "K"),
            };
            let count = count as f64 * scale;
            // Two digits at least.
            let digits = match count.round_ties_even() as u64 {
                0 => 0,
                whole => whole.ilog10() as usize + 1,
            };
            format!("{count:.*}{suffix}", 2usize.saturating_sub(digits))
        };
        match self.experts {
            0 => rounded(self.all),
            experts => format!("{experts}x{}", rounded(self.shared + self.of_expert)),
        }
    }
}
