//! Burn modules over device tensors (feature `burn`): [`QLinear`], [`QEmbedding`] and [`QExperts`] take and give ordinary Burn
//! tensors.
//!
//! Burn's GPU backend is CubeCL, like this crate's kernels: tensors meet in the device's memory, without a copy and without
//! waiting, on Burn's plain backend and on its fusing one (Burn's feature `fusion`).
//!
//! ```no_run
//! use burn::tensor::{Device, Tensor};
//! use cube_gguf::burn::QLinear;
//! use cube_gguf::gguf::Files;
//! use cube_gguf::{Backend, CubeDevice, DeviceTensor};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = CubeDevice::new(Backend::CubeCpu, 0)?;
//! let files = Files::open("model.gguf")?;
//! let weight = DeviceTensor::load(&device, &files.parse()?.tensor("blk.0.attn_q.weight")?)?;
//! let layer = QLinear::new(weight);
//!
//! let x = Tensor::<2>::ones([1, layer.d_input()], &Device::from(&device));
//! let y = layer.forward(x.clone()) + x;
//! # drop(y);
//! # Ok(())
//! # }
//! ```

mod embedding;
mod experts;
mod linear;
mod matrix;
mod ops;

pub use embedding::QEmbedding;
pub use experts::QExperts;
pub use linear::QLinear;
