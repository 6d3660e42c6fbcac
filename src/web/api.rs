//! The endpoints of the JSON API that read the history and control the daemon.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::access::Caller;
use super::api_error::ApiError;
use super::app::App;
use super::events::{RunEvents, wants_events};
use crate::history::Page;
use crate::plan::report::CHANGES_SHOWN;
use crate::scheduler::{ApproveRequest, Approved, RunOverrides};

const MAX_BODY_BYTES: usize = 64 * 1024;
/// How long a client may take to send the body of a request.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
const DEFAULT_RUNS: u32 = 20;
const MAX_RUNS: u32 = 1000;
const MAX_CHANGES: u32 = 10_000;

type Shared = State<Arc<App>>;

pub(super) async fn reload(State(app): Shared, caller: Caller) -> Result<Response, ApiError> {
    caller.authorize(&app).await?;
    let channel = caller.channel();
    match to_completion(async move { app.reloader.reload(channel).await }).await? {
        Ok(adopted) => Ok(Json(adopted).into_response()),
        Err(errors) => Err(ApiError::rejected_config(&errors)),
    }
}

#[derive(Deserialize)]
pub(super) struct JobsQuery {
    #[serde(default)]
    homeserver: String,
}

pub(super) async fn job_list(
    State(app): Shared,
    caller: Caller,
    query: Result<Query<JobsQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query?;
    let mut jobs = app.supervisor.job_list(given(&query.homeserver)).await?;
    for report in jobs.iter_mut().filter_map(|job| job.last_run.as_mut()) {
        caller.redact(report);
    }
    Ok(Json(jobs).into_response())
}

#[derive(Deserialize)]
pub(super) struct RunsQuery {
    #[serde(default)]
    job: String,
    #[serde(default)]
    homeserver: String,
    limit: Option<u32>,
}

pub(super) async fn run_list(
    State(app): Shared,
    caller: Caller,
    query: Result<Query<RunsQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query?;
    let job = given(&query.job);
    let limit = query.limit.unwrap_or(DEFAULT_RUNS).min(MAX_RUNS);
    let mut runs = match given(&query.homeserver) {
        Some(homeserver) => app.history.runs_on(homeserver, job, limit).await?,
        None => app.history.runs(job, limit).await?,
    };
    for report in &mut runs {
        caller.redact(report);
    }
    Ok(Json(runs).into_response())
}

/// The value of a parameter; an empty one counts as absent.
fn given(parameter: &str) -> Option<&str> {
    Some(parameter).filter(|value| !value.is_empty())
}

#[derive(Deserialize)]
pub(super) struct PageQuery {
    offset: Option<u32>,
    limit: Option<u32>,
}

pub(super) async fn show_run(
    State(app): Shared,
    caller: Caller,
    id: Result<Path<i64>, PathRejection>,
    query: Result<Query<PageQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let id = run_id(id)?;
    let Query(query) = query?;
    let page = Page {
        offset: query.offset.unwrap_or(0),
        limit: query.limit.unwrap_or(CHANGES_SHOWN).min(MAX_CHANGES),
    };
    let report = app.history.run(id, page).await?;
    let mut report = report
        .ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, format!("there is no run {id}")))?;
    caller.redact(&mut report);
    Ok(Json(report).into_response())
}

fn run_id(id: Result<Path<i64>, PathRejection>) -> Result<i64, ApiError> {
    let Path(id) = id.map_err(|rejection| {
        ApiError::new(
            rejection.status(),
            "a run is identified by its number, as in /api/v1/runs/42",
        )
    })?;
    Ok(id)
}

/// Starts a run, which continues whether or not the client waits for the response.
///
/// On the control socket the response is the run's event stream where the caller accepts one: a caller that subscribed
/// after the start would miss the first events.
pub(super) async fn start_run(
    State(app): Shared,
    caller: Caller,
    job: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    caller.authorize(&app).await?;
    let Path(job) = job?;
    let overrides: RunOverrides = json_body(body).await?;
    if overrides.undo.is_some() && !caller.is_local() {
        let error = "a run is undone only on the machine itself: microglia undo RUN";
        return Err(ApiError::new(StatusCode::FORBIDDEN, error));
    }
    let (supervisor, name) = (Arc::clone(&app.supervisor), job.clone());
    let starting = async move { supervisor.run(&name, overrides).await };
    let receiver = to_completion(starting).await??;
    let events = RunEvents::from_start(&job, receiver).await?;
    if caller.is_local() && wants_events(&headers) {
        return Ok((StatusCode::ACCEPTED, events.into_sse()).into_response());
    }
    Ok((StatusCode::ACCEPTED, Json(json!({ "id": events.run_id() }))).into_response())
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ApprovalOverrides {
    max_changes: Option<u32>,
}

pub(super) async fn approve(
    State(app): Shared,
    caller: Caller,
    id: Result<Path<i64>, PathRejection>,
    body: Body,
) -> Result<Response, ApiError> {
    caller.authorize(&app).await?;
    let run = run_id(id)?;
    let ApprovalOverrides { max_changes } = json_body(body).await?;
    let request = ApproveRequest { run, by: caller.name().await, max_changes };
    let approved = to_completion(async move { app.supervisor.approve(request).await }).await??;
    let Approved { job, run, waits_for } = approved;
    let body = json!({ "job": job, "run": run, "waits_for": waits_for });
    Ok((StatusCode::ACCEPTED, Json(body)).into_response())
}

pub(super) async fn reject(
    State(app): Shared,
    caller: Caller,
    id: Result<Path<i64>, PathRejection>,
) -> Result<Response, ApiError> {
    caller.authorize(&app).await?;
    let (run, by) = (run_id(id)?, caller.name().await);
    let job = to_completion(async move { app.supervisor.reject(run, &by).await }).await??;
    Ok((StatusCode::ACCEPTED, Json(json!({ "job": job }))).into_response())
}

pub(super) async fn cancel(
    State(app): Shared,
    caller: Caller,
    job: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    caller.authorize(&app).await?;
    let Path(job) = job?;
    let by = caller.name().await;
    to_completion(async move { app.supervisor.cancel(&job, &by).await }).await??;
    Ok(Json(json!({})).into_response())
}

pub(super) async fn pause(State(app): Shared, caller: Caller) -> Result<Response, ApiError> {
    set_paused(app, caller, true).await
}

pub(super) async fn resume(State(app): Shared, caller: Caller) -> Result<Response, ApiError> {
    set_paused(app, caller, false).await
}

async fn set_paused(app: Arc<App>, caller: Caller, paused: bool) -> Result<Response, ApiError> {
    caller.authorize(&app).await?;
    let recorded = to_completion(async move { app.supervisor.pause(paused).await }).await?;
    recorded.map_err(|error| {
        let error = format!("nothing was changed, because it cannot be recorded: {error}");
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error)
    })?;
    Ok(Json(json!({ "paused": paused })).into_response())
}

/// Runs in a task of its own: what was begun must not end halfway because the client disconnects.
pub(super) async fn to_completion<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, ApiError> {
    let finished = tokio::spawn(work).await;
    finished.map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error))
}

/// Parses a body; none at all overrides nothing.
async fn json_body<T: Default + DeserializeOwned>(body: Body) -> Result<T, ApiError> {
    let body = read_body(body).await?;
    if body.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(&body).map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, error))
}

/// Fails on a body that is too large or arrives too slowly.
async fn read_body(body: Body) -> Result<Bytes, ApiError> {
    let read = tokio::time::timeout(BODY_TIMEOUT, to_bytes(body, MAX_BODY_BYTES)).await;
    let read = read.map_err(|_| {
        let error = format!("the body did not arrive within {} s", BODY_TIMEOUT.as_secs());
        ApiError::new(StatusCode::REQUEST_TIMEOUT, error)
    })?;
    read.map_err(|error| {
        // The type of this error belongs to a crate that is not a direct dependency.
        let status = match error.to_string().contains("length limit exceeded") {
            true => StatusCode::PAYLOAD_TOO_LARGE,
            false => StatusCode::BAD_REQUEST,
        };
        ApiError::new(status, error)
    })
}
