//! [`Replay`]: the step of one token, recorded once on devices that replay launches faster than they take them.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::{self, ThreadId};

use cubecl::bytes::Bytes;
use cubecl::client::Graph;
use cubecl::future::block_on;

use super::error::Result;
use super::step::{After, DeviceStep, On, Step};
use super::{Architecture, after};

/// Held by one thread alone while it records: CUDA and HIP end a recording where another thread allocates memory, and refuse
/// that memory too.
static LAUNCHES: RwLock<()> = RwLock::new(());

/// Keeps other threads from recording.
pub(super) fn launching() -> RwLockReadGuard<'static, ()> {
    LAUNCHES.read().unwrap_or_else(PoisonError::into_inner)
}

fn recording() -> RwLockWriteGuard<'static, ()> {
    LAUNCHES.write().unwrap_or_else(PoisonError::into_inner)
}

/// The step of one token of a session.
#[derive(Debug, Default)]
pub(super) enum Replay {
    /// Launched each time.
    #[default]
    Launched,
    /// To be recorded at the next token.
    Wanted,
    Recorded(Recorded),
}

#[derive(Debug)]
pub(super) struct Recorded {
    graph: Graph,
    /// What a replay writes.
    after: After,
    /// A replay runs in the stream of the thread that recorded it, and is in order with that thread's writes and reads alone.
    thread: ThreadId,
}

impl Replay {
    /// Takes `token`, whose id goes to the step's, at the place that the cache was moved to.
    pub fn step(&mut self, architecture: &dyn Architecture, on: DeviceStep<'_>, token: u32) -> Result<After> {
        let step = &Step { on: On::Device(on), tokens: 1, observer: None };
        on.client.write(on.ids, Bytes::from_bytes_vec(token.to_le_bytes().to_vec()));
        if matches!(self, Self::Recorded(recorded) if recorded.thread != thread::current().id()) {
            *self = Self::Wanted;
        }
        if let Self::Wanted = self {
            let _alone = recording();
            let prepared = on.client.graph_prepare();
            // A first run compiles, and allocates the memory: recording may not allocate.
            let first = after(architecture, step)?;
            block_on(on.client.sync()).map_err(|error| on.device.failed(error))?;
            if prepared.and_then(|()| on.client.start_capture()).is_err() {
                *self = Self::Launched;
                return Ok(first);
            }
            drop(first);
            // The same token goes to the same place once more.
            let again = after(architecture, step);
            let graph = on.client.stop_capture().map_err(|error| on.device.failed(error))?;
            *self = Self::Recorded(Recorded { graph, after: again?, thread: thread::current().id() });
        }
        let _others_too = launching();
        match self {
            Self::Recorded(Recorded { graph, after, .. }) => {
                // SAFETY: the weights, the cache and the id outlive the graph: the model is borrowed by the session that
                // owns the others and the graph. Nothing else allocates from the memory of its intermediate values while it
                // lives.
                unsafe { graph.replay() }.map_err(|error| on.device.failed(error))?;
                Ok(after.clone())
            }
            Self::Wanted | Self::Launched => after(architecture, step),
        }
    }
}
