//! Products of activations with a transposed weight matrix, and the choice of the operation that computes them.
//!
//! Few tokens go to [`matvec`](super::matvec), many to [`matmul`](super::matmul) where the device has matrix units.

use std::collections::BTreeMap;
use std::str::FromStr;

use cubecl::client::Client;
use cubecl::server::Handle;

use super::accuracy::Accuracy;
use super::activations::Activations;
use super::arch::dot::Instruction;
use super::arch::matrix_unit::MatrixUnit;
use super::formats::traits;
use super::hardware::Hardware;
use super::matmul::{
    Blueprint as MatmulBlueprint, Problem as MatmulProblem, has_matrix_units, is_faster_for_few, multiply_experts,
    multiply_packed, pack, pack_sorted, run, striped,
};
use super::matvec::{ActivationType, MAX_TOKENS, Problem, matvec_experts_with, matvec_many_with, matvec_with};
use super::routing::{Route, Routing};
use super::tune::{Selection, untuned};
use super::weights::Weights;
use crate::gguf::GgmlType;

/// The arithmetic that a caller asks of a product. [`Accuracy::error_bound`] bounds its error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// `Int8` up to [`MAX_TOKENS`] tokens, then `Float`, but on devices without matrix units that have an instruction for
    /// products of bytes `Int8` still; F16 and BF16 on matrix units as soon as these are faster.
    #[default]
    Auto,
    /// Activations quantized to int8 in chunks of 32, integer products: what llama.cpp and Candle do on GPUs. Weights
    /// that are floats themselves (F32, F16, BF16) are multiplied as such.
    Int8,
    /// Floating-point products, f32 sums: f32 products up to [`MAX_TOKENS`] tokens, products of bf16 on the matrix units for
    /// more where the device has them.
    Float,
}

impl Arithmetic {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Int8, Self::Float];

    /// The name, in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Int8 => "int8",
            Self::Float => "float",
        }
    }
}

/// A string that names no arithmetic.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is no arithmetic: known are auto, int8 and float")]
pub struct ParseArithmeticError {
    name: String,
}

impl FromStr for Arithmetic {
    type Err = ParseArithmeticError;

    /// The arithmetic of a [`name`](Self::name).
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let named = Self::ALL.into_iter().find(|arithmetic| arithmetic.name() == name);
        named.ok_or_else(|| ParseArithmeticError { name: name.to_owned() })
    }
}

/// `arithmetic` resolved for a product of `tokens` tokens with weights of type `ty` on this device.
pub fn resolve(client: &Client, ty: GgmlType, tokens: usize, arithmetic: Arithmetic) -> Accuracy {
    let is_faster = || arithmetic == Arithmetic::Auto && is_faster_for_few(client, ty, tokens);
    let few = tokens <= MAX_TOKENS && !is_faster();
    let has_dot = || Instruction::of(client.properties()).is_native();
    resolved(arithmetic, traits(ty).dense, few, || has_matrix_units(client), has_dot)
}

/// The same by whether the weights are floats themselves, the tokens few, and by what the device has: matrix units, and an
/// instruction for the dot product of bytes.
fn resolved(
    arithmetic: Arithmetic,
    is_dense: bool,
    few: bool,
    has_units: impl Fn() -> bool,
    has_dot: impl Fn() -> bool,
) -> Accuracy {
    let int8 = arithmetic == Arithmetic::Int8 || arithmetic == Arithmetic::Auto && few;
    match () {
        () if int8 && !is_dense => Accuracy::INT8,
        () if !few && has_units() => Accuracy::MatrixUnits,
        () if arithmetic == Arithmetic::Auto && !is_dense && has_dot() => Accuracy::INT8,
        () => Accuracy::Float,
    }
}

/// A matrix and the blueprints selected for its products.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    pub weights: &'a Weights,
    pub selection: &'a Selection,
}

/// `x` `[.., k]` times the transpose of a matrix `[n, k]`: contiguous `[.., n]` values of `x`'s type.
///
/// `x`'s last extent must be `k`. A failure of the device shows up at the next read.
pub fn matmul(client: &Client, matrix: Matrix, x: &Activations, arithmetic: Arithmetic) -> Handle {
    let Matrix { weights, selection } = matrix;
    let matvec = |operand| {
        let pick = |tokens| selection.blueprint(client, weights, operand, tokens);
        matvec_with(client, weights, x, operand, pick)
    };
    match resolve(client, weights.ty(), x.tokens(), arithmetic) {
        Accuracy::Int8 { .. } => matvec(ActivationType::Int8),
        // `Halves` is for host tensors alone; `resolve` never returns it.
        Accuracy::Float | Accuracy::Halves { .. } => matvec(ActivationType::Float),
        Accuracy::MatrixUnits => match MatrixUnit::of(client.properties()) {
            Some(unit) => {
                let run = run(unit, weights.ty(), weights.chunks());
                multiply_packed(client, unit, weights, &pack(client, x, unit, run), x.ty())
            }
            // cubek-matmul may have no blueprint for the device.
            None => striped(client, weights, x).unwrap_or_else(|_| matvec(ActivationType::Float)),
        },
    }
}

/// [`matmul`] by f32 products for any number of tokens.
#[cfg(feature = "models")]
pub fn matmul_closely(client: &Client, matrix: Matrix, x: &Activations) -> Handle {
    let Matrix { weights, selection } = matrix;
    let pick = |tokens| selection.blueprint(client, weights, ActivationType::Float, tokens);
    matvec_with(client, weights, x, ActivationType::Float, pick)
}

/// Each row of `x` times the transpose of the weights of its tokens' experts, for each of some stacks, which have theirs one after
/// the other: contiguous `[tokens, slots, n]` values of `x`'s type. Stacks of one format and as many rows share launches.
///
/// `x` has a row for each token, or one for each of a token's slots. A failure of the device shows up at the next read.
pub fn matmul_experts(
    client: &Client,
    stacks: &[&Weights],
    x: &Activations,
    routing: &Routing,
    arithmetic: Arithmetic,
) -> Vec<Handle> {
    let (hardware, pairs) = (Hardware::of(client), routing.pairs());
    let (mut results, mut packed) = (BTreeMap::new(), BTreeMap::new());
    for (place, &first) in stacks.iter().enumerate() {
        if results.contains_key(&place) {
            continue;
        }
        let (ty, chunks, n) = (first.ty(), first.chunks(), first.n() / routing.experts());
        if pairs == 0 || n == 0 {
            results.insert(place, client.empty(16));
            continue;
        }
        let sharers = pairs / x.tokens();
        let mut matvec = |operand| {
            let joins = |at: &usize| (stacks[*at].ty(), stacks[*at].n()) == (ty, first.n());
            let members: Vec<usize> = (place..stacks.len()).filter(joins).collect();
            let together: Vec<&Weights> = members.iter().map(|&at| stacks[at]).collect();
            let problem = Problem { ty, operand, tokens: 1, n: pairs * n * members.len(), chunks };
            let (route, blueprint) = (Route { routing, sharers }, untuned(&hardware, problem));
            results
                .extend(members.into_iter().zip(matvec_experts_with(client, &together, x, route, operand, blueprint)));
        };
        match (resolve(client, ty, routing.tokens(), arithmetic), MatrixUnit::of(client.properties())) {
            (Accuracy::Int8 { .. }, _) => matvec(ActivationType::Int8),
            (Accuracy::MatrixUnits, Some(unit)) => {
                let problem = MatmulProblem { ty, tokens: pairs, n, chunks };
                let blueprint = MatmulBlueprint::of_experts(&hardware, unit, problem, routing.experts());
                let (run, tile) = (run(unit, ty, chunks), blueprint.tokens());
                let packed = packed
                    .entry((run, tile))
                    .or_insert_with(|| pack_sorted(client, x, unit, run, &routing.sorted(client, tile), sharers));
                results.insert(place, multiply_experts(client, first, packed, routing, x.ty(), blueprint));
            }
            // Products of f32, where only CubeCL's operations reach matrix units, are closer than theirs.
            _ => matvec(ActivationType::Float),
        }
    }
    results.into_values().collect()
}

/// [`matmul`] for several matrices, bit for bit. They share the prepared activations, and for few tokens matrices of one
/// format share launches.
pub fn matmul_many(client: &Client, matrices: &[Matrix], x: &Activations, arithmetic: Arithmetic) -> Vec<Handle> {
    let accuracy = |matrix: &Matrix| resolve(client, matrix.weights.ty(), x.tokens(), arithmetic);
    let accuracies: Vec<Accuracy> = matrices.iter().map(accuracy).collect();
    if accuracies.contains(&Accuracy::MatrixUnits) {
        let Some(unit) = MatrixUnit::of(client.properties()) else {
            return matrices.iter().map(|&matrix| matmul(client, matrix, x, arithmetic)).collect();
        };
        let mut packed = BTreeMap::new();
        let product = |(matrix, accuracy): (&Matrix, &Accuracy)| match accuracy {
            Accuracy::MatrixUnits => {
                let run = run(unit, matrix.weights.ty(), matrix.weights.chunks());
                let packed = packed.entry(run).or_insert_with(|| pack(client, x, unit, run));
                multiply_packed(client, unit, matrix.weights, packed, x.ty())
            }
            _ => matmul(client, *matrix, x, arithmetic),
        };
        return matrices.iter().zip(&accuracies).map(product).collect();
    }
    let weights: Vec<&Weights> = matrices.iter().map(|matrix| matrix.weights).collect();
    let int8 = accuracies.iter().any(|accuracy| matches!(accuracy, Accuracy::Int8 { .. }));
    let operand = if int8 { ActivationType::Int8 } else { ActivationType::Float };
    matvec_many_with(client, &weights, x, operand, |i, operand, tokens| {
        matrices[i].selection.blueprint(client, weights[i], operand, tokens)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_tokens_take_matrix_units_or_else_bytes_where_the_device_multiplies_them() {
        let many = |arithmetic, is_dense, units, dot| resolved(arithmetic, is_dense, false, || units, || dot);
        for dot in [false, true] {
            assert_eq!(many(Arithmetic::Auto, false, true, dot), Accuracy::MatrixUnits);
            assert_eq!(many(Arithmetic::Float, false, false, dot), Accuracy::Float);
            assert_eq!(many(Arithmetic::Auto, true, false, dot), Accuracy::Float);
            assert_eq!(many(Arithmetic::Int8, false, true, dot), Accuracy::INT8);
        }
        assert_eq!(many(Arithmetic::Auto, false, false, true), Accuracy::INT8);
        assert_eq!(many(Arithmetic::Auto, false, false, false), Accuracy::Float);
    }
}
