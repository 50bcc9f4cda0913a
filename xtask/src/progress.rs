//! A line of progress, drawn over itself on a terminal; elsewhere nothing is drawn.

use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

const REDRAW: Duration = Duration::from_millis(100);
const WIDTH: u64 = 40;

/// Cleared from the terminal when dropped.
pub struct Progress {
    what: &'static str,
    total: Option<u64>,
    started: Instant,
    drawn: Option<Instant>,
}

impl Progress {
    /// A bar where the `total` of bytes is known, else a count.
    pub fn new(what: &'static str, total: Option<u64>) -> Self {
        Self { what, total, started: Instant::now(), drawn: None }
    }

    /// So many bytes are done.
    pub fn at(&mut self, bytes: u64) {
        let recent = self.drawn.is_some_and(|drawn| drawn.elapsed() < REDRAW);
        if recent || !stderr().is_terminal() {
            return;
        }
        self.drawn = Some(Instant::now());
        let line = line(self.what, bytes, self.total, self.started.elapsed());
        draw(&line);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.drawn.is_some() {
            draw("");
        }
    }
}

fn draw(line: &str) {
    let mut stderr = stderr();
    // A terminal that went away is no reason to stop.
    write!(stderr, "\r\x1b[K{line}").and_then(|()| stderr.flush()).ok();
}

fn line(what: &str, bytes: u64, total: Option<u64>, took: Duration) -> String {
    let mb = bytes / 1_000_000;
    let Some(total) = total else {
        return format!("{what}: {mb} MB, {} s", took.as_secs());
    };
    let full = (bytes.min(total) * WIDTH).checked_div(total).unwrap_or(WIDTH) as usize;
    let bar = "#".repeat(full);
    format!("{what} [{bar:<width$}] {mb} of {} MB", total / 1_000_000, width = WIDTH as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_bar_or_a_count() {
        let half = line("it", 5_000_000, Some(10_000_000), Duration::ZERO);
        let bar = format!("it [{}{}] 5 of 10 MB", "#".repeat(20), " ".repeat(20));
        assert_eq!(half, bar);
        assert!(line("it", 2, Some(1), Duration::ZERO).contains(&"#".repeat(40)));
        assert!(line("it", 0, Some(0), Duration::ZERO).contains(&"#".repeat(40)));
        let count = line("it", 5_000_000, None, Duration::from_secs(7));
        assert_eq!(count, "it: 5 MB, 7 s");
    }
}
