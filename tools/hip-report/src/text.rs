//! The report for a terminal.

use crate::report::{Report, Table};
use crate::roofline::CARDS;
use crate::row::{Row, Summary};

/// The rows that `shown` picks, and of all rows the summary, the roofline and the broken budgets.
pub fn render(report: &Report, shown: impl Fn(&Row) -> bool) -> String {
    let rows = Table::of_rows(report.rows.iter().filter(|row| shown(row)));
    let mut sections = Vec::new();
    if !rows.lines.is_empty() {
        sections.push(aligned(&rows));
    }
    sections.push(aligned(&Table::of_summaries(&Summary::by_arch(&report.rows))));
    if !report.roofline.is_empty() {
        sections.push(format!("Least time of a matvec\n{}", aligned(&Table::of_roofline(&report.roofline))));
    }
    if !report.matrix.is_empty() {
        sections.push(format!("Most of a product on matrix units\n{}", aligned(&Table::of_matrix(&report.matrix))));
    }
    if !report.roofline.is_empty() || !report.matrix.is_empty() {
        sections.push(format!("By these figures\n{}", aligned(&Table::of_cards(&CARDS))));
    }
    let valu_bound = Table::of_valu_bound(&report.roofline);
    if !valu_bound.lines.is_empty() {
        sections.push(format!("Where vector instructions bind\n{}", aligned(&valu_bound)));
    }
    sections.push(match report.violations.len() {
        0 => "Every budget holds.\n".to_owned(),
        count => format!("{count} budgets broken:\n  {}\n", report.violations.join("\n  ")),
    });
    sections.join("\n")
}

/// Columns as wide as their widest cell, numbers to the right.
fn aligned(table: &Table) -> String {
    let lines = || std::iter::once(&table.header).chain(&table.lines);
    let width = |column: usize| lines().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..table.header.len()).map(width).collect();
    let numeric: Vec<bool> = (0..table.header.len()).map(|column| is_numeric(table, column)).collect();
    let mut text = String::new();
    for line in lines() {
        let cells = line.iter().zip(&widths).zip(&numeric).map(|((cell, &width), &numeric)| {
            if numeric { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// Whether all that a column has is numbers.
fn is_numeric(table: &Table, column: usize) -> bool {
    table.lines.iter().map(|line| line[column].as_str()).all(|cell| cell.is_empty() || cell.parse::<f64>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::{on_matrix_units, prediction};
    use crate::row::tests::matvec;

    #[test]
    fn columns_are_aligned() {
        let line = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let lines = vec![line(["gfx90a", "8", "·"]), line(["b", "128", ""])];
        let table = Table { header: line(["arch", "n", "note"]), lines };
        assert_eq!(aligned(&table), "arch      n  note\ngfx90a    8  ·\nb       128\n");
    }

    #[test]
    fn rows_are_those_asked_for_and_the_rest_is_of_all() {
        let report = Report {
            rows: vec![matvec("gfx1100"), matvec("gfx942")],
            roofline: vec![prediction("RX", 34.4)],
            matrix: vec![on_matrix_units("RX")],
            violations: vec!["gfx942: too slow".to_owned()],
        };
        let text = render(&report, |row| row.input.arch == "gfx942");
        assert_eq!((text.matches("gfx1100").count(), text.matches("gfx942").count()), (2, 4));
        assert!(
            text.contains("34.4 us memory")
                && text.contains("Most of a product on matrix units")
                && text.contains("1 budgets broken:\n  gfx942: too slow")
        );
    }
}
