//! `/metrics`, `/liveness`, `/readiness` and `/status` on the port that the configuration names, now.
//!
//! Every answer asks the loop: one that hangs is not live, whatever it last said.

use std::convert::Infallible;
use std::future::IntoFuture;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};

use crate::metrics;
use crate::report::Report;
use crate::run::Question;
use crate::settings::Settings;

/// How long the loop may take to answer before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait before a port that cannot be had is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Serves on the port of the settings, and on another one when they change. A port that cannot be had is tried again: the
/// controllers work without it.
pub async fn serve(
    host: IpAddr,
    questions: mpsc::UnboundedSender<Question>,
    mut settings: watch::Receiver<Settings>,
) -> Infallible {
    loop {
        let (port, health) = {
            let settings = settings.borrow_and_update();
            (settings.metrics_port, settings.health)
        };
        let serving = async {
            let Some(port) = port else {
                return std::future::pending().await;
            };
            listen(SocketAddr::new(host, port), router(questions.clone(), health)).await
        };
        let changed = async {
            while settings.changed().await.is_ok() {
                let now = settings.borrow_and_update();
                if (now.metrics_port, now.health) != (port, health) {
                    return;
                }
            }
            // The loop is gone, and with it soon the process.
            std::future::pending().await
        };
        tokio::select! {
            never = serving => match never {},
            () = changed => {}
        }
    }
}

/// Serves liveness, readiness and status at one address, whatever the configuration says: for probes that cannot follow it.
pub async fn serve_health(address: SocketAddr, questions: mpsc::UnboundedSender<Question>) -> Infallible {
    listen(address, router(questions, true)).await
}

/// Answers at an address, or tries to.
async fn listen(address: SocketAddr, router: Router) -> Infallible {
    loop {
        let problem = match TcpListener::bind(address).await {
            Ok(listener) => {
                tracing::info!(%address, "answering");
                let served = axum::serve(listener, router.clone()).into_future().await;
                served
                    .err()
                    .map_or_else(|| "it ended".to_owned(), |error| error.to_string())
            }
            Err(error) => error.to_string(),
        };
        tracing::warn!(%address, problem, "not answering; trying again");
        tokio::time::sleep(RETRY).await;
    }
}

fn router(questions: mpsc::UnboundedSender<Question>, health: bool) -> Router {
    let router = Router::new()
        .route("/metrics", get(prometheus))
        .route("/status", get(status));
    let router = match health {
        true => router
            .route("/liveness", get(liveness))
            .route("/readiness", get(readiness)),
        false => router,
    };
    router.with_state(questions)
}

type Questions = State<mpsc::UnboundedSender<Question>>;

async fn ask(questions: &mpsc::UnboundedSender<Question>) -> Result<Report, Response> {
    let (reply, answer) = oneshot::channel();
    let _ = questions.send(reply);
    let why = match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Ok(report)) => return Ok(report),
        Ok(Err(_)) => "the loop has ended\n".to_owned(),
        Err(_) => format!("the loop has not answered for {PATIENCE:?}\n"),
    };
    Err((StatusCode::SERVICE_UNAVAILABLE, why).into_response())
}

async fn liveness(State(questions): Questions) -> Response {
    match ask(&questions).await {
        Ok(Report { hung: Some(why), .. }) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
        Ok(_) => (StatusCode::OK, "live\n").into_response(),
        Err(response) => response,
    }
}

async fn readiness(State(questions): Questions) -> Response {
    let report = match ask(&questions).await {
        Ok(report) => report,
        Err(response) => return response,
    };
    let code = match report.ready {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    (code, health::lines(&report.conditions, 13)).into_response()
}

async fn status(State(questions): Questions) -> Response {
    match ask(&questions).await {
        Ok(report) => Json(report).into_response(),
        Err(response) => response,
    }
}

async fn prometheus(State(questions): Questions) -> Response {
    match ask(&questions).await {
        Ok(report) => ([(CONTENT_TYPE, "text/plain; version=0.0.4")], metrics::text(&report)).into_response(),
        Err(response) => response,
    }
}
