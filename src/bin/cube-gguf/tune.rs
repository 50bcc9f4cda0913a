//! `cube-gguf tune`: a search for the fastest settings on this device, stored where the library finds them.

use std::path::PathBuf;

use clap::Args;
use cube_gguf::gguf::Endian;
use cube_gguf::internals::{FORMATS, MAX_TOKENS, format};
use cube_gguf::tune::{Candidate, Entry, Settings, Table, search};
use cube_gguf::{Accuracy, Activations, Arithmetic, CubeDevice, Device, DeviceTensor, FloatType};
use indicatif::{ProgressBar, ProgressStyle};

use crate::bench::weights_type;
use crate::output::print;
use crate::timing::{Case, POOL_ROWS, cases_of, time, time_graph};
use crate::weights::{Random, sync};
use crate::{DeviceArgument, Outcome};

/// The shapes to tune where no model is given: those of an 8B model's layers.
const SHAPES: &str = "14336x4096,4096x4096,4096x14336,1024x4096";

#[derive(Args)]
#[command(after_help = "\
The search starts from the heuristic's choice and changes one setting at a time for as long as that is faster; each
candidate's answer is checked before it is timed. What was found is stored at once, so that an interrupted search goes
on where it was; --again starts anew. The library reads the table at its next start.

Examples:
  cube-gguf tune --device rocm
  cube-gguf tune model.gguf --tokens 1,8
  cube-gguf tune --types q4_k,q6_k --shapes 4096x4096 --csv")]
pub struct Arguments {
    /// Take the types and shapes of a model's matrices.
    #[arg(conflicts_with = "shapes")]
    file: Option<PathBuf>,
    /// Types, separated by commas; all where none are given.
    #[arg(long, value_delimiter = ',', value_name = "TYPES")]
    types: Vec<String>,
    /// Rows and columns of weights.
    #[arg(long, value_delimiter = ',', default_value = SHAPES, value_name = "NxK")]
    shapes: Vec<String>,
    /// Rows of activations.
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8", value_name = "TOKENS")]
    tokens: Vec<usize>,
    /// Tune again the products that the table already has.
    #[arg(long)]
    again: bool,
    /// The table to read and write, instead of this machine's.
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
    /// Print every candidate as CSV.
    #[arg(long)]
    csv: bool,
    #[command(flatten)]
    device: DeviceArgument,
}

pub fn run(arguments: &Arguments) -> Outcome {
    let Device::Cube(device) = arguments.device.open()? else {
        return Err("Candle's kernels on the CPU have nothing to tune; name a device of CubeCL".into());
    };
    if arguments.tokens.iter().any(|tokens| !(1..=MAX_TOKENS).contains(tokens)) {
        return Err(format!("--tokens must be 1 to {MAX_TOKENS}").into());
    }
    let types = arguments.types.iter().map(|name| weights_type(name)).collect::<Outcome<Vec<_>>>()?;
    let cases = match &arguments.file {
        Some(file) => cases_of(file, &types)?,
        None => cases(arguments, &types)?,
    };
    let name = device.client().properties().identity.fingerprint.clone();
    let path = arguments.to.clone().or_else(|| Table::path(&name)).ok_or("there is no folder for the table")?;
    let mut entries = Table::load(&path)?;
    let jobs: Vec<(Case, usize)> = cases
        .iter()
        .flat_map(|&case| arguments.tokens.iter().map(move |&tokens| (case, tokens.next_power_of_two())))
        .collect();
    let bar = progress(jobs.len(), arguments.csv);
    if arguments.csv {
        print("type,n,k,tokens,us,settings\n")?;
    }
    let mut report = Vec::new();
    let mut bench: Option<Bench> = None;
    for (case, tokens) in jobs {
        let Case { ty, n, k, .. } = case;
        bar.set_message(format!("{ty} of {n} x {k}, {tokens} tokens"));
        let is_this = |entry: &Entry| (entry.ty.as_str(), entry.n, entry.k, entry.tokens) == (ty.name(), n, k, tokens);
        let known = entries.iter().position(is_this).filter(|_| !arguments.again);
        if let Some(known) = known {
            report.push(entries[known].clone());
        } else {
            if bench.as_ref().is_none_or(|bench| bench.case != case) {
                drop(bench.take());
                bench = Some(Bench::new(&device, case)?);
            }
            let Some(bench) = &bench else { continue };
            let entry = bench.search(tokens, arguments.csv, &bar)?;
            entries.retain(|entry| !is_this(entry));
            entries.push(entry.clone());
            report.push(entry);
            Table::save(&path, &entries)?;
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    if !arguments.csv {
        print(&table(&report))?;
        print(&format!("{}\n", path.display()))?;
    }
    Ok(())
}

/// Each type with each shape whose rows are whole blocks of it.
fn cases(arguments: &Arguments, types: &[cube_gguf::GgmlType]) -> Outcome<Vec<Case>> {
    let types = if types.is_empty() { FORMATS.iter().map(|format| format.ty).collect() } else { types.to_vec() };
    let mut cases = Vec::new();
    for shape in &arguments.shapes {
        let extents = shape.split_once('x').and_then(|(n, k)| Some((n.parse().ok()?, k.parse().ok()?)));
        let Some((n, k)) = extents.filter(|&(n, k): &(usize, usize)| n > 0 && k > 0) else {
            return Err(format!("{shape} is no shape such as 4096x4096").into());
        };
        let whole = types.iter().filter(|ty| ty.row_bytes(k).is_some_and(|row| row.checked_mul(n).is_some()));
        cases.extend(whole.map(|&ty| Case { ty, n, k, experts: None }));
    }
    Ok(cases)
}

fn progress(jobs: usize, hidden: bool) -> ProgressBar {
    if hidden {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len}, {eta} left, {msg}");
    ProgressBar::new(jobs as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn table(entries: &[Entry]) -> String {
    let mut out = format!(
        "{:<8} {:>7} {:>7} {:>6} {:>9} {:>9} {:>6}  {}\n",
        "type", "n", "k", "tokens", "heuristic", "tuned us", "ratio", "settings"
    );
    for Entry { ty, n, k, tokens, settings, us, heuristic_us, .. } in entries {
        let ty = ty.to_lowercase();
        let ratio = heuristic_us / us;
        out += &format!(
            "{ty:<8} {n:>7} {k:>7} {tokens:>6} {heuristic_us:>9.2} {us:>9.2} {ratio:>6.2}  {}\n",
            words(settings)
        );
    }
    out
}

fn words(settings: &Settings) -> String {
    let Settings { span, lanes_per_row, groups_per_cube, rows_per_group, tokens, unroll, .. } = settings;
    let cubes = settings
        .persistent_cubes_per_core
        .map_or_else(|| "cubes for all rows".to_owned(), |cubes| format!("{cubes} cubes a core"));
    let staged = match (settings.stage, settings.stage_codebook) {
        (true, true) => ", staged with the codebook",
        (true, false) => ", staged",
        (false, true) => ", the codebook staged",
        (false, false) => "",
    };
    let prefetch = if settings.prefetch { ", prefetch" } else { "" };
    format!(
        "span {span}; {lanes_per_row} lanes a row; {groups_per_cube} groups a cube; {rows_per_group} rows a group; {tokens} tokens; unroll {unroll}; {cubes}{staged}{prefetch}"
    )
}

/// Weights of a case on a device, with the values to check their products against.
struct Bench {
    device: CubeDevice,
    case: Case,
    tensors: Vec<DeviceTensor>,
    /// The values of the distinct rows of the weights.
    rows: Vec<f32>,
}

impl Bench {
    fn new(device: &CubeDevice, case: Case) -> Outcome<Self> {
        let Case { ty, n, k, .. } = case;
        let data = case.data();
        let tensor = |_| DeviceTensor::from_gguf(device, ty, n, k, &data, Endian::Little);
        let tensors = (0..case.copies(&Device::Cube(device.clone()))).map(tensor).collect::<cube_gguf::Result<_>>()?;
        let pool = n.min(POOL_ROWS);
        let mut rows = vec![0.0; pool * k];
        if let Some(format) = format(ty) {
            format.dequantize_blocks(&data[..data.len() / n * pool], &mut rows);
        }
        Ok(Self { device: device.clone(), case, tensors, rows })
    }

    /// The entry of the fastest settings that the search finds.
    fn search(&self, tokens: usize, csv: bool, bar: &ProgressBar) -> Outcome<Entry> {
        let Case { ty, n, k, .. } = self.case;
        let x = Random::new(1).normals(tokens * k);
        let expected = self.expected(&x, self.tensors[0].accuracy(tokens, Arithmetic::Int8));
        let x = self.device.client().create_from_slice(bytemuck::cast_slice(&x));
        let x = Activations::contiguous(x, FloatType::F32, vec![tokens, k])?;
        let entry = search(&self.device, ty, [n, k], tokens, |candidate| -> Outcome<f64> {
            let us = self.time(&x, candidate, &expected)?;
            bar.tick();
            if csv {
                let words = words(candidate.settings());
                print(&format!("{},{n},{k},{tokens},{us:.2},{words}\n", ty.name().to_lowercase()))?;
            }
            Ok(us)
        })?;
        Ok(entry.ok_or_else(|| format!("{ty} of {n} x {k}: the heuristic's choice gives a wrong answer"))?)
    }

    /// The product of each token with each distinct row in f64, and the error bound of an answer.
    fn expected(&self, x: &[f32], product: Accuracy) -> Vec<(f64, f64)> {
        let k = self.case.k;
        let exact = |row: &[f32], x: &[f32]| row.iter().zip(x).map(|(&w, &x)| w as f64 * x as f64).sum();
        let products = |x| self.rows.chunks_exact(k).map(move |row| (exact(row, x), product.error_bound(row, x)));
        x.chunks_exact(k).flat_map(products).collect()
    }

    /// Microseconds of a product; infinite where the kernel fails or its answer is wrong.
    fn time(&self, x: &Activations, candidate: &Candidate, expected: &[(f64, f64)]) -> Outcome<f64> {
        let client = self.device.client();
        let launch = |i: usize| candidate.matmul(&self.tensors[i % self.tensors.len()], x);
        let Ok(product) = launch(0) else { return Ok(f64::INFINITY) };
        let Ok(bytes) = client.read_one(product) else { return Ok(f64::INFINITY) };
        let (n, pool) = (self.case.n, self.rows.len() / self.case.k);
        let answer = FloatType::F32.to_f32(&bytes, x.tokens() * n);
        let right = |(i, &y): (usize, &f32)| {
            let (exact, bound) = expected[i / n * pool + i % n % pool];
            (y as f64 - exact).abs() <= bound
        };
        if !answer.iter().enumerate().all(right) {
            return Ok(f64::INFINITY);
        }
        let queued = |i: usize| {
            launch(i)?;
            Ok(())
        };
        // Without graphs the time includes the cost of launches.
        let queue = (2 * self.tensors.len()).clamp(20, 100);
        let seconds = match time_graph(&self.device, queue, queued) {
            Ok(seconds) => seconds,
            Err(_) => time(queue, queued, || sync(&self.device))?,
        };
        Ok(seconds * 1e6)
    }
}
