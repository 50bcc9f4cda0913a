//! How many waves of a kernel a SIMD holds at a time.
//!
//! The sizes and granules are those of LLVM's `AMDGPUBaseInfo.cpp` and `GCNSubtarget`; LLVM prints the same numbers as
//! the `Occupancy` of each kernel in its assembly.

/// The vector registers of a SIMD, and how they and the waves are given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Simd {
    /// Registers of a lane of a wave of the architecture's own size.
    vgprs: u32,
    granule: u32,
    waves: u32,
}

/// SIMDs that share an LDS: a compute unit's four, or the four of RDNA's pair of compute units.
const SIMDS: u32 = 4;

/// What a launch of a kernel takes.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Accumulation registers included, where the architecture has both in one file.
    pub vgprs: u32,
    pub sgprs: u32,
    pub lds_bytes: u32,
    pub workgroup_size: u32,
    pub wave_size: u32,
}

/// What keeps more waves away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    Architecture,
    Vgprs,
    Sgprs,
    Lds,
    /// Whole workgroups only, and so many of them.
    Workgroups,
}

impl Limit {
    /// The name for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Architecture => "architecture",
            Self::Vgprs => "VGPRs",
            Self::Sgprs => "SGPRs",
            Self::Lds => "LDS",
            Self::Workgroups => "workgroups",
        }
    }
}

/// Waves that a SIMD holds on average, not whole where a workgroup's waves are no multiple of the SIMDs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Occupancy {
    pub waves: f64,
    pub limit: Limit,
}

/// An architecture that the tables here lack.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the registers of `{0}` are not known")]
pub struct UnknownArch(pub String);

fn simd(arch: &str) -> Option<Simd> {
    let (vgprs, granule, waves) = match arch {
        // 256 of either kind, each in a file of its own.
        "gfx906" | "gfx908" => (256, 4, 10),
        // One file for both kinds.
        "gfx90a" | "gfx940" | "gfx941" | "gfx942" | "gfx950" => (512, 8, 8),
        "gfx1010" | "gfx1011" | "gfx1012" | "gfx1013" => (1024, 8, 20),
        "gfx1100" | "gfx1101" | "gfx1151" | "gfx1200" | "gfx1201" => (1536, 24, 16),
        _ if arch.starts_with("gfx103") || arch.starts_with("gfx110") || arch.starts_with("gfx115") => (1024, 16, 16),
        _ => return None,
    };
    Some(Simd { vgprs, granule, waves })
}

/// LDS bytes of [`SIMDS`] SIMDs, and in what steps workgroups get them. RDNA runs workgroups across a pair of compute
/// units, as LLVM compiles by default.
fn lds(arch: &str) -> (u32, u32) {
    match arch {
        "gfx950" => (160 << 10, 1280),
        _ if is_gcn(arch) => (64 << 10, 512),
        _ => (128 << 10, 512),
    }
}

fn is_gcn(arch: &str) -> bool {
    arch.starts_with("gfx9")
}

impl Occupancy {
    /// The waves of `usage` on a SIMD of `arch`.
    pub fn of(arch: &str, usage: &Usage) -> Result<Self, UnknownArch> {
        let simd = simd(arch).ok_or_else(|| UnknownArch(arch.to_owned()))?;
        // RDNA's waves of 64 take registers twice.
        let passes = if is_gcn(arch) { 1 } else { usage.wave_size.div_ceil(32) };
        let by_vgprs = simd.vgprs / (passes * usage.vgprs).max(1).next_multiple_of(simd.granule);
        let by_sgprs = if is_gcn(arch) { waves_by_sgprs(usage.sgprs) } else { simd.waves };
        let (slots, mut limit) =
            [(simd.waves, Limit::Architecture), (by_vgprs, Limit::Vgprs), (by_sgprs, Limit::Sgprs)]
                .into_iter()
                .min_by_key(|&(waves, _)| waves)
                .unwrap_or((simd.waves, Limit::Architecture));

        let waves_per_group = usage.workgroup_size.div_ceil(usage.wave_size.max(1)).max(1);
        let by_slots = slots * SIMDS / waves_per_group;
        // A barrier for each workgroup of more than one wave.
        let barriers = if is_gcn(arch) { 16 } else { 32 };
        let by_barriers = if waves_per_group > 1 { barriers } else { by_slots };
        let (lds_bytes, granule) = lds(arch);
        let by_lds = lds_bytes / usage.lds_bytes.max(1).next_multiple_of(granule);
        let groups = by_slots.min(by_barriers).min(by_lds);
        if by_lds < by_slots.min(by_barriers) {
            limit = Limit::Lds;
        } else if groups * waves_per_group < slots * SIMDS {
            limit = Limit::Workgroups;
        }
        Ok(Self { waves: f64::from(groups * waves_per_group) / f64::from(SIMDS), limit })
    }
}

/// A SIMD's 800 scalar registers, in sixteens, sixteen more a wave for the trap handler.
fn waves_by_sgprs(sgprs: u32) -> u32 {
    800 / (sgprs.max(1).next_multiple_of(16) + 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn occupancy(arch: &str, vgprs: u32, lds_bytes: u32, workgroup_size: u32) -> Occupancy {
        let wave_size = if is_gcn(arch) { 64 } else { 32 };
        Occupancy::of(arch, &Usage { vgprs, sgprs: 16, lds_bytes, workgroup_size, wave_size }).unwrap()
    }

    /// The most VGPRs with so many waves, as LLVM 23.1 has them in the assembly of kernels that clobber that many.
    #[test]
    fn registers_limit_waves_as_llvm_says() {
        let thresholds: [(&str, &[(u32, u32)]); 6] = [
            ("gfx908", &[(24, 10), (28, 9), (32, 8), (36, 7), (40, 6), (48, 5), (64, 4), (84, 3), (128, 2), (256, 1)]),
            ("gfx942", &[(64, 8), (72, 7), (80, 6), (96, 5), (128, 4), (168, 3), (256, 2), (512, 1)]),
            ("gfx1010", &[(48, 20), (56, 18), (64, 16), (72, 14), (80, 12), (96, 10), (112, 9), (128, 8), (256, 4)]),
            ("gfx1030", &[(64, 16), (80, 12), (96, 10), (112, 9), (128, 8), (144, 7), (160, 6), (192, 5), (256, 4)]),
            ("gfx1102", &[(64, 16), (80, 12), (96, 10), (112, 9), (128, 8), (144, 7), (160, 6), (192, 5), (256, 4)]),
            ("gfx1201", &[(96, 16), (120, 12), (144, 10), (168, 9), (192, 8), (216, 7), (240, 6), (256, 5)]),
        ];
        for (arch, thresholds) in thresholds {
            // One wave a workgroup, so that nothing else limits them.
            let wave = if is_gcn(arch) { 64 } else { 32 };
            for &(vgprs, waves) in thresholds {
                assert_eq!(occupancy(arch, vgprs, 0, wave).waves, f64::from(waves), "{arch} {vgprs}");
            }
            for pair in thresholds.windows(2) {
                assert!(occupancy(arch, pair[0].0 + 1, 0, wave).waves < f64::from(pair[0].1), "{arch} {pair:?}");
            }
        }
    }

    #[test]
    fn lds_and_whole_workgroups_limit_waves() {
        // 16 KiB a workgroup of four waves: eight workgroups in RDNA's 128 KiB, four in CDNA's 64 KiB.
        assert_eq!(occupancy("gfx1100", 32, 16384, 128), Occupancy { waves: 8.0, limit: Limit::Lds });
        assert_eq!(occupancy("gfx942", 32, 16384, 256), Occupancy { waves: 4.0, limit: Limit::Lds });
        assert_eq!(occupancy("gfx950", 32, 16384, 256), Occupancy { waves: 8.0, limit: Limit::Architecture });
        // 10 waves by registers, of which workgroups of 32 waves use eight.
        assert_eq!(occupancy("gfx1030", 96, 0, 1024), Occupancy { waves: 8.0, limit: Limit::Workgroups });
        // Sixteen workgroups of two waves.
        assert_eq!(occupancy("gfx908", 8, 0, 128), Occupancy { waves: 8.0, limit: Limit::Workgroups });
        assert_eq!(occupancy("gfx1100", 8, 0, 128), Occupancy { waves: 16.0, limit: Limit::Architecture });
        // More than a workgroup may have.
        assert_eq!(occupancy("gfx942", 512, 0, 1024), Occupancy { waves: 0.0, limit: Limit::Workgroups });
    }

    #[test]
    fn waves_of_64_take_twice_the_registers_on_rdna() {
        let usage = Usage { vgprs: 96, sgprs: 16, lds_bytes: 0, workgroup_size: 64, wave_size: 64 };
        assert_eq!(Occupancy::of("gfx1100", &usage).unwrap(), Occupancy { waves: 8.0, limit: Limit::Vgprs });
    }

    #[test]
    fn scalar_registers_limit_waves_before_rdna() {
        assert_eq!([64, 80, 96, 102].map(waves_by_sgprs), [10, 8, 7, 6]);
    }

    #[test]
    fn an_unknown_architecture_is_an_error() {
        let usage = Usage { vgprs: 1, sgprs: 1, lds_bytes: 0, workgroup_size: 64, wave_size: 64 };
        assert_eq!(Occupancy::of("gfx803", &usage), Err(UnknownArch("gfx803".to_owned())));
    }
}
