//! What a model's name says: its parts, as gguf-py finds them.

use fancy_regex::Regex;

/// The parts of a name as `meta-llama/Llama-3.2-1B-Instruct`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Name {
    /// The name without its organization, with spaces and capitals.
    pub title: Option<String>,
    pub organization: Option<String>,
    pub base: Option<String>,
    pub finetune: Option<String>,
    pub version: Option<String>,
    pub size: Option<String>,
}

/// What a part of a name is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Base,
    Size,
    Finetune,
    Version,
    Type,
}

/// A part between two hyphens, and what it may be.
struct Part {
    text: String,
    kinds: Vec<Kind>,
}

impl Part {
    fn is(&self, kind: Kind) -> bool {
        self.kinds.contains(&kind)
    }
}

impl Name {
    /// The parts of an id, of a model of so many numbers.
    pub fn of(id: &str, parameters: u64) -> Self {
        if id.contains(' ') {
            return Self { title: Some(title(id)), ..Self::default() };
        }
        let (organization, name) = match id.split_once('/') {
            Some((organization, name)) => (Some(organization), name),
            None => (None, id),
        };
        let organization = organization.filter(|organization| !organization.starts_with('.'));
        let mut parts: Vec<Part> = name
            .split('-')
            .filter(|part| !part.is_empty())
            .enumerate()
            .map(|(place, part)| annotate(part, place, parameters))
            .collect();
        // Sizes of words count only where no size has a number.
        if parts.iter().any(|part| part.is(Kind::Size) && part.text.contains(|c: char| c.is_ascii_digit())) {
            for part in parts.iter_mut().filter(|part| part.text.chars().all(char::is_alphabetic)) {
                part.kinds.retain(|&kind| kind != Kind::Size);
            }
        }
        // A name begins with its base, which may have a version in it, but not at its end.
        let mut in_base = true;
        for part in &mut parts {
            let is_word = part.kinds.is_empty() && part.text.starts_with(char::is_alphabetic);
            in_base &= is_word || part.is(Kind::Version);
            match in_base {
                true => part.kinds.push(Kind::Base),
                false if part.kinds.is_empty() => part.kinds.push(Kind::Finetune),
                false => (),
            }
        }
        for part in parts.iter_mut().rev() {
            match part.is(Kind::Base) && part.kinds.len() > 1 {
                true => part.kinds.retain(|&kind| kind != Kind::Base),
                false => break,
            }
        }
        let joined = |is_one: &dyn Fn(&Part) -> bool| {
            let found: Vec<&str> = parts.iter().filter(|part| is_one(part)).map(|part| part.text.as_str()).collect();
            Some(found).filter(|found| !found.is_empty())
        };
        let mut sizes = joined(&|part| part.is(Kind::Size)).unwrap_or_default();
        let mut seen = Vec::new();
        sizes.retain(|size| {
            !seen.contains(size) && {
                seen.push(*size);
                true
            }
        });
        let size = Some(sizes.join("-")).filter(|size| !size.is_empty());
        let finetune = joined(&|part| part.is(Kind::Finetune)).map(|parts| parts.join("-"));
        let version = joined(&|part| part.is(Kind::Version) && !part.is(Kind::Base)).map(|parts| parts.join("-"));
        // A name alone may be anything.
        let is_clear = size.is_some() || finetune.is_some() || version.is_some();
        let base = joined(&|part| part.is(Kind::Base)).map(|parts| parts.join("-")).filter(|_| is_clear);
        Self { title: Some(title(name)), organization: organization.map(title), base, finetune, version, size }
    }
}

/// Whether all of a text matches, in either case.
fn matches(text: &str, regex: &str) -> bool {
    let regex = Regex::new(&format!("^(?i:{regex})$"));
    regex.is_ok_and(|regex| regex.is_match(text).unwrap_or(false))
}

/// What a part of a name may be by itself.
fn annotate(text: &str, place: usize, parameters: u64) -> Part {
    let part = |text: String, kind| Part { text, kinds: vec![kind] };
    if matches(text, r"(v|iter)?\d+([.]\d+)*") {
        return part(text.to_owned(), Kind::Version);
    }
    if matches(text, r"i?q\d(_\w)*|b?fp?(16|32)") {
        return part(text.to_uppercase(), Kind::Type);
    }
    if place > 0 && matches(text, r"(([A]|\d+[x])?\d+([._]\d+)?[KMBT][\d]?|small|mini|medium|large|x?xl)") {
        return sized(text.replace('_', "."), parameters);
    }
    if place > 0 && matches(text, "chat|instruct|vision|lora") {
        return part(text.to_owned(), Kind::Finetune);
    }
    Part { text: text.to_owned(), kinds: Vec::new() }
}

/// A part that looks like a size: it may be a context's length.
fn sized(mut text: String, parameters: u64) -> Part {
    // As in bloom-7b1.
    if text.ends_with(|c: char| c.is_ascii_digit()) {
        let (digit, unit) = (text.pop(), text.pop());
        text.push('.');
        text.extend(digit);
        text.extend(unit);
    }
    let last_two: Vec<char> = text.chars().rev().take(2).collect();
    if let [unit, before] = last_two[..]
        && before.is_ascii_digit()
    {
        text.pop();
        text.push(if "kmbt".contains(unit) { unit.to_ascii_uppercase() } else { unit });
    }
    let unit = text.chars().last().and_then(|unit| " KMBT".find(unit));
    let number = text.get(..text.len() - 1).and_then(|number| number.parse::<f64>().ok());
    if let (Some(unit), Some(number)) = (unit, number) {
        let label = number * 1000f64.powi(unit as i32);
        if parameters > 0 && (label - parameters as f64).abs() > (7 * parameters / 8) as f64 {
            let unit = text.pop().map(|unit| unit.to_ascii_lowercase());
            text.extend(unit);
            return Part { text, kinds: vec![Kind::Finetune] };
        }
    }
    Part { text, kinds: vec![Kind::Size] }
}

/// A name with spaces, and capitals where a word has none and is no version.
fn title(name: &str) -> String {
    let word = |word: &str| {
        let is_lower = word.chars().any(char::is_lowercase) && !word.chars().any(char::is_uppercase);
        match is_lower && !matches(word, r"v\d+(?:\.\d+)*|\d.*") {
            true => capitalized(word),
            false => word.to_owned(),
        }
    };
    name.trim().replace('-', " ").split_whitespace().map(word).collect::<Vec<_>>().join(" ")
}

/// A word with a capital at the start of each run of letters.
fn capitalized(word: &str) -> String {
    let mut after_letter = false;
    word.chars().fold(String::new(), |mut out, c| {
        match after_letter {
            true => out.push(c),
            false => out.extend(c.to_uppercase()),
        }
        after_letter = c.is_alphabetic();
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(id: &str, parameters: u64) -> [Option<String>; 6] {
        let Name { title, organization, base, finetune, version, size } = Name::of(id, parameters);
        [title, organization, base, finetune, version, size]
    }

    fn some(parts: [&str; 6]) -> [Option<String>; 6] {
        parts.map(|part| Some(part.to_owned()).filter(|part| !part.is_empty()))
    }

    /// What `Metadata.get_model_id_components` and `id_to_title` of gguf-py make of these.
    #[test]
    fn a_name_has_the_parts_that_gguf_py_finds() {
        let cases: [(&str, u64, [&str; 6]); 10] = [
            (
                "meta-llama/Llama-3.2-1B-Instruct",
                1_235_814_432,
                ["Llama 3.2 1B Instruct", "Meta Llama", "Llama-3.2", "Instruct", "", "1B"],
            ),
            ("Qwen3-30B-A3B", 30_532_122_624, ["Qwen3 30B A3B", "", "Qwen3", "", "", "30B-A3B"]),
            (
                "mistralai/Mixtral-8x7B-Instruct-v0.1",
                46_702_792_704,
                ["Mixtral 8x7B Instruct v0.1", "Mistralai", "Mixtral", "Instruct", "v0.1", "8x7B"],
            ),
            (
                "microsoft/Phi-3-mini-128k-instruct",
                3_821_079_552,
                ["Phi 3 Mini 128k Instruct", "Microsoft", "Phi-3", "128k-instruct", "", "mini"],
            ),
            ("google/gemma-2-2b-it", 2_614_341_888, ["Gemma 2 2b It", "Google", "gemma-2", "it", "", "2B"]),
            ("bigscience/bloom-7b1", 7_069_016_064, ["Bloom 7b1", "Bigscience", "bloom", "", "", "7.1B"]),
            ("Mistral-7B-v0.3-bf16", 7_248_023_552, ["Mistral 7B v0.3 Bf16", "", "Mistral", "", "v0.3", "7B"]),
            ("./models", 5, ["Models", "", "", "", "", ""]),
            ("my model of llama", 0, ["My Model Of Llama", "", "", "", "", ""]),
            ("gpt_oss", 10, ["Gpt_Oss", "", "", "", "", ""]),
        ];
        for (id, parameters, expected) in cases {
            assert_eq!(parts(id, parameters), some(expected), "{id}");
        }
    }
}
