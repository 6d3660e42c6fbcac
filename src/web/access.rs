//! Who sent a request, and what they may do and see.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use secrecy::ExposeSecret;
use serde_json::json;
use subtle::ConstantTimeEq;

use super::api_error::ApiError;
use super::app::App;
use super::origin;
use super::peer::Peer;
use super::session::OpenSession;
use crate::plan::report::Report;

/// Stands in place of what a change replaced.
const BEFORE_WITHHELD: &str = "only available on the machine itself";

/// The sender of a request.
pub(super) struct Caller {
    peer: Peer,
    access: Access,
}

#[derive(Debug, Clone)]
enum Access {
    /// Over TCP without the admin token.
    Public,
    /// Over TCP with the cookie of a session, which a browser sends whoever made it.
    Session { session: OpenSession, has_csrf: bool },
    /// Over TCP with the admin token.
    Admin,
    /// Over the control socket, which only its owner and root can open.
    Local,
}

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let peer = parts.extensions.get::<Peer>().copied().ok_or_else(|| {
            ApiError::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the peer of the connection is unknown",
            )
        })?;
        let access = match peer {
            Peer::Local { .. } => Access::Local,
            Peer::Tcp(_) if has_admin_token(app, &parts.headers).await => Access::Admin,
            Peer::Tcp(_) => session(app, &parts.headers).await,
        };
        Ok(Self { peer, access })
    }
}

impl Caller {
    /// Reads well after "cancelled by".
    pub(super) async fn name(&self) -> String {
        match (&self.access, self.peer) {
            (Access::Session { .. }, Peer::Tcp(address)) => {
                format!("{} (status page)", address.ip())
            }
            _ => self.peer.name().await,
        }
    }

    /// What the log names as the origin of a request.
    pub(super) fn channel(&self) -> &'static str {
        match (&self.access, self.peer) {
            (Access::Session { .. }, _) => "the status page",
            (_, Peer::Tcp(_)) => "HTTP",
            (_, Peer::Local { .. }) => "the control socket",
        }
    }

    /// Fails unless the caller may change something.
    pub(super) async fn authorize(&self, app: &App) -> Result<(), ApiError> {
        match &self.access {
            Access::Local | Access::Admin | Access::Session { has_csrf: true, .. } => Ok(()),
            Access::Session { has_csrf: false, .. } => Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "a session requires its CSRF token as well: send it as `X-CSRF-Token`",
            )),
            Access::Public if app.reloader.admin_token().await.is_none() => Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "this endpoint requires an admin token, and none is configured: set daemon.admin_token_file",
            )),
            Access::Public => Err(ApiError::new(
                StatusCode::UNAUTHORIZED,
                "the admin token is missing or wrong: send the content of daemon.admin_token_file as `Authorization: Bearer …`",
            )),
        }
    }

    pub(super) fn is_local(&self) -> bool {
        matches!(self.access, Access::Local)
    }

    /// Whether the caller may see names of people.
    pub(super) fn sees_names(&self) -> bool {
        !matches!(self.access, Access::Public)
    }

    /// The session of a person who is signed in to the status page.
    pub(super) fn session(&self) -> Option<&OpenSession> {
        match &self.access {
            Access::Session { session, .. } => Some(session),
            Access::Public | Access::Admin | Access::Local => None,
        }
    }

    pub(super) fn peer(&self) -> Peer {
        self.peer
    }

    /// Removes what the caller may not see: names of people, and over TCP what a change replaced.
    pub(super) fn redact(&self, report: &mut Report) {
        match self.access {
            Access::Local => {}
            Access::Admin | Access::Session { .. } => {
                let changes = report.changes.iter_mut().flatten();
                for before in changes.filter_map(|change| change.before.as_mut()) {
                    *before = json!(BEFORE_WITHHELD);
                }
            }
            Access::Public => {
                report.changes = None;
                report.sample.clear();
                // An error may quote a user id in a path, and a note a pattern of the configuration.
                report.message = None;
                if let Some(approval) = &mut report.approval {
                    // A reaction in a room is a person's.
                    (approval.by, approval.detail) = (None, None);
                }
            }
        }
    }
}

async fn session(app: &App, headers: &HeaderMap) -> Access {
    let token = app.reloader.admin_token().await;
    let Some(session) = app.sessions.find(headers, token.as_ref(), app.clock.now()) else {
        return Access::Public;
    };
    let sent = headers.get("x-csrf-token").and_then(|value| value.to_str().ok()).unwrap_or("");
    let has_csrf = session.has_csrf(sent);
    Access::Session { session, has_csrf }
}

async fn has_admin_token(app: &App, headers: &HeaderMap) -> bool {
    let sent = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("Bearer"))
        .map_or("", |(_, token)| token);
    let token = app.reloader.admin_token().await;
    token.is_some_and(|token| sent.as_bytes().ct_eq(token.expose_secret().as_bytes()).into())
}

/// Served under any `Host`: scrapers and probes use names that the daemon does not know.
const ANY_HOST: [&str; 3] = ["/metrics", "/healthz", "/readyz"];

/// Rejects what a browser sends on behalf of another site, which cannot reach the control socket.
pub(super) async fn reject_cross_site(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let is_local = matches!(request.extensions().get(), Some(Peer::Local { .. }));
    if is_local || ANY_HOST.contains(&request.uri().path()) {
        return Ok(next.run(request).await);
    }
    let allowed = app.reloader.daemon().allowed_hosts;
    if let Some(reason) = origin::host_rejection(request.uri(), request.headers(), &allowed) {
        return Err(ApiError::new(StatusCode::MISDIRECTED_REQUEST, reason));
    }
    if request.method() == Method::POST
        && let Some(reason) = origin::origin_rejection(request.headers(), &allowed)
    {
        return Err(ApiError::new(StatusCode::FORBIDDEN, reason));
    }
    Ok(next.run(request).await)
}
