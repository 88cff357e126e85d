//! The last whole picture of what this node's part in the network depends on, on disk: for an agent that starts while its
//! datastore cannot be reached.
//!
//! A file of JSON lines, one resource each. It is written after the datastore has been read, whenever one of them changes; it
//! appears whole and durable, or not at all. What cannot be read, all of it, counts as no picture: half a one would withdraw
//! routes.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::{Key, Kind, Metadata, Resource};
use cni::journal::write_atomically;
use datastore::Update;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// The file, in the agent's directory for what must survive a reboot.
const FILE: &str = "last-known.jsonl";
/// The shortest pause between two writings. After a longer one comes one four times as long.
const PAUSE: Duration = Duration::from_millis(200);

/// Resources by key.
pub type Picture = BTreeMap<Key, Resource>;

/// What an agent that starts finds.
#[derive(Clone, Debug, PartialEq)]
pub enum Memory {
    /// No file: no agent has read a datastore here.
    Nothing,
    /// The picture.
    Picture(Picture),
    /// A file that cannot be read as a whole: nobody knows what this node was.
    Unreadable,
}

impl Memory {
    /// The picture, if there is one.
    pub fn picture(self) -> Picture {
        match self {
            Memory::Picture(picture) => picture,
            Memory::Nothing | Memory::Unreadable => Picture::new(),
        }
    }
}

/// What the keeper of the file is told.
#[derive(Clone, Debug, PartialEq)]
pub enum News {
    /// What a resource is now, as its line; `None`: it is gone, or no business of this node.
    Line(Key, Option<String>),
    /// All resources have been told.
    InSync,
}

impl News {
    /// What an update means for the picture of this node; `None`: nothing.
    pub fn of(node: &str, update: &Update) -> Option<News> {
        if let Some(Resource::Wrong(_)) = update.value {
            // The last good version stays.
            return None;
        }
        let line = update.value.as_ref().and_then(|resource| line(node, resource));
        is_kept(update.key.kind).then(|| News::Line(update.key.clone(), line))
    }
}

/// Where the file is.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join(FILE)
}

/// What the last agent left. That it cannot be read is logged.
pub fn read(state_dir: &Path) -> Memory {
    let path = path(state_dir);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Memory::Nothing,
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "the last known state of the cluster cannot be read");
            return Memory::Unreadable;
        }
    };
    match parse(&text) {
        Ok(picture) => Memory::Picture(picture),
        Err(why) => {
            tracing::error!(path = %path.display(), why, "the last known state of the cluster is not used");
            Memory::Unreadable
        }
    }
}

fn parse(text: &str) -> Result<Picture, String> {
    let resource = |(number, line): (usize, &str)| {
        let resource: Resource = serde_json::from_str(line).map_err(|error| format!("line {}: {error}", number + 1))?;
        Ok((resource.key(), resource))
    };
    text.lines().enumerate().map(resource).collect()
}

/// Keeps the file true until nobody tells anything any more.
pub async fn keep(state_dir: PathBuf, mut news: mpsc::UnboundedReceiver<News>) {
    let mut lines: BTreeMap<Key, String> = BTreeMap::new();
    let mut written = fs::read_to_string(path(&state_dir)).ok();
    let mut is_whole = false;
    let mut is_news = true;
    let mut rest_until = Instant::now();
    let mut batch = Vec::new();
    while news.recv_many(&mut batch, 1024).await > 0 {
        tokio::time::sleep_until(rest_until).await;
        for told in batch.drain(..) {
            match told {
                News::Line(key, Some(line)) if lines.get(&key) == Some(&line) => {}
                News::Line(key, Some(line)) => {
                    lines.insert(key, line);
                    is_news = true;
                }
                News::Line(key, None) => is_news |= lines.remove(&key).is_some(),
                News::InSync => is_whole = true,
            }
        }
        if !is_whole || !is_news {
            continue;
        }
        let text: String = lines.values().map(String::as_str).collect();
        if written.as_ref() == Some(&text) {
            is_news = false;
            continue;
        }
        let started = Instant::now();
        written = write(state_dir.clone(), text).await;
        is_news = written.is_none();
        rest_until = Instant::now() + PAUSE.max(started.elapsed() * 4);
    }
}

/// What is in the file now, if it was written.
async fn write(dir: PathBuf, text: String) -> Option<String> {
    let work = move || {
        let outcome = write_atomically(&dir, FILE, text.as_bytes(), 0o600);
        (text, outcome)
    };
    match tokio::task::spawn_blocking(work).await {
        Ok((text, Ok(()))) => Some(text),
        Ok((_, Err(error))) => {
            tracing::error!(%error, "the last known state of the cluster cannot be written; trying again with the next change");
            None
        }
        // The agent is on its way out.
        Err(_) => None,
    }
}

/// Kinds that belong to the picture: what routes, tunnels, BGP and the protection of this host are worked out from.
fn is_kept(kind: Kind) -> bool {
    match kind {
        Kind::IPPool
        | Kind::BGPConfiguration
        | Kind::BGPPeer
        | Kind::BGPFilter
        | Kind::FelixConfiguration
        | Kind::Node
        | Kind::BlockAffinity
        | Kind::HostEndpoint
        | Kind::GlobalNetworkPolicy => true,
        Kind::WorkloadEndpoint
        | Kind::Profile
        | Kind::ClusterInformation
        | Kind::IPAMBlock
        | Kind::IPAMHandle
        | Kind::IPAMConfiguration
        | Kind::KubeControllersConfiguration
        | Kind::IPReservation
        | Kind::CalicoNodeStatus
        | Kind::NetworkPolicy
        | Kind::StagedNetworkPolicy
        | Kind::StagedGlobalNetworkPolicy
        | Kind::StagedKubernetesNetworkPolicy
        | Kind::Tier
        | Kind::NetworkSet
        | Kind::GlobalNetworkSet
        | Kind::KubernetesEndpointSlice => false,
    }
}

/// A resource as a line, without what nothing is worked out from; `None`: it is no business of this node.
fn line(node: &str, resource: &Resource) -> Option<String> {
    let is_ours = match resource {
        Resource::BlockAffinity(affinity) => affinity.spec.node == node,
        Resource::HostEndpoint(endpoint) => endpoint.spec.node == node,
        // Of policies only that they are: which host endpoints do not let everything through.
        Resource::GlobalNetworkPolicy(policy) => policy.spec.apply_on_forward,
        other => is_kept(other.kind()),
    };
    if !is_ours {
        return None;
    }
    let mut resource = resource.clone();
    let metadata = resource.metadata_mut();
    *metadata = Metadata {
        name: std::mem::take(&mut metadata.name),
        namespace: metadata.namespace.take(),
        creation_timestamp: metadata.creation_timestamp,
        labels: std::mem::take(&mut metadata.labels),
        ..Metadata::default()
    };
    let line = serde_json::to_string(&resource);
    line.ok().map(|line| line + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(json: &str) -> Resource {
        serde_json::from_str(json).unwrap_or_else(|error| panic!("{json}: {error}"))
    }

    fn update(json: &str) -> Update {
        let resource = resource(json);
        Update {
            key: resource.key(),
            value: Some(resource),
        }
    }

    const FELIX: &str = r#"{"kind":"FelixConfiguration","metadata":{"name":"default","resourceVersion":"7","annotations":{"a":"b"}},"spec":{"logPrefix":"x"}}"#;

    #[track_caller]
    fn check_news(json: &str, expected: Option<Option<&str>>) {
        let told = News::of("n1", &update(json));
        let line = told.map(|news| match news {
            News::Line(_, line) => line,
            News::InSync => panic!("an update is no end"),
        });
        let expected = expected.map(|line| line.map(|line| format!("{line}\n")));
        assert_eq!(line, expected);
    }

    #[test]
    fn what_belongs_to_the_picture_of_a_node() {
        let endpoint = |node: &str| {
            format!(
                r#"{{"kind":"HostEndpoint","metadata":{{"name":"e"}},"spec":{{"node":"{node}","interfaceName":"eth0"}}}}"#
            )
        };
        check_news(&endpoint("n1"), Some(Some(&endpoint("n1"))));
        // It may have been this node's before.
        check_news(&endpoint("n2"), Some(None));
        check_news(
            FELIX,
            Some(Some(
                r#"{"kind":"FelixConfiguration","metadata":{"name":"default"},"spec":{"logPrefix":"x"}}"#,
            )),
        );
        check_news(r#"{"kind":"Tier","metadata":{"name":"t"},"spec":{}}"#, None);
        let policy =
            |spec: &str| format!(r#"{{"kind":"GlobalNetworkPolicy","metadata":{{"name":"p"}},"spec":{{{spec}}}}}"#);
        let forward = policy(r#""selector":"has(host)","types":["Ingress"],"applyOnForward":true"#);
        check_news(&forward, Some(Some(&forward)));
        check_news(&policy(r#""selector":"has(host)""#), Some(None));
    }

    fn check_kept(news: Vec<News>, before: Option<&str>, expected: Option<&str>) {
        let dir = tempfile::tempdir().expect("a directory");
        if let Some(text) = before {
            fs::write(path(dir.path()), text).expect("written");
        }
        let (tell, told) = mpsc::unbounded_channel();
        news.into_iter().for_each(|news| tell.send(news).expect("a listener"));
        drop(tell);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
        runtime.block_on(keep(dir.path().to_path_buf(), told));
        assert_eq!(fs::read_to_string(path(dir.path())).ok().as_deref(), expected);
    }

    #[test]
    fn the_file_is_written_when_the_picture_is_whole() {
        let felix = || News::of("n1", &update(FELIX)).expect("news");
        let News::Line(key, Some(line)) = felix() else { panic!() };
        check_kept(vec![felix()], None, None);
        check_kept(vec![felix()], Some("old"), Some("old"));
        check_kept(vec![felix(), News::InSync], Some("old"), Some(&line));
        check_kept(
            vec![News::InSync, felix(), News::Line(key, None)],
            Some("old"),
            Some(""),
        );
    }

    #[test]
    fn half_a_file_is_no_picture() {
        let dir = tempfile::tempdir().expect("a directory");
        let line = line("n1", &resource(FELIX)).expect("a line");
        assert_eq!(read(dir.path()), Memory::Nothing);
        fs::write(path(dir.path()), &line).expect("written");
        assert_eq!(read(dir.path()).picture().len(), 1);
        fs::write(path(dir.path()), format!("{line}{}", &line[..20])).expect("written");
        assert_eq!(read(dir.path()), Memory::Unreadable);
    }
}
