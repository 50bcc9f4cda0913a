//! Puts LLVM where cubecl-llvm's build script looks for it.
//!
//! That build script takes LLVM from a bundle that its dependency tracel-llvm-bundler downloads into
//! the user's data directory, and looks nowhere else. Where the download is out of reach the same
//! bundle is assembled from the distribution's packages.

use std::fs;
use std::io::{self, Read};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::process;
use crate::progress::Progress;

const BUNDLER: &str = "tracel-llvm-bundler";

/// The major version that `llvm23.sh` assembles.
const ASSEMBLED: &str = "23.";

/// How long the download's host may stay without an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// A part of the bundle, as `llvm23.sh` names it.
#[derive(Clone, Copy)]
pub enum Part {
    Llvm,
    DeviceLibraries,
}

/// The bundle's path, after installing it when it is not there.
pub fn install() -> Result<PathBuf> {
    let version = locked_version()?;
    let bundle = dirs::data_local_dir()
        .context("this machine names no data directory")?
        .join("tracel")
        .join(format!("tracel-llvm-{version}"));
    // The marker that the bundler writes last, and checks first.
    if bundle.join(".tracel-llvm-installed").exists() {
        println!("LLVM {version}: already at {}", bundle.display());
        return Ok(bundle);
    }
    println!("LLVM {version}: not here, trying the download that CubeCL's build script does");
    let Err(reason) = download(&version) else {
        println!("LLVM {version}: downloaded to {}", bundle.display());
        return Ok(bundle);
    };
    println!("LLVM {version}: no download ({reason:#}), assembling it from the distribution");
    if !version.starts_with(ASSEMBLED) {
        bail!("packages are known for LLVM {ASSEMBLED}x only, and LLVM {version} is needed");
    }
    assemble(&bundle, &[Part::Llvm, Part::DeviceLibraries])?;
    println!("LLVM {version}: assembled at {}", bundle.display());
    Ok(bundle)
}

/// The bundler's version, which is the bundle's too.
fn locked_version() -> Result<String> {
    let path = process::root().join("Cargo.lock");
    let lock = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    match versions_in(&lock)[..] {
        [version] => Ok(version.to_owned()),
        ref versions => {
            bail!("{} has {BUNDLER} {} times, and xtask and CubeCL must share one", path.display(), versions.len())
        }
    }
}

fn versions_in(lock: &str) -> Vec<&str> {
    let name = format!("name = \"{BUNDLER}\"");
    let lines = lock.lines().zip(lock.lines().skip(1));
    lines
        .filter(|(line, _)| *line == name)
        .filter_map(|(_, next)| next.strip_prefix("version = \"")?.strip_suffix('"'))
        .collect()
}

/// Runs the bundler's own build script, which downloads and checks the bundle.
fn download(version: &str) -> Result<()> {
    reachable()?;
    let started = SystemTime::now();
    let mut cargo = process::cargo(["build", "--quiet", "--profile", "xtask"])
        .args(["--package", "xtask", "--features", "llvm-download"])
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cargo could not start")?;

    let mut progress = Progress::new("Downloading LLVM", None);
    let status = loop {
        if let Some(status) = cargo.try_wait().context("cargo was lost")? {
            break status;
        }
        progress.at(received_since(started, version));
        std::thread::sleep(Duration::from_millis(100));
    };
    drop(progress);
    if !status.success() {
        let mut stderr = String::new();
        if let Some(mut pipe) = cargo.stderr.take() {
            pipe.read_to_string(&mut stderr).ok();
        }
        bail!("{}", reason_in(&stderr));
    }
    Ok(())
}

/// Whether the download's host answers: the bundler takes a while to compile, and waits for an
/// answer without a limit. Behind a proxy only the bundler itself can tell.
fn reachable() -> Result<()> {
    let proxies = ["ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY"];
    let set = |name: &str| std::env::var_os(name).is_some();
    if proxies.iter().any(|name| set(name) || set(&name.to_lowercase())) {
        return Ok(());
    }
    let source = bundler_source()?;
    let host = host_in(&source).context("the bundler names no host")?;
    let addresses = (host, 443).to_socket_addrs().with_context(|| host.to_owned())?;
    let mut outcome = Err(io::Error::from(io::ErrorKind::NotFound));
    for address in addresses {
        outcome = TcpStream::connect_timeout(&address, PATIENCE);
        if outcome.is_ok() {
            break;
        }
    }
    outcome.map(drop).with_context(|| host.to_owned())
}

/// The bundler's source that has the download's address, which is private to it.
fn bundler_source() -> Result<String> {
    let metadata = process::cargo(["metadata", "--format-version", "1", "--all-features"])
        .stderr(Stdio::null())
        .output()
        .context("cargo could not start")?;
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout).context("cargo metadata failed")?;
    let manifest = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|package| package["name"] == BUNDLER)
        .and_then(|package| package["manifest_path"].as_str())
        .with_context(|| format!("cargo knows no {BUNDLER}"))?;
    let source = Path::new(manifest).with_file_name("src").join("config.rs");
    fs::read_to_string(&source).with_context(|| format!("cannot read {}", source.display()))
}

fn host_in(source: &str) -> Option<&str> {
    let (_, url) = source.split_once("\"https://")?;
    url.split('/').next()
}

/// The bytes of the largest file that the bundler has written to its cache since `started`.
fn received_since(started: SystemTime, version: &str) -> u64 {
    let prefix = format!("tracel-llvm-{version}");
    let cache = dirs::home_dir().map(|home| home.join(".cache/tracel"));
    cache
        .and_then(|cache| fs::read_dir(cache).ok())
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .filter_map(|entry| entry.metadata().ok())
        .filter(|file| file.modified().is_ok_and(|at| at >= started))
        .map(|file| file.len())
        .max()
        .unwrap_or(0)
}

/// The line of cargo's standard error that tells why the build script failed, by an error or a panic.
fn reason_in(stderr: &str) -> &str {
    let script = stderr.split_once("--- stderr").map_or(stderr, |cut| cut.1);
    let told = script
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty() && !line.starts_with("thread "))
        .unwrap_or("no word of why");
    told.strip_prefix("called `Result::unwrap()` on an `Err` value: ").unwrap_or(told)
}

/// Adds `parts` to `bundle` from the distribution's packages.
pub fn assemble(bundle: &Path, parts: &[Part]) -> Result<()> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) || !has_apt() {
        bail!("its packages are known only on x86-64 Linux with apt-get");
    }
    let mut script = Command::new("bash");
    script.args(["-c", include_str!("llvm23.sh"), "llvm23"]);
    script.arg(bundle).stdin(Stdio::null());
    script.args(parts.iter().map(|part| match part {
        Part::Llvm => "llvm",
        Part::DeviceLibraries => "device-libs",
    }));
    process::run(&mut script, "assembling LLVM from packages")
}

pub fn has_apt() -> bool {
    Path::new("/usr/bin/apt-get").exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundle_has_the_version_of_the_bundler() {
        let lock = "[[package]]\nname = \"a\"\nversion = \"1.0.0\"\n\n\
                    [[package]]\nname = \"tracel-llvm-bundler\"\nversion = \"23.1.0-4\"\n";
        assert_eq!(versions_in(lock), ["23.1.0-4"]);
        assert!(versions_in("name = \"a\"").is_empty());
    }

    #[test]
    fn a_panic_and_an_error_both_tell_why() {
        let panic = "error: failed to run custom build command\n  --- stderr\n\n  \
                     thread 'main' (7) panicked at build.rs:1:2:\n  \
                     called `Result::unwrap()` on an `Err` value: HostNotFound\n  note: run\n";
        assert_eq!(reason_in(panic), "HostNotFound");
        assert_eq!(reason_in("  --- stderr\n  reading it\n"), "reading it");
        assert_eq!(reason_in("error: no compiler\n"), "error: no compiler");
        assert_eq!(reason_in(""), "no word of why");
    }

    #[test]
    fn the_host_is_the_one_in_the_address() {
        let source = "const URL: &str =\n    \"https://example.org/releases/download\";";
        assert_eq!(host_in(source), Some("example.org"));
        assert_eq!(host_in("const URL: &str = BASE;"), None);
    }
}
