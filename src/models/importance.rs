//! [`Importance`]: how large the values are that the columns of a model's matrices are multiplied by.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cubecl::client::Client;
use cubecl::server::Handle;

use crate::kernels::decoder::squares::Squares;
use crate::kernels::floats::FloatType;
use crate::kernels::routing::Route;
use crate::storage::CubeDevice;

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

/// What the matrices of a session have been multiplied by, on its device.
#[derive(Debug, Default)]
pub(super) struct Observer {
    /// By the first of the tensors that are multiplied by the same rows; behind a lock, as all that a step goes through has it.
    inputs: Mutex<BTreeMap<Arc<str>, Inputs>>,
}

/// Rows that some tensors are multiplied by.
#[derive(Debug)]
struct Inputs {
    tensors: Vec<Arc<str>>,
    squares: Squares,
}

impl Observer {
    /// Adds rows of so many columns that tensors are multiplied by. One that several layers are cut from is multiplied once.
    pub fn add(&self, client: &Client, tensors: &[&Arc<str>], x: &Handle, [rows, columns]: [usize; 2]) {
        self.squares(client, tensors, [1, columns]).add(client, x, rows);
    }

    /// Adds rows of so many columns that stacks of experts are multiplied by, pair by pair.
    pub fn add_pairs(&self, client: &Client, stacks: &[&Arc<str>], x: &Handle, columns: usize, route: Route<'_>) {
        self.squares(client, stacks, [route.routing.experts(), columns]).add_pairs(client, x, route);
    }

    /// The sums of tensors of so many matrices and columns.
    fn squares(&self, client: &Client, tensors: &[&Arc<str>], [matrices, columns]: [usize; 2]) -> Squares {
        let new = || {
            let mut tensors: Vec<Arc<str>> = tensors.iter().copied().cloned().collect();
            tensors.dedup();
            Inputs { tensors, squares: Squares::new(client, matrices, columns) }
        };
        self.inputs().entry(tensors[0].clone()).or_insert_with(new).squares.clone()
    }

    fn inputs(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Inputs>> {
        self.inputs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sums of all tensors, in the order of their names.
    pub fn read(&self, device: &CubeDevice) -> crate::Result<Vec<Importance>> {
        let mut all = Vec::new();
        for Inputs { tensors, squares } in self.inputs().values() {
            let &Squares { matrices, columns, .. } = squares;
            let sums = FloatType::F32.to_f32(&device.read(squares.sums.clone())?, matrices * columns);
            let counts = device.read(squares.counts.clone())?;
            let counts = counts.chunks_exact(4).take(matrices).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
            let counts: Vec<u32> = counts.collect();
            let of =
                |name: &Arc<str>| Importance { name: name.to_string(), sums: sums.clone(), counts: counts.clone() };
            all.extend(tensors.iter().map(of));
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }
}
