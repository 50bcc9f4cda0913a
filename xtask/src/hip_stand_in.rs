//! `cargo xtask hip-stand-in -- PROGRAM`: runs a program on the HIP library of `tests/hip-stand-in`, as an AMD GPU of
//! any architecture.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::{process, setup};

#[derive(clap::Args)]
pub struct Args {
    /// What the GPU says it is.
    #[arg(long, default_value = "gfx1100")]
    arch: String,
    /// The socket of a program that runs the kernels; without one they do nothing.
    #[arg(long)]
    executor: Option<PathBuf>,
    /// The program, and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Its exit status is the program's.
pub fn run(args: &Args) -> Result<ExitCode> {
    let environment = environment(&args.arch, args.executor.as_deref())?;
    let [program, arguments @ ..] = &args.command[..] else { bail!("no program to run") };
    let status = Command::new(program).args(arguments).envs(environment).status();
    let status = status.with_context(|| format!("{} could not start", program.display()))?;
    let code = status.code().with_context(|| format!("{} ended by {status}", program.display()))?;
    Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// The variables with which a program finds the stand-in, which is built first, in the place of ROCm.
pub fn environment(arch: &str, executor: Option<&Path>) -> Result<Vec<(OsString, OsString)>> {
    if !cfg!(target_os = "linux") {
        bail!("the HIP stand-in is for Linux");
    }
    build()?;
    let (name, device_libraries) = setup::device_libraries_variable()?;
    let mut environment = vec![
        (name.into(), device_libraries.into()),
        ("ROCM_PATH".into(), rocm()?.into()),
        ("HIP_STAND_IN_ARCH".into(), arch.into()),
    ];
    if let Some(socket) = executor {
        environment.push(("HIP_STAND_IN_EXECUTOR".into(), process::absolute(socket)?.into()));
    }
    Ok(environment)
}

/// The stand-in's own checks, which the workspace's do not include.
pub fn checks() -> Result<()> {
    process::run(cargo("fmt").arg("--check"), "cargo fmt of the HIP stand-in")?;
    process::run(cargo("clippy").args(["--all-targets", "--", "-D", "warnings"]), "clippy of the HIP stand-in")?;
    process::run(&mut cargo("test"), "the HIP stand-in's tests")
}

/// Where it is built, which is also where the tests of the command line build it.
pub fn folder() -> PathBuf {
    process::root().join("target/tmp/hip-stand-in")
}

fn build() -> Result<()> {
    process::run(cargo("build").args(["--quiet", "--locked"]), "the HIP stand-in's build")
}

fn cargo(command: &str) -> Command {
    let mut cargo = process::cargo([command]);
    cargo.current_dir(process::root().join("tests/hip-stand-in")).env("CARGO_TARGET_DIR", folder());
    cargo
}

/// A folder as ROCm's, of which CubeCL loads two libraries: both are the stand-in.
fn rocm() -> Result<PathBuf> {
    let rocm = folder().join("rocm");
    let lib = rocm.join("lib");
    fs::create_dir_all(&lib).with_context(|| format!("cannot make {}", lib.display()))?;
    for name in ["libamdhip64.so", "libhiprtc.so"] {
        link(Path::new("../../debug/libamdhip64.so"), &lib.join(name))?;
    }
    Ok(rocm)
}

#[cfg(unix)]
fn link(to: &Path, name: &Path) -> Result<()> {
    match std::os::unix::fs::symlink(to, name) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("cannot make {}", name.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(not(unix))]
fn link(_: &Path, name: &Path) -> Result<()> {
    bail!("cannot make {}: no symbolic links", name.display())
}
