//! Get, list and watch over the rows of a scope.

use std::sync::Arc;

use api::Key;
use datastore::{Listing, Revision, Scope, StoreError, Stored, Update, WatchEvent};
use futures::stream::{self, BoxStream, StreamExt};
use futures::{TryStreamExt, stream::select_all};
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;

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

/// A piece of what there is of a row in a scope.
struct Piece {
    row: usize,
    items: Vec<Stored>,
    /// The version of all of the row, with its last piece.
    version: Option<u64>,
}

/// A list of a row under way.
struct Pages {
    row: usize,
    namespace: Option<String>,
    /// Which object is asked for, as a part of the query; and where to go on.
    only: String,
    next: String,
    /// All of the row is asked for.
    is_whole: bool,
    /// That of the first page, of which the others are the rest.
    version: Option<u64>,
    sight: Sight,
    /// One of the lists that may be under way at once.
    turn: Option<OwnedSemaphorePermit>,
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

    pub async fn list(self: &Arc<Self>, scope: &Scope) -> Result<Listing, StoreError> {
        let mut position = Position::default();
        let mut items = Vec::new();
        let mut pieces = pieces(self, scope);
        while let Some(piece) = pieces.try_next().await? {
            piece.mark(&mut position);
            items.extend(piece.items.into_iter().map(|stored| (stored.resource.key(), stored)));
        }
        items.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(Listing {
            items: items.into_iter().map(|(_, stored)| stored).collect(),
            revision: position.to_revision(),
        })
    }

    pub fn watch(
        shared: Arc<Shared>,
        scope: Scope,
        from: Option<Revision>,
    ) -> BoxStream<'static, Result<WatchEvent, StoreError>> {
        let events = match from {
            None => watch_from_nothing(shared, scope),
            Some(from) => {
                let rows = Row::of_scope(&scope);
                match Position::read(&from, &rows) {
                    // Not before it is polled: only then is there a runtime.
                    Some(position) => stream::once(async move { changes(&shared, scope, position) })
                        .flatten()
                        .boxed(),
                    None => stream::iter([Err(StoreError::Compacted)]).boxed(),
                }
            }
        };
        // It ends with its first error.
        events
            .scan(false, |ended, event| {
                let now = !*ended;
                *ended = event.is_err();
                std::future::ready(now.then_some(event))
            })
            .boxed()
    }

    /// A page of a list, and whether there are more.
    async fn page(&self, pages: &mut Pages) -> Result<Piece, StoreError> {
        let row = ROWS[pages.row];
        let piece = |items, version| Piece {
            row: pages.row,
            items,
            version,
        };
        let query = format!("?limit={PAGE}{}{}", pages.only, pages.next);
        let mut page = match self.link.list(row, pages.namespace.as_deref(), &query).await {
            Err(ApiError::ResourceMissing(_)) if row.is_optional() => {
                self.link.confirm_absence(row).await?;
                return Ok(piece(Vec::new(), Some(ABSENT)));
            }
            page => page?,
        };
        let (_, groups) = self.link.ready().await?;
        let half = || ApiError::Half(format!("a list of {} without a resourceVersion", row.resource(&groups)));
        let version = pages.version.or(convert::number(&page)).ok_or_else(half)?;
        pages.version = Some(version);
        let mut items = Vec::new();
        if let Value::Array(objects) = page["items"].take() {
            objects.iter().for_each(|object| pages.sight.add(row, object));
            let read = |object| convert::stored(row, &groups, object);
            items.extend(objects.into_iter().filter_map(read));
        }
        match page["metadata"]["continue"].as_str() {
            Some(token) if !token.is_empty() => {
                pages.next = format!("&continue={}", encoded(token));
                Ok(piece(items, None))
            }
            _ => {
                if pages.is_whole {
                    let sight = std::mem::take(&mut pages.sight);
                    self.seen
                        .listed(row, version, sight, self.feeds[pages.row].is_running());
                }
                Ok(piece(items, Some(version)))
            }
        }
    }
}

impl Piece {
    fn mark(&self, position: &mut Position) {
        if let Some(version) = self.version {
            position.set(self.row, version);
        }
    }
}

impl Pages {
    fn of(row: usize, scope: &Scope) -> Self {
        let (namespace, only) = match scope {
            Scope::All | Scope::Kind(_) => (None, String::new()),
            Scope::Namespace(_, namespace) => (Some(namespace.clone()), String::new()),
            Scope::Key(key) => match convert::place(ROWS[row], key) {
                // A key that no object can have: the version alone is wanted.
                None => (None, "&fieldSelector=metadata.name%3D-".to_owned()),
                Some((namespace, name)) => (namespace, format!("&fieldSelector=metadata.name%3D{}", encoded(&name))),
            },
        };
        Self {
            row,
            namespace,
            only,
            is_whole: matches!(scope, Scope::All | Scope::Kind(_)),
            next: String::new(),
            version: None,
            sight: Sight::default(),
            turn: None,
        }
    }
}

/// What there is in a scope, as the server's answers come, and asked for no faster than it is taken.
fn pieces(shared: &Arc<Shared>, scope: &Scope) -> BoxStream<'static, Result<Piece, StoreError>> {
    let rows = Row::of_scope(scope);
    let lists = rows.into_iter().map(|row| {
        let shared = Arc::clone(shared);
        let pages = Some(Pages::of(row, scope));
        let next = move |pages: Option<Pages>| {
            let shared = Arc::clone(&shared);
            async move {
                let Some(mut pages) = pages else { return Ok(None) };
                if pages.turn.is_none() {
                    let closed = |_| ApiError::Half("this store has ended".into());
                    pages.turn = Some(Arc::clone(&shared.lists).acquire_owned().await.map_err(closed)?);
                }
                let piece = shared.page(&mut pages).await?;
                let more = piece.version.is_none().then_some(pages);
                Ok::<_, StoreError>(Some((piece, more)))
            }
        };
        stream::try_unfold(pages, next).boxed()
    });
    let made_up = Piece {
        row: 0,
        items: vec![made_up()],
        version: None,
    };
    let scope = scope.clone();
    // One row after the other: while the server is away one reader asks, and must not be given up for another that may not.
    stream::iter(lists.collect::<Vec<_>>())
        .flatten()
        .chain(stream::iter([Ok(made_up)]))
        .map_ok(move |mut piece| {
            piece.items.retain(|stored| scope.contains(&stored.resource.key()));
            piece
        })
        .boxed()
}

fn watch_from_nothing(shared: Arc<Shared>, scope: Scope) -> BoxStream<'static, Result<WatchEvent, StoreError>> {
    let pieces = pieces(&shared, &scope);
    let begun = Some((pieces, Position::default()));
    let steps = stream::unfold(begun, move |reading| {
        let (shared, scope) = (Arc::clone(&shared), scope.clone());
        async move {
            let (mut pieces, mut position) = reading?;
            Some(match pieces.next().await {
                Some(Ok(piece)) => {
                    piece.mark(&mut position);
                    let there = piece.items.into_iter().map(|stored| Ok(stored.into_event()));
                    (stream::iter(there).boxed(), Some((pieces, position)))
                }
                Some(Err(error)) => (stream::iter([Err(error)]).boxed(), None),
                None => {
                    let in_sync = stream::iter([Ok(WatchEvent::InSync(position.to_revision()))]);
                    (in_sync.chain(changes(&shared, scope, position)).boxed(), None)
                }
            })
        }
    });
    steps.flatten().boxed()
}

/// What changes in some rows after a position.
fn changes(
    shared: &Arc<Shared>,
    scope: Scope,
    position: Position,
) -> impl futures::Stream<Item = Result<WatchEvent, StoreError>> + use<> {
    let follows: Vec<_> = Row::of_scope(&scope)
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
