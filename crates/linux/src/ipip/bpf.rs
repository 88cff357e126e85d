//! The bpf(2) system call: maps, programs, and what the kernel tells about them.
//!
//! Everything is found by number through what is attached, so nothing needs to be pinned and no file system mounted.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// `BPF_MAP_TYPE_ARRAY`.
pub const ARRAY: u32 = 2;
/// `BPF_MAP_TYPE_PERCPU_ARRAY`.
pub const PERCPU_ARRAY: u32 = 6;
/// `BPF_F_RDONLY_PROG`.
pub const READ_ONLY_FOR_PROGRAMS: u32 = 1 << 7;

const MAP_CREATE: libc::c_int = 0;
const MAP_LOOKUP_ELEM: libc::c_int = 1;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_DELETE_ELEM: libc::c_int = 3;
const MAP_GET_NEXT_KEY: libc::c_int = 4;
const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_DETACH: libc::c_int = 9;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const MAP_GET_FD_BY_ID: libc::c_int = 14;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const PROG_QUERY: libc::c_int = 16;
const MAP_FREEZE: libc::c_int = 22;
const PROG_BIND_MAP: libc::c_int = 35;

const PROG_TYPE_SCHED_CLS: u32 = 3;
/// The kernel writes one value per *possible* CPU; this is the most that any Linux has.
const MAX_CPUS: usize = 8192;

/// `BPF_F_REPLACE`.
const REPLACE: u32 = 1 << 2;

/// A kernel object's name: 15 bytes and a zero.
type Name = [u8; 16];

/// Where TCX attaches (`BPF_TCX_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcxHook {
    /// Packets that the device received.
    Ingress = 46,
    /// Packets that the device is about to send.
    Egress = 47,
}

/// Shape of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapShape {
    /// `BPF_MAP_TYPE_*`.
    pub kind: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Most entries.
    pub max_entries: u32,
    /// `BPF_F_*` at creation.
    pub flags: u32,
}

/// A map.
#[derive(Debug)]
pub struct Map {
    fd: OwnedFd,
    /// Its number in the kernel.
    pub id: u32,
    /// Its name, at most 15 bytes.
    pub name: String,
    /// Its shape.
    pub shape: MapShape,
}

/// What the kernel tells about a loaded program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramInfo {
    /// Its name, at most 15 bytes.
    pub name: String,
    /// Maps it uses, by number.
    pub maps: Vec<u32>,
}

impl Map {
    /// Creates a map.
    pub fn create(label: &str, shape: MapShape) -> io::Result<Self> {
        #[repr(C)]
        #[derive(Default)]
        struct Attr {
            kind: u32,
            key_size: u32,
            value_size: u32,
            max_entries: u32,
            flags: u32,
            inner_map: u32,
            numa_node: u32,
            name: Name,
        }
        let mut attr = Attr {
            kind: shape.kind,
            key_size: shape.key_size,
            value_size: shape.value_size,
            max_entries: shape.max_entries,
            flags: shape.flags,
            name: name(label),
            ..Attr::default()
        };
        Self::from_fd(new_fd(MAP_CREATE, &mut attr)?)
    }

    /// Opens a map by its number.
    pub fn by_id(id: u32) -> io::Result<Self> {
        Self::from_fd(by_id(MAP_GET_FD_BY_ID, id)?)
    }

    /// The descriptor, for relocation.
    pub fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Sets an entry.
    pub fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.check(key, Some(value));
        self.element(MAP_UPDATE_ELEM, key.as_ptr() as u64, value.as_ptr() as u64)
            .map(drop)
    }

    /// Reads an entry; not for per-CPU maps.
    pub fn lookup(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.check(key, None);
        assert_ne!(self.shape.kind, PERCPU_ARRAY, "per-CPU values need more room");
        let mut value = vec![0; self.shape.value_size as usize];
        let found = self.element(MAP_LOOKUP_ELEM, key.as_ptr() as u64, value.as_mut_ptr() as u64);
        Ok(absent(found)?.map(|_| value))
    }

    /// Reads an entry of a per-CPU array of `u64` fields, added up over all CPUs.
    pub fn sum(&self, index: u32) -> io::Result<Vec<u64>> {
        assert_eq!(self.shape.kind, PERCPU_ARRAY, "only per-CPU values can be added up");
        let size = (self.shape.value_size as usize).next_multiple_of(8);
        let mut values = vec![0u64; size / 8 * MAX_CPUS];
        self.element(MAP_LOOKUP_ELEM, (&raw const index) as u64, values.as_mut_ptr() as u64)?;
        let mut sum = vec![0u64; size / 8];
        for of_cpu in values.chunks_exact(size / 8) {
            for (total, value) in sum.iter_mut().zip(of_cpu) {
                *total = total.wrapping_add(*value);
            }
        }
        Ok(sum)
    }

    /// Removes an entry; absence is fine.
    pub fn delete(&self, key: &[u8]) -> io::Result<()> {
        self.check(key, None);
        absent(self.element(MAP_DELETE_ELEM, key.as_ptr() as u64, 0)).map(drop)
    }

    /// All keys. One that comes or goes meanwhile may be missed or met twice.
    pub fn keys(&self) -> io::Result<Vec<Vec<u8>>> {
        let mut keys: Vec<Vec<u8>> = Vec::new();
        // The walk starts anew when its current key was deleted: bound it.
        while keys.len() <= 2 * self.shape.max_entries as usize {
            let mut next = vec![0; self.shape.key_size as usize];
            let from = keys.last().map_or(0, |key| key.as_ptr() as u64);
            match absent(self.element(MAP_GET_NEXT_KEY, from, next.as_mut_ptr() as u64))? {
                Some(_) => keys.push(next),
                None => break,
            }
        }
        Ok(keys)
    }

    /// Forbids further changes from user space, so that the verifier takes the content for constants.
    pub fn freeze(&self) -> io::Result<()> {
        #[repr(C)]
        struct Attr {
            map: u32,
        }
        call(
            MAP_FREEZE,
            &mut Attr {
                map: self.fd.as_raw_fd() as u32,
            },
        )
        .map(drop)
    }

    fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        #[repr(C)]
        #[derive(Default)]
        struct Info {
            kind: u32,
            id: u32,
            key_size: u32,
            value_size: u32,
            max_entries: u32,
            flags: u32,
            name: Name,
        }
        let mut info = Info::default();
        object_info(&fd, &mut info)?;
        Ok(Self {
            fd,
            id: info.id,
            name: read_name(info.name),
            shape: MapShape {
                kind: info.kind,
                key_size: info.key_size,
                value_size: info.value_size,
                max_entries: info.max_entries,
                flags: info.flags,
            },
        })
    }

    fn check(&self, key: &[u8], value: Option<&[u8]>) {
        assert_eq!(key.len(), self.shape.key_size as usize, "the kernel reads a whole key");
        if let Some(value) = value {
            assert_eq!(
                value.len(),
                self.shape.value_size as usize,
                "the kernel reads a whole value"
            );
        }
    }

    fn element(&self, command: libc::c_int, key: u64, value: u64) -> io::Result<i32> {
        #[repr(C)]
        struct Attr {
            map: u32,
            padding: u32,
            key: u64,
            value: u64,
            flags: u64,
        }
        call(
            command,
            &mut Attr {
                map: self.fd.as_raw_fd() as u32,
                padding: 0,
                key,
                value,
                flags: 0,
            },
        )
    }
}

/// Loads a classifier. An error carries the verifier's words.
pub fn load_classifier(label: &str, instructions: &[[u8; 8]], license: &std::ffi::CStr) -> io::Result<OwnedFd> {
    #[repr(C)]
    #[derive(Default)]
    struct Attr {
        kind: u32,
        instruction_count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
        name: Name,
    }
    let mut attr = Attr {
        kind: PROG_TYPE_SCHED_CLS,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        name: name(label),
        ..Attr::default()
    };
    let first = match new_fd(PROG_LOAD, &mut attr) {
        Ok(fd) => return Ok(fd),
        Err(error) => error,
    };
    let mut log = vec![0u8; 64 * 1024];
    attr.log_level = 1;
    attr.log_size = log.len() as u32;
    attr.log = log.as_mut_ptr() as u64;
    match new_fd(PROG_LOAD, &mut attr) {
        Ok(fd) => Ok(fd),
        Err(_) => {
            let text: Vec<u8> = log.into_iter().take_while(|byte| *byte != 0).collect();
            let text = String::from_utf8_lossy(&text);
            let last: Vec<&str> = text.lines().rev().take(3).collect();
            let words: Vec<&str> = last.into_iter().rev().collect();
            Err(if words.is_empty() {
                first
            } else {
                io::Error::new(first.kind(), format!("{first}: {}", words.join("; ")))
            })
        }
    }
}

/// Makes a map live as long as a program that does not use it, and be found through it (Linux 5.10).
pub fn bind_map(program: &OwnedFd, map: &Map) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        program: u32,
        map: u32,
        flags: u32,
    }
    let mut attr = Attr {
        program: program.as_raw_fd() as u32,
        map: map.as_raw_fd() as u32,
        flags: 0,
    };
    call(PROG_BIND_MAP, &mut attr).map(drop)
}

/// The programs attached to a device by TCX (Linux 6.6), by number and in order. `None`: this kernel has no TCX.
pub fn tcx_programs(device: u32, hook: TcxHook) -> io::Result<Option<Vec<u32>>> {
    #[repr(C)]
    #[derive(Default)]
    struct Attr {
        device: u32,
        hook: u32,
        query_flags: u32,
        attach_flags: u32,
        programs: u64,
        count: u32,
        padding: u32,
        unused: [u64; 3],
        revision: u64,
    }
    let mut programs = vec![0u32; 64];
    let mut attr = Attr {
        device,
        hook: hook as u32,
        programs: programs.as_mut_ptr() as u64,
        count: programs.len() as u32,
        ..Attr::default()
    };
    match call(PROG_QUERY, &mut attr) {
        Ok(_) => programs.truncate(attr.count as usize),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT) => programs.clear(),
            Some(libc::EINVAL) => return Ok(None),
            _ => return Err(error),
        },
    }
    Ok(Some(programs))
}

/// Attaches a program to a device behind those that are there, or in place of one of them.
pub fn tcx_attach(device: u32, hook: TcxHook, program: &OwnedFd, instead_of: Option<u32>) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        device: u32,
        program: u32,
        hook: u32,
        flags: u32,
        replaced: u32,
        relative: u32,
        revision: u64,
    }
    let replaced = instead_of.map(|id| by_id(PROG_GET_FD_BY_ID, id)).transpose()?;
    let mut attr = Attr {
        device,
        program: program.as_raw_fd() as u32,
        hook: hook as u32,
        flags: if replaced.is_some() { REPLACE } else { 0 },
        replaced: replaced.as_ref().map_or(0, |fd| fd.as_raw_fd() as u32),
        relative: 0,
        revision: 0,
    };
    call(PROG_ATTACH, &mut attr).map(drop)
}

/// Detaches a program; absence is fine.
pub fn tcx_detach(device: u32, hook: TcxHook, program: u32) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        device: u32,
        program: u32,
        hook: u32,
        flags: u32,
    }
    let Some(program) = absent(by_id(PROG_GET_FD_BY_ID, program))? else {
        return Ok(());
    };
    let mut attr = Attr {
        device,
        program: program.as_raw_fd() as u32,
        hook: hook as u32,
        flags: 0,
    };
    absent(call(PROG_DETACH, &mut attr)).map(drop)
}

/// What the kernel tells about the program with this number.
pub fn program_info(id: u32) -> io::Result<ProgramInfo> {
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        kind: u32,
        id: u32,
        tag: [u8; 8],
        jited_len: u32,
        xlated_len: u32,
        jited: u64,
        xlated: u64,
        load_time: u64,
        created_by_uid: u32,
        map_count: u32,
        maps: u64,
        name: Name,
    }
    let fd = by_id(PROG_GET_FD_BY_ID, id)?;
    let mut maps = vec![0u32; 16];
    let mut info = Info {
        map_count: maps.len() as u32,
        maps: maps.as_mut_ptr() as u64,
        ..Info::default()
    };
    object_info(&fd, &mut info)?;
    maps.truncate(info.map_count as usize);
    Ok(ProgramInfo {
        name: read_name(info.name),
        maps,
    })
}

fn object_info<T>(fd: &OwnedFd, info: &mut T) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        fd: u32,
        length: u32,
        info: u64,
    }
    let mut attr = Attr {
        fd: fd.as_raw_fd() as u32,
        length: size_of::<T>() as u32,
        info: std::ptr::from_mut(info) as u64,
    };
    call(OBJ_GET_INFO_BY_FD, &mut attr).map(drop)
}

fn by_id(command: libc::c_int, id: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        id: u32,
        next: u32,
        flags: u32,
    }
    new_fd(command, &mut Attr { id, next: 0, flags: 0 })
}

fn name(label: &str) -> Name {
    let mut name = [0; 16];
    let length = label.len().min(15);
    name[..length].copy_from_slice(&label.as_bytes()[..length]);
    name
}

fn read_name(name: Name) -> String {
    let bytes: Vec<u8> = name.into_iter().take_while(|byte| *byte != 0).collect();
    String::from_utf8(bytes).unwrap_or_default()
}

/// Absence (`ENOENT`) as `None`.
fn absent<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn new_fd<T>(command: libc::c_int, attr: &mut T) -> io::Result<OwnedFd> {
    let fd = call(command, attr)?;
    // SAFETY: these commands answer with a descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Every `T` here is the head of the kernel's `union bpf_attr` for its command; pointers in it are to buffers of the sizes
/// that it tells, which outlive the call.
fn call<T>(command: libc::c_int, attr: &mut T) -> io::Result<i32> {
    // SAFETY: see above; the kernel reads and writes no more than the given size of `attr`.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as i32)
    }
}
