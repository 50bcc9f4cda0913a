//! Parsing the header of a file, or of all shards of a split one.

use super::cursor::{Cursor, Encoding, string_bytes_at};
use super::endian::{Endian, Number};
use super::error::{Error, Place};
use super::metadata::Metadata;
use super::tensor::{Entry, MIN_ENTRY_BYTES, TensorInfo};
use super::value::Value;
use super::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, VERSION};

/// The header of one file.
#[derive(Clone, Debug)]
pub(crate) struct Shard<'a> {
    bytes: &'a [u8],
    pub version: u32,
    pub encoding: Encoding,
    pub alignment: u32,
    pub metadata: Metadata<'a>,
    /// Start of each tensor's entry, in the order of the file.
    entries: Vec<usize>,
    /// Start of the data section.
    data: usize,
}

impl<'a> Shard<'a> {
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        Self::parse_start(bytes, bytes.len() as u64)
    }

    /// Parses a file of `total` bytes from its first `bytes`, which must hold
    /// the whole header.
    pub fn parse_start(bytes: &'a [u8], total: u64) -> Result<Self, Error> {
        let mut cursor = Cursor::new(bytes, Encoding::new(VERSION, Endian::Little));
        let version = read_version(&mut cursor)?;
        let tensor_count = cursor.size()?;
        let pair_count = cursor.size()?;
        let metadata = Metadata::read(&mut cursor, bytes, pair_count)?;
        let alignment = read_alignment(&metadata)?;

        cursor.place = Place::Tensors;
        let count = cursor.check_count(tensor_count, cursor.encoding().count_bytes + MIN_ENTRY_BYTES)?;
        let mut entries = Vec::with_capacity(count);
        for index in 0..count {
            entries.push(cursor.position());
            Entry::read(&mut cursor, index)?;
        }

        cursor.place = Place::Padding;
        let position = cursor.position() as u64;
        let padding = position.next_multiple_of(alignment.into()) - position;
        // Some writers leave the padding out when no tensors follow.
        if count > 0 {
            cursor.take(padding)?;
        }
        let (encoding, data) = (cursor.encoding(), cursor.position());
        let shard = Shard { bytes, version, encoding, alignment, metadata, entries, data };
        shard.check_places(total.saturating_sub(shard.data as u64))?;
        Ok(shard)
    }

    pub fn tensor_count(&self) -> usize {
        self.entries.len()
    }

    /// Start of the data section, in bytes from the start of the file.
    #[cfg(feature = "candle")]
    pub fn data_offset(&self) -> usize {
        self.data
    }

    pub fn tensors(&self) -> impl Iterator<Item = TensorInfo<'a>> + '_ {
        (0..self.entries.len()).filter_map(|index| self.tensor(index))
    }

    /// The tensor of an index that `parse` checked.
    fn tensor(&self, index: usize) -> Option<TensorInfo<'a>> {
        let data = self.bytes.get(self.data..).unwrap_or_default();
        TensorInfo::new(self.entry(index)?, data, self.encoding.endian).ok()
    }

    fn entry(&self, index: usize) -> Option<Entry<'a>> {
        let position = *self.entries.get(index)?;
        Entry::read(&mut Cursor::at(self.bytes, position, self.encoding), index).ok()
    }

    /// The name's bytes, by which tensors are sorted.
    fn name(&self, index: usize) -> &'a [u8] {
        let position = self.entries.get(index).copied().unwrap_or(usize::MAX);
        string_bytes_at(self.bytes, position, self.encoding)
    }

    /// Checks that tensors are aligned, lie inside the `available` bytes of
    /// data, and do not overlap.
    fn check_places(&self, available: u64) -> Result<(), Error> {
        let mut starts = Vec::with_capacity(self.entries.len());
        for index in 0..self.entries.len() {
            let Some(entry) = self.entry(index) else {
                continue;
            };
            let end = entry.check_place(self.alignment, available)?;
            // A tensor without bytes can overlap nothing.
            if end > entry.offset {
                starts.push((entry.offset, index));
            }
        }
        starts.sort_unstable();
        let mut ordered = starts.iter().filter_map(|&(_, index)| self.entry(index));
        let Some(mut previous) = ordered.next() else {
            return Ok(());
        };
        for entry in ordered {
            if entry.offset < previous.check_place(self.alignment, available)? {
                return Err(Error::Overlap { first: previous.name.to_owned(), second: entry.name.to_owned() });
            }
            previous = entry;
        }
        Ok(())
    }
}

/// Reads the magic and the version, and derives the byte order from the
/// version: the file states it nowhere else, and no supported version is
/// another one byte-swapped.
fn read_version(cursor: &mut Cursor<'_>) -> Result<u32, Error> {
    let magic = cursor.take(MAGIC.len() as u64)?;
    if magic != MAGIC {
        let mut found = [0; MAGIC.len()];
        found.copy_from_slice(magic);
        return Err(Error::BadMagic { found });
    }
    let bytes = cursor.take(u32::BYTES as u64)?;
    let [little, big] = [Endian::Little, Endian::Big].map(|endian| u32::take(bytes, endian).unwrap_or_default());
    let is_known = |version: u32| (1..=VERSION).contains(&version);
    let (version, endian) = if is_known(big) { (big, Endian::Big) } else { (little, Endian::Little) };
    if !is_known(version) {
        return Err(Error::UnsupportedVersion { version: little.min(big) });
    }
    cursor.set_encoding(Encoding::new(version, endian));
    Ok(version)
}

fn read_alignment(metadata: &Metadata<'_>) -> Result<u32, Error> {
    let alignment = match metadata.get(ALIGNMENT_KEY) {
        None => DEFAULT_ALIGNMENT,
        // ggml and gguf-py read a `u32` and nothing else.
        Some(Value::U32(alignment)) => alignment,
        Some(other) => {
            return Err(Error::WrongType { key: ALIGNMENT_KEY.to_owned(), wanted: "u32", found: other.describe() });
        }
    };
    check_alignment(alignment)
}

pub(super) fn check_alignment(alignment: u32) -> Result<u32, Error> {
    if alignment.is_power_of_two() { Ok(alignment) } else { Err(Error::BadAlignment { alignment }) }
}

/// The parsed header of a model, borrowing from the bytes of its file or
/// files.
///
/// Metadata is that of the first shard; tensors are those of all shards.
#[derive(Clone, Debug)]
pub struct Gguf<'a> {
    first: Shard<'a>,
    rest: Vec<Shard<'a>>,
    /// Shard and index of each tensor, sorted by name.
    by_name: Vec<(usize, usize)>,
}

impl<'a> Gguf<'a> {
    /// Parses one file. Of a split file this is one shard with its tensors;
    /// [`Files`](super::Files) opens all shards.
    ///
    /// Tensors may lie in any order and need not be padded at the end of the
    /// file. A tensor of unknown type is kept; only its type and its data are
    /// errors.
    ///
    /// # Errors
    ///
    /// Any [`Error`] of the header: truncation, keys and names that are not
    /// UTF-8, duplicate names, an alignment that is no power of two, and tensors that
    /// are misaligned, overlap, or reach outside the file.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        Self::from_shards(Shard::parse(bytes)?, Vec::new())
    }

    pub(super) fn from_shards(first: Shard<'a>, rest: Vec<Shard<'a>>) -> Result<Self, Error> {
        let mut gguf = Gguf { first, rest, by_name: Vec::new() };
        let mut by_name = Vec::with_capacity(gguf.tensor_count());
        for (shard, number) in gguf.shards().zip(0..) {
            by_name.extend((0..shard.tensor_count()).map(|index| (number, index)));
        }
        by_name.sort_unstable_by_key(|&place| gguf.name(place));
        if let Some([first, _]) = by_name.array_windows().find(|[a, b]| gguf.name(*a) == gguf.name(*b)) {
            return Err(Error::DuplicateTensor { tensor: String::from_utf8_lossy(gguf.name(*first)).into_owned() });
        }
        gguf.by_name = by_name;
        Ok(gguf)
    }

    /// The version of the format: 1, 2 or 3.
    pub fn version(&self) -> u32 {
        self.first.version
    }

    /// The byte order of the header and of tensor data.
    pub fn endian(&self) -> Endian {
        self.first.encoding.endian
    }

    /// The alignment of tensor data in the (first) file, in bytes.
    pub fn alignment(&self) -> u32 {
        self.first.alignment
    }

    /// The metadata.
    pub fn metadata(&self) -> &Metadata<'a> {
        &self.first.metadata
    }

    /// The number of files.
    pub fn shard_count(&self) -> usize {
        1 + self.rest.len()
    }

    /// The number of tensors.
    pub fn tensor_count(&self) -> usize {
        self.shards().map(Shard::tensor_count).sum()
    }

    /// The tensors, in the order of the file or files.
    pub fn tensors(&self) -> impl Iterator<Item = TensorInfo<'a>> + '_ {
        self.shards().flat_map(Shard::tensors)
    }

    /// The tensor with this name.
    ///
    /// # Errors
    ///
    /// [`Error::MissingTensor`].
    pub fn tensor(&self, name: &str) -> Result<TensorInfo<'a>, Error> {
        self.by_name
            .binary_search_by_key(&name.as_bytes(), |&place| self.name(place))
            .ok()
            .and_then(|found| {
                let &(shard, index) = self.by_name.get(found)?;
                self.shard(shard)?.tensor(index)
            })
            .ok_or_else(|| Error::MissingTensor { tensor: name.to_owned() })
    }

    fn shards(&self) -> impl Iterator<Item = &Shard<'a>> {
        std::iter::once(&self.first).chain(&self.rest)
    }

    fn shard(&self, number: usize) -> Option<&Shard<'a>> {
        match number.checked_sub(1) {
            None => Some(&self.first),
            Some(number) => self.rest.get(number),
        }
    }

    fn name(&self, (shard, index): (usize, usize)) -> &'a [u8] {
        self.shard(shard).map(|shard| shard.name(index)).unwrap_or_default()
    }
}
