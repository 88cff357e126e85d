//! The connection, made when it is first needed, and what was found out about the server.

use std::sync::PoisonError;
use std::time::Duration;

use futures::future::BoxFuture;
use serde_json::Value;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use super::client::{Action, Api};
use super::error::ApiError;
use super::group::{CalicoGroup, Groups};
use super::lookout::{Lookout, names};
use super::outage::Outage;
use super::table::{Row, Source};

/// Reads how the server is accessed.
pub type Connect = Box<dyn Fn() -> BoxFuture<'static, Result<Api, ApiError>> + Send + Sync>;

/// The way to the API server, shared by everything that asks it.
pub struct Link {
    /// What `CALICO_API_GROUP` wants.
    wanted: Option<CalicoGroup>,
    connect: Connect,
    known: Mutex<Known>,
    lookout: Mutex<Lookout>,
    outage: std::sync::Mutex<Outage>,
    history: watch::Sender<History>,
}

/// Which of a server's histories its versions belong to: restoring a backup begins another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// How often it went back while we looked.
    pub count: u64,
    /// Where it was when that was noticed last.
    pub at: u64,
}

#[derive(Default)]
struct Known {
    api: Option<Api>,
    groups: Option<Groups>,
    /// Where our resources were found: that is where they stay, whatever else gets installed.
    calico: Option<CalicoGroup>,
}

impl Link {
    /// Without connecting yet.
    pub fn new(wanted: Option<CalicoGroup>, connect: Connect) -> Self {
        Self {
            wanted,
            connect,
            known: Mutex::default(),
            lookout: Mutex::default(),
            outage: std::sync::Mutex::default(),
            history: watch::channel(History::default()).0,
        }
    }

    /// The API server and what it has.
    ///
    /// # Errors
    /// See [`ApiError`]; the next call tries again.
    pub async fn ready(&self) -> Result<(Api, Groups), ApiError> {
        let mut known = self.known.lock().await;
        let api = match &known.api {
            Some(api) => api.clone(),
            None => known.api.insert((self.connect)().await?).clone(),
        };
        let groups = match known.groups {
            Some(groups) => groups,
            None => {
                let wanted = self.wanted.or(known.calico);
                match Groups::discover(&api, wanted).await {
                    Ok(groups) => *known.groups.insert(groups),
                    Err(error) => {
                        if error.is_about_access() {
                            known.api = None;
                        }
                        return Err(error);
                    }
                }
            }
        };
        Ok((api, groups))
    }

    /// What readers know of a server that cannot be used.
    pub fn outage<T>(&self, with: impl FnOnce(&mut Outage, std::time::Instant) -> T) -> T {
        let mut outage = self.outage.lock().unwrap_or_else(PoisonError::into_inner);
        with(&mut outage, Instant::now().into_std())
    }

    /// The history that versions belong to, as it is and as it changes.
    pub fn history(&self) -> watch::Receiver<History> {
        self.history.subscribe()
    }

    /// Somebody who has read in history `count` has found that the server went back to version `at`. `false`: others were faster.
    pub fn went_back(&self, count: u64, at: u64) -> bool {
        self.history.send_if_modified(|history| {
            let is_news = history.count == count;
            if is_news {
                *history = History { count: count + 1, at };
            }
            is_news
        })
    }

    /// Reads a row's list, unless the server is known to be away.
    ///
    /// # Errors
    /// As [`Link::ask`].
    pub async fn list(&self, row: Row, namespace: Option<&str>, query: &str) -> Result<Value, ApiError> {
        self.outage(Outage::may_ask)?;
        let answer = self.ask(row, namespace, "", query, Action::List).await;
        self.outage(|outage, now| outage.heard(now, answer))
    }

    /// Looks again at what the server has before the next request: something was not there.
    pub async fn look_again(&self) {
        self.known.lock().await.groups = None;
    }

    /// Waits until it is time to look again for what the server lacks, and answers whether it has this row now.
    pub async fn has_come(&self, row: Row) -> bool {
        let next = self.lookout.lock().await.next(Instant::now());
        tokio::time::sleep_until(next).await;
        // Whoever comes first asks for all.
        let mut lookout = self.lookout.lock().await;
        lookout.begin(Instant::now());
        let Ok((api, groups)) = self.ready().await else {
            return false;
        };
        for (path, plural) in row.documents(&groups) {
            let named = match lookout.names(&path, plural) {
                Some(named) => named,
                None => {
                    let document = self.document(&api, &path).await.unwrap_or_default();
                    lookout.take(&path, &document);
                    lookout.names(&path, plural) == Some(true)
                }
            };
            if named {
                self.look_again().await;
                return true;
            }
        }
        false
    }

    /// Makes sure that the server has no such row. A server that has just been started says 404 of what it serves a moment later; so
    /// it counts only if discovery knows the group and does not name it, or if the group is not ours.
    ///
    /// # Errors
    /// As [`Link::ask`]; [`ApiError::Half`] if discovery names it.
    pub async fn confirm_absence(&self, row: Row) -> Result<(), ApiError> {
        let (api, groups) = self.ready().await?;
        let resource = row.resource(&groups);
        for (path, plural) in row.documents(&groups) {
            let document = self.document(&api, &path).await?;
            if names(&document).any(|name| name == plural) {
                let both = format!("{resource} are not there, says the server, and that it has them");
                return Err(ApiError::Half(both));
            }
            if document.is_null() && row.source == Source::Custom {
                return Err(ApiError::ResourceMissing(resource));
            }
        }
        Ok(())
    }

    /// What discovery says of a version of an API group; null if it is not served.
    async fn document(&self, api: &Api, path: &str) -> Result<Value, ApiError> {
        self.outage(Outage::may_ask)?;
        let answer = match api.ask("API resources", path, Action::Get).await {
            Err(ApiError::ResourceMissing(_)) => Ok(Value::Null),
            answer => answer,
        };
        let answer = self.outage(|outage, now| outage.heard(now, answer));
        if answer.as_ref().is_err_and(ApiError::is_about_access) {
            self.read_access_again(api).await;
        }
        answer
    }

    /// Reads how the server is accessed again before the next request, unless somebody has done so since `api`.
    pub async fn read_access_again(&self, api: &Api) {
        let mut known = self.known.lock().await;
        known.api.take_if(|current| current.is(api));
    }

    /// Asks about objects of a row. `query` begins with `?` or is empty.
    ///
    /// # Errors
    /// See [`ApiError`]; [`ApiError::ResourceMissing`] too if the row is not served in a version that is known here.
    pub async fn ask(
        &self,
        row: Row,
        namespace: Option<&str>,
        name: &str,
        query: &str,
        action: Action,
    ) -> Result<Value, ApiError> {
        let (api, groups) = self.ready().await?;
        let resource = row.resource(&groups);
        let answer = match row.path(&groups, namespace, name) {
            Some(path) => api.ask(&resource, &format!("{path}{query}"), action).await,
            None => Err(ApiError::ResourceMissing(resource)),
        };
        let answer = answer.map_err(|error| row.missing(error));
        match &answer {
            Err(ApiError::ResourceMissing(_) | ApiError::TooOld(_)) => self.look_again().await,
            Err(error) if error.is_about_access() => self.read_access_again(&api).await,
            Ok(_) if row.source == Source::Custom => self.known.lock().await.calico = Some(groups.calico),
            _ => {}
        }
        answer
    }
}

/// 100 ms, doubling up to 10 s, spread so that many readers do not come at once.
pub fn wait(attempt: u32) -> Duration {
    let base = Duration::from_millis(100) * 2u32.saturating_pow(attempt.saturating_sub(1).min(7));
    base.min(Duration::from_secs(10)).mul_f64(rand::random_range(0.5..1.5))
}
