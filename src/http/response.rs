//! Responses: decoding them, and the errors that they stand for.

use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::error::{Cause, Error};
use super::excerpt::{excerpt, one_line, page_title};
use super::mas_advice::UNREADABLE_REQUEST;
use super::retry_after;
use crate::values::clock::Timestamp;

/// A response with a status that was expected.
#[derive(Debug)]
pub(crate) struct Response {
    pub status: StatusCode,
    /// Only its beginning if it was parsed while it arrived.
    pub body: Vec<u8>,
    /// The `Date` header.
    pub date: Option<String>,
    pub method: Method,
    pub path: String,
}

impl Response {
    /// Decodes the JSON body; the error shows its beginning.
    pub(crate) fn decode<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.body).map_err(|problem| self.undecodable(&problem))
    }

    /// As [`decode`](Self::decode), for a body that contains a token: the error shows nothing of it.
    pub(crate) fn decode_secret<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.body).map_err(|problem| {
            self.error(Cause::Undecodable {
                problem: format!("line {} column {}", problem.line(), problem.column()),
                excerpt: "not shown, because it may contain a token".to_owned(),
            })
        })
    }

    pub(crate) fn undecodable(&self, problem: &serde_json::Error) -> Error {
        self.error(Cause::Undecodable {
            // It may quote a value of any length.
            problem: one_line(&problem.to_string(), 200),
            excerpt: excerpt(&self.body),
        })
    }

    /// Returns the error for an object that is not in the state that a change requires.
    pub(crate) fn changed(&self) -> Error {
        self.error(Cause::Changed)
    }

    /// Returns the error for a response that reports something other than what was requested.
    pub(crate) fn unexpected(&self, problem: impl Into<String>) -> Error {
        self.error(Cause::Unexpected(problem.into()))
    }

    /// Returns the error for a response that says that this one target was not changed.
    pub(crate) fn contradicted(&self, problem: &str) -> Error {
        self.error(Cause::Contradicted(problem.to_owned()))
    }

    fn error(&self, cause: Cause) -> Error {
        Error { method: self.method.clone(), path: self.path.clone(), cause, advice: None }
    }
}

/// The headers of a response with an unexpected status that matter to its error.
#[derive(Debug, Default)]
pub(crate) struct Headers {
    pub date: Option<String>,
    pub retry_after: Option<String>,
    pub location: Option<String>,
    pub content_type: Option<String>,
}

/// Returns the cause of an error for a response with an unexpected status.
pub(crate) fn refusal(status: StatusCode, headers: &Headers, body: &[u8], now: Timestamp) -> Cause {
    #[derive(Deserialize)]
    struct Envelope {
        errcode: String,
        #[serde(default)]
        error: String,
        #[serde(default)]
        retry_after_ms: serde_json::Value,
    }
    if status.is_success() {
        return Cause::Unexpected(format!(
            "unexpected status {}: {}",
            status.as_u16(),
            excerpt(body)
        ));
    }
    let from_header =
        || retry_after::from_header(headers.retry_after.as_deref()?, headers.date.as_deref(), now);
    match serde_json::from_slice::<Envelope>(body) {
        Ok(envelope) => Cause::Synapse {
            status: status.as_u16(),
            errcode: one_line(&envelope.errcode, 100),
            error: one_line(&envelope.error, 500),
            retry_after: retry_after::from_envelope(&envelope.retry_after_ms).or_else(from_header),
        },
        Err(_) => Cause::NotSynapse {
            status: status.as_u16(),
            excerpt: page_title(body),
            retry_after: from_header(),
        },
    }
}

/// As [`refusal`], for a response of MAS's Admin API.
///
/// It reports titles without codes, and a request that it cannot read is answered with plain text.
pub(crate) fn mas_refusal(
    status: StatusCode,
    headers: &Headers,
    body: &[u8],
    now: Timestamp,
) -> Cause {
    #[derive(Deserialize)]
    struct Title {
        title: String,
    }
    #[derive(Deserialize)]
    struct Envelope {
        errors: Vec<Title>,
    }
    let errors = match serde_json::from_slice::<Envelope>(body) {
        Ok(Envelope { errors }) => Some(errors.into_iter().map(|error| error.title).collect()),
        Err(_) if matches!(status.as_u16(), 400 | 415 | 422) && headers.is_plain_text() => {
            Some(vec![UNREADABLE_REQUEST.to_owned(), String::from_utf8_lossy(body).into_owned()])
        }
        Err(_) => None,
    };
    of_mas(errors, status, headers, body, now)
}

/// As [`refusal`], for a response of MAS's token endpoint, which reports codes (RFC 6749).
///
/// Other servers have a field `error` as well, Synapse among them, but hardly with these statuses at this path.
pub(crate) fn token_refusal(
    status: StatusCode,
    headers: &Headers,
    body: &[u8],
    now: Timestamp,
) -> Cause {
    #[derive(Deserialize)]
    struct Envelope {
        error: String,
        error_description: Option<String>,
    }
    let is_possible = matches!(status.as_u16(), 400 | 401 | 403 | 429 | 500..=599);
    let envelope = serde_json::from_slice::<Envelope>(body).ok().filter(|_| is_possible);
    let errors = envelope.map(|Envelope { error, error_description }| {
        std::iter::once(error).chain(error_description).collect()
    });
    of_mas(errors, status, headers, body, now)
}

/// The cause of a response with these errors of MAS; another server responded if there are none.
fn of_mas(
    errors: Option<Vec<String>>,
    status: StatusCode,
    headers: &Headers,
    body: &[u8],
    now: Timestamp,
) -> Cause {
    const MAX_ERRORS: usize = 5;
    let retry_after = headers
        .retry_after
        .as_deref()
        .and_then(|value| retry_after::from_header(value, headers.date.as_deref(), now));
    let status = status.as_u16();
    match errors {
        Some(errors) => {
            let errors = errors.iter().take(MAX_ERRORS).map(|error| one_line(error, 300));
            Cause::Mas { status, errors: errors.collect(), retry_after }
        }
        None => Cause::NotMas { status, excerpt: page_title(body), retry_after },
    }
}

impl Headers {
    fn is_plain_text(&self) -> bool {
        self.content_type.as_deref().is_some_and(|value| value.starts_with("text/plain"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn retry_after_in_the_body_takes_precedence_over_the_header() {
        let now = "2026-11-23T03:30:00Z".parse().unwrap();
        let retry_after = |body: &str, header: Option<&str>| {
            let headers = Headers { retry_after: header.map(str::to_owned), ..Headers::default() };
            match refusal(StatusCode::TOO_MANY_REQUESTS, &headers, body.as_bytes(), now) {
                Cause::Synapse { retry_after, .. } => ("Synapse", retry_after),
                Cause::NotSynapse { retry_after, .. } => ("a proxy", retry_after),
                other => panic!("{other:?}"),
            }
        };
        let limited = r#"{"errcode": "M_LIMIT_EXCEEDED", "error": "", "retry_after_ms": 1500}"#;
        let silent = r#"{"errcode": "M_LIMIT_EXCEEDED", "error": ""}"#;
        assert_eq!(retry_after(limited, Some("2")), ("Synapse", Some(Duration::from_millis(1500))));
        assert_eq!(retry_after(silent, Some("2")), ("Synapse", Some(Duration::from_secs(2))));
        assert_eq!(retry_after("<html>", Some("7")), ("a proxy", Some(Duration::from_secs(7))));
        assert_eq!(retry_after("<html>", None), ("a proxy", None));
    }
}
