//! [`QExperts`]: a stack of experts with quantized weights.

use burn::module::{Content, DisplaySettings, Module, ModuleDisplay};
use burn::tensor::{Int, Tensor};

use super::matrix::QMatrix;
use super::ops;
use crate::kernels::ops::Arithmetic;
use crate::storage::tensor::DeviceTensor;
use crate::{Error, Result};

/// The experts of a mixture, each a linear layer: a quantized `[experts, d_output, d_input]` stack on a device. Cloning shares it.
///
/// Gradients flow through to the input, by the dequantized weights of all experts, one after the other; the weights themselves
/// have none.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct QExperts {
    weight: QMatrix,
    #[module(skip)]
    experts: usize,
}

impl QExperts {
    /// The `experts` layers whose rows the weights have one after the other.
    ///
    /// # Errors
    ///
    /// [`Error::Experts`] where the weights are no such stack.
    pub fn new(weight: DeviceTensor, experts: usize) -> Result<Self> {
        match experts > 0 && weight.n().is_multiple_of(experts) {
            true => Ok(Self { weight: QMatrix::new(weight), experts }),
            false => Err(Error::Experts { rows: weight.n(), experts }),
        }
    }

    /// The layers with products by another arithmetic than [`Arithmetic::Auto`].
    pub fn with_arithmetic(self, arithmetic: Arithmetic) -> Self {
        Self { weight: QMatrix { arithmetic, ..self.weight }, ..self }
    }

    /// The weights.
    pub fn weight(&self) -> &DeviceTensor {
        &self.weight.tensor
    }

    /// Number of experts.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Features of the input.
    pub fn d_input(&self) -> usize {
        self.weight.tensor.k()
    }

    /// Features of an expert's output.
    pub fn d_output(&self) -> usize {
        self.weight.tensor.n() / self.experts
    }

    /// For each token and each of its experts, which `ids` `[tokens, slots]` name, the expert's product with the token's row of
    /// `input`: `[tokens, slots, d_output]` values of the input's type. The input is `[tokens, 1, d_input]`, or has a row for each of a
    /// token's experts, `[tokens, slots, d_input]`.
    ///
    /// The ids stay on the device, where none can be refused: one that names no expert gives a row of NaNs.
    ///
    /// # Panics
    ///
    /// Where [`try_forward`](Self::try_forward) gives an error, as Burn's own modules do.
    pub fn forward(&self, input: Tensor<3>, ids: Tensor<2, Int>) -> Tensor<3> {
        self.try_forward(input, ids).unwrap_or_else(|error| panic!("{error}"))
    }

    /// [`forward`](Self::forward), with an error in place of a panic.
    ///
    /// # Errors
    ///
    /// [`Error::Activations`] where the last extent of the input is not `d_input`, [`Error::Routed`] where the others do not fit the
    /// ids, [`Error::ForeignActivations`] where one of them is on another device than the weights, [`Error::NoFloat`] where the
    /// kernels cannot read the input's type there.
    pub fn try_forward(&self, input: Tensor<3>, ids: Tensor<2, Int>) -> Result<Tensor<3>> {
        ops::experts(input, ids, &self.weight, self.experts)
    }
}

impl ModuleDisplay for QExperts {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new().with_new_line_after_attribute(false).optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        content
            .add("experts", &self.experts)
            .add("d_input", &self.d_input())
            .add("d_output", &self.d_output())
            .add("format", &self.weight.tensor.ty().to_string())
            .add("bytes", &self.weight.tensor.device_bytes())
            .optional()
    }
}
