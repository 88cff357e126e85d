//! What staged policies rehearse: the policies that there would be if each of them became what it says.

use std::borrow::Cow;
use std::collections::BTreeSet;

use api::kubernetes::K8sNetworkPolicy;
use api::names::K8S_POLICY_PREFIX;
use api::resource::{GlobalNetworkPolicy, NetworkPolicy};
use api::{Key, Kind, Metadata, Resource, StagedAction};

/// Policies that a staged one would replace or remove, by key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rehearsed(BTreeSet<Key>);

impl Rehearsed {
    /// What is staged in these resources.
    pub fn of<'a>(resources: impl Iterator<Item = &'a Resource>) -> Self {
        let subjects = resources.filter_map(|resource| Some(rehearsed(resource)?.0));
        Self(subjects.collect())
    }

    /// Whether nothing is staged.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a policy would not be what it is.
    pub fn contains(&self, policy: &Key) -> bool {
        self.0.contains(policy)
    }

    /// Records what a staged policy is now; other kinds are no matter.
    pub(crate) fn set(&mut self, staged: &Key, value: Option<&Resource>) {
        let Some(subject) = subject(staged) else { return };
        match value.and_then(rehearsed) {
            Some(_) => self.0.insert(subject),
            None => self.0.remove(&subject),
        };
    }
}

/// The policy that a staged policy of this key is about; `None` for keys of other kinds.
pub fn subject(staged: &Key) -> Option<Key> {
    let (kind, name) = subject_of(staged);
    (kind != staged.kind).then(|| Key {
        kind,
        namespace: staged.namespace.clone(),
        name: name.into_owned(),
    })
}

/// Kind and name of the policy that a staged policy is about; those of the key itself, if it is another's.
pub(crate) fn subject_of(key: &Key) -> (Kind, Cow<'_, str>) {
    let name = Cow::Borrowed(key.name.as_str());
    match key.kind {
        Kind::StagedNetworkPolicy => (Kind::NetworkPolicy, name),
        Kind::StagedGlobalNetworkPolicy => (Kind::GlobalNetworkPolicy, name),
        Kind::StagedKubernetesNetworkPolicy => (Kind::NetworkPolicy, format!("{K8S_POLICY_PREFIX}{name}").into()),
        other => (other, name),
    }
}

/// The policy that a staged one is about, and what it would be (`None`: gone); `None` if nothing is rehearsed.
pub fn rehearsed(resource: &Resource) -> Option<(Key, Option<Resource>)> {
    let subject = subject(&resource.key())?;
    let metadata = Metadata {
        name: subject.name.clone(),
        ..resource.metadata().clone()
    };
    let (action, policy): (_, Resource) = match resource {
        Resource::StagedNetworkPolicy(staged) => {
            let mut policy = NetworkPolicy::new("", staged.spec.enforced());
            policy.metadata = metadata;
            (staged.spec.staged_action, policy.into())
        }
        Resource::StagedGlobalNetworkPolicy(staged) => {
            let mut policy = GlobalNetworkPolicy::new("", staged.spec.enforced());
            policy.metadata = metadata;
            (staged.spec.staged_action, policy.into())
        }
        Resource::StagedKubernetesNetworkPolicy(staged) => {
            let written = K8sNetworkPolicy {
                metadata: staged.metadata.clone(),
                spec: staged.spec.enforced(),
            };
            (staged.spec.staged_action, written.to_network_policy().0.into())
        }
        _ => return None,
    };
    match action.unwrap_or_default() {
        StagedAction::Set => Some((subject, Some(policy))),
        StagedAction::Delete => Some((subject, None)),
        StagedAction::Learn | StagedAction::Ignore => None,
    }
}
