//! Loads every tensor of a GGUF file onto a device and says what it takes there.
//!
//! `cargo run --release --features hip --example load_model -- model.gguf rocm:0`

use std::error::Error;

use cube_gguf::gguf::Files;
use cube_gguf::kernels::formats::format;
use cube_gguf::{Device, DeviceTensor};

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
    let model = files.parse()?;
    let mut tensors = Vec::new();
    let (mut in_file, mut on_device) = (0, 0);
    for tensor in model.tensors() {
        let ty = tensor.dtype()?;
        // Integers and f64 are no weights.
        if format(ty).is_none() {
            continue;
        }
        let shape = tensor.shape();
        let k = shape.last().copied().unwrap_or(1);
        let n = shape.iter().rev().skip(1).product();
        let loaded = DeviceTensor::from_gguf(&device, ty, n, k, tensor.data()?, tensor.endian())?;
        in_file += tensor.size_in_bytes()?;
        on_device += loaded.device_bytes();
        tensors.push(loaded);
    }
    let ratio = on_device as f64 / in_file as f64;
    println!("{} tensors on {device}: {on_device} bytes for {in_file} of the file ({ratio:.3})", tensors.len());
    Ok(())
}
