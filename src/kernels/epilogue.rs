//! What is done to the sums of a product before they are rounded and stored: a factor, and a bias.

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::launch::{Grid, buffer, elementwise, used_bytes};

/// The factors and biases of a matrix, f32 on its device.
#[derive(Clone, Default)]
pub struct Epilogues {
    /// A factor for each of as many runs of rows of the same length: of all rows, or one an expert.
    pub scales: Option<Handle>,
    /// A bias for each row.
    pub biases: Option<Handle>,
}

impl Epilogues {
    /// Whether products are their sums alone.
    pub fn is_empty(&self) -> bool {
        self.scales.is_none() && self.biases.is_none()
    }

    /// Buffers that a kernel binds for them.
    pub fn buffers(&self) -> usize {
        self.scales.is_some() as usize + self.biases.is_some() as usize
    }

    /// As an argument of a launch with a matrix of `n` rows.
    pub fn arg(&self, n: usize) -> EpilogueLaunch {
        let scales = self.scales.as_ref().map(|scales| scales_of(scales, n));
        let biases = self.biases.as_ref().map(|biases| BiasesLaunch::new(buffer(biases, 4)));
        EpilogueLaunch::new(scales.into(), biases.into())
    }
}

/// The factors of a matrix of `n` rows, as an argument of a launch.
fn scales_of(scales: &Handle, n: usize) -> ScalesLaunch {
    let count = (used_bytes(scales) / 4).max(1);
    ScalesLaunch::new(buffer(scales, 4), (n / count).max(1))
}

/// The factors and biases of a matrix's rows.
#[derive(CubeType, CubeLaunch)]
pub struct Epilogue {
    scales: ComptimeOption<Scales>,
    biases: ComptimeOption<Biases>,
}

#[derive(CubeType, CubeLaunch)]
pub struct Scales {
    values: Box<[f32]>,
    /// Rows that share one.
    rows: usize,
}

#[derive(CubeType, CubeLaunch)]
pub struct Biases {
    values: Box<[f32]>,
}

/// Turns the sums of `tokens` products with a matrix of `n` rows into the products, in place.
pub fn finish(client: &Client, sums: &Handle, tokens: usize, n: usize, epilogues: &Epilogues) {
    if epilogues.is_empty() {
        return;
    }
    let (count, dim, grid) = elementwise(client, tokens * n);
    finish_sums::launch(client, count, dim, buffer(sums, 4), grid, epilogues.arg(n), n);
}

/// Rows of a matrix: a range, or those that u32 ids on the device name.
pub enum RowsOf<'a> {
    /// From the first on.
    Range(usize),
    Ids(&'a Handle),
}

/// Multiplies `count` rows of `k` dequantized f32 weights of a matrix of `n` rows by their factors, in place.
pub fn scale_rows(client: &Client, values: &Handle, [count, n, k]: [usize; 3], rows: RowsOf<'_>, scales: &Handle) {
    let (cubes, dim, grid) = elementwise(client, count * k);
    let (first, ids) = match rows {
        RowsOf::Range(first) => (first, None),
        RowsOf::Ids(ids) => (0, Some(NamedLaunch::new(buffer(ids, 4)))),
    };
    let rows = ScaledRowsLaunch::new(grid, k, n, first, ids.into());
    scale_values::launch(client, cubes, dim, buffer(values, 4), rows, scales_of(scales, n));
}

/// Rows of dequantized weights.
#[derive(CubeType, CubeLaunch)]
struct ScaledRows {
    grid: Grid,
    k: usize,
    n: usize,
    first: usize,
    named: ComptimeOption<Named>,
}

#[derive(CubeType, CubeLaunch)]
struct Named {
    ids: Box<[u32]>,
}

#[cube(launch)]
fn scale_values(values: &mut [f32], rows: ScaledRows, scales: Scales) {
    let position = rows.grid.unit();
    if position < rows.grid.len {
        let row = position / rows.k;
        #[comptime]
        let of_matrix = match &rows.named {
            ComptimeOption::Some(named) => min(usize::cast_from(named.ids[row]), rows.n - 1),
            ComptimeOption::None => rows.first + row,
        };
        values[position] *= scales.values[of_matrix / scales.rows];
    }
}

#[cube(launch)]
fn finish_sums(sums: &mut [f32], grid: Grid, epilogue: Epilogue, n: usize) {
    let position = grid.unit();
    if position < grid.len {
        sums[position] = epilogue.product(sums[position], position % n, true);
    }
}

#[cube]
impl Epilogue {
    /// The product of row `row` of the matrix from its sum, or from one of several parts of the sum, of which the first alone has
    /// the bias.
    pub fn product(&self, sum: f32, row: usize, is_first: bool) -> f32 {
        #[comptime]
        let scaled = match &self.scales {
            ComptimeOption::Some(scales) => sum * scales.values[row / scales.rows],
            ComptimeOption::None => sum,
        };
        #[comptime]
        let bias = match &self.biases {
            ComptimeOption::Some(biases) => select(is_first, biases.values[row], 0.0f32),
            ComptimeOption::None => 0.0f32.runtime(),
        };
        if comptime!(self.biases.is_some()) { scaled + bias } else { scaled }
    }
}
