//! Memory that a process has no use for any more.

/// Gives what was freed back to the kernel. The C library's allocator keeps it otherwise: after all of a large cluster has been
/// read once, that is most of the process. Takes some milliseconds for each hundred megabytes.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer, and the allocator locks its arenas itself.
    unsafe {
        libc::malloc_trim(0);
    }
}
