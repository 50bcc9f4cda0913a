//! Files that do not hold up are errors that say what is wrong.

use cube_gguf::gguf::{Encode, Gguf, Writer};
use cube_gguf::text::{ChatTemplate, Error, Special, Tokenizer};
use std::sync::LazyLock;

use proptest::prelude::*;

use crate::vocabularies::{self, Tokens, finish};

fn read(file: &[u8]) -> Result<Tokenizer, Error> {
    Tokenizer::from_gguf(Gguf::parse(file).unwrap().metadata())
}

fn error(writer: Writer) -> String {
    read(&finish(writer)).unwrap_err().to_string()
}

/// A file of a few tokens, with a key more.
fn with<T: Encode>(model: &str, key: &str, value: T) -> Writer {
    let mut writer = small(model);
    writer.metadata(key, value).unwrap();
    writer
}

fn small(model: &str) -> Writer {
    let mut writer = Writer::new();
    writer.metadata("tokenizer.ggml.model", model).unwrap();
    writer.metadata("tokenizer.ggml.tokens", ["<unk>", "a", "b", "ab"]).unwrap();
    writer
}

#[test]
fn a_kind_that_is_not_supported_is_named_with_those_that_are() {
    for kind in ["gemma4", "bert", "t5", "rwkv", "plamo2", "none", ""] {
        assert_eq!(
            error(small(kind)),
            format!(
                "metadata key `tokenizer.ggml.model`: tokenizers of kind \"{kind}\" are not supported \
                 (\"llama\" and \"gpt2\" are)"
            )
        );
    }
}

#[test]
fn what_is_missing_is_named() {
    assert_eq!(error(Writer::new()), "metadata key `tokenizer.ggml.model` is missing");
    let mut writer = Writer::new();
    writer.metadata("tokenizer.ggml.model", "llama").unwrap();
    assert_eq!(error(writer), "metadata key `tokenizer.ggml.tokens` is missing");
    assert_eq!(error(small("gpt2")), "metadata key `tokenizer.ggml.merges` is missing");
}

#[test]
fn a_vocabulary_has_tokens_and_each_once() {
    let of = |tokens: &[&str]| {
        let mut writer = Writer::new();
        writer.metadata("tokenizer.ggml.model", "llama").unwrap();
        writer.metadata("tokenizer.ggml.tokens", tokens).unwrap();
        writer
    };
    assert_eq!(error(of(&[])), "metadata key `tokenizer.ggml.tokens` holds no tokens");
    assert_eq!(error(of(&["a", "b", "a"])), "metadata key `tokenizer.ggml.tokens`: tokens 0 and 2 are both \"a\"");
    assert_eq!(
        error(of(&["", "[EMPTY_0]"])),
        "metadata key `tokenizer.ggml.tokens`: tokens 0 and 1 are both \"[EMPTY_0]\""
    );
    let empty = read(&finish(of(&["", "", "a"]))).unwrap();
    assert_eq!(empty.token(1).unwrap(), "[EMPTY_1]");
}

#[test]
fn arrays_about_tokens_cover_all_tokens() {
    assert_eq!(
        error(with("llama", "tokenizer.ggml.scores", [0f32; 3])),
        "metadata key `tokenizer.ggml.scores` has 3 elements for 4 tokens"
    );
    assert_eq!(
        error(with("llama", "tokenizer.ggml.token_type", [1i32; 2])),
        "metadata key `tokenizer.ggml.token_type` has 2 elements for 4 tokens"
    );
    assert!(read(&finish(with("llama", "tokenizer.ggml.scores", [0f32; 5]))).is_ok());
}

#[test]
fn scores_are_numbers() {
    assert_eq!(
        error(with("llama", "tokenizer.ggml.scores", [0.0, 0.0, f32::NAN, 0.0])),
        "metadata key `tokenizer.ggml.scores`: the score of token 2 is no number"
    );
    assert!(error(with("llama", "tokenizer.ggml.scores", ["a"; 4])).contains("token 0 is no number"));
    assert!(read(&finish(with("llama", "tokenizer.ggml.scores", [-1i32; 4]))).is_ok());
    assert!(error(with("llama", "tokenizer.ggml.scores", 1f32)).contains("wanted array"));
}

#[test]
fn token_types_are_those_that_ggml_defines() {
    assert_eq!(
        error(with("llama", "tokenizer.ggml.token_type", [1i32, 7, 1, 1])),
        "metadata key `tokenizer.ggml.token_type`: token 1 has unknown type 7"
    );
    assert!(error(with("llama", "tokenizer.ggml.token_type", [1i32, -1, 1, 1])).contains("unknown type -1"));
    assert_eq!(
        error(with("llama", "tokenizer.ggml.token_type", [1i32, 6, 1, 1])),
        "metadata key `tokenizer.ggml.tokens`: token 1 is of type byte, but its text \"a\" is not like \"<0x0A>\""
    );
}

#[test]
fn merges_are_of_tokens_and_into_tokens() {
    let merges = |merge: &str| error(with("gpt2", "tokenizer.ggml.merges", [merge]));
    for merge in ["ab", "", " ", "a "] {
        assert!(merges(merge).ends_with("not two tokens with a space between them"), "{merge:?}");
    }
    let needs = |text: &str| {
        format!(
            "metadata key `tokenizer.ggml.merges`: merge 0 needs a token {text:?}, which the vocabulary does not have"
        )
    };
    assert_eq!(merges("a x"), needs("x"));
    assert_eq!(merges("b a"), needs("ba"));
    assert!(error(with("gpt2", "tokenizer.ggml.merges", [1u32])).contains("wanted string"));
}

#[test]
fn special_tokens_are_tokens() {
    for name in ["bos", "eos", "eot", "eom", "unknown", "fim_pad", "fim_pre"] {
        let key = format!("tokenizer.ggml.{name}_token_id");
        assert_eq!(error(with("llama", &key, 4u32)), format!("metadata key `{key}` is 4, but there are 4 tokens"));
        assert!(error(with("llama", &key, "a")).contains("wanted u64"));
        assert!(error(with("llama", &key, -1i32)).contains(&key));
    }
    // Files with such a padding are about, and nothing here pads.
    assert_eq!(read(&finish(with("llama", "tokenizer.ggml.padding_token_id", 4u32))).unwrap().padding(), None);
}

#[test]
fn what_is_to_be_added_is_named() {
    let mut writer = with("gpt2", "tokenizer.ggml.add_bos_token", true);
    writer.metadata("tokenizer.ggml.merges", ["a b"]).unwrap();
    assert_eq!(
        error(writer),
        "metadata key `tokenizer.ggml.add_bos_token` is true, but `tokenizer.ggml.bos_token_id` names no token to add"
    );
}

#[test]
fn an_unknown_pre_tokenizer_is_named() {
    let message = error(with("gpt2", "tokenizer.ggml.pre", "no-such"));
    assert!(message.starts_with("metadata key `tokenizer.ggml.pre`: pre-tokenizer \"no-such\" is not supported"));
}

#[test]
fn a_character_without_a_token_is_the_unknown_token_or_an_error() {
    let plain = Special::default();
    let unknown = read(&finish(small("llama"))).unwrap();
    assert_eq!(unknown.encode("b中a", plain).unwrap().iter().filter(|&&id| id == 0).count(), 2);
    let mut one = Writer::new();
    one.metadata("tokenizer.ggml.model", "llama").unwrap();
    one.metadata("tokenizer.ggml.tokens", ["a"]).unwrap();
    one.metadata("tokenizer.ggml.add_space_prefix", false).unwrap();
    let none = read(&finish(one)).unwrap();
    // Token 0 is the unknown token by default; without it there is an error.
    assert_eq!(none.unknown(), Some(0));
    let bytes = read(&finish(with("gpt2", "tokenizer.ggml.merges", ["a b"]))).unwrap();
    assert_eq!(bytes.encode("ab中a", plain).unwrap(), [3, 1]);
}

#[test]
fn a_token_that_is_not_utf_8_is_an_error() {
    let mut file = finish(small("llama"));
    let place = file.windows(2).position(|bytes| bytes == b"ab").unwrap();
    file[place] = 0xFF;
    let message = read(&file).unwrap_err().to_string();
    assert!(message.contains("tokenizer.ggml.tokens") && message.contains("is not UTF-8"), "{message}");
}

#[test]
fn a_chat_template_that_is_no_template_is_an_error() {
    let file = finish(with("llama", "tokenizer.chat_template", "{% for %}"));
    let metadata = Gguf::parse(&file).unwrap().metadata().clone();
    assert!(matches!(ChatTemplate::from_gguf(&metadata), Err(Error::ChatTemplate { .. })));
    let file = finish(with("llama", "tokenizer.chat_template", 1u32));
    assert!(ChatTemplate::from_gguf(Gguf::parse(&file).unwrap().metadata()).is_err());
}

/// Any tokens, of any types and scores.
fn any_tokens() -> impl Strategy<Value = Tokens> {
    let text = prop_oneof!["[ab▁<>x0 ]{0,3}", "<0x[0-9A-F]{2}>", Just("<|im_end|>".to_owned()), any::<String>()];
    let token = (text, -1..8i32, prop_oneof![Just(f32::NAN), Just(f32::INFINITY), Just(-0.0), -2f32..2.0]);
    let merges = prop::collection::vec("[ab▁ ]{0,4}", 0..4);
    (prop::collection::vec(token, 0..12), merges).prop_map(|(tokens, merges)| {
        let mut all = Tokens { merges, ..Tokens::default() };
        tokens.into_iter().for_each(|(text, kind, score)| all.add(text, kind, score));
        all
    })
}

proptest! {
    #[test]
    fn no_vocabulary_panics(tokens in any_tokens(), id in 0..14u32, text in "[ab▁<>x0 é]{0,12}") {
        for model in ["llama", "gpt2"] {
            let mut writer = tokens.writer(model);
            writer.metadata("tokenizer.ggml.unknown_token_id", id).unwrap();
            if let Ok(tokenizer) = read(&finish(writer)) {
                for (parse, add) in [(false, false), (true, true)] {
                    if let Ok(ids) = tokenizer.encode(&text, Special { parse, add }) {
                        prop_assert!(tokenizer.decode(&ids).is_ok());
                    }
                }
                prop_assert!((0..tokenizer.len() as u32).all(|id| tokenizer.piece(id).is_ok()));
            }
        }
    }

    #[test]
    fn no_damage_to_a_file_panics(place in any::<prop::sample::Index>(), byte: u8) {
        static FILES: LazyLock<[Vec<u8>; 2]> =
            LazyLock::new(|| [vocabularies::spm(true, false), vocabularies::bpe("llama-bpe")]);
        for mut file in FILES.clone() {
            let place = place.index(file.len());
            file[place] = byte;
            if let Ok(gguf) = Gguf::parse(&file)
                && let Ok(tokenizer) = Tokenizer::from_gguf(gguf.metadata())
            {
                let _ = tokenizer.encode("the other <s> 中", Special { parse: true, add: true });
            }
        }
    }
}
