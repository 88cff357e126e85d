//! From environment variables to a store.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use datastore::SharedStore;

use crate::embedded::Client;
use crate::kubernetes::{ApiError, CalicoGroup, KubernetesStore};

/// Where the embedded store listens unless `MARGAY_STORE_SOCKET` says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/margay/store.sock";

/// Why there is no store, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Start the store, or name its socket.
    #[error("no store listens on {socket}: is it running? MARGAY_STORE_SOCKET names another socket")]
    NotRunning {
        /// The socket.
        socket: PathBuf,
    },
    /// Become the user that runs the store.
    #[error("no permission to use {socket}: only the user that runs the store may; try as root")]
    Permission {
        /// The socket.
        socket: PathBuf,
    },
    /// Use the same version on both sides.
    #[error("what listens on {socket} does not speak our protocol: another version of the store, or not a store")]
    Protocol {
        /// The socket.
        socket: PathBuf,
    },
    /// Look at the store's log.
    #[error("cannot talk to the store on {socket}: {source}")]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// This process is ending.
    #[error("the runtime that connects to {socket} has stopped")]
    Stopped {
        /// The socket.
        socket: PathBuf,
    },
    /// See the reason.
    #[error("{0}")]
    Kubernetes(#[from] ApiError),
    /// Use another store.
    #[error("DATASTORE_TYPE={value}: not in this build yet; use DATASTORE_TYPE=embedded or kubernetes")]
    NotYet {
        /// What was asked for.
        value: String,
    },
    /// Correct the variable.
    #[error("DATASTORE_TYPE={value} is not known; valid are embedded (or margay), etcdv3, kubernetes")]
    Unknown {
        /// What was asked for.
        value: String,
    },
}

/// Connects to the store that the environment names: `DATASTORE_TYPE` (`embedded`, the default, also as `margay`, or
/// `kubernetes`), `MARGAY_STORE_SOCKET` (default [`DEFAULT_SOCKET`]) and `CALICO_API_GROUP`. An empty variable is as good as
/// none. How Kubernetes is reached, KUBECONFIG, `~/.kube/config` or the pod's service account say.
///
/// Reads `env` before it returns; the future does the rest, on the tokio runtime that first polls it.
///
/// # Errors
/// See [`ConnectError`].
pub fn connect(
    env: &dyn Fn(&str) -> Option<String>,
) -> impl Future<Output = Result<SharedStore, ConnectError>> + Send + use<> {
    let choice = Choice::from_env(env);
    async move {
        match choice? {
            Choice::Embedded { socket } => Ok(Arc::new(Client::connect(&socket).await?) as SharedStore),
            Choice::Kubernetes { group } => {
                let store = KubernetesStore::new(group);
                store.connect().await?;
                Ok(Arc::new(store) as SharedStore)
            }
        }
    }
}

/// The same without connecting yet: the store is reached, and reached again, when it is asked for something. For processes
/// that must work before their datastore does. Call it inside a tokio runtime.
///
/// # Errors
/// Only those of wrong variables; see [`ConnectError`].
pub fn open(env: &dyn Fn(&str) -> Option<String>) -> Result<SharedStore, ConnectError> {
    match Choice::from_env(env)? {
        Choice::Embedded { socket } => Ok(Arc::new(Client::lazy(&socket))),
        Choice::Kubernetes { group } => Ok(Arc::new(KubernetesStore::new(group))),
    }
}

#[derive(Debug, PartialEq)]
enum Choice {
    Embedded { socket: PathBuf },
    Kubernetes { group: Option<CalicoGroup> },
}

impl Choice {
    fn from_env(env: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConnectError> {
        let set = |name| env(name).filter(|value| !value.is_empty());
        let value = set("DATASTORE_TYPE").unwrap_or_else(|| "embedded".into());
        match value.as_str() {
            "embedded" | "margay" => Ok(Choice::Embedded {
                socket: set("MARGAY_STORE_SOCKET")
                    .unwrap_or_else(|| DEFAULT_SOCKET.into())
                    .into(),
            }),
            "kubernetes" => Ok(Choice::Kubernetes {
                group: set("CALICO_API_GROUP").and_then(|group| CalicoGroup::from_variable(&group)),
            }),
            "etcdv3" => Err(ConnectError::NotYet { value }),
            _ => Err(ConnectError::Unknown { value }),
        }
    }
}

impl ConnectError {
    pub(crate) fn from_io(socket: &Path, source: io::Error) -> Self {
        let socket = socket.to_path_buf();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ConnectError::NotRunning { socket },
            io::ErrorKind::PermissionDenied => ConnectError::Permission { socket },
            _ => ConnectError::Broken { socket, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_chooses_the_store() {
        check(&[], "/run/margay/store.sock");
        check(&[("DATASTORE_TYPE", "")], "/run/margay/store.sock");
        check(
            &[("DATASTORE_TYPE", "embedded"), ("MARGAY_STORE_SOCKET", "/tmp/s")],
            "/tmp/s",
        );
        check(
            &[("DATASTORE_TYPE", "margay"), ("MARGAY_STORE_SOCKET", "")],
            "/run/margay/store.sock",
        );
        check(
            &[("DATASTORE_TYPE", "etcdv3")],
            "DATASTORE_TYPE=etcdv3: not in this build yet; use DATASTORE_TYPE=embedded or kubernetes",
        );
        check(&[("DATASTORE_TYPE", "kubernetes")], "Kubernetes, any group");
        check(
            &[
                ("DATASTORE_TYPE", "kubernetes"),
                ("CALICO_API_GROUP", "projectcalico.org/v3"),
            ],
            "Kubernetes, group projectcalico.org",
        );
        check(
            &[("DATASTORE_TYPE", "etcd")],
            "DATASTORE_TYPE=etcd is not known; valid are embedded (or margay), etcdv3, kubernetes",
        );
    }

    #[test]
    fn an_error_says_what_to_do() {
        let text = |kind: io::ErrorKind| ConnectError::from_io(Path::new("/s"), kind.into()).to_string();
        assert!(text(io::ErrorKind::NotFound).contains("is it running?"));
        assert!(text(io::ErrorKind::ConnectionRefused).contains("is it running?"));
        assert!(text(io::ErrorKind::PermissionDenied).contains("try as root"));
    }

    fn check(env: &[(&str, &str)], expected: &str) {
        let get = |name: &str| {
            env.iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| value.to_string())
        };
        let said = match Choice::from_env(&get) {
            Ok(Choice::Embedded { socket }) => socket.display().to_string(),
            Ok(Choice::Kubernetes { group: None }) => "Kubernetes, any group".into(),
            Ok(Choice::Kubernetes { group: Some(group) }) => format!("Kubernetes, group {}", group.name()),
            Err(error) => error.to_string(),
        };
        assert_eq!(said, expected);
    }
}
