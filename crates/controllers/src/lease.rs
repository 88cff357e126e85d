//! Leadership by a Lease of `coordination.k8s.io/v1`: asks the API server what an [`Elector`] wants to know.
//!
//! Time is the machine's since it was started, with what it has slept: a process that was stopped, or a machine that was
//! suspended, finds at its first write that its term is over.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backend::kubernetes::{Action, Api, ApiError};
use futures::future::{BoxFuture, FutureExt};
use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use crate::election::{Answer, Ask, Elector, Record, Timing};
use crate::leadership::{Leadership, Say, Term, Wait};

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long giving the Lease back may take.
const FAREWELL: Duration = Duration::from_secs(4);
/// Its resource, as a role names it.
const RESOURCE: &str = "leases.coordination.k8s.io";

/// Where a Lease is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseName {
    namespace: String,
    name: String,
}

impl FromStr for LeaseName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = |part: &str| {
            part.starts_with(|first: char| first.is_ascii_alphanumeric())
                && part.len() <= 253
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.')
        };
        match text.split_once('/') {
            Some((namespace, name)) if plain(namespace) && plain(name) => Ok(Self {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            }),
            _ => Err("must be a namespace and a name, as in margay-system/margay-controllers".into()),
        }
    }
}

impl fmt::Display for LeaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl LeaseName {
    fn list(&self) -> String {
        format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", self.namespace)
    }

    fn path(&self) -> String {
        format!("{}/{}", self.list(), self.name)
    }
}

/// Leads who holds the Lease.
pub struct LeaseLock {
    shared: Arc<Shared>,
}

struct Shared {
    name: LeaseName,
    elector: Mutex<Elector>,
    /// Made when it is first needed.
    api: tokio::sync::Mutex<Option<Api>>,
    /// Why nothing is known of the Lease, if that is so.
    trouble: Mutex<Option<String>>,
}

impl LeaseLock {
    /// `me` is for people; what makes it this process's is added. Access to the API server is taken from where the datastore's
    /// is: KUBECONFIG, `~/.kube/config` or the pod's service account.
    pub fn new(name: LeaseName, me: &str) -> Self {
        let me = format!("{me}_{}", uuid::Uuid::new_v4());
        let shared = Shared {
            name,
            elector: Mutex::new(Elector::new(me, Timing::default())),
            api: tokio::sync::Mutex::default(),
            trouble: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }
}

impl Leadership for LeaseLock {
    fn acquire<'a>(&'a self, say: Say<'a>) -> BoxFuture<'a, Term> {
        async move {
            let mut said = None;
            loop {
                self.shared.step().await;
                if self.shared.holds() {
                    return term(Arc::clone(&self.shared));
                }
                let why = self.shared.why();
                if why.is_some() && why != said {
                    said.clone_from(&why);
                    why.into_iter().for_each(say);
                }
            }
        }
        .boxed()
    }

    fn release(&self) -> BoxFuture<'_, ()> {
        let giving = async {
            self.shared.elector().leave(now());
            while self.shared.ask().await {}
        };
        // What is not given back runs out.
        tokio::time::timeout(FAREWELL, giving).map(drop).boxed()
    }
}

fn term(shared: Arc<Shared>) -> Term {
    let asked = Arc::clone(&shared);
    let ended = async move {
        while shared.holds() {
            shared.step().await;
        }
        match shared.why() {
            Some(Wait::Other(why) | Wait::Trouble(why)) => why,
            None => format!("the Lease {} was written by somebody else", shared.name),
        }
    };
    Term {
        left: Arc::new(move || asked.elector().left(now())),
        ended: ended.boxed(),
    }
}

impl Shared {
    fn elector(&self) -> MutexGuard<'_, Elector> {
        self.elector.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn trouble(&self) -> MutexGuard<'_, Option<String>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn holds(&self) -> bool {
        self.elector().holds(now())
    }

    /// Why this process does not lead, if that is known.
    fn why(&self) -> Option<Wait> {
        if let Some(trouble) = self.trouble().clone() {
            return Some(Wait::Trouble(format!("the Lease {}: {trouble}", self.name)));
        }
        let elector = self.elector();
        let other = elector.other()?;
        Some(Wait::Other(format!("{other} holds the Lease {}", self.name)))
    }

    /// Asks what there is to ask, or waits until there is something.
    async fn step(&self) {
        if !self.ask().await {
            let due = self.elector().due();
            tokio::time::sleep(due.saturating_sub(now())).await;
        }
    }

    /// Asks what there is to ask now; whether there was something.
    async fn ask(&self) -> bool {
        let Some(ask) = self.elector().poll(now(), Timestamp::now()) else {
            return false;
        };
        let answer = match tokio::time::timeout(PATIENCE, self.put(&ask)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("the API server did not answer within {PATIENCE:?}")),
        };
        let (answer, trouble) = match answer {
            Ok(answer) => (answer, None),
            Err(why) => (Answer::Lost, Some(why)),
        };
        *self.trouble() = trouble;
        self.elector().answer(now(), answer);
        true
    }

    async fn put(&self, ask: &Ask) -> Result<Answer, String> {
        let api = self.api().await.map_err(|error| error.to_string())?;
        let (path, action) = match ask {
            Ask::Read => (self.name.path(), Action::Get),
            Ask::Write {
                record,
                replaces: Some(version),
            } => (self.name.path(), Action::Patch(patch(record, version))),
            Ask::Write { record, replaces: None } => {
                (self.name.list(), Action::Create(object(record, &self.name.name)))
            }
        };
        let creates = matches!(action, Action::Create(_));
        match (api.ask(RESOURCE, &path, action).await, ask) {
            (Ok(lease), Ask::Read) => Ok(Answer::Read(Some((read(&lease), version(&lease)?)))),
            (Ok(lease), Ask::Write { .. }) => Ok(Answer::Written(version(&lease)?)),
            (Err(ApiError::NotFound(_)), Ask::Read) => Ok(Answer::Read(None)),
            (Err(ApiError::Conflict(_) | ApiError::Exists(_)), Ask::Write { .. }) => Ok(Answer::Refused),
            // What is not there to be created is its namespace.
            (Err(ApiError::NotFound(_)), Ask::Write { .. }) if !creates => Ok(Answer::Refused),
            (Err(error), _) => Err(error.to_string()),
        }
    }

    async fn api(&self) -> Result<Api, ApiError> {
        let mut api = self.api.lock().await;
        match &*api {
            Some(api) => Ok(api.clone()),
            None => Ok(api.insert(Api::connect(None).await?).clone()),
        }
    }
}

/// Since the machine was started, with what it has slept.
fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

/// Kubernetes' `MicroTime`.
fn micros(time: Timestamp) -> String {
    format!("{time:.6}")
}

fn spec(record: &Record) -> Value {
    json!({
        "holderIdentity": record.holder,
        "leaseDurationSeconds": record.duration.as_secs(),
        "acquireTime": record.acquired.map(micros),
        "renewTime": record.renewed.map(micros),
        "leaseTransitions": record.transitions,
    })
}

fn object(record: &Record, name: &str) -> Value {
    json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": { "name": name }, "spec": spec(record) })
}

/// Labels and whatever else others have written stay.
fn patch(record: &Record, replaces: &str) -> Value {
    json!({ "metadata": { "resourceVersion": replaces }, "spec": spec(record) })
}

/// What a Lease says. What is missing or no value of its kind says nothing.
fn read(lease: &Value) -> Record {
    let spec = &lease["spec"];
    let time = |field: &str| spec[field].as_str().and_then(|text| text.parse().ok());
    Record {
        holder: spec["holderIdentity"].as_str().unwrap_or_default().to_owned(),
        duration: Duration::from_secs(spec["leaseDurationSeconds"].as_u64().unwrap_or_default()),
        acquired: time("acquireTime"),
        renewed: time("renewTime"),
        transitions: spec["leaseTransitions"].as_u64().unwrap_or_default(),
    }
}

fn version(lease: &Value) -> Result<String, String> {
    let version = lease["metadata"]["resourceVersion"].as_str();
    version
        .map(str::to_owned)
        .ok_or_else(|| "the API server answered with something else than a Lease".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_says_what_others_read() {
        let record = Record {
            holder: "node-a_1".into(),
            duration: Duration::from_secs(15),
            acquired: Some("2026-01-02T03:04:05.123456789Z".parse().unwrap()),
            renewed: Some("2026-01-02T03:04:06Z".parse().unwrap()),
            transitions: 7,
        };
        let lease = object(&record, "l");
        assert_eq!(
            lease["spec"],
            json!({ "holderIdentity": "node-a_1", "leaseDurationSeconds": 15, "acquireTime": "2026-01-02T03:04:05.123456Z",
                "renewTime": "2026-01-02T03:04:06.000000Z", "leaseTransitions": 7 })
        );
        let mut expected = record;
        expected.acquired = Some("2026-01-02T03:04:05.123456Z".parse().unwrap());
        assert_eq!(read(&lease), expected);
        assert_eq!(read(&json!({})).holder, "");
    }

    #[test]
    fn a_lease_has_a_namespace_and_a_name() {
        let check = |text: &str, fine: bool| assert_eq!(text.parse::<LeaseName>().is_ok(), fine, "{text}");
        check("margay-system/margay-controllers", true);
        check("margay-controllers", false);
        check("/a", false);
        check("a/", false);
        check("a/b/c", false);
        check("a/..", false);
        check("A/b", false);
    }
}
