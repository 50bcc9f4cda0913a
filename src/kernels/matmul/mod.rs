//! Products of many tokens, on matrix units.

mod blueprint;
mod dequantized;
mod kernel;
mod launch;
mod pack;
mod problem;

use cubecl::client::Client;

use crate::kernels::arch::matrix_unit::MatrixUnit;
pub use blueprint::{Blueprint, is_faster_for_few};
pub use dequantized::striped;
pub use launch::{multiply, multiply_experts, multiply_packed};
pub use pack::{pack, pack_sorted, run};
pub use problem::Problem;

/// Whether the device has matrix units for products of bf16, by an instruction of ours or by CubeCL's operations.
pub fn has_matrix_units(client: &Client) -> bool {
    MatrixUnit::of(client.properties()).is_some() || dequantized::has_cmma(client)
}
