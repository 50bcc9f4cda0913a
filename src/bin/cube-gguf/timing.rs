//! Rotating copies of weights, against caching, and median times of operations on them.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{Device as Host, Module, Tensor};
use cube_gguf::gguf::{Endian, Files};
use cube_gguf::internals::{Format, format, quantize_only};
use cube_gguf::{
    Activations, Arithmetic, CubeDevice, Device, DeviceTensor, FloatType, GgmlType, QMatMul, QTensor, Routing,
};
use cubecl::server::Handle;
use cubecl::std::throughput::measure_peak_throughput;
use cubecl::throughput::{MemoryAccess, ThroughputKey, ThroughputMode};

use rayon::prelude::*;

use crate::Outcome;
use crate::weights::{Random, failed, stripes, sync};

/// Bytes that all copies of the weights exceed where the size of the last-level cache is unknown.
const ROTATED_BYTES: usize = 256_000_000;
/// All copies of the weights exceed so many last-level caches.
const CACHES: usize = 4;
/// The most copies of the weights: more, of small weights, would take too long to make.
const MAX_COPIES: usize = 256;
/// The most copies on the host, and the most bytes of all of them where that is more than one copy.
const MAX_HOST_COPIES: usize = 4;
const MAX_HOST_BYTES: usize = 512 << 20;
/// Random choices of experts that products rotate over.
const CHOICES: usize = 16;
/// Distinct rows of random weights, as in `benches/peers/candle_cuda.cu`.
pub const POOL_ROWS: usize = 64;
/// The most bytes of f32 values that one launch of dequantizing writes.
const STRIPE_BYTES: usize = 1 << 30;
/// Seconds of one measurement, and its fewest and most repeats.
const BUDGET: f64 = 0.25;
const REPEATS: std::ops::Range<usize> = 5..50;
/// Seconds of one repeat where launches are slow: its queue is shortened to them.
const QUEUE_SECONDS: f64 = 0.05;
/// The fewest products of a recorded graph.
const GRAPH_QUEUE: usize = 200;
/// Products of a chain.
const CHAIN: usize = 200;
/// Products queued at a time to time launches: few enough that no queue fills up.
const LAUNCHES: usize = 20;
/// Bytes that a copy on the host reads, and that it writes.
const HOST_COPY_BYTES: usize = 256 << 20;

/// The type and shape of weights to time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Case {
    pub ty: GgmlType,
    /// Rows, of each expert where there are some.
    pub n: usize,
    pub k: usize,
    pub experts: Option<Experts>,
}

/// A stack of experts, of which each token has some.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Experts {
    pub count: usize,
    pub slots: usize,
}

impl Experts {
    /// Random choices of experts for so many tokens, no two of a token the same. Products rotate over them.
    fn choices(self, tokens: usize) -> Vec<Vec<u32>> {
        let mut random = Random::new(7);
        let mut choice = || {
            let mut ids = Vec::with_capacity(tokens * self.slots);
            let mut all: Vec<u32> = (0..self.count as u32).collect();
            for _ in 0..tokens {
                // The first places of a shuffle.
                for place in 0..self.slots {
                    let other = place + (random.bits() % (self.count - place) as u64) as usize;
                    all.swap(place, other);
                }
                ids.extend_from_slice(&all[..self.slots]);
            }
            ids
        };
        (0..CHOICES).map(|_| choice()).collect()
    }
}

/// The distinct types and shapes of a model's matrices, in the order of the file.
pub fn cases_of(file: &std::path::Path, types: &[GgmlType]) -> Outcome<Vec<Case>> {
    let files = Files::open(file)?;
    let mut cases = Vec::new();
    for tensor in files.parse()?.tensors() {
        let (Ok(ty), &[n, k]) = (tensor.dtype(), tensor.shape().as_slice()) else { continue };
        let case = Case { ty, n, k, experts: None };
        let wanted = types.is_empty() || types.contains(&ty);
        if wanted && format(ty).is_some() && n * k > 0 && !cases.contains(&case) {
            cases.push(case);
        }
    }
    match cases.is_empty() {
        true => Err(format!(
            "{} has no matrices of weights{}",
            file.display(),
            if types.is_empty() { "" } else { " of these types" }
        )
        .into()),
        false => Ok(cases),
    }
}

/// Whether the device computes on the host, as Candle's kernels and software devices of CubeCL do.
pub fn is_host(device: &Device) -> bool {
    match device {
        Device::Cpu => true,
        Device::Cube(device) => device.is_software(),
    }
}

impl Case {
    /// Rows of all experts.
    pub fn rows(self) -> usize {
        self.n * self.experts.map_or(1, |experts| experts.count)
    }

    /// GGUF bytes of the weights. No overflow: the size was checked when the case was made.
    pub fn bytes(self) -> usize {
        self.rows() * (self.k / self.ty.block_size()) * self.ty.block_bytes()
    }

    /// Bytes of the weights that a product of so many tokens reads.
    pub fn bytes_read(self, tokens: usize) -> f64 {
        let all = self.bytes() as f64;
        let Some(experts) = self.experts else { return all };
        let named = |ids: Vec<u32>| ids.into_iter().collect::<BTreeSet<_>>().len();
        let named: usize = experts.choices(tokens).into_iter().map(named).sum();
        all * named as f64 / (CHOICES * experts.count) as f64
    }

    /// Floating-point operations of a product of so many tokens.
    pub fn operations(self, tokens: usize) -> f64 {
        2.0 * self.n as f64 * self.k as f64 * (tokens * self.experts.map_or(1, |experts| experts.slots)) as f64
    }

    /// Number of copies of the weights to rotate over.
    pub fn copies(self, device: &Device) -> usize {
        let cache = match device {
            Device::Cpu => None,
            Device::Cube(device) => device.client().properties().hardware.last_level_cache_size,
        };
        let copies = cache.map_or(ROTATED_BYTES, |cache| CACHES * cache) / self.bytes() + 1;
        match is_host(device) {
            true => copies.min(MAX_HOST_BYTES / self.bytes()).clamp(1, MAX_HOST_COPIES),
            false => copies.clamp(2, MAX_COPIES),
        }
    }

    /// Random blocks, with any codes, and scales that make values of ordinary size.
    pub fn data(self) -> Vec<u8> {
        let (row, mut random) = (self.bytes() / self.rows(), Random::new(42));
        let pool_rows = self.rows().min(POOL_ROWS);
        let mut pool = vec![0; pool_rows * row];
        if let Some(format) = format(self.ty) {
            let mut values = vec![0.0; self.ty.block_size()];
            pool.chunks_exact_mut(self.ty.block_bytes())
                .for_each(|b| random_block(format, &mut random, b, &mut values));
        }
        let mut data = Vec::with_capacity(self.bytes());
        (0..self.rows()).for_each(|i| data.extend_from_slice(&pool[i * 7 % pool_rows * row..][..row]));
        data
    }
}

/// Fills a block with random bytes, up to 1000 times until its values are of ordinary size.
fn random_block(format: &Format, random: &mut Random, block: &mut [u8], values: &mut [f32]) {
    for _ in 0..1000 {
        block.chunks_mut(8).for_each(|bytes| bytes.copy_from_slice(&random.bits().to_le_bytes()[..bytes.len()]));
        (format.dequantize)(block, values);
        let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        // `f32::max` ignores NaN, so the largest value does not show one.
        if (1e-4..1e4).contains(&largest) && values.iter().all(|value| value.is_finite()) {
            return;
        }
    }
}

/// Copies of the weights on a device.
pub enum Copies {
    Cube { device: CubeDevice, tensors: Vec<DeviceTensor> },
    Host(Vec<Arc<QTensor>>),
}

impl Copies {
    pub fn new(case: Case, device: &Device) -> Outcome<Self> {
        let (Case { ty, n, k, experts }, data) = (case, case.data());
        let copies = 0..case.copies(device);
        Ok(match device {
            Device::Cube(device) => {
                let tensor = |_| DeviceTensor::from_gguf(device, ty, case.rows(), k, &data, Endian::Little);
                let tensors = copies.map(tensor).collect::<cube_gguf::Result<_>>()?;
                Self::Cube { device: device.clone(), tensors }
            }
            Device::Cpu => {
                let shape: Vec<usize> = experts.map(|experts| experts.count).into_iter().chain([n, k]).collect();
                let data = data.as_slice();
                let tensor = |_| QTensor::from_gguf(ty, data.into(), shape.as_slice(), &Device::Cpu).map(Arc::new);
                Self::Host(copies.map(tensor).collect::<candle_core::Result<_>>()?)
            }
        })
    }

    /// Seconds of a product; in a chain each takes the result of the one before, which need not stay finite.
    pub fn time_matmul(&self, tokens: usize, graph: bool, chain: bool) -> Outcome<f64> {
        match self {
            Self::Cube { device, tensors } => {
                let x = self.activations(device, tokens)?;
                let queue = match tokens {
                    _ if chain => CHAIN,
                    512.. => tensors.len().max(4),
                    _ => (4 * tensors.len()).max(20),
                };
                let next = RefCell::new(x.clone());
                let launch = |i: usize| {
                    let y = tensors[i % tensors.len()].matmul_on_device(&next.borrow(), Arithmetic::Auto)?;
                    if chain {
                        next.replace(Activations::contiguous(y, FloatType::F32, x.shape().to_vec())?);
                    }
                    Ok(())
                };
                time_launches(device, graph, queue, launch)
            }
            Self::Host(tensors) => time_layers(tensors.clone(), tokens, chain),
        }
    }

    /// Seconds of a call with values on the host, which waits for its result.
    pub fn time_call(&self, tokens: usize) -> Outcome<f64> {
        let layers = match self {
            Self::Cube { tensors, .. } => tensors.iter().map(|tensor| Arc::new(tensor.clone().into())).collect(),
            Self::Host(tensors) => tensors.clone(),
        };
        time_layers(layers, tokens, false)
    }

    /// Seconds of a product with experts of each token, whose choice is known to the device alone: sorting is part of it.
    pub fn time_experts(&self, tokens: usize, graph: bool, experts: Experts) -> Outcome<f64> {
        let choices = experts.choices(tokens);
        match self {
            Self::Cube { device, tensors } => {
                let (client, k) = (device.client(), tensors[0].k());
                let ids = choices.iter().map(|ids| client.create_from_slice(bytemuck::cast_slice(ids)));
                let ids: Vec<Handle> = ids.collect();
                let x = client.create_from_slice(bytemuck::cast_slice(&Random::new(1).normals(tokens * k)));
                let x = Activations::contiguous(x, FloatType::F32, vec![tokens, k])?;
                let multiply = |i: usize| {
                    let ids = ids[i / tensors.len() % ids.len()].clone();
                    let routing = Routing::new(ids, tokens, experts.slots, experts.count)?;
                    tensors[i % tensors.len()].matmul_experts_on_device(&x, &routing, Arithmetic::Auto)
                };
                // A failed launch shows only at the read.
                client.read_one(multiply(0)?).map_err(|error| failed(device, error))?;
                let queue = CHOICES * tensors.len();
                time_launches(device, graph, queue, |i| multiply(i).map(drop))
            }
            Self::Host(tensors) => {
                let k = tensors[0].shape().dims()[2];
                let x = Tensor::from_vec(Random::new(1).normals(tokens * k), (tokens, 1, k), &Host::Cpu)?;
                let ids = choices.into_iter().map(|ids| Tensor::from_vec(ids, (tokens, experts.slots), &Host::Cpu));
                let ids = ids.collect::<candle_core::Result<Vec<_>>>()?;
                let multiply = |i: usize| {
                    let ids = &ids[i / tensors.len() % ids.len()];
                    Ok(tensors[i % tensors.len()].indexed_moe_forward(&x, ids).map(drop)?)
                };
                time(CHOICES * tensors.len(), multiply, || Ok(()))
            }
        }
    }

    /// Seconds of queueing a product; 0 on the host, which has no queue.
    pub fn time_launch(&self, tokens: usize) -> Outcome<f64> {
        let Self::Cube { device, tensors } = self else { return Ok(0.0) };
        let x = self.activations(device, tokens)?;
        let mut times = Vec::new();
        for _ in 0..REPEATS.end {
            let start = Instant::now();
            for i in 0..LAUNCHES {
                tensors[i % tensors.len()].matmul_on_device(&x, Arithmetic::Auto)?;
            }
            times.push(start.elapsed().as_secs_f64() / LAUNCHES as f64);
            sync(device)?;
        }
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2])
    }

    /// Random activations, checked with one product that is read back: a failed launch shows only at the read.
    fn activations(&self, device: &CubeDevice, tokens: usize) -> Outcome<Activations> {
        let Self::Cube { tensors, .. } = self else { return Err("the host has no launches".into()) };
        let k = tensors[0].k();
        let client = device.client();
        let x = client.create_from_slice(bytemuck::cast_slice(&Random::new(1).normals(tokens * k)));
        let x = Activations::contiguous(x, FloatType::F32, vec![tokens, k])?;
        client.read_one(tensors[0].matmul_on_device(&x, Arithmetic::Auto)?).map_err(|e| failed(device, e))?;
        Ok(x)
    }

    /// Seconds of dequantizing all weights, on the host to f32.
    pub fn time_dequantize(&self, to: FloatType) -> Outcome<f64> {
        match self {
            Self::Cube { device, tensors } => {
                let (n, k) = (tensors[0].n(), tensors[0].k());
                let launch = |i: usize| {
                    let tensor = &tensors[i % tensors.len()];
                    stripes(n, k, STRIPE_BYTES)
                        .try_for_each(|(first, rows)| tensor.dequantize_rows_on_device(first, rows, to).map(drop))
                };
                let row = tensors[0].dequantize_rows_on_device(0, 1, to)?;
                device.client().read_one(row).map_err(|error| failed(device, error))?;
                time((4 * tensors.len()).max(20), launch, || sync(device))
            }
            Self::Host(tensors) => {
                let launch = |i: usize| Ok(tensors[i % tensors.len()].dequantize(&Host::Cpu).map(drop)?);
                time(4 * tensors.len(), launch, || Ok(()))
            }
        }
    }

    /// Seconds of quantizing as many random f32 values, on a device of CubeCL.
    pub fn time_quantize(&self) -> Outcome<f64> {
        let Self::Cube { device, tensors } = self else {
            return Err("quantizing is timed on devices with kernels".into());
        };
        let (ty, n, k) = (tensors[0].ty(), tensors[0].n(), tensors[0].k());
        let row = Random::new(3).normals(k);
        let values: Vec<f32> = (0..n).flat_map(|i| row.iter().map(move |x| x * (1.0 + (i % 7) as f32))).collect();
        let values = device.client().create_from_slice(bytemuck::cast_slice(&values));
        let values = Activations::contiguous(values, FloatType::F32, vec![n, k])?;
        // A failure shows only where the result is read.
        quantize_only(device, ty, &values)?.data()?;
        time(4, |_| quantize_only(device, ty, &values).map(drop), || sync(device))
    }

    /// Returns the memory to the device: its pool would keep it for tensors of the same size.
    pub fn free(self) {
        if let Self::Cube { device, tensors } = self {
            drop(tensors);
            // After a failure the next case may lack memory: its upload reports that.
            let _ = device.client().memory_cleanup();
        }
    }
}

/// Seconds of a product of Candle's, of values on the host.
fn time_layers(tensors: Vec<Arc<QTensor>>, tokens: usize, chain: bool) -> Outcome<f64> {
    let k = tensors[0].shape().dims()[1];
    let x = Tensor::from_vec(Random::new(1).normals(tokens * k), (tokens, k), &Host::Cpu)?;
    let layers = tensors.into_iter().map(QMatMul::from_arc).collect::<candle_core::Result<Vec<_>>>()?;
    // Candle repacks the weights of some formats at the first product.
    layers.iter().try_for_each(|layer| layer.forward(&x).map(drop))?;
    let next = RefCell::new(x);
    let launch = |i: usize| {
        let y = layers[i % layers.len()].forward(&next.borrow())?;
        if chain {
            next.replace(y);
        }
        Ok(())
    };
    time(if chain { CHAIN } else { 4 * layers.len() }, launch, || Ok(()))
}

/// Bytes read and written by a copy, and its seconds.
pub fn time_copy(device: &Device) -> Outcome<(f64, f64)> {
    match device {
        Device::Cube(device) => {
            let key = ThroughputKey { mode: ThroughputMode::memory(MemoryAccess::Copy) };
            let peak = measure_peak_throughput(&device.client(), key).map_err(|error| format!("{device}: {error}"))?;
            let seconds = peak.duration.as_secs_f64();
            Ok((peak.bytes_per_s(&key) * seconds, seconds))
        }
        Device::Cpu => {
            let from = vec![1u8; HOST_COPY_BYTES];
            let mut to = vec![0u8; HOST_COPY_BYTES];
            let piece = HOST_COPY_BYTES / rayon::current_num_threads();
            let to = RefCell::new(&mut to);
            let copy = |_| {
                let mut to = to.borrow_mut();
                to.par_chunks_mut(piece).zip(from.par_chunks(piece)).for_each(|(to, from)| to.copy_from_slice(from));
                Ok(())
            };
            Ok((2.0 * HOST_COPY_BYTES as f64, time(1, copy, || Ok(()))?))
        }
    }
}

/// The median seconds of a launch in queues of `queue`, or in a graph of at least as many.
fn time_launches(
    device: &CubeDevice,
    graph: bool,
    queue: usize,
    launch: impl Fn(usize) -> cube_gguf::Result<()>,
) -> Outcome<f64> {
    match graph {
        true => time_graph(device, GRAPH_QUEUE.max(queue), launch),
        false => time(queue, launch, || sync(device)),
    }
}

/// The median seconds of a launch among `queue`, which are recorded once and replayed together.
pub fn time_graph(device: &CubeDevice, queue: usize, launch: impl Fn(usize) -> cube_gguf::Result<()>) -> Outcome<f64> {
    let client = device.client();
    let all = || (0..queue).try_for_each(&launch);
    // A first run compiles, and allocates the memory: recording may not allocate.
    client.graph_prepare().map_err(|error| failed(device, error))?;
    all()?;
    sync(device)?;
    client.start_capture().map_err(|error| failed(device, error))?;
    let launched = all();
    let graph = client.stop_capture().map_err(|error| failed(device, error))?;
    launched?;
    // SAFETY: the weights and activations outlive the graph. The memory of results and of int8 codes goes back to the
    // device's pool when a launch is recorded, and until the graph is gone nothing else allocates from it.
    let replay = |_| unsafe { graph.replay() }.map_err(|error| failed(device, error));
    Ok(time(1, replay, || sync(device))? / queue as f64)
}

/// The median seconds of a launch, over queues of at most `queue` launches, each followed by a wait for all.
pub fn time(
    queue: usize,
    launch: impl Fn(usize) -> cube_gguf::Result<()>,
    sync: impl Fn() -> cube_gguf::Result<()>,
) -> Outcome<f64> {
    let mut next = 0;
    let mut repeat = |queue: usize| -> cube_gguf::Result<f64> {
        let start = Instant::now();
        for _ in 0..queue {
            launch(next)?;
            next += 1;
        }
        sync()?;
        Ok(start.elapsed().as_secs_f64() / queue as f64)
    };
    // The first launch may compile; the second's time bounds the length of the queue.
    repeat(1)?;
    let queue = ((QUEUE_SECONDS / repeat(1)?.max(1e-9)) as usize).clamp(1, queue);
    if queue > 1 {
        for _ in 0..3 {
            repeat(queue)?;
        }
    }
    let start = Instant::now();
    let mut times = Vec::new();
    while times.len() < REPEATS.start || start.elapsed().as_secs_f64() < BUDGET && times.len() < REPEATS.end {
        times.push(repeat(queue)?);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

#[cfg(test)]
mod tests {
    use cube_gguf::internals::FORMATS;

    use super::*;

    #[test]
    fn tokens_have_experts_that_differ() {
        let experts = Experts { count: 5, slots: 3 };
        let choices = experts.choices(40);
        assert_eq!(choices.len(), CHOICES);
        for ids in choices {
            let of_token = |ids: &[u32]| ids.iter().copied().collect::<BTreeSet<_>>().len();
            assert!(ids.chunks_exact(3).all(|ids| of_token(ids) == 3) && ids.iter().all(|&id| id < 5), "{ids:?}");
            assert_eq!((ids.len(), of_token(&ids)), (120, 5));
        }
    }

    #[test]
    fn random_blocks_are_ordinary() {
        for format in FORMATS {
            let case = Case { ty: format.ty, n: 2, k: 1024, experts: None };
            let data = case.data();
            assert_eq!(data.len(), case.bytes());
            let mut values = vec![0.0; 2 * 1024];
            format.dequantize_blocks(&data, &mut values);
            assert!(values.iter().all(|value| value.abs() < 1e4), "{}", format.ty);
            assert!(values.iter().any(|value| value.abs() > 1e-4), "{}", format.ty);
        }
    }
}
