//! What the devices say of themselves.

use std::ffi::{c_char, c_int};

use cubecl_hip_sys::hipDeviceProp_tR0600;

use crate::error::{Result, refuse};
use crate::memory::Owner;
use crate::runtime::Runtime;

/// What a block may have on every architecture.
pub const MAX_THREADS: u32 = 1024;
pub const LDS_BYTES: u32 = 64 << 10;
/// In blocks, as ROCm has it since 6.0.
pub const MAX_GRID: [u32; 3] = [i32::MAX as u32, 1 << 16, 1 << 16];

/// Compute units, or pairs of them where HIP counts workgroup processors, of one product of the architecture.
const PROCESSORS: [(&str, u32); 10] = [
    ("gfx908", 120),
    ("gfx90a", 104),
    ("gfx942", 304),
    ("gfx1010", 20),
    ("gfx1030", 40),
    ("gfx1100", 48),
    ("gfx1101", 30),
    ("gfx1102", 16),
    ("gfx1151", 20),
    ("gfx1201", 32),
];

/// GPUs that share the host's memory.
const INTEGRATED: [&str; 7] = ["gfx1035", "gfx1036", "gfx1103", "gfx1150", "gfx1151", "gfx1152", "gfx1153"];

impl Runtime {
    /// The number of devices, which HIP has be an error where it is none.
    pub fn device_count(&self) -> Result<c_int> {
        match c_int::try_from(self.config.devices) {
            Ok(0) => refuse!(NoDevice, "HIP_STAND_IN_DEVICES is 0"),
            Ok(count) => Ok(count),
            Err(_) => refuse!(NotInitialized, "HIP_STAND_IN_DEVICES is {}", self.config.devices),
        }
    }

    pub fn device(&self, index: c_int) -> Result<usize> {
        match usize::try_from(index) {
            Ok(index) if index < self.config.devices => Ok(index),
            _ => refuse!(InvalidDevice, "device {index} of {}", self.config.devices),
        }
    }

    pub fn memory_info(&self, device: usize) -> (usize, usize) {
        (self.memory.available(Owner::Device(device)), self.memory.capacity())
    }

    pub fn pci_bus_id(&self, device: usize) -> String {
        format!("0000:{:02x}:00.0", 3 + device)
    }

    pub fn properties(&self, device: usize) -> hipDeviceProp_tR0600 {
        let arch = self.config.arch_of(device);
        let name = arch.split(':').next().unwrap_or(arch);
        let processors = PROCESSORS.iter().find(|(known, _)| *known == name).map_or(32, |&(_, count)| count);
        let (major, minor) = version(name);
        // SAFETY: a C struct of numbers and arrays of numbers, all of which may be zero.
        let mut properties: hipDeviceProp_tR0600 = unsafe { std::mem::zeroed() };
        write(&mut properties.name, &format!("HIP stand-in {arch}"));
        write(&mut properties.gcnArchName, arch);
        properties.totalGlobalMem = self.memory.capacity();
        properties.sharedMemPerBlock = LDS_BYTES as usize;
        properties.sharedMemPerMultiprocessor = LDS_BYTES as usize;
        properties.regsPerBlock = 1 << 16;
        properties.warpSize = self.config.wavefront.unwrap_or(if name.starts_with("gfx9") { 64 } else { 32 }) as c_int;
        properties.memPitch = i32::MAX as usize;
        properties.maxThreadsPerBlock = MAX_THREADS as c_int;
        properties.maxThreadsPerMultiProcessor = 2048;
        properties.maxThreadsDim = [MAX_THREADS as c_int; 3];
        properties.maxGridSize = MAX_GRID.map(|blocks| blocks as c_int);
        properties.clockRate = 2_000_000;
        properties.memoryClockRate = 1_000_000;
        properties.memoryBusWidth = 256;
        properties.l2CacheSize = 4 << 20;
        properties.totalConstMem = i32::MAX as usize;
        properties.major = major;
        properties.minor = minor;
        properties.textureAlignment = 256;
        properties.texturePitchAlignment = 256;
        properties.surfaceAlignment = 256;
        properties.multiProcessorCount = processors as c_int;
        properties.integrated = INTEGRATED.contains(&name).into();
        properties.canMapHostMemory = 1;
        properties.concurrentKernels = 1;
        properties.unifiedAddressing = 1;
        properties.pciBusID = 3 + device as c_int;
        properties
    }
}

/// `gfx1151` is 11.5, `gfx90a` is 9.0: the last digit is the stepping, the one before it the minor version.
fn version(name: &str) -> (c_int, c_int) {
    let digits = name.strip_prefix("gfx").unwrap_or_default();
    let number = |digits: Option<&str>| digits.and_then(|digits| digits.parse().ok()).unwrap_or(0);
    let end = digits.len();
    (number(digits.get(..end.saturating_sub(2))), number(digits.get(end.saturating_sub(2)..end.saturating_sub(1))))
}

/// A C string in a zeroed field, cut to its room.
fn write(field: &mut [c_char], text: &str) {
    let room = field.len() - 1;
    field[..room].iter_mut().zip(text.bytes()).for_each(|(to, byte)| *to = byte as c_char);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::error::Code;

    fn runtime(arch: &str) -> Runtime {
        Runtime::new(Config { arch: arch.to_owned(), memory_bytes: 1 << 20, devices: 2, ..Config::default() }).unwrap()
    }

    fn text(field: &[c_char]) -> String {
        field.iter().take_while(|&&byte| byte != 0).map(|&byte| byte as u8 as char).collect()
    }

    #[test]
    fn an_architecture_has_its_wavefront_and_version() {
        let seen = |arch: &str| {
            let properties = runtime(arch).properties(0);
            assert_eq!(text(&properties.gcnArchName), arch);
            (properties.warpSize, properties.major, properties.minor)
        };
        assert_eq!(seen("gfx1100"), (32, 11, 0));
        assert_eq!(seen("gfx1151"), (32, 11, 5));
        assert_eq!(seen("gfx1201"), (32, 12, 0));
        assert_eq!(seen("gfx90a:sramecc+:xnack-"), (64, 9, 0));
        assert_eq!(seen("gfx942"), (64, 9, 4));
        assert_eq!(seen("gfx1337"), (32, 13, 3));
        assert_eq!(seen("?"), (32, 0, 0));
        let long = "x".repeat(1000);
        assert_eq!(text(&runtime(&long).properties(0).gcnArchName), long[..255]);
    }

    #[test]
    fn devices_are_counted() {
        let runtime = runtime("gfx1100");
        assert_eq!(runtime.device_count().unwrap(), 2);
        assert_eq!(runtime.device(1).unwrap(), 1);
        for index in [-1, 2] {
            assert_eq!(runtime.device(index).unwrap_err().code, Code::InvalidDevice);
        }
        assert_ne!(runtime.pci_bus_id(0), runtime.pci_bus_id(1));
        let none = Runtime::new(Config { devices: 0, ..Config::default() }).unwrap();
        assert_eq!(none.device_count().unwrap_err().code, Code::NoDevice);
    }

    #[test]
    fn memory_is_each_devices_own() {
        let runtime = runtime("gfx1100");
        runtime.allocate(4096, Owner::Device(1)).unwrap();
        assert_eq!(runtime.memory_info(0), (1 << 20, 1 << 20));
        assert_eq!(runtime.memory_info(1), ((1 << 20) - 4096, 1 << 20));
    }
}
