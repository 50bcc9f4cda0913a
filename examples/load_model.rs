//! Loads every tensor of a GGUF file onto a device and says what it takes there.
//!
//! `cargo run --release --features hip --example load_model -- model.gguf rocm:0`

use std::error::Error;

use cube_gguf::gguf::Files;
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
        if !ty.is_weights() {
            continue;
        }
        let loaded = DeviceTensor::load(&device, &tensor)?;
        in_file += tensor.size_in_bytes()?;
        on_device += loaded.device_bytes();
        tensors.push(loaded);
    }
    let ratio = on_device as f64 / in_file as f64;
    println!("{} tensors on {device}: {on_device} bytes for {in_file} of the file ({ratio:.3})", tensors.len());
    Ok(())
}
