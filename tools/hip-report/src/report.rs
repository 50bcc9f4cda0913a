//! All that was found, and the tables that show it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::matrix::MatrixPrediction;
use crate::roofline::{Card, Prediction};
use crate::row::{Row, Summary};

/// The report; as JSON, all but the broken budgets.
#[derive(Debug, Serialize)]
pub struct Report {
    pub rows: Vec<Row>,
    pub roofline: Vec<Prediction>,
    pub matrix: Vec<MatrixPrediction>,
    /// Sentences, each about a row that breaks a budget.
    #[serde(skip)]
    pub violations: Vec<String>,
}

/// Cells in lines below a header, each line as long as that.
#[derive(Debug, PartialEq)]
pub struct Table {
    pub header: Vec<String>,
    pub lines: Vec<Vec<String>>,
}

type Column = (&'static str, fn(&Row) -> String);

/// The columns of a row, those that an erroneous one has no numbers for after the first four.
const NAMED: [Column; 4] = [
    ("arch", |row| row.input.arch.clone()),
    ("operation", |row| row.input.operation.clone()),
    ("format", |row| row.input.format.clone()),
    ("configuration", |row| row.input.configuration.clone()),
];
const MEASURED: [Column; 19] = [
    ("VALU/weight", |row| row.valu_per_weight.map_or_else(String::new, |valu| format!("{valu:.3}"))),
    ("VGPRs", |row| row.vgprs.to_string()),
    ("SGPRs", |row| row.sgprs.to_string()),
    ("LDS", |row| row.lds_bytes.to_string()),
    ("waves", |row| row.waves_per_simd.to_string()),
    ("limit", |row| row.occupancy_limit.clone()),
    ("scratch", |row| row.scratch_bytes.to_string()),
    ("spills", |row| (row.spilled_vgprs + row.spilled_sgprs).to_string()),
    ("code", |row| row.code_bytes.to_string()),
    ("VALU", |row| row.hot.valu.to_string()),
    ("operations", |row| row.hot.valu_ops.to_string()),
    ("dot", |row| row.hot.dot.to_string()),
    ("matrix", |row| row.hot.matrix.to_string()),
    ("scalar", |row| row.hot.scalar.to_string()),
    ("LDS ops", |row| row.hot.lds.to_string()),
    ("waits", |row| row.hot.waits.to_string()),
    ("unrolled", |row| if row.looped { row.unrolled.to_string() } else { "no loop".to_owned() }),
    ("kernel", |row| row.kernel.clone()),
    ("loads", Row::loads),
];

impl Table {
    /// A line a row.
    pub fn of_rows<'a>(rows: impl IntoIterator<Item = &'a Row>) -> Self {
        let names = NAMED.iter().chain(&MEASURED).map(|column| column.0).chain(["error"]);
        let line = |row: &Row| {
            let measured = |(_, cell): &Column| if row.error.is_some() { String::new() } else { cell(row) };
            let cells = NAMED.iter().map(|(_, cell)| cell(row)).chain(MEASURED.iter().map(measured));
            cells.chain([row.error.clone().unwrap_or_default()]).collect()
        };
        Self { header: names.map(str::to_owned).collect(), lines: rows.into_iter().map(line).collect() }
    }

    /// A line an architecture.
    pub fn of_summaries(summaries: &[Summary]) -> Self {
        let header = [
            "arch",
            "kernels",
            "failures",
            "most VGPRs",
            "fewest waves",
            "spilling",
            "int8 matvecs with dot",
            "VALU/weight, least",
            "and most",
        ];
        let number = |value: Option<f64>, places| value.map_or_else(String::new, |value| format!("{value:.places$}"));
        let line = |summary: &Summary| {
            vec![
                summary.arch.clone(),
                summary.kernels.to_string(),
                summary.failures.to_string(),
                summary.most_vgprs.to_string(),
                summary.fewest_waves.map_or_else(String::new, |waves| waves.to_string()),
                summary.spilling.to_string(),
                format!("{} of {}", summary.int8_matvecs_with_dot, summary.int8_matvecs),
                number(summary.valu_per_weight.map(|range| range.0), 3),
                number(summary.valu_per_weight.map(|range| range.1), 3),
            ]
        };
        Self { header: header.map(str::to_owned).to_vec(), lines: summaries.iter().map(line).collect() }
    }

    /// A line a format and shape, a column a card, microseconds and what binds in the cells.
    pub fn of_roofline(predictions: &[Prediction]) -> Self {
        let mut cards: Vec<&str> = Vec::new();
        let mut lines = BTreeMap::<[String; 2], BTreeMap<&str, String>>::new();
        for prediction in predictions {
            if !cards.contains(&prediction.card) {
                cards.push(prediction.card);
            }
            let Prediction { n, k, format, .. } = prediction;
            let line = lines.entry([format.clone(), format!("{n} x {k}")]).or_default();
            line.insert(prediction.card, format!("{:.1} us {}", prediction.microseconds, prediction.bound));
        }
        let names = ["format", "shape"].into_iter().chain(cards.iter().copied());
        let header = names.map(str::to_owned).collect();
        let cells = |(problem, mut cells): ([String; 2], BTreeMap<&str, String>)| {
            let of_cards = cards.iter().map(|card| cells.remove(card).unwrap_or_default());
            problem.clone().into_iter().chain(of_cards.collect::<Vec<_>>()).collect()
        };
        Self { header, lines: lines.into_iter().map(cells).collect() }
    }

    /// A line a format, tile and card of products on matrix units.
    pub fn of_matrix(predictions: &[MatrixPrediction]) -> Self {
        let header = [
            "card",
            "format",
            "tile",
            "matrix cycles",
            "vector cycles",
            "LDS cycles",
            "TFLOP/s",
            "of the card's",
            "bound",
        ];
        let line = |prediction: &MatrixPrediction| {
            let MatrixPrediction { matrix_cycles, valu_cycles, lds_cycles, tflops, peak, .. } = prediction;
            let numbers = [matrix_cycles, valu_cycles, lds_cycles, tflops, peak].map(|number| format!("{number:.0}"));
            let words = [prediction.card, &prediction.format, &prediction.configuration].map(str::to_owned);
            words.into_iter().chain(numbers).chain([prediction.bound.to_owned()]).collect()
        };
        Self { header: header.map(str::to_owned).to_vec(), lines: predictions.iter().map(line).collect() }
    }

    /// A line a card, with what the predictions take from it.
    pub fn of_cards(cards: &[Card]) -> Self {
        let header = ["card", "arch", "GB/s", "compute units", "MHz at boost", "matrix TFLOP/s", "source"];
        let line = |card: &Card| {
            let [bandwidth, clock, matrix] =
                [card.bandwidth, card.clock, card.matrix_tflops].map(|figure| figure.to_string());
            let (name, arch) = (card.name.to_owned(), card.arch.to_owned());
            vec![name, arch, bandwidth, card.compute_units.to_string(), clock, matrix, card.source.to_owned()]
        };
        Self { header: header.map(str::to_owned).to_vec(), lines: cards.iter().map(line).collect() }
    }

    /// A line a prediction that vector instructions bind, with the reason.
    pub fn of_valu_bound(predictions: &[Prediction]) -> Self {
        let header = ["card", "format", "instructions", "memory", "why"];
        let line = |prediction: &Prediction| {
            vec![
                prediction.card.to_owned(),
                prediction.format.clone(),
                format!("{:.1} us", prediction.valu_us),
                format!("{:.1} us", prediction.memory_us),
                prediction.reason.unwrap_or("unexplained").to_owned(),
            ]
        };
        let bound = predictions.iter().filter(|prediction| prediction.bound == "valu");
        Self { header: header.map(str::to_owned).to_vec(), lines: bound.map(line).collect() }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::roofline::CARDS;
    use crate::row::tests::matvec;

    pub fn prediction(card: &'static str, microseconds: f64) -> Prediction {
        Prediction {
            card,
            arch: "gfx1100",
            format: "Q4_0".to_owned(),
            configuration: "1 token".to_owned(),
            n: 14336,
            k: 4096,
            memory_us: microseconds,
            valu_us: 1.0,
            microseconds,
            bound: "memory",
            reason: None,
        }
    }

    pub fn on_matrix_units(card: &'static str) -> MatrixPrediction {
        MatrixPrediction {
            card,
            arch: "gfx1100",
            format: "Q4_0".to_owned(),
            configuration: "f32, 128 tokens".to_owned(),
            matrix_cycles: 1024.0,
            valu_cycles: 342.0,
            lds_cycles: 272.0,
            tflops: 92.0,
            peak: 122.8,
            bound: "matrix",
        }
    }

    #[test]
    fn every_line_is_as_long_as_the_header() {
        let rows = [matvec("gfx1100"), Row::failed(matvec("gfx942").input, "no <code>".to_owned())];
        let tables = [
            Table::of_rows(&rows),
            Table::of_summaries(&Summary::by_arch(&rows)),
            Table::of_roofline(&[prediction("one", 2.0), prediction("two", 3.0)]),
            Table::of_matrix(&[on_matrix_units("one")]),
            Table::of_cards(&CARDS),
            Table::of_valu_bound(&[Prediction { bound: "valu", ..prediction("one", 2.0) }]),
        ];
        for table in tables {
            assert!(!table.lines.is_empty());
            assert!(table.lines.iter().all(|line| line.len() == table.header.len()), "{table:?}");
        }
    }

    #[test]
    fn a_failed_row_has_its_reason_and_no_numbers() {
        let table = Table::of_rows(&[Row::failed(matvec("gfx942").input, "no <code>".to_owned())]);
        let line = &table.lines[0];
        assert_eq!(line[..4], ["gfx942", "matvec", "Q4_0", "1 token"]);
        assert!(line[4..line.len() - 1].iter().all(String::is_empty));
        assert_eq!(line[line.len() - 1], "no <code>");
    }

    #[test]
    fn the_roofline_has_a_column_for_each_card() {
        let mut other = prediction("two", 3.25);
        other.format = "Q6_K".to_owned();
        let table = Table::of_roofline(&[prediction("one", 2.0), other]);
        assert_eq!(table.header, ["format", "shape", "one", "two"]);
        assert_eq!(table.lines[0], ["Q4_0", "14336 x 4096", "2.0 us memory", ""]);
        assert_eq!(table.lines[1][2..], ["", "3.2 us memory"]);
    }

    #[test]
    fn json_has_rows_and_predictions() {
        let report = Report {
            rows: vec![matvec("gfx1100")],
            roofline: vec![prediction("one", 2.0)],
            matrix: vec![on_matrix_units("two")],
            violations: vec![],
        };
        let json = serde_json::to_value(report).unwrap();
        assert_eq!(json.as_object().unwrap().keys().collect::<Vec<_>>(), ["matrix", "roofline", "rows"]);
        assert_eq!(json["rows"][0]["waves_per_simd"], 16.0);
        assert_eq!(json["roofline"][0]["bound"], "memory");
    }
}
