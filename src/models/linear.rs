//! [`Linear`]: a product with weights, and the bias after it.

use cubecl::server::Handle;

use super::error::Result;
use super::step::{Rows, Step};
use crate::kernels::activations::Activations;
use crate::kernels::floats::FloatType;
use crate::kernels::ops::Arithmetic;
use crate::storage::DeviceTensor;

/// A layer of weights.
#[derive(Clone, Debug)]
pub(super) struct Linear {
    pub weight: DeviceTensor,
    pub bias: Option<Handle>,
}

impl Linear {
    /// The layer of a step's rows.
    pub fn forward(&self, step: &Step<'_>, x: &Rows) -> Result<Rows> {
        let out = self.weight.matmul_on_device(&activations(x, step.tokens)?, Arithmetic::Auto)?;
        Ok(self.biased(step, out))
    }

    /// Several layers of the same rows.
    pub fn forward_many<const N: usize>(layers: [&Self; N], step: &Step<'_>, x: &Rows) -> Result<[Rows; N]> {
        let products = Self::products(layers, step, x)?;
        let mut of = layers.into_iter();
        Ok(products.map(|rows| match of.next() {
            Some(layer) => layer.biased(step, rows.handle),
            None => rows,
        }))
    }

    /// [`forward_many`](Self::forward_many) without the biases.
    pub fn products<const N: usize>(layers: [&Self; N], step: &Step<'_>, x: &Rows) -> Result<[Rows; N]> {
        let weights = layers.map(|layer| &layer.weight);
        let x = activations(x, step.tokens)?;
        let mut products = DeviceTensor::matmul_many_on_device(&weights, &x, Arithmetic::Auto)?.into_iter();
        Ok(weights.map(|weight| Rows { handle: products.next().expect("a product of each matrix"), width: weight.n() }))
    }

    fn biased(&self, step: &Step<'_>, out: Handle) -> Rows {
        let out = Rows { handle: out, width: self.weight.n() };
        match &self.bias {
            Some(bias) => step.add_bias(&out, bias),
            None => out,
        }
    }
}

fn activations(x: &Rows, tokens: usize) -> crate::Result<Activations> {
    Activations::contiguous(x.handle.clone(), FloatType::F32, vec![tokens, x.width])
}
