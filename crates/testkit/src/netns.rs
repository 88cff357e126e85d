//! Tests on the live kernel, each in a network namespace of its own that ends with the test.

use std::future::Future;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};

/// Runs a test inside a fresh network namespace, on a fresh thread with a current-thread tokio runtime.
///
/// Sockets opened there stay there, programs started there run there, and nothing is left to clean up. Without root the
/// test is skipped, and says so. Panics if the test does.
pub fn in_netns<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!(
            "SKIPPED: {} needs root for a network namespace",
            std::thread::current().name().unwrap_or("test")
        );
        return;
    }
    let name = std::thread::current().name().unwrap_or("test").to_string();
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("root may make a network namespace");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a current-thread runtime needs only an epoll descriptor");
        runtime.block_on(test());
    });
    if let Err(panic) = thread.expect("a thread can be started").join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs an independent tool (`ip`, `ping`) in the calling thread's namespace and returns what it printed. Panics if the
/// tool is missing or fails.
pub fn tool(line: &str) -> String {
    let (ok, printed) = try_tool(line);
    assert!(ok, "`{line}` failed: {printed}");
    printed
}

/// Like [`tool`], but failure is an answer: whether it succeeded, and what it printed on both outputs.
pub fn try_tool(line: &str) -> (bool, String) {
    let mut words = line.split_whitespace();
    let program = words.next().expect("a command line begins with a program");
    let output = Command::new(program)
        .args(words)
        .output()
        .unwrap_or_else(|error| panic!("`{line}`: {error}"));
    let mut printed = String::from_utf8_lossy(&output.stdout).into_owned();
    printed.push_str(&String::from_utf8_lossy(&output.stderr));
    (output.status.success(), printed)
}
