//! Loads every tensor of a GGUF file onto a device and says what it takes there.
//!
//! `cargo run --release --features hip --example load_model -- model.gguf rocm:0`

use std::error::Error;

use cube_gguf::gguf::{Files, Gguf};
use cube_gguf::{CubeDevice, Device, DeviceTensor};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let file = arguments.next().ok_or("usage: load_model FILE [DEVICE]")?;
    let device = match arguments.next() {
        Some(name) => name.parse()?,
        None => Device::best(),
    };
    let Device::Cube(device) = device else {
        return Err("cpu has no device memory: name cube-cpu or a GPU".into());
    };

    let files = Files::open(file)?;
    let (tensors, in_file) = load(&device, &files.parse()?)?;
    let on_device: usize = tensors.iter().map(DeviceTensor::device_bytes).sum();
    let ratio = on_device as f64 / in_file as f64;
    println!("{} tensors on {device}: {on_device} bytes for {in_file} of the file ({ratio:.3})", tensors.len());
    Ok(())
}

/// All weights of a model on a device, in the order of the file, and the bytes they take in the file.
fn load(device: &CubeDevice, model: &Gguf<'_>) -> cube_gguf::Result<(Vec<DeviceTensor>, usize)> {
    let (mut tensors, mut in_file) = (Vec::new(), 0);
    for tensor in model.tensors() {
        if tensor.dtype()?.is_weights() {
            tensors.push(DeviceTensor::load(device, &tensor)?);
            in_file += tensor.size_in_bytes()?;
        }
    }
    Ok((tensors, in_file))
}

#[cfg(all(test, feature = "cpu"))]
mod tests {
    use cube_gguf::Backend;

    use super::*;

    #[test]
    fn every_tensor_is_on_the_device() {
        let files = Files::open(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/q4_k.gguf")).unwrap();
        let model = files.parse().unwrap();
        let device = CubeDevice::new(Backend::CubeCpu, 0).unwrap();
        let (loaded, in_file) = load(&device, &model).unwrap();
        assert_eq!(loaded.len(), 6);
        let mut bytes = 0;
        for (loaded, tensor) in loaded.iter().zip(model.tensors()) {
            assert_eq!(loaded.data().unwrap(), tensor.data().unwrap(), "{}", tensor.name());
            bytes += tensor.data().unwrap().len();
        }
        assert_eq!(in_file, bytes);
    }
}
