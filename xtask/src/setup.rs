//! `cargo xtask setup`: what a build needs and cargo does not fetch, put where plain cargo finds it.
//! Each step looks first and says what it found or did.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::llvm::{self, Part};
use crate::process;

/// What LLVM's static libraries are linked with.
const SYSTEM_PACKAGES: [&str; 4] = ["g++", "zlib1g-dev", "libzstd-dev", "libxml2-dev"];

const DEVICE_LIBS_VAR: &str = "CUBECL_ROCM_DEVICE_LIB_PATH";

pub fn run() -> Result<()> {
    let bundle = llvm::install()?;
    // Elsewhere the bundle brings or finds its own.
    if cfg!(target_os = "linux") {
        system_libraries(&bundle)?;
    }
    device_libraries(&bundle)
}

/// Makes a program with the bundle's system libraries link.
fn system_libraries(bundle: &Path) -> Result<()> {
    let Err(missing) = link(bundle) else {
        println!("System libraries for LLVM: linked");
        return Ok(());
    };
    let packages = SYSTEM_PACKAGES.join(" ");
    if !is_root() || !llvm::has_apt() {
        bail!("LLVM does not link ({missing:#}): run `sudo apt-get install {packages}`");
    }
    println!("System libraries for LLVM: installing {packages} ({missing:#})");
    apt_get(&["update"])?;
    apt_get(&[&["install", "--yes"], &SYSTEM_PACKAGES[..]].concat())?;
    link(bundle).context("LLVM still does not link")
}

fn apt_get(args: &[&str]) -> Result<()> {
    let mut apt = Command::new("apt-get");
    apt.arg("-qq").args(args);
    apt.env("DEBIAN_FRONTEND", "noninteractive");
    apt.stdin(Stdio::null()).stdout(Stdio::null());
    process::run(&mut apt, &format!("apt-get {}", args[0]))
}

/// Links an empty program as cubecl-llvm's build script asks for; the error is the linker's.
fn link(bundle: &Path) -> Result<()> {
    let config = Command::new(bundle.join("bin/llvm-config"))
        .args(["--link-static", "--libdir", "--system-libs"])
        .output()
        .context("the bundle's llvm-config does not run")?;
    let config = String::from_utf8_lossy(&config.stdout).into_owned();
    let (libdir, libraries) = config.split_once('\n').context("the bundle's llvm-config does not answer")?;

    let program = std::env::temp_dir().join(format!("xtask-link-{}", std::process::id()));
    let mut compiler = Command::new(std::env::var_os("CXX").unwrap_or_else(|| "c++".into()))
        .args(["-x", "c++", "-", "-x", "none", "-o"])
        .arg(&program)
        .arg(format!("-L{}", libdir.trim()))
        .args(libraries.split_whitespace())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("no C++ compiler")?;
    if let Some(mut source) = compiler.stdin.take() {
        source.write_all(b"int main() {}\n").context("the C++ compiler reads nothing")?;
    }
    let output = compiler.wait_with_output().context("the C++ compiler was lost")?;
    fs::remove_file(&program).ok();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{}", stderr.lines().next().unwrap_or("no word of why"));
    }
    Ok(())
}

/// ROCm's device libraries, with which CubeCL links kernels for AMD GPUs when it runs: from ROCm
/// where it is installed, else beside LLVM, which a file that cargo includes points CubeCL to.
fn device_libraries(bundle: &Path) -> Result<()> {
    let machine = machine_config();
    let own = bundle.join("amdgcn/bitcode");
    // Cargo has set what an earlier set-up wrote there, which is no choice of the user's.
    let before = fs::read_to_string(&machine).unwrap_or_default();
    if let Some(rocm) = installed_device_libraries(&before) {
        println!("ROCm device libraries: {}", rocm.display());
        if machine.exists() {
            fs::remove_file(&machine).with_context(|| format!("cannot remove {}", machine.display()))?;
        }
        return Ok(());
    }
    if !has_device_libraries(&own)
        && let Err(reason) = llvm::assemble(bundle, &[Part::DeviceLibraries])
    {
        // Only the feature `hip` misses them.
        println!("ROCm device libraries: none ({reason:#}); to use `hip`, install ROCm");
        return Ok(());
    }
    let config = format!("# Written by `cargo xtask setup`.\n[env]\n{DEVICE_LIBS_VAR} = '{}'\n", own.display());
    if config != before {
        fs::write(&machine, config).with_context(|| format!("cannot write {}", machine.display()))?;
    }
    println!("ROCm device libraries: {}, named to cargo in .cargo/machine.toml", own.display());
    Ok(())
}

/// The variable that leads CubeCL to ROCm's device libraries wherever `ROCM_PATH` leads, and its value.
pub fn device_libraries_variable() -> Result<(&'static str, PathBuf)> {
    let config = fs::read_to_string(machine_config()).unwrap_or_default();
    let own = || named_in(&config).map(PathBuf::from).filter(|dir| has_device_libraries(dir));
    let found = installed_device_libraries(&config).or_else(own);
    let found = found.context("no ROCm device libraries: run `cargo xtask setup`")?;
    Ok((DEVICE_LIBS_VAR, found))
}

/// What cargo reads beside the configuration that git tracks.
fn machine_config() -> PathBuf {
    process::root().join(".cargo/machine.toml")
}

/// The folder in a configuration that the set-up wrote.
fn named_in(config: &str) -> Option<&str> {
    let mut lines = config.lines();
    lines.find_map(|line| line.strip_prefix(DEVICE_LIBS_VAR)?.strip_prefix(" = '")?.strip_suffix('\''))
}

/// The device libraries that CubeCL finds by itself, searched in its order, but for a variable
/// whose value is in `own_config`.
fn installed_device_libraries(own_config: &str) -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let named = [DEVICE_LIBS_VAR, "HIP_DEVICE_LIB_PATH"].map(var);
    let named = named.into_iter().flatten().filter(|dir| !own_config.contains(&*dir.to_string_lossy()));
    let roots =
        [var("ROCM_PATH"), var("HIP_PATH")].into_iter().flatten().chain(["/opt/rocm", "/usr"].map(PathBuf::from));
    let under_roots = roots.flat_map(|root| {
        let clang = ["lib/llvm", "llvm", "lib64/rocm/llvm", "lib/rocm/llvm"]
            .map(|llvm| fs::read_dir(root.join(llvm).join("lib/clang")))
            .into_iter()
            .flatten()
            .flatten()
            .flatten()
            .map(|version| version.path().join("lib/amdgcn/bitcode"));
        [root.join("amdgcn/bitcode")].into_iter().chain(clang)
    });
    named.chain(under_roots).find(|dir| has_device_libraries(dir))
}

fn has_device_libraries(dir: &Path) -> bool {
    dir.join("ocml.bc").is_file()
}

#[cfg(unix)]
fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

#[cfg(not(unix))]
fn is_root() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_that_was_written_is_read() {
        let config = format!("# Written by `cargo xtask setup`.\n[env]\n{DEVICE_LIBS_VAR} = '/a b/bitcode'\n");
        assert_eq!(named_in(&config), Some("/a b/bitcode"));
        assert_eq!(named_in(""), None);
    }
}
