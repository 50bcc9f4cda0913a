//! [`Replay`]: the step of one token, recorded once on devices that replay launches faster than they take them.

use std::thread::{self, ThreadId};

use cubecl::bytes::Bytes;
use cubecl::client::{Client, Graph};
use cubecl::server::Handle;

use super::Model;
use super::cache::Cache;
use super::error::Result;
use super::step::{Rows, Step};

/// The step of one token of a session.
#[derive(Debug, Default)]
pub(super) struct Replay {
    /// The token's id, a u32.
    id: Option<Handle>,
    state: State,
}

#[derive(Debug, Default)]
enum State {
    /// No token was taken yet.
    #[default]
    New,
    Recorded(Recorded),
    /// The device does not record.
    Launched,
}

#[derive(Debug)]
struct Recorded {
    graph: Graph,
    /// What a replay writes.
    logits: Rows,
    /// A replay runs in the stream of the thread that recorded it, and is in order with that thread's writes and reads alone.
    thread: ThreadId,
}

impl Replay {
    /// The logits after one more token, at the place that the cache was moved to.
    pub fn step(&mut self, model: &Model, client: &Client, cache: &Cache, token: u32) -> Result<Vec<f32>> {
        let bytes = token.to_le_bytes();
        let id = self.id.get_or_insert_with(|| client.create_from_slice(&bytes)).clone();
        client.write(&id, Bytes::from_bytes_vec(bytes.to_vec()));
        if matches!(&self.state, State::Recorded(recorded) if recorded.thread != thread::current().id()) {
            self.state = State::New;
        }
        let step = Step { device: &model.device, client, cache, ids: &id, tokens: 1 };
        match &self.state {
            State::Recorded(Recorded { graph, logits, .. }) => {
                // SAFETY: the weights, the cache and the id outlive the graph: the model is borrowed by the session that
                // owns the others and the graph. Nothing else allocates from the memory of its intermediate values while it
                // lives.
                unsafe { graph.replay() }.map_err(|error| model.device.failed(error))?;
                Ok(step.read(logits)?)
            }
            State::Launched => Ok(step.read(&model.architecture.forward(&step)?)?),
            State::New => {
                let prepared = client.graph_prepare();
                // A first run compiles, and allocates the memory: recording may not allocate.
                let logits = step.read(&model.architecture.forward(&step)?)?;
                self.state = match prepared.and_then(|()| client.start_capture()) {
                    Ok(()) => record(model, &step)?,
                    Err(_) => State::Launched,
                };
                Ok(logits)
            }
        }
    }
}

/// Records the step, whose token is at its place already.
fn record(model: &Model, step: &Step<'_>) -> Result<State> {
    let logits = model.architecture.forward(step);
    let graph = step.client.stop_capture().map_err(|error| model.device.failed(error))?;
    Ok(State::Recorded(Recorded { graph, logits: logits?, thread: thread::current().id() }))
}
