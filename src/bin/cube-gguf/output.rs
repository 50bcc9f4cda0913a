//! Printing to stdout, and escaping of strings from files for terminals.

use std::error::Error;
use std::io::{self, Write};

use serde_json::Value;

/// Writes to stdout and flushes it. [`is_closed`] recognizes the error of a closed pipe.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| io::Error::new(error.kind(), format!("standard output: {error}")))
}

/// Writes one JSON object to stdout.
pub fn print_json(value: &Value) -> io::Result<()> {
    print(&format!("{value:#}\n"))
}

/// Whether the error is a broken pipe: the reader of stdout is gone.
pub fn is_closed(error: &(dyn Error + 'static)) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// `text` with escapes for control characters and for others that move or hide text.
pub fn escape(text: &str) -> String {
    let hides = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    escape_where(text, hides)
}

/// `text` of several lines with escapes for other control characters than line ends and tabs.
pub fn escape_text(text: &str) -> String {
    escape_where(text, |c| c.is_control() && c != '\n' && c != '\t')
}

fn escape_where(text: &str, is_escaped: impl Fn(char) -> bool) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        match is_escaped(c) {
            true => out.extend(c.escape_default()),
            false => out.push(c),
        }
        out
    })
}

/// An error message as one line.
pub fn sentence(message: &str) -> String {
    let lines: Vec<_> = message.lines().map(str::trim).filter(|line| !line.is_empty()).map(escape).collect();
    lines.join(" ")
}

/// A shape as `[2, 3]`.
pub fn shape(extents: &[usize]) -> String {
    format!("{extents:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_reach_no_terminal() {
        assert_eq!(escape("a\u{1b}[31m\n\u{202e}é"), "a\\u{1b}[31m\\n\\u{202e}é");
        assert_eq!(escape_text("a\tb\n\u{1b}[31m\r"), "a\tb\n\\u{1b}[31m\\r");
        assert_eq!(sentence("one\n  two\u{7}\n"), "one two\\u{7}");
    }
}
