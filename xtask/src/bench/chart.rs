//! The chart: a bar for every ratio, drawn as SVG by hand.

use super::comparison::{Comparison, Table};

/// Pixels. A panel is a shape's: its types, their bars, and the ratios in figures, which keep clear of the bars.
const TYPES: f64 = 64.0;
const BARS: f64 = 236.0;
const PANEL: f64 = TYPES + BARS + 44.0;
const PANELS_A_ROW: usize = 2;
const GAP: f64 = 36.0;
/// Of a bar, and between two types.
const BAR: f64 = 11.0;
const SPACE: f64 = 5.0;
/// Of a panel's title, of its axis, and of a line of the legend.
const TITLE: f64 = 28.0;
const AXIS: f64 = 26.0;
const LINE: f64 = 18.0;

/// Of text and axes: legible on white and on black.
const GREY: &str = "#808080";
/// Of the peers' bars, likewise.
const COLOURS: [&str; 4] = ["#4c8bf5", "#e08a2e", "#3fa66b", "#b065c9"];

/// The ratios of products of the fewest tokens, a panel for each shape.
pub fn svg(comparison: &Comparison) -> String {
    let tokens = comparison.tokens.iter().copied().min().unwrap_or(1);
    let peers = comparison.peers.len();
    let panels: Vec<Panel> = comparison.tables.iter().map(|table| Panel::new(table, tokens, peers)).collect();
    let largest = panels.iter().flat_map(|panel| &panel.bars).map(|bar| bar.ratio).fold(1.0, f64::max);
    // Far enough from 1 that the two labels of the axis keep clear of each other.
    let end = ((largest * 4.0).ceil() / 4.0).max(1.25);

    let mut drawing = Drawing::default();
    let title = format!("Times of {tokens} token{} over {}'s", if tokens == 1 { "" } else { "s" }, comparison.ours);
    drawing.text(0.0, 13.0, "start", &format!("{title}: past 1 {} is faster", comparison.ours));
    for (peer, name) in comparison.peers.iter().enumerate() {
        let y = LINE * (peer + 1) as f64;
        drawing.bar(0.0, y + 4.0, 9.0, peer);
        drawing.text(14.0, y + 13.0, "start", name);
    }
    let mut top = LINE * (peers + 1) as f64 + SPACE;
    for row in panels.chunks(PANELS_A_ROW) {
        for (i, panel) in row.iter().enumerate() {
            panel.draw(&mut drawing, i as f64 * (PANEL + GAP), top, end);
        }
        top += row.iter().map(Panel::height).fold(0.0, f64::max);
    }
    let columns = panels.len().clamp(1, PANELS_A_ROW) as f64;
    drawing.svg(columns * (PANEL + GAP) - GAP, top, &title)
}

/// The ratios of one shape.
struct Panel {
    title: String,
    /// The types that a peer has.
    types: Vec<String>,
    bars: Vec<Bar>,
    peers: usize,
}

struct Bar {
    /// Which of the types.
    ty: usize,
    peer: usize,
    ratio: f64,
}

impl Panel {
    fn new(table: &Table, tokens: usize, peers: usize) -> Self {
        let (mut types, mut bars) = (Vec::new(), Vec::new());
        for product in table.products.iter().filter(|product| product.tokens == tokens) {
            let ty = types.len();
            let ratios = (0..peers).filter_map(|peer| Some(Bar { ty, peer, ratio: product.ratio(peer)? }));
            let before = bars.len();
            bars.extend(ratios);
            if bars.len() > before {
                types.push(product.ty.clone());
            }
        }
        Self { title: table.shape.to_string(), types, bars, peers }
    }

    /// From a type to the next.
    fn pitch(&self) -> f64 {
        self.peers as f64 * BAR + SPACE
    }

    fn height(&self) -> f64 {
        TITLE + self.types.len() as f64 * self.pitch() + AXIS
    }

    /// With its upper left corner there, and an axis from 0 to `end`.
    fn draw(&self, drawing: &mut Drawing, left: f64, top: f64, end: f64) {
        let (zero, first, bottom) = (left + TYPES, top + TITLE, top + self.height() - AXIS);
        drawing.text(left, top + 18.0, "start", &self.title);
        for (i, ty) in self.types.iter().enumerate() {
            let middle = first + i as f64 * self.pitch() + self.peers as f64 * BAR / 2.0;
            drawing.text(zero - 6.0, middle + 4.0, "end", ty);
        }
        for bar in &self.bars {
            let y = first + bar.ty as f64 * self.pitch() + bar.peer as f64 * BAR;
            drawing.bar(zero, y + 1.0, bar.ratio / end * BARS, bar.peer);
            drawing.text(left + PANEL, y + BAR - 1.5, "end", &format!("{:.2}", bar.ratio));
        }
        drawing.line(zero, first - 3.0, bottom + 3.0);
        for at in [1.0, end] {
            let x = zero + at / end * BARS;
            drawing.line(x, first - 3.0, bottom + 3.0);
            drawing.text(x, bottom + 15.0, "middle", &at.to_string());
        }
    }
}

/// The elements of an SVG.
#[derive(Default)]
struct Drawing(String);

impl Drawing {
    fn text(&mut self, x: f64, y: f64, anchor: &str, text: &str) {
        let text = escape(text);
        self.0 += &format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>\n");
    }

    /// A peer's, two pixels thinner than its place.
    fn bar(&mut self, x: f64, y: f64, width: f64, peer: usize) {
        let (height, fill) = (BAR - 2.0, COLOURS[peer % COLOURS.len()]);
        self.0 +=
            &format!("<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{fill}\"/>\n");
    }

    /// Upright.
    fn line(&mut self, x: f64, top: f64, bottom: f64) {
        self.0 += &format!("<path d=\"M{x:.1} {top:.1}V{bottom:.1}\" stroke=\"{GREY}\"/>\n");
    }

    fn svg(self, width: f64, height: f64, title: &str) -> String {
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
             height=\"{height}\" font-family=\"sans-serif\" font-size=\"11\" fill=\"{GREY}\" role=\"img\">\n\
             <title>{}</title>\n{}</svg>\n",
            escape(title),
            self.0
        )
    }
}

/// Text as XML holds it.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;
    use roxmltree::{Document, Node};

    use super::*;
    use crate::bench::comparison::{Product, Shape};

    fn product(ty: &str, tokens: usize, peers: &[Option<f64>]) -> Product {
        Product { ty: ty.to_owned(), tokens, us: 10.0, bytes: 1e6, peers: peers.to_vec() }
    }

    /// Three shapes and two peers; of a type that no peer has, and of more tokens, there are no bars.
    fn comparison() -> Comparison {
        let products = || {
            vec![
                product("q4_0", 1, &[Some(5.0), Some(20.0)]),
                product("q4_0", 8, &[Some(500.0), None]),
                product("q8_k", 1, &[None, None]),
                product("iq2_xxs", 1, &[Some(12.5), None]),
            ]
        };
        let tables =
            [1024, 4096, 14336].map(|n| Table { shape: Shape { n, k: 4096, experts: None }, products: products() });
        let peers = vec!["a<b&\"c\"".to_owned(), "candle".to_owned()];
        Comparison { ours: "cube-gguf".to_owned(), peers, tokens: vec![1, 8], tables: tables.into() }
    }

    fn number(node: &Node<'_, '_>, name: &str) -> f64 {
        node.attribute(name).unwrap().parse().unwrap()
    }

    #[test]
    fn there_is_a_bar_for_every_ratio() {
        let svg = svg(&comparison());
        let document = Document::parse(&svg).unwrap();
        let bars: Vec<_> = document.descendants().filter(|node| node.has_tag_name("rect")).collect();
        // The first two are the legend.
        assert_eq!(bars.len(), 2 + 3 * 3);
        // As long as the ratios, of 0.5, 2 and 1.25.
        let widths: Vec<f64> = bars[2..5].iter().map(|bar| number(bar, "width")).collect();
        assert_relative_eq!(widths[1] / widths[0], 4.0, max_relative = 0.01);
        assert_relative_eq!(widths[2] / widths[0], 2.5, max_relative = 0.01);
        assert!(widths.iter().all(|width| *width <= BARS));
        let texts: Vec<_> = document.descendants().filter_map(|node| node.text()).collect();
        assert!(texts.contains(&"a<b&\"c\"") && texts.contains(&"1.25") && !texts.contains(&"q8_k"), "{texts:?}");
    }

    #[test]
    fn texts_are_inside_and_apart() {
        let svg = svg(&comparison());
        let document = Document::parse(&svg).unwrap();
        let root = document.root_element();
        let (width, height) = (number(&root, "width"), number(&root, "height"));
        // Left, right and base line, of letters of at most 7 pixels and lines of 11.
        let boxes: Vec<_> = document
            .descendants()
            .filter(|node| node.has_tag_name("text"))
            .map(|node| {
                let (x, y, length) = (number(&node, "x"), number(&node, "y"), 7.0 * node.text().unwrap().len() as f64);
                let left = match node.attribute("text-anchor") {
                    Some("end") => x - length,
                    Some("middle") => x - length / 2.0,
                    _ => x,
                };
                (left, left + length, y)
            })
            .collect();
        for (i, a) in boxes.iter().enumerate() {
            assert!(a.0 >= 0.0 && a.1 <= width && a.2 - 9.0 >= 0.0 && a.2 + 2.0 <= height, "{a:?}");
            for b in &boxes[..i] {
                assert!(a.1 < b.0 || b.1 < a.0 || (a.2 - b.2).abs() >= BAR, "{a:?} {b:?}");
            }
        }
    }
}
