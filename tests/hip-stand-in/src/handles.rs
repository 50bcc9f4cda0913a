//! Opaque handles.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Result, refuse};

/// Objects by their handles. A handle is never given twice, to an object of any kind: a stale one, and one of another
/// kind, are both unknown.
pub struct Handles<T> {
    kind: &'static str,
    live: HashMap<usize, T>,
}

impl<T> Handles<T> {
    pub fn new(kind: &'static str) -> Self {
        Self { kind, live: HashMap::new() }
    }

    pub fn insert(&mut self, object: T) -> usize {
        static NEXT: AtomicUsize = AtomicUsize::new(0x1000);
        let handle = NEXT.fetch_add(16, Ordering::Relaxed);
        self.live.insert(handle, object);
        handle
    }

    pub fn get(&mut self, handle: usize) -> Result<&mut T> {
        match self.live.get_mut(&handle) {
            Some(object) => Ok(object),
            None => refuse!(InvalidResourceHandle, "{handle:#x} is no {}, or one that was destroyed", self.kind),
        }
    }

    pub fn remove(&mut self, handle: usize) -> Result<T> {
        match self.live.remove(&handle) {
            Some(object) => Ok(object),
            None => refuse!(InvalidResourceHandle, "{handle:#x} is no {}, or one that was destroyed", self.kind),
        }
    }

    pub fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        self.live.retain(|_, object| keep(object));
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.live.values_mut()
    }
}
