//! Device memory and pinned host memory: one mapping of a sparse file, which an executor maps at the same address.
//!
//! An allocation starts on a page and ends before a page that nothing uses. Addresses are given again only after all
//! the others, so that a pointer into freed memory is known as one for a long time; the memory itself goes back to the
//! system at once.

use std::collections::{BTreeMap, HashMap};
use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::Mutex;

use crate::error::{Result, refuse};
use crate::runtime::lock;

const PAGE: usize = 4096;

/// Where the mapping goes: far from what Linux places by itself, so that an executor has the range free too.
const ADDRESS: usize = 0x6000_0000_0000;

/// The other places to try, for a process with several mappings.
const PLACES: usize = 16;

/// Address space a byte of capacity.
const ADDRESSES_PER_BYTE: usize = 8;

/// Whose memory it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    Device(usize),
    /// Pinned.
    Host,
}

/// One side of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Device,
    Host,
}

/// Rows of bytes from one place to another.
#[derive(Clone, Debug)]
pub struct Copy {
    pub to: End,
    pub from: End,
    pub width: usize,
    pub rows: usize,
}

#[derive(Clone, Debug)]
pub struct End {
    pub side: Side,
    pub address: usize,
    /// The bytes from one row to the next.
    pub pitch: usize,
}

impl Copy {
    /// `bytes` in one row.
    pub fn flat(to: (Side, usize), from: (Side, usize), bytes: usize) -> Self {
        let end = |(side, address)| End { side, address, pitch: bytes };
        Self { to: end(to), from: end(from), width: bytes, rows: 1 }
    }
}

/// What was allocated so far, in bytes and in number.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    pub allocations: u64,
    pub frees: u64,
    pub live_bytes: usize,
    pub peak_bytes: usize,
}

pub struct Memory {
    mapping: Mapping,
    capacity: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    live: BTreeMap<usize, Allocation>,
    /// The bytes that were freed last at an address.
    freed: BTreeMap<usize, usize>,
    used: HashMap<Owner, usize>,
    /// Where the next allocation may go: after the last one.
    next: usize,
    totals: Totals,
}

struct Allocation {
    bytes: usize,
    owner: Owner,
}

impl Memory {
    /// `capacity` bytes for each device, and for the host.
    pub fn new(file: Option<&Path>, capacity: usize, devices: usize) -> io::Result<Self> {
        let bytes = capacity
            .checked_mul(ADDRESSES_PER_BYTE * (devices + 1))
            .and_then(|bytes| bytes.checked_next_multiple_of(PAGE))
            .filter(|&bytes| 0 < bytes && bytes <= 1 << 44)
            .ok_or_else(|| io::Error::other(format!("{capacity} bytes of memory for each of {devices} devices")))?;
        let mapping = Mapping::new(file, bytes)?;
        let state = Mutex::new(State { next: mapping.address, ..State::default() });
        Ok(Self { mapping, capacity, state })
    }

    /// The file, the address and the bytes that an executor maps.
    pub fn shared(&self) -> (&Path, usize, usize) {
        (&self.mapping.path, self.mapping.address, self.mapping.bytes)
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// What the owner may still allocate.
    pub fn available(&self, owner: Owner) -> usize {
        self.capacity - lock(&self.state).used.get(&owner).copied().unwrap_or(0)
    }

    pub fn totals(&self) -> Totals {
        lock(&self.state).totals
    }

    /// An address, or null for no bytes.
    pub fn allocate(&self, bytes: usize, owner: Owner) -> Result<usize> {
        if bytes == 0 {
            return Ok(0);
        }
        let mut state = lock(&self.state);
        let free = self.capacity - state.used.get(&owner).copied().unwrap_or(0);
        let pages = bytes.checked_next_multiple_of(PAGE).filter(|&pages| pages <= free);
        let Some(pages) = pages else { refuse!(OutOfMemory, "{bytes} bytes were asked for and {free} are free") };
        let end = self.mapping.address + self.mapping.bytes;
        let gap = state.gap(state.next, end, pages + PAGE);
        let Some(at) = gap.or_else(|| state.gap(self.mapping.address, end, pages + PAGE)) else {
            refuse!(OutOfMemory, "no {bytes} bytes of addresses are in one piece")
        };
        state.next = at + pages + PAGE;
        let reused = state.freed.range(..at + pages).filter(|&(&old, &bytes)| old + bytes > at);
        for old in reused.map(|(&old, _)| old).collect::<Vec<_>>() {
            state.freed.remove(&old);
        }
        state.live.insert(at, Allocation { bytes, owner });
        *state.used.entry(owner).or_default() += pages;
        let totals = &mut state.totals;
        totals.allocations += 1;
        totals.live_bytes += bytes;
        totals.peak_bytes = totals.peak_bytes.max(totals.live_bytes);
        Ok(at)
    }

    /// Frees what `allocate` gave out for this side; null is nothing.
    pub fn free(&self, at: usize, side: Side) -> Result<()> {
        if at == 0 {
            return Ok(());
        }
        let mut state = lock(&self.state);
        match state.live.get(&at) {
            Some(allocation) if allocation.owner.side() == side => {}
            Some(_) => refuse!(InvalidValue, "{at:#x} is not {side} memory"),
            None => refuse!(InvalidValue, "{}, and cannot be freed", state.describe(at)),
        }
        if let Some(Allocation { bytes, owner }) = state.live.remove(&at) {
            let pages = bytes.next_multiple_of(PAGE);
            self.mapping.discard(at, pages);
            state.freed.insert(at, bytes);
            if let Some(used) = state.used.get_mut(&owner) {
                *used -= pages;
            }
            state.totals.frees += 1;
            state.totals.live_bytes -= bytes;
        }
        Ok(())
    }

    /// What is wrong with a pointer that a kernel gets, if anything is.
    pub fn fault(&self, at: usize) -> Option<String> {
        let state = lock(&self.state);
        state.containing(at).is_none().then(|| state.describe(at))
    }

    pub fn copy(&self, copy: &Copy) -> Result<()> {
        let Copy { to, from, width, rows } = copy;
        if *width == 0 || *rows == 0 {
            return Ok(());
        }
        // Held to the end: nothing that is checked here may be freed before it is copied.
        let state = lock(&self.state);
        for (end, what) in [(to, "to"), (from, "from")] {
            if *rows > 1 && end.pitch < *width {
                refuse!(
                    InvalidPitchValue,
                    "rows of {width} bytes have a pitch of {} {what} {:#x}",
                    end.pitch,
                    end.address
                );
            }
            let span = (rows - 1).checked_mul(end.pitch).and_then(|rows| rows.checked_add(*width));
            let span = span.filter(|&span| end.address.checked_add(span).is_some());
            let Some(span) = span else { refuse!(InvalidValue, "{rows} rows {what} {:#x}", end.address) };
            self.check(&state, end, span, what)?;
        }
        for row in 0..*rows {
            let (to, from) = (to.address + row * to.pitch, from.address + row * from.pitch);
            // SAFETY: both ends were found inside live allocations, or are the caller's own memory, which HIP's
            // contract has them answer for; `copy` allows that they overlap.
            unsafe { ptr::copy(from as *const u8, to as *mut u8, *width) };
        }
        Ok(())
    }

    fn check(&self, state: &State, end: &End, span: usize, what: &str) -> Result<()> {
        let End { side, address, .. } = *end;
        if address == 0 {
            refuse!(InvalidValue, "a copy of {span} bytes {what} null");
        }
        if side == Side::Host && !self.mapping.contains(address) {
            return Ok(());
        }
        let Some((start, allocation)) = state.containing(address) else {
            refuse!(InvalidValue, "a copy of {span} bytes {what} {}", state.describe(address))
        };
        if allocation.owner.side() != side {
            refuse!(InvalidMemcpyDirection, "a copy of {span} bytes {what} {address:#x}, which is not {side} memory");
        }
        let left = start + allocation.bytes - address;
        if span > left {
            refuse!(InvalidValue, "a copy of {span} bytes {what} {address:#x}, whose allocation has {left} from there");
        }
        Ok(())
    }
}

impl State {
    /// The first address in `from..to` with `span` bytes that no allocation uses.
    fn gap(&self, from: usize, to: usize, span: usize) -> Option<usize> {
        let mut at = from;
        for (&start, allocation) in self.live.range(from..to) {
            if start - at >= span {
                return Some(at);
            }
            at = start + allocation.bytes.next_multiple_of(PAGE) + PAGE;
        }
        (to.checked_sub(at)? >= span).then_some(at)
    }

    fn containing(&self, at: usize) -> Option<(usize, &Allocation)> {
        let (&start, allocation) = self.live.range(..=at).next_back()?;
        (at - start < allocation.bytes).then_some((start, allocation))
    }

    /// What is at an address, for a message.
    fn describe(&self, at: usize) -> String {
        if let Some((start, allocation)) = self.containing(at) {
            return format!("{at:#x} is inside the {} bytes at {start:#x}", allocation.bytes);
        }
        let freed = self.freed.range(..=at).next_back().filter(|&(&start, &bytes)| at - start < bytes);
        match freed {
            Some((start, bytes)) => format!("{at:#x} is in {bytes} bytes at {start:#x} that were freed"),
            None => format!("{at:#x} is in no allocation"),
        }
    }
}

impl Owner {
    fn side(self) -> Side {
        match self {
            Self::Device(_) => Side::Device,
            Self::Host => Side::Host,
        }
    }
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Device => "device",
            Self::Host => "pinned host",
        })
    }
}

/// A shared mapping of a sparse file, for reading and writing.
struct Mapping {
    /// The anonymous file is open for as long as `path` names it.
    _file: File,
    path: PathBuf,
    address: usize,
    bytes: usize,
}

impl Mapping {
    fn new(path: Option<&Path>, bytes: usize) -> io::Result<Self> {
        let (file, path) = match path {
            Some(path) => {
                let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
                (file, path.to_owned())
            }
            None => anonymous()?,
        };
        file.set_len(bytes as u64)?;
        let address = map(&file, bytes)?;
        Ok(Self { _file: file, path, address, bytes })
    }

    fn contains(&self, at: usize) -> bool {
        (self.address..self.address + self.bytes).contains(&at)
    }

    /// Gives the memory of whole pages back to the system; it reads as zeros after that.
    fn discard(&self, at: usize, bytes: usize) {
        debug_assert!(self.contains(at) && self.contains(at + bytes - 1));
        // SAFETY: the range is part of this mapping, and its allocation was removed. A file system that cannot do it
        // leaves the memory as it is, which costs memory and nothing else.
        unsafe { libc::madvise(at as *mut c_void, bytes, libc::MADV_REMOVE) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this object's own, and goes with it.
        unsafe { libc::munmap(self.address as *mut c_void, self.bytes) };
    }
}

/// A file without a name, of no file system's size, that is gone with the process however it ends.
fn anonymous() -> io::Result<(File, PathBuf)> {
    // SAFETY: the name is a C string.
    let descriptor = unsafe { libc::memfd_create(c"hip-stand-in".as_ptr(), libc::MFD_CLOEXEC) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was opened just now, and is nobody else's.
    let file = unsafe { File::from_raw_fd(descriptor) };
    Ok((file, format!("/proc/{}/fd/{descriptor}", std::process::id()).into()))
}

/// Maps the whole file at the first free one of the places.
fn map(file: &File, bytes: usize) -> io::Result<usize> {
    let flags = libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE | libc::MAP_NORESERVE;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let mut error = io::Error::other("no place for the mapping");
    for place in 0..PLACES {
        let wanted = ADDRESS + place * bytes.next_multiple_of(1 << 32);
        // SAFETY: `MAP_FIXED_NOREPLACE` leaves every mapping that is there alone.
        let got = unsafe { libc::mmap(wanted as *mut c_void, bytes, protection, flags, file.as_raw_fd(), 0) };
        if got as usize == wanted {
            return Ok(wanted);
        }
        error = io::Error::last_os_error();
        if got != libc::MAP_FAILED {
            // SAFETY: a kernel that does not know the flag mapped it elsewhere, just now.
            unsafe { libc::munmap(got, bytes) };
        }
    }
    Err(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    const DEVICE: Owner = Owner::Device(0);

    fn memory(capacity: usize) -> Memory {
        Memory::new(None, capacity, 1).unwrap()
    }

    fn upload(memory: &Memory, to: usize, bytes: &[u8]) -> Result<()> {
        let from = (Side::Host, bytes.as_ptr() as usize);
        memory.copy(&Copy::flat((Side::Device, to), from, bytes.len()))
    }

    fn download(memory: &Memory, from: usize, bytes: &mut [u8]) -> Result<()> {
        let to = (Side::Host, bytes.as_mut_ptr() as usize);
        memory.copy(&Copy::flat(to, (Side::Device, from), bytes.len()))
    }

    #[test]
    fn bytes_come_back() {
        let memory = memory(1 << 20);
        let at = memory.allocate(1000, DEVICE).unwrap();
        let data: Vec<u8> = (0..1000).map(|i| i as u8).collect();
        upload(&memory, at, &data).unwrap();
        let mut back = vec![0; 990];
        download(&memory, at + 10, &mut back).unwrap();
        assert_eq!(back, data[10..]);
    }

    #[test]
    fn what_is_allocated_is_accounted() {
        let memory = memory(1 << 20);
        let [a, b] = [5000, 4096].map(|bytes| memory.allocate(bytes, DEVICE).unwrap());
        assert_eq!(memory.available(DEVICE), (1 << 20) - 3 * PAGE);
        assert_eq!(memory.available(Owner::Host), 1 << 20);
        memory.free(a, Side::Device).unwrap();
        let Totals { allocations, frees, live_bytes, peak_bytes } = memory.totals();
        assert_eq!((allocations, frees, live_bytes, peak_bytes), (2, 1, 4096, 9096));
        memory.free(b, Side::Device).unwrap();
        assert_eq!((memory.available(DEVICE), memory.totals().live_bytes), (1 << 20, 0));
    }

    #[test]
    fn the_capacity_is_the_limit() {
        let memory = memory(3 * PAGE);
        let all = memory.allocate(3 * PAGE, DEVICE).unwrap();
        for bytes in [1, usize::MAX] {
            assert_eq!(memory.allocate(bytes, DEVICE).unwrap_err().code, Code::OutOfMemory);
        }
        memory.allocate(1, Owner::Host).unwrap();
        memory.free(all, Side::Device).unwrap();
        memory.allocate(1, DEVICE).unwrap();
        assert_eq!(memory.allocate(0, DEVICE).unwrap(), 0);
    }

    /// Random allocations and frees, far more than the addresses there are: none overlap.
    #[test]
    fn live_allocations_never_overlap() {
        let memory = memory(16 * PAGE);
        let mut live: Vec<(usize, usize)> = Vec::new();
        let mut state = 1u64;
        for _ in 0..20_000 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let random = (state >> 33) as usize;
            if live.len() > random % 8 {
                let (at, _) = live.swap_remove(random % live.len());
                memory.free(at, Side::Device).unwrap();
            } else if let Ok(at) = memory.allocate(1 + random % (5 * PAGE), DEVICE) {
                let end = at + 1 + random % (5 * PAGE);
                assert!(live.iter().all(|&(start, stop)| end <= start || stop <= at));
                live.push((at, end));
            }
        }
        assert!(memory.totals().allocations > 1000);
    }

    #[test]
    fn nothing_is_freed_twice_or_by_another_name() {
        let memory = memory(1 << 20);
        let (device, host) = (memory.allocate(100, DEVICE).unwrap(), memory.allocate(100, Owner::Host).unwrap());
        for (at, side) in [(device, Side::Host), (host, Side::Device), (device + 8, Side::Device), (8, Side::Device)] {
            assert_eq!(memory.free(at, side).unwrap_err().code, Code::InvalidValue);
        }
        memory.free(device, Side::Device).unwrap();
        let again = memory.free(device, Side::Device).unwrap_err();
        assert!(again.message.contains("were freed"), "{again}");
        memory.free(0, Side::Device).unwrap();
    }

    #[test]
    fn freed_memory_is_known_and_empty() {
        let memory = memory(1 << 20);
        let at = memory.allocate(100, DEVICE).unwrap();
        upload(&memory, at, &[7; 100]).unwrap();
        assert_eq!(memory.fault(at + 99), None);
        assert!(memory.fault(at + 100).unwrap().contains("no allocation"));
        memory.free(at, Side::Device).unwrap();
        assert!(memory.fault(at).unwrap().contains("were freed"));
        let error = upload(&memory, at, &[7; 100]).unwrap_err();
        assert!(error.code == Code::InvalidValue && error.message.contains("were freed"), "{error}");
        // The address is not given again while others are left.
        let others: Vec<_> = (0..100).map(|_| memory.allocate(100, DEVICE).unwrap()).collect();
        assert!(!others.contains(&at));
    }

    #[test]
    fn memory_that_is_given_again_is_zero() {
        let memory = memory(PAGE);
        let mut seen = Vec::new();
        for _ in 0..100 {
            let at = memory.allocate(PAGE, DEVICE).unwrap();
            let mut bytes = [1; PAGE];
            download(&memory, at, &mut bytes).unwrap();
            assert_eq!(bytes, [0; PAGE]);
            upload(&memory, at, &[0xff; PAGE]).unwrap();
            memory.free(at, Side::Device).unwrap();
            seen.push(at);
        }
        let last = seen.pop().unwrap();
        assert!(seen.contains(&last));
    }

    #[test]
    fn copies_stay_inside() {
        let memory = memory(1 << 20);
        let (device, host) = (memory.allocate(100, DEVICE).unwrap(), memory.allocate(100, Owner::Host).unwrap());
        let code = |to, from, bytes| memory.copy(&Copy::flat(to, from, bytes)).unwrap_err().code;
        let (on_device, on_host) = ((Side::Device, device), (Side::Host, host));
        memory.copy(&Copy::flat(on_device, on_host, 100)).unwrap();
        memory.copy(&Copy::flat((Side::Device, 0), (Side::Host, 0), 0)).unwrap();
        assert_eq!(code(on_device, on_host, 101), Code::InvalidValue);
        assert_eq!(code((Side::Device, device + 60), on_device, 60), Code::InvalidValue);
        assert_eq!(code(on_device, (Side::Device, 0), 4), Code::InvalidValue);
        assert_eq!(code(on_device, (Side::Host, usize::MAX - 8), 100), Code::InvalidValue);
        assert_eq!(code(on_device, (Side::Host, device), 4), Code::InvalidMemcpyDirection);
        assert_eq!(code((Side::Device, host), on_device, 4), Code::InvalidMemcpyDirection);
    }

    #[test]
    fn rows_keep_their_pitch() {
        let memory = memory(1 << 20);
        let at = memory.allocate(2 * 16 + 3, DEVICE).unwrap();
        let data = *b"abcdefghi";
        let copy = |pitch, rows| Copy {
            to: End { side: Side::Device, address: at, pitch },
            from: End { side: Side::Host, address: data.as_ptr() as usize, pitch: 3 },
            width: 3,
            rows,
        };
        memory.copy(&copy(16, 3)).unwrap();
        let mut back = [0; 35];
        download(&memory, at, &mut back).unwrap();
        assert_eq!([&back[..3], &back[16..19], &back[32..]].concat(), data);
        assert!(back[3..16].iter().all(|&byte| byte == 0));
        assert_eq!(memory.copy(&copy(17, 3)).unwrap_err().code, Code::InvalidValue);
        assert_eq!(memory.copy(&copy(2, 2)).unwrap_err().code, Code::InvalidPitchValue);
        assert_eq!(memory.copy(&copy(usize::MAX, 3)).unwrap_err().code, Code::InvalidValue);
    }
}
