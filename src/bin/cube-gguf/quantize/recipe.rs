//! The types of a model's tensors by a recipe's name: those that llama.cpp picks (`src/llama-quant.cpp`).

use std::str::FromStr;

use cube_gguf::GgmlType;
use cube_gguf::gguf::Metadata;

use GgmlType::{
    F16, IQ1M, IQ1S, IQ2S, IQ2XS, IQ2XXS, IQ3S, IQ3XXS, IQ4NL, IQ4XS, MXFP4, Q2K, Q3K, Q4_0, Q4K, Q5_0, Q5_1, Q5K, Q6K,
    Q8_0,
};

/// What a model is quantized to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// The type of most tensors.
    ty: GgmlType,
    mix: Mix,
}

/// Which tensors have another type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mix {
    /// Output and embedding, and where it says so few others: the recipe that is named after its type.
    Plain,
    Small,
    Medium,
    Large,
    /// MXFP4 for stacks of experts, Q8_0 for the others.
    Experts,
}

/// The recipes' names, and their numbers in `general.file_type` (`enum llama_ftype` in `include/llama.h`).
const RECIPES: &[(&str, GgmlType, Mix, u32)] = &[
    ("F32", GgmlType::F32, Mix::Plain, 0),
    ("F16", F16, Mix::Plain, 1),
    ("BF16", GgmlType::BF16, Mix::Plain, 32),
    ("Q4_0", Q4_0, Mix::Plain, 2),
    ("Q4_1", GgmlType::Q4_1, Mix::Plain, 3),
    ("Q5_0", Q5_0, Mix::Plain, 8),
    ("Q5_1", Q5_1, Mix::Plain, 9),
    ("Q8_0", Q8_0, Mix::Plain, 7),
    ("Q2_K", Q2K, Mix::Plain, 10),
    ("Q2_K_S", Q2K, Mix::Small, 21),
    ("Q3_K", Q3K, Mix::Medium, 12),
    ("Q3_K_S", Q3K, Mix::Small, 11),
    ("Q3_K_M", Q3K, Mix::Medium, 12),
    ("Q3_K_L", Q3K, Mix::Large, 13),
    ("Q4_K", Q4K, Mix::Medium, 15),
    ("Q4_K_S", Q4K, Mix::Small, 14),
    ("Q4_K_M", Q4K, Mix::Medium, 15),
    ("Q5_K", Q5K, Mix::Medium, 17),
    ("Q5_K_S", Q5K, Mix::Small, 16),
    ("Q5_K_M", Q5K, Mix::Medium, 17),
    ("Q6_K", Q6K, Mix::Plain, 18),
    ("IQ1_S", IQ1S, Mix::Plain, 24),
    ("IQ1_M", IQ1M, Mix::Plain, 31),
    ("IQ2_XXS", IQ2XXS, Mix::Plain, 19),
    ("IQ2_XS", IQ2XS, Mix::Plain, 20),
    // Named after the types of some of its tensors.
    ("IQ2_S", IQ2XS, Mix::Small, 28),
    ("IQ2_M", IQ2S, Mix::Medium, 29),
    ("IQ3_XXS", IQ3XXS, Mix::Plain, 23),
    ("IQ3_XS", IQ3S, Mix::Small, 22),
    ("IQ3_S", IQ3S, Mix::Plain, 26),
    ("IQ3_M", IQ3S, Mix::Medium, 27),
    ("IQ4_NL", IQ4NL, Mix::Plain, 25),
    ("IQ4_XS", IQ4XS, Mix::Plain, 30),
    ("TQ1_0", GgmlType::TQ1_0, Mix::Plain, 36),
    ("TQ2_0", GgmlType::TQ2_0, Mix::Plain, 37),
    ("MXFP4_MOE", MXFP4, Mix::Experts, 38),
    ("NVFP4", GgmlType::NVFP4, Mix::Plain, 39),
    ("Q1_0", GgmlType::Q1_0, Mix::Plain, 40),
    ("Q2_0", GgmlType::Q2_0, Mix::Plain, 41),
];

impl FromStr for Recipe {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = RECIPES.iter().find(|recipe| recipe.0.eq_ignore_ascii_case(name));
        let names = || RECIPES.iter().map(|recipe| recipe.0).collect::<Vec<_>>().join(", ");
        let &(_, ty, mix, _) = found.ok_or_else(|| format!("no type to quantize to: those are {}", names()))?;
        Ok(Self { ty, mix })
    }
}

impl Recipe {
    /// The recipe's number in a file.
    pub fn file_type(self) -> u32 {
        RECIPES.iter().find(|&&(_, ty, mix, _)| (ty, mix) == (self.ty, self.mix)).map_or(0, |recipe| recipe.3)
    }

    /// Whether a matrix of this type takes importances, or too little is left of a model: so llama.cpp decides, which has them for
    /// embeddings and outputs in no case. Some formats have no quantizer without.
    pub fn needs_imatrix(self, name: &str, ty: GgmlType) -> bool {
        let is_low = matches!(ty, IQ1M | IQ2S | IQ3XXS) || ty == Q2K && self.is(Q2K, Mix::Small);
        let is_looked_up = matches!(Place::of(name), Place::Output | Place::Embedding);
        matches!(ty, IQ1S | IQ2XXS | IQ2XS) || is_low && !is_looked_up
    }

    /// Whether most of its tensors have two bits or less a weight, of a grid.
    fn is_low(self) -> bool {
        matches!(self.ty, IQ1S | IQ1M | IQ2XXS | IQ2XS | IQ2S)
    }

    fn is(self, ty: GgmlType, mix: Mix) -> bool {
        (self.ty, self.mix) == (ty, mix)
    }
}

/// What of a model bears on the types of its tensors.
#[derive(Clone, Debug, Default)]
pub struct Model {
    is_falcon: bool,
    layers: usize,
    experts: usize,
    /// Heads of queries for each of keys and values.
    heads_per_kv: usize,
    is_large: bool,
    /// Values' matrices, alone or with queries and keys.
    values: usize,
    has_output: bool,
}

impl Model {
    /// Of a file, by its metadata and the names of its tensors.
    pub fn of<'a>(metadata: &Metadata<'_>, names: impl Iterator<Item = &'a str>) -> Self {
        let architecture = metadata.value::<&str>("general.architecture").unwrap_or_default();
        // Some models have a number for each layer.
        let number = |key: &str| {
            let key = format!("{architecture}.{key}");
            let first = || metadata.elements::<u32>(&key).ok()?.next()?.ok();
            metadata.value::<u32>(&key).ok().or_else(first).map(|number| number as usize)
        };
        let layers = number("block_count").unwrap_or(0);
        let heads = number("attention.head_count").unwrap_or(0);
        let kv = number("attention.head_count_kv").unwrap_or(heads);
        let places: Vec<_> = names.map(Place::of).collect();
        Self {
            is_falcon: architecture == "falcon",
            layers,
            experts: number("expert_count").unwrap_or(0),
            heads_per_kv: heads.checked_div(kv).unwrap_or(0),
            is_large: layers == 80 && kv != heads && ["llama", "deci", "olmo", "qwen2"].contains(&architecture),
            values: places.iter().filter(|place| place.has_values()).count(),
            has_output: places.contains(&Place::Output),
        }
    }
}

/// What a tensor is for, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Output,
    Embedding,
    /// Queries, keys and values in one.
    Qkv,
    KvB,
    Values,
    Keys,
    Queries,
    AttentionOutput,
    Up,
    Gate,
    Down,
    Other,
}

impl Place {
    fn of(name: &str) -> Self {
        const PARTS: [(&str, Place); 9] = [
            ("attn_qkv.weight", Place::Qkv),
            ("attn_kv_b.weight", Place::KvB),
            ("attn_v.weight", Place::Values),
            ("attn_k.weight", Place::Keys),
            ("attn_q.weight", Place::Queries),
            ("attn_output.weight", Place::AttentionOutput),
            ("ffn_up", Place::Up),
            ("ffn_gate", Place::Gate),
            ("ffn_down", Place::Down),
        ];
        match name {
            "output.weight" => Self::Output,
            "token_embd.weight" | "per_layer_token_embd.weight" => Self::Embedding,
            _ => PARTS.iter().find(|(part, _)| name.contains(part)).map_or(Self::Other, |&(_, place)| place),
        }
    }

    fn has_values(self) -> bool {
        matches!(self, Self::Qkv | Self::KvB | Self::Values)
    }
}

/// Parts of the names of matrices that stay as they are: small ones, those that choose experts, positions.
const KEPT: [&str; 33] = [
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "position_embd.weight",
    "token_types.weight",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    "sam.",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "codebook",
];

/// Whether a tensor is quantized at all. `dims` has its extents, the length of its rows first.
pub fn is_quantized(name: &str, dims: &[u64]) -> bool {
    let dimensions = dims.iter().rposition(|&extent| extent != 1).map_or(1, |last| last + 1);
    dimensions >= 2 && name.ends_with("weight") && !KEPT.iter().any(|part| name.contains(part))
}

/// The types of a model's tensors, asked one after the other in the order of the file.
pub struct Types {
    recipe: Recipe,
    model: Model,
    has_imatrix: bool,
    /// Matrices seen so far.
    values: usize,
    downs: usize,
    gates: usize,
    ups: usize,
}

impl Types {
    pub fn new(recipe: Recipe, model: Model, has_imatrix: bool) -> Self {
        Self { recipe, model, has_imatrix, values: 0, downs: 0, gates: 0, ups: 0 }
    }

    /// The type of the next matrix that [is quantized](is_quantized).
    pub fn next(&mut self, name: &str, dims: &[u64]) -> GgmlType {
        let ty = self.recipe.ty;
        // The types of floats have no recipes, nor has what llama.cpp has not.
        let picked = if ty.block_size() == 1 { ty } else { self.pick(name, dims) };
        fallback(picked, dims[0])
    }

    fn pick(&mut self, name: &str, dims: &[u64]) -> GgmlType {
        let Self { recipe, ref model, .. } = *self;
        let place = Place::of(name);
        if place == Place::Output || place == Place::Embedding && !model.has_output {
            return match recipe.ty {
                _ if recipe.mix == Mix::Experts || model.is_falcon => Q8_0,
                ty if !dims[0].is_multiple_of(ty.block_size() as u64) => Q8_0,
                Q8_0 => Q8_0,
                IQ3XXS => Q5K,
                _ if recipe.is_low() => Q5K,
                _ => Q6K,
            };
        }
        if recipe.mix == Mix::Experts {
            return if dims.get(2).is_some_and(|&experts| experts > 1) { MXFP4 } else { Q8_0 };
        }
        match (place, recipe.ty, recipe.mix) {
            (Place::Embedding, GgmlType::TQ1_0 | GgmlType::TQ2_0 | GgmlType::Q2_0, _) => Q4K,
            (Place::Embedding, IQ3XXS, _) => IQ3S,
            (Place::Embedding, ..) if recipe.is_low() => self.above_low(),
            _ if recipe.is_low() => self.of_low(place),
            _ if place.has_values() => self.of_values(),
            (Place::Keys, ..) if model.experts == 8 => Q8_0,
            (Place::Keys | Place::Queries, IQ3S, Mix::Small) => IQ3XXS,
            (Place::Keys | Place::Queries, IQ3XXS, _) => IQ2S,
            (Place::Down, ..) => self.of_down(name),
            (Place::Gate | Place::Up, ..) => self.of_gate_or_up(place, name),
            (Place::AttentionOutput, ..) => self.of_attention_output(),
            (_, ty, _) => ty,
        }
    }

    /// What more sensitive matrices of a recipe of low bits have.
    fn above_low(&self) -> GgmlType {
        if self.recipe.mix == Mix::Plain { Q2K } else { IQ3S }
    }

    /// The type of a matrix of a recipe of low bits.
    fn of_low(&mut self, place: Place) -> GgmlType {
        let Self { recipe, ref model, .. } = *self;
        match place {
            place if place.has_values() && (model.heads_per_kv >= 4 || model.experts >= 4) => Q4K,
            place if place.has_values() => self.above_low(),
            Place::Keys if model.experts == 8 => Q4K,
            Place::Down => {
                self.downs += 1;
                if self.downs <= model.layers / 8 { self.above_low() } else { recipe.ty }
            }
            Place::AttentionOutput if model.experts == 8 => Q5K,
            Place::AttentionOutput if matches!(recipe.ty, IQ1S | IQ1M) => IQ2XXS,
            Place::AttentionOutput if recipe.mix != Mix::Plain => IQ3S,
            _ => recipe.ty,
        }
    }

    /// Whether a layer of so many has more bits: the first and the last eighth, and of the others every third.
    fn has_more_bits(layer: usize, layers: usize) -> bool {
        layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2
    }

    fn of_values(&mut self) -> GgmlType {
        let Self { recipe, ref model, .. } = *self;
        let (layer, layers) = (self.values, model.values);
        self.values += 1;
        let is_shared = model.heads_per_kv >= 4;
        let ty = match (recipe.ty, recipe.mix) {
            (Q2K, Mix::Plain) => {
                if is_shared {
                    Q4K
                } else {
                    Q3K
                }
            }
            (Q2K, Mix::Small) if is_shared => Q4K,
            (Q3K, Mix::Medium) => {
                if layer < 2 {
                    Q5K
                } else {
                    Q4K
                }
            }
            (Q3K, Mix::Large) => Q5K,
            (Q4K | Q5K, Mix::Medium) if Self::has_more_bits(layer, layers) => Q6K,
            (Q4K, Mix::Small) if layer < 4 => Q5K,
            (IQ4NL | IQ4XS, _) if is_shared => Q5K,
            (IQ3XXS | IQ3S, _) if is_shared => Q4K,
            (IQ3XXS, _) if !self.has_imatrix => IQ3S,
            (IQ3S, Mix::Medium) => Q4K,
            (ty, _) => ty,
        };
        match ty {
            _ if model.experts == 8 => Q8_0,
            Q3K | Q4K if model.is_large => Q5K,
            ty => ty,
        }
    }

    /// A matrix's layer where `seen` came before it.
    fn layer(&self, name: &str, seen: usize) -> usize {
        let named = || name.strip_prefix("blk.")?.split('.').next()?.parse().ok();
        // Experts of one layer may be several tensors.
        if self.model.experts > 1 { named().unwrap_or(seen) } else { seen }
    }

    fn of_gate_or_up(&mut self, place: Place, name: &str) -> GgmlType {
        let seen = if place == Place::Gate { &mut self.gates } else { &mut self.ups };
        *seen += 1;
        let before = *seen - 1;
        let (layer, layers) = (self.layer(name, before), self.model.layers);
        let is_inner = (layers / 8..7 * layers / 8).contains(&layer);
        if self.recipe.is(IQ3S, Mix::Small) && is_inner { IQ3XXS } else { self.recipe.ty }
    }

    fn of_down(&mut self, name: &str) -> GgmlType {
        let Self { recipe, ref model, .. } = *self;
        let (layer, layers) = (self.layer(name, self.downs), model.layers);
        self.downs += 1;
        let more_bits = Self::has_more_bits(layer, layers);
        match (recipe.ty, recipe.mix) {
            (Q2K, Mix::Plain) => Q3K,
            (Q2K, Mix::Small) if layer < layers / 8 => Q4K,
            (Q3K, Mix::Medium) if layer < layers / 16 => Q5K,
            (Q3K, Mix::Medium) if !model.is_falcon || more_bits => Q4K,
            (Q3K, Mix::Large) => {
                if model.is_falcon {
                    Q4K
                } else {
                    Q5K
                }
            }
            (Q4K, Mix::Medium) if model.is_falcon && layer < layers / 16 => Q6K,
            (Q4K, Mix::Medium) if model.is_falcon && more_bits => Q5K,
            (Q4K | Q5K, Mix::Medium) if more_bits && !(model.is_falcon && recipe.ty == Q4K) => Q6K,
            (Q4K, Mix::Small) if !model.is_falcon && layer < layers / 8 => Q5K,
            (IQ4NL | IQ4XS, _) if !self.has_imatrix && layer < layers / 8 => Q5K,
            (IQ3XXS, _) if !self.has_imatrix => {
                if layer < layers / 8 {
                    Q4K
                } else {
                    Q3K
                }
            }
            (IQ3S, Mix::Medium) if layer < layers / 8 || model.experts == 8 && more_bits => Q4K,
            (Q4_0, _) if self.has_imatrix && layer < layers / 8 => GgmlType::Q4_1,
            (Q5_0, _) if self.has_imatrix && layer < layers / 8 => Q5_1,
            (ty, _) => ty,
        }
    }

    fn of_attention_output(&self) -> GgmlType {
        let Self { recipe, ref model, .. } = *self;
        if model.is_falcon {
            return if recipe.is(Q3K, Mix::Large) { Q4K } else { recipe.ty };
        }
        match (recipe.ty, recipe.mix) {
            (Q2K, Mix::Plain) | (Q3K, Mix::Small | Mix::Medium) if model.experts == 8 => Q5K,
            (Q4K | IQ4NL | IQ4XS | IQ3XXS | IQ3S, _) if model.experts == 8 => Q5K,
            _ if model.experts == 8 => recipe.ty,
            (Q2K, Mix::Plain) => Q3K,
            (IQ3XXS, _) => IQ3S,
            (Q3K | IQ3S, Mix::Medium) => Q4K,
            (Q3K, Mix::Large) => Q5K,
            (ty, _) => ty,
        }
    }
}

/// The type of rows of `width` values that are no whole blocks of `ty`: one like it with blocks of 32, else F16.
fn fallback(ty: GgmlType, width: u64) -> GgmlType {
    let fits = |ty: GgmlType| width.is_multiple_of(ty.block_size() as u64);
    let smaller = match ty {
        _ if fits(ty) => ty,
        IQ1S | IQ1M | IQ2XXS | IQ2XS | IQ2S | IQ3XXS | IQ3S | IQ4XS => IQ4NL,
        GgmlType::Q2_0 | GgmlType::Q1_0 | Q2K | Q3K | GgmlType::TQ1_0 | GgmlType::TQ2_0 => Q4_0,
        Q4K => Q5_0,
        Q5K => Q5_1,
        Q6K => Q8_0,
        ty => ty,
    };
    if fits(smaller) { smaller } else { F16 }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;
    use std::path::Path;
    use std::{env, fs};

    use super::*;

    /// The environment variable that has the test write the file anew.
    const WRITE: &str = "CUBE_GGUF_WRITE_RECIPES";

    /// Models whose types differ: grouped queries, none and a shared output, LLaMA 2 70B's layers, eight experts, Falcon.
    fn models() -> [(&'static str, Model); 5] {
        let of =
            |layers, heads_per_kv| Model { layers, heads_per_kv, values: layers, has_output: true, ..Model::default() };
        [
            ("gqa", of(32, 4)),
            ("mha", Model { has_output: false, ..of(20, 1) }),
            ("70b", Model { is_large: true, ..of(80, 8) }),
            ("moe", Model { experts: 8, ..of(12, 4) }),
            ("falcon", Model { is_falcon: true, ..of(32, 8) }),
        ]
    }

    /// The names and extents of a model's matrices, in the order of a file.
    fn matrices(model: &Model) -> Vec<(String, Vec<u64>)> {
        let mut matrices = vec![("token_embd.weight".to_owned(), vec![256, 32])];
        if model.has_output {
            matrices.push(("output.weight".to_owned(), vec![256, 32]));
        }
        for layer in 0..model.layers {
            let attention: &[&str] = if model.is_falcon { &["attn_qkv"] } else { &["attn_q", "attn_k", "attn_v"] };
            let experts = if model.experts > 0 { "_exps" } else { "" };
            let mut add = |name: &str, columns, experts: bool| {
                let dims = if experts { vec![columns, 256, model.experts as u64] } else { vec![columns, 256] };
                matrices.push((format!("blk.{layer}.{name}.weight"), dims));
            };
            attention.iter().for_each(|name| add(name, 256, false));
            add("attn_output", 256, false);
            for (name, columns) in [("ffn_gate", 256), ("ffn_up", 256), ("ffn_down", 512)] {
                add(&format!("{name}{experts}"), columns, model.experts > 0);
            }
        }
        matrices
    }

    /// A line of the file: for each kind of matrix the types of its layers, as runs.
    fn line(name: &str, model: &Model, recipe: &str, has_imatrix: bool) -> String {
        let mut types = Types::new(recipe.parse().unwrap(), model.clone(), has_imatrix);
        let mut kinds: Vec<(String, Vec<(GgmlType, usize)>)> = Vec::new();
        for (matrix, dims) in matrices(model) {
            assert!(is_quantized(&matrix, &dims));
            let ty = types.next(&matrix, &dims);
            let kind = matrix.split('.').rev().nth(1).unwrap();
            let place = kinds.iter().position(|(known, _)| known == kind).unwrap_or_else(|| {
                kinds.push((kind.to_owned(), Vec::new()));
                kinds.len() - 1
            });
            match kinds[place].1.last_mut() {
                Some((last, count)) if *last == ty => *count += 1,
                _ => kinds[place].1.push((ty, 1)),
            }
        }
        let mut line = format!("{name} {recipe}{}:", if has_imatrix { " imatrix" } else { "" });
        for (kind, runs) in kinds {
            write!(line, " {kind}").unwrap();
            runs.iter().for_each(|(ty, count)| write!(line, " {count}*{ty}").unwrap());
            line.push(';');
        }
        line + "\n"
    }

    /// The file has what llama.cpp (`llama_tensor_get_type_impl`) gave these models, of 256 columns, in llama-cpp-sys-2 0.1.161.
    #[test]
    fn types_are_those_that_llama_cpp_gave() {
        let mut text = format!("# Written by a test: {WRITE}=1 cargo test --features cli --bin cube-gguf recipe\n");
        for (name, model) in models() {
            for (recipe, ty, ..) in RECIPES {
                text += &line(name, &model, recipe, false);
                if name == "gqa" && ty.block_size() > 1 {
                    text += &line(name, &model, recipe, true);
                }
            }
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bin/cube-gguf/quantize/types.txt");
        if env::var_os(WRITE).is_some() {
            fs::write(&path, &text).unwrap();
        }
        let expected = fs::read_to_string(&path).unwrap();
        for (ours, theirs) in text.lines().zip(expected.lines()) {
            assert_eq!(ours, theirs);
        }
        assert_eq!(text.lines().count(), expected.lines().count());
    }

    #[test]
    fn rows_that_do_not_fit_fall_back() {
        assert_eq!([256, 96, 33].map(|width| fallback(Q4K, width)), [Q4K, Q5_0, F16]);
        assert_eq!(fallback(Q6K, 640), Q8_0);
        assert_eq!(fallback(IQ4XS, 640), IQ4NL);
        assert_eq!(fallback(Q5_0, 33), F16);
    }
}
