//! Products of many tokens, on matrix units.

mod blueprint;
mod dequantized;
mod kernel;
mod launch;
mod pack;
mod problem;

pub use blueprint::Blueprint;
pub use dequantized::{has_matrix_units, striped};
pub use launch::{multiply, multiply_packed};
pub use pack::pack;
pub use problem::Problem;
