//! The header of a file that is read piece by piece.

use std::io::{Read, Seek, SeekFrom};

use super::error::Error;
use super::reader::Shard;

/// Bytes of the first read: enough for the header of a model without a
/// vocabulary.
const FIRST_BYTES: u64 = 1 << 16;

/// The bytes of a file from its start to the end of its header, or past it.
pub(crate) struct Header {
    bytes: Vec<u8>,
    /// Bytes of the whole file.
    total: u64,
}

impl Header {
    /// Reads at most four times the header's size, or [`FIRST_BYTES`] where
    /// that is more: tensor data stays in the file.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], and those of [`Gguf::parse`](super::Gguf::parse).
    pub(crate) fn read<R: Read + Seek>(reader: &mut R) -> Result<Self, Error> {
        let start = reader.stream_position()?;
        let total = reader.seek(SeekFrom::End(0))?.saturating_sub(start);
        reader.seek(SeekFrom::Start(start))?;
        let mut header = Self { bytes: Vec::new(), total };
        let mut wanted = FIRST_BYTES;
        loop {
            let had = header.bytes.len() as u64;
            reader.by_ref().take(wanted - had).read_to_end(&mut header.bytes)?;
            match header.parse() {
                Ok(_) => return Ok(header),
                // The header may go on past the bytes read so far.
                Err(Error::Truncated { .. } | Error::CountTooLarge { .. }) if header.bytes.len() as u64 == wanted => {
                    wanted = wanted.saturating_mul(4);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The parsed header. A tensor whose data was not read whole has empty
    /// data.
    pub(crate) fn parse(&self) -> Result<Shard<'_>, Error> {
        Shard::parse_start(&self.bytes, self.total)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::gguf::{GgmlType, Writer};

    /// A file with a header of about `header_bytes` bytes.
    fn file(header_bytes: usize) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.metadata("vocabulary", "x".repeat(header_bytes)).unwrap();
        writer.tensor("weights", &[32, 2], GgmlType::Q8_0).unwrap();
        let mut tensors = writer.begin(Vec::new()).unwrap();
        tensors.data(&[7; 68]).unwrap();
        tensors.finish().unwrap()
    }

    #[test]
    fn a_header_of_any_size_is_read_and_little_else() {
        for bytes in [0, 65_000, 65_536, 300_000] {
            let mut file = file(bytes);
            file.resize(file.len() + (8 << 20), 0);
            let header = Header::read(&mut Cursor::new(&file)).unwrap();
            assert!(header.bytes.len() <= (4 * bytes).max(1 << 16) + 1024, "{}", header.bytes.len());
            let shard = header.parse().unwrap();
            let tensor = shard.tensors().next().unwrap();
            assert_eq!((tensor.name(), tensor.shape(), tensor.offset()), ("weights", vec![2, 32], 0));
            assert_eq!(file[shard.data_offset()..][..68], [7; 68]);
        }
    }

    #[test]
    fn a_file_that_ends_too_early_is_an_error() {
        let whole = file(100_000);
        for cut in [0, 3, 24, 70_000, whole.len() - 29] {
            let error = Header::read(&mut Cursor::new(&whole[..cut])).map(drop).unwrap_err();
            assert_eq!(error.to_string(), crate::gguf::Gguf::parse(&whole[..cut]).unwrap_err().to_string());
        }
    }
}
