//! The memory-mapped files of a model.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::error::Error;
use super::reader::{Gguf, Shard};
use super::split;
use super::tensor::TensorInfo;

/// The memory-mapped files of a model: one, or all shards of a split one.
///
/// A file must not be truncated or modified while it is mapped; see
/// [`open`](Self::open).
#[derive(Debug)]
pub struct Files {
    first: MappedFile,
    rest: Vec<MappedFile>,
}

#[derive(Debug)]
struct MappedFile {
    path: PathBuf,
    map: Mmap,
    file: File,
}

impl MappedFile {
    /// Where in the file borrowed bytes of it are.
    fn position(&self, bytes: &[u8]) -> Option<u64> {
        let at = bytes.as_ptr().addr().checked_sub(self.map.as_ptr().addr())?;
        (at.checked_add(bytes.len())? <= self.map.len()).then_some(at as u64)
    }

    fn parse(&self) -> Result<Shard<'_>, Error> {
        Shard::parse(&self.map).map_err(|error| error.in_file(&self.path))
    }
}

impl Files {
    /// Maps a file or, given any shard of a split file
    /// (`…-00001-of-00003.gguf`), all shards. A whole model under a shard's
    /// name is one file: its metadata decide.
    ///
    /// The files must not change while this lives: if another process modifies
    /// a file, its borrowed contents change; if it truncates one, an access
    /// ends this process. Replacing a file by renaming another over it is safe.
    ///
    /// # Errors
    ///
    /// [`Error::InFile`], which names the path, around [`Error::Io`],
    /// [`Error::MissingShard`], [`Error::NotRegularFile`] or
    /// [`Error::EmptyFile`].
    pub fn open(path: impl AsRef<Path>) -> Result<Files, Error> {
        let path = path.as_ref();
        let shards = split::shard_paths(path);
        if shards.is_some()
            && let Ok((map, file)) = map(path)
            && Shard::parse(&map).is_ok_and(|shard| split::check_whole(&shard).is_ok())
        {
            return Ok(Files { first: MappedFile { path: path.to_owned(), map, file }, rest: Vec::new() });
        }
        let paths = shards.unwrap_or_else(|| vec![path.to_owned()]);
        let count = paths.len() as u32; // at most 99999, by the pattern of the name
        let mut files = paths.into_iter().zip(1..).map(|(path, number)| {
            let missing = |error| match error {
                Error::Io(source) if count > 1 && source.kind() == io::ErrorKind::NotFound => {
                    Error::MissingShard { number, count, source }
                }
                other => other,
            };
            match map(&path) {
                Ok((map, file)) => Ok(MappedFile { path, map, file }),
                Err(error) => Err(missing(error).in_file(&path)),
            }
        });
        Ok(Files { first: files.next().ok_or(Error::EmptyFile)??, rest: files.collect::<Result<_, _>>()? })
    }

    /// Parses the headers.
    ///
    /// # Errors
    ///
    /// [`Error::InFile`], which names the path, around an error of
    /// [`Gguf::parse`] or, for shards that do not belong together,
    /// [`Error::ShardName`], [`Error::ShardMismatch`], [`Error::ShardEndian`],
    /// or [`Error::MissingKey`] or [`Error::WrongType`] of a `split.` key.
    pub fn parse(&self) -> Result<Gguf<'_>, Error> {
        let first = self.first.parse()?;
        let rest = self.rest.iter().map(MappedFile::parse);
        let rest = rest.collect::<Result<Vec<_>, _>>()?;

        if rest.is_empty() {
            split::check_whole(&first).map_err(|error| error.in_file(&self.first.path))?;
        } else {
            let count = 1 + rest.len();
            let shards = || std::iter::once(&first).chain(&rest).zip(self.paths());
            for ((shard, path), number) in shards().zip(0..) {
                split::check_place(shard, number, count).map_err(|error| error.in_file(path))?;
            }
            let tensors = shards().map(|(shard, _)| shard.tensor_count()).sum();
            for (shard, path) in shards() {
                split::check_tensors(shard, tensors).map_err(|error| error.in_file(path))?;
                if shard.encoding.endian != first.encoding.endian {
                    return Err(Error::ShardEndian.in_file(path));
                }
            }
        }
        Gguf::from_shards(first, rest).map_err(|error| error.in_file(&self.first.path))
    }

    /// Reads bytes of a tensor of these files, from byte `first` of its data on, without the map: a file that another process
    /// truncates is an error.
    ///
    /// # Errors
    ///
    /// [`Error::InFile`], which names the path, around [`Error::Shrunk`] or [`Error::Io`]; [`Error::NoSuchBytes`] where the tensor
    /// has less, or is of other files; [`Error::UnknownTensorType`].
    pub fn read(&self, tensor: &TensorInfo<'_>, first: usize, out: &mut [u8]) -> Result<(), Error> {
        let len = out.len();
        let place = tensor
            .data()?
            .get(first..)
            .and_then(|data| data.get(..len))
            .and_then(|bytes| self.files().find_map(|file| Some((file, file.position(bytes)?))));
        let no_such = || Error::NoSuchBytes { tensor: tensor.name().to_owned(), first, len };
        let (file, position) = place.ok_or_else(no_such)?;
        read_at(&file.file, position, out).map_err(|error| {
            let error = match error.kind() {
                io::ErrorKind::UnexpectedEof => Error::Shrunk { bytes: file.map.len() as u64 },
                _ => Error::Io(error),
            };
            error.in_file(&file.path)
        })
    }

    /// The paths of the files, in the order of the shards.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files().map(|file| file.path.as_path())
    }

    /// The size of all files together, in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.files().map(|file| file.map.len() as u64).sum()
    }

    fn files(&self) -> impl Iterator<Item = &MappedFile> {
        std::iter::once(&self.first).chain(&self.rest)
    }
}

/// Fills `out` from a position of a file.
#[cfg(unix)]
fn read_at(file: &File, position: u64, out: &mut [u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, position)
}

/// Fills `out` from a position of a file.
#[cfg(not(unix))]
fn read_at(mut file: &File, position: u64, out: &mut [u8]) -> io::Result<()> {
    use std::io::{Read, Seek, SeekFrom};
    file.seek(SeekFrom::Start(position))?;
    file.read_exact(out)
}

fn map(path: &Path) -> Result<(Mmap, File), Error> {
    // Checked before opening: opening a pipe would block.
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(Error::NotRegularFile);
    }
    if metadata.len() == 0 {
        return Err(Error::EmptyFile);
    }
    let file = File::open(path)?;
    // SAFETY: the map is read-only and lives as long as its borrowers.
    // `Files::open` requires of its caller that nobody modifies or truncates
    // the file meanwhile: no system lets a reader enforce it.
    let map = unsafe { Mmap::map(&file)? };
    Ok((map, file))
}
