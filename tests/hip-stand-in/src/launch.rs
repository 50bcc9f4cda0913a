//! Modules, their kernels, and launches.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use crate::code_object::{CodeObject, Kernel};
use crate::device::{LDS_BYTES, MAX_GRID, MAX_THREADS};
use crate::error::{Result, refuse};
use crate::executor::Request;
use crate::runtime::{Runtime, lock};

/// A loaded code object.
pub struct Module {
    object: CodeObject,
    /// Where it was written, if anywhere.
    path: Option<Arc<PathBuf>>,
}

/// A kernel of a module.
#[derive(Clone)]
pub struct Function {
    module: usize,
    path: Option<Arc<PathBuf>>,
    kernel: Arc<Kernel>,
}

/// The shape of a launch, in blocks and in threads.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// On top of what the kernel has of its own.
    pub lds_bytes: u32,
}

/// A launch that HIP would have accepted.
#[derive(Clone)]
pub struct Launch {
    function: Function,
    shape: Shape,
    arguments: Vec<u64>,
}

impl Runtime {
    pub fn load_module(&self, device: usize, image: &[u8]) -> Result<usize> {
        let object = CodeObject::parse(image)?;
        let arch = self.config.arch_of(device);
        if !object.runs_on(arch) {
            refuse!(NoBinaryForGpu, "a code object for {} on a device of {arch}", object.target);
        }
        let number = self.counts.count_module();
        let path = match &self.directory {
            Some(directory) => {
                let path = directory.path().join(format!("{}-{number}.hsaco", std::process::id()));
                if let Err(error) = fs::write(&path, image) {
                    refuse!(OperatingSystem, "{}: {error}", path.display());
                }
                Some(Arc::new(path))
            }
            None => None,
        };
        Ok(lock(&self.modules).insert(Module { object, path }))
    }

    /// Its functions go with it.
    pub fn unload_module(&self, module: usize) -> Result<()> {
        lock(&self.modules).remove(module)?;
        lock(&self.functions).retain(|function| function.module != module);
        Ok(())
    }

    pub fn function(&self, module: usize, name: &str) -> Result<usize> {
        let function = {
            let mut modules = lock(&self.modules);
            let Module { object, path } = modules.get(module)?;
            let Some(kernel) = object.kernels.get(name) else { refuse!(NotFound, "the module has no kernel `{name}`") };
            Function { module, path: path.clone(), kernel: kernel.clone() }
        };
        Ok(lock(&self.functions).insert(function))
    }

    /// How many arguments a launch of the function gives: pointers, for executors are told of nothing else.
    pub fn pointer_count(&self, function: usize) -> Result<usize> {
        let Function { kernel, .. } = self.find_function(function)?;
        match kernel.arguments().position(|argument| !argument.is_pointer()) {
            Some(number) => refuse!(NotSupported, "{}: argument {number} is no pointer", kernel.name),
            None => Ok(kernel.arguments().count()),
        }
    }

    /// Checks what HIP checks before it queues a launch.
    pub fn prepare(&self, function: usize, shape: Shape, arguments: Vec<u64>) -> Result<Launch> {
        let function = self.find_function(function)?;
        let Kernel { name, max_threads, lds_bytes, block: required, .. } = &*function.kernel;
        let Shape { grid, block, .. } = shape;
        if grid.contains(&0) {
            refuse!(InvalidValue, "{name}: a grid of {grid:?} blocks");
        }
        if block.contains(&0) {
            refuse!(InvalidConfiguration, "{name}: a block of {block:?} threads");
        }
        if grid.iter().zip(MAX_GRID).any(|(&blocks, most)| blocks > most) {
            refuse!(InvalidValue, "{name}: a grid of {grid:?} blocks, of at most {MAX_GRID:?}");
        }
        // The packet that starts a kernel counts threads, in 32 bits.
        if grid.iter().zip(block).any(|(&blocks, threads)| blocks as u64 * threads as u64 > u32::MAX as u64) {
            refuse!(InvalidConfiguration, "{name}: {grid:?} blocks of {block:?} are over 2^32 threads on one axis");
        }
        let threads = block.iter().fold(1u32, |threads, &along| threads.saturating_mul(along));
        if threads > MAX_THREADS {
            refuse!(InvalidValue, "{name}: a block of {threads} threads, of at most {MAX_THREADS}");
        }
        if threads > *max_threads {
            refuse!(LaunchFailure, "{name}: a block of {threads} threads, and it was compiled for {max_threads}");
        }
        if required.is_some_and(|required| required != block) {
            refuse!(InvalidConfiguration, "{name}: a block of {block:?}, and it was compiled for {required:?}");
        }
        let lds = *lds_bytes as u64 + shape.lds_bytes as u64;
        if lds > LDS_BYTES as u64 {
            refuse!(InvalidValue, "{name}: {lds} bytes of LDS, of at most {LDS_BYTES}");
        }
        Ok(Launch { function, shape, arguments })
    }

    /// Runs a launch: nothing without an executor, but that its pointers are checked.
    pub fn launch(&self, launch: &Launch) -> Result<()> {
        let Launch { function: Function { path, kernel, .. }, shape, arguments } = launch;
        for (number, &pointer) in arguments.iter().enumerate().filter(|&(_, &pointer)| pointer != 0) {
            if let Some(fault) = self.memory.fault(pointer as usize) {
                refuse!(IllegalAddress, "{}: argument {number}: {fault}", kernel.name);
            }
        }
        self.counts.count_launch();
        let (Some(executor), Some(path)) = (&self.executor, path) else { return Ok(()) };
        let Shape { grid, block, lds_bytes } = *shape;
        let request = Request::Launch { code_object: path, kernel: &kernel.name, grid, block, lds_bytes, arguments };
        match executor.ask(&request) {
            Ok(()) => Ok(()),
            Err(reason) => refuse!(LaunchFailure, "{}: {reason}", kernel.name),
        }
    }

    fn find_function(&self, function: usize) -> Result<Function> {
        if function == 0 {
            refuse!(InvalidResourceHandle, "a launch of no function");
        }
        match lock(&self.functions).get(function) {
            Ok(function) => Ok(function.clone()),
            Err(error) => refuse!(InvalidDeviceFunction, "{}", error.message),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener;

    use serde_json::Value;

    use super::*;
    use crate::code_object::tests::code_object;
    use crate::config::Config;
    use crate::error::{Code, Error};
    use crate::memory::{Owner, Side};
    use crate::runtime::Operation;

    const SHAPE: Shape = Shape { grid: [2, 1, 1], block: [64, 1, 1], lds_bytes: 0 };

    fn runtime() -> Runtime {
        Runtime::new(Config { memory_bytes: 1 << 20, ..Config::default() }).unwrap()
    }

    fn kernel(runtime: &Runtime) -> usize {
        let module = runtime.load_module(0, &code_object("gfx1100", 2, 1024)).unwrap();
        runtime.function(module, "k").unwrap()
    }

    fn run(runtime: &Runtime, function: usize, shape: Shape, arguments: &[usize]) -> Result<()> {
        let arguments = arguments.iter().map(|&pointer| pointer as u64).collect();
        runtime.submit(0, Operation::Launch(runtime.prepare(function, shape, arguments)?))
    }

    #[test]
    fn modules_are_of_the_devices_architecture() {
        let runtime = runtime();
        let code = |image: &[u8]| runtime.load_module(0, image).unwrap_err().code;
        assert_eq!(code(&code_object("gfx1101", 1, 0)), Code::NoBinaryForGpu);
        assert_eq!(code(b"\x7fELF"), Code::InvalidImage);
        let module = runtime.load_module(0, &code_object("gfx1100", 1, 0)).unwrap();
        assert_eq!(runtime.function(module, "other").unwrap_err().code, Code::NotFound);
        let function = runtime.function(module, "k").unwrap();
        assert_eq!(runtime.pointer_count(function).unwrap(), 1);
        runtime.unload_module(module).unwrap();
        assert_eq!(runtime.unload_module(module).unwrap_err().code, Code::InvalidResourceHandle);
        assert_eq!(runtime.pointer_count(function).unwrap_err().code, Code::InvalidDeviceFunction);
        assert_eq!(runtime.pointer_count(0).unwrap_err().code, Code::InvalidResourceHandle);
    }

    #[test]
    fn shapes_are_checked() {
        let runtime = runtime();
        let function = kernel(&runtime);
        let code = |shape: Shape| run(&runtime, function, shape, &[0, 0]).err().map(|Error { code, .. }| code);
        assert_eq!(code(SHAPE), None);
        assert_eq!(code(Shape { grid: [1, 0, 1], ..SHAPE }), Some(Code::InvalidValue));
        assert_eq!(code(Shape { grid: [1, (1 << 16) + 1, 1], ..SHAPE }), Some(Code::InvalidValue));
        assert_eq!(code(Shape { grid: [1 << 26, 1, 1], ..SHAPE }), Some(Code::InvalidConfiguration));
        assert_eq!(code(Shape { grid: [(1 << 26) - 1, 1 << 16, 1], ..SHAPE }), None);
        assert_eq!(code(Shape { block: [64, 0, 1], ..SHAPE }), Some(Code::InvalidConfiguration));
        assert_eq!(code(Shape { block: [1025, 1, 1], ..SHAPE }), Some(Code::InvalidValue));
        assert_eq!(code(Shape { block: [1 << 31, 1 << 31, 4], grid: [1; 3], ..SHAPE }), Some(Code::InvalidValue));
        assert_eq!(code(Shape { block: [257, 1, 1], ..SHAPE }), Some(Code::LaunchFailure));
        assert_eq!(code(Shape { block: [16, 16, 1], lds_bytes: 63 << 10, ..SHAPE }), None);
        assert_eq!(code(Shape { lds_bytes: (63 << 10) + 1, ..SHAPE }), Some(Code::InvalidValue));
        assert_eq!(runtime.counts.launches(), 3);
    }

    #[test]
    fn pointers_are_checked() {
        let runtime = runtime();
        let function = kernel(&runtime);
        let [a, b] = [64, 64].map(|bytes| runtime.allocate(bytes, Owner::Device(0)).unwrap());
        run(&runtime, function, SHAPE, &[a + 63, b]).unwrap();
        run(&runtime, function, SHAPE, &[0, b]).unwrap();
        runtime.free(b, Side::Device).unwrap();
        for (arguments, wrong, why) in [([a, b], 1, "were freed"), ([a + 64, a], 0, "no allocation")] {
            let error = run(&runtime, function, SHAPE, &arguments).unwrap_err();
            assert_eq!(error.code, Code::IllegalAddress);
            assert!(error.message.starts_with(&format!("k: argument {wrong}: ")) && error.message.ends_with(why));
        }
        assert_eq!(runtime.counts.launches(), 2);
    }

    /// An executor that checks what it is sent, writes through the memory's file, then refuses, then hangs up.
    #[test]
    fn an_executor_is_told_all() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let executor = std::thread::spawn(move || {
            let mut lines = BufReader::new(listener.accept().unwrap().0);
            let mut next = || {
                let mut line = String::new();
                lines.read_line(&mut line).unwrap();
                (serde_json::from_str::<Value>(&line).unwrap(), lines.get_ref().try_clone().unwrap())
            };
            let (request, mut answer) = next();
            let map = &request["map"];
            let file = fs::File::options().write(true).open(map["path"].as_str().unwrap()).unwrap();
            assert_eq!(file.metadata().unwrap().len(), map["bytes"].as_u64().unwrap());
            writeln!(answer, "ok").unwrap();
            let (request, mut answer) = next();
            let launch = &request["launch"];
            let image = fs::read(launch["code_object"].as_str().unwrap()).unwrap();
            assert_eq!(image, code_object("gfx1100", 2, 1024));
            assert_eq!(launch["kernel"], "k");
            assert_eq!((&launch["grid"], &launch["block"]), (&[2, 1, 1].into(), &[64, 1, 1].into()));
            assert_eq!((&launch["lds_bytes"], &launch["arguments"][1]), (&512.into(), &0.into()));
            let offset = launch["arguments"][0].as_u64().unwrap() - map["address"].as_u64().unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, b"computed", offset).unwrap();
            writeln!(answer, "ok").unwrap();
            let (_, mut answer) = next();
            writeln!(answer, "no such instruction").unwrap();
            image
        });
        let config = Config { executor: Some(socket), memory_bytes: 1 << 20, ..Config::default() };
        let runtime = Runtime::new(config).unwrap();
        let function = kernel(&runtime);
        let at = runtime.allocate(8, Owner::Device(0)).unwrap();
        let shape = Shape { lds_bytes: 512, ..SHAPE };
        run(&runtime, function, shape, &[at, 0]).unwrap();
        let mut back = [0u8; 8];
        let to = (Side::Host, back.as_mut_ptr() as usize);
        runtime.memory.copy(&crate::memory::Copy::flat(to, (Side::Device, at), 8)).unwrap();
        assert_eq!(&back, b"computed");
        let refused = run(&runtime, function, shape, &[at, 0]).unwrap_err();
        assert!(refused.code == Code::LaunchFailure && refused.message.contains("no such instruction"), "{refused}");
        executor.join().unwrap();
        let gone = run(&runtime, function, shape, &[at, 0]).unwrap_err();
        assert_eq!(gone.code, Code::LaunchFailure, "{gone}");
        let directory = runtime.directory.as_ref().unwrap().path().to_owned();
        assert!(directory.exists());
        drop(runtime);
        assert!(!directory.exists());
    }

    #[test]
    fn an_executor_that_is_not_there_is_named() {
        let config = Config { executor: Some("/nowhere/socket".into()), memory_bytes: 1 << 20, ..Config::default() };
        assert!(Runtime::new(config).err().unwrap().contains("/nowhere/socket"));
    }
}
