//! Launches: the plan of a product's tokens, the preparation of its activations, the grid of cubes.

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::blueprint::Blueprint;
use super::kernel::{
    CodesLaunch, ExtentLaunch, MATRIX_BUFFERS, Matrix, MatrixLaunch, multiply_codes, multiply_staged, multiply_values,
};
use super::problem::{ActivationType, MAX_TOKENS};
use crate::kernels::activations::{Activations, pack};
use crate::kernels::floats::FloatType;
use crate::kernels::formats::{CHUNK, traits};
use crate::kernels::launch::{Suballocation, buffer, cubes_of_slices};
use crate::kernels::quantize::activations::{Quantized, quantize};
use crate::kernels::routing::{Pairs, Route};
use crate::kernels::weights::Weights;

/// The most matrices that one launch multiplies.
const MAX_MATRICES: usize = 4;

/// The most slices of activations of a launch: as many cubes as every API has in a row.
const MAX_SLICES: usize = 65_535;

/// `x` times the transpose of `weights`, as contiguous `[tokens, n]` values of `x`'s type. Dense weights take
/// [`ActivationType::Float`] alone.
///
/// `pick` gives the blueprint for a number of tokens, at most [`MAX_TOKENS`]; it is clamped to the weights and activations.
/// `x` may have any number of tokens: each slice of a launch takes as many as its blueprint has sums for.
pub fn matvec_with(
    client: &Client,
    weights: &Weights,
    x: &Activations,
    operand: ActivationType,
    pick: impl Fn(usize) -> Blueprint,
) -> Handle {
    let out = results(client, &[weights], x);
    let plan = Plan::new(weights, x, operand, pick);
    Product { client, weights: &[weights], x, out: &out, places: &[0], route: None }.run(&plan, &mut None);
    out.whole
}

/// Each row of `x` times the transpose of the weights of its pairs' experts, for stacks of one format and as many rows, which have
/// their experts one after the other: contiguous `[pairs, n]` values of `x`'s type of each stack. The weights of an expert are read for
/// every pair.
///
/// `blueprint` is for one token; it is clamped to the weights and activations.
pub fn matvec_experts_with(
    client: &Client,
    stacks: &[&Weights],
    x: &Activations,
    route: Route<'_>,
    operand: ActivationType,
    blueprint: Blueprint,
) -> Vec<Handle> {
    let (pairs, experts) = (route.routing.pairs(), route.routing.experts());
    let bytes = |weights: &&Weights| pairs * (weights.n() / experts) * x.ty().bytes();
    let out = Suballocation::new(client, stacks.iter().map(bytes));
    let mut prepared = None;
    let all: Vec<usize> = (0..stacks.len()).collect();
    for places in all.chunks(most_matrices(client, stacks)) {
        let weights: Vec<&Weights> = places.iter().map(|&place| stacks[place]).collect();
        let operand = operand_of(weights[0], operand);
        let blueprint = Blueprint { tokens: 1, ..blueprint }.clamped_to(weights[0], x, operand);
        let plan = Plan { operand, launches: vec![Launch { first: 0, slices: 1, blueprint }] };
        Product { client, weights: &weights, x, out: &out, places, route: Some(route) }.run(&plan, &mut prepared);
    }
    all.iter().map(|&place| out.handle(place)).collect()
}

/// The results of [`matvec_with`] for several matrices with the same number of columns, bit for bit. Activations are
/// prepared once, and matrices of one format share launches. `pick` takes the index of a matrix, its operand and a number of
/// tokens.
pub fn matvec_many_with(
    client: &Client,
    weights: &[&Weights],
    x: &Activations,
    operand: ActivationType,
    pick: impl Fn(usize, ActivationType, usize) -> Blueprint,
) -> Vec<Handle> {
    let out = results(client, weights, x);
    let plan = |(i, weights): (usize, &&Weights)| {
        let operand = operand_of(weights, operand);
        Plan::new(weights, x, operand, |tokens| pick(i, operand, tokens))
    };
    let plans: Vec<Plan> = weights.iter().enumerate().map(plan).collect();
    let mut left: Vec<usize> = (0..weights.len()).collect();
    let mut prepared = [None, None];
    let most = most_matrices(client, weights);
    while let Some(&first) = left.first() {
        let joins = |i: &usize| weights[*i].ty() == weights[first].ty() && plans[*i].sums_as(&plans[first]);
        let members: Vec<usize> = left.iter().copied().filter(joins).take(most).collect();
        left.retain(|i| !members.contains(i));
        // The plan of the matrix with the most rows serves all.
        let largest = members.iter().copied().max_by_key(|&i| weights[i].n()).unwrap_or(first);
        let plan = &plans[largest];
        let together: Vec<&Weights> = members.iter().map(|&i| weights[i]).collect();
        let product = Product { client, weights: &together, x, out: &out, places: &members, route: None };
        product.run(plan, &mut prepared[plan.operand as usize]);
    }
    (0..weights.len()).map(|part| out.handle(part)).collect()
}

fn operand_of(weights: &Weights, operand: ActivationType) -> ActivationType {
    if traits(weights.ty()).dense { ActivationType::Float } else { operand }
}

/// Matrices whose buffers a kernel has bindings for, beside those of the activations, the results and the arguments.
fn most_matrices(client: &Client, weights: &[&Weights]) -> usize {
    let bindings = client.properties().hardware.max_bindings as usize;
    let of_epilogue = weights.iter().map(|weights| weights.epilogues.buffers()).max().unwrap_or(0);
    (bindings.saturating_sub(4) / (MATRIX_BUFFERS + of_epilogue)).clamp(1, MAX_MATRICES)
}

/// One buffer for the results of several matrices.
fn results(client: &Client, weights: &[&Weights], x: &Activations) -> Suballocation {
    Suballocation::new(client, weights.iter().map(|weights| x.tokens() * weights.n() * x.ty().bytes()))
}

/// A launch of a plan.
#[derive(Clone, Copy)]
struct Launch {
    /// The first of its tokens.
    first: usize,
    /// How many times it takes the tokens of its blueprint.
    slices: usize,
    blueprint: Blueprint,
}

/// The launches of a product.
struct Plan {
    operand: ActivationType,
    launches: Vec<Launch>,
}

impl Plan {
    fn new(weights: &Weights, x: &Activations, operand: ActivationType, pick: impl Fn(usize) -> Blueprint) -> Self {
        let (tokens, mut first, mut launches) = (x.tokens(), 0, Vec::new());
        while first < tokens {
            let left = tokens - first;
            let blueprint = pick(MAX_TOKENS.min(left)).clamped_to(weights, x, operand);
            let slices = (left / blueprint.tokens).clamp(1, MAX_SLICES);
            launches.push(Launch { first, slices, blueprint });
            first += slices * blueprint.tokens;
        }
        Self { operand, launches }
    }

    /// Whether both add up in the same order, whatever slices they take the tokens in.
    fn sums_as(&self, other: &Self) -> bool {
        let orders = |plan: &Self| {
            let mut orders: Vec<_> =
                plan.launches.iter().map(|launch| (launch.first, launch.blueprint.order())).collect();
            orders.dedup_by_key(|&mut (_, order)| order);
            orders
        };
        self.operand == other.operand && orders(self) == orders(other)
    }
}

/// Activations as a kernel multiplies them.
enum PreparedActivations {
    Codes(Quantized),
    /// Contiguous f32, in whole chunks.
    Values(Handle),
}

impl PreparedActivations {
    fn new(client: &Client, x: &Activations, operand: ActivationType) -> Self {
        match operand {
            ActivationType::Int8 => Self::Codes(quantize(client, x)),
            ActivationType::Float => {
                let as_they_are = x.ty() == FloatType::F32
                    && x.k().is_multiple_of(CHUNK)
                    && x.vector_stride().is_some_and(|stride| x.tokens() == 1 || stride == x.k());
                Self::Values(if as_they_are { x.handle().clone() } else { pack(client, x, FloatType::F32) })
            }
        }
    }
}

/// The work of a launch: its cubes, the matrices with the cubes that take the rows of each, how much that is, and for whom.
struct Work {
    cubes: CubeCount,
    matrices: SequenceArg<Matrix>,
    extent: ExtentLaunch,
    pairs: ComptimeOptionArgs<Pairs>,
}

/// Matrices of one format, with as many columns, that launches multiply together.
struct Product<'a> {
    client: &'a Client,
    weights: &'a [&'a Weights],
    x: &'a Activations,
    out: &'a Suballocation,
    /// Where the results of each matrix go in `out`.
    places: &'a [usize],
    /// The experts of each row, where the matrices are stacks of such.
    route: Option<Route<'a>>,
}

impl Product<'_> {
    /// All launches of a plan. `prepared` keeps the activations that they read, for others of the same operand.
    fn run(&self, plan: &Plan, prepared: &mut Option<PreparedActivations>) {
        let prepare = || PreparedActivations::new(self.client, self.x, plan.operand);
        for &launch in &plan.launches {
            match launch.blueprint.staging {
                Some(_) => self.staged(launch),
                None => self.prepared(launch, prepared.get_or_insert_with(prepare)),
            }
        }
    }

    fn chunks(&self) -> usize {
        self.weights[0].chunks()
    }

    /// The work of a launch, of activations whose rows are `stride` apart.
    fn work(&self, launch: Launch, stride: usize) -> Work {
        let Launch { first, slices, blueprint } = launch;
        let groups = blueprint.groups_per_cube as usize;
        let pairs = self.route.map_or(1, |route| route.routing.pairs());
        let rows = |weights: &Weights| weights.n() / self.route.map_or(1, |route| route.routing.experts());
        let tasks = |weights: &Weights| rows(weights).div_ceil(blueprint.rows_per_group);
        let wanted: usize = self.weights.iter().map(|weights| tasks(weights).div_ceil(groups)).sum();
        let most = blueprint.cubes.map(|cubes| (cubes as usize / (slices * pairs)).max(1));
        // The cubes of a slice, or of a pair.
        let count = most.map_or(wanted, |most| wanted.min(most));
        let all_groups = (count * groups).max(1);
        let (mut before, mut matrices) = (0, SequenceArg::new());
        for (&weights, &place) in self.weights.iter().zip(self.places) {
            let tasks = tasks(weights);
            let start = self.out.begin(place) / self.x.ty().bytes();
            let own = if most.is_some() { count } else { tasks.div_ceil(groups) };
            matrices.push(MatrixLaunch::new(
                weights.view(),
                weights.epilogue(),
                rows(weights),
                start,
                own,
                before,
                tasks.div_ceil(all_groups),
            ));
            before = if most.is_some() { (before + tasks) % all_groups } else { before + own };
        }
        let (cubes, grid) = cubes_of_slices(self.client, slices, pairs * count);
        let spans = self.chunks() / blueprint.span;
        let extent = ExtentLaunch::new(grid, spans, stride, first, self.x.tokens());
        let experts = self.route.map(|route| route.pairs(rows(self.weights[0]), count.max(1)));
        Work { cubes, matrices, extent, pairs: experts.into() }
    }

    fn prepared(&self, launch: Launch, prepared: &PreparedActivations) {
        let (client, chunks, elem, blueprint) = (self.client, self.chunks(), self.x.ty().elem(), launch.blueprint);
        let dim = CubeDim::new_2d(blueprint.lanes_per_row, blueprint.groups_per_cube);
        let out = buffer(&self.out.whole, self.x.ty().bytes());
        // SAFETY: rows are below `n` and tokens below `tokens` (the kernel clamps both) and chunks below the row's. So reads
        // of a matrix lie in the components that were laid out for its `n` rows, reads of the activations in `tokens` rows
        // of `chunks`, and writes in `tokens` rows of `n` from the matrix's place on. Experts are below their number (clamped
        // too), pairs too, and there are `pairs` rows to write. Codebooks have an entry for every index that bits can form.
        unsafe {
            match prepared {
                PreparedActivations::Codes(Quantized { codes, scales }) => {
                    let Work { cubes, matrices, extent, pairs } = self.work(launch, chunks);
                    let x = CodesLaunch::new(buffer(codes, 16), buffer(scales, 16));
                    multiply_codes::launch_unchecked(
                        client, cubes, dim, matrices, x, out, extent, pairs, blueprint, elem,
                    );
                }
                PreparedActivations::Values(values) => {
                    let Work { cubes, matrices, extent, pairs } = self.work(launch, chunks * CHUNK / 4);
                    let x = buffer(values, 16);
                    multiply_values::launch_unchecked(
                        client, cubes, dim, matrices, x, out, extent, pairs, blueprint, elem,
                    );
                }
            }
        }
    }

    fn staged(&self, launch: Launch) {
        let (ty, blueprint) = (self.x.ty(), launch.blueprint);
        let stride = self.x.vector_stride().unwrap_or_default() / 4;
        let Work { cubes, matrices, extent, pairs } = self.work(launch, stride);
        // SAFETY: as in `prepared`; a staged blueprint takes activations whose tokens are `stride` vectors apart, and has
        // room in shared memory for the chunks of a row.
        unsafe {
            multiply_staged::launch_unchecked(
                self.client,
                cubes,
                CubeDim::new_2d(blueprint.lanes_per_row, blueprint.groups_per_cube),
                matrices,
                buffer(self.x.handle(), 4 * ty.bytes()),
                buffer(&self.out.whole, ty.bytes()),
                extent,
                pairs,
                blueprint,
                [ty.elem(), ty.elem()],
            );
        }
    }
}
