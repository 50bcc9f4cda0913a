//! [`QLinear`]: a linear layer with quantized weights.

use burn::module::{Content, DisplaySettings, Module, ModuleDisplay, Param};
use burn::tensor::Tensor;

use super::matrix::QMatrix;
use super::ops;
use crate::kernels::ops::Arithmetic;
use crate::storage::tensor::DeviceTensor;
use crate::{Error, Result};

/// A linear layer `y = x Wᵀ + b` whose weights are a quantized `[d_output, d_input]` matrix on a device. Cloning shares them.
///
/// Gradients flow through to the input, by the dequantized weights; the weights themselves have none.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct QLinear {
    weight: QMatrix,
    /// Values that are added to each row of the result, `[d_output]`.
    pub bias: Option<Param<Tensor<1>>>,
}

impl QLinear {
    /// A layer without a bias.
    pub fn new(weight: DeviceTensor) -> Self {
        Self { weight: QMatrix::new(weight), bias: None }
    }

    /// The layer with a bias of `[d_output]` values.
    ///
    /// # Errors
    ///
    /// [`Error::Activations`] for another number of values, [`Error::ForeignActivations`] where they are on another device.
    pub fn with_bias(self, bias: Tensor<1>) -> Result<Self> {
        if bias.dims() != [self.d_output()] {
            return Err(Error::Activations { shape: bias.dims().to_vec(), k: self.d_output() });
        }
        self.weight.check_device(&bias.device())?;
        Ok(Self { bias: Some(Param::from_tensor(bias)), ..self })
    }

    /// The layer with products by another arithmetic than [`Arithmetic::Auto`].
    pub fn with_arithmetic(self, arithmetic: Arithmetic) -> Self {
        Self { weight: QMatrix { arithmetic, ..self.weight }, ..self }
    }

    /// The weights.
    pub fn weight(&self) -> &DeviceTensor {
        &self.weight.tensor
    }

    /// Features of the input.
    pub fn d_input(&self) -> usize {
        self.weight.tensor.k()
    }

    /// Features of the output.
    pub fn d_output(&self) -> usize {
        self.weight.tensor.n()
    }

    /// The product for an input of shape `[.., d_input]`, as `[.., d_output]` values of the input's type.
    ///
    /// # Panics
    ///
    /// Where [`try_forward`](Self::try_forward) gives an error, as Burn's own modules do.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        self.try_forward(input).unwrap_or_else(|error| panic!("{error}"))
    }

    /// [`forward`](Self::forward), with an error in place of a panic.
    ///
    /// # Errors
    ///
    /// [`Error::Activations`] where the last extent is not `d_input`, [`Error::ForeignActivations`] where the input is on
    /// another device than the weights, [`Error::NoFloat`] where the kernels cannot read its type there.
    pub fn try_forward<const D: usize>(&self, input: Tensor<D>) -> Result<Tensor<D>> {
        Ok(self.biased(ops::linear(input, &self.weight)?))
    }
}

/// Several layers with one input.
impl QLinear {
    /// [`forward`](Self::forward) of each of some layers, such as q, k and v, bit for bit. It costs less: the input is
    /// quantized once, and layers of one format share a launch.
    ///
    /// # Panics
    ///
    /// Where [`try_forward_many`](Self::try_forward_many) gives an error.
    pub fn forward_many<const D: usize>(layers: &[&Self], input: Tensor<D>) -> Vec<Tensor<D>> {
        Self::try_forward_many(layers, input).unwrap_or_else(|error| panic!("{error}"))
    }

    /// [`forward_many`](Self::forward_many), with an error in place of a panic.
    ///
    /// # Errors
    ///
    /// As [`try_forward`](Self::try_forward) of any of the layers.
    pub fn try_forward_many<const D: usize>(layers: &[&Self], input: Tensor<D>) -> Result<Vec<Tensor<D>>> {
        let weights: Vec<&QMatrix> = layers.iter().map(|layer| &layer.weight).collect();
        let products = ops::linear_many(input, &weights)?;
        Ok(products.into_iter().zip(layers).map(|(out, layer)| layer.biased(out)).collect())
    }

    fn biased<const D: usize>(&self, out: Tensor<D>) -> Tensor<D> {
        match &self.bias {
            Some(bias) => out + bias.val().unsqueeze(),
            None => out,
        }
    }
}

impl ModuleDisplay for QLinear {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new().with_new_line_after_attribute(false).optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        content
            .add("d_input", &self.d_input())
            .add("d_output", &self.d_output())
            .add("format", &self.weight.tensor.ty().to_string())
            .add("bytes", &self.weight.tensor.device_bytes())
            .add("bias", &self.bias.is_some())
            .optional()
    }
}
