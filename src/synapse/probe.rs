//! Queries about the homeserver itself and the account of the token.

use chrono::{DateTime, TimeDelta};
use serde::Deserialize;

use super::identity::{Identity, VERSION_ENDPOINT, Version};
use super::json::id;
use super::reader::Reader;
use crate::http::{Base, Cause, Error, Response, one_line};
use crate::values::clock::Timestamp;

/// Whose token it is.
#[derive(Debug, Deserialize)]
pub struct Whoami {
    #[serde(deserialize_with = "id")]
    pub user_id: String,
    #[serde(default)]
    pub device_id: Option<String>,
    /// The `Date` header of the response.
    #[serde(skip)]
    pub(crate) date: Option<String>,
}

const AUTH_METADATA: &str = "/_matrix/client/v1/auth_metadata";

impl Reader {
    /// Returns account, admin rights, version, MAS and clock; requested once per run.
    ///
    /// A token that is invalid or does not belong to a server admin is an error here, before any other request.
    pub(crate) async fn identity(&self) -> Result<&Identity, Error> {
        self.identity.get_or_try_init(|| self.read_identity()).await
    }

    async fn read_identity(&self) -> Result<Identity, Error> {
        let sent_at = self.clock.now();
        let Whoami { user_id, date, .. } = self.whoami().await?;
        let received_at = self.clock.now();
        let version_text = self.version().await?;
        let version = Version::parse(&version_text).unwrap_or(Version(0, 0));
        let mas = self.delegates_to_mas().await?;
        let account = self.user(&user_id).await?;
        let server_name =
            user_id.split_once(':').map(|(_, name)| name.to_owned()).unwrap_or_default();
        let clock_ahead = date
            .and_then(|date| DateTime::parse_from_rfc2822(&date).ok())
            .map(|date| clock_ahead(date.to_utc(), sent_at, received_at));
        Ok(Identity { account, server_name, version, version_text, mas, clock_ahead })
    }

    /// Returns whose token it is.
    pub async fn whoami(&self) -> Result<Whoami, Error> {
        let response = self
            .get_from(Base::Homeserver, "/_matrix/client/v3/account/whoami", &[], vec![])
            .await?;
        Ok(Whoami { date: response.date.clone(), ..response.decode()? })
    }

    /// Returns the version as Synapse reports it, which begins with two numbers; does not check the token.
    pub async fn version(&self) -> Result<String, Error> {
        Self::version_in(&self.get_from(Base::Homeserver, VERSION_ENDPOINT, &[], vec![]).await?)
    }

    pub(super) fn version_in(response: &Response) -> Result<String, Error> {
        #[derive(Deserialize)]
        struct ServerVersion {
            server_version: String,
        }
        let text = response.decode::<ServerVersion>()?.server_version;
        let text = one_line(&text, 100);
        match Version::parse(&text) {
            Some(_) => Ok(text),
            None => {
                Err(response.unexpected(format!("Synapse reports an invalid version: {text:?}")))
            }
        }
    }

    /// Whether Synapse reaches the MAS that it delegates to; `None` where it delegates to none.
    pub(crate) async fn reaches_mas(&self) -> Result<Option<bool>, Error> {
        match self.get_from(Base::Homeserver, AUTH_METADATA, &[], vec![]).await {
            Ok(_) => Ok(Some(true)),
            // It requests the metadata from MAS, which did not respond since Synapse was started.
            Err(Error { cause: Cause::Synapse { status: 500, .. }, .. }) => Ok(Some(false)),
            Err(error) if error.is_unrecognized() || error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether MAS manages the accounts: only a Synapse that delegates to it serves this endpoint (stable since 1.123).
    pub(crate) async fn delegates_to_mas(&self) -> Result<bool, Error> {
        Ok(self.reaches_mas().await?.is_some())
    }
}

/// How far the local clock is ahead of `date`, which the homeserver wrote between `sent_at` and `received_at`.
///
/// `Date` has whole seconds.
fn clock_ahead(date: Timestamp, sent_at: Timestamp, received_at: Timestamp) -> TimeDelta {
    // A proxy can send a date at the end of the range of a timestamp.
    let latest = date.checked_add_signed(TimeDelta::seconds(1));
    if latest.is_some_and(|latest| sent_at > latest) {
        sent_at - date
    } else if received_at < date {
        received_at - date
    } else {
        TimeDelta::zero()
    }
}
