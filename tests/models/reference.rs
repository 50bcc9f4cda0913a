//! The formulas in f64, one token after the other, without a cache.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

use crate::tiny::{CONTEXT, D_MODEL, MAGNITUDE, ORIGINAL_CONTEXT, Tiny};

type Vector = Vec<f64>;

/// What a tensor was multiplied by: of each of its matrices, the sums of the squares of its columns and the number of rows.
#[derive(Clone, Default)]
pub struct Inputs {
    pub sums: Vec<Vector>,
    pub counts: Vec<u32>,
}

impl Inputs {
    fn add(&mut self, matrix: usize, matrices: usize, x: &[f64]) {
        self.sums.resize(matrices, vec![0.0; x.len()]);
        self.counts.resize(matrices, 0);
        self.sums[matrix].iter_mut().zip(x).for_each(|(sum, x)| *sum += x * x);
        self.counts[matrix] += 1;
    }
}

/// A tiny model in f64.
pub struct Reference<'a> {
    tiny: &'a Tiny,
    tensors: HashMap<String, Vector>,
    /// Tokens that a run has room for.
    pub capacity: usize,
    inputs: RefCell<BTreeMap<String, Inputs>>,
}

impl<'a> Reference<'a> {
    pub fn new(tiny: &'a Tiny) -> Self {
        let values = |(name, shape): (String, Vec<usize>)| {
            let values = Tiny::values(&name, &shape).into_iter().map(f64::from).collect();
            (name, values)
        };
        let mut tensors: HashMap<String, Vector> = tiny.tensors().into_iter().map(values).collect();
        let (queries, kv) = (tiny.heads * tiny.head, tiny.kv_heads * tiny.head);
        for i in (0..tiny.layers).filter(|_| tiny.fused) {
            let mut split = |whole: &str, parts: &[(&str, usize)]| {
                let name = |part: &str| format!("blk.{i}.{part}.weight");
                let mut rest = tensors.remove(&name(whole)).unwrap();
                for (part, rows) in parts {
                    let others = rest.split_off(rows * D_MODEL);
                    tensors.insert(name(part), std::mem::replace(&mut rest, others));
                }
            };
            split("attn_qkv", &[("attn_q", queries), ("attn_k", kv), ("attn_v", kv)]);
            split("ffn_up", &[("ffn_gate", tiny.hidden), ("ffn_up", tiny.hidden)]);
        }
        Self { tiny, tensors, capacity: CONTEXT, inputs: RefCell::default() }
    }

    /// What the file's tensors were multiplied by.
    pub fn inputs(&self) -> BTreeMap<String, Inputs> {
        let mut inputs = self.inputs.borrow().clone();
        let names: Vec<String> = inputs.keys().filter(|_| self.tiny.fused).cloned().collect();
        // The parts of a matrix are multiplied by the same rows, and the file has the whole.
        for name in names {
            let part = name.split('.').nth(2).unwrap_or_default();
            match part {
                "attn_q" => {
                    let whole = inputs.remove(&name).unwrap();
                    inputs.insert(name.replace("attn_q", "attn_qkv"), whole);
                }
                "attn_k" | "attn_v" | "ffn_gate" => drop(inputs.remove(&name)),
                _ => {}
            }
        }
        inputs
    }

    /// The logits after the last token.
    pub fn logits(&self, tokens: &[u32]) -> Vector {
        let gemma = self.tiny.architecture.starts_with("gemma");
        let scale = if gemma { (D_MODEL as f64).sqrt() } else { 1.0 };
        let table = &self.tensors["token_embd.weight"];
        let row = |&id: &u32| table[id as usize * D_MODEL..][..D_MODEL].iter().map(|x| x * scale).collect();
        let mut xs: Vec<Vector> = tokens.iter().map(row).collect();
        for i in 0..self.tiny.layers {
            let name = |part: &str| format!("blk.{i}.{part}");
            let normed: Vec<Vector> = xs.iter().map(|x| self.norm(&name("attn_norm"), x)).collect();
            let seen = self.attention(i, &normed);
            self.add(&mut xs, seen, &name("post_attention_norm"));
            let norm = name(if self.tiny.gpt_oss { "post_attention_norm" } else { "ffn_norm" });
            let fed = xs.iter().map(|x| self.feed_forward(i, &self.norm(&norm, x))).collect();
            self.add(&mut xs, fed, &name("post_ffw_norm"));
        }
        let output = if self.tiny.tied { "token_embd" } else { "output" };
        let logits = xs.iter().map(|x| self.linear(output, &self.norm("output_norm", x))).last().unwrap();
        logits.into_iter().map(|logit| self.capped(logit, 1)).collect()
    }

    fn add(&self, xs: &mut [Vector], outs: Vec<Vector>, norm: &str) {
        for (x, out) in xs.iter_mut().zip(outs) {
            let out = if self.tiny.after_norms { self.norm(norm, &out) } else { out };
            x.iter_mut().zip(out).for_each(|(x, out)| *x += out);
        }
    }

    fn linear(&self, name: &str, x: &[f64]) -> Vector {
        let tensor = format!("{name}.weight");
        self.inputs.borrow_mut().entry(tensor.clone()).or_default().add(0, 1, x);
        let weights = &self.tensors[&tensor];
        let bias = self.tensors.get(&format!("{name}.bias"));
        let dot = |row: &[f64]| row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
        let products = weights.chunks_exact(x.len()).map(dot).enumerate();
        products.map(|(i, y)| y + bias.map_or(0.0, |bias| bias[i])).collect()
    }

    /// The product with one of a stack of experts.
    fn expert(&self, name: &str, expert: usize, experts: usize, x: &[f64]) -> Vector {
        let tensor = format!("{name}.weight");
        self.inputs.borrow_mut().entry(tensor.clone()).or_default().add(expert, experts, x);
        let stack = &self.tensors[&tensor];
        let rows = stack.len() / experts / x.len();
        let scale = self.tensors.get(&format!("{name}.scale")).map_or(1.0, |scales| scales[expert]);
        let bias = self.tensors.get(&format!("{name}.bias"));
        let product = |row: usize| {
            let row = expert * rows + row;
            let sum: f64 = stack[row * x.len()..][..x.len()].iter().zip(x).map(|(w, x)| w * x).sum();
            sum * scale + bias.map_or(0.0, |bias| bias[row])
        };
        (0..rows).map(product).collect()
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vector {
        let weights = &self.tensors[&format!("{name}.weight")];
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        x.iter().zip(weights).map(|(x, w)| x / (mean + 1e-6f32 as f64).sqrt() * w).collect()
    }

    /// Heads of a projection of a token, normed and turned where they are.
    fn heads(&self, layer: usize, part: &str, x: &[f64], position: usize) -> Vec<Vector> {
        let heads = self.linear(&format!("blk.{layer}.attn_{part}"), x);
        let head = |head: &[f64]| match part {
            "v" => head.to_vec(),
            _ if self.tiny.head_norms => {
                self.turned(layer, &self.norm(&format!("blk.{layer}.attn_{part}_norm"), head), position)
            }
            _ => self.turned(layer, head, position),
        };
        heads.chunks_exact(self.tiny.head).map(head).collect()
    }

    fn sees_all(&self, layer: usize) -> bool {
        let pattern = if ["gemma2", "gpt-oss"].contains(&self.tiny.architecture) { 2 } else { 6 };
        self.tiny.window.is_none() || (layer + 1).is_multiple_of(pattern)
    }

    /// A score (0) or a logit (1) within its cap.
    fn capped(&self, value: f64, of: usize) -> f64 {
        self.tiny.softcaps.map_or(value, |caps| f64::from(caps[of]) * (value / f64::from(caps[of])).tanh())
    }

    fn turned(&self, layer: usize, x: &[f64], position: usize) -> Vector {
        let half = x.len() / 2;
        let base = if self.sees_all(layer) || self.tiny.gpt_oss { f64::from(self.tiny.base) } else { 10_000.0 };
        let long = if self.capacity > ORIGINAL_CONTEXT { "long" } else { "short" };
        let factors = ["rope_freqs.weight".to_owned(), format!("rope_factors_{long}.weight")];
        let factors = factors.iter().find_map(|name| self.tensors.get(name));
        let scaling = self.tiny.factor.map_or(1.0, f64::from);
        let magnitude = match () {
            () if self.tiny.yarn => 1.0 + 0.1 * scaling.ln(),
            () if self.tiny.long_factors => f64::from(MAGNITUDE),
            () => 1.0,
        };
        let mut out = x.to_vec();
        for pair in 0..half {
            let share = if self.tiny.yarn { yarn_share(pair, x.len(), base) } else { 1.0 };
            let factor = factors.map_or(1.0, |factors| factors[pair]);
            let plain = base.powf(-2.0 * pair as f64 / x.len() as f64);
            let angle = position as f64 * (plain / scaling * share + plain * (1.0 - share)) / factor;
            let (a, b) = if self.tiny.architecture == "llama" { (2 * pair, 2 * pair + 1) } else { (pair, pair + half) };
            out[a] = magnitude * (x[a] * angle.cos() - x[b] * angle.sin());
            out[b] = magnitude * (x[a] * angle.sin() + x[b] * angle.cos());
        }
        out
    }

    fn attention(&self, layer: usize, xs: &[Vector]) -> Vec<Vector> {
        let of = |part: &str| -> Vec<Vec<Vector>> {
            xs.iter().enumerate().map(|(position, x)| self.heads(layer, part, x, position)).collect()
        };
        let (q, k, v) = (of("q"), of("k"), of("v"));
        let window = self.tiny.window.filter(|_| !self.sees_all(layer)).unwrap_or(usize::MAX);
        let token = |position: usize| {
            let mut all = Vec::new();
            for head in 0..self.tiny.heads {
                let shared = head / (self.tiny.heads / self.tiny.kv_heads);
                let seen: Vec<usize> = (0..=position).filter(|&key| position - key < window).collect();
                let score = |&key: &usize| {
                    let dot: f64 = q[position][head].iter().zip(&k[key][shared]).map(|(q, k)| q * k).sum();
                    self.capped(dot / (self.tiny.head as f64).sqrt(), 0).exp()
                };
                let scores: Vector = seen.iter().map(score).collect();
                let sink =
                    self.tensors.get(&format!("blk.{layer}.attn_sinks.weight")).map_or(0.0, |sinks| sinks[head].exp());
                let sum = scores.iter().sum::<f64>() + sink;
                let value =
                    |i: usize| seen.iter().zip(&scores).map(|(&key, w)| w / sum * v[key][shared][i]).sum::<f64>();
                all.extend((0..self.tiny.head).map(value));
            }
            self.linear(&format!("blk.{layer}.attn_output"), &all)
        };
        (0..xs.len()).map(token).collect()
    }

    fn feed_forward(&self, layer: usize, x: &[f64]) -> Vector {
        let name = |part: &str| format!("blk.{layer}.ffn_{part}");
        if let Some((_, slots)) = self.tiny.experts {
            let logits = self.linear(&name("gate_inp"), x);
            let mut order: Vec<usize> = (0..logits.len()).collect();
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
            let chosen = &order[..slots];
            let all: f64 = chosen.iter().map(|&expert| logits[expert].exp()).sum();
            let mut out = vec![0.0; D_MODEL];
            for &expert in chosen {
                let of = |part: &str, x: &[f64]| self.expert(&name(part), expert, logits.len(), x);
                let (gate, up) = (of("gate_exps", x), of("up_exps", x));
                let gated = gate.into_iter().zip(up).map(|(gate, up)| match self.tiny.gpt_oss {
                    true => {
                        let gate = gate.min(7.0);
                        gate / (1.0 + (-1.702 * gate).exp()) * (up.clamp(-7.0, 7.0) + 1.0)
                    }
                    false => gate / (1.0 + (-gate).exp()) * up,
                });
                let weight = logits[expert].exp() / all;
                let down = of("down_exps", &gated.collect::<Vector>());
                out.iter_mut().zip(down).for_each(|(out, down)| *out += weight * down);
            }
            return out;
        }
        let activation = |x: f64| match self.tiny.architecture {
            "gemma2" | "gemma3" => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                0.5 * x * (1.0 + inner.tanh())
            }
            _ => x / (1.0 + (-x).exp()),
        };
        let (gate, up) = (self.linear(&name("gate"), x), self.linear(&name("up"), x));
        let hidden: Vector = gate.into_iter().zip(up).map(|(gate, up)| activation(gate) * up).collect();
        self.linear(&name("down"), &hidden)
    }
}

/// How much of a pair YaRN scales: nothing of what turns 32 times or more in the original context, all of what turns once.
fn yarn_share(pair: usize, dims: usize, base: f64) -> f64 {
    let turns_at = |turns: f64| {
        let wavelength = ORIGINAL_CONTEXT as f64 / (2.0 * std::f64::consts::PI * turns);
        dims as f64 * wavelength.ln() / (2.0 * base.ln())
    };
    let (low, high) = (turns_at(32.0).floor().max(0.0), turns_at(1.0).ceil().min(dims as f64 - 1.0));
    ((pair as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0)
}
