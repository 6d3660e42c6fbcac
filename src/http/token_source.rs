//! Where the access token of a server comes from.

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use secrecy::{ExposeSecret, SecretString};

use super::error::{Cause, Error, NoToken};
use super::request::Outgoing;
use super::retry::TokenState;
use super::token::Token;

/// Where the access token of a server comes from.
#[derive(Debug)]
pub enum TokenSource {
    /// From the configuration, or a file that it names.
    Configured(Token),
    Issued(Arc<dyn Issuer>),
    /// There is none: only requests that bring their own authorization can be sent.
    Absent,
}

/// Has access tokens issued, and keeps them as long as they are valid.
pub trait Issuer: fmt::Debug + Send + Sync {
    /// The token now; a new one where there is none that is valid.
    fn token(&self) -> BoxFuture<'_, Result<SecretString, NoToken>>;

    /// Takes note that the server refused `token` with `error`; returns whether [`Self::token`] should be asked again.
    fn refused<'a>(&'a self, token: &'a SecretString, error: &'a Error) -> BoxFuture<'a, bool>;

    /// What to do when the server goes on refusing its tokens.
    fn remedy(&self) -> String;
}

/// Synapse answers them without a token, so that they work before one can be issued.
const PUBLIC_ENDPOINTS: [&str; 2] =
    ["/_synapse/admin/v1/server_version", "/_matrix/client/v1/auth_metadata"];

impl TokenSource {
    /// Whether a request has to carry a token; one that exists anyway does no harm.
    pub(super) fn is_needed_for(&self, endpoint: &str) -> bool {
        matches!(self, Self::Configured(_)) || !PUBLIC_ENDPOINTS.contains(&endpoint)
    }

    /// The token for a request.
    pub(super) async fn current(&self, outgoing: &Outgoing<'_>) -> Result<SecretString, Error> {
        match self {
            Self::Configured(token) => Ok(token.current().await),
            Self::Issued(issuer) => {
                let token = issuer.token().await;
                token.map_err(|why| outgoing.error(Cause::NoToken(why), None))
            }
            Self::Absent => {
                let problem = "there is no access token for it".to_owned();
                Err(outgoing.error(Cause::NotSent(problem), None))
            }
        }
    }

    /// Whether there is another token than `used`, which the server refused with `error`.
    pub(super) async fn state_after_refusal(
        &self,
        error: &Error,
        used: &SecretString,
    ) -> TokenState {
        let is_renewed = match self {
            Self::Configured(token) => {
                token.current().await.expose_secret() != used.expose_secret()
            }
            Self::Issued(issuer) => issuer.refused(used, error).await,
            Self::Absent => false,
        };
        if is_renewed { TokenState::Renewed } else { TokenState::Unchanged }
    }

    /// What to do when the server rejects the token.
    pub(super) fn remedy(&self) -> String {
        match self {
            Self::Configured(token) => token.remedy(),
            Self::Issued(issuer) => issuer.remedy(),
            Self::Absent => "configure an access token".to_owned(),
        }
    }
}
