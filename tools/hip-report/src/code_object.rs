//! A code object of one kernel: an ELF file with its machine code, and a note that says what it needs of the device.
//!
//! The note's fields: <https://llvm.org/docs/AMDGPUUsage.html#code-object-v3-metadata>.

use object::elf::{FileHeader64, NoteType};
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader};
use object::{Endianness, Object, ObjectSection, ObjectSymbol};
use serde::Deserialize;

/// The note's owner and type.
const OWNER: &[u8] = b"AMDGPU";
const NT_AMDGPU_METADATA: NoteType = NoteType(32);

/// Why bytes are not a code object of one kernel.
#[derive(Debug, thiserror::Error)]
pub enum CodeObjectError {
    #[error("the ELF file of {bytes} bytes: {source}")]
    Elf { bytes: usize, source: object::Error },
    #[error("the ELF file of {0} bytes has no AMDGPU metadata")]
    NoMetadata(usize),
    #[error("the AMDGPU metadata of {bytes} bytes: {source}")]
    Metadata { bytes: usize, source: rmp_serde::decode::Error },
    #[error("{0} kernels, where one was expected")]
    Kernels(usize),
    #[error("the target `{0}` names no architecture")]
    Target(String),
    #[error("the kernel `{0}` has no machine code")]
    NoCode(String),
}

/// What a kernel needs of the device.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Kernel {
    #[serde(rename = ".name")]
    pub symbol: String,
    /// Accumulation registers included, where the architecture has both in one file.
    #[serde(rename = ".vgpr_count")]
    pub vgprs: u32,
    #[serde(rename = ".agpr_count", default)]
    pub agprs: u32,
    #[serde(rename = ".sgpr_count")]
    pub sgprs: u32,
    #[serde(rename = ".vgpr_spill_count", default)]
    pub spilled_vgprs: u32,
    #[serde(rename = ".sgpr_spill_count", default)]
    pub spilled_sgprs: u32,
    /// A lane's scratch memory.
    #[serde(rename = ".private_segment_fixed_size")]
    pub scratch_bytes: u32,
    /// A workgroup's LDS, what a launch adds left out.
    #[serde(rename = ".group_segment_fixed_size")]
    pub lds_bytes: u32,
    #[serde(rename = ".wavefront_size")]
    pub wave_size: u32,
    #[serde(rename = ".max_flat_workgroup_size")]
    pub max_workgroup_size: u32,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(rename = "amdhsa.target")]
    target: String,
    #[serde(rename = "amdhsa.kernels")]
    kernels: Vec<Kernel>,
}

/// One kernel, compiled.
#[derive(Clone, Debug)]
pub struct CodeObject<'a> {
    /// As `gfx1100`.
    pub arch: String,
    pub kernel: Kernel,
    /// The kernel's machine code, without what pads it.
    pub code: &'a [u8],
}

impl<'a> CodeObject<'a> {
    /// Reads a code object that has one kernel.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, CodeObjectError> {
        let elf_error = |source| CodeObjectError::Elf { bytes: bytes.len(), source };
        let file = ElfFile64::<Endianness>::parse(bytes).map_err(elf_error)?;
        let note = metadata_note(bytes).map_err(elf_error)?.ok_or(CodeObjectError::NoMetadata(bytes.len()))?;
        let metadata: Metadata =
            rmp_serde::from_slice(note).map_err(|source| CodeObjectError::Metadata { bytes: note.len(), source })?;
        let arch = arch(&metadata.target).ok_or_else(|| CodeObjectError::Target(metadata.target.clone()))?.to_owned();
        let [kernel] = <[Kernel; 1]>::try_from(metadata.kernels).map_err(|all| CodeObjectError::Kernels(all.len()))?;
        let code = machine_code(&file, &kernel.symbol)
            .map_err(elf_error)?
            .filter(|code| !code.is_empty())
            .ok_or_else(|| CodeObjectError::NoCode(kernel.symbol.clone()))?;
        Ok(Self { arch, kernel, code })
    }
}

fn metadata_note(bytes: &[u8]) -> object::Result<Option<&[u8]>> {
    let header = FileHeader64::<Endianness>::parse(bytes)?;
    let endian = header.endian()?;
    for segment in header.program_headers(endian, bytes)? {
        let Some(mut notes) = segment.notes(endian, bytes)? else { continue };
        while let Some(note) = notes.next()? {
            if note.name() == OWNER && note.n_type(endian) == NT_AMDGPU_METADATA {
                return Ok(Some(note.desc()));
            }
        }
    }
    Ok(None)
}

fn machine_code<'a>(file: &ElfFile64<'a>, symbol: &str) -> object::Result<Option<&'a [u8]>> {
    let named = |candidate: &object::read::elf::ElfSymbol64<'a, '_>| candidate.name_bytes() == Ok(symbol.as_bytes());
    let Some(symbol) = file.symbols().chain(file.dynamic_symbols()).find(named) else { return Ok(None) };
    let Some(section) = symbol.section_index() else { return Ok(None) };
    file.section_by_index(section)?.data_range(symbol.address(), symbol.size())
}

/// `gfx90a` of `amdgcn-amd-amdhsa--gfx90a:sramecc+:xnack-`.
fn arch(target: &str) -> Option<&str> {
    let processor = target.rsplit('-').find(|part| part.starts_with("gfx"))?;
    processor.split(':').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_names_its_architecture() {
        assert_eq!(arch("amdgcn-amd-amdhsa-unknown-gfx1100"), Some("gfx1100"));
        assert_eq!(arch("amdgcn-amd-amdhsa--gfx90a:sramecc+:xnack-"), Some("gfx90a"));
        assert_eq!(arch("amdgcn-amd-amdhsa--"), None);
    }

    #[test]
    fn what_is_no_code_object_is_an_error() {
        assert!(matches!(CodeObject::parse(b""), Err(CodeObjectError::Elf { bytes: 0, .. })));
        assert!(matches!(CodeObject::parse(&[0x7f; 100]), Err(CodeObjectError::Elf { bytes: 100, .. })));
    }

    #[test]
    fn metadata_is_read_by_name_and_the_rest_of_it_is_left() {
        // {"amdhsa.target": "--gfx942", "amdhsa.version": [1, 2], "amdhsa.kernels": []} as MessagePack.
        let note = b"\x83\xadamdhsa.target\xa8--gfx942\xaeamdhsa.version\x92\x01\x02\xaeamdhsa.kernels\x90";
        let metadata: Metadata = rmp_serde::from_slice(note).unwrap();
        assert_eq!((arch(&metadata.target), metadata.kernels.len()), (Some("gfx942"), 0));
    }
}
