//! A row of the report: one kernel of one configuration on one architecture.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::code_object::{CodeObject, CodeObjectError};
use crate::disassembly::{DisassemblyError, disassemble};
use crate::hot_loop::{ControlFlowError, Counts, Profile};
use crate::occupancy::{Occupancy, UnknownArch, Usage};

/// The operation whose rows have budgets of their own.
pub const MATVEC: &str = "matvec";

/// What a product's instructions multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arithmetic {
    Int8,
    Float,
    MatrixUnits,
}

/// What is known of a kernel where it is launched.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Input {
    /// As `gfx1100`.
    pub arch: String,
    /// As `matvec` or `dequantize`.
    pub operation: String,
    pub format: String,
    /// What else tells the kernel from others of its operation and format, for people.
    pub configuration: String,
    /// `None` of what multiplies nothing.
    pub arithmetic: Option<Arithmetic>,
    /// Weights that a lane decodes in a trip of the source's loop, over all rows it has; 0 of what has no weights.
    pub weights_per_trip: u32,
    /// Rows of activations that each weight is multiplied with.
    pub tokens: u32,
    /// Rows of weights of a lane.
    pub rows: u32,
    /// Bytes of weight codes and of activations that a lane loads in a trip, which are to come 16 at a time; scales and
    /// codebooks left out.
    pub wide_bytes_per_trip: u32,
    pub dynamic_lds_bytes: u32,
    pub workgroup_size: u32,
}

impl Input {
    /// Dot products of four bytes in a trip of the source's loop.
    fn dots_per_trip(&self) -> u32 {
        if self.arithmetic == Some(Arithmetic::Int8) { self.weights_per_trip * self.tokens / 4 } else { 0 }
    }
}

/// A row; all numbers are 0 where there is an `error`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    #[serde(flatten)]
    pub input: Input,
    /// Why there is no code object, or why it could not be read.
    pub error: Option<String>,
    /// The kernel's symbol without the hash of its configuration.
    pub kernel: String,
    pub vgprs: u32,
    pub agprs: u32,
    pub sgprs: u32,
    /// Static and dynamic.
    pub lds_bytes: u32,
    pub scratch_bytes: u32,
    pub spilled_vgprs: u32,
    pub spilled_sgprs: u32,
    pub wave_size: u32,
    pub max_workgroup_size: u32,
    pub waves_per_simd: f64,
    pub occupancy_limit: String,
    pub code_bytes: u32,
    /// Whether the counts are of a loop's body, or of a kernel without one.
    pub looped: bool,
    /// Trips of the source's loop in one of the compiled loop.
    pub unrolled: u32,
    /// The hot loop's instructions.
    #[serde(flatten)]
    pub hot: Counts,
    pub valu_before: u32,
    pub valu_after: u32,
    /// Issue slots of the hot loop; `None` of what has no weights.
    pub valu_per_weight: Option<f64>,
    /// Bytes of 16-byte loads in a trip of the source's loop.
    pub wide_bytes: f64,
}

#[derive(Debug, thiserror::Error)]
enum RowError {
    #[error(transparent)]
    CodeObject(#[from] CodeObjectError),
    #[error("compiled for {found} instead of {asked}")]
    Arch { asked: String, found: String },
    #[error(transparent)]
    Disassembly(#[from] DisassemblyError),
    #[error("the kernel `{kernel}`: {source}")]
    ControlFlow { kernel: String, source: ControlFlowError },
    #[error(transparent)]
    Occupancy(#[from] UnknownArch),
}

impl Row {
    /// The row of a compiled kernel; of bytes that cannot be read, a row with the reason.
    pub fn of(input: Input, code_object: &[u8]) -> Self {
        Self::measure(&input, code_object).unwrap_or_else(|error| Self::failed(input, error.to_string()))
    }

    /// The row of a kernel that did not compile.
    pub fn failed(input: Input, error: String) -> Self {
        Self { input, error: Some(error), ..Self::default() }
    }

    fn measure(input: &Input, code_object: &[u8]) -> Result<Self, RowError> {
        let CodeObject { arch, kernel, code } = CodeObject::parse(code_object)?;
        if arch != input.arch {
            return Err(RowError::Arch { asked: input.arch.clone(), found: arch });
        }
        let profile = Profile::of(&disassemble(&arch, code)?)
            .map_err(|source| RowError::ControlFlow { kernel: kernel.symbol.clone(), source })?;
        let lds_bytes = kernel.lds_bytes + input.dynamic_lds_bytes;
        let usage = Usage {
            vgprs: kernel.vgprs,
            sgprs: kernel.sgprs,
            lds_bytes,
            workgroup_size: input.workgroup_size,
            wave_size: kernel.wave_size,
        };
        let occupancy = Occupancy::of(&arch, &usage)?;
        let unrolled = profile.unrolled(input.dots_per_trip(), input.wide_bytes_per_trip);
        let weights = f64::from(input.weights_per_trip * unrolled);
        Ok(Self {
            input: input.clone(),
            error: None,
            kernel: without_hash(&kernel.symbol).to_owned(),
            vgprs: kernel.vgprs,
            agprs: kernel.agprs,
            sgprs: kernel.sgprs,
            lds_bytes,
            scratch_bytes: kernel.scratch_bytes,
            spilled_vgprs: kernel.spilled_vgprs,
            spilled_sgprs: kernel.spilled_sgprs,
            wave_size: kernel.wave_size,
            max_workgroup_size: kernel.max_workgroup_size,
            waves_per_simd: occupancy.waves,
            occupancy_limit: occupancy.limit.name().to_owned(),
            code_bytes: code.len() as u32,
            looped: profile.looped,
            unrolled,
            valu_before: profile.valu_before,
            valu_after: profile.valu_after,
            valu_per_weight: (weights > 0.0).then(|| f64::from(profile.hot.valu) / weights),
            wide_bytes: f64::from(profile.hot.wide_bytes()) / f64::from(unrolled),
            hot: profile.hot,
        })
    }

    /// Issue slots of the vector ALU that a wave spends on `trips` trips of the source's loop.
    pub fn valu_per_wave(&self, trips: u32) -> u64 {
        let trips = if self.looped { u64::from(trips.div_ceil(self.unrolled.max(1))) } else { 1 };
        u64::from(self.valu_before) + trips * u64::from(self.hot.valu) + u64::from(self.valu_after)
    }

    /// Dot products of four bytes that the hot loop is to have.
    pub fn dots_wanted(&self) -> u32 {
        self.input.dots_per_trip() * self.unrolled
    }

    /// Loads of the hot loop, as `4×b128 2×b32`.
    pub fn loads(&self) -> String {
        let load = |(bytes, count): (&u32, &u32)| format!("{count}×b{}", 8 * bytes);
        self.hot.loads.iter().rev().map(load).collect::<Vec<_>>().join(" ")
    }

    /// Where the row stands in the report, for people.
    pub fn place(&self) -> String {
        let Input { arch, operation, format, configuration, .. } = &self.input;
        [arch, operation, format, configuration].map(String::as_str).join(" ").trim_end().to_owned()
    }
}

/// CubeCL ends a kernel's name with a hash of what it is specialized for: `repack_5619c3a2`.
fn without_hash(symbol: &str) -> &str {
    match symbol.rsplit_once('_') {
        Some((name, hash)) if hash.len() == 8 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => name,
        _ => symbol,
    }
}

/// Kernels of an architecture, in short.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    pub arch: String,
    pub kernels: usize,
    pub failures: usize,
    pub most_vgprs: u32,
    /// `None` where no kernel compiled.
    pub fewest_waves: Option<f64>,
    /// Kernels with scratch memory or spilled registers.
    pub spilling: usize,
    pub int8_matvecs: usize,
    pub int8_matvecs_with_dot: usize,
    /// The least and the most of the matvecs of one token.
    pub valu_per_weight: Option<(f64, f64)>,
}

impl Summary {
    /// One for each architecture, in the order of their first rows.
    pub fn by_arch<'a>(rows: impl IntoIterator<Item = &'a Row>) -> Vec<Self> {
        let mut order = Vec::new();
        let mut by_arch = BTreeMap::<&str, Vec<&Row>>::new();
        for row in rows {
            let of_arch = by_arch.entry(&row.input.arch).or_default();
            if of_arch.is_empty() {
                order.push(row.input.arch.as_str());
            }
            of_arch.push(row);
        }
        order.into_iter().map(|arch| Self::of(arch, &by_arch[arch])).collect()
    }

    fn of(arch: &str, rows: &[&Row]) -> Self {
        let compiled: Vec<&Row> = rows.iter().copied().filter(|row| row.error.is_none()).collect();
        let matvecs: Vec<&Row> = compiled.iter().copied().filter(|row| row.input.operation == MATVEC).collect();
        let int8: Vec<_> = matvecs.iter().filter(|row| row.input.arithmetic == Some(Arithmetic::Int8)).collect();
        let one_token = matvecs.iter().filter(|row| row.input.tokens == 1);
        Self {
            arch: arch.to_owned(),
            kernels: rows.len(),
            failures: rows.len() - compiled.len(),
            most_vgprs: compiled.iter().map(|row| row.vgprs).max().unwrap_or(0),
            fewest_waves: compiled.iter().map(|row| row.waves_per_simd).reduce(f64::min),
            spilling: compiled
                .iter()
                .filter(|row| row.scratch_bytes + row.spilled_vgprs + row.spilled_sgprs > 0)
                .count(),
            int8_matvecs: int8.len(),
            int8_matvecs_with_dot: int8.iter().filter(|row| row.hot.dot > 0).count(),
            valu_per_weight: one_token
                .filter_map(|row| row.valu_per_weight)
                .map(|valu| (valu, valu))
                .reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))),
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A matvec's row that every budget holds for.
    pub fn matvec(arch: &str) -> Row {
        Row {
            input: Input {
                arch: arch.to_owned(),
                operation: MATVEC.to_owned(),
                format: "Q4_0".to_owned(),
                configuration: "1 token".to_owned(),
                arithmetic: Some(Arithmetic::Int8),
                weights_per_trip: 64,
                tokens: 1,
                rows: 2,
                wide_bytes_per_trip: 64,
                dynamic_lds_bytes: 0,
                workgroup_size: 128,
            },
            kernel: "kernel".to_owned(),
            vgprs: 60,
            waves_per_simd: 16.0,
            occupancy_limit: "architecture".to_owned(),
            looped: true,
            unrolled: 2,
            hot: Counts {
                valu: 128,
                valu_ops: 130,
                dot: 32,
                loads: BTreeMap::from([(4, 3), (16, 8)]),
                ..Counts::default()
            },
            valu_before: 20,
            valu_after: 30,
            valu_per_weight: Some(1.0),
            wide_bytes: 64.0,
            ..Row::default()
        }
    }

    #[test]
    fn a_kernel_has_its_name_without_the_hash() {
        assert_eq!(without_hash("repack_5619c3a2"), "repack");
        assert_eq!(without_hash("quantize_chunks_x_f32_5dc84eea"), "quantize_chunks_x_f32");
        assert_eq!(without_hash("quantize_chunks"), "quantize_chunks");
        assert_eq!(without_hash("kernel"), "kernel");
    }

    #[test]
    fn a_row_is_the_same_after_json() {
        let rows = [matvec("gfx1100"), Row::failed(Input::default(), "no such instruction".to_owned())];
        for row in rows {
            let json = serde_json::to_string(&row).unwrap();
            assert_eq!(serde_json::from_str::<Row>(&json).unwrap(), row);
        }
        let json = serde_json::to_value(matvec("gfx1100")).unwrap();
        assert_eq!(
            (&json["arch"], &json["arithmetic"], &json["error"]),
            (&"gfx1100".into(), &"int8".into(), &().into())
        );
        assert_eq!((&json["loads"]["16"], &json["valu"]), (&8.into(), &128.into()));
    }

    #[test]
    fn a_wave_spends_its_loop_as_often_as_it_is_unrolled() {
        let row = matvec("gfx1100");
        assert_eq!([0, 1, 2, 5].map(|trips| row.valu_per_wave(trips)), [50, 178, 178, 434]);
        let straight = Row { looped: false, ..row };
        assert_eq!(straight.valu_per_wave(9), 178);
    }

    #[test]
    fn loads_are_told_widest_first() {
        assert_eq!(matvec("gfx1100").loads(), "8×b128 3×b32");
    }

    #[test]
    fn what_is_no_code_object_is_a_row_with_the_reason() {
        let row = Row::of(matvec("gfx1100").input, b"none");
        assert!(row.error.unwrap().contains("4 bytes"));
    }

    #[test]
    fn a_summary_is_of_one_architecture() {
        let slow = Row { valu_per_weight: Some(3.0), hot: Counts::default(), vgprs: 90, ..matvec("gfx942") };
        let failed = Row::failed(matvec("gfx942").input, "no".to_owned());
        let rows = [matvec("gfx942"), matvec("gfx1100"), slow, failed];
        let [cdna, rdna] = &Summary::by_arch(&rows)[..] else { panic!("two architectures") };
        assert_eq!((cdna.arch.as_str(), cdna.kernels, cdna.failures, cdna.most_vgprs), ("gfx942", 3, 1, 90));
        assert_eq!((cdna.int8_matvecs, cdna.int8_matvecs_with_dot), (2, 1));
        assert_eq!((cdna.valu_per_weight, cdna.fewest_waves), (Some((1.0, 3.0)), Some(16.0)));
        assert_eq!((rdna.kernels, rdna.failures, rdna.valu_per_weight), (1, 0, Some((1.0, 1.0))));
    }
}
