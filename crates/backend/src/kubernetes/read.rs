//! Get, list and watch over the rows of a scope.

use std::sync::Arc;

use api::Key;
use datastore::{Listing, Revision, Scope, StoreError, Stored, Update, WatchEvent};
use futures::stream::{self, BoxStream, StreamExt};
use futures::{TryStreamExt, stream::select_all};
use serde_json::Value;

use super::client::Action;
use super::error::ApiError;
use super::position::{ABSENT, Position};
use super::table::{DEFAULT_ALLOW, ROWS, Row};
use super::workload::Sight;
use super::{Shared, convert, derived};

/// How many objects come in one answer: more of them are asked for page by page.
const PAGE: usize = 500;
/// How many rows are listed at once.
pub const AT_ONCE: usize = 6;

/// What there is in a scope.
pub struct Listed {
    items: Vec<Stored>,
    position: Position,
}

impl Listed {
    pub fn into_listing(self) -> Listing {
        Listing {
            revision: self.position.to_revision(),
            items: self.items,
        }
    }
}

impl Shared {
    pub async fn get(&self, key: &Key) -> Result<Option<Stored>, StoreError> {
        let Some(row) = Row::of_key(key) else {
            return Ok(Some(made_up()));
        };
        match self.get_object(*row, key).await {
            Ok(object) => {
                let (_, groups) = self.link.ready().await?;
                let stored = convert::stored(*row, &groups, object);
                Ok(stored.filter(|stored| stored.resource.key() == *key))
            }
            Err(ApiError::NotFound(_)) => Ok(None),
            Err(ApiError::ResourceMissing(_)) if row.is_optional() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The Kubernetes object behind a key.
    pub(super) async fn get_object(&self, row: Row, key: &Key) -> Result<Value, ApiError> {
        let nothing = || ApiError::NotFound(key.to_string());
        let (namespace, name) = convert::place(row, key).ok_or_else(nothing)?;
        if name.is_empty() || row.kind.is_namespaced() && namespace.is_none() {
            return Err(nothing());
        }
        self.link.ask(row, namespace.as_deref(), &name, "", Action::Get).await
    }

    pub async fn list(&self, scope: &Scope) -> Result<Listed, StoreError> {
        let rows = Row::of_scope(scope);
        let lists = rows.clone().into_iter().map(|row| self.list_row(row, scope));
        let lists: Vec<(u64, Vec<Stored>)> = stream::iter(lists).buffered(AT_ONCE).try_collect().await?;
        let mut position = Position::default();
        let mut items = Vec::new();
        for (row, (version, stored)) in rows.into_iter().zip(lists) {
            position.set(row, version);
            items.extend(stored);
        }
        items.push(made_up());
        let mut items: Vec<(Key, Stored)> = items
            .into_iter()
            .map(|stored| (stored.resource.key(), stored))
            .collect();
        items.retain(|(key, _)| scope.contains(key));
        items.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(Listed {
            items: items.into_iter().map(|(_, stored)| stored).collect(),
            position,
        })
    }

    /// A row's objects in a scope, and the version of the list.
    async fn list_row(&self, at: usize, scope: &Scope) -> Result<(u64, Vec<Stored>), StoreError> {
        let row = ROWS[at];
        let (namespace, only) = match scope {
            Scope::All | Scope::Kind(_) => (None, String::new()),
            Scope::Namespace(_, namespace) => (Some(namespace.clone()), String::new()),
            Scope::Key(key) => match convert::place(row, key) {
                // A key that no object can have: the version alone is wanted.
                None => (None, "&fieldSelector=metadata.name%3D-".to_owned()),
                Some((namespace, name)) => (namespace, format!("&fieldSelector=metadata.name%3D{}", encoded(&name))),
            },
        };
        let closed = |_| ApiError::Half("this store has ended".into());
        let _turn = self.lists.acquire().await.map_err(closed)?;
        let mut items = Vec::new();
        let mut version = None;
        let mut next = String::new();
        let mut sight = Sight::default();
        loop {
            let query = format!("?limit={PAGE}{only}{next}");
            let page = self.link.list(row, namespace.as_deref(), &query).await;
            let mut page = match page {
                Err(ApiError::ResourceMissing(_)) if row.is_optional() => {
                    self.link.confirm_absence(row).await?;
                    return Ok((ABSENT, Vec::new()));
                }
                page => page?,
            };
            let (_, groups) = self.link.ready().await?;
            let half = || ApiError::Half(format!("a list of {} without a resourceVersion", row.resource(&groups)));
            version = version.or(convert::number(&page));
            if version.is_none() {
                return Err(half().into());
            }
            if let Value::Array(objects) = page["items"].take() {
                objects.iter().for_each(|object| sight.add(row, object));
                items.extend(
                    objects
                        .into_iter()
                        .filter_map(|object| convert::stored(row, &groups, object)),
                );
            }
            match page["metadata"]["continue"].as_str() {
                Some(token) if !token.is_empty() => next = format!("&continue={}", encoded(token)),
                _ => break,
            }
        }
        let version = version.unwrap_or_default();
        if matches!(scope, Scope::All | Scope::Kind(_)) {
            self.seen.listed(row, version, sight, self.feeds[at].is_running());
        }
        Ok((version, items))
    }

    pub fn watch(
        shared: Arc<Shared>,
        scope: Scope,
        from: Option<Revision>,
    ) -> BoxStream<'static, Result<WatchEvent, StoreError>> {
        let opened = async move {
            let rows = Row::of_scope(&scope);
            let (there, position) = match from {
                None => {
                    let listed = shared.list(&scope).await?;
                    let position = listed.position.clone();
                    (listed.into_listing().into_events().collect(), position)
                }
                Some(from) => (Vec::new(), Position::read(&from, &rows).ok_or(StoreError::Compacted)?),
            };
            let there = stream::iter(there.into_iter().map(Ok));
            Ok::<_, StoreError>(there.chain(changes(&shared, scope, position, rows)))
        };
        // It ends with its first error.
        let events = stream::once(opened).try_flatten();
        events
            .scan(false, |ended, event| {
                let now = !*ended;
                *ended = event.is_err();
                std::future::ready(now.then_some(event))
            })
            .boxed()
    }
}

/// What changes in some rows after a position.
fn changes(
    shared: &Arc<Shared>,
    scope: Scope,
    position: Position,
    rows: Vec<usize>,
) -> impl futures::Stream<Item = Result<WatchEvent, StoreError>> + use<> {
    let follows: Vec<_> = rows
        .into_iter()
        .map(|row| {
            let from = position.get(row).unwrap_or(ABSENT);
            let follow = shared.feeds[row].follow(&shared.link, row, scope.clone(), from);
            follow.map_ok(move |change| (row, change)).boxed()
        })
        .collect();
    select_all(follows).scan(position, |position, next| {
        let event = next.map(|(row, change)| {
            position.set(row, change.revision);
            let update = Update {
                key: change.key,
                value: change.value,
            };
            WatchEvent::Update(update, position.to_revision())
        });
        std::future::ready(Some(event))
    })
}

/// The Profile that is no object.
fn made_up() -> Stored {
    let mut resource = derived::default_allow();
    debug_assert_eq!(resource.metadata().name, DEFAULT_ALLOW);
    resource.metadata_mut().resource_version = Some("0".into());
    Stored {
        resource,
        revision: Revision("0".into()),
    }
}

/// A value in a query.
fn encoded(value: &str) -> String {
    let mut text = String::new();
    for byte in value.bytes() {
        match byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            true => text.push(char::from(byte)),
            false => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}
