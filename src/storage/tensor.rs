//! [`DeviceTensor`]: a quantized matrix on a device, for any framework.

use std::fmt;
use std::sync::Arc;

use cubecl::bytes::Bytes;
use cubecl::client::Client;
use cubecl::server::Handle;

use super::device::{CubeDevice, indices};
use crate::gguf::{Endian, GgmlType, Gguf, TensorInfo};
use crate::kernels::accuracy::Accuracy;
use crate::kernels::activations::{Activations, cast};
use crate::kernels::dequantize;
use crate::kernels::epilogue::{RowsOf, scale_rows};
use crate::kernels::floats::{FloatType, has_buffers};
use crate::kernels::formats::format;
use crate::kernels::hardware::Hardware;
use crate::kernels::launch::used_bytes;
use crate::kernels::matvec::{Blueprint, matvec_many_with, matvec_with};
#[cfg(feature = "models")]
use crate::kernels::ops::matmul_closely;
use crate::kernels::ops::{Arithmetic, Matrix, matmul, matmul_experts, matmul_many, resolve};
use crate::kernels::routing::Routing;
use crate::kernels::tune::Selection;
use crate::kernels::weights::{GgufMatrix, Weights};
use crate::{Error, Result};

/// `n` rows of `k` weights of one GGUF type on a device. Cloning shares them.
///
/// Methods whose names end in `_on_device` queue their work and return; a failure of the device shows up at the next
/// read of the result. The other operations read their result and return the failure themselves; those of one tensor, from
/// however many threads, are one after the other on the device.
#[derive(Clone)]
pub struct DeviceTensor(Arc<Inner>);

struct Inner {
    device: CubeDevice,
    weights: Weights,
    selection: Selection,
}

impl DeviceTensor {
    /// Uploads a file's tensor, as the matrix that [`TensorInfo::matrix`] says it is.
    ///
    /// # Errors
    ///
    /// As [`from_gguf`](Self::from_gguf), and [`Error::Gguf`] for a tensor of an unknown type.
    pub fn load(device: &CubeDevice, tensor: &TensorInfo) -> Result<Self> {
        let (n, k) = tensor.matrix();
        Self::from_gguf(device, tensor.dtype()?, n, k, tensor.data()?, tensor.endian())
    }

    /// Uploads the tensor `name` of a file as [`load`](Self::load) does, with the factors and biases that the file has for it:
    /// those of `NAME.weight` are called `NAME.scale` and `NAME.bias`. (`NAME.input_scale`, of files for other programs, is for the
    /// quantization of activations; ggml uses it in no product.)
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load) and [`with_scale`](Self::with_scale); [`Error::Gguf`] where there is no such tensor.
    pub fn load_from(device: &CubeDevice, file: &Gguf<'_>, name: &str) -> Result<Self> {
        let tensor = Self::load(device, &file.tensor(name)?)?;
        let [scale, bias] = ["scale", "bias"].map(|part| companion(file, name, part));
        tensor.with_companions(scale?.as_deref(), bias?.as_deref())
    }

    /// Uploads the GGUF blocks of an `n` x `k` matrix; a vector is a matrix of one row.
    ///
    /// The data goes through a staging buffer of 16 MiB and is repacked on the device.
    ///
    /// # Errors
    ///
    /// [`Error::NotWeights`] for integers and f64, [`Error::BigEndian`] for big-endian data of a format without such a
    /// form, [`Error::Size`] where the size of the data does not match the shape, [`Error::TooLarge`] where it exceeds
    /// the device's largest buffer, [`Error::Device`] where the device failed, as when out of memory.
    pub fn from_gguf(
        device: &CubeDevice,
        ty: GgmlType,
        n: usize,
        k: usize,
        data: &[u8],
        endian: Endian,
    ) -> Result<Self> {
        let format = format(ty).ok_or(Error::NotWeights { ty })?;
        if endian == Endian::Big && format.multibyte.is_none() {
            return Err(Error::BigEndian { ty });
        }
        let client = device.client();
        let most = client.properties().memory.max_page_size;
        if data.len() as u64 > most {
            return Err(Error::TooLarge { device: device.to_string(), bytes: data.len(), most });
        }
        let codebook = device.codebook(&client, ty);
        let size = || Error::Size { ty, n, k, bytes: data.len() };
        let weights = Weights::upload(&client, GgufMatrix { ty, n, k, data, endian }, codebook).ok_or_else(size)?;
        client.check([weights.handle()]).map_err(|error| device.failed(error))?;
        Ok(Self::of(device, weights))
    }

    /// The same weights `scale` times as large, or, where there are several, with one for each of as many runs of rows: the experts
    /// of a stack. So files have the second scale of NVFP4, as `NAME.scale`. [`data`](Self::data) stays that of the blocks.
    ///
    /// # Errors
    ///
    /// [`Error::Companion`] where the number of scales does not divide that of rows.
    pub fn with_scale(&self, scale: &[f32]) -> Result<Self> {
        if scale.is_empty() || !self.n().is_multiple_of(scale.len()) {
            return Err(Error::Companion { what: "scales", values: scale.len(), rows: self.n() });
        }
        let scales = self.0.device.client().create_from_slice(bytemuck::cast_slice(scale));
        Ok(Self::of(&self.0.device, self.0.weights.with(Some(scales), None)))
    }

    /// The same weights with products to which `bias` is added, a value for each row.
    ///
    /// # Errors
    ///
    /// [`Error::Companion`] where there are more or fewer values.
    pub fn with_bias(&self, bias: &[f32]) -> Result<Self> {
        if bias.is_empty() || bias.len() != self.n() {
            return Err(Error::Companion { what: "biases", values: bias.len(), rows: self.n() });
        }
        let biases = self.0.device.client().create_from_slice(bytemuck::cast_slice(bias));
        Ok(Self::of(&self.0.device, self.0.weights.with(None, Some(biases))))
    }

    /// The same weights, factors and biases on another device, or once more on this one.
    ///
    /// # Errors
    ///
    /// As [`from_gguf`](Self::from_gguf), [`Error::Device`] also where the tensor's own device failed.
    pub fn copied_to(&self, device: &CubeDevice) -> Result<Self> {
        let copy = Self::from_gguf(device, self.ty(), self.n(), self.k(), &self.data()?, Endian::Little)?;
        let values = |handle: &Handle| -> Result<Vec<f32>> {
            Ok(FloatType::F32.to_f32(&self.read(|| Ok(handle.clone()))?, used_bytes(handle) / 4))
        };
        let [scale, bias] = [self.0.weights.scales(), self.0.weights.biases()].map(|handle| handle.map(values));
        copy.with_companions(scale.transpose()?.as_deref(), bias.transpose()?.as_deref())
    }

    /// The same weights with the factors and the biases that there are.
    ///
    /// # Errors
    ///
    /// As [`with_scale`](Self::with_scale) and [`with_bias`](Self::with_bias).
    pub(crate) fn with_companions(self, scale: Option<&[f32]>, bias: Option<&[f32]>) -> Result<Self> {
        let scaled = match scale {
            Some(scale) => self.with_scale(scale)?,
            None => self,
        };
        match bias {
            Some(bias) => scaled.with_bias(bias),
            None => Ok(scaled),
        }
    }

    pub(super) fn of(device: &CubeDevice, weights: Weights) -> Self {
        Self(Arc::new(Inner { device: device.clone(), weights, selection: Selection::default() }))
    }

    /// The tensor's device.
    pub fn device(&self) -> &CubeDevice {
        &self.0.device
    }

    /// The GGUF type.
    pub fn ty(&self) -> GgmlType {
        self.0.weights.ty()
    }

    /// Rows: output features.
    pub fn n(&self) -> usize {
        self.0.weights.n()
    }

    /// Columns: input features.
    pub fn k(&self) -> usize {
        self.0.weights.k()
    }

    /// Bytes of the tensor on the device, without its format's codebook, which all tensors share.
    pub fn device_bytes(&self) -> usize {
        self.0.weights.device_bytes()
    }

    /// The GGUF blocks, little-endian, bit for bit those that were uploaded.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] where the device failed, now or at the upload.
    pub fn data(&self) -> Result<Vec<u8>> {
        let bytes = self.read(|| Ok(self.0.weights.handle().clone()))?;
        Ok(self.0.weights.to_gguf(&words(&bytes)))
    }

    /// All values as contiguous `[n, k]` floats on the device.
    pub fn dequantize_on_device(&self, to: FloatType) -> Handle {
        self.decoded(to, self.n(), RowsOf::Range(0))
    }

    /// Rows as floats, times their factors.
    fn decoded(&self, to: FloatType, count: usize, rows: RowsOf<'_>) -> Handle {
        let (client, weights) = (self.0.device.client(), &self.0.weights);
        let scales = weights.scales();
        let ty = if scales.is_some() { FloatType::F32 } else { to };
        let values = match rows {
            RowsOf::Range(first) => dequantize::dequantize(&client, weights, first, count, ty),
            RowsOf::Ids(ids) => dequantize::rows(&client, weights, ids, count, ty),
        };
        let Some(scales) = scales else { return values };
        scale_rows(&client, &values, [count, self.n(), self.k()], rows, scales);
        if to == ty { values } else { cast(&client, &values, count * self.k(), to) }
    }

    /// Rows `first..first + rows` as contiguous floats on the device.
    ///
    /// # Errors
    ///
    /// [`Error::RowOutOfRange`] where the range is not in the matrix.
    pub fn dequantize_rows_on_device(&self, first: usize, rows: usize, to: FloatType) -> Result<Handle> {
        let end = first.saturating_add(rows);
        if end > self.n() {
            return Err(Error::RowOutOfRange { id: end as i64 - 1, rows: self.n() });
        }
        Ok(self.decoded(to, rows, RowsOf::Range(first)))
    }

    /// All values, read back: ggml's own values, rounded once where `to` is not f32.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] where the device failed.
    pub fn dequantize(&self, to: FloatType) -> Result<Vec<f32>> {
        let bytes = self.read(|| Ok(self.dequantize_on_device(to)))?;
        Ok(to.to_f32(&bytes, self.n() * self.k()))
    }

    /// The bytes of all values as little-endian floats of type `to`, read back.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] where the device failed.
    pub fn dequantize_bytes(&self, to: FloatType) -> Result<Vec<u8>> {
        let bytes = self.read(|| Ok(self.dequantize_on_device(to)))?;
        Ok(bytes[..self.n() * self.k() * to.bytes()].to_vec())
    }

    /// The rows that `ids` name, as contiguous `[ids, k]` values, read back.
    ///
    /// # Errors
    ///
    /// [`Error::RowOutOfRange`] with the first id outside the matrix, [`Error::Device`] where the device failed.
    pub fn rows<I: Copy + Into<i64>>(&self, ids: &[I], to: FloatType) -> Result<Vec<f32>> {
        let bytes = self.read(|| self.rows_on_device(ids, to))?;
        Ok(to.to_f32(&bytes, ids.len() * self.k()))
    }

    /// [`rows`](Self::rows), left on the device.
    ///
    /// # Errors
    ///
    /// As [`rows`](Self::rows).
    pub fn rows_on_device<I: Copy + Into<i64>>(&self, ids: &[I], to: FloatType) -> Result<Handle> {
        let rows = self.n();
        let ids = indices(ids, rows, |id| Error::RowOutOfRange { id, rows })?;
        let client = self.0.device.client();
        // A kernel cannot bind an empty buffer.
        let on_device = client.create_from_slice(bytemuck::cast_slice(if ids.is_empty() { &[0] } else { &ids[..] }));
        Ok(self.decoded(to, ids.len(), RowsOf::Ids(&on_device)))
    }

    /// The rows that `count` u32 ids on the device name, as contiguous `[count, k]` values on the device. An id that names no
    /// row gives the last.
    ///
    /// # Errors
    ///
    /// [`Error::RowOutOfRange`] where the matrix has no rows.
    #[cfg(any(feature = "burn", feature = "models"))]
    pub(crate) fn gather_on_device(&self, ids: &Handle, count: usize, to: FloatType) -> Result<Handle> {
        if self.n() == 0 && count > 0 {
            return Err(Error::RowOutOfRange { id: 0, rows: 0 });
        }
        Ok(self.decoded(to, count, RowsOf::Ids(ids)))
    }

    /// The resolved arithmetic of a product with `tokens` rows of activations on this device.
    pub fn accuracy(&self, tokens: usize, arithmetic: Arithmetic) -> Accuracy {
        resolve(&self.0.device.client(), self.ty(), tokens, arithmetic)
    }

    /// `x` `[.., k]` times the transpose of the matrix, as contiguous `[.., n]` values of `x`'s type, on the device.
    ///
    /// # Errors
    ///
    /// [`Error::Activations`] where `x` is a scalar or its last extent is not `k`, [`Error::ForeignActivations`] where
    /// `x` is in the memory of another device, [`Error::NoFloat`] where the device has no buffers of `x`'s type.
    pub fn matmul_on_device(&self, x: &Activations, arithmetic: Arithmetic) -> Result<Handle> {
        self.check(x)?;
        Ok(matmul(&self.0.device.client(), self.matrix(), x, arithmetic))
    }

    /// [`matmul_on_device`](Self::matmul_on_device) by products of f32 for any number of tokens: nearer than those of matrix units,
    /// and slower.
    ///
    /// # Errors
    ///
    /// As [`matmul_on_device`](Self::matmul_on_device).
    #[cfg(feature = "models")]
    pub(crate) fn matmul_closely_on_device(&self, x: &Activations) -> Result<Handle> {
        self.check(x)?;
        Ok(matmul_closely(&self.0.device.client(), self.matrix(), x))
    }

    /// [`matmul_on_device`](Self::matmul_on_device) for several matrices, bit for bit, with the results in their order.
    /// Except on matrix units this costs less: the activations are quantized once, matrices of one format share a
    /// launch, and the results are parts of one buffer.
    ///
    /// # Errors
    ///
    /// As [`matmul_on_device`](Self::matmul_on_device) for any of the matrices, and [`Error::Devices`] where they are not
    /// all on one device.
    pub fn matmul_many_on_device(matrices: &[&Self], x: &Activations, arithmetic: Arithmetic) -> Result<Vec<Handle>> {
        let Some(device) = Self::check_all(matrices, x)? else { return Ok(Vec::new()) };
        let matrices: Vec<Matrix> = matrices.iter().map(|matrix| matrix.matrix()).collect();
        Ok(matmul_many(&device.client(), &matrices, x, arithmetic))
    }

    /// Products with a stack of experts, whose rows the matrix has one after the other: for each token and each of its experts,
    /// the token's row of `x` times the transpose of the expert's weights, as contiguous `[tokens, slots, n]` values of `x`'s type on
    /// the device, where `n` is an expert's rows. `x` has a row of `k` values a token, or one for each of a token's experts.
    ///
    /// Up to eight tokens are multiplied pair by pair; the pairs of more are sorted by expert on the device, where it has matrix
    /// units, and each expert's are one product. An id that names no expert gives a row of NaNs.
    ///
    /// # Errors
    ///
    /// As [`matmul_on_device`](Self::matmul_on_device); [`Error::Experts`] where the matrix is no such stack, [`Error::Routed`] where
    /// `x` has another number of rows.
    pub fn matmul_experts_on_device(
        &self,
        x: &Activations,
        routing: &Routing,
        arithmetic: Arithmetic,
    ) -> Result<Handle> {
        let mut products = Self::matmul_experts_many_on_device(&[self], x, routing, arithmetic)?;
        Ok(products.remove(0))
    }

    /// [`matmul_experts_on_device`](Self::matmul_experts_on_device) for several stacks, such as gate and up, with the results in their
    /// order. It costs less: the activations are quantized or sorted once, and for few tokens stacks of one format and as many rows
    /// share a launch.
    ///
    /// # Errors
    ///
    /// As [`matmul_experts_on_device`](Self::matmul_experts_on_device) for any of the stacks, and [`Error::Devices`] where they are not
    /// all on one device.
    pub fn matmul_experts_many_on_device(
        stacks: &[&Self],
        x: &Activations,
        routing: &Routing,
        arithmetic: Arithmetic,
    ) -> Result<Vec<Handle>> {
        let Some(device) = Self::check_all(stacks, x)? else { return Ok(Vec::new()) };
        let (tokens, slots, experts) = (routing.tokens(), routing.slots(), routing.experts());
        if let Some(other) = stacks.iter().find(|stack| !stack.n().is_multiple_of(experts)) {
            return Err(Error::Experts { rows: other.n(), experts });
        }
        if ![tokens, tokens * slots].contains(&x.tokens()) {
            return Err(Error::Routed { shape: x.shape().to_vec(), tokens, slots });
        }
        let client = device.client();
        device.check_own(routing.handle())?;
        let stacks: Vec<&Weights> = stacks.iter().map(|stack| &stack.0.weights).collect();
        Ok(matmul_experts(&client, &stacks, x, routing, arithmetic))
    }

    /// [`matmul_experts_on_device`](Self::matmul_experts_on_device) of host values: one upload, the product, one download.
    ///
    /// # Errors
    ///
    /// As [`matmul_experts_on_device`](Self::matmul_experts_on_device); [`Error::Activations`] also where `x` does not have the values
    /// of `shape`, [`Error::Device`] where the device failed.
    pub fn matmul_experts(
        &self,
        x: &[f32],
        shape: &[usize],
        routing: &Routing,
        arithmetic: Arithmetic,
    ) -> Result<Vec<f32>> {
        if shape.iter().product::<usize>() != x.len() {
            return Err(Error::Activations { shape: shape.to_vec(), k: self.k() });
        }
        let bytes = self.read(|| {
            let client = self.0.device.client();
            // A kernel cannot bind an empty buffer.
            let x = client.create_from_slice(bytemuck::cast_slice(if x.is_empty() { &[0.0] } else { x }));
            let x = Activations::contiguous(x, FloatType::F32, shape.to_vec())?;
            self.matmul_experts_on_device(&x, routing, arithmetic)
        })?;
        Ok(FloatType::F32.to_f32(&bytes, routing.pairs() * (self.n() / routing.experts())))
    }

    /// [`matmul_on_device`](Self::matmul_on_device) by a given blueprint, for the search.
    pub(crate) fn matmul_by(&self, x: &Activations, blueprint: Blueprint) -> Result<Handle> {
        self.check(x)?;
        let client = self.0.device.client();
        self.check_blueprint(&client, blueprint)?;
        Ok(matvec_with(&client, &self.0.weights, x, blueprint.operand, |_| blueprint))
    }

    /// [`matmul_many_on_device`](Self::matmul_many_on_device) by one blueprint for all matrices.
    pub(crate) fn matmul_many_by(matrices: &[&Self], x: &Activations, blueprint: Blueprint) -> Result<Vec<Handle>> {
        let Some(device) = Self::check_all(matrices, x)? else { return Ok(Vec::new()) };
        let client = device.client();
        matrices.iter().try_for_each(|matrix| matrix.check_blueprint(&client, blueprint))?;
        let weights: Vec<&Weights> = matrices.iter().map(|matrix| &matrix.0.weights).collect();
        Ok(matvec_many_with(&client, &weights, x, blueprint.operand, |_, _, _| blueprint))
    }

    fn matrix(&self) -> Matrix<'_> {
        Matrix { weights: &self.0.weights, selection: &self.0.selection }
    }

    /// Checks that the device supports the blueprint for this matrix.
    fn check_blueprint(&self, client: &Client, blueprint: Blueprint) -> Result<()> {
        match (Blueprint { ty: self.ty(), ..blueprint }).is_supported(&Hardware::of(client)) {
            true => Ok(()),
            false => Err(self.0.device.failed(format_args!("the device has no such kernel as {blueprint:?}"))),
        }
    }

    /// The device of all matrices, each of which takes the activations; `None` where there are no matrices.
    fn check_all<'a>(matrices: &[&'a Self], x: &Activations) -> Result<Option<&'a CubeDevice>> {
        let Some((first, others)) = matrices.split_first() else { return Ok(None) };
        let device = &first.0.device;
        if let Some(other) = others.iter().find(|other| other.0.device != *device) {
            return Err(Error::Devices { first: device.to_string(), other: other.0.device.to_string() });
        }
        matrices.iter().try_for_each(|matrix| matrix.check(x))?;
        Ok(Some(device))
    }

    /// Checks that the activations fit the matrix, and lie on its device in a type that the device has.
    fn check(&self, x: &Activations) -> Result<()> {
        if x.shape().is_empty() || x.k() != self.k() {
            return Err(Error::Activations { shape: x.shape().to_vec(), k: self.k() });
        }
        self.0.device.check_own(x.handle())?;
        self.check_float(x.ty())
    }

    /// Checks that the device has buffers of a type.
    pub(crate) fn check_float(&self, ty: FloatType) -> Result<()> {
        match has_buffers(self.0.device.client().features(), ty) {
            true => Ok(()),
            false => Err(Error::NoFloat { device: self.0.device.to_string(), ty: ty.name() }),
        }
    }

    /// [`matmul_on_device`](Self::matmul_on_device) of host values: one upload, the product, one download.
    ///
    /// # Errors
    ///
    /// As [`matmul_on_device`](Self::matmul_on_device); [`Error::Activations`] also where `x` does not have the values
    /// of `shape`, [`Error::Device`] where the device failed.
    pub fn matmul(&self, x: &[f32], shape: &[usize], arithmetic: Arithmetic) -> Result<Vec<f32>> {
        let tokens: usize = shape.iter().rev().skip(1).product();
        if shape.iter().product::<usize>() != x.len() {
            return Err(Error::Activations { shape: shape.to_vec(), k: self.k() });
        }
        if tokens == 0 || x.is_empty() {
            return match shape.last() == Some(&self.k()) {
                true => Ok(Vec::new()),
                false => Err(Error::Activations { shape: shape.to_vec(), k: self.k() }),
            };
        }
        let bytes = self.read(|| {
            let x = self.0.device.client().create_from_slice(bytemuck::cast_slice(x));
            let x = Activations::contiguous(x, FloatType::F32, shape.to_vec())?;
            self.matmul_on_device(&x, arithmetic)
        })?;
        Ok(FloatType::F32.to_f32(&bytes, tokens * self.n()))
    }

    /// Runs a call that gives host values on the stream that uploaded the weights, whichever thread it is on: a stream keeps the
    /// memory that it once took, and each thread has one of its own.
    pub(crate) fn in_turn<T>(&self, call: impl FnOnce() -> T) -> T {
        self.0.weights.handle().stream.executes(call)
    }

    /// What a call leaves on the device, [in turn](Self::in_turn).
    fn read(&self, call: impl FnOnce() -> Result<Handle>) -> Result<Bytes> {
        self.in_turn(|| self.0.device.read(call()?))
    }
}

impl fmt::Debug for DeviceTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceTensor({} x {} {} on {})", self.n(), self.k(), self.ty(), self.0.device)
    }
}

/// The device's bytes as words; they need not be aligned.
fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// The values of the tensor that a file has beside `NAME.weight`, as `NAME.scale` is.
pub(crate) fn companion(file: &Gguf<'_>, weight: &str, part: &str) -> Result<Option<Vec<f32>>> {
    let name = weight.strip_suffix(".weight").map(|name| format!("{name}.{part}"));
    let Some(tensor) = name.and_then(|name| file.tensor(&name).ok()) else { return Ok(None) };
    let ((n, k), endian) = (tensor.matrix(), tensor.endian());
    GgufMatrix { ty: tensor.dtype()?, n, k, data: tensor.data()?, endian }.values().map(Some)
}
