//! Quantization on the device: of activations, to int8 codes.

pub mod activations;
mod codes;
pub mod staged;
