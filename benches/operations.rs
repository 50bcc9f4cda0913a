//! Times the operations on one device: `cargo bench --package benches --features hip --bench operations`, or with
//! `-- matvec` one group of them.
//!
//! The device is the best one, or the one that `CUBE_GGUF_BENCH_DEVICE` names (`cube-cpu`, `rocm:0`). These benches
//! show what a change does to this crate's own times; their weights may stay in a cache. Peers are compared by
//! `cargo xtask bench`.

use std::error::Error;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput};
use cube_gguf::cubecl::server::Handle;
use cube_gguf::gguf::Endian;
use cube_gguf::{Activations, Arithmetic, Backend, CubeDevice, Device, DeviceTensor, FloatType, GgmlType};

/// The environment variable that names the device.
const VARIABLE: &str = "CUBE_GGUF_BENCH_DEVICE";
const TYPES: [GgmlType; 3] = [GgmlType::Q4_0, GgmlType::Q4K, GgmlType::F16];
/// Rows and columns of the weights on a GPU, and on a device that is the host.
const GPU_SHAPE: (usize, usize) = (4096, 4096);
const SOFTWARE_SHAPE: (usize, usize) = (512, 1024);

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Weights as GGUF blocks and on the device.
struct Matrix {
    data: Vec<u8>,
    tensor: DeviceTensor,
}

fn main() -> Outcome<()> {
    let device = device()?;
    let shape = if device.is_software() { SOFTWARE_SHAPE } else { GPU_SHAPE };
    eprintln!("{device}: weights of {} x {}", shape.0, shape.1);
    let matrices = TYPES.into_iter().map(|ty| Matrix::new(&device, ty, shape)).collect::<Outcome<Vec<_>>>()?;

    let mut criterion = benches::criterion();
    dequantize(&mut criterion, &matrices);
    products(&mut criterion, "matvec", &matrices, &[1, 8])?;
    products(&mut criterion, "matmul", &matrices, &[64])?;
    upload(&mut criterion, &matrices);
    criterion.final_summary();
    Ok(())
}

/// The device to time: a device of CubeCL, also where the best one is the host.
fn device() -> cube_gguf::Result<CubeDevice> {
    let device = match std::env::var(VARIABLE) {
        Ok(name) => name.parse()?,
        Err(_) => Device::best(),
    };
    match device {
        Device::Cube(device) => Ok(device),
        Device::Cpu => CubeDevice::new(Backend::CubeCpu, 0),
    }
}

impl Matrix {
    /// Equal bytes, which in each of the formats are small finite values: times do not depend on them.
    fn new(device: &CubeDevice, ty: GgmlType, (n, k): (usize, usize)) -> Outcome<Self> {
        let row_bytes = ty.row_bytes(k).ok_or_else(|| format!("rows of {ty} cannot have {k} columns"))?;
        let data = vec![0x11; n * row_bytes];
        let tensor = DeviceTensor::from_gguf(device, ty, n, k, &data, Endian::Little)?;
        Ok(Self { data, tensor })
    }

    fn name(&self) -> String {
        self.tensor.ty().name().to_lowercase()
    }

    fn throughput(&self) -> Throughput {
        Throughput::Bytes(self.data.len() as u64)
    }

    /// Reads a result back: a launch that failed is reported there.
    fn read(&self, handle: Handle) -> Outcome<()> {
        self.tensor.device().client().read_one(handle).map_err(|error| error.to_string())?;
        Ok(())
    }
}

fn dequantize(criterion: &mut Criterion, matrices: &[Matrix]) {
    let mut group = criterion.benchmark_group("dequantize");
    for matrix in matrices {
        group.throughput(matrix.throughput());
        let queue = || Ok(matrix.tensor.dequantize_on_device(FloatType::F32));
        let id = BenchmarkId::from_parameter(matrix.name());
        bench(&mut group, id, matrix.tensor.device(), queue, |values| matrix.read(values));
    }
    group.finish();
}

/// Products with each of some numbers of tokens.
fn products(criterion: &mut Criterion, name: &str, matrices: &[Matrix], tokens: &[usize]) -> Outcome<()> {
    let mut group = criterion.benchmark_group(name);
    for matrix in matrices {
        group.throughput(matrix.throughput());
        let (device, k) = (matrix.tensor.device(), matrix.tensor.k());
        for &tokens in tokens {
            let x: Vec<u8> = (0..tokens * k).flat_map(|i| ((i % 7) as f32 - 3.0).to_le_bytes()).collect();
            let x = device.client().create_from_slice(&x);
            let x = Activations::contiguous(x, FloatType::F32, vec![tokens, k])?;
            let queue = || matrix.tensor.matmul_on_device(&x, Arithmetic::Auto);
            let id = BenchmarkId::new(matrix.name(), tokens);
            bench(&mut group, id, device, queue, |y| matrix.read(y));
        }
    }
    group.finish();
    Ok(())
}

fn upload(criterion: &mut Criterion, matrices: &[Matrix]) {
    let mut group = criterion.benchmark_group("upload");
    for matrix in matrices {
        group.throughput(matrix.throughput());
        let Matrix { data, tensor } = matrix;
        let device = tensor.device();
        let queue = || DeviceTensor::from_gguf(device, tensor.ty(), tensor.n(), tensor.k(), data, Endian::Little);
        let check = |tensor: DeviceTensor| -> Outcome<()> { Ok(tensor.data().map(drop)?) };
        bench(&mut group, BenchmarkId::from_parameter(matrix.name()), device, queue, check);
    }
    group.finish();
}

/// Times an operation that `queue` puts on the device's queue. `check` says whether its result is there.
fn bench<T>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    id: BenchmarkId,
    device: &CubeDevice,
    queue: impl Fn() -> cube_gguf::Result<T>,
    check: impl Fn(T) -> Outcome<()>,
) {
    let first = || -> Outcome<()> { check(queue()?) };
    // The device works while the next operations are queued: what is timed is all of them and the wait for the last.
    let all = |iters: u64| -> Outcome<Duration> {
        let start = Instant::now();
        for _ in 0..iters {
            queue()?;
        }
        sync(device)?;
        Ok(start.elapsed())
    };
    group.bench_function(id, |bencher| {
        // The first operation compiles its kernels.
        first().unwrap_or_else(|error| panic!("{device}: {error}"));
        bencher.iter_custom(|iters| all(iters).unwrap_or_else(|error| panic!("{device}: {error}")));
    });
}

/// Waits for all that was queued on a device.
fn sync(device: &CubeDevice) -> Outcome<()> {
    Ok(cube_gguf::cubecl::future::block_on(device.client().sync()).map_err(|error| error.to_string())?)
}
