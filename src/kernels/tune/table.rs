//! The table of measured settings: those that the repository ships for an architecture, overridden by those that
//! `cube-gguf tune` found on this machine.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::{fs, io};

use cubecl::client::Client;
use serde::{Deserialize, Serialize};

use super::shipped::SHIPPED;
use crate::kernels::formats::CHUNK;
use crate::kernels::matvec::{ActivationType, Blueprint, Problem, Settings};

/// The environment variable that names the folder of this machine's tables. If it is empty, they are left out.
pub const FOLDER: &str = "CUBE_GGUF_TUNE";

/// The best settings found for a product on a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The GGUF type, as `Q4_K`.
    #[serde(rename = "type")]
    pub ty: String,
    /// The type that the activations are multiplied as.
    pub operand: ActivationType,
    /// Rows of activations.
    pub tokens: usize,
    /// Rows of weights.
    pub n: usize,
    /// Columns of weights.
    pub k: usize,
    /// The settings of its kernel.
    pub settings: Settings,
    /// Microseconds with these.
    pub us: f64,
    /// Microseconds by the heuristic.
    pub heuristic_us: f64,
}

#[derive(Deserialize)]
struct File {
    entries: Vec<Entry>,
}

/// A device's entries.
#[derive(Default)]
pub struct Table {
    entries: Vec<Entry>,
    /// Blueprints of entries whose kernels work on this device.
    proven: RwLock<HashSet<Blueprint>>,
    /// Settings of entries that this device does not support, or whose kernels failed on it.
    rejected: RwLock<Vec<Settings>>,
}

impl Table {
    /// The table of a device, which is read once.
    pub fn of(client: &Client) -> Arc<Self> {
        static TABLES: Mutex<Option<HashMap<String, Arc<Table>>>> = Mutex::new(None);
        let name = &client.properties().identity.fingerprint;
        let mut tables = TABLES.lock().unwrap_or_else(PoisonError::into_inner);
        let tables = tables.get_or_insert_default();
        match tables.get(name) {
            Some(table) => table.clone(),
            None => tables.entry(name.clone()).or_insert(Arc::new(Self::read(name))).clone(),
        }
    }

    /// A table with entries for one product.
    #[cfg(test)]
    pub(super) fn of_settings(problem: Problem, settings: &[Settings]) -> Self {
        let Problem { ty, operand, tokens, n, chunks } = problem;
        let entry = |&settings: &Settings| Entry {
            ty: ty.name().to_owned(),
            operand,
            tokens,
            n,
            k: chunks * CHUNK,
            settings,
            us: 1.0,
            heuristic_us: 1.0,
        };
        Self { entries: settings.iter().map(entry).collect(), ..Self::default() }
    }

    fn read(name: &str) -> Self {
        let stem = stem(name);
        let shipped = SHIPPED.iter().find(|(arch, _)| *arch == stem).map(|(_, text)| parse(text));
        let mut entries = Vec::new();
        let path = Self::path(name);
        let own = path.as_ref().and_then(|path| match Self::load(path) {
            Ok(entries) => Some(entries),
            Err(error) => {
                log::warn!("{}: {error}; its entries are left out", path.display());
                None
            }
        });
        entries.extend(own.unwrap_or_default());
        entries.extend(shipped.and_then(Result::ok).unwrap_or_default());
        Self { entries, ..Self::default() }
    }

    /// The file of this machine's table for a device of that name.
    pub fn path(name: &str) -> Option<PathBuf> {
        let folder = match std::env::var_os(FOLDER) {
            Some(folder) if folder.is_empty() => return None,
            Some(folder) => PathBuf::from(folder),
            None => dirs::cache_dir()?.join("cube-gguf").join("tune"),
        };
        Some(folder.join(stem(name)).with_extension("json"))
    }

    /// The entries of a file; none where there is no file.
    ///
    /// # Errors
    ///
    /// Where the file cannot be read, or is no table.
    pub fn load(path: &Path) -> io::Result<Vec<Entry>> {
        match fs::read_to_string(path) {
            Ok(text) => parse(&text).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Replaces a file by these entries, all at once.
    ///
    /// # Errors
    ///
    /// Where the file or its folder cannot be written.
    pub fn save(path: &Path, entries: &[Entry]) -> io::Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let new = path.with_extension("new");
        // One entry a line, so that a diff compares two tables.
        let lines = entries.iter().map(serde_json::to_string).collect::<serde_json::Result<Vec<_>>>()?;
        fs::write(&new, format!("{{\"entries\": [\n{}\n]}}\n", lines.join(",\n")))?;
        fs::rename(new, path)
    }

    /// The settings of the entry with the nearest shape, of the same type, operand and number of tokens, rounded up to a
    /// power of two.
    pub fn get(&self, problem: Problem) -> Option<Settings> {
        let rejected = self.rejected.read().unwrap_or_else(PoisonError::into_inner);
        let fits = |entry: &&Entry| {
            entry.ty == problem.ty.name()
                && entry.operand == problem.operand
                && entry.tokens == problem.tokens.next_power_of_two()
                && problem.chunks.is_multiple_of(entry.settings.span)
                && entry.settings.is_well_formed()
                && !rejected.contains(&entry.settings)
        };
        let distance = |entry: &&Entry| {
            let times = |a: usize, b: usize| (a.max(1) as f64 / b.max(1) as f64).log2().abs();
            times(entry.n, problem.n) + times(entry.k, problem.chunks * CHUNK)
        };
        let nearest = self.entries.iter().filter(fits).min_by(|a, b| distance(a).total_cmp(&distance(b)))?;
        Some(nearest.settings)
    }

    /// Checks that a blueprint works by `launch`, which is not called again once it succeeded.
    ///
    /// # Errors
    ///
    /// As `launch`.
    pub fn verify_once<E>(&self, blueprint: Blueprint, launch: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let proven = self.proven.read().unwrap_or_else(PoisonError::into_inner).contains(&blueprint);
        if !proven {
            launch()?;
            self.proven.write().unwrap_or_else(PoisonError::into_inner).insert(blueprint);
        }
        Ok(())
    }

    /// Leaves out all entries with these settings from here on.
    pub fn reject(&self, settings: Settings) {
        self.rejected.write().unwrap_or_else(PoisonError::into_inner).push(settings);
    }
}

/// The file stem of a device's table: the device's name, with `_` for characters that a file name should not have.
fn stem(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '_' || c == '-' { c } else { '_' };
    name.chars().map(plain).collect()
}

fn parse(text: &str) -> serde_json::Result<Vec<Entry>> {
    Ok(serde_json::from_str::<File>(text)?.entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::GgmlType;
    use crate::kernels::matvec::Reduction;

    fn entry(n: usize, k: usize, rows: usize) -> Entry {
        let settings = Settings {
            span: 1,
            lanes_per_row: 32,
            groups_per_cube: 4,
            rows_per_group: rows,
            tokens: 1,
            unroll: 1,
            persistent_cubes_per_core: None,
            stage: false,
            prefetch: false,
            stage_codebook: false,
        };
        Entry {
            ty: "Q4_0".to_owned(),
            operand: ActivationType::Int8,
            tokens: 1,
            n,
            k,
            settings,
            us: 1.0,
            heuristic_us: 2.0,
        }
    }

    fn problem(n: usize, k: usize) -> Problem {
        Problem { ty: GgmlType::Q4_0, operand: ActivationType::Int8, tokens: 1, n, chunks: k / CHUNK }
    }

    #[test]
    fn the_nearest_shape_of_the_type_is_taken() {
        let table = Table { entries: vec![entry(4096, 4096, 2), entry(14336, 4096, 4)], ..Table::default() };
        assert_eq!(table.get(problem(4096, 4096)).unwrap().rows_per_group, 2);
        assert_eq!(table.get(problem(1024, 4096)).unwrap().rows_per_group, 2);
        assert_eq!(table.get(problem(32000, 4096)).unwrap().rows_per_group, 4);
        assert_eq!(table.get(Problem { tokens: 2, ..problem(4096, 4096) }), None);
        assert_eq!(table.get(Problem { ty: GgmlType::Q4_1, ..problem(4096, 4096) }), None);
        table.reject(entry(0, 0, 4).settings);
        assert_eq!(table.get(problem(32000, 4096)).unwrap().rows_per_group, 2);
    }

    #[test]
    fn entries_that_no_kernel_can_have_are_left_out() {
        let mut none = entry(4096, 4096, 0);
        assert_eq!(Table { entries: vec![none.clone()], ..Table::default() }.get(problem(4096, 4096)), None);
        none.settings = Settings { rows_per_group: 1, lanes_per_row: 12, ..none.settings };
        assert_eq!(Table { entries: vec![none], ..Table::default() }.get(problem(4096, 4096)), None);
        let long = Entry { settings: Settings { span: 8, ..entry(1, 1, 1).settings }, ..entry(4096, 4096, 1) };
        assert_eq!(Table { entries: vec![long], ..Table::default() }.get(problem(4096, 32 * 12)), None);
    }

    #[test]
    fn a_file_gives_its_entries_back() {
        let folder = std::env::temp_dir().join(format!("cube-gguf-table-{}", std::process::id()));
        let path = folder.join("table.json");
        let entries = vec![entry(4096, 4096, 2), entry(14336, 4096, 4)];
        assert!(Table::load(&path).unwrap().is_empty());
        Table::save(&path, &entries).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 2 + entries.len());
        assert_eq!(Table::load(&path).unwrap(), entries);
        fs::write(&path, "{").unwrap();
        assert!(Table::load(&path).is_err());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_works_is_asked_once_and_what_fails_again() {
        let table = Table::default();
        let blueprint = Blueprint {
            ty: GgmlType::Q4_0,
            operand: ActivationType::Int8,
            reduction: Reduction::None,
            span: 1,
            lanes_per_row: 1,
            groups_per_cube: 1,
            rows_per_group: 1,
            tokens: 1,
            unroll: 1,
            cubes: None,
            staging: None,
            prefetch: false,
            codebook: 0,
            whole: true,
        };
        assert_eq!(table.verify_once(blueprint, || Err("fails")), Err("fails"));
        assert_eq!(table.verify_once(blueprint, || Ok::<(), &str>(())), Ok(()));
        assert_eq!(table.verify_once(blueprint, || Err("is not asked")), Ok(()));
    }

    #[test]
    fn shipped_tables_are_tables() {
        for (name, text) in SHIPPED {
            let entries = parse(text).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(entries.iter().all(|entry| entry.settings.is_well_formed()), "{name}");
        }
    }
}
