//! One table: every device of this build and machine, every format, every operation, against values that gguf-py or
//! ggml computed (`tests/fixtures`), Candle's CPU code, and products in f64.
//!
//! A device that the build names and the machine lacks is one line on stderr and no test. `CUBE_GGUF_TEST_DEVICES` (as
//! `rocm:0,cube-cpu`) picks devices, and makes a missing one an error. At the end there is a summary of each GPU.

mod dot;
mod fixtures;
mod host;
mod operations;
mod storage;
mod summary;

use std::sync::Arc;

use cube_gguf::kernels::formats::FORMATS;
use cube_gguf::{Backend, CubeDevice, Device};
use fixtures::Fixture;
use libtest_mimic::{Arguments, Trial};

/// What a test of a format on a device gets.
type Check = fn(&CubeDevice, &Fixture);

fn main() {
    let arguments = Arguments::from_args();
    let mut devices = devices();
    if devices.iter().any(is_idle) {
        eprintln!("no numbers are compared: nothing computes on the HIP stand-in without an executor");
        fixtures::compare_nothing();
        devices.retain(is_idle);
    }
    let mut trials = Vec::new();
    for format in FORMATS.iter().filter(|_| fixtures::compares()) {
        let fixture = Arc::new(Fixture::load(format.ty));
        for &(name, check) in host::CHECKS {
            trials.push(trial(format!("host/{}/{name}", fixture.name), &fixture, check));
        }
    }
    trials.extend(host::trials());
    for device in &devices {
        for format in FORMATS {
            let fixture = Arc::new(Fixture::load(format.ty));
            for &(name, check) in operations::CHECKS {
                let on = device.clone();
                let name = format!("{device}/{}/{name}", fixture.name);
                trials.push(trial(name, &fixture, move |fixture| check(&on, fixture)));
            }
        }
        trials.extend(dot::trials(device));
        trials.extend(storage::trials(device));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    for device in devices.iter().filter(|device| fixtures::compares() && !device.is_software()) {
        summary::print(device);
    }
    conclusion.exit();
}

fn trial(name: String, fixture: &Arc<Fixture>, check: impl FnOnce(&Fixture) + Send + 'static) -> Trial {
    let fixture = fixture.clone();
    summary::trial(name, move || check(&fixture))
}

/// Whether the device takes kernels and runs none: the HIP stand-in (`tests/hip-stand-in`) without an executor.
fn is_idle(device: &CubeDevice) -> bool {
    device.description().starts_with("HIP stand-in") && std::env::var_os("HIP_STAND_IN_EXECUTOR").is_none()
}

/// The devices to test; says which of the build's are not here.
fn devices() -> Vec<CubeDevice> {
    if let Ok(names) = std::env::var("CUBE_GGUF_TEST_DEVICES") {
        let device = |name: &str| match name.parse() {
            Ok(Device::Cube(device)) => device,
            Ok(Device::Cpu) => panic!("cpu has no kernels of ours"),
            Err(error) => panic!("{error}"),
        };
        return names.split(',').map(device).collect();
    }
    let mut devices = Vec::new();
    for backend in Backend::ALL {
        // wgpu is Vulkan or Metal again where those are linked.
        if backend == Backend::Wgpu && cfg!(any(feature = "vulkan", feature = "metal")) {
            continue;
        }
        match CubeDevice::new(backend, 0) {
            Ok(device) if backend != Backend::CubeCpu && device.is_software() => {
                eprintln!(
                    "skipped: {device} is a software rasterizer ({}); CUBE_GGUF_TEST_DEVICES tests it",
                    device.description()
                );
            }
            Ok(device) => devices.push(device),
            Err(error) if backend.is_linked() => eprintln!("skipped: {error}"),
            Err(_) => {}
        }
    }
    devices
}
