//! The process that runs code objects, behind a Unix socket: a line of JSON each way.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::Serialize;

use crate::runtime::lock;

pub struct Executor {
    socket: PathBuf,
    stream: Mutex<BufReader<UnixStream>>,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Request<'a> {
    /// Map the file, shared, at the address.
    Map { path: &'a Path, address: usize, bytes: usize },
    /// Run a kernel. The grid is in blocks, the LDS is what comes on top of the kernel's own, and every argument is a
    /// pointer.
    Launch {
        code_object: &'a Path,
        kernel: &'a str,
        grid: [u32; 3],
        block: [u32; 3],
        lds_bytes: u32,
        arguments: &'a [u64],
    },
}

impl Executor {
    /// Connects, and has the executor map the memory.
    pub fn connect(socket: &Path, (path, address, bytes): (&Path, usize, usize)) -> Result<Self, String> {
        let stream = UnixStream::connect(socket).map_err(|error| format!("{}: {error}", socket.display()))?;
        let executor = Self { socket: socket.to_owned(), stream: Mutex::new(BufReader::new(stream)) };
        executor.ask(&Request::Map { path, address, bytes })?;
        Ok(executor)
    }

    /// Sends a request and waits for `ok`; any other answer is the error.
    pub fn ask(&self, request: &Request<'_>) -> Result<(), String> {
        let answer = self.exchange(request).map_err(|error| format!("{}: {error}", self.socket.display()))?;
        match answer.trim() {
            "ok" => Ok(()),
            "" => Err(format!("{}: the executor hung up", self.socket.display())),
            wrong => Err(format!("the executor says: {wrong}")),
        }
    }

    fn exchange(&self, request: &Request<'_>) -> io::Result<String> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        let mut stream = lock(&self.stream);
        stream.get_mut().write_all(&line)?;
        let mut answer = String::new();
        stream.read_line(&mut answer)?;
        Ok(answer)
    }
}
