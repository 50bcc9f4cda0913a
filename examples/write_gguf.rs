//! Writes a small GGUF file, metadata and one tensor, and reads it back.
//!
//! `cargo run --release --example write_gguf -- small.gguf`

use std::error::Error;
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use cube_gguf::gguf::{self, Files, GgmlType, Writer};

const ROWS: usize = 2;
const COLUMNS: usize = 32;

fn main() -> Result<(), Box<dyn Error>> {
    let file = std::env::args().nth(1).ok_or("usage: write_gguf FILE")?;
    write(file.as_ref(), &weights())?;

    let files = Files::open(&file)?;
    let model = files.parse()?;
    for (key, value) in model.metadata().iter() {
        println!("{key} = {value:?}");
    }
    for tensor in model.tensors() {
        println!("{}: {} {:?}", tensor.name(), tensor.dtype()?, tensor.shape());
    }
    Ok(())
}

fn weights() -> Vec<f32> {
    (0..ROWS * COLUMNS).map(|i| i as f32 / 8.0 - 1.0).collect()
}

/// Writes the header first, then the data of each tensor in the order of the header.
fn write(file: &Path, weights: &[f32]) -> Result<(), gguf::Error> {
    let mut writer = Writer::new();
    writer.metadata("general.architecture", "example")?;
    writer.metadata("example.block_count", 1u32)?;
    writer.metadata("tokenizer.ggml.tokens", ["<bos>", "yes", "no"])?;
    // In ggml's order: what is contiguous comes first.
    writer.tensor("output.weight", &[COLUMNS as u64, ROWS as u64], GgmlType::F32)?;
    let mut tensors = writer.begin(BufWriter::new(File::create(file)?))?;
    let data: Vec<u8> = weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
    tensors.data(&data)?;
    tensors.finish()?;
    Ok(())
}

#[cfg(all(test, feature = "cpu"))]
mod tests {
    use cube_gguf::{Backend, CubeDevice, DeviceTensor, FloatType};

    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let file = std::env::temp_dir().join(format!("cube-gguf-write-{}.gguf", std::process::id()));
        write(&file, &weights()).unwrap();
        let files = Files::open(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        let model = files.parse().unwrap();
        let metadata = model.metadata();
        assert_eq!(metadata.len(), 3);
        assert_eq!(metadata.str("general.architecture").unwrap(), "example");
        assert_eq!(metadata.u32("example.block_count").unwrap(), 1);
        let tokens = metadata.elements::<&str>("tokenizer.ggml.tokens").unwrap();
        assert_eq!(tokens.collect::<Result<Vec<_>, _>>().unwrap(), ["<bos>", "yes", "no"]);
        assert_eq!(model.tensor_count(), 1);
        let tensor = model.tensor("output.weight").unwrap();
        assert_eq!(tensor.shape(), [ROWS, COLUMNS]);
        assert_eq!(FloatType::F32.to_f32(tensor.data().unwrap(), ROWS * COLUMNS), weights());

        let device = CubeDevice::new(Backend::CubeCpu, 0).unwrap();
        let loaded = DeviceTensor::load(&device, &tensor).unwrap();
        assert_eq!(loaded.dequantize(FloatType::F32).unwrap(), weights());
    }
}
