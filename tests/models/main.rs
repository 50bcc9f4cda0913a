//! Language models: tiny random ones, against the formulas of their papers in f64.

#[path = "../burn/cube_device.rs"]
mod cube_device;
mod llama_cpp;
mod reference;
mod tiny;

use cube_device::cube_device;
use cube_gguf::Device;
use cube_gguf::gguf::Gguf;
use cube_gguf::models::{Error, Model};
use reference::Reference;
use tiny::{CONTEXT, Tiny, VOCABULARY};

const TOKENS: [u32; 9] = [3, 17, 0, 39, 22, 8, 8, 31, 5];

fn load(file: &[u8]) -> Model {
    Model::load(&Gguf::parse(file).unwrap(), &Device::Cube(cube_device())).unwrap()
}

/// On the host, f32 sums of some hundred terms, through a few layers whose norms keep numbers near 1. On a GPU, matrix units
/// may round each operand to eight bits: some twenty products deep that is sqrt(20) / 256 of a logit, six times over for the
/// worst of a few hundred.
fn assert_near(found: &[f32], expected: &[f64], what: &str) {
    let tolerance = if cube_device().is_software() { 2e-4 } else { 1e-1 };
    assert_eq!(found.len(), expected.len());
    for (&found, &expected) in found.iter().zip(expected) {
        let near = tolerance * expected.abs().max(1.0);
        assert!((f64::from(found) - expected).abs() < near, "{what}: {found} for {expected}");
    }
}

#[test]
fn logits_are_those_of_the_papers_formulas() {
    for tiny in Tiny::ALL {
        let file = tiny.file();
        let (model, reference) = (load(&file), Reference::new(&tiny));
        let logits = model.session(CONTEXT).unwrap().feed(&TOKENS).unwrap();
        assert_near(&logits, &reference.logits(&TOKENS), tiny.name);
    }
}

/// Candle's products of f32 are the host's, all else is the CPU runtime's.
#[cfg(feature = "candle")]
#[test]
fn products_of_the_host_give_the_same_logits() {
    for tiny in Tiny::ALL.into_iter().filter(|tiny| tiny.fused || tiny.biases || tiny.tied || tiny.experts.is_some()) {
        let file = tiny.file();
        let model = Model::load(&Gguf::parse(&file).unwrap(), &Device::Cpu).unwrap();
        let mut session = model.session(CONTEXT).unwrap();
        session.feed(&TOKENS[..8]).unwrap();
        let logits = session.feed(&TOKENS[8..]).unwrap();
        assert_near(&logits, &Reference::new(&tiny).logits(&TOKENS), tiny.name);
    }
}

#[test]
fn factors_of_short_runs_are_not_those_of_long_ones() {
    let phi = Tiny::ALL.into_iter().find(|tiny| tiny.long_factors).unwrap();
    let file = phi.file();
    let mut reference = Reference::new(&phi);
    reference.capacity = TOKENS.len();
    let logits = load(&file).session(TOKENS.len()).unwrap().feed(&TOKENS).unwrap();
    assert_near(&logits, &reference.logits(&TOKENS), "a short run");
}

/// More tokens than a step takes, with a window and without.
#[test]
fn long_prompts_are_read_in_batches() {
    for tiny in Tiny::ALL.into_iter().filter(|tiny| ["llama", "gemma 3"].contains(&tiny.name)) {
        let tiny = Tiny { context: 1024, layers: 1, ..tiny };
        let file = tiny.file();
        let tokens: Vec<u32> = (0..530).map(|i| i * 7 % VOCABULARY as u32).collect();
        let logits = load(&file).session(tokens.len()).unwrap().feed(&tokens).unwrap();
        assert_near(&logits, &Reference::new(&tiny).logits(&tokens), tiny.name);
    }
}

/// With a window and without: no other part of a model knows how many tokens came before. Burn compiles kernels for each length.
#[test]
fn tokens_in_parts_give_the_logits_of_all_at_once() {
    for tiny in Tiny::ALL.into_iter().filter(|tiny| ["llama", "gemma 3"].contains(&tiny.name)) {
        let file = tiny.file();
        let (model, reference) = (load(&file), Reference::new(&tiny));
        let mut session = model.session(TOKENS.len()).unwrap().with_recording();
        session.feed(&TOKENS[..7]).unwrap();
        for count in 8..=TOKENS.len() {
            let logits = session.feed(&TOKENS[count - 1..count]).unwrap();
            assert_near(&logits, &reference.logits(&TOKENS[..count]), tiny.name);
            session.truncate(count - 1);
            let likeliest = logits
                .iter()
                .copied()
                .enumerate()
                .fold((0, f32::MIN), |best, (id, logit)| if logit > best.1 { (id as u32, logit) } else { best });
            assert_eq!(session.feed_for_likeliest(&TOKENS[count - 1..count]).unwrap(), likeliest);
        }
        assert_eq!((session.len(), session.left()), (TOKENS.len(), 0));
    }
}

#[test]
fn what_a_model_cannot_do_is_an_error() {
    let file = Tiny::ALL[0].file();
    let model = load(&file);
    assert_eq!((model.context(), model.vocabulary()), (CONTEXT, VOCABULARY));
    assert!(matches!(model.session(0), Err(Error::Capacity { capacity: 0, context: CONTEXT })));
    assert!(matches!(model.session(CONTEXT + 1), Err(Error::Capacity { .. })));
    let mut session = model.session(2).unwrap();
    assert!(matches!(session.feed(&[]), Err(Error::NoTokens)));
    assert!(matches!(session.feed(&[1, VOCABULARY as u32]), Err(Error::UnknownToken { .. })));
    assert!(matches!(session.feed(&[1, 2, 3]), Err(Error::ContextFull { tokens: 3, left: 2, capacity: 2 })));
    // What was refused left nothing behind.
    assert!(session.is_empty());
}

#[test]
fn files_that_are_no_models_are_errors_that_name_what_is_missing() {
    let error = |tiny: Tiny| {
        Model::load(&Gguf::parse(&tiny.file()).unwrap(), &Device::Cube(cube_device())).unwrap_err().to_string()
    };
    let llama = Tiny::ALL[0];
    let unknown = error(Tiny { architecture: "abacus", ..llama });
    assert!(unknown.contains("\"abacus\"") && unknown.contains("llama") && unknown.contains("gemma3"), "{unknown}");
    let missing = error(Tiny { without: Some("blk.1.ffn_up.weight"), ..llama });
    assert!(missing.contains("blk.1.ffn_up.weight"), "{missing}");
    let vocabulary = error(Tiny { layers: 0, ..llama });
    assert!(vocabulary.contains("block_count"), "{vocabulary}");
    let shape = error(Tiny { hidden: 64, written_hidden: Some(96), ..llama });
    assert!(shape.contains("blk.0.ffn_gate.weight") && shape.contains("96") && shape.contains("64"), "{shape}");
}
