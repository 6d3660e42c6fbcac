//! Who we are to a homeserver, and what it is.

use std::fmt;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize;

use super::error::{self, Cause, Error};
use super::id;
use super::reader::Reader;
use super::transport::Base;
use super::users::User;

/// What one look at a homeserver and a token tells.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The account of the token.
    pub account: User,
    /// The part of Matrix ids after the first colon; not the host of the URL.
    pub server_name: String,
    pub version: Version,
    /// The version as Synapse says it.
    pub version_text: String,
    /// Whether accounts live in the Matrix Authentication Service.
    pub mas: bool,
    /// How far the local clock is ahead of the homeserver's `Date`, to a second; `None` where a proxy drops the header.
    pub clock_ahead: Option<TimeDelta>,
}

/// Synapse's version as far as it decides anything: the first two numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

/// Served without a token.
pub const VERSION_ENDPOINT: &str = "/_synapse/admin/v1/server_version";

impl Version {
    /// Takes what `server_version` says: `1.163.2`, `1.147.0rc1`, `0.99.2rc1 (b=develop,abcdef)`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.').map(|part| {
            part.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok()
        });
        Some(Self(parts.next()??, parts.next()??))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl Reader {
    /// Asks once per run who we are: account, admin rights, version, MAS, clock.
    ///
    /// A token that is dead or no server admin's is an error here, before anything else is asked.
    pub async fn identity(&self) -> Result<&Identity, Error> {
        self.identity.get_or_try_init(|| self.ask_identity()).await
    }

    async fn ask_identity(&self) -> Result<Identity, Error> {
        let asked = self.clock.now();
        let (user_id, date) = self.whoami().await?;
        let answered = self.clock.now();
        let clock_ahead =
            date.and_then(|date| DateTime::parse_from_rfc2822(&date).ok()).map(|date| {
                let date = date.with_timezone(&Utc);
                // `Date` has whole seconds and was written somewhere between the two looks at our clock.
                // A proxy can send a date at the end of what a timestamp can hold.
                let latest = date.checked_add_signed(TimeDelta::seconds(1));
                match () {
                    () if latest.is_some_and(|latest| asked > latest) => asked - date,
                    () if answered < date => answered - date,
                    () => TimeDelta::zero(),
                }
            });
        let version_text = self.version().await?;
        let version = Version::parse(&version_text).unwrap_or(Version(0, 0));
        let mas = self.delegates_to_mas().await?;
        let account = self.user(&user_id).await?;
        let server_name =
            user_id.split_once(':').map(|(_, name)| name.to_owned()).unwrap_or_default();
        Ok(Identity { account, server_name, version, version_text, mas, clock_ahead })
    }

    /// The account of the token, and the `Date` of the answer.
    pub async fn whoami(&self) -> Result<(String, Option<String>), Error> {
        #[derive(Deserialize)]
        struct Whoami {
            #[serde(deserialize_with = "id")]
            user_id: String,
        }
        let answer = self
            .get_from(Base::Homeserver, "/_matrix/client/v3/account/whoami", &[], vec![])
            .await?;
        Ok((answer.decode::<Whoami>()?.user_id, answer.date))
    }

    /// The version as Synapse says it, which begins with two numbers; answered without any token, so that it proves nothing about one.
    pub async fn version(&self) -> Result<String, Error> {
        #[derive(Deserialize)]
        struct Answer {
            server_version: String,
        }
        let answer = self.get_from(Base::Homeserver, VERSION_ENDPOINT, &[], vec![]).await?;
        let text = answer.decode::<Answer>()?.server_version;
        let text = error::line(&text, 100);
        match Version::parse(&text) {
            Some(_) => Ok(text),
            None => Err(answer.unexpected(format!(
                "Synapse says that its version is {text:?}, which is no version"
            ))),
        }
    }

    /// Only a Synapse that delegates to MAS serves this endpoint (stable since 1.123); older ones refuse guests in the list of users.
    pub async fn delegates_to_mas(&self) -> Result<bool, Error> {
        match self.get_from(Base::Homeserver, "/_matrix/client/v1/auth_metadata", &[], vec![]).await
        {
            // Where it fails with 500, Synapse delegates as well: it asked MAS for the answer, and MAS did not give it.
            Ok(_) | Err(Error { cause: Cause::Synapse { status: 500, .. }, .. }) => Ok(true),
            Err(error) if error.is_unrecognized() || error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_with_whatever_follows_them() {
        let read = ["1.163.2", "1.147.0rc1", "0.99.2rc1 (b=develop,abcdef)", "1.78"]
            .map(|text| Version::parse(text).unwrap());
        assert_eq!(read, [Version(1, 163), Version(1, 147), Version(0, 99), Version(1, 78)]);
        assert_eq!(Version::parse("develop"), None);
        assert!(Version(1, 78) < Version(1, 123));
    }
}
