//! The report as one HTML file, which needs nothing but itself.

use std::borrow::Cow;

use crate::report::{Report, Table};
use crate::roofline::CARDS;
use crate::row::Summary;

const STYLE: &str = "
body { font: 14px system-ui, sans-serif; margin: 1.5em; }
table { border-collapse: collapse; margin: .5em 0 2em; }
th, td { padding: .2em .6em; border-bottom: 1px solid #ddd; text-align: left; white-space: nowrap; }
th { position: sticky; top: 0; background: #eee; cursor: pointer; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
tr.failed td, li { color: #a00; }
input { font: inherit; width: 30em; }
";

/// Sorts a table by the header that is clicked, the other way round at the next click, and shows the lines that have
/// every word of the filter.
const SCRIPT: &str = "
for (const header of document.querySelectorAll('th')) {
  header.addEventListener('click', () => {
    const body = header.closest('table').tBodies[0];
    const column = header.cellIndex;
    const up = header.dataset.up !== 'true';
    header.dataset.up = up;
    const compare = (a, b) => {
      const [x, y] = [a, b].map(line => line.cells[column].textContent);
      if (!x || !y) return x ? -1 : y ? 1 : 0;
      const [m, n] = [x, y].map(parseFloat);
      const order = isNaN(m) || isNaN(n) || m === n ? x.localeCompare(y, 'en', { numeric: true }) : m - n;
      return up ? order : -order;
    };
    body.append(...[...body.rows].sort(compare));
  });
}
document.getElementById('filter').addEventListener('input', event => {
  const words = event.target.value.toLowerCase().split(/\\s+/);
  for (const line of document.getElementById('rows').tBodies[0].rows) {
    const text = [...line.cells].map(cell => cell.textContent).join(' ').toLowerCase();
    line.hidden = !words.every(word => text.includes(word));
  }
});
";

/// The page.
pub fn render(report: &Report) -> String {
    let budgets = match report.violations.len() {
        0 => "<p>Every budget holds.</p>".to_owned(),
        _ => format!("<ul>{}</ul>", elements("li", &report.violations)),
    };
    let cards = CARDS.iter().map(|card| {
        let (url, name) = (escape(card.source), escape(card.name));
        let (clock, units, bandwidth) = (card.clock, card.compute_units, card.bandwidth);
        format!("<a href=\"{url}\">{name}</a>: {bandwidth} GB/s, {units} compute units at {clock} MHz (boost)")
    });
    let cards = cards.collect::<Vec<_>>().join("; ");
    let summaries = table("summary", &Table::of_summaries(&Summary::by_arch(&report.rows)));
    let roofline = table("roofline", &Table::of_roofline(&report.roofline));
    let matrix = table("matrix", &Table::of_matrix(&report.matrix));
    let valu_bound = table("valu", &Table::of_valu_bound(&report.roofline));
    let rows = table("rows", &Table::of_rows(&report.rows));
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>Kernels on AMD GPUs</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<h1>Kernels on AMD GPUs</h1>\n\
         <h2>Budgets</h2>\n{budgets}\n<h2>By architecture</h2>\n{summaries}\n\
         <h2>Least time of a matvec</h2>\n<p>The longer of the time of the weights' bytes and of the vector instructions. \
         {cards}.</p>\n{roofline}\n<h3>Where vector instructions bind</h3>\n{valu_bound}\n\
         <h2>Most of a product on matrix units</h2>\n<p>By the cycles of the hot loop's instructions.</p>\n{matrix}\n\
         <h2>Kernels</h2>\n<p><input id=\"filter\" type=\"search\" placeholder=\"Words that a line has\"></p>\n{rows}\n\
         <script>{SCRIPT}</script>\n</body>\n</html>\n"
    )
}

/// A table whose last column, where it is called `error`, marks the lines that have one.
fn table(id: &str, table: &Table) -> String {
    let has_errors = table.header.last().is_some_and(|name| name == "error");
    let line = |cells: &Vec<String>| {
        let failed = has_errors && cells.last().is_some_and(|error| !error.is_empty());
        let cell = |cell: &String| {
            let class = if cell.parse::<f64>().is_ok() { " class=\"number\"" } else { "" };
            format!("<td{class}>{}</td>", escape(cell))
        };
        let class = if failed { " class=\"failed\"" } else { "" };
        format!("<tr{class}>{}</tr>\n", cells.iter().map(cell).collect::<String>())
    };
    let header = elements("th", &table.header);
    let lines: String = table.lines.iter().map(line).collect();
    format!("<table id=\"{id}\">\n<thead><tr>{header}</tr></thead>\n<tbody>\n{lines}</tbody>\n</table>")
}

fn elements(name: &str, texts: &[String]) -> String {
    texts.iter().map(|text| format!("<{name}>{}</{name}>", escape(text))).collect()
}

/// Text as HTML shows it, in an attribute too.
fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(['&', '<', '>', '"', '\'']) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match character {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            other => escaped.push(other),
        }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::{on_matrix_units, prediction};
    use crate::row::Row;
    use crate::row::tests::matvec;

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(escape("a<b> & \"c\" 'd'"), "a&lt;b&gt; &amp; &quot;c&quot; &#39;d&#39;");
        assert!(matches!(escape("plain"), Cow::Borrowed("plain")));
        let evil = "<script>alert(1)</script>";
        let mut row = matvec(evil);
        row.input.configuration = evil.to_owned();
        let failed = Row::failed(matvec("gfx942").input, evil.to_owned());
        let mut least = prediction("RX", 1.0);
        least.format = evil.to_owned();
        let report = Report {
            rows: vec![row, failed],
            roofline: vec![least],
            matrix: Vec::new(),
            violations: vec![evil.to_owned()],
        };
        let page = render(&report);
        assert!(!page.contains(evil));
        assert_eq!(page.matches("<script>").count(), 1);
        assert_eq!(page.matches("<tr class=\"failed\">").count(), 1);
    }

    #[test]
    fn the_page_needs_nothing_else() {
        let report = Report {
            rows: vec![matvec("gfx1100")],
            roofline: vec![prediction("RX", 1.0)],
            matrix: vec![on_matrix_units("RX")],
            violations: vec![],
        };
        let page = render(&report);
        for outside in ["src=", "<link", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert_eq!(page.matches("<table").count(), 5);
        assert_eq!(page.matches("</table>").count(), 5);
    }
}
