//! One value for any resource, and the generic object around each kind's spec.

use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::Value;

use crate::document::{Decoded, decode};
use crate::names::NameRule;
use crate::problem::{FieldProblem, Problems};
use crate::shape::{self, Shape};
use crate::spec::*;
use crate::wrong::Wrong;
use crate::{Key, Kind, Metadata};

/// What distinguishes one kind from another: its spec, its status, its [`Kind`].
pub trait Spec: Clone + PartialEq + std::fmt::Debug + Serialize + de::DeserializeOwned + Send + Sync + 'static {
    /// The kind whose spec this is.
    const KIND: Kind;
    /// The status part; `()`-like kinds use [`NoStatus`].
    type Status: Clone + PartialEq + std::fmt::Debug + Default + Judged + Serialize + de::DeserializeOwned + Send + Sync;

    /// What objects of this kind may be called.
    const NAMES: NameRule = NameRule::Subdomain;

    /// Reports what is wrong with the spec; paths start below `spec`. Absent optional fields are right.
    fn check(&self, _metadata: &Metadata, _problems: &mut Problems) {}

    /// Reports what is wrong with the status; paths start below `status`.
    fn check_status(_status: &Self::Status, _problems: &mut Problems) {}

    /// Reports what must not change from `old` to this; paths start below `spec`.
    fn check_update(&self, _old: &Self, _problems: &mut Problems) {}

    /// Fills in what upstream fills in when an object is written.
    fn apply_defaults(&mut self, _metadata: &mut Metadata) {}

    /// A harmless value for a required field (path from the top, not within a list) that holds `wrong`, so that the rest can be judged.
    fn stand_in(_field: &str, _wrong: &serde_json::Value) -> Option<serde_json::Value> {
        None
    }
}

/// Status of kinds that have none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoStatus {}

impl Judged for NoStatus {}

/// A resource of one kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct Object<S: Spec> {
    /// Identity and labels.
    pub metadata: Metadata,
    /// What is wanted (or, for IPAM's kinds, what is).
    pub spec: S,
    /// What controllers report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<S::Status>,
}

impl<S: Spec> Object<S> {
    /// A cluster-wide object.
    pub fn new(name: impl Into<String>, spec: S) -> Self {
        Self {
            metadata: Metadata::named(name),
            spec,
            status: None,
        }
    }

    /// This object's identity.
    pub fn key(&self) -> Key {
        Key {
            kind: S::KIND,
            namespace: self.metadata.namespace.clone(),
            name: self.metadata.name.clone(),
        }
    }

    /// Everything that is wrong with it.
    pub fn problems(&self) -> Vec<FieldProblem> {
        let mut problems = Problems::new();
        problems.within("metadata", |problems| {
            if !S::KIND.is_namespaced()
                && let Some(namespace) = &self.metadata.namespace
            {
                problems.report(
                    "namespace",
                    namespace,
                    format!("must be absent: {} is cluster-wide", S::KIND),
                );
            }
            self.metadata.check(S::NAMES, problems);
        });
        problems.within("spec", |problems| self.spec.check(&self.metadata, problems));
        if let Some(status) = &self.status {
            problems.within("status", |problems| S::check_status(status, problems));
        }
        problems.into_vec()
    }

    /// What must not change from `old` to this.
    pub fn problems_in_update(&self, old: &Self) -> Vec<FieldProblem> {
        let mut problems = Problems::new();
        problems.within("spec", |problems| self.spec.check_update(&old.spec, problems));
        problems.into_vec()
    }
}

macro_rules! resources {
    ($($variant:ident, $alias:ident, $spec:ident;)*) => {
        $(#[doc = concat!("A resource of kind `", stringify!($variant), "`.")]
        pub type $alias = Object<$spec>;

        impl From<Object<$spec>> for Resource {
            fn from(object: Object<$spec>) -> Self { Resource::$variant(object) }
        }

        impl TryFrom<Resource> for Object<$spec> {
            type Error = Resource;
            /// The object, or the resource back if it is of another kind.
            fn try_from(resource: Resource) -> Result<Self, Resource> {
                match resource { Resource::$variant(object) => Ok(object), other => Err(other) }
            }
        }

        impl<'a> TryFrom<&'a Resource> for &'a Object<$spec> {
            type Error = &'a Resource;
            fn try_from(resource: &'a Resource) -> Result<Self, &'a Resource> {
                match resource { Resource::$variant(object) => Ok(object), other => Err(other) }
            }
        })*

        /// A resource of any kind. Its JSON form is the v3 document: `apiVersion` is added at the edge, `kind` is the tag.
        #[derive(Clone, Debug, PartialEq, Serialize)]
        #[serde(tag = "kind")]
        #[allow(clippy::large_enum_variant, reason = "workload endpoints are the largest, and by far the most")]
        pub enum Resource {
            $(#[doc = concat!("`", stringify!($variant), "`")] $variant(Object<$spec>),)*
            /// One that is there, but not as an object of its kind must be.
            #[serde(untagged)]
            Wrong(Box<Wrong>),
        }

        impl Resource {
            /// What it is.
            pub fn kind(&self) -> Kind {
                match self {
                    $(Resource::$variant(_) => Kind::$variant,)*
                    Resource::Wrong(wrong) => wrong.kind(),
                }
            }

            /// Its metadata.
            pub fn metadata(&self) -> &Metadata {
                match self {
                    $(Resource::$variant(object) => &object.metadata,)*
                    Resource::Wrong(wrong) => wrong.metadata(),
                }
            }

            /// Its metadata, to change.
            pub fn metadata_mut(&mut self) -> &mut Metadata {
                match self {
                    $(Resource::$variant(object) => &mut object.metadata,)*
                    Resource::Wrong(wrong) => wrong.metadata_mut(),
                }
            }

            /// Everything that is wrong with it, in the order of the document.
            pub fn problems(&self) -> Vec<FieldProblem> {
                match self {
                    $(Resource::$variant(object) => object.problems(),)*
                    Resource::Wrong(wrong) => wrong.all_problems(),
                }
            }

            /// What must not change from `old` to this: upstream's immutable fields. Another kind changes everything.
            pub fn problems_in_update(&self, old: &Resource) -> Vec<FieldProblem> {
                match (self, old) {
                    $((Resource::$variant(new), Resource::$variant(old)) => new.problems_in_update(old),)*
                    (new, old) => {
                        let mut problems = Problems::new();
                        problems.report("kind", new.kind(), format!("must stay {}", old.kind()));
                        problems.into_vec()
                    }
                }
            }

            /// Fills in what upstream fills in when an object is written.
            pub fn apply_defaults(&mut self) {
                match self {
                    $(Resource::$variant(object) => object.spec.apply_defaults(&mut object.metadata),)*
                    Resource::Wrong(_) => {}
                }
            }

            /// Makes what controllers reported of `old` what is said of this; nothing, if there was none. Whoever writes an
            /// object has no say in its conditions. A status of another kind stays, if this has one.
            pub fn take_status_of(&mut self, old: Option<&Resource>) {
                match self {
                    $(Resource::$variant(new) => {
                        let before = match old {
                            Some(Resource::$variant(old)) => old.status.clone(),
                            Some(_) | None => None,
                        };
                        let has_conditions = <$spec as Spec>::Status::default().conditions_mut().is_some();
                        if has_conditions || new.status.is_none() {
                            new.status = before;
                        }
                    })*
                    Resource::Wrong(_) => {}
                }
            }

            /// What is said of it.
            pub fn conditions(&self) -> Vec<Condition> {
                match self {
                    $(Resource::$variant(object) => {
                        object.status.as_ref().map(|status| status.conditions().to_vec()).unwrap_or_default()
                    })*
                    Resource::Wrong(wrong) => wrong.conditions(),
                }
            }

            /// Says something of it, in place of what was said with the same type. Whether there is a place for it.
            pub fn set_condition(&mut self, condition: Condition) -> bool {
                match self {
                    $(Resource::$variant(object) => {
                        let mut status = object.status.clone().unwrap_or_default();
                        let Some(conditions) = status.conditions_mut() else { return false };
                        put_condition(conditions, condition);
                        object.status = Some(status);
                    })*
                    Resource::Wrong(wrong) => {
                        let mut conditions = wrong.conditions();
                        put_condition(&mut conditions, condition);
                        wrong.set_conditions(&conditions);
                    }
                }
                true
            }

            /// Says no more what was said with this type. Whether anything was.
            pub fn remove_condition(&mut self, kind: &str) -> bool {
                let drop_from = |conditions: &mut Vec<Condition>| {
                    let before = conditions.len();
                    conditions.retain(|held| held.kind != kind);
                    conditions.len() != before
                };
                match self {
                    $(Resource::$variant(object) => {
                        let held = object.status.as_mut().and_then(|status| status.conditions_mut());
                        held.is_some_and(drop_from)
                    })*
                    Resource::Wrong(wrong) => {
                        let mut conditions = wrong.conditions();
                        let was_there = drop_from(&mut conditions);
                        if was_there {
                            wrong.set_conditions(&conditions);
                        }
                        was_there
                    }
                }
            }

            /// The object of this kind in `value`.
            fn typed(kind: Kind, value: &Value) -> Result<Self, serde_json::Error> {
                match kind {
                    $(Kind::$variant => Object::<$spec>::deserialize(value).map(Resource::$variant),)*
                }
            }

            /// What spec and status of a kind hold.
            pub(crate) fn shapes(kind: Kind) -> (Shape, Shape) {
                match kind {
                    $(Kind::$variant => (shape::of::<$spec>(), shape::of::<<$spec as Spec>::Status>()),)*
                }
            }

            /// Decodes the document of this kind; unknown fields and wrong values are problems.
            pub(crate) fn decode(kind: Kind, value: serde_json::Value) -> Decoded<Resource> {
                match kind {
                    $(Kind::$variant => decode::<Object<$spec>>(value, <$spec as Spec>::stand_in).map(Resource::$variant),)*
                }
            }
        }
    };
}

resources! {
    IPPool, IpPool, IpPoolSpec;
    BGPConfiguration, BgpConfiguration, BgpConfigurationSpec;
    BGPPeer, BgpPeer, BgpPeerSpec;
    FelixConfiguration, FelixConfiguration, FelixConfigurationSpec;
    Node, Node, NodeSpec;
    WorkloadEndpoint, WorkloadEndpoint, WorkloadEndpointSpec;
    Profile, Profile, ProfileSpec;
    ClusterInformation, ClusterInformation, ClusterInformationSpec;
    IPAMBlock, IpamBlock, IpamBlockSpec;
    BlockAffinity, BlockAffinity, BlockAffinitySpec;
    IPAMHandle, IpamHandle, IpamHandleSpec;
    IPAMConfiguration, IpamConfiguration, IpamConfigurationSpec;
    NetworkPolicy, NetworkPolicy, NetworkPolicySpec;
    GlobalNetworkPolicy, GlobalNetworkPolicy, GlobalNetworkPolicySpec;
    StagedNetworkPolicy, StagedNetworkPolicy, StagedNetworkPolicySpec;
    StagedGlobalNetworkPolicy, StagedGlobalNetworkPolicy, StagedGlobalNetworkPolicySpec;
    StagedKubernetesNetworkPolicy, StagedKubernetesNetworkPolicy, StagedKubernetesNetworkPolicySpec;
    Tier, Tier, TierSpec;
    NetworkSet, NetworkSet, NetworkSetSpec;
    GlobalNetworkSet, GlobalNetworkSet, GlobalNetworkSetSpec;
    HostEndpoint, HostEndpoint, HostEndpointSpec;
    KubernetesEndpointSlice, KubernetesEndpointSlice, KubernetesEndpointSliceSpec;
    KubeControllersConfiguration, KubeControllersConfiguration, KubeControllersConfigurationSpec;
    IPReservation, IpReservation, IpReservationSpec;
    CalicoNodeStatus, CalicoNodeStatus, CalicoNodeStatusSpec;
    BGPFilter, BgpFilter, BgpFilterSpec;
}

/// Whatever says of which kind it is and what it is called is a resource, if only a wrong one.
impl<'de> Deserialize<'de> for Resource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Resource::from_json(Value::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

fn put_condition(conditions: &mut Vec<Condition>, condition: Condition) {
    match conditions.iter_mut().find(|held| held.kind == condition.kind) {
        Some(held) => *held = condition,
        None => conditions.push(condition),
    }
}

impl Resource {
    /// What a store holds: an object of its kind, or a [`Wrong`] one. What is said of it by others cannot make it wrong.
    ///
    /// # Errors
    /// If it does not say of which kind it is, or what it is called.
    pub fn from_json(mut value: Value) -> Result<Self, String> {
        let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default();
        let kind = Kind::ALL.into_iter().find(|known| known.name() == kind);
        let kind = kind.ok_or_else(|| "its kind is none that is known".to_owned())?;
        let error = match Self::typed(kind, &value) {
            Ok(resource) => return Ok(resource),
            Err(error) => error,
        };
        if let Some(fields) = value.as_object_mut()
            && let Some(status) = fields.remove("status")
        {
            if let Ok(resource) = Self::typed(kind, &value) {
                return Ok(resource);
            }
            value["status"] = status;
        }
        let name = value["metadata"]["name"].as_str();
        if name.is_none_or(str::is_empty) {
            return Err(error.to_string());
        }
        Ok(Wrong::read(kind, value, &error.to_string()).into())
    }

    /// It, with what upstream fills in when an object is written.
    pub fn with_defaults(mut self) -> Self {
        self.apply_defaults();
        self
    }

    /// The tier that it belongs to, if it is a policy, staged ones included; of a wrong one what can be read.
    pub fn tier(&self) -> Option<&str> {
        match self {
            Resource::NetworkPolicy(policy) => Some(policy.spec.tier()),
            Resource::GlobalNetworkPolicy(policy) => Some(policy.spec.tier()),
            Resource::StagedNetworkPolicy(policy) => Some(policy.spec.tier()),
            Resource::StagedGlobalNetworkPolicy(policy) => Some(policy.spec.tier()),
            Resource::StagedKubernetesNetworkPolicy(_) => Some(BuiltInTier::DEFAULT.name),
            Resource::Wrong(wrong) => wrong.readable().and_then(Resource::tier),
            _ => None,
        }
    }

    /// Its identity.
    pub fn key(&self) -> Key {
        let metadata = self.metadata();
        Key {
            kind: self.kind(),
            namespace: metadata.namespace.clone(),
            name: metadata.name.clone(),
        }
    }
}
