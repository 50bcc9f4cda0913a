//! One table: every device of this build and machine, every format, every operation, against values that gguf-py or
//! ggml computed (`tests/fixtures`), Candle's CPU code, and products in f64.
//!
//! A device that the build names and the machine lacks is one line on stderr and no test. At the end there is a summary of
//! each GPU. Variables pick what runs:
//!
//! - `CUBE_GGUF_TEST_DEVICES`: devices, as `rocm:0,cube-cpu`, a missing one of which is an error; `gpus` for all GPUs that
//!   are here, `none` for the tests of no device.
//! - `CUBE_GGUF_TEST_FORMATS`: formats, as `q4_0,q4_k`.
//! - `CUBE_GGUF_TEST_SHARD`: a part of the tests on devices, as `0/2` and `1/2` for both halves.
//! - `CUBE_GGUF_TEST_FULL=1`: properties that no format changes on every format, too (`docs/testing.md`).
//! - `CUBE_GGUF_TEST_COSTS`: a file for what each test took, in JSON.

mod attention;
mod dot;
mod fixtures;
mod host;
mod operations;
mod storage;
mod summary;

use std::path::Path;
use std::sync::Arc;

use cube_gguf::gguf::GgmlType;
use cube_gguf::internals::FORMATS;
use cube_gguf::{Backend, CubeDevice, Device};
use fixtures::Fixture;
use libtest_mimic::{Arguments, Trial};

#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What a test of a format on a device gets.
type Check = fn(&CubeDevice, &Fixture);

fn main() {
    let arguments = Arguments::from_args();
    let selection = Selection::from_environment();
    let mut devices = selection.devices();
    if devices.iter().any(is_idle) {
        eprintln!("no numbers are compared: nothing computes on the HIP stand-in without an executor");
        fixtures::compare_nothing();
        devices.retain(is_idle);
    }
    let mut trials = Vec::new();
    if selection.has_host() {
        for ty in selection.formats_of_shard() {
            let fixture = Arc::new(Fixture::load(ty));
            for &(name, check) in host::CHECKS {
                trials.push(trial(format!("host/{}/{name}", fixture.name), &fixture, check));
            }
        }
        trials.extend(host::trials());
    }
    for device in &devices {
        for ty in selection.formats_of_shard() {
            let fixture = Arc::new(Fixture::load(ty));
            for &(name, formats, check) in operations::CHECKS {
                if formats.include(ty, selection.full) {
                    let on = device.clone();
                    let name = format!("{device}/{}/{name}", fixture.name);
                    trials.push(trial(name, &fixture, move |fixture| check(&on, fixture)));
                }
            }
        }
        let of_the_device =
            [dot::trials(device), attention::trials(device), storage::trials(device)].into_iter().flatten();
        let of_the_device = of_the_device.enumerate();
        trials.extend(of_the_device.filter(|&(place, _)| selection.has(place)).map(|(_, trial)| trial));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    for device in devices.iter().filter(|device| fixtures::compares() && !device.is_software()) {
        summary::print(device);
    }
    if let Some(path) = std::env::var_os("CUBE_GGUF_TEST_COSTS") {
        summary::write_costs(Path::new(&path)).expect("a file for CUBE_GGUF_TEST_COSTS");
    }
    conclusion.exit();
}

fn trial(name: String, fixture: &Arc<Fixture>, check: impl FnOnce(&Fixture) + Send + 'static) -> Trial {
    let fixture = fixture.clone();
    summary::trial(name, move || check(&fixture))
}

/// The formats that a test runs on.
#[derive(Clone, Copy)]
enum Formats {
    /// All of them: what it tests is a format's own.
    All,
    /// Those that between them have every trait that bears on what it tests, as far as anyone knows; a full run takes all.
    Some(&'static [GgmlType]),
    /// As these, but where no numbers are compared in a full run alone: all that it tests is numbers.
    Compared(&'static [GgmlType]),
    /// Those that can be what it tests, in a full run, too.
    Of(fn(GgmlType) -> bool),
}

impl Formats {
    fn include(self, ty: GgmlType, full: bool) -> bool {
        match self {
            Self::All => true,
            Self::Some(types) => full || types.contains(&ty),
            Self::Compared(types) => full || fixtures::compares() && types.contains(&ty),
            Self::Of(can) => can(ty),
        }
    }
}

/// What the variables pick.
struct Selection {
    devices: Option<String>,
    formats: Option<Vec<GgmlType>>,
    /// Which part of how many.
    shard: (usize, usize),
    full: bool,
}

impl Selection {
    fn from_environment() -> Self {
        let variable = |name: &str| std::env::var(format!("CUBE_GGUF_TEST_{name}")).ok();
        let format = |name: &str| {
            let ty: GgmlType = name.parse().unwrap_or_else(|error| panic!("{error}"));
            assert!(ty.is_weights(), "{ty} is no format of weights");
            ty
        };
        let shard = |text: String| {
            let (part, of) = text.split_once('/').expect("a shard as 0/2");
            let (part, of) = (part.parse().expect("a number"), of.parse().expect("a number"));
            assert!(part < of, "shards count from 0");
            (part, of)
        };
        Self {
            devices: variable("DEVICES"),
            formats: variable("FORMATS").map(|names| names.split(',').map(format).collect()),
            shard: variable("SHARD").map_or((0, 1), shard),
            full: variable("FULL").is_some_and(|full| full != "0"),
        }
    }

    /// Every shard has as many of those with more tests.
    fn formats_of_shard(&self) -> Vec<GgmlType> {
        let all = FORMATS.iter().map(|format| format.ty);
        let selected = all.filter(|ty| self.formats.as_ref().is_none_or(|formats| formats.contains(ty)));
        let groups: (Vec<_>, Vec<_>) = selected.partition(|&ty| operations::VARIED.contains(&ty));
        let of_shard = |group: Vec<GgmlType>| {
            group.into_iter().enumerate().filter(|&(place, _)| self.has(place)).map(|(_, ty)| ty).collect::<Vec<_>>()
        };
        [of_shard(groups.0), of_shard(groups.1)].concat()
    }

    /// Whether the shard has what comes in this place.
    fn has(&self, place: usize) -> bool {
        place % self.shard.1 == self.shard.0
    }

    /// Whether the tests of no device are wanted.
    fn has_host(&self) -> bool {
        matches!(self.devices.as_deref(), None | Some("none"))
    }

    fn devices(&self) -> Vec<CubeDevice> {
        let named = |name: &str| match name.parse() {
            Ok(Device::Cube(device)) => device,
            Ok(Device::Cpu) => panic!("cpu has no kernels of ours"),
            Err(error) => panic!("{error}"),
        };
        match self.devices.as_deref() {
            None => here(),
            Some("none") => Vec::new(),
            Some("gpus") => here().into_iter().filter(|device| device.backend() != Backend::CubeCpu).collect(),
            Some(names) => names.split(',').map(named).collect(),
        }
    }
}

/// Whether the device takes kernels and runs none: the HIP stand-in (`tests/hip-stand-in`) without an executor.
fn is_idle(device: &CubeDevice) -> bool {
    device.description().starts_with("HIP stand-in") && std::env::var_os("HIP_STAND_IN_EXECUTOR").is_none()
}

/// The devices of the build that are here; says which are not.
fn here() -> Vec<CubeDevice> {
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
