//! GGML files, which came before GGUF: read by Candle, with tensors of this crate.

use std::collections::HashMap;
use std::io::{Read, Seek};

use candle_core::quantized::ggml_file as candle;
use candle_core::{Device, Result};

pub use candle::{HParams, VersionedMagic, Vocab};

use super::host::ggml_type;
pub use super::qtensor::qtensor_from_ggml;
use super::{QTensor, WeightDevice};

/// A GGML file.
#[derive(Debug)]
pub struct Content {
    /// The version.
    pub magic: VersionedMagic,
    /// The hyperparameters.
    pub hparams: HParams,
    /// The tokens with their scores.
    pub vocab: Vocab,
    /// The tensors by their names.
    pub tensors: HashMap<String, QTensor>,
    /// The device of the tensors that these are multiplied with.
    pub device: Device,
}

impl Content {
    /// Reads a file whole, with its tensors on a device.
    ///
    /// # Errors
    ///
    /// Candle's, where this is no GGML file; those of [`QTensor::from_gguf`].
    pub fn read<R: Seek + Read, P: WeightDevice + ?Sized>(reader: &mut R, device: &P) -> Result<Self> {
        let candle::Content { magic, hparams, vocab, tensors, .. } = candle::Content::read(reader, &Device::Cpu)?;
        let ours = |(name, tensor): (String, candle_core::quantized::QTensor)| {
            let ty = ggml_type(tensor.dtype());
            Ok((name, QTensor::from_gguf(ty, tensor.data()?, tensor.shape().clone(), device)?))
        };
        let tensors = tensors.into_iter().map(ours).collect::<Result<_>>()?;
        Ok(Self { magic, hparams, vocab, tensors, device: device.tensors() })
    }

    /// Takes a tensor out.
    ///
    /// # Errors
    ///
    /// Where there is none of that name.
    pub fn remove(&mut self, name: &str) -> Result<QTensor> {
        match self.tensors.remove(name) {
            Some(tensor) => Ok(tensor),
            None => candle_core::bail!("the file has no tensor `{name}`"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// A file of version GGJT 3: hyperparameters, two tokens, a tensor of Q4_0.
    fn file() -> Vec<u8> {
        let mut bytes = Vec::new();
        let words = |bytes: &mut Vec<u8>, words: &[u32]| words.iter().for_each(|w| bytes.extend(w.to_le_bytes()));
        words(&mut bytes, &[0x67676a74, 3, 2, 32, 256, 4, 1, 8, 2]);
        for (token, score) in [("a", 0.5f32), ("bc", -1.0)] {
            words(&mut bytes, &[token.len() as u32]);
            bytes.extend(token.as_bytes());
            bytes.extend(score.to_le_bytes());
        }
        // Two extents, the length of the name, Q4_0, 32 columns, 3 rows.
        words(&mut bytes, &[2, 1, 2, 32, 3]);
        bytes.push(b'w');
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend((0..3 * 18).map(|i| if i % 18 == 1 { 0x3c } else { (i * 37) as u8 }));
        bytes
    }

    #[test]
    fn reads_what_candle_reads() {
        let mut ours = Content::read(&mut Cursor::new(file()), &crate::Device::Cpu).unwrap();
        let mut theirs = candle::Content::read(&mut Cursor::new(file()), &Device::Cpu).unwrap();
        assert_eq!((&ours.hparams, &ours.vocab), (&theirs.hparams, &theirs.vocab));
        assert_eq!(ours.magic, VersionedMagic::GgjtV3);
        let (ours, theirs) = (ours.remove("w").unwrap(), theirs.remove("w").unwrap());
        assert_eq!((ours.shape(), ours.data().unwrap()), (theirs.shape(), theirs.data().unwrap()));
    }

    #[test]
    fn what_is_no_such_file_is_an_error() {
        assert!(Content::read(&mut Cursor::new(&file()[1..]), &Device::Cpu).is_err());
        let mut content = Content::read(&mut Cursor::new(file()), &crate::Device::Cpu).unwrap();
        assert!(content.remove("x").unwrap_err().to_string().contains("`x`"));
    }
}
