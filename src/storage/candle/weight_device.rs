//! [`WeightDevice`]: a device for weights, by this crate's name or by Candle's.

use std::sync::{Arc, PoisonError, RwLock};

use candle_core::{Device as CandleDevice, DeviceLocation};

use crate::Result;
use crate::storage::device::{Backend, CubeDevice, Device};

/// The environment variable that names the [`default_device`].
const VARIABLE: &str = "CUBE_GGUF_DEVICE";

/// A device for weights, and one for the Candle tensors that they are multiplied with.
///
/// A model written for Candle names Candle's devices. Its tensors stay where it puts them; its weights go where
/// [`weights`](Self::weights) says.
pub trait WeightDevice {
    /// The device of weights.
    ///
    /// # Errors
    ///
    /// [`Error::NoDevice`](crate::Error::NoDevice) for a device that this build or machine lacks.
    fn weights(&self) -> Result<Device>;

    /// The Candle device of tensors.
    fn tensors(&self) -> CandleDevice;
}

/// Weights on the device itself, tensors in host memory.
impl WeightDevice for Device {
    fn weights(&self) -> Result<Device> {
        Ok(self.clone())
    }

    fn tensors(&self) -> CandleDevice {
        CandleDevice::Cpu
    }
}

/// Pointers to a device are as good as the device.
macro_rules! pointers {
    ($($pointer:ty),*) => {$(
        impl<P: WeightDevice + ?Sized> WeightDevice for $pointer {
            fn weights(&self) -> Result<Device> {
                (**self).weights()
            }

            fn tensors(&self) -> CandleDevice {
                (**self).tensors()
            }
        }
    )*};
}

pointers!(&P, Arc<P>, Box<P>);

/// Candle's CPU device stands for [`default_device`], its GPUs for CubeCL's of the same index.
impl WeightDevice for CandleDevice {
    fn weights(&self) -> Result<Device> {
        match self.location() {
            DeviceLocation::Cpu => default_device(),
            DeviceLocation::Cuda { gpu_id } => CubeDevice::new(Backend::Cuda, gpu_id).map(Device::Cube),
            DeviceLocation::Metal { gpu_id } => CubeDevice::new(Backend::Metal, gpu_id).map(Device::Cube),
        }
    }

    fn tensors(&self) -> CandleDevice {
        self.clone()
    }
}

static DEFAULT: RwLock<Option<Device>> = RwLock::new(None);

/// The device of weights that Candle's CPU device stands for: that of [`set_default_device`], else the one that the
/// environment variable `CUBE_GGUF_DEVICE` names, else [`Device::best`].
///
/// # Errors
///
/// [`Error::NoDevice`](crate::Error::NoDevice) where the variable names a device that this build or machine lacks.
pub fn default_device() -> Result<Device> {
    if let Some(device) = DEFAULT.read().unwrap_or_else(PoisonError::into_inner).clone() {
        return Ok(device);
    }
    let device = match std::env::var(VARIABLE) {
        Ok(name) => name.parse()?,
        Err(_) => Device::best(),
    };
    set_default_device(device.clone());
    Ok(device)
}

/// Makes Candle's CPU device stand for `device`, for weights that are loaded later.
pub fn set_default_device(device: Device) {
    *DEFAULT.write().unwrap_or_else(PoisonError::into_inner) = Some(device);
}
