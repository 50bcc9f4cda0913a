//! What the compiler made of every kernel for every AMD architecture, without a GPU: `cargo xtask hip-report`, which puts
//! the stand-in HIP library in place.
//!
//! A process a architecture launches all that the library can launch; the code objects are read, not run.

mod budget;
mod code_object;
mod disassembly;
mod hot_loop;
mod html;
mod kernels;
mod matrix;
mod occupancy;
mod report;
mod roofline;
mod row;
mod text;

use std::error::Error;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::{env, fs, thread};

use clap::Parser;
use kernels::{Compiled, Selection};
use matrix::MatrixPrediction;
use report::Report;
use roofline::{CARDS, Prediction, VALU_BOUND};
use row::{Input, Row};

#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The architectures of CubeCL 0.11.3's tables (`cubecl_ir::amd`): of each family those that are sold.
const ARCHS: [&str; 11] = [
    "gfx908", "gfx90a", "gfx942", "gfx1010", "gfx1030", "gfx1100", "gfx1101", "gfx1102", "gfx1151", "gfx1200",
    "gfx1201",
];

#[derive(Parser)]
struct Args {
    /// Architectures; all of them without one.
    #[arg(long)]
    arch: Vec<String>,
    /// Formats of the weights; all of them without one.
    #[arg(long)]
    format: Vec<String>,
    /// Leave out kernels that differ from others in how they end alone, or that two architectures show for all.
    #[arg(long)]
    sample: bool,
    /// Print only rows whose arch, operation, format and configuration have this in them.
    #[arg(long)]
    filter: Option<String>,
    /// Print no rows, but what was found of all of them.
    #[arg(long)]
    summary: bool,
    /// Also write the report as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Also write the report as a page that a browser opens from disk.
    #[arg(long)]
    html: Option<PathBuf>,
    /// Be the process of one architecture, with code objects in this folder.
    #[arg(long, hide = true)]
    compile: Option<PathBuf>,
}

impl Args {
    fn selection(&self) -> Selection {
        Selection { formats: self.format.clone(), sample: self.sample }
    }
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let args = Args::parse();
    if let (Some(folder), [arch]) = (&args.compile, args.arch.as_slice()) {
        kernels::compile(arch, folder, &args.selection(), std::io::stdout().lock())?;
        return Ok(ExitCode::SUCCESS);
    }
    let archs: Vec<_> = if args.arch.is_empty() { ARCHS.map(str::to_owned).to_vec() } else { args.arch.clone() };
    let compiled = compile_all(&archs, &args.selection())?;
    let cards =
        |compiled: &Compiled| CARDS.iter().filter(|card| card.arch == compiled.row.input.arch).collect::<Vec<_>>();
    let roofline: Vec<_> = compiled
        .iter()
        .filter_map(|kernel| Some((kernel, kernel.launch.as_ref()?)))
        .flat_map(|(kernel, launch)| cards(kernel).into_iter().map(|card| Prediction::of(card, &kernel.row, launch)))
        .collect();
    let of_card = |kernel| cards(kernel).into_iter().filter_map(|card| MatrixPrediction::of(card, &kernel.row));
    let matrix: Vec<_> = compiled.iter().flat_map(of_card).collect();
    let rows: Vec<_> = compiled.into_iter().map(|kernel| kernel.row).collect();
    let mut violations = budget::violations(&rows, budget::EXCEPTIONS);
    // Some formats alone need not every reason, nor every kernel.
    let all = args.format.is_empty();
    violations.extend(roofline::violations(&roofline, if all { VALU_BOUND } else { &[] }));
    violations.extend(matrix::violations(&matrix));
    if all {
        violations.extend(kernels::forgotten(&rows)?);
    }
    let report = Report { rows, roofline, matrix, violations };

    let shown =
        |row: &Row| !args.summary && args.filter.as_ref().is_none_or(|filter| row.place().contains(filter.as_str()));
    print!("{}", text::render(&report, shown));
    if let Some(path) = &args.json {
        fs::write(path, serde_json::to_string(&report)?)?;
    }
    if let Some(path) = &args.html {
        fs::write(path, html::render(&report))?;
    }
    Ok(if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The kernels of all architectures, in their order; as many at a time as there are processors.
fn compile_all(archs: &[String], selection: &Selection) -> Result<Vec<Compiled>, Box<dyn Error>> {
    let next = Mutex::new(archs.iter().enumerate());
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let Some((place, arch)) = next.lock().ok().and_then(|mut archs| archs.next()) else { return };
                    eprintln!("compiling for {arch}");
                    // An architecture that cannot start is a row with the reason.
                    let kernels = compile_one(arch, selection).unwrap_or_else(|error| {
                        let input = Input { arch: arch.clone(), operation: "all".to_owned(), ..Input::default() };
                        vec![Compiled { row: Row::failed(input, error.to_string()), launch: None }]
                    });
                    if let Ok(mut done) = done.lock() {
                        done.push((place, kernels));
                    }
                }
            });
        }
    });
    let mut done = done.into_inner()?;
    done.sort_by_key(|(place, _)| *place);
    Ok(done.into_iter().flat_map(|(_, kernels)| kernels).collect())
}

fn compile_one(arch: &str, selection: &Selection) -> Result<Vec<Compiled>, Box<dyn Error>> {
    let folder = Folder::new(arch)?;
    let mut command = Command::new(env::current_exe()?);
    command.args(["--arch", arch, "--compile"]).arg(&folder.0).args(selection.arguments());
    command.env("HIP_STAND_IN_ARCH", arch).env("HIP_STAND_IN_DIR", &folder.0).env_remove("HIP_STAND_IN_EXECUTOR");
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let mut kernels = Vec::new();
    for line in child.stdout.take().into_iter().flat_map(|pipe| BufReader::new(pipe).lines()) {
        kernels.push(serde_json::from_str(&line?)?);
    }
    let status = child.wait()?;
    if !status.success() {
        return Err(format!("the process that compiles ended with {status} after {} kernels", kernels.len()).into());
    }
    Ok(kernels)
}

/// Where the stand-in writes the code objects of one architecture.
struct Folder(PathBuf);

impl Folder {
    fn new(arch: &str) -> std::io::Result<Self> {
        let path = env::temp_dir().join(format!("cube-gguf-hip-report-{arch}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use cubecl::ir::amd::{AMDArchitecture, GfxArch};

    use super::*;

    #[test]
    fn every_family_that_cubecl_knows_is_here() {
        // A family that CubeCL adds is missed by the compiler.
        let place = |family| match family {
            AMDArchitecture::GFX908 => 0,
            AMDArchitecture::GFX90A => 1,
            AMDArchitecture::GFX94 => 2,
            AMDArchitecture::GFX101 => 3,
            AMDArchitecture::GFX103 => 4,
            AMDArchitecture::GFX11 => 5,
            AMDArchitecture::GFX12 => 6,
            AMDArchitecture::Other => 7,
        };
        let mut families = ARCHS.map(|arch| place(GfxArch::parse(arch).family())).to_vec();
        families.dedup();
        assert_eq!(families, [0, 1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn every_card_is_of_an_architecture_here() {
        assert!(CARDS.iter().all(|card| ARCHS.contains(&card.arch)));
    }
}
