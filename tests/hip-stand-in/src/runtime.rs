//! The library's state: one of it in a process, and one in each test.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use cubecl_hip_sys as hip;

use crate::config::Config;
use crate::error::{Result, refuse};
use crate::executor::Executor;
use crate::graph::{Executable, Graph};
use crate::handles::Handles;
use crate::launch::{Function, Launch, Module};
use crate::memory::{Copy, Memory, Owner, Side};
use crate::report::Counts;
use crate::stream::{Event, Stream};

pub struct Runtime {
    pub config: Config,
    pub memory: Memory,
    pub streams: Mutex<Handles<Stream>>,
    pub events: Mutex<Handles<Event>>,
    pub modules: Mutex<Handles<Module>>,
    pub functions: Mutex<Handles<Function>>,
    pub graphs: Mutex<Handles<Graph>>,
    pub nodes: Mutex<Handles<hip::hipGraphNodeType>>,
    pub executables: Mutex<Handles<Executable>>,
    pub executor: Option<Executor>,
    /// Where code objects are written, if anybody reads them.
    pub directory: Option<Directory>,
    pub counts: Counts,
    /// Held by what runs: one operation at a time, and nothing is freed under it.
    running: Mutex<()>,
}

/// What a stream runs or records.
#[derive(Clone)]
pub enum Operation {
    Copy(Copy),
    Launch(Launch),
}

pub enum Directory {
    Given(PathBuf),
    /// Removed when dropped.
    Own(tempfile::TempDir),
}

impl Directory {
    pub fn path(&self) -> &Path {
        match self {
            Self::Given(path) => path,
            Self::Own(directory) => directory.path(),
        }
    }
}

impl Runtime {
    pub fn new(config: Config) -> std::result::Result<Self, String> {
        let memory = Memory::new(config.memory.as_deref(), config.memory_bytes, config.devices)
            .map_err(|error| format!("memory: {error}"))?;
        let executor =
            config.executor.as_deref().map(|socket| Executor::connect(socket, memory.shared())).transpose()?;
        let directory = match &config.directory {
            Some(path) => {
                fs::create_dir_all(path).map_err(|error| format!("{}: {error}", path.display()))?;
                Some(Directory::Given(path.clone()))
            }
            None if executor.is_some() => {
                let own = tempfile::Builder::new().prefix("hip-stand-in-").tempdir();
                Some(Directory::Own(own.map_err(|error| format!("a folder for code objects: {error}"))?))
            }
            None => None,
        };
        Ok(Self {
            config,
            memory,
            streams: Mutex::new(Handles::new("stream")),
            events: Mutex::new(Handles::new("event")),
            modules: Mutex::new(Handles::new("module")),
            functions: Mutex::new(Handles::new("function")),
            graphs: Mutex::new(Handles::new("graph")),
            nodes: Mutex::new(Handles::new("node of a graph")),
            executables: Mutex::new(Handles::new("executable graph")),
            executor,
            directory,
            counts: Counts::default(),
            running: Mutex::default(),
        })
    }

    pub fn allocate(&self, bytes: usize, owner: Owner) -> Result<usize> {
        self.outside_captures("an allocation")?;
        self.memory.allocate(bytes, owner)
    }

    /// As HIP does, waits for what runs.
    pub fn free(&self, at: usize, side: Side) -> Result<()> {
        self.outside_captures("a free")?;
        let _idle = lock(&self.running);
        self.memory.free(at, side)
    }

    /// Runs an operation in a stream, or records it where the stream records.
    pub fn submit(&self, stream: usize, operation: Operation) -> Result<()> {
        let mut streams = lock(&self.streams);
        if let Some(capture) = self.find_stream(&mut streams, stream)?.and_then(|stream| stream.capture.as_mut()) {
            capture.operations.push(operation);
            return Ok(());
        }
        drop(streams);
        self.run(&operation)
    }

    pub fn run(&self, operation: &Operation) -> Result<()> {
        let _running = lock(&self.running);
        match operation {
            Operation::Copy(copy) => self.memory.copy(copy),
            Operation::Launch(launch) => self.launch(launch),
        }
    }

    /// The stream, of which the null stream has no state.
    pub fn find_stream<'a>(&self, streams: &'a mut Handles<Stream>, stream: usize) -> Result<Option<&'a mut Stream>> {
        match stream {
            0 => Ok(None),
            stream => streams.get(stream).map(Some),
        }
    }

    /// When the process ends: the report, and nothing left behind.
    fn finish(&self) {
        if let Some(path) = &self.config.report {
            let written = serde_json::to_vec_pretty(&self.report()).map_err(Into::into);
            if let Err(error) = written.and_then(|report| fs::write(path, report)) {
                eprintln!("hip-stand-in: {}: {error}", path.display());
            }
        }
        let file = self.config.memory.as_deref();
        if let Some(Err(error)) = file.map(fs::remove_file) {
            eprintln!("hip-stand-in: {}: {error}", self.memory.shared().0.display());
        }
        if let Some(Directory::Own(directory)) = &self.directory
            && let Err(error) = fs::remove_dir_all(directory.path())
        {
            eprintln!("hip-stand-in: {}: {error}", directory.path().display());
        }
    }
}

static PROCESS: OnceLock<std::result::Result<Runtime, String>> = OnceLock::new();

/// The process's own.
pub fn process() -> Result<&'static Runtime> {
    let runtime = PROCESS.get_or_init(|| {
        let runtime = Config::from_environment().and_then(Runtime::new)?;
        // SAFETY: the function may run at any time after this, on any thread.
        if unsafe { libc::atexit(finish) } != 0 {
            return Err("no function can be called when the process ends".to_owned());
        }
        Ok(runtime)
    });
    match runtime {
        Ok(runtime) => Ok(runtime),
        Err(reason) => refuse!(NotInitialized, "{reason}"),
    }
}

extern "C" fn finish() {
    if let Some(Ok(runtime)) = PROCESS.get() {
        runtime.finish();
    }
}

/// A panic elsewhere leaves nothing half done that these locks protect.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
