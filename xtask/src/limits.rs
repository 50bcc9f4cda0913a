//! What the circles of checks may cost, so that a test that costs minutes is seen when it is added.
//!
//! Kernels are counted, and more of them than here fail the circle: they are the same on every machine, and their
//! compilation is most of what a step takes. Seconds depend on the machine and only warn.

use std::time::Duration;

/// The commands, from the smallest to the largest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Circle {
    Check,
    Test,
    Ci,
    Full,
}

/// Steps that compile kernels.
pub const TABLE: &str = "table";
pub const STAND_IN: &str = "table, HIP stand-in";
pub const REPORT: &str = "HIP report";

/// Kernels that a step compiles at the most. What raises one of them belongs into the commit that needs it.
const KERNELS: &[(Circle, &str, u64)] = &[
    (Circle::Check, TABLE, 360),
    (Circle::Check, REPORT, 320),
    (Circle::Test, TABLE, 610),
    (Circle::Test, STAND_IN, 700),
    (Circle::Ci, TABLE, 610),
    (Circle::Ci, STAND_IN, 700),
    (Circle::Ci, REPORT, 2250),
];

/// Seconds of a circle on a machine of two cores that does nothing else.
const SECONDS: &[(Circle, u64)] = &[(Circle::Check, 120), (Circle::Test, 360), (Circle::Ci, 900)];

/// A sentence for each step over its limit.
pub fn broken<'a>(circle: Circle, steps: impl Iterator<Item = (&'a str, u64)>) -> Vec<String> {
    let over = |(step, kernels): (&str, u64)| {
        let &(_, _, limit) = KERNELS.iter().find(|&&(of, name, _)| of == circle && name == step)?;
        (kernels > limit)
            .then(|| format!("{step}: {kernels} kernels compiled, of {limit} at most (xtask/src/limits.rs)"))
    };
    steps.filter_map(over).collect()
}

/// A sentence where the circle took longer than it should.
pub fn slow(circle: Circle, took: Duration) -> Option<String> {
    let &(_, limit) = SECONDS.iter().find(|&&(of, _)| of == circle)?;
    let took = took.as_secs();
    (took > limit).then(|| format!("this took {took} s, of {limit} s on two idle cores (xtask/src/limits.rs)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_kernels_than_the_limit_are_told_and_as_many_are_not() {
        for &(circle, step, limit) in KERNELS {
            assert!(broken(circle, [(step, limit), ("another", u64::MAX)].into_iter()).is_empty());
            let told = broken(circle, [(step, limit + 1)].into_iter());
            assert!(told.len() == 1 && told[0].contains(step) && told[0].contains(&limit.to_string()), "{told:?}");
        }
    }

    #[test]
    fn a_slow_circle_is_told() {
        assert!(slow(Circle::Check, Duration::from_secs(120)).is_none());
        assert!(slow(Circle::Check, Duration::from_secs(121)).unwrap().contains("121 s, of 120 s"));
        assert!(slow(Circle::Full, Duration::from_secs(1 << 20)).is_none());
    }
}
