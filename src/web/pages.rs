//! The status page: rendered by the server, and usable without JavaScript.

mod actions;
mod assets;
mod charts;
mod format;
mod job;
mod layout;
mod login;
mod overview;
mod page_error;
mod rows;
mod run;
mod runs;
pub(super) mod state;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::map_response;
use axum::response::Response;
use axum::routing::{get, post};

use super::app::App;
use actions::Action;

/// The largest form is a token.
const MAX_FORM_BYTES: usize = 16 * 1024;

/// Everything that a page uses is served by the daemon itself, and nothing is written into the page.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; \
    form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/", get(overview::show))
        .route("/jobs/{job}", get(job::show))
        .route("/jobs/{job}/run", actions::route(Action::DryRun))
        .route("/jobs/{job}/cancel", actions::route(Action::Cancel))
        .route("/runs", get(runs::show))
        .route("/runs/{id}", get(run::show))
        .route("/runs/{id}/apply", actions::route(Action::Apply))
        .route("/runs/{id}/approve", actions::route(Action::Approve))
        .route("/runs/{id}/reject", actions::route(Action::Reject))
        .route("/pause", actions::route(|()| Action::Pause))
        .route("/resume", actions::route(|()| Action::Resume))
        .route("/reload", actions::route(|()| Action::Reload))
        .route("/login", get(login::show).post(login::sign_in))
        .route("/logout", post(login::sign_out))
        .route("/static/{file}", get(assets::serve))
        .layer(DefaultBodyLimit::max(MAX_FORM_BYTES))
        .layer(map_response(secured))
}

async fn secured(mut response: Response) -> Response {
    let headers = response.headers_mut();
    let mut set = |name: HeaderName, value: &'static str| {
        headers.insert(name, HeaderValue::from_static(value));
    };
    set(header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY);
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    // With `no-referrer` browsers would send `Origin: null` with forms.
    set(header::REFERRER_POLICY, "same-origin");
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}
