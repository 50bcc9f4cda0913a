//! Quantization on the device: of activations, to int8 codes, and of weights, to any format.

pub mod activations;
mod codes;
pub mod staged;
pub mod weights;
