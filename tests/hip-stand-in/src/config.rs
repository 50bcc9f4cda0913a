//! The variables that say what the stand-in stands in for.

use std::env;
use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;

#[derive(Clone, Debug)]
pub struct Config {
    /// `gcnArchName`, as it is: a name that nobody knows is passed on. Several, separated by commas, are the devices' in turn.
    pub arch: String,
    pub devices: usize,
    /// The wavefront's width, where it is not the architecture's.
    pub wavefront: Option<u32>,
    /// The executor's socket.
    pub executor: Option<PathBuf>,
    /// The file behind the memory; an anonymous one without it.
    pub memory: Option<PathBuf>,
    /// What each device has, and the pinned memory of the host.
    pub memory_bytes: usize,
    /// Where code objects are written.
    pub directory: Option<PathBuf>,
    /// Where the report is written when the process ends.
    pub report: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            arch: "gfx1100".to_owned(),
            devices: 1,
            wavefront: None,
            executor: None,
            memory: None,
            memory_bytes: 8 << 30,
            directory: None,
            report: None,
        }
    }
}

impl Config {
    /// The architecture of a device.
    pub fn arch_of(&self, device: usize) -> &str {
        let archs: Vec<_> = self.arch.split(',').collect();
        archs[device % archs.len()]
    }

    pub fn from_environment() -> Result<Self, String> {
        let default = Self::default();
        let path = |name: &str| env::var_os(name).map(PathBuf::from);
        Ok(Self {
            arch: parsed("HIP_STAND_IN_ARCH")?.unwrap_or(default.arch),
            devices: parsed("HIP_STAND_IN_DEVICES")?.unwrap_or(default.devices),
            wavefront: parsed("HIP_STAND_IN_WAVEFRONT")?,
            executor: path("HIP_STAND_IN_EXECUTOR"),
            memory: path("HIP_STAND_IN_MEMORY"),
            memory_bytes: parsed("HIP_STAND_IN_MEMORY_BYTES")?.unwrap_or(default.memory_bytes),
            directory: path("HIP_STAND_IN_DIR"),
            report: path("HIP_STAND_IN_REPORT"),
        })
    }
}

fn parsed<T: FromStr<Err: Display>>(name: &str) -> Result<Option<T>, String> {
    match env::var(name) {
        Ok(value) => value.parse().map(Some).map_err(|error| format!("{name}={value}: {error}")),
        Err(env::VarError::NotPresent) => Ok(None),
        Err(error) => Err(format!("{name}: {error}")),
    }
}
