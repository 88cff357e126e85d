//! Rules about the tree, as tests: arrows between crates go down only, pure crates stay pure, `unsafe` stays in `linux`, nothing
//! runs other programs, documents are reachable.

#[cfg(test)]
mod metadata;

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::fs;
    use std::path::{Path, PathBuf};

    use crate::metadata::{Metadata, Package};

    /// From the bottom up; `dev` crates stand aside and may be used by tests only.
    const LAYERS: [&str; 5] = ["pure", "adapter", "shell", "binary", "dev"];

    /// What no pure crate may have below it: runtimes, sockets, files, random sources, the kernel.
    const IMPURE: [&str; 14] = [
        "tokio",
        "mio",
        "socket2",
        "rand",
        "getrandom",
        "nix",
        "netlink-sys",
        "netlink-packet-route",
        "aya",
        "redb",
        "axum",
        "hyper",
        "uuid",
        "tracing-subscriber",
    ];

    /// What no pure crate may say, outside its tests.
    const IMPURE_CALLS: [&str; 10] = [
        "Instant::now",
        "SystemTime::now",
        "Timestamp::now",
        "std::fs",
        "std::env",
        "std::process",
        "TcpStream",
        "UdpSocket",
        "UnixStream",
        "thread::spawn",
    ];

    #[test]
    fn arrows_go_down_only() {
        let metadata = metadata();
        let layers = layers(&metadata);
        let mut breaches = Vec::new();
        for package in metadata.workspace_packages() {
            for dependency in package.dependencies.iter().filter(|d| d.kind.as_deref() != Some("dev")) {
                let Some(below) = layers.get(dependency.name.as_str()) else {
                    continue;
                };
                let above = layers[package.name.as_str()];
                if rank(below) > rank(above) || (*below == "dev" && above != "dev") {
                    breaches.push(format!("{} ({above}) -> {} ({below})", package.name, dependency.name));
                }
            }
        }
        assert_eq!(breaches, Vec::<String>::new());
    }

    #[test]
    fn pure_crates_have_nothing_impure_below_them() {
        let metadata = metadata();
        let mut breaches = Vec::new();
        for package in pure(&metadata) {
            for name in below(&metadata, &package.id) {
                if IMPURE.contains(&name.as_str()) {
                    breaches.push(format!("{} -> … -> {name}", package.name));
                }
            }
        }
        assert_eq!(breaches, Vec::<String>::new());
    }

    #[test]
    fn pure_crates_read_no_clock_file_or_socket() {
        let metadata = metadata();
        let mut breaches = Vec::new();
        for package in pure(&metadata) {
            for (file, code) in code_of(package) {
                for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
                    if let Some(call) = IMPURE_CALLS.iter().find(|call| line.contains(**call)) {
                        breaches.push(format!("{}: {call}", file.display()));
                    }
                }
            }
        }
        assert_eq!(breaches, Vec::<String>::new());
    }

    /// Who may run programs, besides what is for developers alone: the lab runs what is to be in its namespaces.
    const RUNS_PROGRAMS: &str = "lab";

    /// Where a command that the lab made is told which namespace to start in.
    const PREPARES: &str = "linux/src/netns.rs";

    /// What says that a program is run.
    const RUNS: [&str; 5] = ["Command::new(", "process::Command", ".exec()", "fork(", "execv"];

    #[test]
    fn no_external_program_is_run() {
        let metadata = metadata();
        let layers = layers(&metadata);
        let mut breaches = Vec::new();
        for package in metadata.workspace_packages() {
            if layers[package.name.as_str()] == "dev" || package.name == RUNS_PROGRAMS {
                continue;
            }
            for (file, code) in code_of(package) {
                for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
                    let is_named = |call: &&str| !(file.ends_with(PREPARES) && *call == "process::Command");
                    if let Some(call) = runs(line).filter(is_named) {
                        breaches.push(format!("{}: {call}", file.display()));
                    }
                }
            }
        }
        assert_eq!(breaches, Vec::<String>::new());
    }

    /// What in a line runs a program. Functions that only end so (`in_exec(`) are others.
    fn runs(line: &str) -> Option<&'static str> {
        let is_word = |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let starts_itself = |call: &&str| call.starts_with(|c: char| !c.is_alphanumeric());
        RUNS.into_iter().find(|call| {
            line.match_indices(call)
                .any(|(at, _)| starts_itself(call) || is_word(at))
        })
    }

    #[test]
    fn a_program_that_is_run_is_seen() {
        for line in [
            "use std::process::Command;",
            "let out = Command::new(\"ip\").output();",
            "process::Command::new(\"nft\")",
            "tokio::process::Command::new(program)",
            "nix::unistd::execve(&path, &args, &env)",
            "match unsafe { fork() } {",
        ] {
            assert!(runs(line).is_some(), "{line}");
        }
        for line in [
            "let parsed = Margay::command();",
            "let command = ctl::Command::Get(args);",
            "use std::process::ExitCode;",
            "MyCommand::new(1)",
            "in_fork(1)",
        ] {
            assert_eq!(runs(line), None, "{line}");
        }
    }

    #[test]
    fn only_linux_may_be_unsafe() {
        for manifest in files(&root().join("crates"), "toml") {
            let text = fs::read_to_string(&manifest).expect("manifests are text");
            let inherits = text.contains("[lints]\nworkspace = true");
            assert!(
                inherits || manifest.ends_with("linux/Cargo.toml"),
                "{} must inherit the workspace lints",
                manifest.display()
            );
        }
        for source in files(&root().join("crates"), "rs") {
            let inside = source.starts_with(root().join("crates/linux"));
            let text = fs::read_to_string(&source).expect("sources are text");
            let allows = text.contains(concat!("allow(", "unsafe_code"));
            assert!(inside || !allows, "{} allows unsafe code", source.display());
        }
    }

    #[test]
    fn every_document_is_linked() {
        let front: String = ["README.md", "ARCHITECTURE.md"]
            .iter()
            .map(|name| fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}")))
            .collect();
        for page in files(&root().join("docs"), "md") {
            let name = page.file_name().expect("it has one").to_string_lossy().into_owned();
            assert!(
                front.contains(&format!("docs/{name}")),
                "docs/{name} is linked from neither README.md nor ARCHITECTURE.md"
            );
        }
    }

    /// Licences under which something may be linked into an Apache-2.0 program without further duties.
    const PERMISSIVE: [&str; 13] = [
        "Apache-2.0",
        "MIT",
        "MIT-0",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "0BSD",
        "ISC",
        "Zlib",
        "Unlicense",
        "Unicode-3.0",
        "CC0-1.0",
        "BSL-1.0",
        "Apache-2.0 WITH LLVM-exception",
    ];

    #[test]
    fn every_dependency_has_a_permissive_licence() {
        let refused: Vec<String> = metadata()
            .packages
            .iter()
            .filter(|package| !is_permissive(package.license.as_deref().unwrap_or("none")))
            .map(|package| format!("{} {}: {:?}", package.name, package.version, package.license))
            .collect();
        assert_eq!(refused, Vec::<String>::new());
    }

    /// SPDX: one alternative of each `OR` must do, all parts of each `AND` must. `/` is an old spelling of `OR`.
    fn is_permissive(expression: &str) -> bool {
        let expression = expression.replace('/', " OR ").replace(['(', ')'], " ");
        expression
            .split(" AND ")
            .all(|part| part.split(" OR ").any(|licence| PERMISSIVE.contains(&licence.trim())))
    }

    #[test]
    fn every_dependency_says_why_it_is_here() {
        let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("the root manifest is text");
        let dependencies = manifest
            .split("[workspace.dependencies]")
            .nth(1)
            .and_then(|rest| rest.split("\n[").next());
        let silent = |line: &&str| line.contains(" = ") && !line.contains("path = ") && !line.contains(" # ");
        let lines: Vec<&str> = dependencies.unwrap_or_default().lines().filter(silent).collect();
        assert_eq!(lines, Vec::<&str>::new());
    }

    fn metadata() -> Metadata {
        crate::metadata::read(&root().join("Cargo.toml"))
    }

    fn layers(metadata: &Metadata) -> BTreeMap<String, &'static str> {
        let layer = |package: &Package| {
            let named = package.metadata["margay"]["layer"].as_str().unwrap_or("(none)");
            *LAYERS
                .iter()
                .find(|layer| **layer == named)
                .unwrap_or_else(|| panic!("{}: layer `{named}`", package.name))
        };
        metadata
            .workspace_packages()
            .into_iter()
            .map(|package| (package.name.to_string(), layer(package)))
            .collect()
    }

    fn rank(layer: &str) -> usize {
        LAYERS
            .iter()
            .position(|known| *known == layer)
            .expect("layers() checked it")
    }

    fn pure(metadata: &Metadata) -> Vec<&Package> {
        let layers = layers(metadata);
        metadata
            .workspace_packages()
            .into_iter()
            .filter(|package| layers[package.name.as_str()] == "pure")
            .collect()
    }

    /// Names of everything that a package links, itself excluded.
    fn below(metadata: &Metadata, package: &str) -> BTreeSet<String> {
        let nodes: BTreeMap<_, _> = metadata
            .resolve
            .nodes
            .iter()
            .map(|node| (node.id.as_str(), node))
            .collect();
        let (mut seen, mut queue) = (BTreeSet::new(), vec![package]);
        while let Some(id) = queue.pop() {
            for dependency in &nodes[id].deps {
                let linked = dependency.dep_kinds.iter().any(|kind| kind.kind.is_none());
                if linked && seen.insert(dependency.pkg.as_str()) {
                    queue.push(&dependency.pkg);
                }
            }
        }
        metadata
            .packages
            .iter()
            .filter(|package| seen.contains(package.id.as_str()))
            .map(|p| p.name.to_string())
            .collect()
    }

    /// The source files of what a package builds, each without its tests.
    fn code_of(package: &Package) -> Vec<(PathBuf, String)> {
        let folder = package.manifest_path.parent().expect("a manifest lies in a folder");
        let code = |file: PathBuf| {
            // Unit tests stand at the end of their file, or in a file of that name.
            if file.components().any(|part| part.as_os_str() == "tests") || file.ends_with("tests.rs") {
                return None;
            }
            let text = fs::read_to_string(&file).expect("sources are text");
            let code = text.split("#[cfg(test)]").next().unwrap_or_default().to_owned();
            Some((file, code))
        };
        files(&folder.join("src"), "rs").into_iter().filter_map(code).collect()
    }

    fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(folder) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                found.extend(files(&path, extension));
            } else if path.extension().is_some_and(|e| e == extension) {
                found.push(path);
            }
        }
        found.sort();
        found
    }

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
    }
}
