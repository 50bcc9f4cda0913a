//! Candle's models give the same with this crate's tensors as with Candle's: tiny random ones, in Q8_0.

#[path = "../../../tests/models/tiny.rs"]
#[allow(dead_code, reason = "the models' own tests have more to write")]
mod tiny;

use std::io::Cursor;

use candle_core::{D, DType, Device, Tensor};
use candle_models::{ours, theirs};
use cube_gguf::candle::QTensor;
use cube_gguf::gguf::{GgmlType, Gguf, Writer};
use cube_gguf::models::Model;
use tiny::{D_MODEL, Tiny, VOCABULARY};

const PROMPT: [u32; 5] = [3, 17, 0, 39, 22];
/// Tokens to generate.
const COUNT: usize = 8;

fn tiny(name: &str) -> Tiny {
    Tiny::ALL.into_iter().find(|tiny| tiny.name == name).unwrap()
}

/// A file of tensors, of which matrices are Q8_0, with metadata of `from` and `more`.
fn file(from: &[u8], tensors: &[(String, Vec<usize>)], more: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let from = Gguf::parse(from).unwrap();
    let mut writer = Writer::new();
    for (key, value) in from.metadata().iter() {
        writer.value(key, value).unwrap();
    }
    more(&mut writer);
    let ty = |shape: &[usize]| match shape {
        [_, .., k] if k.is_multiple_of(32) => GgmlType::Q8_0,
        _ => GgmlType::F32,
    };
    for (name, shape) in tensors {
        let dims: Vec<u64> = shape.iter().rev().map(|&extent| extent as u64).collect();
        writer.tensor(name, &dims, ty(shape)).unwrap();
    }
    let mut data = writer.begin(Vec::new()).unwrap();
    for (name, shape) in tensors {
        let values = Tensor::from_vec(Tiny::values(name, shape), shape.as_slice(), &Device::Cpu).unwrap();
        data.data(&QTensor::quantize_onto(&values, ty(shape), &cube_gguf::Device::Cpu).unwrap().data().unwrap())
            .unwrap();
    }
    data.finish().unwrap()
}

fn file_of(tiny: &Tiny, more: impl FnOnce(&mut Writer)) -> Vec<u8> {
    file(&tiny.file(), &tiny.tensors(), more)
}

fn number(writer: &mut Writer, key: &str, value: u32) {
    writer.metadata(key, value).unwrap();
}

/// The likeliest tokens one after the other, and the logits of each step. `forward` takes tokens at a position.
fn generate(mut forward: impl FnMut(&Tensor, usize) -> candle_core::Result<Tensor>) -> (Vec<u32>, Vec<Vec<f32>>) {
    let (mut tokens, mut all, mut position) = (PROMPT.to_vec(), Vec::new(), 0);
    let mut generated = Vec::new();
    while generated.len() < COUNT {
        let x = Tensor::new(&tokens[..], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let logits = forward(&x, position).unwrap().flatten_all().unwrap();
        position += tokens.len();
        tokens = vec![logits.argmax(D::Minus1).unwrap().to_scalar().unwrap()];
        generated.extend(&tokens);
        all.push(logits.to_vec1().unwrap());
    }
    (generated, all)
}

/// On the host both have Candle's products; a device of CubeCL's rounds activations in other places.
fn assert_same(theirs: (Vec<u32>, Vec<Vec<f32>>), ours: (Vec<u32>, Vec<Vec<f32>>)) {
    if cube_gguf::candle::default_device().unwrap() == cube_gguf::Device::Cpu {
        assert_eq!(ours, theirs);
    }
    assert_near(&ours.1[0], &theirs.1[0]);
}

/// Codes of seven bits, some twenty products deep: sqrt(20) / 256 of a logit, three times over for the worst of forty.
fn assert_near(found: &[f32], expected: &[f32]) {
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= 0.05 * expected.abs().max(1.0), "{found} for {expected}");
    }
}

/// The same of a model through both imports: `from_gguf` of its module, and what comes before and after its first arguments.
macro_rules! through_both {
    ($module:ident :: $model:ident, $file:expr, [$($before:expr),*], [$($after:expr),*]) => {{
        let file = $file;
        let load = Cursor::new(&file[..]);
        let content = candle_core::quantized::gguf_file::Content::read(&mut load.clone()).unwrap();
        let model = theirs::models::$module::$model::from_gguf($($before,)* content, &mut load.clone() $(, $after)*);
        let mut model = model.unwrap();
        let expected = generate(|x, position| model.forward(x, position));
        let content = cube_gguf::candle::gguf_file::Content::read(&mut load.clone()).unwrap();
        let model = ours::models::$module::$model::from_gguf($($before,)* content, &mut load.clone() $(, $after)*);
        let mut model = model.unwrap();
        assert_same(expected, generate(|x, position| model.forward(x, position)));
    }};
}

#[test]
fn llama() {
    let with_dims = |writer: &mut Writer| number(writer, "llama.rope.dimension_count", 16);
    through_both!(quantized_llama::ModelWeights, file_of(&tiny("llama"), with_dims), [], [&Device::Cpu]);
}

#[test]
fn gemma_3() {
    through_both!(quantized_gemma3::ModelWeights, file_of(&tiny("gemma 3"), |_| ()), [], [&Device::Cpu]);
}

#[test]
fn qwen_3() {
    through_both!(quantized_qwen3::ModelWeights, file_of(&tiny("qwen 3"), |_| ()), [], [&Device::Cpu]);
}

#[test]
fn phi_3() {
    let phi = Tiny { long_factors: false, ..tiny("phi 3") };
    let with_dims = |writer: &mut Writer| number(writer, "phi3.rope.dimension_count", 16);
    through_both!(quantized_phi3::ModelWeights, file_of(&phi, with_dims), [false], [&Device::Cpu]);
}

/// Candle's product of experts is CUDA's alone: this crate's own model says what is right.
#[test]
fn qwen_3_mixture() {
    let file = file_of(&Tiny { scales: false, ..tiny("qwen 3 mixture") }, |_| ());
    let mut load = Cursor::new(&file[..]);
    let content = cube_gguf::candle::gguf_file::Content::read(&mut load).unwrap();
    let model = ours::models::quantized_qwen3_moe::GGUFQWenMoE::from_gguf(content, &mut load, &Device::Cpu, DType::F32);
    let mut model = model.unwrap();
    let found = generate(|x, position| model.forward(x, position));
    let model = Model::load(&Gguf::parse(&file).unwrap(), &cube_gguf::Device::Cpu).unwrap();
    let mut session = model.session(PROMPT.len() + COUNT).unwrap();
    let expected = generate(|x, _| Tensor::new(session.feed(&x.flatten_all()?.to_vec1()?).unwrap(), &Device::Cpu));
    assert_eq!(found.0, expected.0);
    assert_near(&found.1[0], &expected.1[0]);
}

const T5_LAYERS: usize = 2;
const T5_HEADS: usize = 4;
const T5_BUCKETS: usize = 32;

/// A T5 in the names of its checkpoints.
fn t5() -> Vec<u8> {
    let mut tensors = vec![("shared.weight".to_owned(), vec![VOCABULARY, D_MODEL])];
    for (stack, feed_forward) in [("encoder", 1), ("decoder", 2)] {
        for i in 0..T5_LAYERS {
            let mut add = |name: &str, shape: &[usize]| {
                tensors.push((format!("{stack}.block.{i}.layer.{name}.weight"), shape.to_vec()));
            };
            for attention in ["0.SelfAttention", "1.EncDecAttention"].iter().take(feed_forward) {
                ["q", "k", "v", "o"].iter().for_each(|part| add(&format!("{attention}.{part}"), &[D_MODEL, D_MODEL]));
            }
            if i == 0 {
                add("0.SelfAttention.relative_attention_bias", &[T5_BUCKETS, T5_HEADS]);
            }
            (0..=feed_forward).for_each(|part| add(&format!("{part}.layer_norm"), &[D_MODEL]));
            let part = |name: &str| format!("{feed_forward}.DenseReluDense.{name}");
            ["wi_0", "wi_1"].iter().for_each(|name| add(&part(name), &[2 * D_MODEL, D_MODEL]));
            add(&part("wo"), &[D_MODEL, 2 * D_MODEL]);
        }
        tensors.push((format!("{stack}.final_layer_norm.weight"), vec![D_MODEL]));
    }
    tensors.push(("lm_head.weight".to_owned(), vec![VOCABULARY, D_MODEL]));
    let nothing = Writer::new().begin(Vec::new()).unwrap().finish().unwrap();
    file(&nothing, &tensors, |_| ())
}

#[test]
fn t5_of_both() {
    let config = serde_json::json!({
        "vocab_size": VOCABULARY, "d_model": D_MODEL, "d_kv": D_MODEL / T5_HEADS, "d_ff": 2 * D_MODEL,
        "num_layers": T5_LAYERS, "num_heads": T5_HEADS, "relative_attention_num_buckets": T5_BUCKETS,
        "dropout_rate": 0.0, "layer_norm_epsilon": 1e-6, "initializer_factor": 1.0,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": false, "is_encoder_decoder": true,
        "use_cache": true, "pad_token_id": 0, "eos_token_id": 1,
    });
    let file = t5();
    macro_rules! of {
        ($transformers:ident) => {{
            let vb = $transformers::quantized_var_builder::VarBuilder::from_gguf_buffer(&file, &Device::Cpu).unwrap();
            let config = serde_json::from_value(config.clone()).unwrap();
            let model = $transformers::models::quantized_t5::T5ForConditionalGeneration::load(vb, &config);
            let mut model = model.unwrap();
            let read = model.encode(&Tensor::new(&[PROMPT], &Device::Cpu).unwrap()).unwrap();
            generate(|x, _| model.decode(x, &read))
        }};
    }
    assert_same(of!(theirs), of!(ours));
}
