//! The CSV that `cube-gguf bench --csv` and its peers print.

use anyhow::{Context, Result, bail, ensure};

/// A product that an engine was asked for.
#[derive(Debug)]
pub struct Row {
    pub engine: String,
    /// The type of the weights in lower case: programs differ in that.
    pub ty: String,
    pub n: usize,
    pub k: usize,
    pub tokens: usize,
    /// None where the engine has no such product.
    pub time: Option<Time>,
}

/// How long it took.
#[derive(Debug, Clone, Copy)]
pub struct Time {
    pub us: f64,
    /// GB/s of the weights' GGUF bytes, to the digits that the program prints: 0 of a slow one.
    pub gbps: f64,
}

/// The rows below the header, whose columns are known by their names.
pub fn parse(text: &str) -> Result<Vec<Row>> {
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let (_, header) = lines.next().context("nothing was printed")?;
    let header: Vec<&str> = header.split(',').map(str::trim).collect();
    let column = |name: &str| {
        let at = header.iter().position(|column| *column == name);
        at.with_context(|| format!("no column `{name}` in the first line, {header:?}"))
    };
    let columns = ["engine", "type", "n", "k", "tokens", "us", "gbps_weights"];
    let [engine, ty, n, k, tokens, us, gbps] = columns.map(column);
    let (engine, ty, n, k, tokens, us, gbps) = (engine?, ty?, n?, k?, tokens?, us?, gbps?);

    let row = |line: &str| -> Result<Row> {
        let cells: Vec<&str> = line.split(',').map(str::trim).collect();
        if cells.len() != header.len() {
            bail!("{} columns, not {}", cells.len(), header.len());
        }
        let count = |at: usize| cells[at].parse::<usize>().with_context(|| format!("`{}` is no count", cells[at]));
        let figure = |at: usize| {
            let number = cells[at].parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0);
            number.with_context(|| format!("`{}` is no figure", cells[at]))
        };
        let time = match cells[us] {
            "unsupported" => None,
            _ => Some(Time { us: figure(us)?, gbps: figure(gbps)? }),
        };
        ensure!(time.is_none_or(|time| time.us > 0.0), "`{}` is no time", cells[us]);
        ensure!(!cells[engine].is_empty(), "no engine");
        Ok(Row {
            engine: cells[engine].to_owned(),
            ty: cells[ty].to_lowercase(),
            n: count(n)?,
            k: count(k)?,
            tokens: count(tokens)?,
            time,
        })
    };
    lines.map(|(i, line)| row(line).with_context(|| format!("line {}, `{line}`", i + 1))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;

    #[test]
    fn ggml_s_rows_are_read() {
        let text = include_str!("fixtures/ggml.csv");
        let rows = parse(text).unwrap();
        assert_eq!(rows.len(), text.lines().count() - 1);
        // The weights' bytes, which the two columns must multiply to: 18 a block of 32, 144 a block of 256.
        for (ty, bits) in [("q4_0", 4.5), ("q4_k", 4.5), ("iq2_xxs", 2.0625)] {
            let row = rows.iter().find(|row| row.ty == ty && row.tokens == 1).unwrap();
            let time = row.time.unwrap();
            let bytes = (row.n * row.k) as f64 * bits / 8.0;
            assert_relative_eq!(time.us * time.gbps * 1e3, bytes, max_relative = 0.01);
        }
        let unsupported: Vec<_> = rows.iter().filter(|row| row.time.is_none()).map(|row| &row.ty).collect();
        assert_eq!(unsupported.len(), text.matches("unsupported").count());
        assert!(unsupported.iter().all(|ty| *ty == "tq1_0"));
    }

    #[test]
    fn columns_are_known_by_name() {
        let rows = parse("us,type,engine,extra,n,k,tokens,gbps_weights\n2.5,Q4_0,e,?,3,32,1,0.02\n\n").unwrap();
        assert_eq!((rows[0].n, rows[0].k, rows[0].tokens, rows[0].time.unwrap().us), (3, 32, 1, 2.5));
        assert_eq!((rows[0].ty.as_str(), rows[0].engine.as_str()), ("q4_0", "e"));
    }

    #[test]
    fn what_is_off_is_named() {
        let header = "engine,type,n,k,tokens,us,gbps_weights,tflops\n";
        for (text, named) in [
            (String::new(), "nothing"),
            ("backend CUDA0\n".to_owned(), "`engine`"),
            (format!("{header}e,q4_0,1,32,1,2.5\n"), "line 2"),
            (format!("{header}e,q4_0,1,32,one,2.5,1,1\n"), "`one`"),
            (format!("{header}e,q4_0,1,32,1,0.00,1,1\n"), "`0.00`"),
            (format!("{header}e,q4_0,1,32,1,nan,1,1\n"), "`nan`"),
            (format!("{header}e,q4_0,1,32,1,2.5,inf,1\n"), "`inf`"),
        ] {
            let error = format!("{:#}", parse(&text).unwrap_err());
            assert!(error.contains(named), "{error}");
        }
    }
}
