//! Times of several programs beside each other: medians over the rounds, and ratios.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};

use super::csv::{Row, Time};

/// Rows and columns of the weights: output and input features.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub n: usize,
    pub k: usize,
    /// Of a stack of experts those of a token, and all.
    pub experts: Option<(usize, usize)>,
}

impl FromStr for Shape {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let count = |text: &str| text.trim().parse().with_context(|| format!("`{text}` is no count"));
        let (stack, matrix) = match text.split_once("of") {
            Some((slots, stack)) => {
                let (all, matrix) = stack.split_once('x').context("experts are as 8of128x768x2048")?;
                (Some((count(slots)?, count(all)?)), matrix)
            }
            None => (None, text),
        };
        let (n, k) = matrix.split_once('x').with_context(|| format!("`{text}` is no shape such as 14336x4096"))?;
        Ok(Self { n: count(n)?, k: count(k)?, experts: stack })
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((slots, all)) = self.experts {
            write!(f, "{slots} of {all} x ")?;
        }
        write!(f, "{} x {}", self.n, self.k)
    }
}

/// What one program printed of a shape, in all rounds.
#[derive(Default)]
pub struct Printed(Vec<Row>);

impl Printed {
    /// Adds what it printed in one more round; rows of other shapes are left out.
    pub fn add(&mut self, rows: Vec<Row>, shape: Shape) -> Result<()> {
        let before = self.0.len();
        self.0.extend(rows.into_iter().filter(|row| (row.n, row.k) == (shape.n, shape.k)));
        ensure!(self.0.len() > before, "no row of {shape} was printed");
        let name = &self.0[0].engine;
        let other = self.0.iter().find(|row| row.engine != *name);
        ensure!(
            other.is_none(),
            "rows of two engines were printed, {name} and {}",
            other.map_or("", |row| &row.engine)
        );
        Ok(())
    }

    /// Who printed it.
    pub fn engine(&self) -> &str {
        self.0.first().map_or("", |row| &row.engine)
    }

    /// The median of a figure over the rounds.
    fn median(&self, ty: &str, tokens: usize, figure: impl Fn(Time) -> f64) -> Option<f64> {
        let rows = self.0.iter().filter(|row| row.ty == ty && row.tokens == tokens);
        median(rows.filter_map(|row| row.time.map(&figure)).collect())
    }

    /// Microseconds of a product.
    fn us(&self, ty: &str, tokens: usize) -> Option<f64> {
        self.median(ty, tokens, |time| time.us)
    }

    /// Bytes of the weights.
    fn bytes(&self, ty: &str, tokens: usize) -> Option<f64> {
        self.median(ty, tokens, |time| time.us * time.gbps * 1e3)
    }
}

/// A product, timed by us and the peers.
pub struct Product {
    pub ty: String,
    pub tokens: usize,
    /// Our microseconds.
    pub us: f64,
    /// GGUF bytes of the weights.
    pub bytes: f64,
    /// The peers' microseconds, in their order; none where a peer has no such product.
    pub peers: Vec<Option<f64>>,
}

impl Product {
    /// A peer's time over ours: above 1 we are faster.
    pub fn ratio(&self, peer: usize) -> Option<f64> {
        self.peers[peer].map(|us| us / self.us)
    }

    /// GB/s of the weights that our time comes to.
    pub fn gbps(&self) -> f64 {
        self.bytes / self.us / 1e3
    }

    /// The microseconds in which a device that copies `copy_rate` GB/s moves the weights once.
    pub fn floor(&self, copy_rate: f64) -> f64 {
        self.bytes / copy_rate / 1e3
    }
}

/// All products of weights of one shape, in the order in which our program printed them.
pub struct Table {
    pub shape: Shape,
    pub products: Vec<Product>,
}

impl Table {
    /// Beside what we printed, what the peers printed of the same; what we have not is left out.
    pub fn new(shape: Shape, ours: &Printed, peers: &[Printed]) -> Self {
        let mut products: Vec<Product> = Vec::new();
        for row in &ours.0 {
            let (ty, tokens) = (&row.ty, row.tokens);
            if products.iter().any(|product| product.ty == *ty && product.tokens == tokens) {
                continue;
            }
            let (Some(us), Some(bytes)) = (ours.us(ty, tokens), ours.bytes(ty, tokens)) else { continue };
            let peers = peers.iter().map(|peer| peer.us(ty, tokens)).collect();
            products.push(Product { ty: ty.clone(), tokens, us, bytes, peers });
        }
        Self { shape, products }
    }

    /// The ratios to a peer, with their types.
    pub fn ratios(&self, peer: usize, tokens: usize) -> Vec<(&str, f64)> {
        let products = self.products.iter().filter(|product| product.tokens == tokens);
        products.filter_map(|product| Some((product.ty.as_str(), product.ratio(peer)?))).collect()
    }

    /// The geometric mean of the ratios to a peer.
    pub fn mean(&self, peer: usize, tokens: usize) -> Option<f64> {
        geometric_mean(&self.ratios(peer, tokens).into_iter().map(|(_, ratio)| ratio).collect::<Vec<_>>())
    }
}

/// Everything that one command compared.
pub struct Comparison {
    /// Our name, as our program prints it.
    pub ours: String,
    /// The peers' names, as their programs print them.
    pub peers: Vec<String>,
    pub tokens: Vec<usize>,
    pub tables: Vec<Table>,
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = values[(values.len() - 1) / 2];
    Some((lower + upper) / 2.0)
}

fn geometric_mean(values: &[f64]) -> Option<f64> {
    let logs: f64 = values.iter().map(|value| value.ln()).sum();
    (!values.is_empty()).then(|| (logs / values.len() as f64).exp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::csv::parse;
    use approx::assert_relative_eq;

    const SHAPE: Shape = Shape { n: 2, k: 256, experts: None };

    /// Rounds of (type, tokens, us), of weights of 2 MB.
    fn printed(engine: &str, rounds: &[&[(&str, usize, f64)]]) -> Printed {
        let mut printed = Printed::default();
        for round in rounds {
            let mut text = "engine,type,n,k,tokens,us,gbps_weights\n".to_owned();
            for (ty, tokens, us) in *round {
                text.push_str(&format!("{engine},{ty},2,256,{tokens},{us},{}\n", 2000.0 / us));
            }
            printed.add(parse(&text).unwrap(), SHAPE).unwrap();
        }
        printed
    }

    #[test]
    fn known_medians_and_means() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0]), Some(3.0));
        assert_eq!(median(vec![9.0, 1.0]), Some(5.0));
        assert_eq!(median(vec![9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(geometric_mean(&[]), None);
        assert_relative_eq!(geometric_mean(&[2.0, 8.0, 0.5]).unwrap(), 2.0);
    }

    #[test]
    fn ratios_are_of_medians_and_of_the_same_product() {
        let ours = printed("we", &[&[("q4_k", 1, 10.0), ("q8_k", 1, 5.0), ("q4_k", 2, 20.0)], &[("q4_k", 1, 30.0)]]);
        let peer = printed("it", &[&[("Q4_K", 1, 39.0), ("q4_k", 2, 5.0), ("q2_k", 1, 1.0)], &[("q4_K", 1, 41.0)]]);
        let table = Table::new(SHAPE, &ours, &[peer]);
        let cells: Vec<_> = table.products.iter().map(|p| (p.ty.as_str(), p.tokens, p.ratio(0))).collect();
        assert_eq!(cells, [("q4_k", 1, Some(2.0)), ("q8_k", 1, None), ("q4_k", 2, Some(0.25))]);
        assert_eq!(table.ratios(0, 1), [("q4_k", 2.0)]);
        assert_relative_eq!(table.mean(0, 2).unwrap(), 0.25);
        assert_eq!(table.mean(0, 4), None);
        // The 2 MB in 20 us, and at 400 GB/s.
        assert_relative_eq!(table.products[0].gbps(), 100.0);
        assert_relative_eq!(table.products[0].floor(400.0), 5.0);
    }

    #[test]
    fn a_program_prints_the_shape_asked_for_and_one_engine() {
        let header = "engine,type,n,k,tokens,us,gbps_weights\n";
        let mut printed = Printed::default();
        let row = |text: &str| parse(&format!("{header}{text}")).unwrap();
        assert!(printed.add(row("a,q4_0,2,512,1,1,1\n"), SHAPE).is_err());
        printed.add(row("a,q4_0,2,256,1,1,1\n"), SHAPE).unwrap();
        let error = printed.add(row("b,q4_0,2,256,1,1,1\n"), SHAPE).unwrap_err().to_string();
        assert!(error.contains("a and b"), "{error}");
    }

    #[test]
    fn shapes_are_read_as_written() {
        let read = |text: &str| text.parse::<Shape>();
        assert_eq!(read("14336x4096").unwrap(), Shape { n: 14336, k: 4096, experts: None });
        let stack = Shape { n: 768, k: 2048, experts: Some((8, 128)) };
        assert_eq!((read("8of128x768x2048").unwrap(), stack.to_string()), (stack, "8 of 128 x 768 x 2048".to_owned()));
        assert!(["14336", "ax2", "8of768x2048", "of2x3x4"].iter().all(|text| read(text).is_err()));
    }
}
