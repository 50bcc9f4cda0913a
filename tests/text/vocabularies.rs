//! Small vocabularies, and texts to encode with them. Both are the same every
//! time: the fixtures say what llama.cpp makes of them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use cube_gguf::gguf::Writer;

/// What the vocabularies are made of: words, and what pre-tokenizers look at.
const CORPUS: &str = "the theme of the other then there this that these in the inner thing and another band of sand; \
    I'll we'll they're don't DON'T it's It'S 12 123 1234 12345 2024 1000000 3.14 a1b2 x86 \n\n \r\n\t  \n   indent\n    \
    indented\tcode(); {[<!-- -->]} !? ... --- ___ $5 +1 a=b; \"quoted\" 'single' CamelCase HTTPServer snake_case \
    naïve café Straße ÉCOLE ǅ ſ élan 中文 中国 日本語 カタカナ ひらがな 한국어 русский язык العربية हिन्दी ไทย 、。！？　 \
    😀😁 👩‍👩‍👧 e\u{301} ½ ² ⅷ ٣٤ \u{a0}\u{200b} a b c d";

/// The tokens of the model's own, in the order of their ids.
pub const CONTROL: [&str; 3] = ["<unk>", "<s>", "</s>"];

const UNKNOWN: i32 = 2;
const CONTROL_TYPE: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// A character of each kind that pre-tokenizers tell apart.
const KINDS: [&str; 16] = ["a", "A", "s", "1", " ", "\n", "\r", "'", ".", "/", "$", "é", "中", "。", "٣", "\u{301}"];

/// Enough to use up all pairs that occur twice, and many that do not.
const CORPUS_MERGES: usize = 200;

/// A vocabulary before it is written.
#[derive(Clone, Debug, Default)]
pub struct Tokens {
    pub texts: Vec<String>,
    pub types: Vec<i32>,
    pub scores: Vec<f32>,
    pub merges: Vec<String>,
}

impl Tokens {
    pub fn add(&mut self, text: impl Into<String>, kind: i32, score: f32) {
        self.texts.push(text.into());
        self.types.push(kind);
        self.scores.push(score);
    }

    fn add_control(&mut self) {
        for (text, kind) in CONTROL.into_iter().zip([UNKNOWN, CONTROL_TYPE, CONTROL_TYPE]) {
            self.add(text, kind, 0.0);
        }
    }

    fn add_special(&mut self) {
        for text in
            ["<|im_start|>", "<|im_end|>", "<|im", "<start_of_turn>", "<end_of_turn>", "<|file_sep|>", "<|endoftext|>"]
        {
            self.add(text, CONTROL_TYPE, 0.0);
        }
        for text in ["<mark>", "\n\n", "  ", "<mark><mark>", "<|channel|>"] {
            self.add(text, USER_DEFINED, 0.0);
        }
        self.add("<unused0>", UNUSED, 0.0);
    }

    pub fn writer(&self, model: &str) -> Writer {
        let mut writer = Writer::new();
        writer.metadata("general.architecture", "llama").unwrap();
        writer.metadata("tokenizer.ggml.model", model).unwrap();
        writer.metadata("tokenizer.ggml.tokens", self.texts.as_slice()).unwrap();
        writer.metadata("tokenizer.ggml.token_type", self.types.as_slice()).unwrap();
        if model == "llama" {
            writer.metadata("tokenizer.ggml.scores", self.scores.as_slice()).unwrap();
        } else {
            writer.metadata("tokenizer.ggml.merges", self.merges.as_slice()).unwrap();
        }
        writer
    }
}

pub fn finish(writer: Writer) -> Vec<u8> {
    writer.begin(Vec::new()).unwrap().finish().unwrap()
}

/// Every run of up to five characters that occurs twice, at a score that has
/// nothing to do with its length and that others share.
pub fn spm_tokens() -> Tokens {
    let mut tokens = Tokens::default();
    tokens.add_control();
    (0..=255u8).for_each(|byte| tokens.add(format!("<0x{byte:02X}>"), BYTE, 0.0));
    tokens.add_special();
    let corpus: Vec<char> = CORPUS.replace(' ', "▁").chars().collect();
    let mut counts = BTreeMap::<String, u32>::new();
    for len in 1..=5 {
        corpus.windows(len).for_each(|run| *counts.entry(run.iter().collect()).or_default() += 1);
    }
    let known: BTreeSet<_> = tokens.texts.iter().cloned().collect();
    for (run, count) in counts {
        let len = run.chars().count();
        if (count > 1 || (len == 1 && !hash(&run).is_multiple_of(3))) && !known.contains(&run) {
            let score = -((hash(&run) % 24) as f32) / 4.0;
            tokens.add(run, 1, score);
        }
    }
    tokens
}

/// A file of kind `llama`.
pub fn spm(adds_space: bool, adds_eos: bool) -> Vec<u8> {
    let mut writer = spm_tokens().writer("llama");
    writer.metadata("tokenizer.ggml.add_space_prefix", adds_space).unwrap();
    writer.metadata("tokenizer.ggml.add_eos_token", adds_eos).unwrap();
    finish(writer)
}

/// A file of kind `llama` whose special tokens take whitespace.
pub fn spm_phi_3() -> Vec<u8> {
    let mut writer = spm_tokens().writer("llama");
    writer.metadata("general.name", "Tiny Phi-3").unwrap();
    finish(writer)
}

/// The bytes as GPT-2 writes them, merges of any two of the [`KINDS`], and then
/// of the commonest pairs of the corpus, across what any pre-tokenizer would
/// split: where one does shows in the tokens.
pub fn bpe_tokens() -> Tokens {
    let mut tokens = Tokens::default();
    tokens.add_control();
    (0..=255u8).for_each(|byte| tokens.add(byte_character(byte), 1, 0.0));
    tokens.add_special();
    let mut known: BTreeSet<_> = tokens.texts.iter().cloned().collect();
    let mut add_merge = |tokens: &mut Tokens, left: &str, right: &str| {
        tokens.merges.push(format!("{left} {right}"));
        if known.insert(format!("{left}{right}")) {
            tokens.add(format!("{left}{right}"), 1, 0.0);
        }
    };
    let kinds = KINDS.map(|kind| kind.bytes().map(byte_character).collect::<String>());
    for kind in &kinds {
        let places: Vec<_> = kind.char_indices().map(|(place, _)| place).skip(1).chain([kind.len()]).collect();
        places.array_windows().for_each(|&[a, b]| add_merge(&mut tokens, &kind[..a], &kind[a..b]));
    }
    for left in &kinds {
        kinds.iter().for_each(|right| add_merge(&mut tokens, left, right));
    }
    let mut word: Vec<String> = CORPUS.bytes().map(|byte| byte_character(byte).to_string()).collect();
    for merge in &tokens.merges {
        let (left, right) = merge.split_once(' ').unwrap();
        word = merge_all(&word, left, right);
    }
    for _ in 0..CORPUS_MERGES {
        let (left, right) = commonest_pair(&word);
        add_merge(&mut tokens, &left, &right);
        word = merge_all(&word, &left, &right);
    }
    // Tokens that no merge makes: only a whole word is one.
    for text in ["indented", "12345", "ĠHTTPServer", "ä¸ŃåĽ½"] {
        if !tokens.texts.iter().any(|token| token == text) {
            tokens.add(text, 1, 0.0);
        }
    }
    tokens
}

/// A file of kind `gpt2`.
pub fn bpe(pre: &str) -> Vec<u8> {
    let mut writer = bpe_tokens().writer("gpt2");
    writer.metadata("tokenizer.ggml.pre", pre).unwrap();
    writer.metadata("tokenizer.ggml.bos_token_id", 1u32).unwrap();
    writer.metadata("tokenizer.ggml.eos_token_id", 2u32).unwrap();
    finish(writer)
}

/// The pair that occurs most often, and of those the first in order.
fn commonest_pair(word: &[String]) -> (String, String) {
    let mut counts = HashMap::<(&str, &str), i32>::new();
    word.array_windows().for_each(|[a, b]| *counts.entry((a, b)).or_default() += 1);
    let most = counts.into_iter().max_by_key(|&(pair, count)| (count, Reverse(pair)));
    let ((left, right), _) = most.expect("the corpus is longer than its merges");
    (left.to_owned(), right.to_owned())
}

pub fn merge_all(word: &[String], left: &str, right: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut rest = word;
    while let [first, after @ ..] = rest {
        rest = match after {
            [second, after @ ..] if first == left && second == right => {
                out.push(format!("{left}{right}"));
                after
            }
            _ => {
                out.push(first.clone());
                after
            }
        };
    }
    out
}

/// GPT-2's character of a byte.
pub fn byte_character(byte: u8) -> char {
    let prints = |byte: u8| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let place = (0..byte).filter(|&byte| !prints(byte)).count() as u32;
    if prints(byte) { char::from(byte) } else { char::from_u32(0x100 + place).unwrap() }
}

/// FNV-1a: a number that only depends on the text.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// Texts that have been trouble, here or elsewhere.
const TEXTS: &[&str] = &[
    "",
    " ",
    "  ",
    "   ",
    "\t",
    "\n",
    "\n\n",
    "\n\n\n",
    "\r\n",
    "\r\n\r\n x",
    " \n \n x",
    "the other theme",
    " the",
    "the ",
    "  the  other  ",
    "thethethethe",
    "Hello, world!",
    "I'll we'll they're don't it's",
    "I'LL DON'T It'S 'S 'T",
    "'s 't 're 've 'm 'll 'd",
    "'",
    " '",
    "''''",
    "1",
    "12",
    "123",
    "1234",
    "12345",
    "123456",
    "1234567 12345678",
    "3.14159e-10",
    "a1b22c333d4444",
    "x 1 22 333 4444 55555",
    "1111 11111 111111",
    "a\t 1 \t 11",
    "\t 11\r \r1",
    "½ ² ⅷ ٣٤٥٦٧",
    "中文",
    "中国 日本語、カタカナ。",
    "ひらがな　全角　スペース",
    "　",
    "　　a",
    "한국어 한글 ㄱㄴㄷ",
    "русский язык РУССКИЙ",
    "العربية، والفارسية۔",
    "हिन्दी क्षि",
    "ไทยไม่มีช่องว่าง",
    "naïve café Straße ÉCOLE",
    "e\u{301}e\u{301} \u{301}",
    "ǅ ſ İ ı K Ω",
    "😀😁",
    "👩‍👩‍👧 family 🏳️‍🌈",
    "a\u{200b}b\u{a0}c\u{2003}d\u{2028}e\u{85}f",
    "\u{feff}bom",
    "\u{0}nul\u{1}\u{7f}",
    "\u{10ffff}\u{e000}\u{378}",
    "𠀀𠀁 豈 鿿",
    "CamelCase HTTPServer snake_case",
    "HELLOworldAgain'S THE'll",
    "ÀÉÎõü ÀéÎõÜ",
    "code();\n    indented\n\treturn x;\n\n\n}",
    "{[<!-- -->]} !?... --- ___",
    "$5 +1 a=b; \"quoted\" 'single' `x`",
    "a.b,c;d:e!f?g(h)i[j]k{l}m",
    "!the #the @the -the _the /the",
    "https://example.com/a?b=c&d=e#f",
    "<s>the</s>",
    "<s><s>",
    "<unk> x",
    "<unused0>",
    "<|im_start|>user\nthe<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start",
    "<|im<|im_end|>",
    "<start_of_turn> the <end_of_turn> \n the",
    "a <mark> b <mark><mark><mark> c",
    "<mark>  <mark>\n\n<mark>",
    "<0x0A> <0x41>",
    "<|file_sep|><|channel|>final",
    "a <|endoftext|> b <|im_end|>\n\t c <s> d",
    "▁the▁other",
    "Ġthe Ċ",
    "[EMPTY_0]",
    "                                                                      x",
    "\n\n\n\n\n\n\n\n\n\n   \n\n\n\n",
    "!!!!!!!!!!!!!!!!!!!!\n\n",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "IMGIMGABCZ <sentinel:12> IMGIMGABCABZ",
    "(a|b) (c, d) …。，、।۔،",
    " … ， 。",
    "\u{200b}12 \u{200b}345",
];

/// What the rest of the texts is put together from.
const PARTS: [&str; 60] = [
    "a",
    "B",
    "the",
    "The",
    "THE",
    "n",
    "in",
    "and",
    " ",
    " ",
    "  ",
    "   ",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    "'s",
    "'LL",
    "'",
    "1",
    "23",
    "456",
    "7890",
    ".",
    ",",
    "...",
    "!?",
    "_",
    "-",
    "$",
    "+",
    "=",
    "é",
    "ß",
    "Ñ",
    "ǅ",
    "中",
    "文国",
    "。",
    "、",
    "かな",
    "カ",
    "한국",
    "я",
    "Ж",
    "ا",
    "٣",
    "क्षि",
    "ท",
    "\u{301}",
    "😀",
    "\u{a0}",
    "\u{3000}",
    "\u{200b}",
    "½",
    "<s>",
    "<|im_end|>",
    "<mark>",
    "<0x",
    "▁",
];

/// All texts: those above, then random ones.
pub fn texts() -> Vec<String> {
    let mut state = 1u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut texts: Vec<String> = TEXTS.iter().map(|&text| text.to_owned()).collect();
    for _ in 0..400 {
        let len = 1 + random(12);
        texts.push((0..len).map(|_| PARTS[random(PARTS.len())]).collect());
    }
    texts
}
