//! A tensor of a file as a matrix, in the file and on a device.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use candle_core::{Device as Host, Tensor};
use cube_gguf::gguf::TensorInfo;
use cube_gguf::internals::{Format, format};
use cube_gguf::{Accuracy, Arithmetic, CubeDevice, Device, DeviceTensor, Error, FloatType, QTensor};
use half::{bf16, f16};

use crate::Outcome;

/// The most bytes of f32 values that are in host memory at a time, unless one row has more.
pub const STRIPE_BYTES: usize = 64 << 20;

/// The error of a tensor without values.
#[derive(Debug, thiserror::Error)]
#[error("the tensor has no values: its shape is {0:?}")]
pub struct NoValues(Vec<usize>);

/// A tensor of a file: `n` rows of `k` weights. A vector is one row.
pub struct Weights<'a> {
    pub info: TensorInfo<'a>,
    pub format: &'static Format,
    pub n: usize,
    pub k: usize,
    /// Little-endian blocks.
    pub data: Cow<'a, [u8]>,
}

impl<'a> Weights<'a> {
    /// The tensor as a matrix.
    ///
    /// # Errors
    ///
    /// Where the tensor's type is unknown or holds no weights, where the tensor has no values, or where it is big-endian
    /// and its format has no big-endian form.
    pub fn new(info: TensorInfo<'a>) -> Outcome<Self> {
        let ty = info.dtype()?;
        let format = format(ty).ok_or(Error::NotWeights { ty })?;
        if info.elements() == 0 {
            return Err(NoValues(info.shape()).into());
        }
        let data = format.little_endian(info.data()?, info.endian()).ok_or(Error::BigEndian { ty })?;
        let (n, k) = info.matrix();
        Ok(Self { info, format, n, k, data })
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.data.len() / self.n
    }

    /// The blocks of `rows` rows from row `first` on.
    pub fn rows(&self, first: usize, rows: usize) -> &[u8] {
        &self.data[first * self.row_bytes()..][..rows * self.row_bytes()]
    }

    /// The first row and the number of rows of each stripe: [`stripes`] of [`STRIPE_BYTES`].
    pub fn stripes(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        stripes(self.n, self.k, STRIPE_BYTES)
    }

    /// The values of a row by the host's decoder.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        self.format.dequantize_blocks(self.rows(row, 1), out);
    }

    /// Uploads the tensor to a device.
    pub fn load(&self, device: &Device) -> cube_gguf::Result<Loaded> {
        Ok(match device {
            Device::Cube(device) => {
                // The file's own bytes: the library must swap big-endian ones itself.
                Loaded::Cube(DeviceTensor::load(device, &self.info)?)
            }
            Device::Cpu => Loaded::Host(QTensor::from_gguf(
                self.format.ty,
                Cow::Borrowed(&self.data),
                (self.n, self.k),
                &Device::Cpu,
            )?),
        })
    }

    /// The values of the rows in host memory, as little-endian floats of type `to`.
    pub fn dequantize(&self, loaded: &Loaded, first: usize, rows: usize, to: FloatType) -> cube_gguf::Result<Vec<u8>> {
        match loaded {
            Loaded::Cube(tensor) => {
                let handle = tensor.dequantize_rows_on_device(first, rows, to)?;
                let device = tensor.device();
                let bytes = device.client().read_one(handle).map_err(|error| failed(device, error))?;
                let mut bytes = bytes.to_vec();
                bytes.truncate(rows * self.k * to.bytes());
                Ok(bytes)
            }
            Loaded::Host(_) => {
                let values = self.stripe(first, rows)?.dequantize(&Host::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
                Ok(match to {
                    FloatType::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
                    FloatType::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
                    FloatType::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
                })
            }
        }
    }

    /// Some rows as a tensor of their own: Candle dequantizes only whole tensors.
    fn stripe(&self, first: usize, rows: usize) -> cube_gguf::Result<QTensor> {
        let blocks = Cow::Borrowed(self.rows(first, rows));
        Ok(QTensor::from_gguf(self.format.ty, blocks, (rows, self.k), &Device::Cpu)?)
    }

    /// Time of dequantizing the whole tensor to f32 on a warm device.
    pub fn time_dequantize(&self, loaded: &Loaded) -> cube_gguf::Result<Duration> {
        let mut time = Duration::ZERO;
        match loaded {
            Loaded::Cube(tensor) => {
                sync(tensor.device())?;
                let start = Instant::now();
                for (first, rows) in self.stripes() {
                    tensor.dequantize_rows_on_device(first, rows, FloatType::F32)?;
                }
                sync(tensor.device())?;
                time = start.elapsed();
            }
            Loaded::Host(_) => {
                for (first, rows) in self.stripes() {
                    let stripe = self.stripe(first, rows)?;
                    let start = Instant::now();
                    stripe.dequantize(&Host::Cpu)?;
                    time += start.elapsed();
                }
            }
        }
        Ok(time)
    }
}

/// Splits `n` rows of `k` f32 into stripes of at most `bytes` bytes, but at least a row: first row and number of rows.
pub fn stripes(n: usize, k: usize, bytes: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
    let rows = (bytes / 4 / k.max(1)).max(1);
    (0..n).step_by(rows).map(move |first| (first, rows.min(n - first)))
}

/// Waits for all work queued on a device.
pub fn sync(device: &CubeDevice) -> cube_gguf::Result<()> {
    cubecl::future::block_on(device.client().sync()).map_err(|error| failed(device, error))
}

/// The library's error for a failure of the device.
pub fn failed(device: &CubeDevice, error: impl std::fmt::Display) -> Error {
    Error::Device { device: device.to_string(), reason: error.to_string() }
}

/// A matrix on a device.
pub enum Loaded {
    /// A tensor of a CubeCL device.
    Cube(DeviceTensor),
    /// Candle's tensor, in host memory.
    Host(QTensor),
}

impl Loaded {
    /// Bytes on the device.
    pub fn device_bytes(&self) -> usize {
        match self {
            Self::Cube(tensor) => tensor.device_bytes(),
            Self::Host(tensor) => tensor.storage_size_in_bytes(),
        }
    }

    /// The blocks, read back.
    pub fn data(&self) -> cube_gguf::Result<Cow<'_, [u8]>> {
        match self {
            Self::Cube(tensor) => tensor.data().map(Cow::Owned),
            Self::Host(tensor) => Ok(tensor.data()?),
        }
    }

    /// The accuracy of a product with `tokens` rows of activations.
    pub fn accuracy(&self, tokens: usize, arithmetic: Arithmetic) -> Accuracy {
        match self {
            Self::Cube(tensor) => tensor.accuracy(tokens, arithmetic),
            Self::Host(tensor) => tensor.accuracy(tokens, arithmetic),
        }
    }

    /// `x` `[.., k]` times the transpose of the matrix.
    pub fn matmul(&self, x: &[f32], shape: &[usize], arithmetic: Arithmetic) -> cube_gguf::Result<Vec<f32>> {
        match self {
            Self::Cube(tensor) => tensor.matmul(x, shape, arithmetic),
            Self::Host(tensor) => {
                let k = tensor.shape().dims().last().copied().unwrap_or(1);
                if shape.last() != Some(&k) {
                    return Err(Error::Activations { shape: shape.to_vec(), k });
                }
                if x.is_empty() {
                    return Ok(Vec::new());
                }
                let x = Tensor::from_slice(x, (x.len() / k, k), &Host::Cpu)?;
                Ok(tensor.matmul_t(&x, arithmetic)?.flatten_all()?.to_vec1()?)
            }
        }
    }
}

/// Pseudo-random numbers from a seed: SplitMix64.
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// An approximately normal number of variance 1: a scaled sum of four uniform ones.
    pub fn normal(&mut self) -> f32 {
        let bits = self.bits();
        let sum: f32 = (0..4).map(|i| ((bits >> (16 * i)) & 0xffff) as f32 / 65536.0 - 0.5).sum();
        sum * 3f32.sqrt()
    }

    /// `count` numbers of [`normal`](Self::normal).
    pub fn normals(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.normal()).collect()
    }
}
