//! What every kernel is held to, and the exceptions with their reasons.

use std::fmt;

use crate::row::{Arithmetic, MATVEC, Row};

/// Waves a SIMD that a matvec on RDNA3 has at least, to hide the latency of its loads.
const MATVEC_WAVES: f64 = 8.0;

/// A rule for rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// Every kernel compiles, and its code can be read.
    Compiles,
    /// No kernel keeps anything in scratch memory, or spills a register.
    Registers,
    /// A workgroup fits where it is to run.
    Fits,
    /// A matvec's weight codes come 16 bytes at a time.
    WideLoads,
    /// A matvec on RDNA3 has [`MATVEC_WAVES`].
    Waves,
    /// All products of an int8 matvec are dot products of four bytes, where there is such an instruction.
    Dot,
    /// A kernel for matrix units uses them.
    Matrix,
}

const BUDGETS: [Budget; 7] =
    [Budget::Compiles, Budget::Registers, Budget::Fits, Budget::WideLoads, Budget::Waves, Budget::Dot, Budget::Matrix];

/// Rows that a budget leaves out.
#[derive(Clone, Copy, Debug)]
pub struct Exception {
    pub budget: Budget,
    /// What the architecture, the operation, the format and the configuration begin with.
    pub rows: [&'static str; 4],
    pub reason: &'static str,
}

/// Every exception that the project makes.
pub const EXCEPTIONS: &[Exception] = &[];

impl Exception {
    fn covers(&self, budget: Budget, row: &Row) -> bool {
        let places = [&row.input.arch, &row.input.operation, &row.input.format, &row.input.configuration];
        budget == self.budget && self.rows.iter().zip(places).all(|(start, place)| place.starts_with(start))
    }
}

impl fmt::Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the exception from {:?} for {:?} ({})", self.budget, self.rows, self.reason)
    }
}

/// Whether the architecture has a dot product of four bytes, `v_dot4`: LLVM's features dot1-insts and dot8-insts.
pub fn has_dot4(arch: &str) -> bool {
    let all_of = ["gfx94", "gfx103", "gfx11", "gfx12"];
    ["gfx906", "gfx908", "gfx90a", "gfx950", "gfx1011", "gfx1012"].contains(&arch)
        || all_of.iter().any(|family| arch.starts_with(family))
}

/// Whether the architecture has `v_wmma`, or `v_mfma` of bf16 as CDNA2 and later ones have it.
pub fn has_matrix_unit(arch: &str) -> bool {
    ["gfx90a", "gfx94", "gfx11", "gfx12"].iter().any(|family| arch.starts_with(family))
}

/// A sentence for each budget that a row breaks, and for each exception that no row needs.
pub fn violations(rows: &[Row], exceptions: &[Exception]) -> Vec<String> {
    let mut found = Vec::new();
    let mut needed = vec![false; exceptions.len()];
    for row in rows {
        for budget in BUDGETS {
            let Some(what) = budget.violation(row) else { continue };
            match exceptions.iter().position(|exception| exception.covers(budget, row)) {
                Some(exception) => needed[exception] = true,
                None => found.push(format!("{}: {what}", row.place())),
            }
        }
    }
    let idle = exceptions.iter().zip(needed).filter(|(_, needed)| !needed);
    found.extend(idle.map(|(exception, _)| format!("{exception} covers no row that needs it")));
    found
}

impl Budget {
    /// How the row breaks it.
    fn violation(self, row: &Row) -> Option<String> {
        if let Some(error) = &row.error {
            return (self == Self::Compiles).then(|| error.clone());
        }
        let arch = row.input.arch.as_str();
        let matvec = row.input.operation == MATVEC;
        let (waves, limit) = (row.waves_per_simd, &row.occupancy_limit);
        match self {
            Self::Compiles => None,
            Self::Registers => {
                let Row { scratch_bytes, spilled_vgprs, spilled_sgprs, .. } = row;
                (scratch_bytes + spilled_vgprs + spilled_sgprs > 0).then(|| {
                    format!("{scratch_bytes} bytes of scratch, {spilled_vgprs} VGPRs and {spilled_sgprs} SGPRs spilled")
                })
            }
            Self::Fits => (waves == 0.0).then(|| {
                let (vgprs, lds, group) = (row.vgprs, row.lds_bytes, row.input.workgroup_size);
                format!("{vgprs} VGPRs and {lds} bytes of LDS leave no room for a workgroup of {group} ({limit})")
            }),
            Self::WideLoads => {
                let wanted = row.input.wide_bytes_per_trip;
                (matvec && row.wide_bytes < f64::from(wanted)).then(|| {
                    let (bytes, loads) = (row.wide_bytes, row.loads());
                    format!("{bytes} of {wanted} bytes a trip come by 16-byte loads (the loop's loads: {loads})")
                })
            }
            Self::Waves => (matvec && arch.starts_with("gfx11") && waves < MATVEC_WAVES).then(|| {
                format!("{waves} waves a SIMD, limited by {limit}, of at least {MATVEC_WAVES} ({} VGPRs)", row.vgprs)
            }),
            Self::Dot => {
                let (dots, wanted) = (row.hot.dot, row.dots_wanted());
                (matvec && has_dot4(arch) && dots < wanted).then(|| {
                    format!(
                        "{dots} of {wanted} products of four bytes are v_dot4, of {} vector instructions",
                        row.hot.valu
                    )
                })
            }
            Self::Matrix => {
                let wanted = row.input.arithmetic == Some(Arithmetic::MatrixUnits) && has_matrix_unit(arch);
                (wanted && row.hot.matrix == 0)
                    .then(|| format!("no v_wmma or v_mfma among the hot loop's {} vector instructions", row.hot.valu))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hot_loop::Counts;
    use crate::row::tests::matvec;

    #[track_caller]
    fn broken(row: Row, words: &str) {
        let found = violations(&[row], &[]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("gfx") && found[0].contains(words), "{found:?}");
    }

    #[test]
    fn a_good_row_breaks_no_budget() {
        let rows = ["gfx1010", "gfx1100", "gfx90a"].map(matvec);
        assert!(violations(&rows, EXCEPTIONS).is_empty());
    }

    #[test]
    fn each_budget_is_checked() {
        let good = || matvec("gfx1100");
        broken(Row::failed(good().input, "no such instruction".to_owned()), "no such instruction");
        broken(Row { scratch_bytes: 16, ..good() }, "16 bytes of scratch, 0 VGPRs");
        broken(Row { spilled_vgprs: 3, ..good() }, "3 VGPRs");
        broken(Row { spilled_sgprs: 5, ..good() }, "5 SGPRs");
        broken(
            Row { waves_per_simd: 7.0, occupancy_limit: "VGPRs".to_owned(), ..good() },
            "7 waves a SIMD, limited by VGPRs",
        );
        broken(Row { waves_per_simd: 0.0, ..matvec("gfx942") }, "no room for a workgroup of 128");
        broken(
            Row { wide_bytes: 48.0, ..good() },
            "48 of 64 bytes a trip come by 16-byte loads (the loop's loads: 8×b128 3×b32)",
        );
        broken(Row { hot: Counts { dot: 30, ..good().hot }, ..good() }, "30 of 32 products of four bytes");
        let mut matmul = good();
        matmul.input.operation = "matmul".to_owned();
        matmul.input.arithmetic = Some(Arithmetic::MatrixUnits);
        broken(matmul.clone(), "no v_wmma");
        matmul.hot.matrix = 4;
        assert!(violations(&[matmul], &[]).is_empty());
    }

    #[test]
    fn budgets_are_of_the_rows_they_name() {
        // No dot product of bytes on the first RDNA; fewer waves elsewhere than on RDNA3; no matrix unit on RDNA2.
        let without_dot = Row { hot: Counts { dot: 0, ..matvec("").hot }, ..matvec("gfx1010") };
        let few_waves = Row { waves_per_simd: 4.0, ..matvec("gfx90a") };
        let mut matrix = matvec("gfx1030");
        matrix.input.arithmetic = Some(Arithmetic::MatrixUnits);
        assert!(violations(&[without_dot, few_waves, matrix], &[]).is_empty());
        let mut other = Row { waves_per_simd: 4.0, wide_bytes: 0.0, ..matvec("gfx1100") };
        other.input.operation = "dequantize".to_owned();
        assert!(violations(&[other], &[]).is_empty());
    }

    #[test]
    fn an_exception_covers_its_rows_and_must_be_needed() {
        let exception = Exception { budget: Budget::Waves, rows: ["gfx11", "matvec", "Q4_0", ""], reason: "a test" };
        let slow = |arch| Row { waves_per_simd: 4.0, ..matvec(arch) };
        assert!(violations(&[slow("gfx1100"), slow("gfx1151")], &[exception]).is_empty());
        let mut other = slow("gfx1100");
        other.input.format = "Q6_K".to_owned();
        let found = violations(&[other], &[exception]);
        assert!(found.len() == 2 && found[1].contains("covers no row"), "{found:?}");
    }

    #[test]
    fn architectures_have_their_instructions() {
        let with: Vec<_> =
            ["gfx906", "gfx908", "gfx90a", "gfx942", "gfx950", "gfx1011", "gfx1012", "gfx1030", "gfx1036"]
                .into_iter()
                .chain(["gfx1100", "gfx1151", "gfx1200"])
                .filter(|arch| !has_dot4(arch))
                .collect();
        assert!(with.is_empty(), "{with:?}");
        assert!(!has_dot4("gfx900") && !has_dot4("gfx1010") && !has_dot4("gfx1013"));
        assert!(["gfx1102", "gfx1201", "gfx90a", "gfx942"].into_iter().all(has_matrix_unit));
        assert!(!has_matrix_unit("gfx1030") && !has_matrix_unit("gfx908"));
    }
}
