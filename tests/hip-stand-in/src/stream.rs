//! Streams and events. Work is done when it is submitted, so that waiting finds it done.

use std::time::Instant;

use crate::error::{Result, refuse};
use crate::runtime::{Operation, Runtime, lock};

#[derive(Default)]
pub struct Stream {
    /// What it records in place of running it.
    pub capture: Option<Capture>,
}

#[derive(Default)]
pub struct Capture {
    pub operations: Vec<Operation>,
    /// A call that no graph can hold came between.
    pub broken: bool,
}

#[derive(Clone, Copy, Default)]
pub enum Event {
    #[default]
    Created,
    Recorded(Instant),
    /// In a stream that was recording a graph: it stands for no moment.
    Captured,
}

impl Runtime {
    pub fn create_stream(&self) -> usize {
        lock(&self.streams).insert(Stream::default())
    }

    pub fn destroy_stream(&self, stream: usize) -> Result<()> {
        lock(&self.streams).remove(stream).map(drop)
    }

    pub fn synchronize_stream(&self, stream: usize) -> Result<()> {
        let mut streams = lock(&self.streams);
        match self.find_stream(&mut streams, stream)?.and_then(|stream| stream.capture.as_mut()) {
            Some(capture) => {
                capture.broken = true;
                refuse!(StreamCaptureUnsupported, "a wait for stream {stream:#x}, which records a graph")
            }
            None => Ok(()),
        }
    }

    pub fn wait_for_event(&self, stream: usize, event: usize) -> Result<()> {
        lock(&self.events).get(event)?;
        self.find_stream(&mut lock(&self.streams), stream).map(drop)
    }

    pub fn create_event(&self) -> usize {
        lock(&self.events).insert(Event::default())
    }

    pub fn destroy_event(&self, event: usize) -> Result<()> {
        lock(&self.events).remove(event).map(drop)
    }

    pub fn record_event(&self, event: usize, stream: usize) -> Result<()> {
        let captured =
            self.find_stream(&mut lock(&self.streams), stream)?.is_some_and(|stream| stream.capture.is_some());
        *lock(&self.events).get(event)? = if captured { Event::Captured } else { Event::Recorded(Instant::now()) };
        Ok(())
    }

    /// An event that was never recorded has nothing to wait for.
    pub fn synchronize_event(&self, event: usize) -> Result<()> {
        match lock(&self.events).get(event)? {
            Event::Captured => refuse!(CapturedEvent, "a wait for event {event:#x}, which is part of a graph"),
            Event::Created | Event::Recorded(_) => Ok(()),
        }
    }

    pub fn elapsed_milliseconds(&self, start: usize, stop: usize) -> Result<f32> {
        let mut events = lock(&self.events);
        let mut moment = |event: usize| match *events.get(event)? {
            Event::Recorded(moment) => Ok(moment),
            Event::Created => refuse!(InvalidResourceHandle, "event {event:#x} was never recorded"),
            Event::Captured => refuse!(CapturedEvent, "event {event:#x} is part of a graph"),
        };
        let (start, stop) = (moment(start)?, moment(stop)?);
        let milliseconds = |from: Instant, to: Instant| to.duration_since(from).as_secs_f32() * 1e3;
        Ok(if start <= stop { milliseconds(start, stop) } else { -milliseconds(stop, start) })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Config;
    use crate::error::Code;

    fn runtime() -> Runtime {
        Runtime::new(Config { memory_bytes: 1 << 20, ..Config::default() }).unwrap()
    }

    #[test]
    fn handles_are_of_one_kind_and_one_life() {
        let runtime = runtime();
        let (stream, event) = (runtime.create_stream(), runtime.create_event());
        runtime.synchronize_stream(stream).unwrap();
        runtime.synchronize_stream(0).unwrap();
        runtime.wait_for_event(stream, event).unwrap();
        for wrong in [
            runtime.synchronize_stream(event),
            runtime.synchronize_event(stream),
            runtime.synchronize_event(0),
            runtime.record_event(stream, event),
            runtime.wait_for_event(event, event),
            runtime.destroy_stream(0),
        ] {
            assert_eq!(wrong.unwrap_err().code, Code::InvalidResourceHandle);
        }
        runtime.destroy_stream(stream).unwrap();
        runtime.destroy_event(event).unwrap();
        for stale in [
            runtime.destroy_stream(stream),
            runtime.destroy_event(event),
            runtime.synchronize_stream(stream),
            runtime.synchronize_event(event),
        ] {
            assert_eq!(stale.unwrap_err().code, Code::InvalidResourceHandle);
        }
        assert_ne!(runtime.create_stream(), stream);
    }

    #[test]
    fn events_tell_the_time_between_them() {
        let runtime = runtime();
        let [start, stop] = [0, 0].map(|_| runtime.create_event());
        runtime.record_event(start, 0).unwrap();
        assert_eq!(runtime.elapsed_milliseconds(start, stop).unwrap_err().code, Code::InvalidResourceHandle);
        runtime.synchronize_event(stop).unwrap();
        std::thread::sleep(Duration::from_millis(2));
        runtime.record_event(stop, 0).unwrap();
        let took = runtime.elapsed_milliseconds(start, stop).unwrap();
        assert!(took >= 2.0);
        assert_eq!(runtime.elapsed_milliseconds(stop, start).unwrap(), -took);
    }
}
