//! Running other programs.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// How many of its last lines a program that failed is quoted with.
const LAST_LINES: usize = 5;

/// The workspace.
pub fn root() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}

/// A path for a program that runs in the workspace, whatever the caller's directory.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("no absolute path for {}", path.display()))
}

/// The cargo that runs this task, in the workspace.
pub fn cargo<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(args).current_dir(root());
    // What cargo told this program of its own package: a build script that watches such a variable would run anew, and all
    // that depends on it, whenever the caller changes.
    for (name, _) in std::env::vars_os() {
        let own = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"];
        if own.iter().any(|start| name.to_string_lossy().starts_with(start)) {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// [`cargo`] for the workspace `tools/NAME`, which is built in `target/NAME/target`.
pub fn cargo_of_tool(name: &str, command: &str) -> Command {
    let mut cargo = cargo([command]);
    cargo.arg("--manifest-path").arg(root().join("tools").join(name).join("Cargo.toml"));
    cargo.env("CARGO_TARGET_DIR", root().join("target").join(name).join("target"));
    cargo
}

/// The package `name` by `cargo`'s metadata, where `cargo` is to print these.
pub fn package(cargo: &mut Command, name: &str) -> Result<Value> {
    let metadata: Value = serde_json::from_str(&output(cargo.args(["--format-version", "1"]))?)?;
    let package = metadata["packages"].as_array().into_iter().flatten().find(|package| package["name"] == name);
    package.cloned().with_context(|| format!("cargo knows no {name}"))
}

/// Runs `command` to its end; `what` names it in the error.
pub fn run(command: &mut Command, what: &str) -> Result<()> {
    let status = command.status().with_context(|| format!("{what} could not start"))?;
    if !status.success() {
        bail!("{what} failed ({status})");
    }
    Ok(())
}

/// The program `name` that `cargo`, a build, makes.
pub fn built(cargo: &mut Command, name: &str) -> Result<PathBuf> {
    cargo.args(["--message-format", "json-render-diagnostics"]).stderr(Stdio::inherit());
    let output = cargo.output().context("cargo could not start")?;
    let artifacts = output.stdout.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
    let program = artifacts
        .filter(|artifact: &Value| artifact["target"]["name"] == name)
        .find_map(|artifact| artifact["executable"].as_str().map(PathBuf::from));
    program.with_context(|| format!("cargo built no `{name}`"))
}

/// What `command` prints; where it fails, the error has its last lines on stderr.
pub fn output(command: &mut Command) -> Result<String> {
    watched(command, |_| {})
}

/// As [`output`], with each line shown as it comes.
pub fn watched(command: &mut Command, mut show: impl FnMut(&str)) -> Result<String> {
    let line = line(std::iter::once(command.get_program()).chain(command.get_args()));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("`{line}` could not start"))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (printed, said) = thread::scope(|scope| {
        let said = scope.spawn(|| read(stderr, |_| {}));
        (read(stdout, &mut show), said.join())
    });
    let status = child.wait().with_context(|| format!("`{line}` was lost"))?;
    if !status.success() {
        let said = said.ok().and_then(Result::ok).unwrap_or_default();
        let lines: Vec<&str> = said.lines().collect();
        let last = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n");
        let said = if last.is_empty() { "it said nothing".to_owned() } else { format!("it said:\n{last}") };
        bail!("`{line}` failed ({status}); {said}");
    }
    printed.with_context(|| format!("`{line}` printed no text"))
}

/// All text of a pipe, each line shown as it comes.
fn read(pipe: Option<impl Read>, mut show: impl FnMut(&str)) -> Result<String> {
    let mut text = String::new();
    let Some(mut lines) = pipe.map(BufReader::new) else { return Ok(text) };
    loop {
        let mut line = Vec::new();
        if lines.read_until(b'\n', &mut line)? == 0 {
            return Ok(text);
        }
        let line = String::from_utf8_lossy(&line);
        show(line.trim_end());
        text += &line;
    }
}

/// Words as a shell takes them.
pub fn line<'a>(words: impl Iterator<Item = &'a OsStr>) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+,./:@%".contains(c);
    let quoted = |word: &'a OsStr| match word.to_string_lossy() {
        word if !word.is_empty() && word.chars().all(plain) => word,
        word => Cow::from(format!("'{}'", word.replace('\'', r"'\''"))),
    };
    words.map(quoted).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn a_shell_reads_back_the_words_of_a_line() {
        let words = ["plain", "", "two words", "it's", "$HOME", "a\nb"];
        let line = line(words.iter().map(OsStr::new));
        let printed = output(Command::new("sh").args(["-c", &format!("printf '%s|' {line}")])).unwrap();
        assert_eq!(printed, "plain||two words|it's|$HOME|a\nb|");
    }

    #[test]
    #[cfg(unix)]
    fn lines_are_shown_as_they_come() {
        let mut shown = Vec::new();
        // More on stderr than a pipe holds.
        let script = "head -c 200000 /dev/zero >&2; echo one; printf two";
        let printed = watched(Command::new("sh").args(["-c", script]), |line| shown.push(line.to_owned())).unwrap();
        assert_eq!((printed.as_str(), shown), ("one\ntwo", vec!["one".to_owned(), "two".to_owned()]));
    }

    #[test]
    #[cfg(unix)]
    fn a_failure_is_told_with_its_command_and_last_words() {
        let script = "for i in 1 2 3 4 5 6; do echo word$i >&2; done; exit 3";
        let error = output(Command::new("sh").args(["-c", script])).unwrap_err().to_string();
        assert!(error.contains("`sh -c") && error.contains("exit status: 3"), "{error}");
        assert!(error.ends_with("word2\nword3\nword4\nword5\nword6"), "{error}");
    }
}
