//! Compiles the BPF programs of `bpf/` with clang into `OUT_DIR`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

const HINT: &str = "on Debian and Ubuntu: apt-get install clang libbpf-dev linux-libc-dev";

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("../../bpf");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    println!("cargo::rerun-if-env-changed=CLANG");
    compile(&root, "ipip.c", &out.join("ipip.o"));
}

fn compile(directory: &Path, source: &str, object: &Path) {
    println!("cargo::rerun-if-changed={}", directory.join(source).display());
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".into());
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it");
    // Debian keeps <asm/types.h> in a directory of the architecture, which the bpf target does not look into.
    let multiarch = format!("-I/usr/include/{arch}-linux-gnu");
    let result = Command::new(&clang)
        .current_dir(directory)
        .args(["-target", "bpf", "-mcpu=v3", "-O2", "-Wall", "-Werror", "-g"])
        // The same text gives the same object wherever it is built: attached programs are compared by it.
        .args(["-fdebug-compilation-dir=.", &multiarch, "-c", source, "-o"])
        .arg(object)
        .output();
    let output = match result {
        Ok(output) => output,
        Err(error) => fail(&format!("cannot run {clang}, which compiles bpf/{source}: {error}")),
    };
    if !output.status.success() {
        fail(&format!(
            "{clang} failed on bpf/{source}:\n{}",
            String::from_utf8_lossy(&output.stderr)
        ));
    }
}

fn fail(problem: &str) -> ! {
    for line in problem.lines() {
        println!("cargo::error={line}");
    }
    println!("cargo::error={HINT}");
    std::process::exit(1)
}
