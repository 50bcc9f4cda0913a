//! The files of `tests/fixtures`.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use cube_gguf::gguf::{Endian, Files, GgmlType};

/// Blocks of one format and the values that the format's reference decodes from them.
pub struct Fixture {
    pub ty: GgmlType,
    pub name: String,
    /// `quantized`, `random` and `special`: see `tests/fixtures/README.md`.
    pub tensors: Vec<Case>,
    /// The same in big-endian files, where the format has one.
    pub big_endian: Vec<Case>,
}

pub struct Case {
    pub name: String,
    pub endian: Endian,
    pub n: usize,
    pub k: usize,
    pub data: Vec<u8>,
    pub expected: Vec<f32>,
}

impl Fixture {
    pub fn load(ty: GgmlType) -> Self {
        let name = ty.name().to_lowercase();
        let file = |suffix: &str| {
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(format!("{name}{suffix}.gguf"))
        };
        let tensors = cases(&file(""), ty);
        assert_eq!(tensors.len(), 3, "{name}");
        let big = file(".be");
        let big_endian = if big.exists() { cases(&big, ty) } else { Vec::new() };
        Self { ty, name, tensors, big_endian }
    }

    pub fn case(&self, name: &str) -> &Case {
        self.tensors.iter().find(|case| case.name == name).unwrap()
    }
}

impl Case {
    pub fn row(&self, row: usize) -> &[f32] {
        &self.expected[row * self.k..][..self.k]
    }

    /// Some of the rows, as a matrix.
    pub fn rows(&self, rows: &[usize]) -> Self {
        let bytes = self.data.len() / self.n;
        Self {
            name: format!("{} of {}", rows.len(), self.name),
            endian: self.endian,
            n: rows.len(),
            k: self.k,
            data: rows.iter().flat_map(|row| &self.data[row * bytes..][..bytes]).copied().collect(),
            expected: rows.iter().flat_map(|&row| self.row(row)).copied().collect(),
        }
    }

    /// `n` rows of at least `k` values in whole rows of this case's, which come one after the other again and again.
    pub fn repeated(&self, n: usize, k: usize) -> Self {
        let times = k.div_ceil(self.k);
        let bytes = self.data.len() / self.n;
        let rows = || (0..n * times).map(|i| i % self.n);
        Self {
            name: format!("{} {n} x {}", self.name, times * self.k),
            endian: self.endian,
            n,
            k: times * self.k,
            data: rows().flat_map(|row| &self.data[row * bytes..][..bytes]).copied().collect(),
            expected: rows().flat_map(|row| self.row(row)).copied().collect(),
        }
    }
}

fn cases(path: &Path, ty: GgmlType) -> Vec<Case> {
    let files = Files::open(path).unwrap();
    let gguf = files.parse().unwrap();
    let inputs = gguf.tensors().filter(|tensor| !tensor.name().ends_with(".expected"));
    let case = |tensor: cube_gguf::gguf::TensorInfo<'_>| {
        assert_eq!(tensor.dtype().unwrap(), ty);
        let expected = gguf.tensor(&format!("{}.expected", tensor.name())).unwrap();
        let float = |bytes: &[u8]| match expected.endian() {
            Endian::Little => f32::from_le_bytes(bytes.try_into().unwrap()),
            Endian::Big => f32::from_be_bytes(bytes.try_into().unwrap()),
        };
        let shape = tensor.shape();
        let k = *shape.last().unwrap();
        Case {
            name: tensor.name().to_owned(),
            endian: tensor.endian(),
            n: shape.iter().product::<usize>() / k,
            k,
            data: tensor.data().unwrap().to_vec(),
            expected: expected.data().unwrap().chunks_exact(4).map(float).collect(),
        }
    };
    inputs.map(case).collect()
}

/// What ggml's reference quantizer makes of values.
pub struct Quantized {
    /// The values, as those that are expected.
    pub source: Case,
    /// Without importances, where the format's quantizer does without.
    pub blocks: Option<Vec<u8>>,
    /// By [`importance()`], where the format's quantizer minds it.
    pub weighted: Option<Vec<u8>>,
}

/// Importances of the columns of the values to quantize.
pub fn importance() -> Vec<f32> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quantized/sources.gguf");
    let files = Files::open(path).unwrap();
    floats(files.parse().unwrap().tensor("importance").unwrap().data().unwrap())
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Values, and what ggml's reference quantizer makes of them.
pub fn quantized(ty: GgmlType) -> Vec<Quantized> {
    let file = |name: &str| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quantized");
        Files::open(folder.join(format!("{name}.gguf"))).unwrap()
    };
    let (sources, files) = (file("sources"), file(&ty.name().to_lowercase()));
    let (sources, quantized) = (sources.parse().unwrap(), files.parse().unwrap());
    let of_source = |source: cube_gguf::gguf::TensorInfo<'_>| {
        let (n, k) = source.matrix();
        let data = source.data().unwrap().to_vec();
        let expected = floats(&data);
        let blocks = |name: &str| {
            let blocks = quantized.tensor(name).ok()?;
            assert_eq!((blocks.dtype().unwrap(), blocks.matrix()), (ty, (n, k)));
            Some(blocks.data().unwrap().to_vec())
        };
        let source = Case { name: source.name().to_owned(), endian: Endian::Little, n, k, data, expected };
        let weighted = blocks(&format!("{}.weighted", source.name));
        Quantized { blocks: blocks(&source.name), source, weighted }
    };
    let all: Vec<_> = sources.tensors().filter(|source| source.name() != "importance").map(of_source).collect();
    assert!(!all.is_empty());
    all
}

static COMPARES: AtomicBool = AtomicBool::new(true);

/// From here on what kernels wrote is not compared with what they should have written. All else is checked: errors,
/// lengths, and that everything is compiled, launched and read.
pub fn compare_nothing() {
    COMPARES.store(false, Ordering::Relaxed);
}

/// Whether what kernels wrote is compared.
pub fn compares() -> bool {
    COMPARES.load(Ordering::Relaxed)
}

/// Equal bytes.
#[track_caller]
pub fn assert_bytes(actual: &[u8], expected: &[u8], what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    assert!(!compares() || actual == expected, "{what}");
}

/// Equal bits, but that one NaN is as good as another.
#[track_caller]
pub fn assert_same(actual: &[f32], expected: &[f32], what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    if !compares() {
        return;
    }
    let differs = |(a, e): (&f32, &f32)| a.to_bits() != e.to_bits() && !(a.is_nan() && e.is_nan());
    if let Some(i) = actual.iter().zip(expected).position(differs) {
        let count = actual.iter().zip(expected).filter(|&pair| differs(pair)).count();
        panic!("{what}: value {i} is {:e}, not {:e}; {count} of {} differ", actual[i], expected[i], expected.len());
    }
}

/// Numbers in -1..1 that are the same in every run: a linear congruential generator's upper bits.
pub fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}
