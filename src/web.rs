//! The HTTP listener: metrics, health, readiness, reload and the JSON API.

mod connections;
mod origin;

pub mod control;
pub mod health;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::Json;
use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::json;
use subtle::ConstantTimeEq;

pub use connections::serve;

use crate::history::{History, Page};
use crate::observe::metrics;
use crate::plan::report::{CHANGES_SHOWN, Event, Report};
use crate::scheduler::reload::Reloader;
use crate::scheduler::supervisor::{Refusal, RunOverrides, Supervisor};
use crate::values::clock::Clock;
use crate::web::health::{Health, Probe};

/// What the endpoints answer from.
pub struct App {
    pub supervisor: Arc<Supervisor>,
    pub reloader: Arc<Reloader>,
    pub history: History,
    pub health: Arc<Health>,
    pub clock: Clock,
}

const LARGEST_BODY: usize = 64 * 1024;
/// How long a client may take to send the body of a request.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Stands in place of what a change replaced.
const BEFORE_WITHHELD: &str = "only on the machine itself";

const INDEX: &str = "microglia, housekeeping for Synapse\n\n\
    GET  /metrics                     Prometheus metrics\n\
    GET  /healthz                     200 while the daemon lives\n\
    GET  /readyz                      200 while runs can start and be recorded, even where a homeserver is down\n\
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
        .fallback(not_found)
        .method_not_allowed_fallback(not_allowed)
        .layer(middleware::from_fn_with_state(Arc::clone(&app), guard))
        .with_state(app)
}

type Shared = State<Arc<App>>;

/// The other end of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) SocketAddr);

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

impl From<QueryRejection> for Refused {
    fn from(rejection: QueryRejection) -> Self {
        Self::because(rejection.status(), rejection.body_text())
    }
}

impl From<PathRejection> for Refused {
    fn from(rejection: PathRejection) -> Self {
        Self::because(rejection.status(), rejection.body_text())
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
    async fn is_admin(&self, headers: &HeaderMap) -> bool {
        let token = self.reloader.admin_token().await;
        token.is_some_and(|token| sends(headers, &token))
    }

    /// Lets through who may act.
    async fn admit(&self, headers: &HeaderMap) -> Result<(), Refused> {
        let Some(token) = self.reloader.admin_token().await else {
            return Err(Refused::because(
                StatusCode::FORBIDDEN,
                "this endpoint acts, and there is no admin token: set daemon.admin_token_file",
            ));
        };
        if sends(headers, &token) {
            return Ok(());
        }
        Err(Refused::because(
            StatusCode::UNAUTHORIZED,
            "the admin token is missing or wrong: send what daemon.admin_token_file holds as `Authorization: Bearer …`",
        ))
    }
}

/// Whether the request sends this token, compared in constant time.
fn sends(headers: &HeaderMap, token: &SecretString) -> bool {
    let sent = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("Bearer"))
        .map_or("", |(_, token)| token);
    sent.as_bytes().ct_eq(token.expose_secret().as_bytes()).into()
}

/// What is served under any name: scrapers and probes reach the daemon by names that are not known to it.
const UNDER_ANY_NAME: [&str; 3] = ["/metrics", "/healthz", "/readyz"];

/// Refuses requests in the name of another site.
async fn guard(State(app): Shared, request: Request, next: Next) -> Result<Response, Refused> {
    if UNDER_ANY_NAME.contains(&request.uri().path()) {
        return Ok(next.run(request).await);
    }
    let allowed = app.reloader.daemon().allowed_hosts;
    if let Some(reason) = origin::refused_host(request.uri(), request.headers(), &allowed) {
        return Err(Refused::because(StatusCode::MISDIRECTED_REQUEST, reason));
    }
    if request.method() == Method::POST
        && let Some(reason) = origin::refused_origin(request.headers(), &allowed)
    {
        return Err(Refused::because(StatusCode::FORBIDDEN, reason));
    }
    Ok(next.run(request).await)
}

async fn not_found(uri: Uri) -> Refused {
    Refused::because(StatusCode::NOT_FOUND, format!("there is no endpoint {}", uri.path()))
}

async fn not_allowed(method: Method, uri: Uri) -> Refused {
    let error = format!("{} does not support {method}", uri.path());
    Refused::because(StatusCode::METHOD_NOT_ALLOWED, error)
}

async fn metrics_text(State(app): Shared) -> Result<impl IntoResponse, Refused> {
    let ticked = match app.health.ticker.alive() {
        Ok(ago) | Err(ago) => app.clock.now() - ago,
    };
    let text = app
        .supervisor
        .metrics_text(ticked)
        .map_err(|error| Refused::because(StatusCode::INTERNAL_SERVER_ERROR, error))?;
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text))
}

async fn healthz(State(app): Shared) -> (StatusCode, String) {
    probed(&app, Probe::Health).await
}

async fn readyz(State(app): Shared) -> (StatusCode, String) {
    probed(&app, Probe::Readiness).await
}

async fn probed(app: &App, probe: Probe) -> (StatusCode, String) {
    match app.health.check(probe).await {
        Ok(text) => (StatusCode::OK, text),
        Err(text) => (StatusCode::SERVICE_UNAVAILABLE, text),
    }
}

async fn reload(State(app): Shared, headers: HeaderMap) -> Result<Response, Refused> {
    app.admit(&headers).await?;
    match app.reloader.reload("HTTP").await {
        Ok(adopted) => Ok(Json(adopted).into_response()),
        Err(mistakes) => Err(Refused(
            StatusCode::BAD_REQUEST,
            json!({ "error": "the config has mistakes, the one before stays in force", "mistakes": mistakes }),
        )),
    }
}

async fn jobs(State(app): Shared, headers: HeaderMap) -> Result<Response, Refused> {
    let mut listed = app.supervisor.job_list().await.map_err(unreadable)?;
    let is_admin = app.is_admin(&headers).await;
    for report in listed.iter_mut().filter_map(|job| job.last_run.as_mut()).filter(|_| !is_admin) {
        remove_names(report);
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
    query: Result<Query<RunsQuery>, QueryRejection>,
) -> Result<Response, Refused> {
    let Query(query) = query?;
    let job = Some(query.job.as_str()).filter(|job| !job.is_empty());
    let mut runs =
        app.history.runs(job, query.limit.unwrap_or(20).min(1000)).await.map_err(unreadable)?;
    let is_admin = app.is_admin(&headers).await;
    for report in runs.iter_mut().filter(|_| !is_admin) {
        remove_names(report);
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
    id: Result<Path<i64>, PathRejection>,
    query: Result<Query<PageQuery>, QueryRejection>,
) -> Result<Response, Refused> {
    let (Path(id), Query(query)) = (id?, query?);
    let page = Page {
        offset: query.offset.unwrap_or(0),
        limit: query.limit.unwrap_or(CHANGES_SHOWN).min(10_000),
    };
    let mut report =
        app.history.run(id, page).await.map_err(unreadable)?.ok_or_else(|| {
            Refused::because(StatusCode::NOT_FOUND, format!("there is no run {id}"))
        })?;
    if !app.is_admin(&headers).await {
        remove_names(&mut report);
    }
    // What undoes a change never leaves the machine over TCP.
    for before in report.changes.iter_mut().flatten().filter_map(|change| change.before.as_mut()) {
        *before = json!(BEFORE_WITHHELD);
    }
    Ok(Json(report).into_response())
}

/// Removes from a report what may identify people; only the admin sees it.
fn remove_names(report: &mut Report) {
    report.changes = None;
    report.sample.clear();
    // An error may quote a user id in a path, and a note a pattern of the config.
    report.message = None;
}

async fn run(
    State(app): Shared,
    job: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    app.admit(&headers).await?;
    let Path(job) = job?;
    let body = whole(body).await?;
    let asked: RunOverrides = if body.is_empty() {
        RunOverrides::default()
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

/// Reads a body that is small and comes in time.
async fn whole(body: Body) -> Result<Bytes, Refused> {
    let read = tokio::time::timeout(BODY_TIMEOUT, to_bytes(body, LARGEST_BODY)).await;
    let read = read.map_err(|_| {
        let error = format!("the body did not arrive within {} s", BODY_TIMEOUT.as_secs());
        Refused::because(StatusCode::REQUEST_TIMEOUT, error)
    })?;
    read.map_err(|error| {
        // The type of this error is in a crate that is no dependency of this one.
        let status = match error.to_string().contains("length limit exceeded") {
            true => StatusCode::PAYLOAD_TOO_LARGE,
            false => StatusCode::BAD_REQUEST,
        };
        Refused::because(status, error)
    })
}

async fn cancel(
    State(app): Shared,
    Extension(Peer(peer)): Extension<Peer>,
    job: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    app.admit(&headers).await?;
    let Path(job) = job?;
    app.supervisor.cancel(&job, &format!("{} (HTTP API)", peer.ip()))?;
    Ok(Json(json!({})).into_response())
}

async fn switch(State(app): Shared, headers: HeaderMap, paused: bool) -> Result<Response, Refused> {
    app.admit(&headers).await?;
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
