//! Requests before they are sent: their URLs, and how they may be sent.

use std::time::Duration;

use reqwest::{Method, Url};
use secrecy::SecretString;
use tokio::sync::mpsc;

use super::error::{Cause, Error};
use crate::values::size::Size;

/// Joins a local user to a room, under a rate limit of its own.
pub(crate) const JOIN_ENDPOINT: &str = "/_synapse/admin/v1/join/{}";

/// Which of a homeserver's addresses serves an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    Homeserver,
    Media,
}

/// Whether a request may be sent again after it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// Sending it twice has the same effect as sending it once.
    Always,
    /// Only if the failed attempt certainly had no effect.
    IfNotApplied,
    /// Only with a renewed access token: the request depends on what was read just before it.
    Never,
}

/// How a request takes part in the request rate limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pacing {
    Normal,
    /// Also waits on behalf of the following request, which is then sent without delay.
    ReserveNext,
    /// The previous request waited on behalf of this one.
    Reserved,
}

/// A request to a known endpoint.
pub(crate) struct Call<'a> {
    pub method: Method,
    pub base: Base,
    /// A route template. Each `{}` is replaced by the next of `ids`, percent-encoded.
    pub endpoint: &'static str,
    pub ids: &'a [&'a str],
    pub query: Vec<(&'static str, String)>,
    pub body: Option<serde_json::Value>,
    pub repeat: Repeat,
    pub pacing: Pacing,
    /// Media purges have none: Synapse continues regardless, and only the time limit of the run ends the wait.
    pub timeout: Option<Duration>,
}

/// A form that is posted with the credentials of an OAuth 2.0 client.
pub(crate) struct Form<'a> {
    pub endpoint: &'static str,
    /// Already encoded.
    pub fields: &'static str,
    pub client_id: &'a str,
    pub client_secret: &'a SecretString,
}

/// A request from the configuration: the path is sent exactly as it is written, under the base.
#[derive(Debug, Clone)]
pub struct RawRequest {
    pub method: Method,
    pub base: Base,
    pub path: String,
    pub query: Vec<(String, String)>,
    pub body: Option<serde_json::Value>,
    pub expect: Vec<u16>,
    pub repeatable: bool,
}

/// Where the body of a response goes, and what it may be.
pub(crate) struct BodyStream<'a> {
    /// Starts a parser; called for each attempt.
    pub begin: &'a (dyn Fn() -> mpsc::Sender<Vec<u8>> + Send + Sync),
    pub max: Size,
    /// How long the response may take to begin. After that, `request_timeout` limits each silence.
    pub timeout: Duration,
}

/// A request with its final URL, which can be sent any number of times.
pub(crate) struct Outgoing<'a> {
    pub method: &'a Method,
    pub url: Url,
    /// The label of the request in the metrics.
    pub endpoint: &'static str,
    pub body: Option<Body<'a>>,
    /// User and password, in place of the access token.
    pub basic: Option<(&'a str, &'a SecretString)>,
    pub expect: Expect<'a>,
    pub repeat: Repeat,
    pub pacing: Pacing,
    pub timeout: Option<Duration>,
    /// Where the body of a successful response goes; otherwise it is collected.
    pub stream: Option<&'a BodyStream<'a>>,
}

#[derive(Clone, Copy)]
pub(crate) enum Body<'a> {
    Json(&'a serde_json::Value),
    Form(&'static str),
}

/// Which statuses are a success.
pub(crate) enum Expect<'a> {
    Successful,
    OneOf(&'a [u16]),
}

impl Call<'_> {
    pub(crate) fn outgoing(&self, base: &Url) -> Outgoing<'_> {
        let mut url = endpoint_url(base, self.endpoint, self.ids);
        if !self.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&self.query);
        }
        Outgoing {
            method: &self.method,
            url,
            endpoint: self.endpoint,
            body: self.body.as_ref().map(Body::Json),
            basic: None,
            expect: Expect::Successful,
            repeat: self.repeat,
            pacing: self.pacing,
            timeout: self.timeout,
            stream: None,
        }
    }
}

impl Form<'_> {
    pub(crate) fn outgoing(&self, base: &Url, timeout: Duration) -> Outgoing<'_> {
        Outgoing {
            method: &Method::POST,
            url: endpoint_url(base, self.endpoint, &[]),
            endpoint: self.endpoint,
            body: Some(Body::Form(self.fields)),
            basic: Some((self.client_id, self.client_secret)),
            expect: Expect::Successful,
            repeat: Repeat::IfNotApplied,
            pacing: Pacing::Normal,
            timeout: Some(timeout),
            stream: None,
        }
    }
}

impl RawRequest {
    pub(crate) fn outgoing(&self, base: &Url, timeout: Duration) -> Result<Outgoing<'_>, Error> {
        let base = base.as_str().trim_end_matches('/');
        let mut url = Url::parse(&format!("{base}{}", self.path)).map_err(|error| Error {
            method: self.method.clone(),
            path: self.path.clone(),
            cause: Cause::Unexpected(format!("not a valid URL: {error}")),
            advice: None,
        })?;
        if !self.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&self.query);
        }
        Ok(Outgoing {
            method: &self.method,
            url,
            endpoint: "(request)",
            body: self.body.as_ref().map(Body::Json),
            basic: None,
            expect: Expect::OneOf(&self.expect),
            repeat: if self.repeatable { Repeat::Always } else { Repeat::IfNotApplied },
            pacing: Pacing::Normal,
            timeout: Some(timeout),
            stream: None,
        })
    }
}

impl Outgoing<'_> {
    pub(crate) fn error(&self, cause: Cause, advice: Option<String>) -> Error {
        Error { method: self.method.clone(), path: self.url.path().to_owned(), cause, advice }
    }
}

impl Expect<'_> {
    pub(crate) fn accepts(&self, status: u16) -> bool {
        match self {
            Self::Successful => (200..300).contains(&status),
            Self::OneOf(statuses) => statuses.contains(&status),
        }
    }
}

/// Fills the template. Each id becomes one segment with `/`, `?`, `#` and `%` encoded: servers split the path before they decode.
fn endpoint_url(base: &Url, endpoint: &str, ids: &[&str]) -> Url {
    let mut url = base.clone();
    let mut ids = ids.iter();
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty();
        for part in endpoint.trim_start_matches('/').split('/') {
            match part {
                "{}" => segments.push(ids.next().copied().unwrap_or_default()),
                fixed => segments.push(fixed),
            };
        }
    }
    url
}
