//! Writing a file: the header first, then each tensor's data as it comes.

use std::collections::HashSet;
use std::io::{self, Write};

use super::encode::{Encode, encode_value};
use super::endian::{Endian, Number};
use super::error::{Error, Place};
use super::ggml_type::GgmlType;
use super::reader::{Gguf, check_alignment};
use super::split::SPLIT_KEYS;
use super::tensor::Dims;
use super::value::{Value, ValueType};
use super::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, MAX_ARRAY_DEPTH, VERSION};

/// Builds the header of a file.
///
/// The file has the order that ggml and gguf-py write: metadata, then tensors,
/// in the order in which they were added; tensor data in that same order, each
/// padded with zeros to the alignment. Reading such a file and
/// [writing](Gguf::write_to) it again yields the same bytes.
///
/// ```
/// # fn main() -> Result<(), cube_gguf::gguf::Error> {
/// use cube_gguf::gguf::{GgmlType, Gguf, Writer};
///
/// let mut writer = Writer::new();
/// writer.metadata("general.architecture", "llama")?;
/// writer.tensor("output.weight", &[32, 2], GgmlType::Q8_0)?;
/// let mut tensors = writer.begin(Vec::new())?;
/// tensors.data(&[0; 2 * 34])?;
/// let file = tensors.finish()?;
///
/// assert_eq!(Gguf::parse(&file)?.tensor("output.weight")?.shape(), [2, 32]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Writer {
    version: u32,
    endian: Endian,
    alignment: u32,
    keys: HashSet<String>,
    /// The metadata pairs, as the file stores them.
    pairs: Vec<u8>,
    names: HashSet<String>,
    tensors: Vec<Declared>,
}

#[derive(Clone, Debug)]
struct Declared {
    name: String,
    dims: Dims,
    dtype: GgmlType,
    /// Size of the data, in bytes.
    size: u64,
}

impl Default for Writer {
    fn default() -> Self {
        Self::new()
    }
}

impl Writer {
    /// A little-endian file of version 3, without metadata and tensors.
    pub fn new() -> Self {
        Writer {
            version: VERSION,
            endian: Endian::Little,
            alignment: DEFAULT_ALIGNMENT,
            keys: HashSet::new(),
            pairs: Vec::new(),
            names: HashSet::new(),
            tensors: Vec::new(),
        }
    }

    /// A file of another version, 2 or 3, or byte order.
    ///
    /// # Errors
    ///
    /// [`Error::UnsupportedVersion`].
    pub fn with_format(version: u32, endian: Endian) -> Result<Self, Error> {
        if !(2..=VERSION).contains(&version) {
            return Err(Error::UnsupportedVersion { version });
        }
        Ok(Writer { version, endian, ..Self::new() })
    }

    /// The header of a file that was read, of version 3 where that has 1; for a
    /// split file that of the whole model, without the `split.` keys.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownTensorType`]: the size of such a tensor is unknown.
    pub fn from_gguf(gguf: &Gguf<'_>) -> Result<Self, Error> {
        let version = if gguf.version() == 1 { VERSION } else { gguf.version() };
        let mut writer = Self::with_format(version, gguf.endian())?;
        for (key, value) in gguf.metadata().iter() {
            if gguf.shard_count() == 1 || !SPLIT_KEYS.contains(&key) {
                writer.value(key, value)?;
            }
        }
        for tensor in gguf.tensors() {
            writer.tensor(tensor.name(), tensor.dims(), tensor.dtype()?)?;
        }
        Ok(writer)
    }

    /// Adds a metadata key and its value. [`ALIGNMENT_KEY`] sets the alignment.
    ///
    /// # Errors
    ///
    /// [`Error::EmptyKey`], [`Error::DuplicateKey`], [`Error::ArrayTooDeep`];
    /// for [`ALIGNMENT_KEY`] also [`Error::WrongType`] when the value is no
    /// `u32` and [`Error::BadAlignment`] when it is no power of two.
    pub fn metadata<T: Encode>(&mut self, key: &str, value: T) -> Result<&mut Self, Error> {
        if T::DEPTH > MAX_ARRAY_DEPTH {
            return Err(Error::ArrayTooDeep { place: Place::Value(key).to_string() });
        }
        self.pair(key, T::TYPE, |endian, out| value.encode(endian, out))
    }

    /// Adds a metadata key with a value that was read from another file.
    ///
    /// # Errors
    ///
    /// Those of [`metadata`](Self::metadata).
    pub fn value(&mut self, key: &str, value: Value<'_>) -> Result<&mut Self, Error> {
        self.pair(key, value.value_type(), |endian, out| {
            encode_value(value, endian, out);
        })
    }

    /// Adds a tensor, with its dimensions in ggml's order: contiguous first.
    ///
    /// # Errors
    ///
    /// [`Error::DuplicateTensor`], [`Error::TooManyDims`],
    /// [`Error::SizeOverflow`], [`Error::PartialBlock`].
    pub fn tensor(&mut self, name: &str, dims: &[u64], dtype: GgmlType) -> Result<&mut Self, Error> {
        let dims = Dims::new(name, dims)?;
        let size = dims.bytes(name, dtype)? as u64;
        if !self.names.insert(name.to_owned()) {
            return Err(Error::DuplicateTensor { tensor: name.to_owned() });
        }
        self.tensors.push(Declared { name: name.to_owned(), dims, dtype, size });
        Ok(self)
    }

    /// Writes the header, and returns the writer of the tensors' data.
    ///
    /// `out` is written to in many pieces: buffer it.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], and [`Error::SizeOverflow`] when the data of all tensors
    /// together is too large for an offset.
    pub fn begin<W: Write>(self, mut out: W) -> Result<TensorWriter<W>, Error> {
        let endian = self.endian;
        let mut header = MAGIC.to_vec();
        self.version.put(endian, &mut header);
        (self.tensors.len() as u64).put(endian, &mut header);
        (self.keys.len() as u64).put(endian, &mut header);
        header.extend_from_slice(&self.pairs);
        let mut offset = 0u64;
        for tensor in &self.tensors {
            tensor.name.encode(endian, &mut header);
            let dims = tensor.dims.as_slice();
            (dims.len() as u32).put(endian, &mut header);
            for size in dims {
                size.put(endian, &mut header);
            }
            tensor.dtype.number().put(endian, &mut header);
            offset.put(endian, &mut header);
            offset = offset
                .checked_add(tensor.size)
                .and_then(|end| end.checked_next_multiple_of(self.alignment.into()))
                .ok_or_else(|| Error::SizeOverflow { tensor: tensor.name.clone(), dims: dims.to_vec() })?;
        }
        out.write_all(&header)?;
        pad(&mut out, header.len() as u64, self.alignment)?;
        Ok(TensorWriter { out, alignment: self.alignment, declared: self.tensors, given: 0, written: 0 })
    }

    pub(crate) fn pair(
        &mut self,
        key: &str,
        value_type: ValueType,
        encode: impl FnOnce(Endian, &mut Vec<u8>),
    ) -> Result<&mut Self, Error> {
        if key.is_empty() {
            return Err(Error::EmptyKey { index: self.keys.len() });
        }
        let mut value = Vec::new();
        encode(self.endian, &mut value);
        if key == ALIGNMENT_KEY {
            if value_type != ValueType::U32 {
                return Err(Error::WrongType {
                    key: key.to_owned(),
                    wanted: ValueType::U32.name(),
                    found: value_type.to_string(),
                });
            }
            let alignment = u32::take(&value, self.endian).unwrap_or_default();
            self.alignment = check_alignment(alignment)?;
        }
        if !self.keys.insert(key.to_owned()) {
            return Err(Error::DuplicateKey { key: key.to_owned() });
        }
        key.encode(self.endian, &mut self.pairs);
        value_type.number().put(self.endian, &mut self.pairs);
        self.pairs.append(&mut value);
        Ok(self)
    }
}

/// Writes the data of the tensors that a [`Writer`] declared, in that order.
#[derive(Debug)]
pub struct TensorWriter<W> {
    out: W,
    alignment: u32,
    declared: Vec<Declared>,
    given: usize,
    /// Bytes of the next tensor that are written.
    written: u64,
}

impl<W: Write> TensorWriter<W> {
    /// Writes the data of the next tensor, given in the file's byte order.
    ///
    /// # Errors
    ///
    /// [`Error::DataSize`] and [`Error::DataCount`], before anything is
    /// written; [`Error::Io`].
    pub fn data(&mut self, data: &[u8]) -> Result<(), Error> {
        let found = self.written + data.len() as u64;
        let tensor = self.next()?;
        if found != tensor.size {
            return Err(Error::DataSize { tensor: tensor.name.clone(), expected: tensor.size, found });
        }
        self.part(data)
    }

    /// Writes the next bytes of the next tensor, which is complete once it has all of them.
    ///
    /// # Errors
    ///
    /// As [`data`](Self::data), [`Error::DataSize`] where the tensor has fewer bytes.
    pub fn part(&mut self, data: &[u8]) -> Result<(), Error> {
        let found = self.written + data.len() as u64;
        let tensor = self.next()?;
        let size = tensor.size;
        if found > size {
            return Err(Error::DataSize { tensor: tensor.name.clone(), expected: size, found });
        }
        self.out.write_all(data)?;
        self.written = found;
        if found == size {
            pad(&mut self.out, size, self.alignment)?;
            self.written = 0;
            self.given += 1;
        }
        Ok(())
    }

    /// The tensor whose data are next.
    fn next(&self) -> Result<&Declared, Error> {
        let (declared, given) = (self.declared.len(), self.given + 1);
        self.declared.get(self.given).ok_or(Error::DataCount { declared, given })
    }

    /// Checks that every tensor has its data, flushes the output and returns it.
    ///
    /// # Errors
    ///
    /// [`Error::DataCount`], [`Error::Io`].
    pub fn finish(mut self) -> Result<W, Error> {
        if self.given < self.declared.len() {
            return Err(Error::DataCount { declared: self.declared.len(), given: self.given });
        }
        self.out.flush()?;
        Ok(self.out)
    }
}

impl Gguf<'_> {
    /// Writes the model as one file, in the order of [`Writer`].
    ///
    /// # Errors
    ///
    /// [`Error::UnknownTensorType`] and [`Error::Io`].
    pub fn write_to<W: Write>(&self, out: W) -> Result<W, Error> {
        let mut writer = Writer::from_gguf(self)?.begin(out)?;
        for tensor in self.tensors() {
            writer.data(tensor.data()?)?;
        }
        writer.finish()
    }
}

/// Writes zeros after `written` bytes, up to a multiple of the alignment.
fn pad(out: &mut impl Write, written: u64, alignment: u32) -> Result<(), Error> {
    let rest = written % u64::from(alignment);
    if rest != 0 {
        io::copy(&mut io::Read::take(io::repeat(0), u64::from(alignment) - rest), out)?;
    }
    Ok(())
}
