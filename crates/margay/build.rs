//! Links the binary statically and at a fixed address.
//!
//! Static: it runs on any distribution, in an empty image, and from a host directory that a container wrote it to. Fixed:
//! most of its lives are those of a CNI plugin, a few milliseconds long. A dynamic, position-independent executable has three
//! libraries mapped and 24,000 pointers relocated, and the pages they are on copied, at every start: more than half of the
//! plugin's own time. What is given up, that the code lies at another place each time, makes errors of memory handling harder
//! to exploit; here those can only come from the few unsafe blocks and from the C library.
//!
//! The flags are given to this one link, not to the target: `crt-static` for a whole build also hits procedural macros, which
//! have to be shared libraries, unless the build is given a target and another output directory.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if !std::env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|env| env == "gnu") {
        return;
    }
    // The standard library asks for shared libraries by name. Linker scripts under these names, in a directory that is searched
    // first, answer with their static twins; that of the shared unwinder is libgcc_eh, which needs libgcc and the C library.
    let dir = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    for (name, twin) in [
        ("libgcc_s.so", "-l:libgcc_eh.a -l:libgcc.a -l:libc.a"),
        ("libc.so", "-l:libc.a"),
        ("libm.so", "-l:libm.a"),
    ] {
        std::fs::write(dir.join(name), format!("GROUP ( {twin} )\n")).expect("the output directory can be written to");
    }
    for argument in ["-no-pie", "-static", &format!("-L{}", dir.display())] {
        println!("cargo:rustc-link-arg-bin=margay={argument}");
    }
}
