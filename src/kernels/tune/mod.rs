//! What is chosen about an operation without changing what it computes: a heuristic that goes by the device's properties,
//! and a table of what was measured, which overrides it.

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
pub use select::{Selection, for_row};
pub use table::{Entry, Table};
