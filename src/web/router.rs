//! The endpoints of the HTTP service.

use std::sync::Arc;

use axum::Router;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware;
use axum::routing::{get, post};

use super::access::reject_cross_site;
use super::api::{
    approve, cancel, job_list, pause, reject, reload, resume, run_list, show_run, start_run,
};
use super::api_error::ApiError;
use super::app::App;
use super::events::all_events;
use super::pages;
use super::probes::{healthz, metrics, readyz};

pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/-/reload", post(reload))
        .route("/api/v1/jobs", get(job_list))
        .route("/api/v1/runs", get(run_list))
        .route("/api/v1/runs/{id}", get(show_run))
        .route("/api/v1/events", get(all_events))
        .route("/api/v1/jobs/{job}/run", post(start_run))
        .route("/api/v1/jobs/{job}/cancel", post(cancel))
        .route("/api/v1/runs/{id}/approve", post(approve))
        .route("/api/v1/runs/{id}/reject", post(reject))
        .route("/api/v1/pause", post(pause))
        .route("/api/v1/resume", post(resume))
        .merge(pages::routes())
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn_with_state(Arc::clone(&app), reject_cross_site))
        .with_state(app)
}

/// Responds to clients for which there is no capacity.
pub(super) fn overloaded() -> Router {
    Router::new().fallback(async || {
        ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too many concurrent requests: try again later",
        )
    })
}

async fn not_found(uri: Uri) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, format!("there is no endpoint {}", uri.path()))
}

async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    let error = format!("{} does not support {method}", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, error)
}
