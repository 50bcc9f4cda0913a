//! The tables that the repository ships; `cargo xtask tune --ship` writes them and this list.

/// Names of architectures, as [`Table`](super::Table) makes them of a device's, and what was found for each.
pub const SHIPPED: &[(&str, &str)] = &[];
