//! The names and the metadata of the shards of a split file.

use std::path::{Path, PathBuf};

use super::error::Error;
use super::reader::Shard;

/// Metadata keys that only the shards of a split file have.
pub(super) const SPLIT_KEYS: [&str; 3] = [NUMBER_KEY, COUNT_KEY, TENSORS_KEY];

const NUMBER_KEY: &str = "split.no";
const COUNT_KEY: &str = "split.count";
const TENSORS_KEY: &str = "split.tensors.count";

/// The paths of all shards, given one of them; `None` for a path that is not
/// named like a shard: `…-00001-of-00003.gguf`.
pub(super) fn shard_paths(path: &Path) -> Option<Vec<PathBuf>> {
    let name = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
    let (name, count) = name.rsplit_once("-of-")?;
    let (prefix, number) = name.rsplit_once('-')?;
    let (number, count) = (five_digits(number)?, five_digits(count)?);
    (1..=count).contains(&number).then(|| {
        (1..=count).map(|number| path.with_file_name(format!("{prefix}-{number:05}-of-{count:05}.gguf"))).collect()
    })
}

fn five_digits(digits: &str) -> Option<u32> {
    let are_digits = digits.len() == 5 && digits.bytes().all(|byte| byte.is_ascii_digit());
    are_digits.then(|| digits.parse().ok())?
}

/// Checks that a file opened alone is not one of several shards.
pub(super) fn check_whole(shard: &Shard<'_>) -> Result<(), Error> {
    match shard.metadata.optional(COUNT_KEY)? {
        Some(count) if count > 1 => Err(Error::ShardName { count }),
        _ => Ok(()),
    }
}

/// Checks that a shard's metadata makes it shard `number` of `count`, counted
/// from 0, as in the format.
pub(super) fn check_place(shard: &Shard<'_>, number: usize, count: usize) -> Result<(), Error> {
    check(shard, NUMBER_KEY, number)?;
    check(shard, COUNT_KEY, count)
}

/// Checks the number of tensors of all shards that a shard's metadata claims.
pub(super) fn check_tensors(shard: &Shard<'_>, tensors: usize) -> Result<(), Error> {
    check(shard, TENSORS_KEY, tensors)
}

fn check(shard: &Shard<'_>, key: &'static str, expected: usize) -> Result<(), Error> {
    let found = shard.metadata.u64(key)?;
    let expected = expected as u64;
    if found != expected {
        return Err(Error::ShardMismatch { key, found, expected });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_shard_names_all() {
        let all = ["d/m-00001-of-00002.gguf", "d/m-00002-of-00002.gguf"].map(PathBuf::from);
        for path in &all {
            assert_eq!(shard_paths(path).as_deref(), Some(&all[..]));
        }
    }

    #[test]
    fn other_names_are_no_shards() {
        for name in [
            "m.gguf",
            "m-00001-of-00002.bin",
            "m-00000-of-00002.gguf",
            "m-00003-of-00002.gguf",
            "m-1-of-2.gguf",
            "m-+0001-of-00002.gguf",
        ] {
            assert_eq!(shard_paths(Path::new(name)), None, "{name}");
        }
    }
}
