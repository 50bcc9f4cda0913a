//! `cargo xtask bench`: our products and those of other programs, timed by turns, as a section of BENCHMARKS.md.

mod chart;
mod comparison;
mod csv;
mod machine;
mod report;
mod section;

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::builder::RangedU64ValueParser;

use crate::{process, setup};
use comparison::{Comparison, Printed, Shape, Table};
use machine::Machine;
use report::Report;

const FILE: &str = "BENCHMARKS.md";

#[derive(clap::Args)]
#[command(after_help = "\
A peer is any program that, run as `PEER N K TOKENS`, prints the columns of `cube-gguf bench --csv` for weights of N rows
and K columns and rows of activations as `--tokens` has them; its name is what its column `engine` says. Such are those
of benches/peers and examples/candle_cpu.rs. For shapes of experts it is run as `PEER N K TOKENS TYPES EXPERTS SLOTS`.")]
pub struct Args {
    /// A program to compare with; may be given more than once.
    #[arg(long = "peer", value_name = "PATH", required = true)]
    peers: Vec<PathBuf>,
    /// Where we compute, as `cube-gguf bench --device` takes it.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Rows and columns of the weights; with experts as 8of128x768x2048, 8 for each token of 128 of 768 x 2048.
    #[arg(long, value_delimiter = ',', default_value = "14336x4096,4096x4096,4096x14336,1024x4096")]
    shapes: Vec<Shape>,
    /// Rows of the activations.
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8")]
    tokens: Vec<usize>,
    /// Types, separated by commas; all where none are given.
    #[arg(long)]
    types: Option<String>,
    /// Hand --graph on to `cube-gguf bench`.
    #[arg(long)]
    graph: bool,
    /// How often each program runs for a shape; the figures are medians.
    #[arg(long, default_value_t = 2, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    rounds: usize,
    /// The section of the file to write anew.
    #[arg(long, default_value = "peers", value_parser = section_name)]
    section: String,
    /// GB/s at which the device copies memory, bytes read plus bytes written; else `cube-gguf bench --op copy` says it.
    #[arg(long, value_name = "GBPS")]
    copy_rate: Option<f64>,
    /// A built cube-gguf; else cargo builds one, in release profile.
    #[arg(long, value_name = "PATH")]
    cube_gguf: Option<PathBuf>,
    /// Features to build it with.
    #[arg(long, default_value = "cuda,cli", conflicts_with = "cube_gguf")]
    features: String,
    /// The file with the section; BENCHMARKS.md here or in the repository where none is given.
    #[arg(long, value_name = "FILE")]
    into: Option<PathBuf>,
}

/// Names a section and a file.
fn section_name(name: &str) -> Result<String> {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    ensure!(!name.is_empty() && name.chars().all(is_plain), "only a to z, 0 to 9 and - are for names");
    Ok(name.to_owned())
}

pub fn run(args: &Args) -> Result<()> {
    let file = match &args.into {
        Some(file) => file.clone(),
        // The workspace is not there where this program was carried to another machine.
        None if Path::new(FILE).is_file() => FILE.into(),
        None => process::root().join(FILE),
    };
    // Read before anything takes time.
    let text = match fs::read_to_string(&file) {
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        text => text.with_context(|| format!("cannot read {}", file.display()))?,
    };
    section::replace(&text, &args.section, "").with_context(|| file.display().to_string())?;

    let program = match &args.cube_gguf {
        Some(program) => program.clone(),
        None => build(&args.features)?,
    };
    let machine = Machine::new(&program, &args.device)?;
    let copy_rate = match args.copy_rate {
        None => machine::copy_rate(&program, &args.device)?,
        rate => rate,
    };
    if copy_rate.is_none() {
        eprintln!("No floor: `cube-gguf bench --op copy` gives no rate; --copy-rate does.");
    }
    let comparison = compare(args, &program)?;

    let chart = format!("docs/bench-{}.svg", args.section);
    let report = Report {
        name: &args.section,
        date: &machine::today(),
        machine: &machine,
        copy_rate,
        command: &command_line(),
        rounds: args.rounds,
        chart: &chart,
    };
    let text = section::replace(&text, &args.section, &report.markdown(&comparison))?;
    let chart = file.with_file_name(chart);
    let docs = chart.parent().unwrap_or(Path::new(""));
    fs::create_dir_all(docs).with_context(|| format!("cannot create {}", docs.display()))?;
    for (path, text) in [(&chart, chart::svg(&comparison)), (&file, text)] {
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    print!("{}", report::summary(&comparison));
    println!("Written: section {} of {}, {}", args.section, file.display(), chart.display());
    Ok(())
}

fn build(features: &str) -> Result<PathBuf> {
    setup::run()?;
    let arguments = ["build", "--release", "--bin", "cube-gguf", "--features", features];
    process::built(&mut process::cargo(arguments), "cube-gguf")
}

/// How this program was called: by cargo, or alone where it was carried to another machine.
fn command_line() -> String {
    let arguments: Vec<_> = std::env::args_os().collect();
    let words = process::line(arguments.iter().map(|word| word.as_os_str()));
    match (std::env::var_os("CARGO"), words.split_once(' ')) {
        (Some(_), Some((_, words))) => format!("cargo xtask {words}"),
        _ => words,
    }
}

/// Runs our program and the peers by turns, shape by shape.
fn compare(args: &Args, program: &Path) -> Result<Comparison> {
    let mut tables = Vec::new();
    let mut names: Vec<String> = Vec::new();
    for &shape in &args.shapes {
        let mut ours = Printed::default();
        let mut peers: Vec<Printed> = args.peers.iter().map(|_| Printed::default()).collect();
        for round in 1..=args.rounds {
            let step = format!("{shape}, round {round} of {}", args.rounds);
            time(&mut our_command(args, program, shape), shape, &mut ours, &step)?;
            for (path, printed) in args.peers.iter().zip(&mut peers) {
                let mut command = Command::new(path);
                command.args([shape.n.to_string(), shape.k.to_string(), tokens(args)]);
                if let Some((slots, all)) = shape.experts {
                    command.args([args.types.as_deref().unwrap_or(""), &all.to_string(), &slots.to_string()]);
                }
                time(&mut command, shape, printed, &step)?;
            }
        }
        let engines: Vec<String> = [&ours].into_iter().chain(&peers).map(|it| it.engine().to_owned()).collect();
        ensure!(names.is_empty() || names == engines, "first {names:?} ran, then {engines:?}");
        let twice = engines.iter().enumerate().find(|(i, name)| engines[..*i].contains(name));
        ensure!(twice.is_none(), "two programs call themselves {}", twice.map_or("", |(_, name)| name));
        names = engines;
        tables.push(Table::new(shape, &ours, &peers));
    }
    let peers = names.split_off(1);
    Ok(Comparison { ours: names.remove(0), peers, tokens: args.tokens.clone(), tables })
}

/// Rows of activations, as both sides take them.
fn tokens(args: &Args) -> String {
    let tokens: Vec<String> = args.tokens.iter().map(usize::to_string).collect();
    tokens.join(",")
}

fn our_command(args: &Args, program: &Path, shape: Shape) -> Command {
    let mut command = Command::new(program);
    command.args(["bench", "--n", &shape.n.to_string(), "--k", &shape.k.to_string(), "--tokens", &tokens(args)]);
    command.args(["--device", &args.device, "--csv"]);
    if let Some((slots, all)) = shape.experts {
        command.args(["--experts", &all.to_string(), "--slots", &slots.to_string()]);
    }
    if let Some(types) = &args.types {
        command.args(["--types", types]);
    }
    if args.graph {
        command.arg("--graph");
    }
    command
}

/// Runs a program once more for a shape, and says what it prints and how long it took.
fn time(command: &mut Command, shape: Shape, printed: &mut Printed, step: &str) -> Result<()> {
    let start = Instant::now();
    let text = process::watched(command, |line| eprintln!("{line}"))?;
    let add = |printed: &mut Printed| printed.add(csv::parse(&text)?, shape);
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    add(printed).with_context(|| format!("what `{}` printed is off", process::line(words)))?;
    eprintln!("{step}: {}, {:.1} s", printed.engine(), start.elapsed().as_secs_f64());
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::symlink;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    /// A folder with stand-ins of our program and of a peer, and what the command makes of both.
    struct Bench(PathBuf);

    impl Bench {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("xtask-bench-{name}-{}", std::process::id()));
            fs::create_dir_all(&folder).unwrap();
            let fixtures = process::root().join("xtask/src/bench/fixtures");
            for file in ["ours.sh", "peer.sh", "ggml.csv"] {
                symlink(fixtures.join(file), folder.join(file)).unwrap();
            }
            Self(folder)
        }

        fn run(&self, options: &[&str]) -> Result<()> {
            let path = |file: &str| self.0.join(file).into_os_string().into_string().unwrap();
            let mut words = vec!["bench".to_owned(), "--peer".to_owned(), path("peer.sh")];
            words.extend(["--cube-gguf".to_owned(), path("ours.sh"), "--into".to_owned(), path("out.md")]);
            let fixed = ["--tokens", "1,8", "--types", "q4_0,tq1_0,iq2_xxs,q8_k", "--graph"];
            words.extend(fixed.iter().chain(options).map(|word| word.to_string()));
            run(&Command::try_parse_from(words)?.args)
        }

        fn read(&self, file: &str) -> String {
            fs::read_to_string(self.0.join(file)).unwrap_or_default()
        }
    }

    impl Drop for Bench {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).ok();
        }
    }

    #[test]
    fn two_programs_end_as_a_section_and_a_chart() {
        let bench = Bench::new("whole");
        fs::write(bench.0.join("out.md"), "# Mine\n").unwrap();
        bench.run(&["--shapes", "4096x4096", "--section", "both"]).unwrap();
        assert_eq!(bench.read("log"), "ours\npeer\nours\npeer\n");

        let text = bench.read("out.md");
        for part in [
            "# Mine\n\n<!-- bench:both -->\n## both: A &lt;fine> GPU, 20",
            "cube-gguf 9.9.9, CubeCL ",
            "4000 GB/s",
            "| type | tokens | cube-gguf us | GB/s | floor us | ggml us | ggml / cube-gguf |\n",
            // Of 4 and 6 us the median is 5; 9437184 bytes take 2.36 us at 4000 GB/s.
            "| q4_0 | 1 | 5.00 | 1887 | 2.36 | 7.17 | 1.43 |\n",
            "| q4_0 | 8 | 26.80 | 352 | 2.36 | 13.40 | 0.50 |\n",
            "| iq2_xxs | 1 | 17.00 | 254 | 1.08 | 8.69 | 0.51 |\n",
            "| tq1_0 | 1 | 5.00 | 708 | 0.88 |  |  |\n",
            "| q8_k | 1 | 5.00 | 3827 | 4.78 |  |  |\n",
            // The root of 1.434 times 0.511.
            "| ggml / cube-gguf | 1 | 2 | 0.86 | 0.51 (iq2_xxs) |\n",
            "| 4096 x 4096 | 1 | 0.86 |\n| 4096 x 4096 | 8 | 0.50 |\n",
            "](docs/bench-both.svg)\n<!-- /bench:both -->\n",
        ] {
            assert!(text.contains(part), "no {part} in\n{text}");
        }
        let chart = bench.read("docs/bench-both.svg");
        let chart = roxmltree::Document::parse(&chart).unwrap();
        let bars = chart.descendants().filter(|node| node.has_tag_name("rect"));
        assert_eq!(bars.count(), 1 + 2, "the legend's, and two ratios of 1 token");
    }

    #[test]
    fn a_peer_that_fails_is_named_and_the_file_kept() {
        let bench = Bench::new("failing");
        for (shape, said) in [("13x4096", "out of memory"), ("1024x4096", "no row of 1024 x 4096")] {
            let error = format!("{:#}", bench.run(&["--shapes", shape]).unwrap_err());
            assert!(error.contains("peer.sh") && error.contains(said), "{error}");
            assert_eq!(bench.read("out.md"), "");
        }
    }

    #[test]
    fn no_two_programs_have_one_name() {
        let bench = Bench::new("twice");
        let peer = bench.0.join("peer.sh");
        let error = bench.run(&["--shapes", "4096x4096", "--peer", peer.to_str().unwrap()]).unwrap_err();
        assert!(error.to_string().contains("ggml"), "{error}");
    }
}
