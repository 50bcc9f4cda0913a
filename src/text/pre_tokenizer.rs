//! Pre-tokenizers: how a text is split into the words that byte-level BPE
//! encodes one by one.
//!
//! A file names its pre-tokenizer; the names and the regular expressions are
//! those of llama.cpp (`llama-vocab.cpp`), which splits the text by the first,
//! each part by the second, and so on. What an expression leaves out between
//! its matches is a part as well.
//!
//! llama.cpp runs most expressions on a copy of the text in which each
//! character is its general category, and the common ones by hand. Where that
//! makes a difference the expressions here are written to do the same:
//!
//! - `\p{Lu}`, `\p{Ll}` and the like are any letter there: here `\p{L}`, and
//!   runs of "upper" and then "lower" case become one run.
//! - `\d` is an ASCII digit there: here `[0-9]`.
//! - Whitespace outside ASCII is in no range of characters there: DeepSeek's
//!   punctuation starts at U+3001, and its CJK is `&&\S`.
//! - Kimi K2's expression stands for what is done by hand there, and so does
//!   [`group_digits`].
//!
//! The categories of a few characters differ as the versions of Unicode do.

use fancy_regex::{Regex, RegexBuilder};

use super::error::{Error, Result};
use crate::gguf::Metadata;

pub(super) const KEY: &str = "tokenizer.ggml.pre";

/// The pre-tokenizer of files that name none.
const DEFAULT: &str = "default";

/// More than any text needs that a machine can hold: the expressions look
/// back only inside a word, but a text of one endless word is still a text.
const BACKTRACK_LIMIT: usize = usize::MAX;

/// What a name stands for.
#[derive(Debug)]
struct Rules {
    names: &'static [&'static str],
    /// The expressions, in the order in which they split.
    regexes: &'static [&'static str],
    /// Whether numbers are split into groups of three before that.
    groups_digits: bool,
    /// Whether a word that is a token is taken whole, merges or no.
    ignores_merges: bool,
    /// Whether a text starts with the model's first token unless the file
    /// says otherwise.
    adds_bos: bool,
}

impl Rules {
    const fn new(names: &'static [&'static str], regexes: &'static [&'static str]) -> Self {
        Rules { names, regexes, groups_digits: false, ignores_merges: false, adds_bos: false }
    }

    const fn grouping_digits(self) -> Self {
        Rules { groups_digits: true, ..self }
    }

    const fn ignoring_merges(self) -> Self {
        Rules { ignores_merges: true, ..self }
    }

    const fn adding_bos(self) -> Self {
        Rules { adds_bos: true, ..self }
    }
}

/// The tail that most expressions share: punctuation with the newlines after
/// it, newlines with the whitespace before them, whitespace less the last
/// space before a word, other whitespace.
macro_rules! tail {
    () => {
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    };
}

/// English contractions in either case.
macro_rules! contractions {
    () => {
        "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
    };
}

/// A word with the character before it.
macro_rules! word {
    () => {
        r"[^\r\n\p{L}\p{N}]?\p{L}+"
    };
}

/// Words of "upper" then "lower" case letters, where a letter outside ASCII is
/// both, with a contraction after them.
macro_rules! cased_word {
    ($letter:literal, $suffix:expr) => {
        concat!(
            r"[^\r\n\p{L}\p{N}]?[",
            $letter,
            r"&&[^a-z]]*[",
            $letter,
            r"&&[^A-Z]]+",
            $suffix,
            r"|[^\r\n\p{L}\p{N}]?[",
            $letter,
            r"&&[^a-z]]+[",
            $letter,
            r"&&[^A-Z]]*",
            $suffix
        )
    };
}

const GPT_2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
const DIGIT: &str = r"\p{N}";
const DIGITS: &str = r"\p{N}+";
const THREE_DIGITS: &str = r"\p{N}{1,3}";
const THREE_ASCII_DIGITS: &str = "[0-9][0-9][0-9]";
const NEWLINE: &str = r"[\r\n]";
const LLAMA_3: &str = concat!(contractions!(), "|", word!(), r"|\p{N}{1,3}|", tail!());
const QWEN_2: &str = concat!(contractions!(), "|", word!(), r"|\p{N}|", tail!());
const CHINESE_OR_KANA: &str = r"[\u{4E00}-\u{9FA5}\u{3040}-\u{30FF}]+";
const CHINESE_OR_HANGUL: &str = r"[\u{800}-\u{9FA5}\u{AC00}-\u{D7FF}&&\S]+";
const DEEPSEEK_3: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"##,
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// Letters of cased scripts, as deepseek-llm's pre-tokenizer lists them, in escapes: an editor that normalises
/// text would change some of the characters.
const CASED_LETTERS: &str = concat!(
    r"\s?[A-Za-z\u{B5}\u{C0}-\u{D6}\u{D8}-\u{F6}\u{F8}-\u{1BA}\u{1BC}-\u{1BF}\u{1C4}-\u{293}\u{295}-\u{2AF}",
    r"\u{370}-\u{373}\u{376}\u{377}\u{37B}-\u{37D}\u{37F}\u{386}\u{388}-\u{38A}\u{38C}\u{38E}-\u{3A1}",
    r"\u{3A3}-\u{3F5}\u{3F7}-\u{481}\u{48A}-\u{52F}\u{531}-\u{556}\u{10A0}-\u{10C5}\u{13A0}-\u{13F5}",
    r"\u{13F8}-\u{13FD}\u{1C90}-\u{1CBA}\u{1CBD}-\u{1CBF}\u{1D00}-\u{1D2B}\u{1D6B}-\u{1D77}\u{1D79}-\u{1D9A}",
    r"\u{1E00}-\u{1F15}\u{1F18}-\u{1F1D}\u{1F20}-\u{1F45}\u{1F48}-\u{1F4D}\u{1F50}-\u{1F57}\u{1F59}\u{1F5B}",
    r"\u{1F5D}\u{1F5F}-\u{1F7D}\u{1F80}-\u{1FB4}\u{1FB6}-\u{1FBC}\u{1FBE}\u{1FC2}-\u{1FC4}\u{1FC6}-\u{1FCC}",
    r"\u{1FD0}-\u{1FD3}\u{1FD6}-\u{1FDB}\u{1FE0}-\u{1FEC}\u{1FF2}-\u{1FF4}\u{1FF6}-\u{1FFC}\u{2102}\u{2107}",
    r"\u{210A}-\u{2113}\u{2115}\u{2119}-\u{211D}\u{2124}\u{2126}\u{2128}\u{212A}-\u{212D}\u{212F}-\u{2134}\u{2139}",
    r"\u{213C}-\u{213F}\u{2145}-\u{2149}\u{214E}\u{2183}\u{2184}\u{2C00}-\u{2C7B}\u{2C7E}-\u{2CE4}",
    r"\u{2CEB}-\u{2CEE}\u{2CF2}\u{2CF3}\u{A640}-\u{A66D}\u{A680}-\u{A69B}\u{A722}-\u{A76F}\u{A771}-\u{A787}",
    r"\u{A78B}-\u{A78E}\u{AB70}-\u{ABBF}\u{FB00}-\u{FB06}\u{FB13}-\u{FB17}\u{FF21}-\u{FF3A}\u{FF41}-\u{FF5A}",
    r"\u{10400}-\u{1044F}\u{104B0}-\u{104D3}\u{104D8}-\u{104FB}\u{10C80}-\u{10CB2}\u{10CC0}-\u{10CF2}",
    r"\u{118A0}-\u{118DF}\u{1E900}-\u{1E943}]+"
);

const WITHOUT_PUNCTUATION: &str = " ?[^(\\s|.,!?…。，、।۔،)]+";

/// Han, as Kimi K2's pre-tokenizer has it: whole blocks.
macro_rules! han {
    () => {
        concat!(
            r"\u{3400}-\u{4DBF}\u{4E00}-\u{9FFF}\u{F900}-\u{FAFF}\u{20000}-\u{2A6DF}\u{2A700}-\u{2EBEF}",
            r"\u{2F800}-\u{2FA1F}"
        )
    };
}

const KIMI_K2: &str =
    concat!("[", han!(), r"]+|[^\r\n\p{L}\p{N}]?[\p{L}&&[^", han!(), "]]+", contractions!(), r"?|\p{N}{1,3}|", tail!());

const RULES: &[Rules] = &[
    Rules::new(&[DEFAULT], &[r"[\p{P}\$\+<=>\^~\|]+", GPT_2, DIGITS, THREE_ASCII_DIGITS]),
    Rules::new(&["llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"], &[LLAMA_3])
        .ignoring_merges()
        .adding_bos(),
    Rules::new(&["jina-v5-nano"], &[LLAMA_3]).ignoring_merges().adding_bos(),
    Rules::new(&["dbrx", "smaug-bpe", "chatglm-bpe"], &[LLAMA_3]),
    Rules::new(&["glm4", "glm5"], &[LLAMA_3]).ignoring_merges(),
    Rules::new(
        &["jais-2"],
        &[concat!(
            contractions!(),
            "|",
            word!(),
            r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
            r"|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)",
            r"|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}"
        )],
    ),
    Rules::new(
        &["deepseek-llm"],
        &[
            NEWLINE,
            CASED_LETTERS,
            r"\s?[!-/:-~\u{FF01}-\u{FF0F}\u{FF1A}-\u{FF5E}\u{2018}-\u{201F}\u{3001}\u{3002}]+",
            r"\s+$",
            CHINESE_OR_HANGUL,
            DIGITS,
        ],
    ),
    Rules::new(&["deepseek-coder"], &[NEWLINE, r"\s?\p{L}+", r"\s?\p{P}+", CHINESE_OR_HANGUL, DIGIT]),
    Rules::new(&["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"], &[THREE_DIGITS, CHINESE_OR_KANA, DEEPSEEK_3]),
    Rules::new(
        &["spark2_5"],
        &[
            THREE_DIGITS,
            CHINESE_OR_KANA,
            concat!(
                r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"##,
                r"| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"
            ),
            DIGIT,
        ],
    ),
    Rules::new(
        &["youtu"],
        &[
            "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+",
            concat!(
                r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
                contractions!(),
                r"?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
        ],
    )
    .ignoring_merges(),
    Rules::new(&["falcon"], &[r"[\p{P}\$\+<=>\^~\|`]+", GPT_2, THREE_ASCII_DIGITS]),
    Rules::new(
        &["starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"],
        &[DIGIT, GPT_2],
    ),
    Rules::new(
        &["gpt-2", "phi-2", "jina-es", "jina-de", "gigachat", "jina-v2-es", "jina-v2-de", "a.x-4.0", "mellum"],
        &[GPT_2],
    ),
    Rules::new(
        &["modern-bert", "jina-v1-en", "jina-v2-code", "roberta-bpe", "mpt", "olmo", "jais", "exaone4", "trillion"],
        &[GPT_2],
    ),
    Rules::new(&["granite-docling"], &[GPT_2]),
    Rules::new(
        &["qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"],
        &[QWEN_2],
    ),
    Rules::new(
        &["qwen35"],
        &[concat!(
            contractions!(),
            r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )],
    ),
    Rules::new(&["poro-chat", "bloom", "gpt3-finnish"], &[WITHOUT_PUNCTUATION]),
    Rules::new(&["viking"], &[WITHOUT_PUNCTUATION, DIGIT]),
    Rules::new(
        &["tekken"],
        &[concat!(cased_word!(r"\p{L}", ""), r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")],
    )
    .ignoring_merges()
    .adding_bos(),
    Rules::new(
        &["chameleon"],
        &[
            "<sentinel:[0-9]+>",
            "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            DIGIT,
            r"[\p{P}!-/:-@\[-`{-~]",
            GPT_2,
        ],
    )
    .adding_bos(),
    Rules::new(
        &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"],
        &[concat!(
            cased_word!(r"\p{L}", concat!(contractions!(), "?")),
            r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )],
    ),
    Rules::new(
        &["granite-embed-multi-97m"],
        &[concat!(
            cased_word!(r"[\p{L}\p{M}]", concat!(contractions!(), "?")),
            r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )],
    )
    .ignoring_merges(),
    Rules::new(
        &["tiny_aya", "cohere2moe"],
        &[
            concat!(
                r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
                contractions!(),
                r"?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
        ],
    )
    .grouping_digits(),
    Rules::new(&["kimi-k2"], &[KIMI_K2]),
    // In time by the square of the digits of a number, as in llama.cpp.
    Rules::new(&["superbpe"], &[DIGITS, "(?=([0-9]{3})+(?![0-9]))"]),
    Rules::new(
        &["bailingmoe", "bailingmoe2", "llada-moe"],
        &[concat!(
            r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|",
            word!(),
            r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
        )],
    ),
    Rules::new(
        &["seed-coder"],
        &[concat!(contractions!(), "|", word!(), r"|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+")],
    ),
    Rules::new(&["ufakzeka"], &[concat!(word!(), r"|\p{N}|", tail!())]),
    Rules::new(
        &["afmoe"],
        &[
            concat!(
                r"[\u{4E00}-\u{9FFF}\u{3400}-\u{4DBF}\u{8C48}-\u{FAFF}\u{3040}-\u{30FF}\u{FF65}-\u{FF9F}\u{2F00}-\u{2FDF}",
                r"\u{E40}-\u{EFF}\u{1780}-\u{17FF}\u{1000}-\u{109F}\u{AA60}-\u{AA7F}\u{A9E0}-\u{A9FF}\u{AC00}-\u{D7AF}",
                r"\u{1100}-\u{11FF}]+"
            ),
            DEEPSEEK_3,
        ],
    )
    .grouping_digits(),
    Rules::new(&["laguna"], &[r"[^\n]+|[\n]+", QWEN_2]),
    Rules::new(
        &["exaone-moe"],
        &[concat!(
            contractions!(),
            r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+",
            r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
        )],
    ),
    Rules::new(&["minicpm5"], &[THREE_DIGITS, concat!(contractions!(), "|", word!(), r"|\p{N}+|", tail!())])
        .ignoring_merges(),
];

/// The names of all pre-tokenizers, for an error.
fn known() -> String {
    RULES.iter().flat_map(|rules| rules.names).copied().collect::<Vec<_>>().join(", ")
}

/// Splits a text into words.
#[derive(Clone, Debug)]
pub(super) struct PreTokenizer {
    name: &'static str,
    rules: &'static Rules,
    regexes: Vec<Regex>,
}

impl PreTokenizer {
    pub fn read(metadata: &Metadata<'_>) -> Result<Self> {
        Self::of(metadata.optional::<&str>(KEY)?.filter(|name| !name.is_empty()).unwrap_or(DEFAULT))
    }

    /// The pre-tokenizer of a name.
    pub fn of(name: &str) -> Result<Self> {
        let find = |rules: &'static Rules| Some((rules, *rules.names.iter().find(|&&known| known == name)?));
        let (rules, name) = RULES.iter().find_map(find).ok_or_else(|| Error::UnknownPreTokenizer {
            key: KEY,
            found: name.to_owned(),
            known: known(),
        })?;
        let compile = |regex: &&str| RegexBuilder::new(regex).backtrack_limit(BACKTRACK_LIMIT).build();
        let regexes = rules.regexes.iter().map(compile).collect::<Result<_, _>>();
        Ok(PreTokenizer { name, rules, regexes: regexes.map_err(|source| failed(name, source))? })
    }

    /// Whether a word that is a token is taken whole, merges or no.
    pub fn ignores_merges(&self) -> bool {
        self.rules.ignores_merges
    }

    /// Whether a text starts with the model's first token unless the file
    /// says otherwise.
    pub fn adds_bos(&self) -> bool {
        self.rules.adds_bos
    }

    /// The words of a text, which together are the text.
    pub fn split<'a>(&self, text: &'a str) -> Result<Vec<&'a str>> {
        let mut words = if self.rules.groups_digits { group_digits(text) } else { vec![text] };
        for regex in &self.regexes {
            let mut parts = Vec::with_capacity(words.len());
            for word in words {
                split(regex, word, &mut parts).map_err(|source| failed(self.name, source))?;
            }
            words = parts;
        }
        Ok(words)
    }
}

fn failed(name: &'static str, source: fancy_regex::Error) -> Error {
    Error::PreTokenizer { name, source: Box::new(source) }
}

/// Appends the matches in a text, and what is between them.
fn split<'a>(regex: &Regex, text: &'a str, parts: &mut Vec<&'a str>) -> Result<(), fancy_regex::Error> {
    let mut end = 0;
    let mut push = |part: &'a str| {
        if !part.is_empty() {
            parts.push(part);
        }
    };
    for found in regex.find_iter(text) {
        let found = found?;
        push(&text[end..found.start()]);
        push(found.as_str());
        end = found.end();
    }
    push(&text[end..]);
    Ok(())
}

/// Splits a text after each group of three digits, counted from the end of a
/// number. What is before a number stays with its first group.
fn group_digits(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut searched) = (0, 0);
    while let Some(found) = text[searched..].find(char::is_numeric) {
        let number = searched + found;
        let len = text[number..].find(|character: char| !character.is_numeric()).unwrap_or(text.len() - number);
        let digits = &text[number..number + len];
        let mut left = digits.chars().count();
        for (place, digit) in digits.char_indices() {
            left -= 1;
            if left.is_multiple_of(3) {
                let end = number + place + digit.len_utf8();
                parts.push(&text[start..end]);
                start = end;
            }
        }
        searched = number + len;
    }
    parts.push(&text[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    fn names() -> impl Iterator<Item = &'static str> {
        RULES.iter().flat_map(|rules| rules.names).copied()
    }

    fn words<'a>(name: &str, text: &'a str) -> Vec<&'a str> {
        PreTokenizer::of(name).unwrap().split(text).unwrap()
    }

    #[test]
    fn a_name_stands_for_one_set_of_rules_and_its_expressions_compile() {
        let mut all: Vec<_> = names().collect();
        all.sort_unstable();
        assert!(all.array_windows().all(|[a, b]| a != b));
        for name in all {
            PreTokenizer::of(name).unwrap();
        }
    }

    #[test]
    fn an_unknown_name_is_named() {
        let error = PreTokenizer::of("gemma4").unwrap_err().to_string();
        assert!(error.starts_with("metadata key `tokenizer.ggml.pre`: pre-tokenizer \"gemma4\""), "{error}");
        assert!(error.contains("llama-bpe"), "{error}");
    }

    #[test]
    fn the_last_space_before_a_word_goes_with_it() {
        assert_eq!(words("gpt-2", "  a  b\n\nc"), [" ", " a", " ", " b", "\n", "\n", "c"]);
        assert_eq!(words("llama-bpe", "  a\tb \n\n c"), [" ", " a", "\tb", " \n\n", " c"]);
    }

    #[test]
    fn contractions_are_words() {
        assert_eq!(words("gpt-2", "I'LL we'll"), ["I", "'", "LL", " we", "'ll"]);
        assert_eq!(words("llama-bpe", "I'LL we'll"), ["I", "'LL", " we", "'ll"]);
    }

    #[test]
    fn digits_are_grouped_as_the_model_groups_them() {
        assert_eq!(words("gpt-2", "12345"), ["12345"]);
        assert_eq!(words("llama-bpe", "12345"), ["123", "45"]);
        assert_eq!(words("qwen2", "123"), ["1", "2", "3"]);
        assert_eq!(words("tiny_aya", "12345"), ["12", "345"]);
        assert_eq!(words("afmoe", "\u{200b}1234-123456 12"), ["\u{200b}1", "234", "-", "123", "456", " ", "12"]);
        assert_eq!(words("superbpe", "12345"), ["12", "345"]);
    }

    #[test]
    fn a_word_changes_from_upper_to_lower_case_once() {
        assert_eq!(words("gpt-4o", "HELLOworldAgain's"), ["HELLOworld", "Again's"]);
        assert_eq!(words("tekken", "ÀéB"), ["Àé", "B"]);
    }

    #[test]
    fn long_runs_do_not_exhaust_anything() {
        for name in names() {
            let tokenizer = PreTokenizer::of(name).unwrap();
            for run in ["a", "A", " ", "1", "中", "!", "\n", "\u{301}", "aA "] {
                let text = run.repeat(2_000);
                assert_eq!(tokenizer.split(&text).unwrap().concat(), text, "{name}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn words_together_are_the_text(text in any::<String>(), spaced in "[ \t\r\n\u{3000}a1'A.é中]{0,40}") {
            static ALL: LazyLock<Vec<PreTokenizer>> = LazyLock::new(|| names().map(|name| PreTokenizer::of(name).unwrap()).collect());
            for tokenizer in ALL.iter() {
                for text in [&text, &spaced] {
                    let words = tokenizer.split(text).unwrap();
                    prop_assert_eq!(&words.concat(), text);
                    prop_assert!(words.iter().all(|word| !word.is_empty()));
                }
            }
        }
    }
}
