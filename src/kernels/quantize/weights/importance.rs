//! Importances of columns, and the weights that they give to errors.

use cubecl::prelude::*;

use super::rounding::{Four, alone, squares};

/// The importances of a sub-block's columns.
#[derive(CubeType)]
pub struct Importance<'a> {
    pub values: &'a [Four],
    /// The vector of the first column.
    pub first: usize,
    /// What its values' squares are measured by, as ggml does: the mean square of their block or row, or twice that.
    pub variance: f32,
}

#[cube]
impl<'a> Importance<'a> {
    pub fn new(values: &'a [Four], first: usize, variance: f32) -> Importance<'a> {
        Importance::<'a> { values, first, variance }
    }
}

/// The weights of the errors of values by the importances of their columns.
#[cube]
pub fn weights_of_columns(values: &Sequence<Four>, importance: &Importance<'_>) -> Sequence<Four> {
    let squares = squares(values);
    let mut weights = Sequence::<Four>::new();
    #[unroll]
    for i in 0..values.len() {
        let deviations = Four::sqrt(Four::new(importance.variance) + *squares.index(i));
        weights.push(alone(importance.values[importance.first + i] * deviations));
    }
    weights
}
