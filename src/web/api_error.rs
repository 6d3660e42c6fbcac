//! Unsuccessful responses of the API, as JSON with an `error`.

use std::fmt::Display;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::history;
use crate::scheduler::Refusal;

/// A status and a body of the form `{"error": "…"}`.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    body: Value,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, error: impl Display) -> Self {
        Self { status, body: json!({ "error": error.to_string() }) }
    }

    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    pub(super) fn text(&self) -> String {
        self.body["error"].as_str().unwrap_or_default().to_owned()
    }

    /// Also carries every error of a configuration that was rejected.
    pub(super) fn rejected_config(errors: &[String]) -> Self {
        let error = "the configuration has errors; keeping the previous configuration";
        Self { status: StatusCode::BAD_REQUEST, body: json!({ "error": error, "errors": errors }) }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(self.body)).into_response()
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        // The only other parameter is a text.
        let error = format!(
            "`limit` and `offset` must be whole numbers from 0 to {}, each given once",
            u32::MAX
        );
        Self::new(rejection.status(), error)
    }
}

impl From<PathRejection> for ApiError {
    fn from(rejection: PathRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal {
            Refusal::Unknown(_) | Refusal::NoRun(_) => StatusCode::NOT_FOUND,
            Refusal::Running { .. }
            | Refusal::NotRunning(_)
            | Refusal::NotWaiting(_)
            | Refusal::Edited(_)
            | Refusal::Elsewhere { .. }
            | Refusal::Differs { .. } => StatusCode::CONFLICT,
            Refusal::Draining | Refusal::Unanswered(_) => StatusCode::SERVICE_UNAVAILABLE,
            Refusal::Usage(_) => StatusCode::BAD_REQUEST,
        };
        Self::new(status, refusal)
    }
}

impl From<history::Error> for ApiError {
    fn from(error: history::Error) -> Self {
        let error = format!("cannot use the history: {error}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error)
    }
}
