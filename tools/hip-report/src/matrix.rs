//! How fast a product on matrix units can be on real cards, by its hot loop: the time of the matrix instructions, and what of
//! the rest they cannot hide.
//!
//! A SIMD of RDNA starts one vector instruction at a time, those of its matrix unit among them: their cycles add up. On CDNA
//! one wave's matrix instructions run beside another's vector instructions. Shared memory is a compute unit's, 128 bytes a
//! cycle, and runs beside both. Neither latency nor barriers nor the launch's last cubes are in it: a bound from above.

use serde::Serialize;

use crate::roofline::{Card, RDNA};
use crate::row::{Arithmetic, Row};

/// Floating-point operations of a matrix instruction: 16 x 16 x 16 products and sums.
const OPERATIONS: f64 = 2.0 * 16.0 * 16.0 * 16.0;

/// Bytes a cycle of a compute unit's shared memory.
const LDS_BYTES: f64 = 128.0;

/// Bytes of a lane's access to shared memory: a matrix unit's operands come 16 at a time.
const LANE_BYTES: f64 = 16.0;

/// What a product's rate is at most, on a card.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MatrixPrediction {
    pub card: &'static str,
    pub arch: &'static str,
    pub format: String,
    pub configuration: String,
    /// Cycles of a SIMD for a wave's trip of the hot loop, by what they are for.
    pub matrix_cycles: f64,
    pub valu_cycles: f64,
    pub lds_cycles: f64,
    pub tflops: f64,
    /// The card's own rate for bf16.
    pub peak: f64,
    /// What takes longest: `matrix`, `valu` or `lds`.
    pub bound: &'static str,
}

impl MatrixPrediction {
    /// The prediction for a kernel's row, which must be of the card's architecture; `None` of what has no matrix
    /// instructions.
    pub fn of(card: &Card, row: &Row) -> Option<Self> {
        if row.input.arithmetic != Some(Arithmetic::MatrixUnits) || row.error.is_some() || row.hot.matrix == 0 {
            return None;
        }
        let simds = f64::from(card.compute_units * card.simds.per_compute_unit);
        let matrix = OPERATIONS * simds * card.clock / (card.matrix_tflops * 1e6);
        let matrix_cycles = f64::from(row.hot.matrix) * matrix;
        let others = f64::from(row.hot.valu.saturating_sub(row.hot.matrix));
        let valu_cycles = others * f64::from(row.wave_size.div_ceil(card.simds.lanes));
        let access = LANE_BYTES * f64::from(row.wave_size) / LDS_BYTES;
        let lds_cycles = f64::from(row.hot.lds) * access * f64::from(card.simds.per_compute_unit);
        let issued = if card.simds == RDNA { matrix_cycles + valu_cycles } else { matrix_cycles.max(valu_cycles) };
        let cycles = issued.max(lds_cycles);
        let bound = match () {
            () if lds_cycles >= issued => "lds",
            () if valu_cycles > matrix_cycles => "valu",
            () => "matrix",
        };
        Some(Self {
            card: card.name,
            arch: card.arch,
            format: row.input.format.clone(),
            configuration: row.input.configuration.clone(),
            matrix_cycles,
            valu_cycles,
            lds_cycles,
            tflops: card.matrix_tflops * matrix_cycles / cycles,
            peak: card.matrix_tflops,
            bound,
        })
    }
}

/// Formats whose products of many tokens matrix instructions are to bind, on every card.
const MATRIX_BOUND: [&str; 3] = ["q4_0", "q8_0", "q4_k"];

/// The configuration of the largest tile.
const MANY: &str = "128 tokens";

/// A sentence for each prediction of many tokens that matrix instructions should bind and do not.
pub fn violations(predictions: &[MatrixPrediction]) -> Vec<String> {
    let is_held = |prediction: &&MatrixPrediction| {
        MATRIX_BOUND.contains(&prediction.format.as_str()) && prediction.configuration.ends_with(MANY)
    };
    let off = predictions.iter().filter(is_held).filter(|prediction| prediction.bound != "matrix");
    let sentence = |prediction: &MatrixPrediction| {
        let MatrixPrediction { card, format, matrix_cycles, valu_cycles, lds_cycles, .. } = prediction;
        format!(
            "{card} {format}: {valu_cycles:.0} cycles of vector instructions and {lds_cycles:.0} of shared memory, \
             {matrix_cycles:.0} of matrix instructions"
        )
    };
    off.map(sentence).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hot_loop::Counts;
    use crate::roofline::CARDS;
    use crate::row::tests::matvec;

    fn row(arch: &str, wave_size: u32, [matrix, valu, lds]: [u32; 3]) -> Row {
        let mut row = matvec(arch);
        row.input.operation = "matmul".to_owned();
        row.input.format = "q4_0".to_owned();
        row.input.configuration = "f32, 128 tokens".to_owned();
        row.input.arithmetic = Some(Arithmetic::MatrixUnits);
        Row { wave_size, hot: Counts { matrix, valu: valu + matrix, lds, ..row.hot.clone() }, ..row }
    }

    fn of(arch: &str, wave_size: u32, counts: [u32; 3]) -> MatrixPrediction {
        let card = CARDS.iter().find(|card| card.arch == arch).unwrap();
        MatrixPrediction::of(card, &row(arch, wave_size, counts)).unwrap()
    }

    #[test]
    fn an_instruction_takes_the_cycles_of_its_architecture() {
        // AMD's instruction set manuals: 32 cycles on RDNA3 and CDNA2, 16 on RDNA4 and CDNA3.
        for (arch, wave_size, cycles) in
            [("gfx1100", 32, 32.0), ("gfx1201", 32, 16.0), ("gfx90a", 64, 32.0), ("gfx942", 64, 16.0)]
        {
            let found = of(arch, wave_size, [1, 0, 0]).matrix_cycles;
            assert!((found - cycles).abs() < 0.1, "{arch}: {found}");
        }
    }

    #[test]
    fn vector_instructions_add_up_on_rdna_and_run_beside_on_cdna() {
        let rdna = of("gfx1100", 32, [32, 1024, 0]);
        assert!((rdna.tflops / rdna.peak - 0.5).abs() < 0.01 && rdna.bound == "matrix", "{rdna:?}");
        let cdna = of("gfx942", 64, [64, 255, 0]);
        assert!((cdna.tflops / cdna.peak - 1.0).abs() < 0.01 && cdna.bound == "matrix", "{cdna:?}");
        let slow = of("gfx942", 64, [64, 512, 0]);
        assert!((slow.tflops / slow.peak - 0.5).abs() < 0.01 && slow.bound == "valu", "{slow:?}");
    }

    #[test]
    fn shared_memory_binds_where_it_takes_longest() {
        // 512 bytes of a wave are 4 cycles of the compute unit, which two SIMDs share.
        let prediction = of("gfx1100", 32, [1, 0, 8]);
        assert_eq!((prediction.lds_cycles, prediction.bound), (64.0, "lds"));
        assert_eq!(violations(&[prediction]).len(), 1);
    }

    #[test]
    fn what_has_no_matrix_instructions_has_no_prediction() {
        assert!(MatrixPrediction::of(&CARDS[1], &matvec("gfx1100")).is_none());
    }
}
