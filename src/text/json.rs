//! Templates' `tojson`, which writes JSON as Python's `json.dumps` does.

use std::io::{self, Write};

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// The most spaces of `indent`: what a person could want, not a file.
const MAX_INDENT: usize = 64;

/// One line, with a space after each comma and colon.
struct OneLine;

impl Formatter for OneLine {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// The filter: `transformers`' own, which unlike Jinja's escapes nothing for
/// HTML and leaves all but ASCII as it is.
pub(super) fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent = options.get::<Option<usize>>("indent")?;
    // The only value that templates give it, and the default here.
    options.get::<Option<bool>>("ensure_ascii")?;
    options.assert_all_used()?;
    let json = match indent {
        None => write(value, OneLine),
        Some(indent) => write(value, PrettyFormatter::with_indent(&b" ".repeat(indent.min(MAX_INDENT)))),
    };
    let bad = |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    json.map(|json| String::from_utf8_lossy(&json).into_owned()).map_err(bad)
}

fn write(value: &Value, formatter: impl Formatter) -> Result<Vec<u8>, serde_json::Error> {
    let mut json = Vec::new();
    value.serialize(&mut Serializer::with_formatter(&mut json, formatter))?;
    Ok(json)
}
