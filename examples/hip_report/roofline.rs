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
    /// AMD's page with the bandwidth, the clock and the compute units.
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
        source: "https://www.amd.com/en/products/graphics/desktops/radeon/7000-series/amd-radeon-rx-7600.html",
    },
    Card {
        name: "Radeon RX 7900 XTX",
        arch: "gfx1100",
        bandwidth: 960.0,
        clock: 2500.0,
        compute_units: 96,
        simds: RDNA,
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
        source: "https://www.amd.com/en/products/accelerators/instinct/mi200/mi210.html",
    },
    Card {
        name: "Instinct MI300X",
        arch: "gfx942",
        bandwidth: 5300.0,
        clock: 2100.0,
        compute_units: 304,
        simds: CDNA,
        source: "https://www.amd.com/en/products/accelerators/instinct/mi300/mi300x.html",
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
}

impl Prediction {
    /// The prediction for a kernel's row, which must be of the card's architecture.
    pub fn of(card: &Card, row: &Row, launch: &Launch) -> Self {
        let memory_us = card.memory_us(launch.weight_bytes);
        let valu_us = card.valu_us(launch.waves, row.valu_per_wave(launch.trips), row.wave_size);
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::tests::matvec;

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
            assert!((rate / tflops - 1.0).abs() < 0.005, "{arch}: {rate}");
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
        assert!((prediction.valu_us - 4.5696).abs() < 1e-9);
        assert!((prediction.memory_us - 34.4064).abs() < 1e-9);
        assert_eq!((prediction.bound, prediction.microseconds), ("memory", prediction.memory_us));

        let mut slow = row;
        slow.hot.valu = 12800;
        // 7168 * (50 + 25600) / 480000 = 383.04 us.
        let prediction = Prediction::of(card("gfx1100"), &slow, &launch);
        assert_eq!(prediction.bound, "valu");
        assert!((prediction.microseconds - 383.04).abs() < 1e-9);
    }
}
