//! Registration tokens, as Synapse keeps them; where MAS manages the accounts, it has none.

use reqwest::Method;
use serde::{Deserialize, Serialize};

use super::json::id;
use super::reader::Reader;
use super::writer::Writer;
use crate::http::Error;

/// A token that people register with. Synapse records neither when it was created nor when it was used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RegistrationToken {
    #[serde(deserialize_with = "id")]
    pub token: String,
    /// `None` without a limit.
    pub uses_allowed: Option<u64>,
    /// Registrations that have begun with it, and have not ended.
    pub pending: u64,
    pub completed: u64,
    /// In milliseconds since 1970; `None` if it never expires.
    pub expiry_time: Option<i64>,
}

const TOKENS: &str = "/_synapse/admin/v1/registration_tokens";
const TOKEN: &str = "/_synapse/admin/v1/registration_tokens/{}";

impl Reader {
    /// Returns all registration tokens (`GET /v1/registration_tokens`, Synapse 1.42), which Synapse lists in one response.
    pub(crate) async fn registration_tokens(&self) -> Result<Vec<RegistrationToken>, Error> {
        #[derive(Deserialize)]
        struct Tokens {
            registration_tokens: Vec<RegistrationToken>,
        }
        Ok(self.get::<Tokens>(TOKENS, &[], vec![]).await?.registration_tokens)
    }

    /// Returns one token; `None` if there is none of that name.
    pub(crate) async fn registration_token(
        &self,
        token: &str,
    ) -> Result<Option<RegistrationToken>, Error> {
        match self.get(TOKEN, &[token], vec![]).await {
            Err(error) if error.is_not_found() => Ok(None),
            found => found.map(Some),
        }
    }
}

impl Writer {
    /// Deletes a token; one that does not exist is as good as deleted.
    pub(crate) async fn delete_registration_token(&self, token: &str) -> Result<(), Error> {
        match self.send_repeatable(Method::DELETE, TOKEN, &[token], None).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}
