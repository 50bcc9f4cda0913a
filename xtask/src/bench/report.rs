//! The section of BENCHMARKS.md.

use super::comparison::{Comparison, Table};
use super::machine::Machine;

/// What the section says beside the tables.
pub struct Report<'a> {
    /// The section's name.
    pub name: &'a str,
    pub date: &'a str,
    pub machine: &'a Machine,
    /// GB/s at which the device copies memory, where it was measured.
    pub copy_rate: Option<f64>,
    /// The command that measured.
    pub command: &'a str,
    pub rounds: usize,
    /// The chart's path, from the file that the section is in.
    pub chart: &'a str,
}

impl Report<'_> {
    /// The section in Markdown.
    pub fn markdown(&self, comparison: &Comparison) -> String {
        let ours = &comparison.ours;
        let theirs: Vec<String> = comparison.peers.iter().map(|peer| format!("{peer}'s")).collect();
        let mut out = format!("## {}: {}, {}\n\n", self.name, cell(&self.machine.device), self.date);
        out += &format!("{}.\n", cell(&self.machine.details.join(", ")));
        out += &format!(
            "Rounds: {}; in each the programs ran one after the other. Times are their medians.\n",
            self.rounds
        );
        out += &format!("Ratios are {} time over {ours}'s: above 1 {ours} is faster.\n", theirs.join(" and "));
        if let Some(rate) = self.copy_rate {
            out += &format!("The floor is the weights' bytes at {rate:.0} GB/s, at which the device copies memory, ");
            out += "bytes read plus bytes written.\n";
        }
        out += &format!("\n```sh\n{}\n```\n", self.command);
        for table in &comparison.tables {
            out += &format!("\n### {}\n\n", table.shape);
            out += &self.products(comparison, table);
            out += &format!("\n{}", means(comparison, table));
        }
        out += &format!("\n### Geometric means\n\n{}", summary(comparison));
        out += &format!("\n![The ratios, type by type]({})\n", self.chart);
        out
    }

    /// Every product of one shape.
    fn products(&self, comparison: &Comparison, table: &Table) -> String {
        let ours = &comparison.ours;
        let mut columns = vec!["type".to_owned(), "tokens".to_owned(), format!("{ours} us"), "GB/s".to_owned()];
        columns.extend(self.copy_rate.map(|_| "floor us".to_owned()));
        for peer in &comparison.peers {
            columns.extend([format!("{peer} us"), format!("{peer} / {ours}")]);
        }
        let rows = table.products.iter().map(|product| {
            let mut cells = vec![product.ty.clone(), product.tokens.to_string()];
            cells.extend([format!("{:.2}", product.us), figures(product.gbps())]);
            cells.extend(self.copy_rate.map(|rate| format!("{:.2}", product.floor(rate))));
            for (peer, us) in product.peers.iter().enumerate() {
                cells.extend([two_decimals(*us), two_decimals(product.ratio(peer))]);
            }
            cells
        });
        markdown_table(&columns, rows)
    }
}

/// The geometric mean and the least of the ratios of one shape.
fn means(comparison: &Comparison, table: &Table) -> String {
    let columns = ["ratio", "tokens", "types", "geometric mean", "least"].map(str::to_owned);
    let mut rows = Vec::new();
    for (peer, name) in comparison.peers.iter().enumerate() {
        for &tokens in &comparison.tokens {
            let ratios = table.ratios(peer, tokens);
            let Some((ty, least)) = ratios.iter().min_by(|a, b| a.1.total_cmp(&b.1)) else { continue };
            rows.push(vec![
                format!("{name} / {}", comparison.ours),
                tokens.to_string(),
                ratios.len().to_string(),
                two_decimals(table.mean(peer, tokens)),
                format!("{least:.2} ({ty})"),
            ]);
        }
    }
    markdown_table(&columns, rows)
}

/// The geometric means of all shapes.
pub fn summary(comparison: &Comparison) -> String {
    let mut columns = vec!["shape".to_owned(), "tokens".to_owned()];
    columns.extend(comparison.peers.iter().map(|peer| format!("{peer} / {}", comparison.ours)));
    let mut rows = Vec::new();
    for table in &comparison.tables {
        for &tokens in &comparison.tokens {
            let mut cells = vec![table.shape.to_string(), tokens.to_string()];
            cells.extend((0..comparison.peers.len()).map(|peer| two_decimals(table.mean(peer, tokens))));
            rows.push(cells);
        }
    }
    markdown_table(&columns, rows)
}

/// A table of figures, but for its first column.
fn markdown_table(columns: &[String], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let line = |cells: Vec<String>| {
        let cells: Vec<String> = cells.iter().map(|text| cell(text)).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let mut out = line(columns.to_vec());
    out += &format!("|---|{}\n", "---:|".repeat(columns.len() - 1));
    out.extend(rows.into_iter().map(line));
    out
}

/// Text that a program printed, as one cell of a table holds it.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;").split_whitespace().collect::<Vec<_>>().join(" ")
}

fn two_decimals(value: Option<f64>) -> String {
    value.map_or_else(String::new, |value| format!("{value:.2}"))
}

/// A rate to three figures at least.
fn figures(value: f64) -> String {
    let decimals = (2.0 - value.log10().floor()).clamp(0.0, 9.0) as usize;
    format!("{value:.decimals$}")
}
