//! The endpoints for monitoring: metrics, health, and readiness.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;

use super::api_error::ApiError;
use super::app::App;
use super::health::Probe;
use crate::observe::metrics::CONTENT_TYPE;

pub(super) async fn metrics(State(app): State<Arc<App>>) -> Result<impl IntoResponse, ApiError> {
    let last_tick = match app.health.ticker.alive() {
        Ok(ago) | Err(ago) => app.clock.now() - ago,
    };
    let text = app
        .supervisor
        .metrics_text(last_tick)
        .map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error))?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text))
}

pub(super) async fn healthz(State(app): State<Arc<App>>) -> (StatusCode, String) {
    check(&app, Probe::Health).await
}

pub(super) async fn readyz(State(app): State<Arc<App>>) -> (StatusCode, String) {
    check(&app, Probe::Readiness).await
}

async fn check(app: &App, probe: Probe) -> (StatusCode, String) {
    match app.health.check(probe).await {
        Ok(text) => (StatusCode::OK, text),
        Err(text) => (StatusCode::SERVICE_UNAVAILABLE, text),
    }
}
