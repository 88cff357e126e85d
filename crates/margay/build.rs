//! Links the binary at a fixed address.
//!
//! Most of its lives are those of a CNI plugin, a few milliseconds long. A position-independent executable has 24,000
//! pointers relocated, and the pages they are on copied, at every start: a quarter of the plugin's own time. What is given
//! up, that the code lies at another place each time, makes errors of memory handling harder to exploit; here those can
//! only come from the few unsafe blocks and from the C library, whose own place still changes.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|env| env == "gnu") {
        println!("cargo:rustc-link-arg-bin=margay=-no-pie");
    }
}
