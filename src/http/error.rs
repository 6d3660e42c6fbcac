//! Errors of requests to a homeserver or to MAS, and what a caller may do about them.

use std::fmt;
use std::time::Duration;

use reqwest::Method;

use crate::values::size::Size;

/// A request that failed.
#[derive(Debug, Clone, thiserror::Error)]
pub struct Error {
    pub method: Method,
    /// The path as it was sent, without the query.
    pub path: String,
    pub cause: Cause,
    /// What the administrator can do, if known.
    pub advice: Option<String>,
}

#[derive(Debug, Clone)]
pub enum Cause {
    /// The request was never sent.
    Unreachable(String),
    /// The request could not be built, for example with a token that is not valid in a header, and was never sent.
    NotSent(String),
    /// The run ended while the request waited for a token, a limit or its next attempt: it had no effect.
    Cancelled,
    /// There is no access token for the request, which was not sent.
    NoToken(NoToken),
    /// The request was sent, but no complete response arrived: the server may have processed it, or may still be doing so.
    Lost(String),
    /// The response exceeds the limit of its endpoint and was not read completely.
    TooLarge(Size),
    /// Synapse's own error envelope.
    Synapse { status: u16, errcode: String, error: String, retry_after: Option<Duration> },
    /// An error status without Matrix's envelope: a server in front of Synapse responded.
    NotSynapse { status: u16, excerpt: String, retry_after: Option<Duration> },
    /// MAS's own errors: titles from its Admin API, or code and description from its token endpoint.
    Mas { status: u16, errors: Vec<String>, retry_after: Option<Duration> },
    /// An error status from another listener of MAS, or from a server in front of it.
    NotMas { status: u16, excerpt: String, retry_after: Option<Duration> },
    /// The body does not have the form that this endpoint returns.
    Undecodable { problem: String, excerpt: String },
    /// The response reports something that must not happen.
    Unexpected(String),
    /// The response differs from what was sent, for this one target.
    Contradicted(String),
    /// The target changed since its state was recorded; the change was not made.
    Changed,
}

/// Why no access token could be obtained.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NoToken {
    /// A request that is needed for it failed.
    #[error("{0}")]
    Request(Box<Error>),
    /// Something on this machine, or about the account, that a person has to change.
    #[error("{0}")]
    Problem(String),
    /// Another process has been obtaining it for long.
    #[error("{0}")]
    Busy(String),
}

impl From<Error> for NoToken {
    fn from(error: Error) -> Self {
        Self::Request(Box::new(error))
    }
}

impl NoToken {
    /// Whether another attempt may succeed.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Request(error) => error.is_transient(),
            Self::Problem(_) => false,
            Self::Busy(_) => true,
        }
    }
}

impl Error {
    /// Returns the error for a response to a change of `user_id` that differs from what was sent.
    pub(crate) fn contradicted(user_id: &str, problem: &str) -> Self {
        Self {
            method: Method::PUT,
            path: user_id.to_owned(),
            cause: Cause::Contradicted(problem.to_owned()),
            advice: None,
        }
    }

    /// Returns the error for a change that cannot be made because of something on this machine.
    pub(crate) fn not_sent(problem: String) -> Self {
        Self {
            method: Method::POST,
            path: "/_synapse/admin/v1/media/delete".to_owned(),
            cause: Cause::NotSent(problem),
            advice: None,
        }
    }

    /// Makes an error final whose request may have taken effect and must not be sent again.
    #[must_use]
    pub(crate) fn not_repeatable(self) -> Self {
        let problem = format!(
            "{}; it is unknown whether Synapse processed the request, and it is not sent again because `repeatable` is false",
            self.message()
        );
        Self { cause: Cause::Unexpected(problem), ..self }
    }

    /// Whether another attempt of the whole run may succeed.
    pub(crate) fn is_transient(&self) -> bool {
        match &self.cause {
            Cause::Unreachable(_)
            | Cause::Cancelled
            | Cause::Lost(_)
            | Cause::Undecodable { .. } => true,
            Cause::NoToken(why) => why.is_transient(),
            Cause::Synapse { status, .. } => {
                matches!(status, 429 | 502..=504)
                    || (*status == 500 && self.method == Method::GET && !self.is_about_token())
            }
            Cause::Mas { status, .. } => {
                matches!(status, 429 | 502..=504) || (*status == 500 && self.method == Method::GET)
            }
            Cause::NotSynapse { status, .. } | Cause::NotMas { status, .. } => {
                matches!(status, 408 | 429 | 500..=599)
            }
            Cause::NotSent(_)
            | Cause::TooLarge(_)
            | Cause::Unexpected(_)
            | Cause::Contradicted(_)
            | Cause::Changed => false,
        }
    }

    /// Whether only the target of this one change is affected and other changes can continue.
    pub(crate) fn is_about_target(&self) -> bool {
        match &self.cause {
            Cause::Synapse { status, errcode, .. } => {
                !self.is_transient()
                    && !self.is_about_token()
                    && !self.is_not_enabled()
                    && (400..=500).contains(status)
                    && !matches!(
                        errcode.as_str(),
                        "M_UNRECOGNIZED"
                            | "M_RESOURCE_LIMIT_EXCEEDED"
                            | "M_CONSENT_NOT_GIVEN"
                            | "M_MISSING_PARAM"
                            | "M_NOT_JSON"
                    )
            }
            Cause::Mas { status, .. } => {
                !self.is_transient()
                    && !self.is_about_token()
                    && matches!(status, 400 | 403 | 404 | 409 | 410 | 422 | 500)
            }
            Cause::Contradicted(_) | Cause::Changed => true,
            _ => false,
        }
    }

    /// Whether the token is invalid, or its account is locked or not a server admin: every request fails until a person acts.
    pub(crate) fn is_about_token(&self) -> bool {
        match &self.cause {
            Cause::Synapse { status: 401, .. } | Cause::Mas { status: 401, .. } => true,
            Cause::Synapse { status: 403, error, .. } => is_not_admin(error),
            Cause::Synapse { status: 500, errcode, error, .. } => {
                error.starts_with("Invalid username claim") || is_unknown_account(errcode, error)
            }
            Cause::Mas { errors, .. } => errors.iter().any(|error| {
                [INVALID_CLIENT, INVALID_SCOPE, "unauthorized_client"].contains(&error.as_str())
                    || error.ends_with(" authorization header")
            }),
            Cause::NoToken(NoToken::Request(error)) => error.is_about_token(),
            _ => false,
        }
    }

    /// Whether another token may be accepted where MAS refused one: it expired, was revoked, or MAS does not know it.
    ///
    /// Neither a missing scope nor a locked account changes with a new token.
    pub(crate) fn is_about_expired_token(&self) -> bool {
        match &self.cause {
            Cause::Mas { status: 401, errors, .. } => {
                !errors.iter().any(|error| error == MISSING_SCOPE || error == USER_LOCKED)
            }
            _ => false,
        }
    }

    /// Whether the process that responded does not serve the endpoint: Synapse is too old, delegates to MAS, or it is another worker.
    pub(crate) fn is_unrecognized(&self) -> bool {
        matches!(&self.cause, Cause::Synapse { errcode, .. } if errcode == "M_UNRECOGNIZED")
    }

    /// Whether the homeserver is not configured for what was requested, which had no effect.
    pub(crate) fn is_not_enabled(&self) -> bool {
        matches!(&self.cause, Cause::Synapse { status: 400, error, .. } if error == NO_SERVER_NOTICES)
    }

    pub(crate) fn is_not_found(&self) -> bool {
        match &self.cause {
            Cause::Synapse { status: 404, errcode, .. } => errcode == "M_NOT_FOUND",
            Cause::Mas { status: 404, .. } => true,
            _ => false,
        }
    }

    /// Whether a change is refused because of something that is there already.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self.cause, Cause::Mas { status: 409, .. } | Cause::Synapse { status: 409, .. })
    }

    /// Whether MAS refuses a change because it is made already, which it says with `already` at the end.
    pub(crate) fn is_made_already(&self, already: &str) -> bool {
        match &self.cause {
            Cause::Mas { status: 400, errors, .. } => {
                errors.iter().any(|error| error.ends_with(already))
            }
            _ => false,
        }
    }

    /// Whether a smaller page may succeed: the response took too long or was too large, or the server refused or failed.
    pub(crate) fn is_about_size(&self, took: Duration, timeout: Duration) -> bool {
        match &self.cause {
            Cause::Lost(_) => took >= timeout,
            Cause::TooLarge(_) => true,
            Cause::Synapse { status: 400 | 500, .. } => !self.is_about_token(),
            Cause::Mas { status, .. } => *status == 500,
            Cause::NotSynapse { status, .. } | Cause::NotMas { status, .. } => {
                matches!(status, 413 | 504)
            }
            _ => false,
        }
    }

    /// Whether the server may have processed the request, or may still be doing so.
    pub(crate) fn may_have_taken_effect(&self) -> bool {
        match &self.cause {
            Cause::Lost(_) | Cause::TooLarge(_) | Cause::Undecodable { .. } => true,
            Cause::NotSynapse { status, .. } | Cause::NotMas { status, .. } => *status >= 500,
            // A Synapse process returns these while it waits for another one.
            Cause::Synapse { status, .. } | Cause::Mas { status, .. } => {
                matches!(status, 502..=504)
            }
            _ => false,
        }
    }

    /// How long to wait before the next request, according to the server.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match &self.cause {
            Cause::Synapse { retry_after, .. }
            | Cause::NotSynapse { retry_after, .. }
            | Cause::Mas { retry_after, .. }
            | Cause::NotMas { retry_after, .. } => *retry_after,
            Cause::NoToken(NoToken::Request(error)) => error.retry_after(),
            _ => None,
        }
    }

    /// The status of the response, if there was one with an error status.
    pub(crate) fn status(&self) -> Option<u16> {
        match self.cause {
            Cause::Synapse { status, .. }
            | Cause::NotSynapse { status, .. }
            | Cause::Mas { status, .. }
            | Cause::NotMas { status, .. } => Some(status),
            _ => None,
        }
    }

    /// Whether the server did not respond: it is down, or a server in front of it says so.
    pub(crate) fn is_outage(&self) -> bool {
        match &self.cause {
            Cause::Unreachable(_) | Cause::Lost(_) => true,
            Cause::NotSynapse { status, .. } | Cause::NotMas { status, .. } => {
                matches!(status, 502..=504)
            }
            _ => false,
        }
    }

    /// Whether the homeserver may have too much to do: no response, or a status of 429 or 5xx.
    pub(crate) fn is_overload(&self) -> bool {
        match &self.cause {
            Cause::Unreachable(_) | Cause::Lost(_) => true,
            _ => self.status().is_some_and(|status| status == 429 || status >= 500),
        }
    }

    pub(crate) fn is_rate_limited(&self) -> bool {
        self.status() == Some(429)
    }

    /// Returns what went wrong, without the request and the advice.
    pub(crate) fn message(&self) -> String {
        match &self.cause {
            Cause::Unreachable(problem) => format!("not reachable: {problem}"),
            Cause::NotSent(problem) => {
                format!("the request could not be built and was not sent: {problem}")
            }
            Cause::Cancelled => "the run ended before the request was sent".to_owned(),
            Cause::NoToken(why) => format!("no access token: {why}"),
            Cause::Lost(problem) => format!("the response was lost: {problem}"),
            Cause::TooLarge(max) => {
                format!("the response exceeds {max}, the limit for this endpoint")
            }
            Cause::Synapse { status, errcode, error, .. } => format!("{status} {errcode}: {error}"),
            Cause::NotSynapse { status, excerpt, .. } if excerpt.is_empty() => {
                format!("{status} with an empty body, which did not come from Synapse")
            }
            Cause::NotSynapse { status, excerpt, .. } => {
                format!("{status} from a server that is not Synapse: {excerpt}")
            }
            Cause::Mas { status, errors, .. } => format!("{status} {}", errors.join(": ")),
            Cause::NotMas { status, excerpt, .. } if excerpt.is_empty() => {
                format!("{status} with an empty body")
            }
            Cause::NotMas { status, excerpt, .. } => {
                format!("{status} from a listener that is not MAS's Admin API: {excerpt}")
            }
            Cause::Undecodable { problem, excerpt } => {
                format!("cannot decode the response ({problem}): {excerpt}")
            }
            Cause::Unexpected(problem) | Cause::Contradicted(problem) => problem.clone(),
            Cause::Changed => {
                "another client keeps changing the account: left unchanged".to_owned()
            }
        }
    }
}

pub(super) const INVALID_CLIENT: &str = "invalid_client";
pub(super) const INVALID_SCOPE: &str = "invalid_scope";
pub(super) const MISSING_SCOPE: &str = "Missing urn:mas:admin scope";
pub(super) const USER_LOCKED: &str = "User locked";

pub(super) const NO_SERVER_NOTICES: &str = "Server notices are not enabled on this server";

/// Whether Synapse reports, with status 500, that it does not have the account that MAS named for the token.
pub(crate) fn is_unknown_account(errcode: &str, error: &str) -> bool {
    errcode == "M_FORBIDDEN" && error == "User not found"
}

/// Whether Synapse reports, with status 403, that the account of the token is not a server admin.
pub(crate) fn is_not_admin(error: &str) -> bool {
    error == "You are not a server admin"
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Cause::NoToken(why) = &self.cause {
            // It names the request that failed.
            return write!(f, "{why}");
        }
        let message = self.message();
        write!(f, "{} {}: ", self.method, self.path)?;
        match &self.advice {
            Some(advice) => write!(f, "{}. {advice}", message.trim_end_matches('.')),
            None => f.write_str(&message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_a_request_for_a_token_says_nothing_about_the_request_that_needs_it() {
        let error =
            |cause| Error { method: Method::DELETE, path: "/link".to_owned(), cause, advice: None };
        let mas = |status| Cause::Mas { status, errors: vec!["x".to_owned()], retry_after: None };
        let synapse = |status, errcode: &str| Cause::Synapse {
            status,
            errcode: errcode.to_owned(),
            error: String::new(),
            retry_after: None,
        };
        let not_mas = Cause::NotMas { status: 504, excerpt: String::new(), retry_after: None };
        for (cause, is_transient) in [
            (mas(400), false),
            (mas(404), false),
            (mas(409), false),
            (mas(500), false),
            (mas(503), true),
            (not_mas, true),
            (synapse(404, "M_NOT_FOUND"), false),
            (synapse(404, "M_UNRECOGNIZED"), false),
            (Cause::Contradicted(String::new()), false),
            (Cause::Lost("cut".to_owned()), true),
            (Cause::TooLarge(Size(1)), false),
        ] {
            let token_request = Error { path: "/oauth2/token".to_owned(), ..error(cause) };
            let text = token_request.to_string();
            let error = error(Cause::NoToken(token_request.into()));
            assert_eq!(error.is_transient(), is_transient, "{error}");
            let judgements = [
                error.is_about_target(),
                error.is_not_found(),
                error.is_conflict(),
                error.is_unrecognized(),
                error.may_have_taken_effect(),
                error.is_about_size(Duration::MAX, Duration::ZERO),
                error.is_overload(),
            ];
            assert_eq!(judgements, [false; 7], "{error}");
            assert_eq!(error.to_string(), text);
            assert_eq!(error.message(), format!("no access token: {text}"));
        }
    }
}
