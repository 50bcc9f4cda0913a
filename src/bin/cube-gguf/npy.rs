//! NumPy's `.npy` files: little-endian numbers in C order.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use half::f16;

use crate::Outcome;
use crate::part::PartFile;

const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// Alignment of the data in bytes, to which headers are padded.
const ALIGNMENT: usize = 64;
/// The longest header that is read, in bytes.
const MAX_HEADER: usize = 1 << 20;
/// The most dimensions that are read: NumPy's own limit.
const MAX_RANK: usize = 64;

/// An array of floats, read from a file.
pub struct Array {
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// Reads a file of f4, f2 or f8; f8 is rounded to f32.
pub fn read(path: &Path) -> Outcome<Array> {
    let at = |error: Box<dyn std::error::Error>| format!("{}: {error}", path.display());
    let file = File::open(path).map_err(|error| at(error.into()))?;
    Ok(parse(io::BufReader::new(file)).map_err(at)?)
}

fn parse(mut file: impl Read) -> Outcome<Array> {
    let header = Header::read(&mut file)?;
    let (width, decode): (usize, fn(&[u8]) -> f32) = match header.descr.as_str() {
        "<f4" => (4, |b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        "<f2" => (2, |b| f16::from_le_bytes([b[0], b[1]]).to_f32()),
        "<f8" => (8, |b| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32),
        other => return Err(format!("its values are `{other}`, not <f4, <f2 or <f8").into()),
    };
    if header.fortran_order {
        return Err("it is in Fortran order; numpy.ascontiguousarray makes it one in C order".into());
    }
    let too_large = || format!("an array of shape {:?} is too large", header.shape);
    let count = header.shape.iter().try_fold(1usize, |count, &extent| count.checked_mul(extent));
    let bytes = count.and_then(|count| count.checked_mul(width)).filter(|&bytes| bytes < isize::MAX as usize);
    let bytes = bytes.ok_or_else(too_large)?;
    // Grows with the bytes of the file, whatever the header claims.
    let mut data = Vec::new();
    file.take(bytes as u64 + 1).read_to_end(&mut data)?;
    if data.len() != bytes {
        let found = if data.len() > bytes { "more".to_owned() } else { data.len().to_string() };
        return Err(format!("an array of shape {:?} has {bytes} bytes of data, found {found}", header.shape).into());
    }
    Ok(Array { shape: header.shape, values: data.chunks_exact(width).map(decode).collect() })
}

#[derive(Debug, PartialEq, Eq)]
struct Header {
    descr: String,
    fortran_order: bool,
    shape: Vec<usize>,
}

impl Header {
    fn read(file: &mut impl Read) -> Outcome<Self> {
        let mut start = [0; 8];
        file.read_exact(&mut start).map_err(|_| "no .npy file: it is too short")?;
        if !start.starts_with(MAGIC) {
            return Err("no .npy file: it starts otherwise".into());
        }
        let len = match start[6] {
            1 => read_array(file).map(|bytes| u16::from_le_bytes(bytes) as usize),
            2 | 3 => read_array(file).map(|bytes| u32::from_le_bytes(bytes) as usize),
            version => return Err(format!(".npy version {version} is not supported (1 to 3 are)").into()),
        };
        let len = len.ok().filter(|&len| len <= MAX_HEADER).ok_or("its header is cut off or too long")?;
        let mut text = vec![0; len];
        file.read_exact(&mut text).map_err(|_| "its header is cut off")?;
        let text = String::from_utf8(text).map_err(|_| "its header is no text")?;
        Ok(Self::parse(&text).ok_or("its header is no dictionary of descr, fortran_order and shape")?)
    }

    /// Parses Python's `repr` of a dictionary with these three keys.
    fn parse(text: &str) -> Option<Self> {
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        let mut text = Text(text);
        text.take('{')?;
        while text.take('}').is_none() {
            let key = text.string()?;
            text.take(':')?;
            match key {
                "descr" if descr.is_none() => descr = Some(text.string()?.to_owned()),
                "fortran_order" if fortran_order.is_none() => fortran_order = Some(text.boolean()?),
                "shape" if shape.is_none() => shape = Some(text.tuple()?),
                _ => return None,
            }
            if text.take(',').is_none() {
                text.take('}')?;
                break;
            }
        }
        let header = Self { descr: descr?, fortran_order: fortran_order?, shape: shape? };
        text.0.trim().is_empty().then_some(header)
    }
}

fn read_array<const N: usize>(file: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// The rest of a header, not yet parsed.
struct Text<'a>(&'a str);

impl<'a> Text<'a> {
    fn take(&mut self, token: char) -> Option<()> {
        self.0 = self.0.trim_start().strip_prefix(token)?;
        Some(())
    }

    fn string(&mut self) -> Option<&'a str> {
        let text = self.0.trim_start();
        let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
        let (string, rest) = text[1..].split_once(quote)?;
        self.0 = rest;
        Some(string)
    }

    fn boolean(&mut self) -> Option<bool> {
        let text = self.0.trim_start();
        let (value, rest) = match text.strip_prefix("True") {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix("False")?),
        };
        self.0 = rest;
        Some(value)
    }

    fn tuple(&mut self) -> Option<Vec<usize>> {
        let mut values = Vec::new();
        self.take('(')?;
        while self.take(')').is_none() {
            let text = self.0.trim_start();
            let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            values.push(text[..digits].parse().ok().filter(|_| values.len() < MAX_RANK)?);
            // Python 2 wrote long integers with an L.
            self.0 = text[digits..].strip_prefix('L').unwrap_or(&text[digits..]);
            if self.take(',').is_none() {
                self.take(')')?;
                break;
            }
        }
        Some(values)
    }
}

/// A file that is written in pieces.
pub struct Writer {
    out: PartFile,
    /// Bytes of data not written yet.
    missing: usize,
}

impl Writer {
    /// Starts a file of `descr` values, `width` bytes each.
    pub fn create(path: &Path, descr: &str, width: usize, shape: &[usize]) -> Outcome<Self> {
        let out = PartFile::create(path)?;
        let mut writer = Self { out, missing: shape.iter().product::<usize>() * width };
        writer.put(&header(descr, shape))?;
        Ok(writer)
    }

    /// Adds data.
    pub fn write(&mut self, data: &[u8]) -> Outcome {
        self.missing = self.missing.checked_sub(data.len()).ok_or("more data than the shape has")?;
        self.put(data)
    }

    fn put(&mut self, data: &[u8]) -> Outcome {
        Ok(self.out.write_all(data)?)
    }

    /// Names the complete file.
    pub fn finish(self) -> Outcome {
        match self.missing {
            0 => self.out.finish(),
            missing => Err(format!("{}: {missing} bytes of data are missing", self.out.target().display()).into()),
        }
    }
}

fn header(descr: &str, shape: &[usize]) -> Vec<u8> {
    let shape: String = shape.iter().map(|extent| format!("{extent}, ")).collect();
    // Python needs the comma after a single extent, and allows one after several.
    let text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}), }}", shape.trim_end());
    let start = MAGIC.len() + 4;
    let len = (start + text.len() + 1).next_multiple_of(ALIGNMENT) - start;
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&[1, 0]);
    out.extend_from_slice(&(len as u16).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
    out.resize(start + len - 1, b' ');
    out.push(b'\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(descr: &str, shape: &[usize], data: &[u8]) -> Vec<u8> {
        [header(descr, shape), data.to_vec()].concat()
    }

    fn error(file: &[u8]) -> String {
        parse(file).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn what_is_written_is_read() {
        for shape in [&[][..], &[2], &[1, 2], &[2, 1, 1]] {
            let count = shape.iter().product();
            let data: Vec<u8> = (0..count).flat_map(|i| (i as f32 + 0.5).to_le_bytes()).collect();
            let bytes = file("<f4", shape, &data);
            assert_eq!((bytes.len() - data.len()) % ALIGNMENT, 0);
            let array = parse(&bytes[..]).unwrap();
            assert_eq!(array.shape, shape);
            assert_eq!(array.values, (0..count).map(|i| i as f32 + 0.5).collect::<Vec<_>>());
        }
        assert_eq!(parse(&file("<f2", &[1], &[0, 0x3c])[..]).unwrap().values, [1.0]);
        assert_eq!(parse(&file("<f8", &[1], &1.0f64.to_le_bytes())[..]).unwrap().values, [1.0]);
    }

    #[test]
    fn hostile_files_are_errors() {
        assert!(error(b"").contains("too short"));
        assert!(error(b"GGUF\x03\0\0\0").contains("starts otherwise"));
        assert!(error(b"\x93NUMPY\x09\0").contains("version 9"));
        assert!(error(b"\x93NUMPY\x02\0\xff\xff\xff\xff").contains("too long"));
        assert!(error(b"\x93NUMPY\x01\0\xff\xff{").contains("cut off"));
        assert!(error(&file("<f4", &[usize::MAX, 2], &[])).contains("too large"));
        assert!(error(&file("<f4", &[1 << 40], &[0; 4])).contains("found 4"));
        assert!(error(&file("<f4", &[1], &[0; 5])).contains("found more"));
        assert!(error(&file(">f4", &[1], &[0; 4])).contains("`>f4`"));
        assert!(error(&file("|O", &[1], &[0; 4])).contains("`|O`"));
    }

    #[test]
    fn headers_are_checked() {
        let shape = |text: &str| Header::parse(text).map(|header| header.shape);
        let good = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }  \n";
        assert_eq!(shape(good), Some(vec![3, 4]));
        assert_eq!(shape("{\"shape\":(),'fortran_order':True,'descr':'<f4'}"), Some(vec![]));
        for bad in [
            "",
            "{}",
            "{'descr': '<f4', 'fortran_order': False}",
            "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': ()}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (,)}",
            "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': ()} x",
            "{'descr: é",
        ] {
            assert_eq!(shape(bad), None, "{bad}");
        }
    }
}
