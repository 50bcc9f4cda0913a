//! [`Linear`]: a product with weights, and the bias after it.

use std::sync::Arc;

use super::error::Result;
#[cfg(feature = "candle")]
use super::host::HostMatrix;
use super::step::{On, Rows, Step};
use super::values::Values;
use crate::kernels::activations::Activations;
use crate::kernels::floats::FloatType;
use crate::kernels::ops::Arithmetic;
use crate::storage::DeviceTensor;

/// A layer of weights, with their factor and biases.
#[derive(Clone, Debug)]
pub(super) struct Linear {
    /// The tensor of the file that has its rows, and others maybe.
    pub tensor: Arc<str>,
    pub weights: Matrix,
}

/// Weights where they are multiplied.
#[derive(Clone, Debug)]
pub(super) enum Matrix {
    Device(DeviceTensor),
    /// By Candle's kernels.
    #[cfg(feature = "candle")]
    Host(HostMatrix),
}

impl Matrix {
    fn n(&self) -> usize {
        match self {
            Self::Device(tensor) => tensor.n(),
            #[cfg(feature = "candle")]
            Self::Host(matrix) => matrix.n(),
        }
    }

    /// That of a model on a device.
    pub fn tensor(&self) -> &DeviceTensor {
        match self {
            Self::Device(tensor) => tensor,
            #[cfg(feature = "candle")]
            Self::Host(_) => unreachable!("a model on a device has no matrices on the host"),
        }
    }

    /// That of a model on the host.
    #[cfg(feature = "candle")]
    pub fn host(&self) -> &HostMatrix {
        match self {
            Self::Host(matrix) => matrix,
            Self::Device(_) => unreachable!("a model on the host has no matrices on a device"),
        }
    }

    /// The products of a step's rows with several matrices.
    fn products<const N: usize>(matrices: [&Self; N], step: &Step<'_>, x: &Rows) -> Result<[Rows; N]> {
        let products: Vec<Values> = match step.on {
            On::Device(_) => {
                let x = Activations::contiguous(x.handle().clone(), FloatType::F32, vec![step.tokens, x.width])?;
                let all = DeviceTensor::matmul_many_on_device(&matrices.map(Self::tensor), &x, Arithmetic::Auto)?;
                all.into_iter().map(Values::from).collect()
            }
            #[cfg(feature = "candle")]
            On::Host(_) => {
                let product = |matrix: &&Self| Ok(matrix.host().product(x.slice(), step.tokens)?.into());
                matrices.iter().map(product).collect::<Result<_>>()?
            }
        };
        let mut products = products.into_iter();
        let rows =
            |matrix: &Self| Rows { values: products.next().expect("a product of each matrix"), width: matrix.n() };
        Ok(matrices.map(rows))
    }
}

impl Linear {
    /// The layer of a step's rows.
    pub fn forward(&self, step: &Step<'_>, x: &Rows) -> Result<Rows> {
        let [out] = Self::forward_many([self], step, x)?;
        Ok(out)
    }

    /// [`forward`](Self::forward) by products of f32 for any number of tokens: a layer whose results are compared with each other.
    pub fn forward_closely(&self, step: &Step<'_>, x: &Rows) -> Result<Rows> {
        match &self.weights {
            Matrix::Device(tensor) => {
                step.observe(&[&self.tensor], x);
                let x = Activations::contiguous(x.handle().clone(), FloatType::F32, vec![step.tokens, x.width])?;
                Ok(Rows::new(tensor.matmul_closely_on_device(&x)?, tensor.n()))
            }
            #[cfg(feature = "candle")]
            Matrix::Host(matrix) => {
                step.observe(&[&self.tensor], x);
                Ok(Rows::new(matrix.product_closely(x.slice(), step.tokens)?, matrix.n()))
            }
        }
    }

    /// The layer of the last of a step's rows, as the only one of a step of one token. All rows are observed: each is what a
    /// model's output would be asked for.
    pub fn forward_last<'a>(&self, step: &Step<'a>, x: &Rows) -> Result<(Rows, Step<'a>)> {
        step.observe(&[&self.tensor], x);
        let (last, of) = step.last(x);
        let [out] = Matrix::products([&self.weights], &of, &last)?;
        Ok((out, of))
    }

    /// Several layers of the same rows.
    pub fn forward_many<const N: usize>(layers: [&Self; N], step: &Step<'_>, x: &Rows) -> Result<[Rows; N]> {
        step.observe(&layers.map(|layer| &layer.tensor), x);
        Matrix::products(layers.map(|layer| &layer.weights), step, x)
    }
}
