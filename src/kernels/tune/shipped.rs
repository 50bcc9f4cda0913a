//! The tables that the repository ships; `cargo xtask tune --ship` writes them and this list.

/// Tables by architecture: the name that [`Table`](super::Table) makes of a device's, and the table's JSON.
pub const SHIPPED: &[(&str, &str)] = &[];
