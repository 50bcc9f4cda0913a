//! `cargo xtask tune`: the library's settings for the device here, and the tables that the repository ships.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::ci::ALL_BACKENDS;
use crate::{process, setup};

/// Where the library has its tables, one for each architecture, and the list of them.
const SHIPPED: &str = "src/kernels/tune/shipped";
const LIST: &str = "src/kernels/tune/shipped.rs";
/// The environment variable that names the folder of a machine's own tables.
const FOLDER: &str = "CUBE_GGUF_TUNE";

#[derive(clap::Args)]
#[command(after_help = "\
Without --ship the table goes to this machine's cache, where the library finds it at its next start. An interrupted search
goes on where it was.")]
pub struct Args {
    /// A GGUF file, whose matrices' types and shapes are tuned; those of an 8B model where none is given.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Where to tune, as `cube-gguf tune --device` takes it.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Write the table that the repository carries for the device's architecture, and list it.
    #[arg(long)]
    ship: bool,
    /// Features to build cube-gguf with; those of all backends where none are given.
    #[arg(long)]
    features: Option<String>,
    /// What else `cube-gguf tune` takes, such as `-- --types q4_k --tokens 1`.
    #[arg(last = true)]
    more: Vec<String>,
}

pub fn run(args: &Args) -> Result<()> {
    setup::run()?;
    let mut cargo = process::cargo(["run", "--release", "--bin", "cube-gguf"]);
    cargo.args(["--features", args.features.as_deref().unwrap_or(ALL_BACKENDS), "--", "tune"]);
    cargo.args(["--device", &args.device]).args(&args.more);
    if let Some(model) = &args.model {
        ensure!(model.is_file(), "{} is not a file", model.display());
        // Cargo runs in the workspace, whatever the caller's directory.
        cargo.arg(process::absolute(model)?);
    }
    if args.ship {
        cargo.env(FOLDER, process::root().join(SHIPPED));
    }
    process::run(&mut cargo, "cube-gguf tune")?;
    if args.ship {
        let list = process::root().join(LIST);
        fs::write(&list, listed(&process::root().join(SHIPPED))?)
            .with_context(|| format!("cannot write {}", list.display()))?;
        println!("Written: {LIST}");
    }
    Ok(())
}

/// The list of a folder's tables, as the library includes it.
fn listed(folder: &Path) -> Result<String> {
    let mut names = Vec::new();
    for file in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = file?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    let mut text =
        "//! The tables that the repository ships; `cargo xtask tune --ship` writes them and this list.\n\n".to_owned();
    text += "/// Tables by architecture: the name that [`Table`](super::Table) makes of a device's, and the table's JSON.\n";
    text += "pub const SHIPPED: &[(&str, &str)] = &[";
    for name in &names {
        write!(text, "\n    (\"{name}\", include_str!(\"shipped/{name}.json\")),")?;
    }
    Ok(text + if names.is_empty() { "];\n" } else { "\n];\n" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_lists_the_tables_that_are_there() {
        let root = process::root();
        let list = fs::read_to_string(root.join(LIST)).unwrap();
        assert_eq!(list, listed(&root.join(SHIPPED)).unwrap());
    }

    #[test]
    fn tables_are_listed_by_name() {
        let folder = std::env::temp_dir().join(format!("xtask-shipped-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        for file in ["b.json", "a_1.json", "README.md"] {
            fs::write(folder.join(file), "").unwrap();
        }
        let list = listed(&folder).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        let lines: Vec<&str> = list.lines().filter(|line| line.contains("include_str")).collect();
        let [a, b] = lines[..] else { panic!("{list}") };
        assert_eq!(a, r#"    ("a_1", include_str!("shipped/a_1.json")),"#);
        assert!(b.contains("shipped/b.json"));
    }
}
