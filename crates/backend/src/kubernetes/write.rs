//! Create, update and delete. What is made of another object is changed there, and refused here.

use api::{Key, Kind, Node, Resource, WorkloadEndpoint};
use datastore::{Revision, StoreError, Stored, check_key, check_new};
use serde_json::{Value, json};

use super::client::Action;
use super::error::ApiError;
use super::group::CalicoGroup;
use super::table::{Row, Source};
use super::{Shared, convert, custom, node, pod};

/// How often a deletion without a wanted revision starts again when somebody changes the object meanwhile.
const ATTEMPTS: usize = 5;

impl Shared {
    pub async fn create(&self, resource: &Resource) -> Result<Stored, StoreError> {
        let key = resource.key();
        let row = self.writable(&key)?;
        check_new(resource)?;
        match resource {
            // The pod is there, or there is nothing to create; what the endpoint adds to it is its addresses. Whether it had
            // some does not matter: they are of a sandbox that is gone.
            Resource::WorkloadEndpoint(endpoint) => self.put_endpoint(row, endpoint, None).await,
            Resource::Node(_) => match self.get_object(row, &key).await {
                Ok(_) => Err(StoreError::Exists(key)),
                Err(ApiError::NotFound(_)) => Err(StoreError::Refused(format!(
                    "{key}: Kubernetes has no node of this name; nodes join through kubelet, and a node's name is \
                     kubelet's (NODENAME)"
                ))),
                Err(error) => Err(error.about(&key)),
            },
            _ => self.create_custom(row, resource, &key).await,
        }
    }

    async fn create_custom(&self, row: Row, resource: &Resource, key: &Key) -> Result<Stored, StoreError> {
        let created = match self.post(row, resource, key).await {
            Err(ApiError::Exists(_)) if is_ipam(key.kind) && self.finish_marked(row, key).await? => {
                self.post(row, resource, key).await
            }
            created => created,
        };
        match created {
            Ok(object) => self.stored(row, key, object).await,
            // What is missing is not the object, which is new, but its namespace.
            Err(ApiError::NotFound(message)) => Err(StoreError::Refused(message)),
            Err(error) => Err(error.about(key)),
        }
    }

    async fn post(&self, row: Row, resource: &Resource, key: &Key) -> Result<Value, ApiError> {
        let (_, groups) = self.link.ready().await?;
        let object = custom::write(resource, groups.calico, None);
        let action = Action::Create(object.clone());
        let answer = self.link.ask(row, key.namespace.as_deref(), "", "", action).await?;
        self.put_status(row, key, object, answer).await
    }

    /// Writes the status that the API server left aside because it has a place of its own; answers the object as it is then.
    async fn put_status(&self, row: Row, key: &Key, mut object: Value, answer: Value) -> Result<Value, ApiError> {
        let (api, groups) = self.link.ready().await?;
        let is_empty = |status: &Value| status.is_null() || *status == json!({});
        let is_said =
            object["status"] == answer["status"] || is_empty(&object["status"]) && is_empty(&answer["status"]);
        if is_said || groups.calico == CalicoGroup::V1 {
            return Ok(answer);
        }
        if object["status"].is_null() {
            object["status"] = json!({});
        }
        object["metadata"]["resourceVersion"] = answer["metadata"]["resourceVersion"].clone();
        let resource = format!("{}/status", row.resource(&groups));
        let path = row
            .path(&groups, key.namespace.as_deref(), &key.name)
            .unwrap_or_default();
        match api
            .ask(&resource, &format!("{path}/status"), Action::Update(object))
            .await
        {
            // Definitions of before have no such place.
            Err(ApiError::NotFound(_) | ApiError::ResourceMissing(_)) => Ok(answer),
            done => done,
        }
    }

    /// Only the status, so that a role needs no more, and nobody's fields are lost.
    pub async fn update_status(&self, resource: &Resource, expected: &Revision) -> Result<Stored, StoreError> {
        let key = resource.key();
        let row = self.writable(&key)?;
        let held = self.get_object(row, &key).await.map_err(|error| error.about(&key))?;
        if convert::version(&held) != Some(expected.0.as_str()) {
            return Err(StoreError::Conflict(key));
        }
        let (_, groups) = self.link.ready().await?;
        if row.source != Source::Custom {
            return self.stored(row, &key, held).await;
        }
        let object = custom::write(resource, groups.calico, Some(&expected.0));
        let answer = match groups.calico {
            CalicoGroup::V1 => self.patch_status_v1(row, &key, object, held).await,
            CalicoGroup::V3 => self.put_status(row, &key, object, held).await,
        };
        self.stored(row, &key, answer.map_err(|error| error.about(&key))?).await
    }

    /// In v1 the status has no place of its own, and in most of upstream's definitions none at all. So only what nobody else says
    /// is written, and in the object itself: a role must not need the right to change policies in order to speak of them.
    async fn patch_status_v1(&self, row: Row, key: &Key, object: Value, held: Value) -> Result<Value, ApiError> {
        let says = matches!(row.kind, Kind::IPPool | Kind::Tier | Kind::KubeControllersConfiguration);
        let change = convert::merge(&held["status"], &object["status"]);
        if !says || change == json!({}) {
            return Ok(held);
        }
        let version = &held["metadata"]["resourceVersion"];
        let patch = json!({ "metadata": { "resourceVersion": version }, "status": change });
        self.patch(row, key, patch).await
    }

    /// Changes some fields of an object, by RFC 7386.
    async fn patch(&self, row: Row, key: &Key, patch: Value) -> Result<Value, ApiError> {
        let action = Action::Patch(patch);
        self.link
            .ask(row, key.namespace.as_deref(), &key.name, "", action)
            .await
    }

    /// As a patch: definitions of others may have fields that are unknown here, and defaults that are written out.
    pub async fn set_finalizers(
        &self,
        key: &Key,
        finalizers: Vec<String>,
        expected: &Revision,
    ) -> Result<Stored, StoreError> {
        let row = self.writable(key)?;
        if row.source != Source::Custom {
            return Err(StoreError::Refused(format!(
                "{key}: who holds it is Kubernetes' matter"
            )));
        }
        self.check_version(key, expected).await?;
        let patch = json!({ "metadata": { "finalizers": finalizers, "resourceVersion": expected.0 } });
        let answer = self.patch(row, key, patch).await;
        self.stored(row, key, answer.map_err(|error| error.about(key))?).await
    }

    /// A version that the API server would take for "any", or not understand, is nobody's.
    async fn check_version(&self, key: &Key, expected: &Revision) -> Result<(), StoreError> {
        if expected.0.parse::<u64>().is_ok_and(|version| version > 0) {
            return Ok(());
        }
        Err(match self.get(key).await? {
            Some(_) => StoreError::Conflict(key.clone()),
            None => StoreError::NotFound(key.clone()),
        })
    }

    pub async fn update(&self, resource: &Resource, expected: &Revision) -> Result<Stored, StoreError> {
        let key = resource.key();
        let row = self.writable(&key)?;
        self.check_version(&key, expected).await?;
        match resource {
            Resource::WorkloadEndpoint(endpoint) => self.put_endpoint(row, endpoint, Some(expected)).await,
            Resource::Node(node) => self.put_node(row, node, expected).await,
            Resource::Wrong(wrong) if !wrong.is_whole() || row.source != Source::Custom => {
                Err(check_new(resource).err().unwrap_or(StoreError::Conflict(key)))
            }
            _ => {
                let (_, groups) = self.link.ready().await?;
                let object = custom::write(resource, groups.calico, Some(&expected.0));
                let action = Action::Update(object.clone());
                let put = async {
                    let answer = self
                        .link
                        .ask(row, key.namespace.as_deref(), &key.name, "", action)
                        .await?;
                    self.put_status(row, &key, object, answer).await
                };
                self.stored(row, &key, put.await.map_err(|error| error.about(&key))?)
                    .await
            }
        }
    }

    /// Writes an endpoint's addresses into its pod: at the expected version, or else at any, as long as the pod is on the
    /// endpoint's node. A pod of the same name that was made again elsewhere has addresses of its own.
    async fn put_endpoint(
        &self,
        row: Row,
        endpoint: &WorkloadEndpoint,
        expected: Option<&Revision>,
    ) -> Result<Stored, StoreError> {
        let key = endpoint.key();
        let Some((namespace, name)) = convert::place(row, &key).filter(|_| pod::is_pods(endpoint)) else {
            return Err(StoreError::Refused(format!(
                "{key}: with Kubernetes as the datastore only pods have WorkloadEndpoints (orchestrator k8s, endpoint eth0)"
            )));
        };
        // What a watch has seen of a pod that waits for its addresses is mostly what it still is: nothing is read then.
        let seen = || self.seen.version(namespace.as_deref()?, &name, &endpoint.spec.node);
        let mut known = expected.map(|revision| revision.0.clone()).or_else(seen);
        for _ in 0..ATTEMPTS {
            let version = match known.take() {
                Some(version) => version,
                None => {
                    let object = self.get_object(row, &key).await.map_err(|error| error.about(&key))?;
                    if convert::key(row, &object).as_ref() != Some(&key) {
                        return Err(StoreError::NotFound(key));
                    }
                    convert::version(&object).unwrap_or_default().to_owned()
                }
            };
            let patch = pod::patch(endpoint, &version);
            match self.patch_status(row, namespace.as_deref(), &name, patch).await {
                Ok(object) => return self.stored(row, &key, object).await,
                Err(ApiError::Conflict(_)) if expected.is_none() => {}
                Err(error) => return Err(error.about(&key)),
            }
        }
        Err(StoreError::Conflict(key))
    }

    async fn put_node(&self, row: Row, node: &Node, expected: &Revision) -> Result<Stored, StoreError> {
        let key = node.key();
        let held = self.get_object(row, &key).await.map_err(|error| error.about(&key))?;
        if convert::version(&held) != Some(expected.0.as_str()) {
            return Err(StoreError::Conflict(key));
        }
        let patch = node::patch(node, &held, &expected.0);
        let object = self.patch_status(row, None, &key.name, patch).await;
        let object = object.map_err(|error| error.about(&key))?;
        self.stored(row, &key, object).await
    }

    /// Pods and nodes are written through their status, so that a role needs no more.
    async fn patch_status(
        &self,
        row: Row,
        namespace: Option<&str>,
        name: &str,
        patch: Value,
    ) -> Result<Value, ApiError> {
        let (api, groups) = self.link.ready().await?;
        let resource = format!("{}/status", row.resource(&groups));
        let path = row.path(&groups, namespace, name).unwrap_or_default();
        api.ask(&resource, &format!("{path}/status"), Action::Patch(patch))
            .await
    }

    pub async fn delete(&self, key: &Key, expected: Option<&Revision>) -> Result<Stored, StoreError> {
        let row = self.writable(key)?;
        if key.kind == Kind::Node {
            return Err(StoreError::Refused(format!(
                "{key}: a node is deleted in Kubernetes: kubectl delete node"
            )));
        }
        for _ in 0..ATTEMPTS {
            let object = self.get_object(row, key).await.map_err(|error| error.about(key))?;
            let version = convert::version(&object).unwrap_or_default().to_owned();
            let uid = object["metadata"]["uid"].clone();
            let (_, groups) = self.link.ready().await?;
            let stored = convert::stored(row, &groups, object).filter(|stored| stored.resource.key() == *key);
            let Some(stored) = stored else {
                return Err(StoreError::NotFound(key.clone()));
            };
            if expected.is_some_and(|expected| *expected != stored.revision) {
                return Err(StoreError::Conflict(key.clone()));
            }
            let deleted = match row.source {
                Source::Pods => {
                    let (namespace, name) = convert::place(row, key).unwrap_or_default();
                    let patch = pod::emptied(&version);
                    self.patch_status(row, namespace.as_deref(), &name, patch).await
                }
                _ => self.delete_object(row, key, &uid, &version).await,
            };
            match deleted {
                Ok(_) => return Ok(stored),
                Err(ApiError::Conflict(_)) if expected.is_none() => {}
                Err(error) => return Err(error.about(key)),
            }
        }
        Err(StoreError::Conflict(key.clone()))
    }

    /// Deletes exactly this version of exactly this object.
    async fn delete_object(&self, row: Row, key: &Key, uid: &Value, version: &str) -> Result<Value, ApiError> {
        let options = json!({
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": { "uid": uid, "resourceVersion": version },
        });
        let action = Action::Delete(options);
        self.link
            .ask(row, key.namespace.as_deref(), &key.name, "", action)
            .await
    }

    /// Deletes what somebody has marked as deleted but not deleted yet, because they failed in between. Whether there was such.
    async fn finish_marked(&self, row: Row, key: &Key) -> Result<bool, StoreError> {
        let object = match self.get_object(row, key).await {
            Ok(object) => object,
            Err(ApiError::NotFound(_)) => return Ok(true),
            Err(error) => return Err(error.about(key)),
        };
        if !custom::is_marked(&object) {
            return Ok(false);
        }
        let version = convert::version(&object).unwrap_or_default();
        match self.delete_object(row, key, &object["metadata"]["uid"], version).await {
            Ok(_) | Err(ApiError::NotFound(_)) => Ok(true),
            // Somebody else is at it: then what they make of it counts.
            Err(ApiError::Conflict(_)) => Ok(false),
            Err(error) => Err(error.about(key)),
        }
    }

    /// The row of what may be written.
    fn writable(&self, key: &Key) -> Result<Row, StoreError> {
        check_key(key)?;
        let made_of = |what: &str| {
            Err(StoreError::Refused(format!(
                "{key} is made of {what} and can only be read here: change that with kubectl"
            )))
        };
        match Row::of_key(key) {
            None => Err(StoreError::Refused(format!(
                "{key} is always there and cannot be changed"
            ))),
            Some(row) => match row.source {
                Source::Custom | Source::Pods | Source::Nodes => Ok(*row),
                Source::Namespaces if key.name.starts_with("kns.") => made_of("a Namespace"),
                Source::Namespaces => Err(StoreError::Refused(format!(
                    "{key}: with Kubernetes as the datastore, Profiles are those of Namespaces (kns.) and \
                     ServiceAccounts (ksa.) and can only be read"
                ))),
                Source::ServiceAccounts => made_of("a ServiceAccount"),
                Source::NetworkPolicies => made_of("a Kubernetes NetworkPolicy"),
                Source::ClusterNetworkPolicies => made_of("a ClusterNetworkPolicy"),
                Source::EndpointSlices => made_of("an EndpointSlice"),
            },
        }
    }

    /// What the server answered to a write.
    async fn stored(&self, row: Row, key: &Key, object: Value) -> Result<Stored, StoreError> {
        let (_, groups) = self.link.ready().await?;
        let stored = convert::stored(row, &groups, object);
        stored.ok_or_else(|| {
            StoreError::Refused(format!("{key}: the API server keeps it in a form that is none of ours"))
        })
    }
}

fn is_ipam(kind: Kind) -> bool {
    matches!(kind, Kind::IPAMBlock | Kind::BlockAffinity | Kind::IPAMHandle)
}
