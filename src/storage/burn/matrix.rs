//! [`QMatrix`]: a device tensor as a Burn module.

use burn::backend::DispatchDevice;
use burn::module::{Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor};
use burn::tensor::Device;

use crate::kernels::ops::Arithmetic;
use crate::storage::device::CubeDevice;
use crate::storage::tensor::DeviceTensor;
use crate::{Error, Result};

/// Quantized weights and how they are multiplied. They are no parameter: no optimizer changes them, no record holds them.
#[derive(Clone, Debug)]
pub(super) struct QMatrix {
    pub tensor: DeviceTensor,
    pub arithmetic: Arithmetic,
}

impl QMatrix {
    pub fn new(tensor: DeviceTensor) -> Self {
        Self { tensor, arithmetic: Arithmetic::Auto }
    }

    /// Checks that a tensor of a device is where the weights are.
    pub fn check_device(&self, device: &Device) -> Result<()> {
        let own = self.tensor.device();
        match device.as_dispatch().clone().inner() {
            DispatchDevice::Cube(device) if device == *own.cubecl() => Ok(()),
            _ => Err(Error::ForeignActivations { device: own.to_string() }),
        }
    }

    /// The same weights on a device, uploaded anew where they are on another.
    fn on(self, device: &Device) -> Result<Self> {
        if self.check_device(device).is_ok() {
            return Ok(self);
        }
        let tensor = self.tensor.copied_to(&CubeDevice::try_from(device)?)?;
        Ok(Self { tensor, ..self })
    }
}

impl Module for QMatrix {
    fn visit<V: ModuleVisitor>(&self, _: &mut V) {}

    fn map<M: ModuleMapper>(self, _: &mut M) -> Self {
        self
    }

    fn to_device(self, device: &Device) -> Self {
        // Burn's signature has no error.
        self.on(device).unwrap_or_else(|error| panic!("{error}"))
    }

    fn fork(self, device: &Device) -> Self {
        self.to_device(device)
    }

    fn collect_devices(&self, mut devices: Devices) -> Devices {
        let device = Device::from(self.tensor.device());
        if !devices.contains(&device) {
            devices.push(device);
        }
        devices
    }

    fn materialize(self) -> Self {
        self
    }

    fn valid(&self) -> Self {
        self.clone()
    }

    fn train(self) -> Self {
        self
    }
}

impl ModuleDisplayDefault for QMatrix {
    fn content(&self, content: Content) -> Option<Content> {
        content.add_single(&format!("{:?}", self.tensor)).optional()
    }
}

impl ModuleDisplay for QMatrix {}

impl From<&CubeDevice> for Device {
    /// The device as Burn names it; tensors on it can be multiplied by weights on `device`.
    fn from(device: &CubeDevice) -> Self {
        Self::new(device.cubecl().clone())
    }
}

impl TryFrom<&Device> for CubeDevice {
    type Error = Error;

    /// The device behind a Burn device.
    ///
    /// # Errors
    ///
    /// [`Error::NoDevice`] where it is none of CubeCL's, or none that this build links.
    fn try_from(device: &Device) -> Result<Self> {
        match device.as_dispatch().clone().inner() {
            DispatchDevice::Cube(device) => Self::from_cubecl(&device),
            #[allow(unreachable_patterns)]
            other => {
                Err(Error::NoDevice { device: format!("{other:?}"), reason: "CubeCL does not reach it".to_owned() })
            }
        }
    }
}

#[cfg(all(test, feature = "cpu", feature = "hip"))]
mod tests {
    use super::*;
    use crate::gguf::{Endian, GgmlType};
    use crate::storage::device::Backend;

    #[test]
    fn a_tensor_of_another_device_is_an_error_that_names_the_weights_device() {
        let device = CubeDevice::new(Backend::CubeCpu, 0).unwrap();
        let tensor = DeviceTensor::from_gguf(&device, GgmlType::Q8_0, 1, 32, &[0; 34], Endian::Little).unwrap();
        let matrix = QMatrix::new(tensor);
        assert!(matrix.check_device(&Device::from(&device)).is_ok());
        let error = matrix.check_device(&Device::rocm(0)).unwrap_err();
        assert!(error.to_string().contains("cube-cpu"), "{error}");
    }
}
