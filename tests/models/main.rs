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

#[cfg(feature = "candle")]
fn load_on_host(file: &[u8]) -> Model {
    Model::load(&Gguf::parse(file).unwrap(), &Device::Cpu).unwrap()
}

/// On the host, f32 sums of some hundred terms, through a few layers whose norms keep numbers near 1.
const HOST: f64 = 2e-4;

/// On a GPU, matrix units may round each operand to eight bits: some twenty products deep that is sqrt(20) / 256 of a logit, six
/// times over for the worst of a few hundred.
fn tolerance() -> f64 {
    if cube_device().is_software() { HOST } else { 1e-1 }
}

fn assert_near(found: &[f32], expected: &[f64], what: &str) {
    assert_within(found, expected, tolerance(), what);
}

fn assert_within(found: &[f32], expected: &[f64], tolerance: f64, what: &str) {
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

/// In parts, of which the last is a token.
#[cfg(feature = "candle")]
#[test]
fn the_host_gives_the_same_logits() {
    for tiny in Tiny::ALL {
        let model = load_on_host(&tiny.file());
        let mut session = model.session(CONTEXT).unwrap().with_recording();
        session.feed(&TOKENS[..8]).unwrap();
        let logits = session.feed(&TOKENS[8..]).unwrap();
        assert_within(&logits, &Reference::new(&tiny).logits(&TOKENS), HOST, tiny.name);
        session.truncate(8);
        let (id, logit) = session.feed_for_likeliest(&TOKENS[8..]).unwrap();
        assert_eq!((logits[id as usize], logits.iter().copied().fold(f32::MIN, f32::max)), (logit, logit));
    }
}

/// Tokens that threads share.
#[cfg(feature = "candle")]
#[test]
fn the_host_reads_long_prompts() {
    assert_reads_long_prompts(&["llama", "gemma 3", "gpt-oss"], load_on_host, HOST);
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

/// More tokens than a step takes.
fn assert_reads_long_prompts(names: &[&str], load: impl Fn(&[u8]) -> Model, tolerance: f64) {
    for tiny in Tiny::ALL.into_iter().filter(|tiny| names.contains(&tiny.name)) {
        let tiny = Tiny { context: 1024, layers: 1, ..tiny };
        let tokens: Vec<u32> = (0..530).map(|i| i * 7 % VOCABULARY as u32).collect();
        let logits = load(&tiny.file()).session(tokens.len()).unwrap().feed(&tokens).unwrap();
        assert_within(&logits, &Reference::new(&tiny).logits(&tokens), tolerance, tiny.name);
    }
}

/// With a window and without.
#[test]
fn long_prompts_are_read_in_batches() {
    assert_reads_long_prompts(&["llama", "gemma 3"], load, tolerance());
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

/// Two texts, one in two parts of which the last is a token, and the next from its start.
const TEXTS: [&[&[u32]]; 2] = [&[&[3, 17, 0, 39, 22, 8, 8], &[31]], &[&[5, 21, 30, 2, 11]]];

/// A value that is off by at most `t max(1, |x|)` has a square that is off by at most `2t (x^2 + |x|) + t^2 (1 + x^2)`, and `n`
/// magnitudes add up to at most the root of `n` times the sum of their squares (Cauchy and Schwarz).
fn assert_importances(model: &Model, tiny: &Tiny, t: f64) {
    let (mut session, reference) = (model.session(CONTEXT).unwrap().with_importances(), Reference::new(tiny));
    for parts in TEXTS {
        session.truncate(0);
        parts.iter().for_each(|part| drop(session.feed(part).unwrap()));
        reference.logits(&parts.concat());
    }
    let (found, expected) = (session.importances().unwrap(), reference.inputs());
    let names: Vec<&String> = found.iter().map(|entry| &entry.name).collect();
    assert_eq!(names, expected.keys().collect::<Vec<_>>(), "{}", tiny.name);
    // Every matrix of the file is one of them, but for an embedding that gives no logits.
    let matrices = tiny.tensors().into_iter().filter(|(name, shape)| shape.len() > 1 && name.ends_with(".weight"));
    let matrices = matrices.map(|(name, _)| name).filter(|name| tiny.tied || name != "token_embd.weight");
    let mut matrices: Vec<String> = matrices.collect();
    matrices.sort();
    assert_eq!(names, matrices.iter().collect::<Vec<_>>(), "{}", tiny.name);
    for (entry, expected) in found.iter().zip(expected.values()) {
        let what = format!("{}: {}", tiny.name, entry.name);
        assert_eq!(entry.counts, expected.counts, "{what}");
        let columns = entry.sums.len() / entry.counts.len();
        for ((sums, of), &n) in entry.sums.chunks_exact(columns).zip(&expected.sums).zip(&entry.counts) {
            assert_eq!(sums.len(), of.len(), "{what}");
            for (&sum, &of) in sums.iter().zip(of) {
                let n = f64::from(n);
                let near = 2.0 * t * (of + (n * of).sqrt()) + t * t * (n + of);
                assert!((f64::from(sum) - of).abs() <= near, "{what}: {sum} for {of}");
            }
        }
    }
}

#[test]
fn importances_are_the_squares_of_what_the_files_matrices_are_multiplied_by() {
    for tiny in Tiny::ALL {
        assert_importances(&load(&tiny.file()), &tiny, tolerance());
    }
}

#[cfg(feature = "candle")]
#[test]
fn the_host_has_the_same_importances() {
    for tiny in Tiny::ALL {
        assert_importances(&load_on_host(&tiny.file()), &tiny, HOST);
    }
}

/// Loaded, run and dropped, recorded steps and all.
#[test]
fn a_hundred_models_leave_no_memory() {
    let file = Tiny::ALL[0].file();
    let device = cube_device();
    let expected = load(&file).session(CONTEXT).unwrap().feed(&TOKENS).unwrap();
    let use_once = || {
        let model = load(&file);
        let mut session = model.session(CONTEXT).unwrap().with_recording();
        session.feed(&TOKENS[..7]).unwrap();
        session.feed(&TOKENS[7..8]).unwrap();
        assert_eq!(session.feed(&TOKENS[8..]).unwrap().len(), expected.len());
    };
    // Of this thread's stream: other tests have their own.
    let usage = || device.client().memory_report(cubecl::MemoryScope::CurrentStream).usage();
    use_once();
    let before = usage();
    (0..100).for_each(|_| use_once());
    let after = usage();
    let bytes = file.len() as u64;
    assert!(after.bytes_in_use < before.bytes_in_use + bytes, "{before:?}, and of a hundred models {after:?}");
    assert!(after.bytes_reserved < before.bytes_reserved + 50 * bytes, "{before:?}, and of a hundred models {after:?}");
    assert_eq!(load(&file).session(CONTEXT).unwrap().feed(&TOKENS).unwrap(), expected);
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
