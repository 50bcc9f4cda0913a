//! The entries of tensors in a header, and the tensors' data.

use super::MAX_DIMS;
use super::cursor::Cursor;
use super::endian::Endian;
use super::error::{Error, Place};
use super::ggml_type::GgmlType;

/// The fewest bytes of a tensor's entry beside the name's length: the number of
/// dimensions, the type and the offset.
pub(super) const MIN_ENTRY_BYTES: usize = 4 + 4 + 8;

/// A tensor's dimensions, contiguous first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dims {
    sizes: [u64; MAX_DIMS],
    count: usize,
}

impl Dims {
    pub fn new(tensor: &str, dims: &[u64]) -> Result<Self, Error> {
        let mut sizes = [1; MAX_DIMS];
        sizes.get_mut(..dims.len()).ok_or_else(|| too_many(tensor, dims.len() as u64))?.copy_from_slice(dims);
        Ok(Self { sizes, count: dims.len() })
    }

    pub fn as_slice(&self) -> &[u64] {
        self.sizes.get(..self.count).unwrap_or_default()
    }

    /// The number of values.
    ///
    /// A dimension of 0 is allowed, as in ggml, and counts as 1 in the check:
    /// no stride of an accepted tensor overflows.
    pub fn elements(&self, tensor: &str) -> Result<usize, Error> {
        let product = self
            .sizes
            .iter()
            .try_fold(1u64, |product, &size| product.checked_mul(size.max(1)))
            .and_then(|product| isize::try_from(product).ok())
            .ok_or_else(|| self.overflow(tensor))?;
        Ok(if self.sizes.contains(&0) { 0 } else { product.unsigned_abs() })
    }

    /// The size in bytes of a tensor of type `dtype`.
    pub fn bytes(&self, tensor: &str, dtype: GgmlType) -> Result<usize, Error> {
        let elements = self.elements(tensor)?;
        let [row, ..] = self.sizes;
        if !row.is_multiple_of(dtype.block_size() as u64) {
            return Err(Error::PartialBlock { tensor: tensor.to_owned(), row, dtype });
        }
        dtype.row_bytes(elements).ok_or_else(|| self.overflow(tensor))
    }

    fn overflow(&self, tensor: &str) -> Error {
        Error::SizeOverflow { tensor: tensor.to_owned(), dims: self.as_slice().to_vec() }
    }
}

fn too_many(tensor: &str, count: u64) -> Error {
    Error::TooManyDims { tensor: tensor.to_owned(), count }
}

/// A tensor's entry in the header, as it is in the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'a> {
    pub name: &'a str,
    pub dims: Dims,
    pub type_number: u32,
    /// From the start of the data section, in bytes.
    pub offset: u64,
}

impl<'a> Entry<'a> {
    pub fn read(cursor: &mut Cursor<'a>, index: usize) -> Result<Self, Error> {
        cursor.place = Place::TensorName(index);
        let name = cursor.string()?;
        cursor.place = Place::Tensor(name);
        let count = cursor.number::<u32>()?;
        let mut sizes = [1; MAX_DIMS];
        let dims = usize::try_from(count)
            .ok()
            .and_then(|count| sizes.get_mut(..count))
            .ok_or_else(|| too_many(name, count.into()))?;
        for size in &mut *dims {
            *size = cursor.size()?;
        }
        Ok(Entry { name, dims: Dims::new(name, dims)?, type_number: cursor.number()?, offset: cursor.number()? })
    }

    pub fn dtype(&self) -> Result<GgmlType, Error> {
        GgmlType::from_number(self.type_number)
            .ok_or_else(|| Error::UnknownTensorType { tensor: self.name.to_owned(), number: self.type_number })
    }

    /// The least size of the tensor's data in bytes: the exact size for a known
    /// type; for an unknown one, 1 if the tensor has values and 0 if not.
    pub fn known_bytes(&self) -> Result<u64, Error> {
        let bytes = match self.dtype() {
            Ok(dtype) => self.dims.bytes(self.name, dtype)?,
            Err(_) => self.dims.elements(self.name)?.min(1),
        };
        Ok(bytes as u64)
    }

    /// Checks that the tensor is aligned and inside `available` bytes of data;
    /// returns where it ends.
    pub fn check_place(&self, alignment: u32, available: u64) -> Result<u64, Error> {
        if !self.offset.is_multiple_of(alignment.into()) {
            return Err(Error::Misaligned { tensor: self.name.to_owned(), offset: self.offset, alignment });
        }
        let size = self.known_bytes()?;
        self.offset.checked_add(size).filter(|&end| end <= available).ok_or_else(|| Error::OutOfFile {
            tensor: self.name.to_owned(),
            offset: self.offset,
            size,
            available,
        })
    }
}

/// A tensor of a file: its name, dimensions and type, and its bytes, borrowed
/// from the file.
#[derive(Clone, Copy, Debug)]
pub struct TensorInfo<'a> {
    entry: Entry<'a>,
    elements: usize,
    /// The tensor's first [`known_bytes`](Entry::known_bytes).
    data: &'a [u8],
    endian: Endian,
}

impl<'a> TensorInfo<'a> {
    /// `data` is the file's data section.
    pub(super) fn new(entry: Entry<'a>, data: &'a [u8], endian: Endian) -> Result<Self, Error> {
        let start = usize::try_from(entry.offset).unwrap_or(usize::MAX);
        let size = usize::try_from(entry.known_bytes()?).unwrap_or(usize::MAX);
        let rest = data.get(start..).unwrap_or_default();
        Ok(Self {
            elements: entry.dims.elements(entry.name)?,
            data: rest.get(..size).unwrap_or_default(),
            entry,
            endian,
        })
    }

    /// The name.
    pub fn name(&self) -> &'a str {
        self.entry.name
    }

    /// The dimensions in ggml's order, contiguous first: at most
    /// [`MAX_DIMS`], none for a scalar.
    pub fn dims(&self) -> &[u64] {
        self.entry.dims.as_slice()
    }

    /// The dimensions in row-major order, contiguous last.
    pub fn shape(&self) -> Vec<usize> {
        // No truncation: their product, zeros aside, fits in an `isize`.
        self.dims().iter().rev().map(|&size| size as usize).collect()
    }

    /// Rows and columns of the tensor as a matrix: the contiguous dimension makes the columns, all others the rows. A
    /// vector is one row, a scalar one row of one value.
    pub fn matrix(&self) -> (usize, usize) {
        let shape = self.shape();
        let columns = shape.last().copied().unwrap_or(1);
        (shape.iter().rev().skip(1).product(), columns)
    }

    /// The type.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownTensorType`], with the number in the file.
    pub fn dtype(&self) -> Result<GgmlType, Error> {
        self.entry.dtype()
    }

    /// The number in the file that stands for the type, known or not.
    pub fn type_number(&self) -> u32 {
        self.entry.type_number
    }

    /// The number of values; 0 when a dimension is 0.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// The size of the data, in bytes.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownTensorType`]: the size of its blocks is unknown too.
    pub fn size_in_bytes(&self) -> Result<usize, Error> {
        self.data().map(<[u8]>::len)
    }

    /// Offset of the data in the file's data section, in bytes.
    pub fn offset(&self) -> u64 {
        self.entry.offset
    }

    /// The data as it is in the file, in the byte order of [`endian`](Self::endian).
    ///
    /// # Errors
    ///
    /// [`Error::UnknownTensorType`]: where the data ends is unknown too.
    pub fn data(&self) -> Result<&'a [u8], Error> {
        self.dtype().map(|_| self.data)
    }

    /// The byte order of the data.
    pub fn endian(&self) -> Endian {
        self.endian
    }
}
