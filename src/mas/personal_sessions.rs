//! Sessions with which the program itself acts as an account on the homeserver.

use std::fmt;
use std::time::Duration;

use reqwest::Method;
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::queries::SESSIONS;
use super::reader::Reader;
use super::resources::{PersonalSession, Resource};
use super::ulid::Ulid;
use crate::http::{Call, Error, Repeat, Response, validate_token};

/// Creates and ends personal sessions (MAS 1.5), for the program's own token alone.
#[derive(Debug)]
pub struct PersonalSessions(Reader);

/// A session and its token, which MAS does not show again.
pub struct IssuedToken {
    pub session: Resource<PersonalSession>,
    pub token: SecretString,
}

impl PersonalSessions {
    pub fn new(reader: Reader) -> Self {
        Self(reader)
    }

    /// Creates a session of `actor`. MAS creates the device in Synapse that `scope` names.
    ///
    /// A lost response may leave a session behind, which [`Reader::own_personal_sessions`] finds.
    pub async fn create(
        &self,
        actor: &Ulid,
        human_name: &str,
        scope: &str,
        life: Duration,
    ) -> Result<IssuedToken, Error> {
        let body = json!({
            "actor_user_id": actor.as_str(),
            "human_name": human_name,
            "scope": scope,
            "expires_in": seconds(life),
        });
        self.issue(SESSIONS, &[], body).await
    }

    /// Gives a session another token; Synapse may accept the old one for another two minutes.
    ///
    /// 403 if the session belongs to another client, 422 if it is revoked. Works after the token expired, too.
    pub async fn regenerate(&self, id: &Ulid, life: Duration) -> Result<IssuedToken, Error> {
        // Without `expires_in` the token would never expire.
        let body = json!({ "expires_in": seconds(life) });
        self.issue("/api/admin/v1/personal-sessions/{}/regenerate", &[id.as_str()], body).await
    }

    /// Ends a session; one that has ended is left as it is.
    pub async fn revoke(&self, id: &Ulid) -> Result<(), Error> {
        let ids = [id.as_str()];
        let call = self.0.call(Method::POST, "/api/admin/v1/personal-sessions/{}/revoke", &ids);
        let call = Call { repeat: Repeat::Always, ..call };
        match self.0.send(&call, &CancellationToken::new()).await {
            Err(error) if !error.is_conflict() => Err(error),
            _ => Ok(()),
        }
    }

    async fn issue(
        &self,
        endpoint: &'static str,
        ids: &[&str],
        body: serde_json::Value,
    ) -> Result<IssuedToken, Error> {
        let call = Call { body: Some(body), ..self.0.call(Method::POST, endpoint, ids) };
        issued(&self.0.send(&call, &CancellationToken::new()).await?)
    }
}

fn issued(response: &Response) -> Result<IssuedToken, Error> {
    #[derive(Deserialize)]
    struct Issued {
        data: Data,
    }
    #[derive(Deserialize)]
    struct Data {
        id: Ulid,
        attributes: Attributes,
    }
    #[derive(Deserialize)]
    struct Attributes {
        access_token: String,
        #[serde(flatten)]
        session: PersonalSession,
    }
    let Data { id, attributes } = response.decode_secret::<Issued>()?.data;
    if let Err(problem) = validate_token(&attributes.access_token) {
        return Err(response.unexpected(format!("the access token that MAS issued {problem}")));
    }
    let session = Resource { id, attributes: attributes.session };
    Ok(IssuedToken { session, token: attributes.access_token.into() })
}

/// For `expires_in`: at least a second, because a token with 0 is born expired.
fn seconds(life: Duration) -> u32 {
    u32::try_from(life.as_secs()).unwrap_or(u32::MAX).max(1)
}

impl fmt::Debug for IssuedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuedToken").field("session", &self.session).finish_non_exhaustive()
    }
}
