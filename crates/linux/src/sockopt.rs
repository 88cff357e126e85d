//! The few socket calls that no safe crate offers, each with one safe wrapper.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};

use kernel::IfName;

/// `setsockopt` with a plain value of the type that the option wants.
///
/// `T` must be the integer or C struct that the option takes, and what it points to must live through the call.
pub(crate) fn set<T: Copy>(fd: BorrowedFd<'_>, level: i32, option: i32, value: &T) -> io::Result<()> {
    // SAFETY: the pointer and length describe `value`, which lives through the call; the kernel only reads it.
    let answer = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Grows the receive buffer past the system's limit if allowed, else up to it.
pub(crate) fn receive_buffer(fd: BorrowedFd<'_>, bytes: i32) {
    if set(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &bytes).is_err() {
        // Smaller is worse, not wrong: losses are detected and followed by a fresh dump.
        let _ = set(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, &bytes);
    }
}

/// Grows the send buffer past the system's limit if allowed, else up to it.
pub(crate) fn send_buffer(fd: BorrowedFd<'_>, bytes: i32) {
    if set(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &bytes).is_err() {
        // What does not fit is refused when it is sent.
        let _ = set(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, &bytes);
    }
}

/// One instruction of a classic BPF socket filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    /// Operation.
    pub code: u16,
    /// Instructions to skip if true.
    pub jt: u8,
    /// Instructions to skip if false.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// Loads four bytes, big-endian, at an absolute offset.
pub(crate) const LOAD_WORD: u16 = 0x20;
/// Loads one byte at an absolute offset.
pub(crate) const LOAD_BYTE: u16 = 0x30;
/// Loads two bytes, big-endian, at an absolute offset.
pub(crate) const LOAD_HALF: u16 = 0x28;
/// Jumps if equal.
pub(crate) const JUMP_EQ: u16 = 0x15;
/// Ends: `k` bytes of the packet are kept.
pub(crate) const RETURN: u16 = 0x06;

/// Attaches a classic BPF filter to a socket.
pub(crate) fn attach_filter(fd: BorrowedFd<'_>, program: &[Filter]) -> io::Result<()> {
    let mut instructions: Vec<libc::sock_filter> = program
        .iter()
        .map(|filter| libc::sock_filter {
            code: filter.code,
            jt: filter.jt,
            jf: filter.jf,
            k: filter.k,
        })
        .collect();
    let program = libc::sock_fprog {
        len: u16::try_from(instructions.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: instructions.as_mut_ptr(),
    };
    set(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// The number of a device in the socket's namespace; `None` if there is none of that name.
pub(crate) fn device_index(fd: BorrowedFd<'_>, name: &IfName) -> io::Result<Option<u32>> {
    let mut request = empty_ifreq();
    let bytes = name.0.as_bytes();
    if bytes.is_empty() || bytes.len() >= request.ifr_name.len() || bytes.contains(&0) {
        return Ok(None);
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(bytes) {
        *place = *byte as libc::c_char;
    }
    if !interface_ioctl(fd, libc::SIOCGIFINDEX, &mut request)? {
        return Ok(None);
    }
    // SAFETY: SIOCGIFINDEX fills `ifru_ifindex`; every bit pattern is a valid integer anyway.
    let index = unsafe { request.ifr_ifru.ifru_ifindex };
    Ok(u32::try_from(index).ok())
}

/// The name of a device in the socket's namespace; `None` if there is none of that number.
pub(crate) fn device_name(fd: BorrowedFd<'_>, index: u32) -> io::Result<Option<IfName>> {
    let mut request = empty_ifreq();
    request.ifr_ifru.ifru_ifindex = index as i32;
    if !interface_ioctl(fd, libc::SIOCGIFNAME, &mut request)? {
        return Ok(None);
    }
    let bytes: Vec<u8> = request
        .ifr_name
        .iter()
        .map(|c| *c as u8)
        .take_while(|byte| *byte != 0)
        .collect();
    Ok(Some(IfName(String::from_utf8_lossy(&bytes).into_owned())))
}

fn empty_ifreq() -> libc::ifreq {
    // SAFETY: `ifreq` is a C struct of integers and a union of such; all zero is a valid value.
    unsafe { std::mem::zeroed() }
}

/// `false`: no such device.
fn interface_ioctl(fd: BorrowedFd<'_>, request: libc::Ioctl, argument: &mut libc::ifreq) -> io::Result<bool> {
    // SAFETY: both requests used here take an `ifreq`, which lives through the call.
    let answer = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, std::ptr::from_mut(argument)) };
    if answer == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENODEV | libc::ENXIO) => Ok(false),
        _ => Err(error),
    }
}
