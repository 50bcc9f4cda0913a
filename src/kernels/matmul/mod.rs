//! Products of many tokens, on matrix units.

mod blueprint;
mod dequantized;
mod kernel;
mod launch;
mod problem;

pub use blueprint::Blueprint;
pub use dequantized::{has_matrix_units, striped};
pub use launch::{multiply, multiply_packed, pack, unit_of};
pub use problem::Problem;
