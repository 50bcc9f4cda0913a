//! `candle_core::quantized::gguf_file`: a file's header through any reader, and its tensors one by one.
//!
//! Unlike Candle's, it reads every format of ggml and refuses what [`gguf`] refuses: keys and names that are
//! not UTF-8, tensors that overlap. A tensor of a type that ggml does not define is an error when it is asked for.

use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom, Write};

pub use candle_core::quantized::gguf_file::{DEFAULT_ALIGNMENT, Value, ValueType, VersionedMagic};
use candle_core::{Result, Shape};

use super::candle_error;
use super::qtensor::matrix;
use super::{QTensor, WeightDevice};
use crate::GgmlDType;
use crate::gguf::{self, Encode, Endian, Header, MAX_ARRAY_DEPTH, Writer, encode_array_head};
use crate::storage::device::Device;

/// A tensor in a file.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// Its type.
    pub ggml_dtype: GgmlDType,
    /// Its extents, outermost first.
    pub shape: Shape,
    /// Where it starts in the section of tensors, in bytes.
    pub offset: u64,
}

impl TensorInfo {
    /// Reads the tensor's blocks and puts them on a device.
    ///
    /// # Errors
    ///
    /// Where the file ends before the tensor does, and as [`QTensor::from_gguf`].
    pub fn read<R: Seek + Read, P: WeightDevice + ?Sized>(
        &self,
        reader: &mut R,
        tensor_data_offset: u64,
        device: &P,
    ) -> Result<QTensor> {
        let (n, k) = matrix(&self.shape, self.ggml_dtype)?;
        let bytes = self.ggml_dtype.row_bytes(k).map_or(0, |row| n * row);
        let start = tensor_data_offset.saturating_add(self.offset);
        let left = reader.seek(SeekFrom::End(0))?.saturating_sub(start);
        if bytes as u64 > left {
            candle_core::bail!("a tensor of {bytes} bytes at byte {start}: the file has {left} bytes from there on");
        }
        let mut data = vec![0; bytes];
        reader.seek(SeekFrom::Start(start))?;
        reader.read_exact(&mut data)?;
        QTensor::from_gguf(self.ggml_dtype, data.into(), self.shape.clone(), &device.weights()?)
    }
}

/// The header of a file.
#[derive(Debug)]
pub struct Content {
    /// The version of the format.
    pub magic: VersionedMagic,
    /// The metadata by key.
    pub metadata: HashMap<String, Value>,
    /// The tensors by name.
    pub tensor_infos: HashMap<String, TensorInfo>,
    /// Where the section of tensors starts, in bytes from the start of the file.
    pub tensor_data_offset: u64,
    /// The tensors of types that ggml does not define: the numbers of their types by name.
    unknown: HashMap<String, u32>,
}

impl Content {
    /// Reads the header at the reader's position; of a split model, that of one file.
    ///
    /// # Errors
    ///
    /// What [`gguf::Gguf::parse`] refuses, and big-endian files, which [`gguf::Files`] and
    /// [`DeviceTensor`](crate::DeviceTensor) read.
    pub fn read<R: Seek + Read>(reader: &mut R) -> Result<Self> {
        let start = reader.stream_position()?;
        let header = Header::read(reader).map_err(candle_error)?;
        let shard = header.parse().map_err(candle_error)?;
        if shard.encoding.endian == Endian::Big {
            candle_core::bail!("a big-endian GGUF file, which Candle's types do not hold");
        }
        let (mut tensor_infos, mut unknown) = (HashMap::new(), HashMap::new());
        for tensor in shard.tensors() {
            let name = without_nul(tensor.name()).to_owned();
            match tensor.dtype() {
                Ok(ggml_dtype) => {
                    let info = TensorInfo { ggml_dtype, shape: tensor.shape().into(), offset: tensor.offset() };
                    tensor_infos.insert(name, info);
                }
                Err(_) => {
                    unknown.insert(name, tensor.type_number());
                }
            }
        }
        Ok(Self {
            magic: match shard.version {
                1 => VersionedMagic::GgufV1,
                2 => VersionedMagic::GgufV2,
                _ => VersionedMagic::GgufV3,
            },
            metadata: shard.metadata.iter().map(|(key, value)| (without_nul(key).to_owned(), owned(value))).collect(),
            tensor_infos,
            tensor_data_offset: start + shard.data_offset() as u64,
            unknown,
        })
    }

    /// Reads a tensor and puts it on a device. The factors that the file has for `NAME.weight` as `NAME.scale`, of NVFP4, are
    /// part of it.
    ///
    /// # Errors
    ///
    /// Where there is no tensor of that name, and as [`TensorInfo::read`].
    pub fn tensor<R: Seek + Read, P: WeightDevice + ?Sized>(
        &self,
        reader: &mut R,
        name: &str,
        device: &P,
    ) -> Result<QTensor> {
        let Some(info) = self.tensor_infos.get(name) else {
            if let Some(&number) = self.unknown.get(name) {
                return Err(candle_error(gguf::Error::UnknownTensorType { tensor: name.to_owned(), number }));
            }
            candle_core::bail!("cannot find tensor info for {name}");
        };
        let of_tensor = |error: candle_core::Error| error.context(format!("tensor {name}"));
        let tensor = info.read(reader, self.tensor_data_offset, device).map_err(of_tensor)?;
        let scale = name.strip_suffix(".weight").and_then(|name| self.tensor_infos.get(&format!("{name}.scale")));
        let Some(scale) = scale else { return Ok(tensor) };
        let scale = scale.read(reader, self.tensor_data_offset, &Device::Cpu)?.dequantize(&Device::Cpu)?;
        tensor.with_scale(&scale.flatten_all()?.to_vec1::<f32>()?).map_err(of_tensor)
    }
}

/// A string without the NULs at its end, which old tools wrote; Candle takes them off too.
pub(super) fn without_nul(string: &str) -> &str {
    string.trim_end_matches('\0')
}

/// The value as Candle's, with its own strings and arrays.
fn owned(value: gguf::Value<'_>) -> Value {
    match value {
        gguf::Value::U8(v) => Value::U8(v),
        gguf::Value::I8(v) => Value::I8(v),
        gguf::Value::U16(v) => Value::U16(v),
        gguf::Value::I16(v) => Value::I16(v),
        gguf::Value::U32(v) => Value::U32(v),
        gguf::Value::I32(v) => Value::I32(v),
        gguf::Value::U64(v) => Value::U64(v),
        gguf::Value::I64(v) => Value::I64(v),
        gguf::Value::F32(v) => Value::F32(v),
        gguf::Value::F64(v) => Value::F64(v),
        gguf::Value::Bool(v) => Value::Bool(v),
        gguf::Value::String(v) => Value::String(without_nul(v).to_owned()),
        gguf::Value::Bytes(v) => Value::String(without_nul(&String::from_utf8_lossy(v)).to_owned()),
        gguf::Value::Array(array) => Value::Array(array.iter().map(owned).collect()),
    }
}

/// Writes a file of version 3, little-endian.
///
/// # Errors
///
/// Where a key or a name occurs twice, an array has values of several types or nests too deep, or a device or `w`
/// failed.
pub fn write<W: Seek + Write>(w: &mut W, metadata: &[(&str, &Value)], tensors: &[(&str, &QTensor)]) -> Result<()> {
    let mut writer = Writer::new();
    for &(key, value) in metadata {
        check(key, value, MAX_ARRAY_DEPTH)?;
        let put = |endian, out: &mut Vec<u8>| encode(value, endian, out);
        writer.pair(key, value_type(value), put).map_err(candle_error)?;
    }
    for (name, tensor) in tensors {
        let dims: Vec<u64> = tensor.shape().dims().iter().rev().map(|&extent| extent as u64).collect();
        writer.tensor(name, &dims, tensor.dtype()).map_err(candle_error)?;
    }
    let mut out = writer.begin(w).map_err(candle_error)?;
    for (_, tensor) in tensors {
        out.data(&tensor.data()?).map_err(candle_error)?;
    }
    out.finish().map_err(candle_error)?;
    Ok(())
}

/// Checks that arrays have values of one type and nest no deeper than `depth`.
fn check(key: &str, value: &Value, depth: usize) -> Result<()> {
    let Value::Array(values) = value else { return Ok(()) };
    let Some(depth) = depth.checked_sub(1) else {
        candle_core::bail!("{key}: arrays nest deeper than {MAX_ARRAY_DEPTH}");
    };
    let mut types = values.iter().map(Value::value_type);
    let first = types.next();
    if let Some(other) = types.find(|other| Some(*other) != first) {
        candle_core::bail!("{key}: an array of values of the types {first:?} and {other:?}");
    }
    values.iter().try_for_each(|value| check(key, value, depth))
}

fn value_type(value: &Value) -> gguf::ValueType {
    match value {
        Value::U8(_) => gguf::ValueType::U8,
        Value::I8(_) => gguf::ValueType::I8,
        Value::U16(_) => gguf::ValueType::U16,
        Value::I16(_) => gguf::ValueType::I16,
        Value::U32(_) => gguf::ValueType::U32,
        Value::I32(_) => gguf::ValueType::I32,
        Value::U64(_) => gguf::ValueType::U64,
        Value::I64(_) => gguf::ValueType::I64,
        Value::F32(_) => gguf::ValueType::F32,
        Value::F64(_) => gguf::ValueType::F64,
        Value::Bool(_) => gguf::ValueType::Bool,
        Value::String(_) => gguf::ValueType::String,
        Value::Array(_) => gguf::ValueType::Array,
    }
}

/// Appends a value as it is in a file, without its type.
fn encode(value: &Value, endian: Endian, out: &mut Vec<u8>) {
    match value {
        Value::U8(v) => v.encode(endian, out),
        Value::I8(v) => v.encode(endian, out),
        Value::U16(v) => v.encode(endian, out),
        Value::I16(v) => v.encode(endian, out),
        Value::U32(v) => v.encode(endian, out),
        Value::I32(v) => v.encode(endian, out),
        Value::U64(v) => v.encode(endian, out),
        Value::I64(v) => v.encode(endian, out),
        Value::F32(v) => v.encode(endian, out),
        Value::F64(v) => v.encode(endian, out),
        Value::Bool(v) => v.encode(endian, out),
        Value::String(v) => v.encode(endian, out),
        Value::Array(values) => {
            // No value tells the type of an empty array, so any will do.
            let element_type = values.first().map_or(gguf::ValueType::U32, value_type);
            encode_array_head(element_type, values.len(), endian, out);
            values.iter().for_each(|value| encode(value, endian, out));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Cursor;

    use candle_core::quantized::gguf_file as theirs;

    use super::*;
    use crate::Device;
    use crate::candle::VarBuilder;

    fn fixture(name: &str) -> Vec<u8> {
        fs::read(format!("{}/tests/fixtures/{name}.gguf", env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    /// Metadata in the order of the keys.
    fn sorted(metadata: &HashMap<String, Value>) -> Vec<String> {
        let mut lines: Vec<_> = metadata.iter().map(|(key, value)| format!("{key} = {value:?}")).collect();
        lines.sort();
        lines
    }

    /// Header and tensors are those that Candle reads, bit for bit.
    #[test]
    fn reads_what_candle_reads() {
        for name in ["q4_k", "q8_0", "f16"] {
            let file = fixture(name);
            let mut reader = Cursor::new(&file);
            let theirs = theirs::Content::read(&mut reader).unwrap();
            reader.set_position(0);
            let ours = Content::read(&mut reader).unwrap();
            assert_eq!(ours.magic, theirs.magic);
            assert_eq!(ours.tensor_data_offset, theirs.tensor_data_offset);
            assert_eq!(sorted(&ours.metadata), sorted(&theirs.metadata));
            assert_eq!(ours.tensor_infos.len(), theirs.tensor_infos.len());
            for (name, info) in &theirs.tensor_infos {
                let tensor = ours.tensor(&mut reader, name, &Device::Cpu).unwrap();
                let expected = theirs.tensor(&mut reader, name, &candle_core::Device::Cpu).unwrap();
                let own = &ours.tensor_infos[name];
                assert_eq!((&own.shape, own.offset, tensor.shape()), (&info.shape, info.offset, expected.shape()));
                assert_eq!(tensor.data().unwrap(), expected.data().unwrap(), "{name}");
                assert_eq!(own.ggml_dtype.type_size(), info.ggml_dtype.type_size(), "{name}");
            }
            assert!(ours.tensor(&mut reader, "none", &Device::Cpu).unwrap_err().to_string().contains("none"));
            let mut cut = Cursor::new(&file[..file.len() - 40]);
            let last = ours.tensor_infos.iter().max_by_key(|(_, info)| info.offset).unwrap();
            assert!(ours.tensor(&mut cut, last.0, &Device::Cpu).is_err());
        }
    }

    /// Candle reads back what was written.
    #[test]
    fn writes_what_candle_reads() {
        let file = fixture("q4_k");
        let mut reader = Cursor::new(&file);
        let content = Content::read(&mut reader).unwrap();
        let nested = Value::Array(vec![Value::Array(vec![Value::I16(-3)]), Value::Array(vec![])]);
        let mut metadata: Vec<(&str, &Value)> =
            content.metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
        let strings = Value::Array(vec![Value::String("a".into()), Value::String(String::new())]);
        let own = [("strings", strings), ("yes", Value::Bool(true)), ("pi", Value::F64(3.25))];
        metadata.extend(own.iter().map(|(key, value)| (*key, value)));
        let named: Vec<_> = content
            .tensor_infos
            .keys()
            .map(|name| (name.as_str(), content.tensor(&mut reader, name, &Device::Cpu).unwrap()))
            .collect();
        let tensors: Vec<_> = named.iter().map(|(name, tensor)| (*name, tensor)).collect();
        let mut out = Cursor::new(Vec::new());
        write(&mut out, &metadata, &tensors).unwrap();
        out.set_position(0);
        let back = theirs::Content::read(&mut out).unwrap();
        let expected: HashMap<String, Value> =
            metadata.iter().map(|(key, value)| (key.to_string(), (*value).clone())).collect();
        assert_eq!(sorted(&back.metadata), sorted(&expected));
        for (name, tensor) in &named {
            let read = back.tensor(&mut out, name, &candle_core::Device::Cpu).unwrap();
            assert_eq!(read.data().unwrap(), tensor.data().unwrap(), "{name}");
        }
        let mixed = Value::Array(vec![Value::U8(1), Value::I8(1)]);
        assert!(write(&mut Cursor::new(Vec::new()), &[("mixed", &mixed)], &[]).is_err());
        assert!(write(&mut Cursor::new(Vec::new()), &[("nested", &nested)], &[]).is_ok());
    }

    #[test]
    fn tensors_are_found_below_their_path() {
        let file = fixture("q4_k");
        let tensors = VarBuilder::from_gguf_buffer(&file, &Device::Cpu).unwrap();
        let whole = tensors.get_no_shape("quantized.expected").unwrap();
        let shape = whole.shape().clone();
        assert!(tensors.contains_key("quantized.expected") && !tensors.contains_key("expected"));
        let below = tensors.pp("quantized");
        assert_eq!(below.get(shape.clone(), "expected").unwrap().data().unwrap(), whole.data().unwrap());
        assert!(below.get((1, 1), "expected").unwrap_err().to_string().contains("quantized.expected"));
        assert!(tensors.get_no_shape("expected").is_err());
        assert!(tensors.device().is_cpu());
    }

    #[test]
    fn strings_end_before_their_nuls() {
        let mut writer = Writer::new();
        writer.metadata("key\0", "value\0\0").unwrap();
        writer.metadata("keys", ["a\0", "b"]).unwrap();
        writer.tensor("weights\0", &[32, 1], GgmlDType::Q8_0).unwrap();
        let mut tensors = writer.begin(Vec::new()).unwrap();
        tensors.data(&[7; 34]).unwrap();
        let file = tensors.finish().unwrap();
        let (mut reader, mut candles) = (Cursor::new(&file), Cursor::new(&file));
        let (ours, theirs) = (Content::read(&mut reader).unwrap(), theirs::Content::read(&mut candles).unwrap());
        assert_eq!(sorted(&ours.metadata), sorted(&theirs.metadata));
        assert!(ours.metadata.contains_key("key") && theirs.tensor_infos.contains_key("weights"));
        let tensor = ours.tensor(&mut reader, "weights", &Device::Cpu).unwrap();
        assert_eq!(*tensor.data().unwrap(), [7; 34]);
        let tensors = VarBuilder::from_gguf_buffer(&file, &Device::Cpu).unwrap();
        assert_eq!(*tensors.get((1, 32), "weights").unwrap().data().unwrap(), [7; 34]);
    }

    /// A tensor of a type that ggml does not define, one of integers or a scalar is an error of its own.
    #[test]
    fn a_tensor_that_holds_no_weights_leaves_the_others() {
        let corpus =
            |name: &str| fs::read(format!("{}/tests/gguf/corpus/{name}.gguf", env!("CARGO_MANIFEST_DIR"))).unwrap();
        let first_line = |error: candle_core::Error| error.to_string().lines().next().unwrap_or_default().to_owned();
        let unknown = corpus("hostile/type-99");
        let mut reader = Cursor::new(&unknown);
        let content = Content::read(&mut reader).unwrap();
        let error = first_line(content.tensor(&mut reader, "t", &Device::Cpu).unwrap_err());
        assert_eq!(error, "tensor `t` has unknown type 99");
        let tensors = VarBuilder::from_gguf_buffer(&unknown, &Device::Cpu).unwrap();
        assert!(first_line(tensors.get_no_shape("t").unwrap_err()).ends_with("has unknown type 99"));

        let mixed = corpus("valid/v3-le");
        let tensors = VarBuilder::from_gguf_buffer(&mixed, &Device::Cpu).unwrap();
        assert_eq!(tensors.get_no_shape("q8_0").unwrap().dtype(), GgmlDType::Q8_0);
        assert!(first_line(tensors.get_no_shape("i16").unwrap_err()).starts_with("i16: I16 tensors hold no weights"));
        let mut reader = Cursor::new(&mixed);
        let content = Content::read(&mut reader).unwrap();
        content.tensor(&mut reader, "q8_0", &Device::Cpu).unwrap();
        let error = content.tensor(&mut reader, "i16", &Device::Cpu).unwrap_err().to_string();
        assert!(error.contains("i16") && error.contains("I16 tensors hold no weights"), "{error}");

        let tensors = VarBuilder::from_gguf_buffer(&corpus("valid/scalar"), &Device::Cpu).unwrap();
        assert_eq!(first_line(tensors.get_no_shape("t").unwrap_err()), "t: a scalar of F32: weights have rows");
    }

    /// Candle's CPU device stands for the device that was set.
    #[test]
    fn weights_go_where_candle_s_device_stands_for() {
        crate::candle::set_default_device(Device::Cpu);
        let tensors = VarBuilder::from_gguf_buffer(&fixture("q4_k"), &candle_core::Device::Cpu).unwrap();
        assert_eq!(tensors.get_no_shape("quantized").unwrap().device(), Device::Cpu);
    }
}
