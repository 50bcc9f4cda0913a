//! `cube-gguf verify`: a device's values and products of each tensor, compared with the host's.
//!
//! Values must be the host decoder's, bit for bit; products must differ from those in f64 by no more than the bound that
//! the library states.

use std::path::PathBuf;

use clap::Args;
use cube_gguf::gguf::{Files, TensorInfo};
use cube_gguf::internals::MAX_TOKENS;
use cube_gguf::{Accuracy, Arithmetic, Device, Error, FloatType};
use globset::Glob;
use indicatif::{ProgressBar, ProgressStyle};
use rayon::prelude::*;
use serde_json::{Value as Json, json};

use crate::output::{escape, is_closed, print, print_json, shape};
use crate::table::{Align, Table};
use crate::weights::{Loaded, Random, Weights};
use crate::{DeviceArgument, Outcome};

/// The most rows of a matrix whose products are checked.
const MAX_ROWS: usize = 256;
/// The largest tensor that is read back, in bytes.
const MAX_READ_BACK: usize = 256 << 20;
/// Tokens and arithmetic of the products to check. A product that computes the same as an earlier one is left out.
const PRODUCTS: [(usize, Arithmetic); 5] = [
    (1, Arithmetic::Auto),
    (1, Arithmetic::Float),
    (3, Arithmetic::Auto),
    (3, Arithmetic::Float),
    (MAX_TOKENS + 9, Arithmetic::Auto),
];

/// Activations that a product may get.
#[derive(Clone, Copy)]
enum Activations {
    Normal,
    /// Whose sums of 32 are past the largest half.
    OneSigned,
    Large,
    Tiny,
    /// A NaN in the last token.
    NotANumber,
}

const ACTIVATIONS: [Activations; 5] =
    [Activations::Normal, Activations::OneSigned, Activations::Large, Activations::Tiny, Activations::NotANumber];

impl Activations {
    fn of(self, normals: &[f32]) -> Vec<f32> {
        let mut x: Vec<f32> = normals
            .iter()
            .map(|&x| match self {
                Self::Normal | Self::NotANumber => x,
                Self::OneSigned => 5e3 * (1.0 + x.abs()),
                Self::Large => 1e9 * x,
                Self::Tiny => 1e-9 * x,
            })
            .collect();
        if let (Self::NotANumber, Some(last)) = (self, x.last_mut()) {
            *last = f32::NAN;
        }
        x
    }
}

#[derive(Args)]
#[command(after_help = "\
Each tensor is uploaded, dequantized and compared with the host's decoder bit by bit, multiplied by random activations
(normal, one-signed, large, tiny, with a NaN) and compared with the product in f64 (of 256 rows at most), and read back.
The error is the largest of any output in parts of its bound. GB/s are those of dequantizing to f32, bytes read and
written. Exit status 1: a tensor failed.

Examples:
  cube-gguf verify model.gguf
  cube-gguf verify model.gguf --device cube-cpu --tensor 'blk.{0,1}.*' --json")]
pub struct Arguments {
    /// A GGUF file, or any shard of a split one.
    file: PathBuf,
    /// Check the tensors whose names match.
    #[arg(long, value_name = "GLOB")]
    tensor: Option<String>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgument,
}

/// The result of checking a tensor.
struct Finding {
    name: String,
    ty: &'static str,
    shape: Vec<usize>,
    /// Values that differ from the host's.
    mismatches: usize,
    worst: Worst,
    /// Whether the blocks read back are the file's; `None` for a tensor of more than [`MAX_READ_BACK`] bytes.
    round_trip: Option<bool>,
    device_bytes: usize,
    gguf_bytes: usize,
    gbps: f64,
}

impl Finding {
    fn is_ok(&self) -> bool {
        self.mismatches == 0 && self.round_trip != Some(false) && self.worst.ratio() <= 1.0
    }

    fn json(&self) -> Json {
        // JSON has no infinity: an infinite error is null, and not ok.
        json!({
            "name": self.name,
            "type": self.ty,
            "shape": self.shape,
            "exact": self.mismatches == 0,
            "mismatches": self.mismatches,
            "max_error": self.worst.error,
            "bound": self.worst.bound,
            "error_over_bound": self.worst.ratio(),
            "product": self.worst.accuracy,
            "round_trip": self.round_trip,
            "device_bytes": self.device_bytes,
            "gguf_bytes": self.gguf_bytes,
            "gbps": self.gbps,
            "ok": self.is_ok(),
        })
    }

    fn row(&self) -> Vec<String> {
        let exact = match (self.mismatches, self.round_trip) {
            (0, Some(false)) => "yes, read back otherwise".to_owned(),
            (0, _) => "yes".to_owned(),
            (count, _) => format!("no ({count})"),
        };
        vec![
            escape(&self.name),
            self.ty.to_owned(),
            shape(&self.shape),
            exact,
            format!("{:.2} of bound", self.worst.ratio()),
            self.device_bytes.to_string(),
            format!("{:.3}", self.device_bytes as f64 / self.gguf_bytes as f64),
            format!("{:.2}", self.gbps),
        ]
    }
}

/// The output with the largest error relative to its bound.
#[derive(Clone, Copy, Default)]
struct Worst {
    error: f64,
    bound: f64,
    /// The name of the product's [`Accuracy`].
    accuracy: &'static str,
}

impl Worst {
    fn ratio(&self) -> f64 {
        if self.error == 0.0 { 0.0 } else { self.error / self.bound }
    }

    fn add(&mut self, other: Self) {
        if self.accuracy.is_empty() || other.ratio() > self.ratio() {
            *self = other;
        }
    }
}

/// A tensor that cannot be checked.
struct Skipped {
    name: String,
    reason: String,
}

/// Checks the tensors, and returns whether all pass.
pub fn run(arguments: &Arguments) -> Outcome<bool> {
    let files = Files::open(&arguments.file)?;
    let gguf = files.parse()?;
    let tensors: Vec<_> = match &arguments.tensor {
        None => gguf.tensors().collect(),
        Some(pattern) => {
            let glob = Glob::new(pattern)?.compile_matcher();
            let tensors: Vec<_> = gguf.tensors().filter(|tensor| glob.is_match(tensor.name())).collect();
            if tensors.is_empty() {
                return Err(format!("no tensor of {} matches `{pattern}`", arguments.file.display()).into());
            }
            tensors
        }
    };

    let device = arguments.device.open()?;
    let bytes = |tensor: &TensorInfo<'_>| tensor.size_in_bytes().unwrap_or(0) as u64;
    let bar = ProgressBar::new(tensors.iter().map(bytes).sum());
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {eta} {wide_msg}") {
        bar.set_style(style);
    }
    let (mut findings, mut skipped) = (Vec::new(), Vec::new());
    for tensor in tensors {
        bar.set_message(escape(tensor.name()));
        match check(tensor, &device) {
            Ok(finding) => findings.push(finding),
            Err(error) => match reason_to_skip(error.as_ref()) {
                Some(reason) => skipped.push(Skipped { name: tensor.name().to_owned(), reason }),
                None => {
                    bar.finish_and_clear();
                    return Err(format!("{}: {error}", tensor.name()).into());
                }
            },
        }
        bar.inc(bytes(&tensor));
    }
    bar.finish_and_clear();

    let ok = findings.iter().all(Finding::is_ok);
    let printed = match arguments.json {
        true => print_json(&as_json(arguments, &device, &findings, &skipped, ok)),
        false => print(&as_text(&device, &findings, &skipped)),
    };
    match printed {
        // On a closed pipe the exit status still tells the result.
        Err(error) if !is_closed(&error) => Err(error.into()),
        _ => Ok(ok),
    }
}

/// The reason to skip a tensor, where the error is the tensor's and not the device's.
fn reason_to_skip(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let skip = match error.downcast_ref::<Error>() {
        Some(error) => matches!(error, Error::NotWeights { .. } | Error::BigEndian { .. } | Error::TooLarge { .. }),
        None => error.is::<cube_gguf::gguf::Error>() || error.is::<crate::weights::NoValues>(),
    };
    skip.then(|| error.to_string())
}

fn check(tensor: TensorInfo<'_>, device: &Device) -> Outcome<Finding> {
    let weights = Weights::new(tensor)?;
    let loaded = weights.load(device)?;
    let mut mismatches = 0;
    for (first, rows) in weights.stripes() {
        let found = weights.dequantize(&loaded, first, rows, FloatType::F32)?;
        mismatches += compare(&weights, first, &found);
    }
    let time = weights.time_dequantize(&loaded)?.as_secs_f64();
    let moved = weights.data.len() + 4 * weights.info.elements();
    let round_trip = (weights.data.len() <= MAX_READ_BACK).then(|| loaded.data().map(|data| data == weights.data));
    Ok(Finding {
        name: tensor.name().to_owned(),
        ty: weights.format.ty.name(),
        shape: tensor.shape(),
        mismatches,
        worst: multiply(&weights, &loaded)?,
        round_trip: round_trip.transpose()?,
        device_bytes: loaded.device_bytes(),
        gguf_bytes: weights.data.len(),
        gbps: moved as f64 / time.max(1e-9) / 1e9,
    })
}

/// Number of f32 values, from row `first` on, whose bits differ from the host decoder's. All NaNs count as equal.
fn compare(weights: &Weights<'_>, first: usize, found: &[u8]) -> usize {
    let k = weights.k;
    let differ = |(expected, found): (&f32, &[u8])| {
        let found = f32::from_le_bytes([found[0], found[1], found[2], found[3]]);
        expected.to_bits() != found.to_bits() && !(expected.is_nan() && found.is_nan())
    };
    let rows = found.par_chunks(4 * k).enumerate();
    let counts = rows.map_init(
        || vec![0.0; k],
        |expected, (row, found)| {
            weights.decode_row(first + row, expected);
            expected.iter().zip(found.chunks_exact(4)).filter(|&pair| differ(pair)).count()
        },
    );
    counts.sum()
}

/// Multiplies by random activations of all kinds, and returns the worst output.
fn multiply(weights: &Weights<'_>, loaded: &Loaded) -> Outcome<Worst> {
    let (n, k) = (weights.n, weights.k);
    let decoded = |row| {
        let mut values = vec![0.0; k];
        weights.decode_row(row, &mut values);
        (row, values)
    };
    let rows: Vec<(usize, Vec<f32>)> = sampled_rows(n).into_par_iter().map(decoded).collect();
    let mut worst = Worst::default();
    let mut done: Vec<(usize, Accuracy)> = Vec::new();
    for (tokens, arithmetic) in PRODUCTS {
        let accuracy = loaded.accuracy(tokens, arithmetic);
        // More than `MAX_TOKENS` tokens have a kernel of their own only on matrix units.
        if done.contains(&(tokens, accuracy)) || tokens > MAX_TOKENS && accuracy != Accuracy::MatrixUnits {
            continue;
        }
        done.push((tokens, accuracy));
        let normals = Random::new(tokens as u64).normals(tokens * k);
        for activations in ACTIVATIONS {
            let x = activations.of(&normals);
            let y = loaded.matmul(&x, &[tokens, k], arithmetic)?;
            let of_row = |(row, values): &(usize, Vec<f32>)| {
                let mut worst = Worst { accuracy: accuracy.name(), ..Worst::default() };
                // The code of a weight that is infinite as an f32 may be finite times the scale of a tiny activation.
                if matches!(activations, Activations::Tiny) && values.iter().any(|weight| weight.is_infinite()) {
                    return worst;
                }
                for (x, y) in x.chunks_exact(k).zip(y.chunks_exact(n)) {
                    let (error, bound) = error_and_bound(accuracy, values, x, y[*row]);
                    worst.add(Worst { error, bound, accuracy: accuracy.name() });
                }
                worst
            };
            let found: Vec<Worst> = rows.par_iter().map(of_row).collect();
            found.into_iter().for_each(|row| worst.add(row));
        }
    }
    Ok(worst)
}

/// At most [`MAX_ROWS`] of `n` rows, the first and the last among them.
fn sampled_rows(n: usize) -> Vec<usize> {
    let count = n.min(MAX_ROWS);
    (0..count).map(|i| i * (n - 1) / count.saturating_sub(1).max(1)).collect()
}

/// The error of an output against the product in f64, and its bound.
fn error_and_bound(accuracy: Accuracy, weights: &[f32], x: &[f32], found: f32) -> (f64, f64) {
    let products = || weights.iter().zip(x).map(|(&w, &x)| w as f64 * x as f64);
    let exact: f64 = products().sum();
    // Devices may flush denormals to zero, one per term of the sum.
    let bound = accuracy.error_bound(weights, x) + weights.len() as f64 * f32::MIN_POSITIVE as f64;
    let magnitude: f64 = products().map(f64::abs).sum();
    match exact.is_finite() {
        // A NaN or an infinity among the weights must not give a finite output.
        false if found.is_finite() => (f64::INFINITY, 0.0),
        false => (0.0, 0.0),
        // An f32 sum may overflow here, so any output passes.
        true if magnitude + bound >= f32::MAX as f64 => (0.0, bound),
        true if !found.is_finite() => (f64::INFINITY, bound),
        true => ((found as f64 - exact).abs(), bound),
    }
}

fn as_json(arguments: &Arguments, device: &Device, findings: &[Finding], skipped: &[Skipped], ok: bool) -> Json {
    let skipped = skipped.iter().map(|skipped| json!({ "name": skipped.name, "reason": skipped.reason }));
    json!({
        "file": arguments.file.to_string_lossy(),
        "device": device.to_string(),
        "tensors": findings.iter().map(Finding::json).collect::<Vec<_>>(),
        "skipped": skipped.collect::<Vec<_>>(),
        "ok": ok,
    })
}

fn as_text(device: &Device, findings: &[Finding], skipped: &[Skipped]) -> String {
    let mut table = Table::new(&[
        ("tensor", Align::Left),
        ("type", Align::Left),
        ("shape", Align::Left),
        ("exact", Align::Left),
        ("error", Align::Right),
        ("device bytes", Align::Right),
        ("ratio", Align::Right),
        ("GB/s", Align::Right),
    ]);
    findings.iter().for_each(|finding| table.row(finding.row()));
    let mut text = table.render();
    for Skipped { name, reason } in skipped {
        text.push_str(&format!("skipped {}: {}\n", escape(name), escape(reason)));
    }
    let failed = findings.iter().filter(|finding| !finding.is_ok()).count();
    let inexact = findings.iter().filter(|finding| finding.mismatches > 0).count();
    let exact = if inexact == 0 { "all exact".to_owned() } else { format!("{inexact} not exact") };
    let mut worst = Worst::default();
    findings.iter().for_each(|finding| worst.add(finding.worst));
    let sum = |bytes: fn(&Finding) -> usize| findings.iter().map(bytes).sum::<usize>();
    let (on_device, in_file) = (sum(|finding| finding.device_bytes), sum(|finding| finding.gguf_bytes));
    text.push_str(&format!(
        "\n{} tensors on {device}, {} skipped, {exact}, worst error {:.2} of bound ({}), \
         {on_device} bytes on the device for {in_file} ({:.3}): {}\n",
        findings.len(),
        skipped.len(),
        worst.ratio(),
        if worst.accuracy.is_empty() { "none" } else { worst.accuracy },
        on_device as f64 / in_file.max(1) as f64,
        if failed == 0 { "ok".to_owned() } else { format!("{failed} failed") },
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_sampled() {
        assert_eq!(sampled_rows(1), [0]);
        assert_eq!(sampled_rows(3), [0, 1, 2]);
        let rows = sampled_rows(1000);
        assert_eq!((rows.len(), rows[0], rows[MAX_ROWS - 1]), (MAX_ROWS, 0, 999));
    }

    #[test]
    fn errors_are_judged() {
        let judge = |weights: &[f32], found| {
            let (error, bound) = error_and_bound(Accuracy::Float, weights, &[1.0, 2.0], found);
            error <= bound
        };
        assert!(judge(&[1.0, 1.0], 3.0));
        assert!(!judge(&[1.0, 1.0], 3.001));
        assert!(!judge(&[1.0, 1.0], f32::NAN));
        assert!(judge(&[f32::NAN, 1.0], f32::NAN));
        assert!(!judge(&[f32::INFINITY, 1.0], 3.0));
        assert!(judge(&[f32::MAX, f32::MAX], f32::INFINITY));
    }
}
