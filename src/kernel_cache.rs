//! Compiled kernels, kept from one run of a program to the next.

use std::path::PathBuf;

use cubecl::config::cache::CacheConfig;
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};

/// Has CubeCL keep the kernels that it compiles for HIP and CUDA in a folder, and look there before it compiles (feature
/// `kernel-cache`). Kernels of another build of the program, or for another GPU or driver, are not taken.
///
/// To be called before the first device is opened. Returns whether it was: else CubeCL's configuration stays as it is, and
/// what a `cubecl.toml` says of the cache with it.
pub fn keep_kernels(folder: impl Into<PathBuf>) -> bool {
    let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
    config.compilation.cache = true;
    config.environment.path = CacheConfig::Directory(folder.into());
    CubeClRuntimeConfig::try_set(config)
}
