//! The connection, made when it is first needed, and what was found out about the server.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::Mutex;

use super::client::{Action, Api};
use super::error::ApiError;
use super::group::{CalicoGroup, Groups};
use super::table::{Row, Source};

/// The way to the API server, shared by everything that asks it.
pub struct Link {
    /// What `CALICO_API_GROUP` wants.
    wanted: Option<CalicoGroup>,
    /// Where access is described, if not where everybody looks.
    kubeconfig: Option<PathBuf>,
    known: Mutex<Known>,
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
    pub fn new(wanted: Option<CalicoGroup>, kubeconfig: Option<PathBuf>) -> Self {
        Self {
            wanted,
            kubeconfig,
            known: Mutex::default(),
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
            None => known
                .api
                .insert(Api::connect(self.kubeconfig.as_deref()).await?)
                .clone(),
        };
        let groups = match known.groups {
            Some(groups) => groups,
            None => {
                let wanted = self.wanted.or(known.calico);
                *known.groups.insert(Groups::discover(&api, wanted).await?)
            }
        };
        Ok((api, groups))
    }

    /// Looks again at what the server has before the next request: something was not there.
    pub async fn look_again(&self) {
        self.known.lock().await.groups = None;
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
        match &answer {
            Err(ApiError::ResourceMissing(_)) => self.look_again().await,
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
