//! From a name and arguments to a mode: a pure function (upstream's `cmd/calico/main.go` decides by the same rules).

use std::ffi::OsString;
use std::path::Path;

/// What the process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A CNI plugin: its request is in the environment and on standard input.
    Cni,
    /// `calicoctl` with these arguments (the name first).
    Ctl(Vec<OsString>),
    /// `margay` with these arguments (the name first).
    Margay(Vec<OsString>),
}

/// Decides by the name that the process was called by, `CNI_COMMAND`, and the first argument.
pub fn dispatch(args: &[OsString], env: &dyn Fn(&str) -> Option<String>) -> Mode {
    let name = args.first().map(|arg| {
        Path::new(arg)
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    });
    let rest = || args.get(1..).unwrap_or_default().to_vec();
    let called = |name: &str, rest: Vec<OsString>| std::iter::once(OsString::from(name)).chain(rest).collect();
    let asked_by_runtime = env("CNI_COMMAND").is_some_and(|command| !command.is_empty());
    match name.as_deref() {
        Some("calico-ipam") => Mode::Cni,
        Some("calicoctl" | "kubectl-calico") => Mode::Ctl(called("calicoctl", rest())),
        // A runtime sets CNI_COMMAND and gives no arguments; a person gives arguments.
        Some("calico") if asked_by_runtime && args.len() == 1 => Mode::Cni,
        Some("calico") => match args.get(1).and_then(|arg| arg.to_str()) {
            Some("ctl") => Mode::Ctl(called("calicoctl", args.get(2..).unwrap_or_default().to_vec())),
            _ => Mode::Ctl(called("calicoctl", rest())),
        },
        _ if asked_by_runtime && args.len() == 1 => Mode::Cni,
        _ => Mode::Margay(called("margay", rest())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, cni_command: Option<&str>, expected: &str) {
        let args: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        let env = |name: &str| cni_command.filter(|_| name == "CNI_COMMAND").map(str::to_string);
        let text = |args: Vec<OsString>| {
            args.iter()
                .map(|arg| arg.to_string_lossy().into_owned())
                .collect::<Vec<_>>()
                .join(" ")
        };
        let got = match dispatch(&args, &env) {
            Mode::Cni => "cni".to_string(),
            Mode::Ctl(args) => format!("ctl: {}", text(args)),
            Mode::Margay(args) => format!("margay: {}", text(args)),
        };
        assert_eq!(got, expected, "{line} with CNI_COMMAND={cni_command:?}");
    }

    #[test]
    fn the_name_decides() {
        check("/usr/bin/margay lab up", None, "margay: margay lab up");
        check("target/release/calicoctl get nodes", None, "ctl: calicoctl get nodes");
        check("kubectl-calico get nodes", None, "ctl: calicoctl get nodes");
        check("calico ctl get nodes", None, "ctl: calicoctl get nodes");
        check("calico version", None, "ctl: calicoctl version");
        check("renamed node status", None, "margay: margay node status");
    }

    #[test]
    fn a_runtime_asks_by_environment() {
        check("/opt/cni/bin/calico", Some("ADD"), "cni");
        check("/opt/cni/bin/calico-ipam", Some("DEL"), "cni");
        check("/opt/cni/bin/margay", Some("ADD"), "cni");
    }

    #[test]
    fn arguments_win_over_a_leaked_variable() {
        check("margay lab up", Some("ADD"), "margay: margay lab up");
        check("calico ctl version", Some("ADD"), "ctl: calicoctl version");
        check("margay", Some(""), "margay: margay");
    }
}
