//! The one binary. What it is depends on the name it is called by and on its arguments: see [`dispatch`].

mod command;
mod dispatch;
mod logging;

use std::ffi::OsString;
use std::process::ExitCode;

use dispatch::{Mode, dispatch};

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    match dispatch(&args, &|name| std::env::var(name).ok()) {
        Mode::Cni => cni::run(
            &cni::Env::from_process(),
            std::io::stdin().lock(),
            std::io::stdout().lock(),
        ),
        Mode::Ctl(args) => command::ctl(args),
        Mode::Margay(args) => command::margay(args),
    }
}
