//! Products of many tokens, on matrix units.

mod dequantized;

pub use dequantized::{has_matrix_units, striped};
