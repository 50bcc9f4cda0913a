//! How fast a matvec can be on real cards: the time of its bytes, or that of its vector instructions.
//!
//! Neither latency nor cache is in it, every instruction takes one issue slot (the quarter-rate ones too), and all of
//! a card's units are busy to the end: a bound from below, which tells what a kernel is limited by.

use serde::{Deserialize, Serialize};

use crate::row::Row;

/// A compute unit's SIMDs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Simds {
    pub per_compute_unit: u32,
    /// Lanes of which a SIMD starts an instruction in each cycle.
    pub lanes: u32,
}

/// A wave of 32 a cycle: <https://www.amd.com/system/files/documents/rdna-whitepaper.pdf>.
pub const RDNA: Simds = Simds { per_compute_unit: 2, lanes: 32 };

/// A wave of 64 in four cycles:
/// <https://www.amd.com/content/dam/amd/en/documents/instinct-tech-docs/white-papers/amd-cdna-3-white-paper.pdf>.
pub const CDNA: Simds = Simds { per_compute_unit: 4, lanes: 16 };

/// A card by what it has to offer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Card {
    pub name: &'static str,
    pub arch: &'static str,
    /// GB/s of memory: its data rate times its bus width.
    pub bandwidth: f64,
    /// MHz at boost, which for an Instinct is called the peak engine clock.
    pub clock: f64,
    pub compute_units: u32,
    pub simds: Simds,
    /// TFLOP/s of dense matrices of bf16 at that clock.
    pub matrix_tflops: f64,
    /// AMD's page with the bandwidth, the clock, the compute units and the rate of matrices.
    pub source: &'static str,
}

impl Card {
    /// Microseconds to load so many bytes.
    pub fn memory_us(&self, bytes: u64) -> f64 {
        bytes as f64 / (self.bandwidth * 1e3)
    }

    /// Microseconds to issue `slots` instructions in each of so many waves.
    pub fn valu_us(&self, waves: u64, slots: u64, wave_size: u32) -> f64 {
        let simds = f64::from(self.compute_units * self.simds.per_compute_unit);
        let cycles = f64::from(wave_size.div_ceil(self.simds.lanes));
        waves as f64 * slots as f64 * cycles / (simds * self.clock)
    }
}

/// The cards that stand for their architectures.
pub const CARDS: [Card; 6] = [
    Card {
        name: "Radeon RX 7600",
        arch: "gfx1102",
        bandwidth: 288.0,
        clock: 2655.0,
        compute_units: 32,
        simds: RDNA,
        matrix_tflops: 43.5,
        source: "https://www.amd.com/en/products/graphics/desktops/radeon/7000-series/amd-radeon-rx-7600.html",
    },
    Card {
        name: "Radeon RX 7900 XTX",
        arch: "gfx1100",
        bandwidth: 960.0,
        clock: 2500.0,
        compute_units: 96,
        simds: RDNA,
        matrix_tflops: 122.8,
        source: "https://www.amd.com/en/products/graphics/desktops/radeon/7000-series/amd-radeon-rx-7900xtx.html",
    },
    // 20 Gbit/s on 256 bits.
    Card {
        name: "Radeon RX 9070 XT",
        arch: "gfx1201",
        bandwidth: 640.0,
        clock: 2970.0,
        compute_units: 64,
        simds: RDNA,
        matrix_tflops: 194.6,
        source: "https://www.amd.com/en/products/graphics/desktops/radeon/9000-series/amd-radeon-rx-9070xt.html",
    },
    // The Radeon 8060S in it; LPDDR5X-8000 on 256 bits, which the processor's cores share.
    Card {
        name: "Ryzen AI Max+ 395",
        arch: "gfx1151",
        bandwidth: 256.0,
        clock: 2900.0,
        compute_units: 40,
        simds: RDNA,
        matrix_tflops: 59.4,
        source: "https://www.amd.com/en/products/processors/laptop/ryzen/ai-300-series/amd-ryzen-ai-max-plus-395.html",
    },
    // 3.2 Gbit/s on 4096 bits.
    Card {
        name: "Instinct MI210",
        arch: "gfx90a",
        bandwidth: 1638.4,
        clock: 1700.0,
        compute_units: 104,
        simds: CDNA,
        matrix_tflops: 181.0,
        source: "https://www.amd.com/en/products/accelerators/instinct/mi200/mi210.html",
    },
    Card {
        name: "Instinct MI300X",
        arch: "gfx942",
        bandwidth: 5300.0,
        clock: 2100.0,
        compute_units: 304,
        simds: CDNA,
        matrix_tflops: 1307.4,
        source: "https://www.amd.com/en/products/accelerators/instinct/mi300/mi300x.html",
    },
];

/// Why vector instructions bind a format's matvec on some cards.
#[derive(Clone, Copy, Debug)]
pub struct Reason {
    /// What the architecture and the format begin with.
    pub arch: &'static str,
    pub formats: &'static [&'static str],
    pub why: &'static str,
}

/// Where they do: nowhere on RDNA, whose SIMDs start 15 and more instructions of a lane for each byte of bandwidth. CDNA's
/// start 7 (MI210) and 8 (MI300X).
pub const VALU_BOUND: &[Reason] = &[
    Reason {
        arch: "gfx9",
        formats: &["iq2_"],
        why: "four values of a byte of codes take a look-up of two instructions, five to spread and apply the signs, and a \
              dot product",
    },
    Reason {
        arch: "gfx9",
        formats: &["iq1_"],
        why: "four values of half a byte of codes take a look-up of two instructions and a dot product, and each 8 or 16 of \
              them a float to shift",
    },
    Reason {
        arch: "gfx9",
        formats: &["tq1_0"],
        why: "base-3 digits of bytes take two products of 16 bits, so that even and odd bytes go apart",
    },
    Reason {
        arch: "gfx9",
        formats: &["q1_0"],
        why: "half a byte of codes takes a shift, a mask and a dot product, and their loop its addresses and scales",
    },
];

/// A launch of a matvec.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Launch {
    pub n: u64,
    pub k: u64,
    /// Bytes of the weights on the device.
    pub weight_bytes: u64,
    pub waves: u64,
    /// Trips of the source's loop that a lane makes.
    pub trips: u32,
}

/// What a launch's time is at least, on a card.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    pub card: &'static str,
    pub arch: &'static str,
    pub format: String,
    pub configuration: String,
    pub n: u64,
    pub k: u64,
    pub memory_us: f64,
    pub valu_us: f64,
    pub microseconds: f64,
    /// What takes longer: `memory` or `valu`.
    pub bound: &'static str,
    /// Why it is `valu`, from [`VALU_BOUND`].
    pub reason: Option<&'static str>,
}

/// A sentence for each prediction that vector instructions bind for no reason that is known, and for each reason that none
/// of its cards' predictions needs.
pub fn violations(predictions: &[Prediction], reasons: &[Reason]) -> Vec<String> {
    let unexplained = predictions.iter().filter(|prediction| prediction.bound == "valu" && prediction.reason.is_none());
    let mut found: Vec<_> = unexplained
        .map(|prediction| {
            let Prediction { card, format, valu_us, memory_us, .. } = prediction;
            format!("{card} {format}: {valu_us:.1} us of vector instructions, {memory_us:.1} us of memory")
        })
        .collect();
    for reason in reasons {
        let mut covered = predictions.iter().filter(|prediction| reason.covers(prediction.arch, &prediction.format));
        if covered.clone().next().is_some() && covered.all(|prediction| prediction.bound == "memory") {
            found.push(format!("{reason:?} is no longer needed"));
        }
    }
    found
}

impl Reason {
    fn covers(&self, arch: &str, format: &str) -> bool {
        arch.starts_with(self.arch) && self.formats.iter().any(|start| format.starts_with(start))
    }
}

impl Prediction {
    /// The prediction for a kernel's row, which must be of the card's architecture.
    pub fn of(card: &Card, row: &Row, launch: &Launch) -> Self {
        let memory_us = card.memory_us(launch.weight_bytes);
        let valu_us = card.valu_us(launch.waves, row.valu_per_wave(launch.trips), row.wave_size);
        let reason =
            VALU_BOUND.iter().find(|reason| valu_us > memory_us && reason.covers(card.arch, &row.input.format));
        Self {
            card: card.name,
            arch: card.arch,
            format: row.input.format.clone(),
            configuration: row.input.configuration.clone(),
            n: launch.n,
            k: launch.k,
            memory_us,
            valu_us,
            microseconds: memory_us.max(valu_us),
            bound: if memory_us >= valu_us { "memory" } else { "valu" },
            reason: reason.map(|reason| reason.why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::tests::matvec;
    use approx::assert_relative_eq;

    fn card(arch: &str) -> &'static Card {
        CARDS.iter().find(|card| card.arch == arch).unwrap()
    }

    /// AMD's peak f32 rates (TFLOP/s) on the same pages: two operations a fused multiply-add, and two such in a cycle by
    /// dual issue (RDNA3, RDNA4) or packed operands (CDNA3), which a plain instruction is not.
    #[test]
    fn a_cards_units_and_clock_give_its_published_rate() {
        let published = [
            ("gfx1102", 21.75, 4.0),
            ("gfx1100", 61.4, 4.0),
            ("gfx1201", 48.7, 4.0),
            ("gfx90a", 22.6, 2.0),
            ("gfx942", 163.4, 4.0),
        ];
        for (arch, tflops, operations) in published {
            let card = card(arch);
            let lanes = f64::from(card.compute_units * card.simds.per_compute_unit * card.simds.lanes);
            let rate = lanes * card.clock * 1e6 * operations / 1e12;
            assert_relative_eq!(rate, tflops, max_relative = 0.005);
        }
    }

    #[test]
    fn times_are_bytes_and_cycles_over_rates() {
        // 960 MB at 960 GB/s.
        assert_eq!(card("gfx1100").memory_us(960_000_000), 1000.0);
        // 192 SIMDs at 2500 MHz: 192 * 2500 instructions of a wave32 a microsecond.
        assert_eq!(card("gfx1100").valu_us(192, 2500, 32), 1.0);
        assert_eq!(card("gfx1100").valu_us(192, 2500, 64), 2.0);
        // 416 SIMDs at 1700 MHz, four cycles an instruction of a wave64.
        assert_eq!(card("gfx90a").valu_us(416, 1700, 64), 4.0);
    }

    /// 14336 x 4096 of Q4_0 (18 bytes of 32 weights), two rows a wave of 32 lanes: 33.0 MB, 7168 waves, four trips.
    #[test]
    fn the_longer_time_binds() {
        let launch = Launch { n: 14336, k: 4096, weight_bytes: 14336 * 4096 / 32 * 18, waves: 7168, trips: 4 };
        let row = Row { wave_size: 32, ..matvec("gfx1100") };
        // 20 + 2 * 128 + 30 slots: 7168 * 306 / (192 * 2500) = 4.57 us; 33030144 B / 960 GB/s = 34.41 us.
        let prediction = Prediction::of(card("gfx1100"), &row, &launch);
        assert_relative_eq!(prediction.valu_us, 4.5696, max_relative = 1e-9);
        assert_relative_eq!(prediction.memory_us, 34.4064, max_relative = 1e-9);
        assert_eq!((prediction.bound, prediction.microseconds), ("memory", prediction.memory_us));

        let mut slow = row;
        slow.hot.valu = 12800;
        // 7168 * (50 + 25600) / 480000 = 383.04 us.
        let prediction = Prediction::of(card("gfx1100"), &slow, &launch);
        assert_eq!(prediction.bound, "valu");
        assert_relative_eq!(prediction.microseconds, 383.04, max_relative = 1e-9);
    }

    #[test]
    fn what_instructions_bind_has_a_needed_reason() {
        let prediction = |arch: &str, format: &str, valu: u32| {
            let mut row = Row { wave_size: 64, ..matvec(arch) };
            row.input.format = format.to_owned();
            row.hot.valu = valu;
            Prediction::of(card(arch), &row, &Launch { n: 1, k: 1, weight_bytes: 1 << 24, waves: 7168, trips: 2 })
        };
        let bound = prediction("gfx90a", "iq2_s", 12800);
        assert!(bound.bound == "valu" && bound.reason.is_some());
        assert!(violations(&[bound], VALU_BOUND).is_empty());
        let found =
            violations(&[prediction("gfx90a", "q4_0", 12800), prediction("gfx1100", "iq2_s", 12800)], VALU_BOUND);
        assert!(found.len() == 2 && found[0].starts_with("Instinct MI210 q4_0: "), "{found:?}");
        let found = violations(&[prediction("gfx90a", "iq2_s", 1)], VALU_BOUND);
        assert!(found.len() == 1 && found[0].ends_with("no longer needed"), "{found:?}");
    }
}
