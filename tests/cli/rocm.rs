//! `rocm` on machines that lack something for it: HIP, a GPU, one that CubeCL compiles for, memory. HIP is the stand-in
//! of `tests/hip-stand-in`, which is built here.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use super::{Folder, command, fixture};

const LIBRARIES: [&str; 2] = ["libamdhip64.so", "libhiprtc.so"];

/// A folder as ROCm's, with the stand-in for both of its libraries.
fn stand_in() -> &'static Path {
    static ROCM: OnceLock<PathBuf> = OnceLock::new();
    ROCM.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("hip-stand-in");
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--locked", "--manifest-path"]);
        cargo
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/hip-stand-in/Cargo.toml"))
            .arg("--target-dir")
            .arg(&target);
        assert!(cargo.status().unwrap().success());
        let rocm = target.join("rocm");
        fs::create_dir_all(rocm.join("lib")).unwrap();
        for name in LIBRARIES {
            // It may be there from an earlier run.
            let _ = symlink("../../debug/libamdhip64.so", rocm.join("lib").join(name));
        }
        rocm
    })
}

/// The command with HIP in `rocm`, and no variable of the caller's that bears on it.
fn run(rocm: &Path, variables: &[(&str, &str)], arguments: &[&str]) -> Output {
    let mut command = command(arguments);
    for name in ["HIP_PATH", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL"] {
        command.env_remove(name);
    }
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("HIP_STAND_IN_")) {
        command.env_remove(name);
    }
    command.env("ROCM_PATH", rocm).envs(variables.iter().copied()).output().unwrap()
}

/// Why `verify` on the device fails: the sentence.
fn error(rocm: &Path, variables: &[(&str, &str)], device: &str) -> String {
    let output = run(rocm, variables, &["verify", &fixture("q4_0"), "--device", device]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(output.stdout.is_empty());
    assert!(!stderr.contains("panicked"), "{stderr}");
    stderr.lines().last().unwrap().strip_prefix("cube-gguf: ").unwrap().to_owned()
}

#[test]
fn without_hip() {
    // Files of the libraries' names that are none: whatever else is installed is not found behind them.
    let folder = Folder::new("without-hip");
    for name in LIBRARIES {
        for version in ["", ".1", ".0"] {
            fs::write(folder.path(&format!("{name}{version}")), "").unwrap();
        }
    }
    let nothing = folder.path("");
    let why = error(Path::new(&nothing), &[("LD_LIBRARY_PATH", &nothing)], "rocm");
    assert!(why.starts_with("no device rocm:0: HIP's libraries are not here: install"), "{why}");
    assert!(why.contains("ROCM_PATH") && LIBRARIES.iter().all(|name| why.contains(name)), "{why}");
}

#[test]
fn without_a_gpu() {
    let why = error(stand_in(), &[("HIP_STAND_IN_DEVICES", "0")], "rocm");
    assert!(why.starts_with("no device rocm:0: HIP finds no AMD GPU: ") && why.contains("/dev/kfd"), "{why}");
    let why = error(stand_in(), &[("HIP_STAND_IN_DEVICES", "0"), ("HIP_VISIBLE_DEVICES", "-1")], "rocm");
    assert!(why.contains("HIP_VISIBLE_DEVICES is \"-1\""), "{why}");
    assert_eq!(error(stand_in(), &[], "rocm:1"), "no device rocm:1: this machine has one");
}

#[test]
fn with_an_old_hip() {
    // The stand-in with a function of ROCm 6.0 under another name.
    let folder = Folder::new("old-hip");
    let mut library = fs::read(stand_in().join("lib").join(LIBRARIES[0])).unwrap();
    let name = b"hipGetDevicePropertiesR0600\0";
    let places: Vec<_> = (0..library.len() - name.len()).filter(|&at| library[at..].starts_with(name)).collect();
    assert!(!places.is_empty());
    places.iter().for_each(|&at| library[at + 3] = b'g');
    LIBRARIES.iter().for_each(|name| fs::write(folder.path(name), &library).unwrap());
    let old = folder.path("");
    let why = error(Path::new(&old), &[], "rocm");
    let needed = "HIP 6.0 was found, which has no hipGetDevicePropertiesR0600: ROCm 6.0 or newer is needed";
    assert_eq!(why, format!("no device rocm:0: {needed}"));
    let devices = run(Path::new(&old), &[], &["devices"]);
    assert!(devices.status.success() && String::from_utf8(devices.stdout).unwrap().contains(needed));
}

#[test]
fn the_best_gpu_is_taken() {
    let best = |archs: &str| {
        let count = archs.split(',').count().to_string();
        let output = run(stand_in(), &[("HIP_STAND_IN_ARCH", archs), ("HIP_STAND_IN_DEVICES", &count)], &["devices"]);
        let stdout = String::from_utf8(output.stdout).unwrap();
        let line = stdout.lines().find(|line| line.contains(" auto ")).unwrap().to_owned();
        (line.split(' ').next().unwrap().to_owned(), String::from_utf8(output.stderr).unwrap())
    };
    // One with memory of its own.
    assert_eq!(best("gfx1035,gfx1100"), ("rocm:1".to_owned(), String::new()));
    assert_eq!(best("gfx1100,gfx1035"), ("rocm:0".to_owned(), String::new()));
    // One that CubeCL compiles for, and a word on the other.
    let (device, stderr) = best("gfx90c,gfx1100");
    assert_eq!(device, "rocm:1");
    assert!(stderr.contains("no device rocm:0: CubeCL compiles for") && stderr.contains("gfx90c"), "{stderr}");
    let (device, stderr) = best("gfx90c");
    assert!(device == "cpu" && stderr.contains("gfx90c; the device `vulkan`"), "{stderr}");
}

#[test]
fn with_a_gpu_that_nothing_compiles_for() {
    let unknown = [("HIP_STAND_IN_ARCH", "gfx1337:xnack-")];
    let why = error(stand_in(), &unknown, "rocm");
    assert!(why.starts_with("no device rocm:0: CubeCL compiles for gfx"), "{why}");
    assert!(why.contains("this GPU is gfx1337;") && why.contains("HSA_OVERRIDE_GFX_VERSION"), "{why}");
    let why = error(stand_in(), &[("HIP_STAND_IN_ARCH", "gfx942"), ("HIP_STAND_IN_WAVEFRONT", "32")], "rocm");
    assert!(why.contains("gfx942 has wavefronts of 32 lanes, and CubeCL compiles for 64"), "{why}");
    // The others are there as ever.
    let devices = run(stand_in(), &unknown, &["devices"]);
    let devices = String::from_utf8(devices.stdout).unwrap();
    assert!(devices.contains("cpu ") && !devices.contains("stand-in"), "{devices}");
}

#[test]
fn with_a_gpu() {
    for arch in ["gfx1030", "gfx1100", "gfx1201", "gfx908", "gfx90a:sramecc+:xnack-", "gfx942"] {
        let devices = run(stand_in(), &[("HIP_STAND_IN_ARCH", arch)], &["devices"]);
        let devices = String::from_utf8(devices.stdout).unwrap();
        assert!(devices.contains(&format!("HIP stand-in {arch}")), "{devices}");
    }
}

#[test]
fn without_memory() {
    let why = error(stand_in(), &[("HIP_STAND_IN_MEMORY_BYTES", "4096")], "rocm");
    assert!(why.contains("rocm:0: ") && why.contains("hipMalloc failed"), "{why}");
}

#[test]
fn bench_replays_a_graph() {
    let shape = ["--types", "q4_0,f16", "--n", "8", "--k", "256", "--tokens", "1,9"];
    let bench = [&["bench", "--csv", "--graph", "--device", "rocm"], &shape[..]].concat();
    let output = run(stand_in(), &[], &bench);
    let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    // What HIP does not take while it records is an error of the stand-in's.
    assert!(output.status.success() && !stderr.contains("hip"), "{stderr}");
    assert_eq!(stdout.lines().count(), 5, "{stdout}");
}
