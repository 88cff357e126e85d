//! What only this machine is told, over the unix socket: who talks to whom, and which way.

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use tokio::sync::mpsc;

use super::Sources;
use crate::path::PathQuestion;
use crate::watch::{self, WatchLine, WatchQuestion};

pub(super) fn router(sources: Sources) -> Router {
    Router::new()
        .route("/flows", get(flow_records))
        .route("/path", get(path))
        .route("/watch", get(watch))
        .with_state(sources)
}

/// Which flow records.
#[derive(Deserialize)]
struct Wanted {
    /// Those that changed after this number.
    #[serde(default)]
    after: u64,
}

async fn flow_records(State(sources): State<Sources>, Query(wanted): Query<Wanted>) -> Response {
    Json(sources.flows.report(wanted.after)).into_response()
}

async fn path(State(sources): State<Sources>, Query(question): Query<PathQuestion>) -> Response {
    let here = match sources.here() {
        Ok(here) => here,
        Err(why) => return (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    };
    match tokio::task::spawn_blocking(move || here.look(&question)).await {
        Ok(view) => Json(view).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn watch(State(sources): State<Sources>, Query(question): Query<WatchQuestion>) -> Response {
    let here = match sources.here() {
        Ok(here) => here,
        Err(why) => return (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    };
    let (send, lines) = mpsc::channel(watch::WAITING);
    tokio::task::spawn_blocking(move || watch::watch(&here.node, &here.journal, &question, &send));
    let lines = futures::stream::unfold(lines, |mut lines| async move {
        let line: WatchLine = lines.recv().await?;
        let text = serde_json::to_string(&line).unwrap_or_default();
        Some((Ok::<_, std::convert::Infallible>(format!("{text}\n")), lines))
    });
    Body::from_stream(lines).into_response()
}
