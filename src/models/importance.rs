//! [`Importance`]: how large the values are that the columns of a model's matrices are multiplied by.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::experts::Pairs;
#[cfg(feature = "candle")]
use super::host;
use super::step::{Engine, On, Routed, Rows, Step};
use crate::kernels::decoder::squares::Squares;
use crate::kernels::floats::FloatType;
use crate::kernels::routing::Route;

/// What a tensor of a model was multiplied by in a [`Session`](super::Session): an importance matrix's entry.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Importance {
    /// The tensor's name in the file.
    pub name: String,
    /// Of each column, the sum of the squares of the values that it was multiplied by; a row of columns for each of the tensor's
    /// matrices, which are the experts of a stack.
    pub sums: Vec<f32>,
    /// Of each of its matrices, the rows that it was multiplied by: what makes means of the sums.
    pub counts: Vec<u32>,
}

/// What the matrices of a session have been multiplied by.
#[derive(Debug, Default)]
pub(super) struct Observer {
    /// By the first of the tensors that are multiplied by the same rows; behind a lock, as all that a step goes through has it.
    inputs: Mutex<BTreeMap<Arc<str>, Inputs>>,
}

/// Rows that some tensors are multiplied by.
#[derive(Debug)]
struct Inputs {
    tensors: Vec<Arc<str>>,
    squares: InputSquares,
}

/// The sums of their squares, where the model computes.
#[derive(Debug)]
enum InputSquares {
    Device(Squares),
    #[cfg(feature = "candle")]
    Host {
        /// A row for each matrix.
        sums: Vec<f32>,
        counts: Vec<u32>,
    },
}

impl InputSquares {
    /// Of so many matrices and columns.
    fn new(step: &Step<'_>, [matrices, columns]: [usize; 2]) -> Self {
        match step.on {
            On::Device(on) => Self::Device(Squares::new(on.client, matrices, columns)),
            #[cfg(feature = "candle")]
            On::Host(_) => Self::Host { sums: vec![0.0; matrices * columns], counts: vec![0; matrices] },
        }
    }

    fn read(&self, engine: &Engine) -> crate::Result<(Vec<f32>, Vec<u32>)> {
        match self {
            Self::Device(Squares { sums, counts, matrices, columns }) => {
                let device = engine.device();
                let sums = FloatType::F32.to_f32(&device.read(sums.clone())?, matrices * columns);
                let counts = device.read(counts.clone())?;
                let words = counts.chunks_exact(4).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
                Ok((sums, words.take(*matrices).collect()))
            }
            #[cfg(feature = "candle")]
            Self::Host { sums, counts } => Ok((sums.clone(), counts.clone())),
        }
    }
}

impl Observer {
    /// Adds rows that tensors are multiplied by. One that several layers are cut from is multiplied once.
    pub fn add(&self, step: &Step<'_>, tensors: &[&Arc<str>], x: &Rows) {
        self.with(step, tensors, [1, x.width], |squares| match (squares, step.on) {
            (InputSquares::Device(squares), On::Device(on)) => squares.add(on.client, x.handle(), step.tokens),
            #[cfg(feature = "candle")]
            (InputSquares::Host { sums, counts }, _) => {
                host::add_squares(sums, x.slice().chunks_exact(x.width));
                counts[0] += step.tokens as u32;
            }
            #[cfg(feature = "candle")]
            _ => unreachable!("sums are where the model computes"),
        });
    }

    /// Adds rows that stacks of experts are multiplied by, pair by pair, where `of` has the rows.
    pub fn add_pairs(&self, of: &Step<'_>, stacks: &[&Arc<str>], x: &Rows, pairs: &Pairs<'_>) {
        let sharers = pairs.each.tokens / of.tokens;
        self.with(of, stacks, [pairs.choice.experts, x.width], |squares| match (squares, of.on, &pairs.routed) {
            (InputSquares::Device(squares), On::Device(on), Routed::Device(routing)) => {
                squares.add_pairs(on.client, x.handle(), Route { routing, sharers });
            }
            #[cfg(feature = "candle")]
            (InputSquares::Host { sums, counts }, _, Routed::Host(ids)) => {
                for (pair, &id) in ids.iter().enumerate() {
                    let row = &x.slice()[pair / sharers * x.width..][..x.width];
                    host::add_squares(&mut sums[id as usize * x.width..][..x.width], [row].into_iter());
                    counts[id as usize] += 1;
                }
            }
            #[cfg(feature = "candle")]
            _ => unreachable!("sums are where the model computes"),
        });
    }

    /// Changes the sums of tensors of so many matrices and columns.
    fn with(&self, step: &Step<'_>, tensors: &[&Arc<str>], shape: [usize; 2], change: impl FnOnce(&mut InputSquares)) {
        let new = || {
            let mut tensors: Vec<Arc<str>> = tensors.iter().copied().cloned().collect();
            tensors.dedup();
            Inputs { tensors, squares: InputSquares::new(step, shape) }
        };
        change(&mut self.inputs().entry(tensors[0].clone()).or_insert_with(new).squares);
    }

    fn inputs(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Inputs>> {
        self.inputs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sums of all tensors, in the order of their names.
    pub fn read(&self, engine: &Engine) -> crate::Result<Vec<Importance>> {
        let mut all = Vec::new();
        for Inputs { tensors, squares } in self.inputs().values() {
            let (sums, counts) = squares.read(engine)?;
            let of =
                |name: &Arc<str>| Importance { name: name.to_string(), sums: sums.clone(), counts: counts.clone() };
            all.extend(tensors.iter().map(of));
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }
}
