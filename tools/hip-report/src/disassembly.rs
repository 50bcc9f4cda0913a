//! Machine code as instructions, by the LLVM that made it: the library that CubeCL's compiler links.

use std::ffi::{CStr, CString, c_char};
use std::ptr;
use std::sync::Once;

use llvm_sys::disassembler::{LLVMCreateDisasmCPU, LLVMDisasmContextRef, LLVMDisasmDispose, LLVMDisasmInstruction};
use llvm_sys::target::{LLVMInitializeAMDGPUTargetInfo, LLVMInitializeAMDGPUTargetMC};

const TRIPLE: &CStr = c"amdgcn-amd-amdhsa";

/// The longest text of an instruction is about half of it.
const MAX_TEXT: usize = 512;

unsafe extern "C" {
    /// llvm-sys declares those of the other targets only.
    fn LLVMInitializeAMDGPUDisassembler();
}

/// Why machine code could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DisassemblyError {
    #[error("LLVM has no disassembler for `{0}`")]
    Arch(String),
    #[error("no instruction of {arch} at byte {address}: {bytes:02x?}")]
    Instruction { arch: String, address: u64, bytes: Vec<u8> },
}

/// One instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// In bytes from the kernel's start.
    pub address: u64,
    pub size: usize,
    pub mnemonic: String,
    /// As LLVM prints them; of an instruction of two operations, the second with its mnemonic too.
    pub operands: String,
    /// Where it may jump to; `None` of what is no direct branch.
    pub target: Option<u64>,
}

/// The instructions of a kernel's machine code.
pub fn disassemble(arch: &str, code: &[u8]) -> Result<Vec<Instruction>, DisassemblyError> {
    let disassembler = Disassembler::new(arch)?;
    let mut instructions = Vec::new();
    let mut at = 0;
    while at < code.len() {
        let rest = &code[at..];
        let (size, text) = disassembler.decode(rest, at as u64).ok_or_else(|| DisassemblyError::Instruction {
            arch: arch.to_owned(),
            address: at as u64,
            bytes: rest[..rest.len().min(8)].to_vec(),
        })?;
        let (mnemonic, operands) = text.trim().split_once(char::is_whitespace).unwrap_or((text.trim(), ""));
        let target = branch_target(mnemonic, at as u64, rest);
        let (mnemonic, operands) = (mnemonic.to_owned(), operands.trim().to_owned());
        instructions.push(Instruction { address: at as u64, size, mnemonic, operands, target });
        at += size;
    }
    Ok(instructions)
}

/// A branch's low 16 bits are a signed distance in words of 4 bytes from the instruction after it.
fn branch_target(mnemonic: &str, address: u64, bytes: &[u8]) -> Option<u64> {
    let distance = i16::from_le_bytes([*bytes.first()?, *bytes.get(1)?]);
    let is_branch = mnemonic == "s_branch" || mnemonic.starts_with("s_cbranch_");
    is_branch.then(|| (address + 4).wrapping_add_signed(4 * i64::from(distance)))
}

struct Disassembler(LLVMDisasmContextRef);

impl Disassembler {
    fn new(arch: &str) -> Result<Self, DisassemblyError> {
        static TARGET: Once = Once::new();
        // SAFETY: they register static tables and take no arguments; `Once` keeps two threads from doing it at a time.
        TARGET.call_once(|| unsafe {
            LLVMInitializeAMDGPUTargetInfo();
            LLVMInitializeAMDGPUTargetMC();
            LLVMInitializeAMDGPUDisassembler();
        });
        let unknown = || DisassemblyError::Arch(arch.to_owned());
        let cpu = CString::new(arch).map_err(|_| unknown())?;
        // SAFETY: both strings end in NUL and outlive the call; a null DisInfo and no callbacks are allowed.
        let context = unsafe { LLVMCreateDisasmCPU(TRIPLE.as_ptr(), cpu.as_ptr(), ptr::null_mut(), 0, None, None) };
        if context.is_null() { Err(unknown()) } else { Ok(Self(context)) }
    }

    /// The size and text of the first instruction of `bytes`.
    fn decode(&self, bytes: &[u8], address: u64) -> Option<(usize, String)> {
        let mut text = [0u8; MAX_TEXT];
        // SAFETY: the context is live; LLVM reads at most `bytes.len()` bytes through the pointer, writes none of them,
        // and writes at most `text.len()` bytes of text, the last of them NUL.
        let size = unsafe {
            LLVMDisasmInstruction(
                self.0,
                bytes.as_ptr().cast_mut(),
                bytes.len() as u64,
                address,
                text.as_mut_ptr().cast::<c_char>(),
                text.len(),
            )
        };
        let text = CStr::from_bytes_until_nul(&text).ok()?;
        (size > 0 && size <= bytes.len()).then(|| (size, text.to_string_lossy().into_owned()))
    }
}

impl Drop for Disassembler {
    fn drop(&mut self) {
        // SAFETY: the context came from LLVM, is not null, and nothing uses it after this.
        unsafe { LLVMDisasmDispose(self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_have_addresses_sizes_and_targets() {
        // s_mov_b32 s0, 0; v_mov_b32_e32 v0, 0x12345678; s_cbranch_scc1 -3 words; s_endpgm, as AMD's RDNA3 ISA guide
        // encodes them.
        let code: Vec<u8> = [0xbe800080u32, 0x7e0002ff, 0x12345678, 0xbfa2fffc, 0xbfb00000]
            .iter()
            .flat_map(|w| w.to_le_bytes())
            .collect();
        let instructions = disassemble("gfx1100", &code).unwrap();
        let seen: Vec<_> = instructions.iter().map(|i| (i.address, i.size, i.mnemonic.as_str(), i.target)).collect();
        let expected = [
            (0, 4, "s_mov_b32", None),
            (4, 8, "v_mov_b32_e32", None),
            (12, 4, "s_cbranch_scc1", Some(0)),
            (16, 4, "s_endpgm", None),
        ];
        assert_eq!(seen, expected);
        assert_eq!(instructions[1].operands, "v0, 0x12345678");
    }

    #[test]
    fn what_is_no_instruction_is_an_error_that_says_where() {
        let code = [0xbfb00000u32.to_le_bytes(), [0xff; 4]].concat();
        let error = disassemble("gfx1100", &code).unwrap_err();
        assert!(matches!(error, DisassemblyError::Instruction { address: 4, .. }), "{error}");
    }
}
