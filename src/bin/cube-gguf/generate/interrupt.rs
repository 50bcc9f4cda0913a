//! Ctrl-C: while an answer is written it ends the answer, else the command.

use std::process;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::{INTERRUPTED, Outcome};

/// Nothing is written that could end early.
const IDLE: u8 = 0;
/// An answer is being written.
const WRITING: u8 = 1;
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
        if STATE.compare_exchange(WRITING, ENDING, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            process::exit(i32::from(INTERRUPTED));
        }
    })?;
    Ok(())
}

/// An answer is being written as long as this lives.
pub struct Listening(());

/// Lets Ctrl-C end what is written next.
pub fn listen() -> Listening {
    STATE.store(WRITING, Ordering::Relaxed);
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
