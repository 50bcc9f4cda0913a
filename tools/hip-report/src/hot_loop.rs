//! What a kernel's loop executes, counted by kind of instruction, and what stands before and after it.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::{Deserializer, Error};
use serde::{Deserialize, Serialize};

use crate::disassembly::Instruction;

/// Why a kernel's control flow could not be followed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlFlowError {
    #[error("a jump or call through registers at byte {0}: its target is not known")]
    Indirect(u64),
    #[error("a branch at byte {from} to byte {to}, where no instruction starts")]
    Target { from: u64, to: u64 },
}

/// Instructions by kind, each counted once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Issue slots of the vector ALU, dot products among them, matrix instructions not.
    pub valu: u32,
    /// The same as operations: RDNA3's and RDNA4's dual-issue instructions are two.
    pub valu_ops: u32,
    pub dot: u32,
    pub matrix: u32,
    pub scalar: u32,
    pub waits: u32,
    /// Instructions of the LDS unit.
    pub lds: u32,
    /// Loads from memory by their bytes a lane.
    #[serde(deserialize_with = "by_width")]
    pub loads: BTreeMap<u32, u32>,
    /// Stores to memory by their bytes a lane.
    #[serde(deserialize_with = "by_width")]
    pub stores: BTreeMap<u32, u32>,
    /// Fused and plain multiply-additions, which tell a loop with work from one without.
    pub multiply_adds: u32,
}

impl Counts {
    fn of<'a>(instructions: impl IntoIterator<Item = &'a Instruction>) -> Self {
        let mut counts = Self::default();
        for instruction in instructions {
            counts.add(instruction);
        }
        counts
    }

    fn add(&mut self, instruction: &Instruction) {
        let name = instruction.mnemonic.as_str();
        if is_any(name, &["v_wmma", "v_swmmac", "v_mfma", "v_smfmac"]) {
            self.matrix += 1;
        } else if name.starts_with("v_") {
            let second = instruction.operands.split_once(":: ").map(|cut| cut.1);
            self.valu += 1;
            for operation in [Some(name), second].into_iter().flatten() {
                let operation = operation.trim_start_matches("v_").trim_start_matches("dual_");
                self.valu_ops += 1;
                self.dot += u32::from(operation.starts_with("dot"));
                self.multiply_adds += u32::from(is_any(operation, &["fma", "pk_fma", "mad", "mac"]));
            }
        } else if is_any(name, &["s_waitcnt", "s_wait_"]) {
            self.waits += 1;
        } else if name.starts_with("s_") {
            // Hints, which no unit executes.
            self.scalar += u32::from(!is_any(name, &["s_nop", "s_clause", "s_delay_alu", "s_code_end"]));
        } else if name.starts_with("ds_") {
            self.lds += 1;
        } else if is_any(name, &["global_", "buffer_", "flat_", "scratch_"]) {
            if let Some((_, kind)) = name.split_once("_load_") {
                *self.loads.entry(width(kind)).or_default() += 1;
            } else if let Some((_, kind)) = name.split_once("_store_") {
                *self.stores.entry(width(kind)).or_default() += 1;
            }
        }
    }

    /// How much of a kernel's purpose this is.
    fn work(&self) -> u32 {
        self.dot + self.matrix + self.multiply_adds + self.loads.values().sum::<u32>()
    }

    /// Bytes that 16-byte loads bring a lane.
    pub fn wide_bytes(&self) -> u32 {
        16 * self.loads.get(&16).copied().unwrap_or(0)
    }
}

/// JSON has text for keys, of which serde makes numbers only in a struct that is not flattened into another.
fn by_width<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<u32, u32>, D::Error> {
    let named = BTreeMap::<String, u32>::deserialize(deserializer)?;
    named.into_iter().map(|(width, count)| Ok((width.parse().map_err(D::Error::custom)?, count))).collect()
}

fn is_any(name: &str, prefixes: &[&str]) -> bool {
    prefixes.iter().any(|prefix| name.starts_with(prefix))
}

/// The bytes of `b128` (RDNA3 on) or `dwordx4` (before), with what may stand around them: `lds_dword`, `d16_hi_u8`.
fn width(kind: &str) -> u32 {
    const WIDTHS: [(u32, &[&str]); 5] = [
        (16, &["x4", "b128"]),
        (12, &["x3", "b96"]),
        (8, &["x2", "b64"]),
        (4, &["dword", "b32"]),
        (1, &["byte", "u8", "i8", "b8"]),
    ];
    let named = |(_, names): &&(u32, &[&str])| names.iter().any(|name| kind.contains(name));
    // What is left is a short: `u16`, `i16`, `d16_b16`, `ushort`, `short_d16`.
    WIDTHS.iter().find(named).map_or(2, |&(bytes, _)| bytes)
}

/// A kernel by its hot loop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// The hot loop's body; of a kernel without a loop, all of it.
    pub hot: Counts,
    /// Whether there is a loop.
    pub looped: bool,
    /// Whether the hot loop can be several trips of a loop whose trips are counted when it runs: such a one has several
    /// exits, or another loop for the trips that are left over.
    pub unrollable: bool,
    /// Issue slots of the vector ALU that a wave spends before the hot loop, and after it. Other loops count once.
    pub valu_before: u32,
    pub valu_after: u32,
}

impl Profile {
    /// Finds the hot loop: of all loops the one whose own instructions, those of loops inside it left out, do the most
    /// work.
    pub fn of(instructions: &[Instruction]) -> Result<Self, ControlFlowError> {
        let graph = Graph::of(instructions)?;
        let count = |blocks: &BTreeSet<usize>| Counts::of(blocks.iter().flat_map(|&block| graph.instructions(block)));
        let mut all = graph.reachable(0, |_| true);
        all.insert(0);
        let loops = graph.loops(&all);
        let work = |each: &Loop| {
            let own = count(&each.own);
            (own.work(), own.valu)
        };
        let Some(hot) = loops.iter().max_by_key(|&each| work(each)) else {
            let hot = count(&all);
            return Ok(Self { hot, looped: false, unrollable: true, valu_before: 0, valu_after: 0 });
        };
        let blocks = &hot.blocks;
        let others_work = loops.iter().any(|other| other.blocks.is_disjoint(blocks) && work(other).0 > 0);
        let exits =
            blocks.iter().flat_map(|&block| &graph.successors[block]).filter(|next| !blocks.contains(next)).count();
        let leads_in = |&block: &usize| !graph.reachable(block, |_| true).is_disjoint(blocks);
        let (before, after): (BTreeSet<usize>, _) = all.difference(blocks).copied().partition(leads_in);
        Ok(Self {
            hot: count(blocks),
            looped: true,
            unrollable: exits > 1 || others_work,
            valu_before: count(&before).valu,
            valu_after: count(&after).valu,
        })
    }

    /// How many trips of the source's loop one trip of the compiled one makes: what it has of dot products, or else of
    /// 16-byte loads, against what a source trip has.
    pub fn unrolled(&self, dots_per_trip: u32, wide_bytes_per_trip: u32) -> u32 {
        let ratio = |seen: u32, trip: u32| (f64::from(seen) / f64::from(trip)).round().max(1.0) as u32;
        if !self.unrollable {
            1
        } else if dots_per_trip > 0 && self.hot.dot > 0 {
            ratio(self.hot.dot, dots_per_trip)
        } else if wide_bytes_per_trip > 0 {
            ratio(self.hot.wide_bytes(), wide_bytes_per_trip)
        } else {
            1
        }
    }
}

struct Loop {
    blocks: BTreeSet<usize>,
    /// Those of no loop inside it.
    own: BTreeSet<usize>,
}

/// Basic blocks and where control goes from each.
struct Graph<'a> {
    blocks: Vec<&'a [Instruction]>,
    successors: Vec<Vec<usize>>,
}

impl<'a> Graph<'a> {
    fn of(instructions: &'a [Instruction]) -> Result<Self, ControlFlowError> {
        let index: BTreeMap<u64, usize> = instructions.iter().enumerate().map(|(i, at)| (at.address, i)).collect();
        let mut starts = BTreeSet::from([0]);
        for (i, instruction) in instructions.iter().enumerate() {
            if is_any(&instruction.mnemonic, &["s_setpc", "s_swappc", "s_call"]) {
                return Err(ControlFlowError::Indirect(instruction.address));
            }
            if let Some(to) = instruction.target {
                let missing = ControlFlowError::Target { from: instruction.address, to };
                starts.insert(*index.get(&to).ok_or(missing)?);
            }
            if instruction.target.is_some() || ends(instruction) {
                starts.insert(i + 1);
            }
        }
        let ends_at = starts.iter().copied().skip(1).chain([instructions.len()]);
        let ranges: Vec<_> = starts.iter().copied().zip(ends_at).filter(|(start, end)| start < end).collect();
        let block_at: BTreeMap<usize, usize> = ranges.iter().enumerate().map(|(b, range)| (range.0, b)).collect();
        let successors = ranges.iter().map(|&(_, end)| {
            let last = &instructions[end - 1];
            let jump = last.target.and_then(|to| block_at.get(index.get(&to)?));
            let falls = last.mnemonic != "s_branch" && !ends(last);
            let next = falls.then(|| block_at.get(&end)).flatten();
            jump.into_iter().chain(next).copied().collect()
        });
        let successors = successors.collect();
        let blocks = ranges.iter().map(|&(start, end)| &instructions[start..end]).collect();
        Ok(Self { blocks, successors })
    }

    fn instructions(&self, block: usize) -> &'a [Instruction] {
        self.blocks[block]
    }

    /// Blocks that one or more steps lead to, all of them to `allowed` blocks.
    fn reachable(&self, from: usize, allowed: impl Fn(usize) -> bool) -> BTreeSet<usize> {
        let mut reached = BTreeSet::new();
        let mut pending = vec![from];
        while let Some(block) = pending.pop() {
            for &next in &self.successors[block] {
                if allowed(next) && reached.insert(next) {
                    pending.push(next);
                }
            }
        }
        reached
    }

    /// The loops among `blocks`, nested ones too: sets of blocks that lead to each other. Those inside one are what
    /// remains of it without the edges to where it is entered.
    fn loops(&self, blocks: &BTreeSet<usize>) -> Vec<Loop> {
        let mut found = Vec::new();
        self.collect_loops(blocks, &BTreeSet::new(), &mut found);
        found
    }

    /// `heads` are the blocks of enclosing loops' entries, edges to which lead out of every loop inside them.
    fn collect_loops(&self, blocks: &BTreeSet<usize>, heads: &BTreeSet<usize>, found: &mut Vec<Loop>) {
        let inside = |to: usize| blocks.contains(&to) && !heads.contains(&to);
        let reach: BTreeMap<usize, BTreeSet<usize>> =
            blocks.iter().map(|&block| (block, self.reachable(block, inside))).collect();
        let mut seen = BTreeSet::new();
        for &block in blocks {
            if !reach[&block].contains(&block) || !seen.insert(block) {
                continue;
            }
            let cycle: BTreeSet<usize> =
                reach[&block].iter().copied().filter(|other| reach[other].contains(&block)).collect();
            seen.extend(&cycle);
            let enters =
                |&to: &usize| to == 0 || blocks.difference(&cycle).any(|&from| self.successors[from].contains(&to));
            let inner_heads: BTreeSet<usize> =
                cycle.iter().copied().filter(enters).chain(heads.iter().copied()).collect();
            let first_inner = found.len();
            self.collect_loops(&cycle, &inner_heads, found);
            let own =
                cycle.iter().copied().filter(|b| found[first_inner..].iter().all(|inner| !inner.blocks.contains(b)));
            let own = own.collect();
            found.push(Loop { blocks: cycle, own });
        }
    }
}

fn ends(instruction: &Instruction) -> bool {
    instruction.mnemonic == "s_endpgm"
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Instructions of 4 bytes; a branch's operand is the line it jumps to.
    fn program(lines: &[&str]) -> Vec<Instruction> {
        let line = |(i, line): (usize, &&str)| {
            let (mnemonic, operands) = line.split_once(' ').unwrap_or((line, ""));
            let target = mnemonic.contains("branch").then(|| 4 * operands.parse::<u64>().unwrap());
            let (mnemonic, operands) = (mnemonic.to_owned(), operands.to_owned());
            Instruction { address: 4 * i as u64, size: 4, mnemonic, operands, target }
        };
        lines.iter().enumerate().map(line).collect()
    }

    #[test]
    fn each_kind_of_instruction_is_counted_once() {
        let counts = Counts::of(&program(&[
            "v_add_nc_u32_e32 v0, v1, v2",
            "v_dual_fmac_f32 v0, v1, v2 :: v_dual_dot2acc_f32_f16 v3, v4, v5",
            "v_dot4_i32_iu8 v0, v1, v2, v0",
            "v_wmma_f32_16x16x16_bf16 v[0:7], v[8:15], v[16:23], v[0:7]",
            "v_mfma_f32_32x32x8_bf16_1k a[0:15], v[0:1], v[2:3], a[0:15]",
            "s_add_i32 s0, s1, s2",
            "s_delay_alu instid0(VALU_DEP_1)",
            "s_waitcnt vmcnt(0)",
            "s_wait_loadcnt 0x0",
            "ds_load_b128 v[0:3], v4",
        ]));
        assert_eq!((counts.valu, counts.valu_ops, counts.dot, counts.matrix), (3, 4, 2, 2));
        assert_eq!((counts.scalar, counts.waits, counts.lds), (1, 2, 1));
        assert!(counts.loads.is_empty() && counts.stores.is_empty());
    }

    #[test]
    fn loads_and_stores_have_widths() {
        let names = [
            ("b128", 16),
            ("dwordx4", 16),
            ("lds_dwordx4", 16),
            ("b96", 12),
            ("dwordx3", 12),
            ("b64", 8),
            ("dwordx2", 8),
            ("b32", 4),
            ("dword", 4),
            ("u16", 2),
            ("ushort", 2),
            ("short_d16_hi", 2),
            ("d16_b16", 2),
            ("d16_hi_b16", 2),
            ("i16", 2),
            ("short", 2),
            ("u8", 1),
            ("ubyte", 1),
            ("sbyte_d16", 1),
            ("d16_u8", 1),
            ("i8", 1),
            ("b8", 1),
            ("d16_hi_b8", 1),
        ];
        for (name, bytes) in names {
            let counts = Counts::of(&program(&[&format!("global_load_{name}"), &format!("buffer_store_{name}")]));
            assert_eq!(counts.loads, BTreeMap::from([(bytes, 1)]), "{name}");
            assert_eq!(counts.stores, BTreeMap::from([(bytes, 1)]), "{name}");
        }
    }

    #[test]
    fn a_kernel_without_a_loop_is_hot_as_a_whole() {
        let profile =
            Profile::of(&program(&["v_mov_b32 v0", "s_cbranch_execz 3", "v_mov_b32 v1", "s_endpgm", "v_nop"]));
        let profile = profile.unwrap();
        assert_eq!((profile.looped, profile.hot.valu, profile.valu_before, profile.valu_after), (false, 2, 0, 0));
    }

    /// An outer loop (1 to 9) around two inner ones, the second of which has the loads.
    #[test]
    fn the_hot_loop_is_the_one_with_the_most_work_of_its_own() {
        let profile = Profile::of(&program(&[
            "v_mov_b32 v0",
            "v_mov_b32 v1",
            "v_add_f32 v1",
            "s_cbranch_scc1 2",
            "v_mov_b32 v2",
            "global_load_b128 v[0:3]",
            "v_dot4_i32_iu8 v0",
            "v_add_f32 v0",
            "s_cbranch_scc1 5",
            "s_cbranch_vccnz 1",
            "v_mov_b32 v3",
            "s_endpgm",
        ]));
        let profile = profile.unwrap();
        assert!(profile.looped);
        assert_eq!((profile.hot.valu, profile.hot.dot, profile.hot.wide_bytes()), (2, 1, 16));
        // What is inside the outer loop leads to the hot one again.
        assert_eq!((profile.valu_before, profile.valu_after), (4, 1));
    }

    /// As compilers lay out `while`: entered at the test, which stands below the body, and a cold block out of line.
    #[test]
    fn a_loop_is_whole_wherever_its_blocks_stand() {
        let profile = Profile::of(&program(&[
            "s_branch 4",
            "global_load_b32 v0",
            "s_cbranch_execz 7",
            "v_add_f32 v0",
            "s_cmp_lg_u32 s0",
            "s_cbranch_scc1 1",
            "s_endpgm",
            "v_mul_f32 v0",
            "s_branch 4",
        ]));
        let profile = profile.unwrap();
        assert_eq!((profile.looped, profile.hot.valu, profile.hot.scalar), (true, 2, 4));
        assert_eq!((profile.valu_before, profile.valu_after), (0, 0));
    }

    #[test]
    fn unrolling_is_told_by_dot_products_or_wide_loads() {
        let half = ["v_dot4_i32_iu8 v0"; 16].into_iter().chain(["global_load_b128 v[0:3]"; 4]);
        let two_exits =
            half.clone().chain(["s_cbranch_scc0 42"]).chain(half.clone()).chain(["s_cbranch_scc1 0", "s_endpgm"]);
        let profile = Profile::of(&program(&two_exits.collect::<Vec<_>>())).unwrap();
        assert_eq!((profile.hot.dot, profile.unrollable), (32, true));
        assert_eq!(profile.unrolled(16, 0), 2);
        assert_eq!(profile.unrolled(0, 32), 4);
        assert_eq!(profile.unrolled(0, 0), 1);
        // Fewer loads than expected are no part of a trip.
        assert_eq!(profile.unrolled(0, 4096), 1);

        let plain: Vec<_> = half.clone().chain(["s_cbranch_scc1 0", "s_endpgm"]).collect();
        assert_eq!(Profile::of(&program(&plain)).unwrap().unrolled(4, 0), 1);
        let rest = half.chain(["s_cbranch_scc1 0", "v_dot4_i32_iu8 v0", "s_cbranch_scc1 21", "s_endpgm"]);
        assert_eq!(Profile::of(&program(&rest.collect::<Vec<_>>())).unwrap().unrolled(1, 0), 16);
    }

    #[test]
    fn what_cannot_be_followed_is_an_error() {
        assert_eq!(Profile::of(&program(&["v_nop", "s_setpc_b64 s[0:1]"])), Err(ControlFlowError::Indirect(4)));
        let outside = ControlFlowError::Target { from: 0, to: 36 };
        assert_eq!(Profile::of(&program(&["s_branch 9", "s_endpgm"])), Err(outside));
    }
}
