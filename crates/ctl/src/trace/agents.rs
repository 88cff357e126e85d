//! The agents of the nodes on a packet's way: where they answer.
//!
//! An agent answers on a unix socket in its run directory. This node's is known; those of others are where the user says they
//! are: in the lab all are on one machine, elsewhere a socket can be brought here (`ssh -L`).

use std::collections::BTreeMap;
use std::path::PathBuf;

use agent::path::{Arrival, PathQuestion, PathView};
use agent::policy_view::PolicyView;
use agent::{AgentError, http};

/// What nodes are asked. `Err`: why there is no answer.
pub trait Agents {
    /// Which way a packet takes through a node.
    fn path(&mut self, node: &str, question: &PathQuestion) -> Result<PathView, String>;
    /// What a node enforces, with what its rules have counted by now.
    fn policy(&mut self, node: &str) -> Result<PolicyView, String>;
}

/// Agents behind sockets.
pub struct Sockets {
    /// This node's run directory.
    run_dir: PathBuf,
    /// Run directories of all nodes, with `{node}` for the node's name.
    pattern: Option<String>,
    found: BTreeMap<String, Result<PathBuf, String>>,
}

/// Stands for the node's name.
pub const NODE: &str = "{node}";

impl Sockets {
    /// With this node's run directory, and perhaps a pattern for those of all nodes.
    pub fn new(run_dir: PathBuf, pattern: Option<String>) -> Self {
        Self {
            run_dir,
            pattern,
            found: BTreeMap::new(),
        }
    }

    /// Where the agent of a node answers.
    pub fn of(&mut self, node: &str) -> Result<PathBuf, String> {
        if !self.found.contains_key(node) {
            let found = self.find(node);
            self.found.insert(node.to_owned(), found);
        }
        self.found.get(node).cloned().unwrap_or_else(|| Err(String::new()))
    }

    fn find(&self, node: &str) -> Result<PathBuf, String> {
        let local = std::net::IpAddr::from([127, 0, 0, 1]);
        let anything = PathQuestion {
            source: local,
            destination: local,
            by: Arrival::Host,
            from: None,
        };
        let there = self
            .pattern
            .iter()
            .map(|pattern| PathBuf::from(pattern.replace(NODE, node)));
        let (mut silent, mut why) = (Vec::new(), Vec::new());
        for run_dir in there.chain([self.run_dir.clone()]) {
            let socket = http::socket(&run_dir);
            match http::ask_path(&socket, &anything) {
                Ok(view) if view.node == node => return Ok(socket),
                Ok(view) => why.push(format!("{} is of node {}", socket.display(), view.node)),
                Err(error) if is_nobody(&error) => silent.push(socket.display().to_string()),
                Err(error) => why.push(error.to_string()),
            }
        }
        if !silent.is_empty() {
            why.insert(0, format!("nobody answers on {}", silent.join(" or ")));
        }
        Err(why.join("; "))
    }
}

/// No agent is there, rather than one that has trouble.
fn is_nobody(error: &AgentError) -> bool {
    use std::io::ErrorKind;
    let kinds = [ErrorKind::NotFound, ErrorKind::ConnectionRefused];
    matches!(error, AgentError::Io { source, .. } if kinds.contains(&source.kind()))
}

impl Agents for Sockets {
    fn path(&mut self, node: &str, question: &PathQuestion) -> Result<PathView, String> {
        http::ask_path(&self.of(node)?, question).map_err(|error| error.to_string())
    }

    fn policy(&mut self, node: &str) -> Result<PolicyView, String> {
        http::ask_policy(&self.of(node)?).map_err(|error| error.to_string())
    }
}
