//! Loads, and arithmetic whose every rounding is that of C.

use cubecl::prelude::*;

use crate::kernels::quantize::codes::largest_of;
use crate::kernels::vector::Words;

/// Four floats of a kernel.
pub type Four = Vector<f32, Const<4>>;

/// The vector `index` of the values, as f32.
#[cube]
pub fn load<X: Float>(x: &[Vector<X, Const<4>>], index: usize) -> Four {
    Four::cast_from(x[index])
}

/// The bit pattern of the largest magnitude in vector `index`.
#[cube]
pub fn largest<X: Float>(x: &[Vector<X, Const<4>>], index: usize) -> u32 {
    largest_of(load::<X>(x, index))
}

/// Products that are rounded before anything is added to them: a maximum between both keeps compilers from one instruction for
/// both, which would round once.
#[cube]
pub fn alone(products: Four) -> Four {
    max(products, Four::new(f32::MIN))
}

/// [`alone`] of one product.
#[cube]
pub fn product(a: f32, b: f32) -> f32 {
    max(a * b, f32::MIN)
}

/// The squares of values.
#[cube]
pub fn squares(values: &Sequence<Four>) -> Sequence<Four> {
    let mut squares = Sequence::<Four>::new();
    #[unroll]
    for i in 0..values.len() {
        squares.push(alone(*values.index(i) * *values.index(i)));
    }
    squares
}

/// Marks a fault where the largest magnitude, as a bit pattern, is that of a NaN or an infinity.
#[cube]
pub fn check_finite(largest: u32, faults: &mut [u32]) {
    if largest >= 0x7f80_0000 {
        faults[0] = 1u32;
    }
}

/// One over a scale; 0 for a scale of 0, or one so small that its inverse is no float.
#[cube]
pub fn inverse(scale: f32) -> f32 {
    let magnitude = u32::reinterpret(scale) & 0x7fff_ffff;
    // 2^-128 is the smallest float with an inverse.
    select(magnitude > 0x0020_0000, 1.0f32 / scale, 0.0f32)
}

/// `fours` vectors from `first` on, in registers.
#[cube]
pub fn load_all<X: Float>(x: &[Vector<X, Const<4>>], first: usize, #[comptime] fours: usize) -> Sequence<Four> {
    let mut values = Sequence::<Four>::new();
    #[unroll]
    for i in 0..fours {
        values.push(load::<X>(x, first + i));
    }
    values
}

/// The value of the largest magnitude, the first of several.
#[cube]
pub fn extreme(values: &Sequence<Four>) -> f32 {
    let mut largest = 0.0f32;
    let mut extreme = 0.0f32;
    #[unroll]
    for i in 0..values.len() {
        let four = *values.index(i);
        #[unroll]
        for j in 0..4usize {
            let value = four.extract(j);
            let magnitude = f32::abs(value);
            extreme = select(magnitude > largest, value, extreme);
            largest = max(largest, magnitude);
        }
    }
    extreme
}

/// The bit pattern of the largest magnitude.
#[cube]
pub fn largest_of_all(values: &Sequence<Four>) -> u32 {
    let mut largest = 0u32;
    #[unroll]
    for i in 0..values.len() {
        largest = max(largest, largest_of(*values.index(i)));
    }
    largest
}

/// The sum of the squares of the values of `fours` vectors, one after the other.
#[cube]
pub fn sum_of_squares<X: Float>(x: &[Vector<X, Const<4>>], first: usize, fours: usize) -> f32 {
    let mut sum = 0.0f32;
    for i in first..first + fours {
        let squares = alone(load::<X>(x, i) * load::<X>(x, i));
        #[unroll]
        for j in 0..4usize {
            sum += squares.extract(j);
        }
    }
    sum
}

/// The floats of vectors.
#[cube]
pub fn floats_of(vectors: &Sequence<Four>, #[comptime] len: usize) -> Array<f32> {
    let mut floats = Array::<f32>::new(len);
    #[unroll]
    for i in 0..len {
        floats[i] = vectors.index(comptime!(i / 4)).extract(comptime!(i % 4));
    }
    floats
}

/// Floats that units share, in registers.
#[cube]
pub fn floats_at(shared: &[f32], first: usize, #[comptime] count: usize) -> Array<f32> {
    let mut floats = Array::<f32>::new(count);
    #[unroll]
    for i in 0..count {
        floats[i] = shared[first + i];
    }
    floats
}

/// Nonnegative numbers rounded down, at most `most`.
#[cube]
pub fn floored(numbers: Four, #[comptime] most: u32) -> Words {
    min(Words::cast_from(numbers), Words::new(most))
}

/// Numbers of at most 127 to the nearest integer, halves away from zero, as signed bytes.
#[cube]
pub fn away_from_zero(numbers: Four) -> Words {
    let mut out = Words::empty();
    #[unroll]
    for i in 0..4usize {
        let number = numbers.extract(i);
        let magnitude = f32::abs(number);
        let whole = u32::cast_from(magnitude);
        let rounded = whole + u32::cast_from(magnitude - f32::cast_from(whole) >= 0.5f32);
        out.insert(i, select(number < 0.0f32, 0u32 - rounded, rounded) & 0xff);
    }
    out
}

/// The nearest integer, of halves the even one, within two million.
#[cube]
pub fn nearest(number: f32) -> i32 {
    // Clamping it also keeps the sum from being fused with a product before it.
    let within = clamp(number, -2_097_152.0f32, 2_097_152.0f32);
    (i32::reinterpret(within + 12_582_912.0f32) & 0x007f_ffff) - 0x0040_0000
}
