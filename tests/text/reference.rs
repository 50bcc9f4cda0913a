//! The encoders against slow and obvious ones, and properties of both kinds.

use std::collections::HashMap;
use std::sync::LazyLock;

use cube_gguf::gguf::Gguf;
use cube_gguf::text::{Detokenizer, Error, Special, Tokenizer};
use proptest::prelude::*;

use crate::vocabularies::{self, byte_character};

fn tokenizer(file: &[u8]) -> Tokenizer {
    Tokenizer::from_gguf(Gguf::parse(file).unwrap().metadata()).unwrap()
}

static SPM: LazyLock<Tokenizer> = LazyLock::new(|| tokenizer(&vocabularies::spm(false, false)));
static SPM_SPACED: LazyLock<Tokenizer> = LazyLock::new(|| tokenizer(&vocabularies::spm(true, false)));
static GPT_2: LazyLock<Tokenizer> = LazyLock::new(|| tokenizer(&vocabularies::bpe("gpt-2")));
static LLAMA_3: LazyLock<Tokenizer> = LazyLock::new(|| tokenizer(&vocabularies::bpe("llama-bpe")));

const PLAIN: Special = Special { parse: false, add: false };
const ADDED: Special = Special { parse: false, add: true };
const ALL: Special = Special { parse: true, add: true };

/// Text of what the vocabularies have tokens for, and of what they have not.
fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![any::<String>(), "[ \n\ttheinoar1234'.▁Ġé中😀]{0,40}", "(<s>|</s>|<mark>|  |the|\n\n|<0x0A>| ){0,10}"]
}

/// Merges, again and again, the first of the neighbours that together have the
/// highest score.
fn spm_by_brute_force(text: &str) -> Vec<u32> {
    static SCORES: LazyLock<HashMap<String, f32>> = LazyLock::new(|| {
        let tokens = vocabularies::spm_tokens();
        tokens.texts.into_iter().zip(tokens.scores).collect()
    });
    let mut symbols: Vec<String> = text.replace(' ', "▁").chars().map(String::from).collect();
    loop {
        let mut best: Option<(f32, usize)> = None;
        for (place, [left, right]) in symbols.array_windows().enumerate() {
            if let Some(&score) = SCORES.get(&format!("{left}{right}"))
                && best.is_none_or(|(found, _)| score > found)
            {
                best = Some((score, place));
            }
        }
        let Some((_, place)) = best else {
            break;
        };
        let right = symbols.remove(place + 1);
        symbols[place].push_str(&right);
    }
    let bytes = |symbol: &String| symbol.bytes().map(|byte| SPM.id(&format!("<0x{byte:02X}>")).unwrap()).collect();
    symbols.iter().flat_map(|symbol| SPM.id(symbol).map_or_else(|| bytes(symbol), |id| vec![id])).collect()
}

/// Merges, again and again, the first of the neighbours that are first in the
/// list of merges.
fn bpe_by_brute_force(word: &str) -> Vec<u32> {
    static RANKS: LazyLock<HashMap<String, usize>> = LazyLock::new(|| {
        let merges = vocabularies::bpe_tokens().merges;
        merges.into_iter().enumerate().map(|(rank, merge)| (merge, rank)).collect()
    });
    let mut symbols: Vec<String> = word.bytes().map(|byte| byte_character(byte).to_string()).collect();
    let rank = |[left, right]: &[String; 2]| RANKS.get(&format!("{left} {right}")).copied();
    loop {
        let pairs = symbols.array_windows().enumerate();
        let Some((_, place)) = pairs.filter_map(|(place, pair)| Some((rank(pair)?, place))).min() else {
            break;
        };
        let right = symbols.remove(place + 1);
        symbols[place].push_str(&right);
    }
    symbols.iter().map(|symbol| GPT_2.id(symbol).unwrap()).collect()
}

/// Whether a text has none of the tokens that are found whether special ones
/// are parsed or not.
fn without_user_defined(text: &str) -> bool {
    ["<mark>", "\n\n", "  ", "<|channel|>"].iter().all(|token| !text.contains(token))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn spm_merges_as_brute_force_does(text in any_text().prop_filter("user-defined", |text| without_user_defined(text))) {
        prop_assert_eq!(SPM.encode(&text, PLAIN).unwrap(), spm_by_brute_force(&text));
    }

    #[test]
    fn bpe_merges_as_brute_force_does(word in "[theinors]{1,30}") {
        prop_assert_eq!(GPT_2.encode(&word, PLAIN).unwrap(), bpe_by_brute_force(&word));
    }

    #[test]
    fn text_comes_back_as_it_was(text in any_text()) {
        for tokenizer in [&GPT_2, &LLAMA_3] {
            prop_assert_eq!(&tokenizer.decode(&tokenizer.encode(&text, PLAIN).unwrap()).unwrap(), &text);
        }
        // What is written as a space comes back as one.
        let spaced = text.replace('▁', " ");
        prop_assert_eq!(&SPM.decode(&SPM.encode(&text, PLAIN).unwrap()).unwrap(), &spaced);
        // After a user-defined token text is given a space of its own.
        if without_user_defined(&text) {
            prop_assert_eq!(&SPM_SPACED.decode(&SPM_SPACED.encode(&text, PLAIN).unwrap()).unwrap(), &spaced);
            prop_assert_eq!(SPM_SPACED.decode(&SPM_SPACED.encode(&text, ADDED).unwrap()).unwrap(), spaced);
        }
    }

    #[test]
    fn the_text_of_tokens_as_they_come_is_the_text_of_all(ids in prop::collection::vec(0..300u32, 0..40)) {
        for tokenizer in [&SPM, &GPT_2] {
            let mut detokenizer = Detokenizer::new(tokenizer);
            let mut text = String::new();
            for &id in &ids {
                text += &detokenizer.push(id).unwrap();
            }
            text += &detokenizer.finish();
            prop_assert_eq!(text, tokenizer.decode(&ids).unwrap());
        }
    }

    #[test]
    fn no_character_is_split_as_its_tokens_come(text in any_text()) {
        for tokenizer in [&SPM, &GPT_2] {
            let mut detokenizer = Detokenizer::new(tokenizer);
            for id in tokenizer.encode(&text, PLAIN).unwrap() {
                let is_whole = !detokenizer.push(id).unwrap().contains(char::REPLACEMENT_CHARACTER);
                prop_assert!(is_whole || text.contains(char::REPLACEMENT_CHARACTER));
            }
        }
    }

    #[test]
    fn no_text_makes_a_token_that_is_not_there(text in any_text()) {
        for tokenizer in [&SPM, &SPM_SPACED, &GPT_2, &LLAMA_3] {
            let ids = tokenizer.encode(&text, ALL).unwrap();
            prop_assert!(ids.iter().all(|&id| (id as usize) < tokenizer.len()));
        }
    }
}

#[test]
fn control_tokens_are_found_only_where_they_are_parsed() {
    let parse = Special { parse: true, add: false };
    for tokenizer in [&SPM, &GPT_2] {
        assert_eq!(tokenizer.encode("<s></s>", parse).unwrap(), [1, 2]);
        assert!(!tokenizer.encode("<s></s>", PLAIN).unwrap().iter().any(|id| [1, 2].contains(id)));
        assert_eq!(tokenizer.decode(&[1, 2]).unwrap(), "");
        assert_eq!(tokenizer.piece(1).unwrap().as_ref(), b"<s>");
    }
}

#[test]
fn tokens_are_added_where_the_model_wants_them() {
    let both = tokenizer(&vocabularies::spm(false, true));
    assert_eq!(both.encode("", ADDED).unwrap(), [1, 2]);
    assert_eq!(SPM.encode("", ADDED).unwrap(), [1]);
    assert_eq!(LLAMA_3.encode("", ADDED).unwrap(), [1]);
    assert_eq!(GPT_2.encode("", ADDED).unwrap(), [] as [u32; 0]);
    assert_eq!(SPM.encode("", PLAIN).unwrap(), [] as [u32; 0]);
}

#[test]
fn what_ends_a_text_is_known_by_its_id_or_its_text() {
    let ends = |text: &str| SPM.is_end(SPM.id(text).unwrap());
    assert!(["</s>", "<|im_end|>", "<end_of_turn>", "<|file_sep|>"].into_iter().all(ends));
    assert!(!["<s>", "<unk>", "<|im_start|>", "<mark>", "the"].into_iter().any(ends));
    assert!(!SPM.is_end(u32::MAX));
    assert_eq!(SPM.eot(), SPM.id("<|im_end|>"));
    assert_eq!([SPM.unknown(), SPM.bos(), SPM.eos(), SPM.eom()], [Some(0), Some(1), Some(2), None]);
}

#[test]
fn an_id_that_is_no_token_is_an_error() {
    let id = SPM.len() as u32;
    assert!(matches!(SPM.decode(&[0, id]), Err(Error::UnknownId { .. })));
    assert!(matches!(SPM.piece(u32::MAX), Err(Error::UnknownId { .. })));
    assert!(matches!(SPM.token(id), Err(Error::UnknownId { .. })));
    let error = Detokenizer::new(&SPM).push(id).unwrap_err().to_string();
    assert_eq!(error, format!("there is no token {id}: the vocabulary has {id} tokens"));
}

#[test]
fn a_long_text_takes_time_in_proportion() {
    let text = "the other theme ".repeat(20_000);
    for tokenizer in [&SPM, &GPT_2] {
        let ids = tokenizer.encode(&text, PLAIN).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }
    // One word without end.
    let word = "theother".repeat(20_000);
    assert_eq!(LLAMA_3.decode(&LLAMA_3.encode(&word, PLAIN).unwrap()).unwrap(), word);
}
