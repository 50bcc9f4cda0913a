//! Graphs: what a stream recorded, run again at every launch.

use std::sync::Arc;

use cubecl_hip_sys as hip;

use crate::error::{Result, refuse};
use crate::runtime::{Operation, Runtime, lock};
use crate::stream::Capture;

pub struct Graph {
    operations: Arc<[Operation]>,
    nodes: Vec<usize>,
}

/// A graph that is ready to run.
pub struct Executable(Arc<[Operation]>);

impl Runtime {
    pub fn begin_capture(&self, stream: usize) -> Result<()> {
        let mut streams = lock(&self.streams);
        let Some(stream) = self.find_stream(&mut streams, stream)? else {
            refuse!(StreamCaptureUnsupported, "the null stream records no graph")
        };
        if stream.capture.is_some() {
            refuse!(IllegalState, "the stream records a graph already");
        }
        stream.capture = Some(Capture::default());
        Ok(())
    }

    pub fn end_capture(&self, stream: usize) -> Result<usize> {
        let capture = {
            let mut streams = lock(&self.streams);
            self.find_stream(&mut streams, stream)?.and_then(|stream| stream.capture.take())
        };
        let Some(Capture { operations, broken }) = capture else {
            refuse!(IllegalState, "stream {stream:#x} records no graph")
        };
        if broken {
            refuse!(StreamCaptureInvalidated, "a call that no graph can hold came while stream {stream:#x} recorded");
        }
        let mut nodes = lock(&self.nodes);
        let nodes = operations.iter().map(|operation| nodes.insert(operation.node_type())).collect();
        Ok(lock(&self.graphs).insert(Graph { operations: operations.into(), nodes }))
    }

    pub fn graph_nodes(&self, graph: usize) -> Result<Vec<usize>> {
        lock(&self.graphs).get(graph).map(|graph| graph.nodes.clone())
    }

    pub fn node_type(&self, node: usize) -> Result<hip::hipGraphNodeType> {
        lock(&self.nodes).get(node).copied()
    }

    pub fn destroy_graph(&self, graph: usize) -> Result<()> {
        let Graph { nodes, .. } = lock(&self.graphs).remove(graph)?;
        nodes.into_iter().try_for_each(|node| lock(&self.nodes).remove(node).map(drop))
    }

    /// It keeps what it runs: the graph may go.
    pub fn instantiate(&self, graph: usize) -> Result<usize> {
        let operations = lock(&self.graphs).get(graph)?.operations.clone();
        Ok(lock(&self.executables).insert(Executable(operations)))
    }

    pub fn destroy_executable(&self, executable: usize) -> Result<()> {
        lock(&self.executables).remove(executable).map(drop)
    }

    /// Nothing is left to prepare but the handles to check.
    pub fn upload_graph(&self, executable: usize, stream: usize) -> Result<()> {
        lock(&self.executables).get(executable)?;
        self.find_stream(&mut lock(&self.streams), stream).map(drop)
    }

    pub fn launch_graph(&self, executable: usize, stream: usize) -> Result<()> {
        let operations = lock(&self.executables).get(executable)?.0.clone();
        if self.find_stream(&mut lock(&self.streams), stream)?.is_some_and(|stream| stream.capture.is_some()) {
            refuse!(NotSupported, "a graph in the graph that stream {stream:#x} records");
        }
        operations.iter().try_for_each(|operation| self.run(operation))
    }

    /// For calls that no graph can hold: those that are recorded now will not be.
    pub fn outside_captures(&self, call: &str) -> Result<()> {
        let mut recording = false;
        for capture in lock(&self.streams).values_mut().filter_map(|stream| stream.capture.as_mut()) {
            capture.broken = true;
            recording = true;
        }
        if recording {
            refuse!(StreamCaptureUnsupported, "{call} while a stream records a graph");
        }
        Ok(())
    }
}

impl Operation {
    fn node_type(&self) -> hip::hipGraphNodeType {
        match self {
            Self::Copy(_) => hip::hipGraphNodeType_hipGraphNodeTypeMemcpy,
            Self::Launch(_) => hip::hipGraphNodeType_hipGraphNodeTypeKernel,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::error::Code;
    use crate::memory::{Copy, Owner, Side};

    fn runtime() -> Runtime {
        Runtime::new(Config { memory_bytes: 1 << 20, ..Config::default() }).unwrap()
    }

    fn first_byte(runtime: &Runtime, at: usize) -> u8 {
        let mut byte = 0u8;
        runtime.memory.copy(&Copy::flat((Side::Host, &raw mut byte as usize), (Side::Device, at), 1)).unwrap();
        byte
    }

    #[test]
    fn a_graph_runs_when_it_is_launched() {
        let runtime = runtime();
        let [a, b] = [4096, 4096].map(|bytes| runtime.allocate(bytes, Owner::Device(0)).unwrap());
        let stream = runtime.create_stream();
        let source = 7u8;
        let upload = Copy::flat((Side::Device, a), (Side::Host, &raw const source as usize), 1);
        runtime.begin_capture(stream).unwrap();
        assert_eq!(runtime.begin_capture(stream).unwrap_err().code, Code::IllegalState);
        runtime.submit(stream, Operation::Copy(upload)).unwrap();
        runtime.submit(stream, Operation::Copy(Copy::flat((Side::Device, b), (Side::Device, a), 1))).unwrap();
        let graph = runtime.end_capture(stream).unwrap();
        assert_eq!(runtime.end_capture(stream).unwrap_err().code, Code::IllegalState);
        assert_eq!(first_byte(&runtime, b), 0);
        let nodes = runtime.graph_nodes(graph).unwrap();
        assert_eq!(nodes.len(), 2);
        assert_eq!(runtime.node_type(nodes[0]).unwrap(), hip::hipGraphNodeType_hipGraphNodeTypeMemcpy);
        let executable = runtime.instantiate(graph).unwrap();
        runtime.destroy_graph(graph).unwrap();
        assert_eq!(runtime.node_type(nodes[0]).unwrap_err().code, Code::InvalidResourceHandle);
        runtime.upload_graph(executable, stream).unwrap();
        runtime.launch_graph(executable, stream).unwrap();
        assert_eq!(first_byte(&runtime, b), 7);
        runtime.free(b, Side::Device).unwrap();
        let stale = runtime.launch_graph(executable, stream).unwrap_err();
        assert!(stale.message.contains("were freed"), "{stale}");
        runtime.destroy_executable(executable).unwrap();
        assert_eq!(runtime.launch_graph(executable, stream).unwrap_err().code, Code::InvalidResourceHandle);
    }

    #[test]
    fn what_no_graph_can_hold_breaks_the_capture() {
        let runtime = runtime();
        let at = runtime.allocate(64, Owner::Device(0)).unwrap();
        let stream = runtime.create_stream();
        let calls: [&dyn Fn() -> Result<()>; 3] =
            [&|| runtime.allocate(64, Owner::Device(0)).map(drop), &|| runtime.free(at, Side::Device), &|| {
                runtime.synchronize_stream(stream)
            }];
        for call in calls {
            runtime.begin_capture(stream).unwrap();
            assert_eq!(call().unwrap_err().code, Code::StreamCaptureUnsupported);
            assert_eq!(runtime.end_capture(stream).unwrap_err().code, Code::StreamCaptureInvalidated);
            call().unwrap_or_default();
        }
        let event = runtime.create_event();
        runtime.begin_capture(stream).unwrap();
        runtime.record_event(event, stream).unwrap();
        assert_eq!(runtime.synchronize_event(event).unwrap_err().code, Code::CapturedEvent);
        runtime.end_capture(stream).unwrap();
        assert_eq!(runtime.begin_capture(0).unwrap_err().code, Code::StreamCaptureUnsupported);
    }
}
