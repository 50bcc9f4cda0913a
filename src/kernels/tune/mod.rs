//! The choice of settings, which do not change what an operation computes: a heuristic by the device's properties, and a
//! table of measurements that overrides it.

mod candidates;
#[cfg(test)]
mod devices;
#[cfg(test)]
mod golden;
mod heuristic;
mod select;
mod shipped;
mod table;

pub use candidates::neighbours;
pub use heuristic::heuristic;
pub use select::{Selection, for_row, untuned};
pub use table::{Entry, Table};
