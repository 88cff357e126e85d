//! What `cargo metadata` says, as far as the rules ask. Read here, because the crate that reads all of it turns on a feature of
//! serde_json: programs built for the tests and by themselves would then share nothing that is above serde_json.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

#[derive(Deserialize)]
pub struct Metadata {
    pub packages: Vec<Package>,
    workspace_members: Vec<String>,
    pub resolve: Resolve,
}

#[derive(Deserialize)]
pub struct Package {
    pub id: String,
    pub name: String,
    pub version: String,
    pub license: Option<String>,
    pub manifest_path: PathBuf,
    pub metadata: serde_json::Value,
    pub dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
pub struct Dependency {
    pub name: String,
    /// `dev`, `build`, or none: it is linked.
    pub kind: Option<String>,
}

#[derive(Deserialize)]
pub struct Resolve {
    pub nodes: Vec<Node>,
}

#[derive(Deserialize)]
pub struct Node {
    pub id: String,
    pub deps: Vec<NodeDependency>,
}

#[derive(Deserialize)]
pub struct NodeDependency {
    pub pkg: String,
    pub dep_kinds: Vec<Kind>,
}

#[derive(Deserialize)]
pub struct Kind {
    /// As of a [`Dependency`].
    pub kind: Option<String>,
}

impl Metadata {
    pub fn workspace_packages(&self) -> Vec<&Package> {
        let ours = |package: &&Package| self.workspace_members.contains(&package.id);
        self.packages.iter().filter(ours).collect()
    }
}

/// The workspace of a manifest, with everything that is built for this machine.
pub fn read(manifest: &Path) -> Metadata {
    let output = Command::new(env!("CARGO"))
        // What was built is what is there: packages of other platforms were never fetched.
        .args([
            "metadata",
            "--format-version",
            "1",
            "--offline",
            "--locked",
            "--filter-platform",
            &platform(),
        ])
        .arg("--manifest-path")
        .arg(manifest)
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo metadata reads the workspace")
}

/// The platform that is built for, as the compiler names it.
fn platform() -> String {
    let said = Command::new("rustc").arg("-vV").output().expect("a compiler");
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    host.expect("rustc says what it runs on").to_string()
}
