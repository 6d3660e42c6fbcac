//! The token for MAS's Admin API, issued to an OAuth 2.0 client for its secret.

use std::fmt;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::ulid::Ulid;
use crate::http::{
    Cause, Error, Form, Issuer, NoToken, Response, ResponseMonitor, Session, Token, Transport,
    validate_token,
};
use crate::values::clock::Clock;

/// Has tokens issued for client credentials, and keeps one until most of its life is over.
///
/// Each one is a session in MAS's database.
pub(super) struct ClientCredentials {
    client_id: Ulid,
    secret: Token,
    /// The listeners that may serve the token endpoint, in the order in which they are tried.
    listeners: Vec<Transport>,
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    token: Option<Issued>,
    /// Why the last request for a token failed.
    failure: Option<Failure>,
    /// When a token was last replaced because MAS refused it.
    replaced_at: Option<Instant>,
    /// The listener that serves the token endpoint.
    listener: usize,
}

struct Issued {
    token: SecretString,
    renew_at: Instant,
}

struct Failure {
    error: Error,
    at: Instant,
    secret: SecretString,
}

/// Path of MAS's token endpoint on every listener with the resource `oauth`; not taken from the discovery document.
///
/// That names public URLs only, which may not be reachable from here, and the client secret is sent only to addresses
/// of the configuration.
const TOKEN_ENDPOINT: &str = "/oauth2/token";
const SCOPE: &str = "urn:mas:admin";
const FIELDS: &str = "grant_type=client_credentials&scope=urn%3Amas%3Aadmin";
/// How much of its life a token is used.
const USED_LIFE: f64 = 0.8;
/// Where MAS does not say how long a token lives.
const DEFAULT_LIFE: Duration = Duration::from_mins(5);
const MAX_LIFE: Duration = Duration::from_hours(24);
/// Credentials that MAS does not accept are tried again after this, or with another secret; and this long after a token
/// was replaced because it was refused, the next one is not.
const RETRY_INTERVAL: Duration = Duration::from_mins(1);

impl ClientCredentials {
    pub(super) fn new(
        client_id: Ulid,
        secret: Token,
        listeners: Vec<Transport>,
        clock: Clock,
    ) -> Self {
        Self { client_id, secret, listeners, clock, state: Mutex::default() }
    }

    /// Concurrent requests wait for the one that asks MAS, and share its result, be it a failure.
    async fn current(&self) -> Result<SecretString, Error> {
        let asked_at = Instant::now();
        let mut state = self.state.lock().await;
        let now = Instant::now();
        if let Some(issued) = state.token.as_ref().filter(|issued| now < issued.renew_at) {
            return Ok(issued.token.clone());
        }
        let secret = self.secret.current().await;
        if let Some(failure) = &state.failure
            && (failure.at >= asked_at || failure.is_final(now, &secret))
        {
            return Err(failure.error.clone());
        }
        (state.token, state.failure) = (None, None);
        match self.issue(&mut state.listener, &secret).await {
            Ok(issued) => Ok(state.token.insert(issued).token.clone()),
            Err(error) => {
                let at = Instant::now();
                state.failure = Some(Failure { error: error.clone(), at, secret });
                Err(error)
            }
        }
    }

    /// Asks the listener that served the endpoint last, then those behind it.
    async fn issue(&self, listener: &mut usize, secret: &SecretString) -> Result<Issued, Error> {
        let form = Form {
            endpoint: TOKEN_ENDPOINT,
            fields: FIELDS,
            client_id: self.client_id.as_str(),
            client_secret: secret,
        };
        let (monitor, never) = (ResponseMonitor::default(), CancellationToken::new());
        let session = Session { monitor: &monitor, cancel: &never, clock: &self.clock };
        let mut outcome = None;
        for (index, transport) in self.listeners.iter().enumerate().skip(*listener) {
            let asked_at = Instant::now();
            match transport.send_form(&form, session).await {
                Ok(response) => {
                    *listener = index;
                    return issued(&response, asked_at);
                }
                Err(error) if matches!(error.cause, Cause::NotMas { status: 404 | 405, .. }) => {
                    outcome = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        // After a change of MAS's listeners all are tried again.
        *listener = 0;
        Err(outcome.unwrap_or_else(|| Error {
            method: reqwest::Method::POST,
            path: TOKEN_ENDPOINT.to_owned(),
            cause: Cause::NotSent("no listener of MAS is known".to_owned()),
            advice: None,
        }))
    }
}

impl Failure {
    /// Whether MAS does not accept these credentials, and need not be asked again yet.
    fn is_final(&self, now: Instant, secret: &SecretString) -> bool {
        !self.error.is_transient()
            && now < self.at + RETRY_INTERVAL
            && self.secret.expose_secret() == secret.expose_secret()
    }
}

/// The token in a response to a request that was sent at `asked_at`.
fn issued(response: &Response, asked_at: Instant) -> Result<Issued, Error> {
    #[derive(Deserialize)]
    struct Granted {
        access_token: String,
        expires_in: Option<u64>,
        scope: Option<String>,
    }
    let Granted { access_token, expires_in, scope } = response.decode_secret()?;
    if let Err(problem) = validate_token(&access_token) {
        return Err(response.unexpected(format!("the access token that MAS issued {problem}")));
    }
    let has_scope = |scopes: &String| scopes.split(' ').any(|scope| scope == SCOPE);
    if !scope.as_ref().is_none_or(has_scope) {
        return Err(response.unexpected(format!("MAS issued a token without the scope {SCOPE}")));
    }
    let life = expires_in.map_or(DEFAULT_LIFE, Duration::from_secs).min(MAX_LIFE);
    Ok(Issued { token: access_token.into(), renew_at: asked_at + life.mul_f64(USED_LIFE) })
}

impl Issuer for ClientCredentials {
    fn token(&self) -> BoxFuture<'_, Result<SecretString, NoToken>> {
        async { Ok(self.current().await?) }.boxed()
    }

    fn refused<'a>(&'a self, token: &'a SecretString, error: &'a Error) -> BoxFuture<'a, bool> {
        let refused = async move {
            if !error.is_about_expired_token() {
                return false;
            }
            let mut state = self.state.lock().await;
            let is_current = state
                .token
                .as_ref()
                .is_some_and(|issued| issued.token.expose_secret() == token.expose_secret());
            if !is_current {
                return true;
            }
            let now = Instant::now();
            if state.replaced_at.is_some_and(|at| now < at + RETRY_INTERVAL) {
                return false;
            }
            (state.token, state.replaced_at) = (None, Some(now));
            true
        };
        refused.boxed()
    }

    fn remedy(&self) -> String {
        "check `client_id` and `client_secret_file` in [homeservers.NAME.mas]".to_owned()
    }
}

impl fmt::Debug for ClientCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCredentials")
            .field("client_id", &self.client_id)
            .finish_non_exhaustive()
    }
}
