//! [`QEmbedding`]: an embedding with quantized weights.

use burn::module::{Content, DisplaySettings, Module, ModuleDisplay};
use burn::tensor::{Int, Tensor};

use super::matrix::QMatrix;
use super::ops;
use crate::kernels::floats::FloatType;
use crate::storage::tensor::DeviceTensor;
use crate::{Error, Result};

/// An embedding: the rows of a quantized `[n_embedding, d_model]` matrix on a device that ids name. Cloning shares the weights.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct QEmbedding {
    weight: QMatrix,
    #[module(skip)]
    ty: FloatType,
}

impl QEmbedding {
    /// An embedding that gives f32.
    pub fn new(weight: DeviceTensor) -> Self {
        Self { weight: QMatrix::new(weight), ty: FloatType::F32 }
    }

    /// The embedding with results of another type.
    ///
    /// # Errors
    ///
    /// [`Error::NoFloat`] where the device has no buffers of the type.
    pub fn with_type(self, ty: FloatType) -> Result<Self> {
        self.weight.tensor.check_float(ty)?;
        Ok(Self { ty, ..self })
    }

    /// The weights.
    pub fn weight(&self) -> &DeviceTensor {
        &self.weight.tensor
    }

    /// Rows: the ids that there are.
    pub fn n_embedding(&self) -> usize {
        self.weight.tensor.n()
    }

    /// Values of a row.
    pub fn d_model(&self) -> usize {
        self.weight.tensor.k()
    }

    /// The rows of ids of any shape, `[..]`, as `[.., d_model]`. The ids stay on the device, where none can be refused: one that
    /// names no row gives the last.
    ///
    /// # Panics
    ///
    /// Where [`try_forward`](Self::try_forward) gives an error, as Burn's own modules do.
    pub fn forward<const D: usize, const D2: usize>(&self, ids: Tensor<D, Int>) -> Tensor<D2> {
        self.try_forward(ids).unwrap_or_else(|error| panic!("{error}"))
    }

    /// [`forward`](Self::forward), with an error in place of a panic.
    ///
    /// # Errors
    ///
    /// [`Error::Rank`] where `D2` is not `D + 1`, [`Error::ForeignActivations`] where the ids are on another device than the
    /// weights.
    pub fn try_forward<const D: usize, const D2: usize>(&self, ids: Tensor<D, Int>) -> Result<Tensor<D2>> {
        if D2 != D + 1 {
            return Err(Error::Rank { rank: D2, wanted: D + 1 });
        }
        ops::embedding(ids, &self.weight, self.ty)
    }
}

impl ModuleDisplay for QEmbedding {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new().with_new_line_after_attribute(false).optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        content
            .add("n_embedding", &self.n_embedding())
            .add("d_model", &self.d_model())
            .add("format", &self.weight.tensor.ty().to_string())
            .add("bytes", &self.weight.tensor.device_bytes())
            .optional()
    }
}
