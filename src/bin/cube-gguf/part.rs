//! Files that appear once they are complete.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::Outcome;

/// A file that is written in pieces under a temporary name, and renamed once it is complete. Dropped before, it leaves nothing.
/// Its errors name it.
pub struct PartFile {
    out: BufWriter<File>,
    /// The path while the file is incomplete.
    temporary: PathBuf,
    target: PathBuf,
}

impl PartFile {
    /// Starts the file that `path` will be.
    pub fn create(path: &Path) -> Outcome<Self> {
        let at = |error: io::Error| format!("{}: {error}", path.display());
        // Of a symbolic link the target is replaced, not the link.
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        if target.exists() && !target.is_file() {
            return Err(format!("{}: not a regular file", path.display()).into());
        }
        let mut name = target.file_name().ok_or_else(|| format!("{}: not a file name", path.display()))?.to_owned();
        name.push(format!(".{}.part", std::process::id()));
        let temporary = target.with_file_name(name);
        let file = OpenOptions::new().write(true).create_new(true).open(&temporary).map_err(at)?;
        Ok(Self { out: BufWriter::new(file), temporary, target })
    }

    /// The path of the complete file.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Renames the complete file to its target.
    pub fn finish(mut self) -> Outcome {
        let done = self.out.flush().and_then(|()| fs::rename(&self.temporary, &self.target));
        Ok(self.named(done)?)
    }

    fn named<T>(&self, result: io::Result<T>) -> io::Result<T> {
        let name = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", self.target.display()));
        result.map_err(name)
    }
}

impl Write for PartFile {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.out.write(data);
        self.named(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.out.flush();
        self.named(flushed)
    }
}

impl Drop for PartFile {
    fn drop(&mut self) {
        // Fails where `finish` renamed the file.
        let _ = fs::remove_file(&self.temporary);
    }
}
