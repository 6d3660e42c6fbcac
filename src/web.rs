//! The HTTP listener: metrics, health, readiness, reload and the JSON API.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde_json::json;
use subtle::ConstantTimeEq;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::history::{History, Page};
use crate::metrics;
use crate::reload::Reloader;
use crate::report::{CHANGES_SHOWN, Event, Report};
use crate::supervisor::{Asked, Refusal, Supervisor};
use crate::ticker::Ticker;

/// What the endpoints answer from.
pub struct App {
    pub supervisor: Arc<Supervisor>,
    pub reloader: Arc<Reloader>,
    pub history: History,
    pub ticker: Arc<Ticker>,
    pub clock: Clock,
}

const LARGEST_BODY: usize = 64 * 1024;
const MOST_CONNECTIONS: usize = 256;
/// How long a client may take to send its headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one connection may live: a slow reader must not hold a place for ever.
const CONNECTION_TIMEOUT: Duration = Duration::from_mins(2);
const LONGEST_GOODBYE: Duration = Duration::from_secs(3);

const INDEX: &str = "microglia, housekeeping for Synapse\n\n\
    GET  /metrics                     Prometheus metrics\n\
    GET  /healthz                     200 while the daemon lives\n\
    GET  /readyz                      200 while it can do its work\n\
    GET  /api/v1/jobs                 the jobs\n\
    GET  /api/v1/runs?job=&limit=     recorded runs\n\
    GET  /api/v1/runs/{id}            one run; with the admin token its changes\n\
    POST /-/reload                    with the admin token, like all that act:\n\
    POST /api/v1/jobs/{job}/run       {\"mode\": \"dry-run\", \"max_changes\": 5000, \"ignore_window\": true} override\n\
    POST /api/v1/jobs/{job}/cancel\n\
    POST /api/v1/pause\n\
    POST /api/v1/resume\n";

pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(|| async { INDEX }))
        .route("/metrics", get(metrics_text))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/-/reload", post(reload))
        .route("/api/v1/jobs", get(jobs))
        .route("/api/v1/runs", get(runs))
        .route("/api/v1/runs/{id}", get(run_shown))
        .route("/api/v1/jobs/{job}/run", post(run))
        .route("/api/v1/jobs/{job}/cancel", post(cancel))
        .route("/api/v1/pause", post(|state, headers| switch(state, headers, true)))
        .route("/api/v1/resume", post(|state, headers| switch(state, headers, false)))
        .with_state(app)
}

/// Serves until `stop`, then lets answers under way end.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_headers(64)
        .max_buf_size(16 * 1024);
    let (graceful, places) = (GracefulShutdown::new(), Arc::new(Semaphore::new(MOST_CONNECTIONS)));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = async {
                let place = Arc::clone(&places).acquire_owned().await;
                (place, listener.accept().await)
            } => accepted,
        };
        let (Ok(place), Ok((stream, _))) = accepted else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let connection = graceful.watch(
            http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router.clone())),
        );
        tokio::spawn(async move {
            // A connection that fails is the client's loss alone.
            let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
            drop(place);
        });
    }
    drop(listener);
    let _ = tokio::time::timeout(LONGEST_GOODBYE, graceful.shutdown()).await;
}

type Shared = State<Arc<App>>;

/// An answer that is no success, as JSON.
struct Refused(StatusCode, serde_json::Value);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, Json(self.1)).into_response()
    }
}

impl Refused {
    fn because(status: StatusCode, error: impl std::fmt::Display) -> Self {
        Self(status, json!({ "error": error.to_string() }))
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal {
            Refusal::Unknown(_) => StatusCode::NOT_FOUND,
            Refusal::Running { .. } | Refusal::NotRunning(_) | Refusal::Edited(_) => {
                StatusCode::CONFLICT
            }
            Refusal::Draining => StatusCode::SERVICE_UNAVAILABLE,
            Refusal::Usage(_) => StatusCode::BAD_REQUEST,
        };
        Self::because(status, refusal)
    }
}

impl App {
    fn is_admin(&self, headers: &HeaderMap) -> bool {
        let sent = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("Bearer"))
            .map_or("", |(_, token)| token);
        self.reloader
            .admin_token()
            .is_some_and(|token| sent.as_bytes().ct_eq(token.expose_secret().as_bytes()).into())
    }

    /// Lets through who may act.
    fn admit(&self, headers: &HeaderMap) -> Result<(), Refused> {
        match () {
            () if self.reloader.admin_token().is_none() => Err(Refused::because(
                StatusCode::FORBIDDEN,
                "this endpoint acts, and there is no admin token: set daemon.admin_token_file",
            )),
            () if self.is_admin(headers) => Ok(()),
            () => Err(Refused::because(
                StatusCode::UNAUTHORIZED,
                "the admin token is missing or wrong: send what daemon.admin_token_file holds as `Authorization: Bearer …`",
            )),
        }
    }
}

async fn metrics_text(State(app): Shared) -> Result<impl IntoResponse, Refused> {
    let ticked = match app.ticker.alive() {
        Ok(ago) | Err(ago) => app.clock.now() - ago,
    };
    let text = app
        .supervisor
        .metrics_text(ticked)
        .map_err(|error| Refused::because(StatusCode::INTERNAL_SERVER_ERROR, error))?;
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text))
}

async fn healthz(State(app): Shared) -> (StatusCode, String) {
    match app.ticker.alive() {
        Ok(_) => (StatusCode::OK, "ok\n".to_owned()),
        Err(ago) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the ticker has not ticked for {} s\n", ago.as_secs()),
        ),
    }
}

async fn readyz(State(app): Shared) -> (StatusCode, String) {
    if let Err(ago) = app.ticker.alive() {
        return (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the ticker has not ticked for {} s\n", ago.as_secs()),
        );
    }
    match app.history.probe().await {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(error) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!(
                "the history cannot be written, so that runs in apply mode are refused: {error}\n"
            ),
        ),
    }
}

async fn reload(State(app): Shared, headers: HeaderMap) -> Result<Response, Refused> {
    app.admit(&headers)?;
    match app.reloader.reload("HTTP").await {
        Ok(adopted) => Ok(Json(adopted).into_response()),
        Err(mistakes) => Err(Refused(
            StatusCode::BAD_REQUEST,
            json!({ "error": "the config has mistakes, the one before stays in force", "mistakes": mistakes }),
        )),
    }
}

async fn jobs(State(app): Shared, headers: HeaderMap) -> Result<Response, Refused> {
    let mut listed = app.supervisor.listed().await.map_err(unreadable)?;
    for report in listed.iter_mut().filter_map(|job| job.last_run.as_mut()) {
        app.unnamed(&headers, report);
    }
    Ok(Json(listed).into_response())
}

#[derive(Deserialize)]
struct RunsQuery {
    #[serde(default)]
    job: String,
    limit: Option<u32>,
}

async fn runs(
    State(app): Shared,
    headers: HeaderMap,
    Query(query): Query<RunsQuery>,
) -> Result<Response, Refused> {
    let job = Some(query.job.as_str()).filter(|job| !job.is_empty());
    let mut runs =
        app.history.runs(job, query.limit.unwrap_or(20).min(1000)).await.map_err(unreadable)?;
    for report in &mut runs {
        app.unnamed(&headers, report);
    }
    Ok(Json(runs).into_response())
}

#[derive(Deserialize)]
struct PageQuery {
    offset: Option<u32>,
    limit: Option<u32>,
}

async fn run_shown(
    State(app): Shared,
    headers: HeaderMap,
    Path(id): Path<i64>,
    Query(query): Query<PageQuery>,
) -> Result<Response, Refused> {
    let page = Page {
        offset: query.offset.unwrap_or(0),
        limit: query.limit.unwrap_or(CHANGES_SHOWN).min(10_000),
    };
    let mut report =
        app.history.run(id, page).await.map_err(unreadable)?.ok_or_else(|| {
            Refused::because(StatusCode::NOT_FOUND, format!("there is no run {id}"))
        })?;
    app.unnamed(&headers, &mut report);
    // What undoes a change is for the command line only.
    for change in report.changes.iter_mut().flatten() {
        change.before = None;
    }
    Ok(Json(report).into_response())
}

impl App {
    /// Takes out of a report what names people, unless the admin asks.
    fn unnamed(&self, headers: &HeaderMap, report: &mut Report) {
        if !self.is_admin(headers) {
            report.changes = None;
            report.sample.clear();
            // An error may quote a user id in a path, and a note a pattern of the config.
            report.message = None;
        }
    }
}

async fn run(
    State(app): Shared,
    Path(job): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    app.admit(&headers)?;
    let body = to_bytes(body, LARGEST_BODY)
        .await
        .map_err(|error| Refused::because(StatusCode::PAYLOAD_TOO_LARGE, error))?;
    let asked: Asked = if body.is_empty() {
        Asked::default()
    } else {
        serde_json::from_slice(&body)
            .map_err(|error| Refused::because(StatusCode::BAD_REQUEST, error))?
    };
    let mut events = app.supervisor.run(&job, &asked)?;
    while let Some(event) = events.recv().await {
        if let Event::Started(report) | Event::Ended(report) = event {
            return Ok((StatusCode::ACCEPTED, Json(json!({ "id": report.id }))).into_response());
        }
    }
    Err(Refused::because(
        StatusCode::CONFLICT,
        format!("{job} is running already, in another process"),
    ))
}

async fn cancel(
    State(app): Shared,
    Path(job): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    app.admit(&headers)?;
    app.supervisor.cancel(&job)?;
    Ok(Json(json!({})).into_response())
}

async fn switch(State(app): Shared, headers: HeaderMap, paused: bool) -> Result<Response, Refused> {
    app.admit(&headers)?;
    app.supervisor.pause(paused).await.map_err(unreadable)?;
    Ok(Json(json!({ "paused": paused })).into_response())
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err takes")]
fn unreadable(error: crate::history::Error) -> Refused {
    Refused::because(
        StatusCode::INTERNAL_SERVER_ERROR,
        format!("the history cannot be used: {error}"),
    )
}
