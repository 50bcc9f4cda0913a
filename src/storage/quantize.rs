//! Quantization on the device that the tensor is for.

use cubecl::server::Handle;

use super::device::CubeDevice;
use super::tensor::DeviceTensor;
use crate::gguf::GgmlType;
use crate::kernels::activations::{Activations, pack};
use crate::kernels::floats::{FloatType, has_buffers};
use crate::kernels::quantize::weights::{Values, needs_importance, quantizes};
use crate::kernels::weights::Weights;
use crate::{Error, Result};

/// The most bytes of values that are uploaded at once.
const STRIPE: usize = 64 << 20;

impl DeviceTensor {
    /// Whether [`quantize`](Self::quantize) has a kernel for the type.
    pub fn quantizes(ty: GgmlType) -> bool {
        quantizes(ty)
    }

    /// Quantizes `n` rows of `k` values on the device, by the rules of ggml's reference quantizer of the type
    /// (`quantize_row_*_ref` in `ggml/src/ggml-quants.c`): the blocks are the same, bit for bit, but for scales too small to have
    /// an inverse, whose blocks are zeros. The values go there in stripes of 64 MiB.
    ///
    /// # Errors
    ///
    /// [`Error::NoQuantizer`] where there is no kernel for the type, [`Error::NeedsImportance`] for IQ1_S, IQ2_XXS and IQ2_XS,
    /// [`Error::Values`] where rows are not whole blocks or their values
    /// more or fewer than there are, [`Error::NotFinite`] for a row with a NaN or an infinity, [`Error::TooLarge`] where
    /// the result exceeds the device's largest buffer, [`Error::Device`] where the device failed.
    pub fn quantize(device: &CubeDevice, ty: GgmlType, n: usize, k: usize, values: &[f32]) -> Result<Self> {
        Self::quantized(device, ty, [n, k], values, None)
    }

    /// [`quantize`](Self::quantize) with an importance for each column, or one row of them for each of as many runs of rows: the
    /// experts of a stack. The blocks are ggml's, bit for bit, for importances above 0; columns of none count for a millionth of the
    /// most important one. Formats whose quantizer in ggml minds no importances take them all the same.
    ///
    /// # Errors
    ///
    /// As [`quantize`](Self::quantize); [`Error::Importances`] where they do not fit, [`Error::Importance`] where one is negative or
    /// not finite.
    pub fn quantize_by_importance(
        device: &CubeDevice,
        ty: GgmlType,
        n: usize,
        k: usize,
        values: &[f32],
        importance: &[f32],
    ) -> Result<Self> {
        Self::quantized(device, ty, [n, k], values, Some(importance))
    }

    fn quantized(
        device: &CubeDevice,
        ty: GgmlType,
        [n, k]: [usize; 2],
        values: &[f32],
        importance: Option<&[f32]>,
    ) -> Result<Self> {
        let quantizer = Quantizer::new(device, ty, [n, k], values.len(), importance.is_some())?;
        let importance = importance.map(|importance| quantizer.importance(importance)).transpose()?;
        let importance = importance.as_ref().map(|(handle, rows)| (handle, *rows));
        let rows = (STRIPE / 4 / k.max(1)).max(1);
        let client = device.client();
        for (stripe, values) in values.chunks(rows * k.max(1)).enumerate() {
            let handle = client.create_from_slice(bytemuck::cast_slice(values));
            let rows = Values {
                handle: &handle,
                ty: FloatType::F32,
                first_row: stripe * rows,
                rows: values.len() / k,
                importance,
                table: quantizer.neighbours.as_ref(),
            };
            quantizer.weights.quantize_rows(&client, &rows, &quantizer.faults);
            // Bounds the memory of the stripes: otherwise those of a whole tensor would be in flight.
            if stripe % 2 == 1 {
                let _ = cubecl::future::block_on(client.sync());
            }
        }
        quantizer.finish(|| Ok(values.to_vec()))
    }

    /// Quantizes rows of floats that are on the device, as [`quantize`](Self::quantize) does. It waits for the result, as the values
    /// decide whether there is one.
    ///
    /// # Errors
    ///
    /// As [`quantize`](Self::quantize); [`Error::NoFloat`] where the device cannot read the type of the values.
    pub fn quantize_on_device(device: &CubeDevice, ty: GgmlType, values: &Activations) -> Result<Self> {
        let (quantizer, rows) = Quantizer::queued(device, ty, values, None)?;
        quantizer.finish(|| Ok(values.ty().to_f32(&device.read(rows)?, values.tokens() * values.k())))
    }
}

/// Queues what [`DeviceTensor::quantize_on_device`] does, for its time: nobody learns whether the values are finite. Columns are as
/// important as each other where the type [takes importances](Error::NeedsImportance).
///
/// # Errors
///
/// As [`DeviceTensor::quantize_on_device`], but those of the values and of the device.
pub fn quantize_only(device: &CubeDevice, ty: GgmlType, values: &Activations) -> Result<DeviceTensor> {
    let importance = needs_importance(ty).then(|| vec![1.0; values.k()]);
    let (quantizer, _) = Quantizer::queued(device, ty, values, importance.as_deref())?;
    Ok(DeviceTensor::of(device, quantizer.weights))
}

/// A matrix that is being quantized.
struct Quantizer<'a> {
    device: &'a CubeDevice,
    weights: Weights,
    /// A word that is 0 as long as all values are finite.
    faults: Handle,
    /// What points of the format's grid are looked for in, if it has one.
    neighbours: Option<Handle>,
}

impl<'a> Quantizer<'a> {
    fn new(
        device: &'a CubeDevice,
        ty: GgmlType,
        [n, k]: [usize; 2],
        values: usize,
        has_importance: bool,
    ) -> Result<Self> {
        if !quantizes(ty) {
            return Err(Error::NoQuantizer { ty });
        }
        if needs_importance(ty) && !has_importance {
            return Err(Error::NeedsImportance { ty });
        }
        let wrong = || Error::Values { ty, n, k, values };
        let bytes = ty.row_bytes(k).and_then(|row| row.checked_mul(n)).ok_or_else(wrong)?;
        if n.checked_mul(k) != Some(values) {
            return Err(wrong());
        }
        let client = device.client();
        let most = client.properties().memory.max_page_size;
        if bytes as u64 > most {
            return Err(Error::TooLarge { device: device.to_string(), bytes, most });
        }
        let codebook = device.codebook(&client, ty);
        let weights = Weights::uninitialized(&client, ty, n, k, codebook).ok_or_else(wrong)?;
        let faults = client.create_from_slice(&[0; 4]);
        let neighbours = device.neighbours(&client, ty);
        Ok(Self { device, weights, faults, neighbours })
    }

    /// Importances of columns on the device, and the rows that each row of them is for.
    fn importance(&self, importance: &[f32]) -> Result<(Handle, usize)> {
        let (n, k) = (self.weights.n(), self.weights.k());
        let runs = importance.len() / k.max(1);
        let fit = runs > 0 && importance.len() == runs * k && n.is_multiple_of(runs);
        if !fit {
            return Err(Error::Importances { values: importance.len(), n, k });
        }
        let importance = positive(importance)?;
        Ok((self.device.client().create_from_slice(bytemuck::cast_slice(&importance)), n / runs))
    }

    /// Of rows that are on the device, queued, and their values one after the other.
    fn queued(
        device: &'a CubeDevice,
        ty: GgmlType,
        values: &Activations,
        importance: Option<&[f32]>,
    ) -> Result<(Self, Handle)> {
        let (n, k) = (values.tokens(), values.k());
        let quantizer = Quantizer::new(device, ty, [n, k], n * k, importance.is_some())?;
        let importance = importance.map(|importance| quantizer.importance(importance)).transpose()?;
        let client = device.client();
        let from = values.ty();
        if !has_buffers(client.features(), from) {
            return Err(Error::NoFloat { device: device.to_string(), ty: from.name() });
        }
        let handle = match values.vector_stride() {
            Some(stride) if stride == k => values.handle().clone(),
            _ => pack(&client, values, from),
        };
        let importance = importance.as_ref().map(|(handle, rows)| (handle, *rows));
        let table = quantizer.neighbours.as_ref();
        let rows = Values { handle: &handle, ty: from, first_row: 0, rows: n, importance, table };
        quantizer.weights.quantize_rows(&client, &rows, &quantizer.faults);
        Ok((quantizer, handle))
    }

    /// The tensor, once its values are known to be finite. `values` gives them where one is not.
    fn finish(self, values: impl FnOnce() -> Result<Vec<f32>>) -> Result<DeviceTensor> {
        if self.device.read(self.faults)?.iter().all(|&byte| byte == 0) {
            return Ok(DeviceTensor::of(self.device, self.weights));
        }
        let odd = values()?.iter().position(|value| !value.is_finite()).unwrap_or(0);
        Err(Error::NotFinite { row: odd / self.weights.k() })
    }
}

/// Importances by which quantizers can divide.
pub fn positive(importances: &[f32]) -> Result<Vec<f32>> {
    if let Some(&value) = importances.iter().find(|importance| !(importance.is_finite() && **importance >= 0.0)) {
        return Err(Error::Importance { value });
    }
    let most = importances.iter().copied().fold(0.0, f32::max);
    let least = if most > 0.0 { (most * 1e-6).max(f32::MIN_POSITIVE) } else { 1.0 };
    Ok(importances.iter().map(|importance| importance.max(least)).collect())
}
