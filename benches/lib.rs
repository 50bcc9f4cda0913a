//! What the benches share.

use std::time::Duration;

use criterion::Criterion;

/// A short run, as the arguments of `cargo bench` change it.
pub fn criterion() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .without_plots()
        .configure_from_args()
}
