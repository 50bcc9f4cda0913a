//! Products of many tokens, on matrix units.

mod blueprint;
mod dequantized;
mod kernel;
mod launch;
mod pack;
mod problem;

use cubecl::client::Client;

use crate::gguf::GgmlType;
use crate::kernels::arch::matrix_unit::MatrixUnit;
pub use blueprint::Blueprint;
pub use dequantized::striped;
pub use launch::{multiply, multiply_experts, multiply_packed};
pub use pack::{pack, pack_sorted, run};
pub use problem::Problem;

/// Whether the device has matrix units for products of bf16, by an instruction of ours or by CubeCL's operations.
pub fn has_matrix_units(client: &Client) -> bool {
    MatrixUnit::of(client.properties()).is_some() || dequantized::has_cmma(client)
}

/// Whether products of few tokens are faster on the device's matrix units than by [`matvec`](crate::kernels::matvec). (Measured
/// on an H200, 14336 x 4096 and 4096 x 4096: F16 and BF16 by 6 to 10% at 4 tokens, twice as fast at 8.)
pub fn is_faster_for_few(client: &Client, ty: GgmlType, tokens: usize) -> bool {
    tokens >= 4
        && matches!(ty, GgmlType::F16 | GgmlType::BF16)
        && matches!(MatrixUnit::of(client.properties()), Some(MatrixUnit::Wgmma { .. }))
}
