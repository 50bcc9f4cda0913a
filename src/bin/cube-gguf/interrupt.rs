//! Ctrl-C: it asks work to end that listens to it, else it ends the command.

use std::process;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::{INTERRUPTED, Outcome};

/// Nothing is at work that could end by itself.
const IDLE: u8 = 0;
/// Something is.
const WORKING: u8 = 1;
/// It is asked to end.
const ENDING: u8 = 2;

static STATE: AtomicU8 = AtomicU8::new(IDLE);

/// Handles Ctrl-C from now on.
///
/// # Errors
///
/// Where the system refuses.
pub fn install() -> Outcome {
    ctrlc::set_handler(|| {
        if STATE.compare_exchange(WORKING, ENDING, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            process::exit(i32::from(INTERRUPTED));
        }
    })?;
    Ok(())
}

/// Something is at work as long as this lives.
pub struct Listening(());

/// Keeps Ctrl-C from ending the command: what is done next asks whether to end.
pub fn listen() -> Listening {
    STATE.store(WORKING, Ordering::Relaxed);
    Listening(())
}

impl Listening {
    /// Whether the user asked for the end.
    pub fn is_interrupted(&self) -> bool {
        STATE.load(Ordering::Relaxed) == ENDING
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        STATE.store(IDLE, Ordering::Relaxed);
    }
}
