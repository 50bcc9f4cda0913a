//! What an AMD code object says of itself: the architecture it was compiled for, and its kernels.
//!
//! It is an ELF file with one note of MessagePack, as LLVM's AMDGPU usage manual describes it (code object V5).

use std::collections::HashMap;
use std::slice;
use std::sync::Arc;

use object::LittleEndian;
use object::elf::{FileHeader64, NoteType};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};
use serde::Deserialize;

use crate::error::{Result, refuse};

type Header = FileHeader64<LittleEndian>;

const HEADER_BYTES: usize = size_of::<Header>();

/// The note that has the metadata.
const NOTE: (&[u8], NoteType) = (b"AMDGPU", NoteType(32));

pub struct CodeObject {
    /// As `gfx90a:sramecc+`: what it does not name, it was compiled for both states of.
    pub target: String,
    pub kernels: HashMap<String, Arc<Kernel>>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Kernel {
    #[serde(rename = ".name")]
    pub name: String,
    #[serde(rename = ".args", default)]
    arguments: Vec<Argument>,
    /// What it uses without the launch's share.
    #[serde(rename = ".group_segment_fixed_size")]
    pub lds_bytes: u32,
    #[serde(rename = ".max_flat_workgroup_size")]
    pub max_threads: u32,
    #[serde(rename = ".reqd_workgroup_size", default)]
    pub block: Option<[u32; 3]>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Argument {
    #[serde(rename = ".size")]
    size: u32,
    #[serde(rename = ".value_kind")]
    kind: String,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(rename = "amdhsa.target")]
    target: String,
    #[serde(rename = "amdhsa.kernels", default)]
    kernels: Vec<Kernel>,
}

impl Kernel {
    /// The arguments that a launch gives; the others are the runtime's.
    pub fn arguments(&self) -> impl Iterator<Item = &Argument> {
        self.arguments.iter().filter(|argument| !argument.kind.starts_with("hidden_"))
    }
}

impl Argument {
    pub fn is_pointer(&self) -> bool {
        self.kind == "global_buffer" && self.size == 8
    }
}

impl CodeObject {
    pub fn parse(image: &[u8]) -> Result<Self> {
        let metadata = match metadata(image) {
            Ok(metadata) => metadata,
            Err(reason) => refuse!(InvalidImage, "{reason}"),
        };
        let Some(at) = metadata.target.find("gfx") else {
            refuse!(InvalidImage, "a code object for {}", metadata.target)
        };
        let named = |kernel: Kernel| (kernel.name.clone(), Arc::new(kernel));
        Ok(Self {
            target: metadata.target[at..].to_owned(),
            kernels: metadata.kernels.into_iter().map(named).collect(),
        })
    }

    /// Whether it runs on an architecture, named as `gcnArchName` is: the processor is the same, and so is the state of
    /// every feature that the code object depends on.
    pub fn runs_on(&self, arch: &str) -> bool {
        let [mut own, mut device] = [&self.target, arch].map(|name| name.split(':'));
        let features: Vec<_> = device.by_ref().skip(1).collect();
        let processor = arch.split(':').next();
        own.next() == processor && own.all(|feature| features.contains(&feature))
    }
}

fn metadata(image: &[u8]) -> std::result::Result<Metadata, String> {
    let elf = |error: object::Error| format!("no code object: {error}");
    let header = Header::parse(image).map_err(elf)?;
    let endian = header.endian().map_err(elf)?;
    for segment in header.program_headers(endian, image).map_err(elf)? {
        let Some(mut notes) = segment.notes(endian, image).map_err(elf)? else { continue };
        while let Some(note) = notes.next().map_err(elf)? {
            if (note.name(), note.n_type(endian)) == NOTE {
                return rmp_serde::from_slice(note.desc()).map_err(|error| format!("the code object's note: {error}"));
            }
        }
    }
    Err("an ELF file without a code object's note".to_owned())
}

/// The bytes of the code object at `image`, whose length HIP has its callers not say: to the end of the last part that
/// its header names.
///
/// # Safety
///
/// `image` points to a whole code object, or to [`HEADER_BYTES`] of something else.
pub unsafe fn bytes_at<'a>(image: *const u8) -> Result<&'a [u8]> {
    // SAFETY: the caller's promise.
    let start = unsafe { slice::from_raw_parts(image, HEADER_BYTES) };
    let Some(tables) = tables_end(start) else { refuse!(InvalidImage, "{start:02x?} is no ELF header") };
    // SAFETY: a whole code object has the tables that its header names.
    let tables = unsafe { slice::from_raw_parts(image, tables) };
    let Some(end) = contents_end(tables) else { refuse!(InvalidImage, "an ELF file with broken tables") };
    // SAFETY: and it has the parts that the tables name.
    Ok(unsafe { slice::from_raw_parts(image, end.max(tables.len())) })
}

fn tables_end(start: &[u8]) -> Option<usize> {
    let header = Header::parse(start).ok()?;
    let endian = header.endian().ok()?;
    let end = |offset: u64, entry: u16, count: u16| offset.checked_add(entry as u64 * count as u64);
    let segments = end(header.e_phoff(endian), header.e_phentsize(endian), header.e_phnum(endian))?;
    let sections = end(header.e_shoff(endian), header.e_shentsize(endian), header.e_shnum(endian))?;
    usize::try_from(segments.max(sections)).ok().map(|end| end.max(HEADER_BYTES))
}

fn contents_end(tables: &[u8]) -> Option<usize> {
    let header = Header::parse(tables).ok()?;
    let endian = header.endian().ok()?;
    let segments = header.program_headers(endian, tables).ok()?.iter();
    let sections = header.section_headers(endian, tables).ok()?.iter();
    let mut ends = segments
        .map(|segment| segment.file_range(endian))
        .chain(sections.filter_map(|section| section.file_range(endian)))
        .map(|(offset, bytes)| offset.checked_add(bytes));
    ends.try_fold(0, |end, part| Some(end.max(usize::try_from(part?).ok()?)))
}

#[cfg(test)]
pub mod tests {
    use std::collections::BTreeMap;

    use serde::Serialize;

    use super::*;
    use crate::error::Code;

    /// A code object for `target` with the kernel `k`: pointers for arguments, then a hidden one; 256 threads at most.
    pub fn code_object(target: &str, pointers: usize, lds_bytes: u32) -> Vec<u8> {
        #[derive(Serialize)]
        #[serde(untagged)]
        enum Value {
            Number(u32),
            Text(&'static str),
            List(Vec<BTreeMap<&'static str, Value>>),
        }
        let argument = |kind| {
            BTreeMap::from([(".size", Value::Number(8)), (".value_kind", Value::Text(kind)), (".x", Value::Number(1))])
        };
        let mut arguments: Vec<_> = (0..pointers).map(|_| argument("global_buffer")).collect();
        arguments.push(argument("hidden_block_count_x"));
        let kernel = BTreeMap::from([
            (".name", Value::Text("k")),
            (".args", Value::List(arguments)),
            (".group_segment_fixed_size", Value::Number(lds_bytes)),
            (".max_flat_workgroup_size", Value::Number(256)),
        ]);
        let target: &'static str = format!("amdgcn-amd-amdhsa--{target}").leak();
        let metadata =
            BTreeMap::from([("amdhsa.kernels", Value::List(vec![kernel])), ("amdhsa.target", Value::Text(target))]);
        elf(&rmp_serde::to_vec(&metadata).unwrap())
    }

    /// An ELF file of one note.
    fn elf(description: &[u8]) -> Vec<u8> {
        let (name, kind) = NOTE;
        let mut note = Vec::new();
        for word in [name.len() as u32 + 1, description.len() as u32, kind.0] {
            note.extend(word.to_le_bytes());
        }
        note.extend(name);
        note.extend([0; 2]);
        note.extend(description);
        note.resize(note.len().next_multiple_of(4), 0);
        let mut file = vec![0; HEADER_BYTES + 56];
        file[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\x40");
        let mut put = |at: usize, bytes: &[u8]| file[at..][..bytes.len()].copy_from_slice(bytes);
        let (program_header, contents) = (HEADER_BYTES as u64, HEADER_BYTES as u64 + 56);
        put(16, &3u16.to_le_bytes());
        put(18, &224u16.to_le_bytes());
        put(32, &program_header.to_le_bytes());
        put(54, &56u16.to_le_bytes());
        put(56, &1u16.to_le_bytes());
        put(58, &64u16.to_le_bytes());
        put(HEADER_BYTES, &4u32.to_le_bytes());
        put(HEADER_BYTES + 8, &contents.to_le_bytes());
        put(HEADER_BYTES + 32, &(note.len() as u64).to_le_bytes());
        put(HEADER_BYTES + 48, &4u64.to_le_bytes());
        file.extend(note);
        file
    }

    #[test]
    fn the_length_is_found() {
        let mut image = code_object("gfx1100", 2, 0);
        let bytes = image.len();
        image.extend([0xff; 100]);
        // SAFETY: a whole code object, with more behind it.
        let found = unsafe { bytes_at(image.as_ptr()) }.unwrap();
        assert_eq!(found, &image[..bytes]);
    }

    #[test]
    fn kernels_are_found() {
        let object = CodeObject::parse(&code_object("gfx90a:sramecc+", 3, 64)).unwrap();
        assert_eq!(object.target, "gfx90a:sramecc+");
        let kernel = &object.kernels["k"];
        assert_eq!((kernel.arguments().count(), kernel.lds_bytes, kernel.max_threads), (3, 64, 256));
        assert!(kernel.arguments().all(Argument::is_pointer));
        assert_eq!(kernel.block, None);
    }

    #[test]
    fn what_is_no_code_object_is_refused() {
        let whole = code_object("gfx1100", 1, 0);
        let parse = |image: &[u8]| CodeObject::parse(image).err().map(|error| error.code);
        for bytes in 0..whole.len() - 4 {
            assert_eq!(parse(&whole[..bytes]), Some(Code::InvalidImage), "{bytes} bytes");
        }
        assert_eq!(parse(&elf(b"\xc1")), Some(Code::InvalidImage));
        let text = [b'x'; HEADER_BYTES];
        // SAFETY: the header's bytes, of something else.
        assert_eq!(unsafe { bytes_at(text.as_ptr()) }.unwrap_err().code, Code::InvalidImage);
    }

    #[test]
    fn a_target_runs_where_its_features_are() {
        let runs =
            |target: &str, arch: &str| CodeObject { target: target.to_owned(), kernels: HashMap::new() }.runs_on(arch);
        assert!(runs("gfx1100", "gfx1100") && !runs("gfx1100", "gfx1101") && !runs("gfx110", "gfx1100"));
        assert!(runs("gfx90a", "gfx90a:sramecc+:xnack-"));
        assert!(runs("gfx90a:xnack-", "gfx90a:sramecc+:xnack-"));
        assert!(!runs("gfx90a:xnack+", "gfx90a:sramecc+:xnack-") && !runs("gfx90a:xnack+", "gfx90a"));
    }
}
