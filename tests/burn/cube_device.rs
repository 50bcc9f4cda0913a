//! The device of the tests of models and of Burn's modules.

use cube_gguf::{CubeDevice, Device};

/// CubeCL's CPU runtime, or the device that `CUBE_GGUF_TEST_DEVICE` names, as `rocm:0`.
pub fn cube_device() -> CubeDevice {
    let name = std::env::var("CUBE_GGUF_TEST_DEVICE").unwrap_or_else(|_| "cube-cpu".to_owned());
    match name.parse().unwrap() {
        Device::Cube(device) => device,
        Device::Cpu => panic!("a model is on a device of CubeCL's"),
    }
}
