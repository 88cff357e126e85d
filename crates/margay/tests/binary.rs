//! What the binary is, as a file.

/// `PT_INTERP` of the ELF format: the program that loads shared libraries.
const PT_INTERP: u32 = 3;

#[test]
fn the_binary_needs_no_shared_library() {
    let file = std::fs::read(env!("CARGO_BIN_EXE_margay")).unwrap();
    assert_eq!(&file[..5], b"\x7fELF\x02", "a 64-bit ELF file");
    let word = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
    let half = |at: usize| usize::from(u16::from_le_bytes(file[at..at + 2].try_into().unwrap()));
    // e_phoff, e_phentsize, e_phnum of the 64-bit header.
    let (first, size, count) = (word(32) as usize, half(54), half(56));
    assert!(count > 0);
    let kinds: Vec<u32> = (0..count).map(|index| word(first + index * size)).collect();
    assert!(!kinds.contains(&PT_INTERP), "{kinds:?}");
}
