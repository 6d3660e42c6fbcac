//! What MAS's Admin API returns, as far as it is used.

use serde::{Deserialize, Deserializer, de};

use super::ulid::Ulid;
use crate::values::clock::Timestamp;

/// One object with its id.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Resource<T> {
    pub id: Ulid,
    pub attributes: T,
}

/// A response about one object.
#[derive(Deserialize)]
pub(super) struct Single<T> {
    pub data: Resource<T>,
}

/// An account. `locked_at` and `deactivated_at` are independent of each other.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct User {
    /// The localpart of its Matrix id.
    #[serde(deserialize_with = "bounded")]
    pub username: String,
    pub locked_at: Option<Timestamp>,
    pub deactivated_at: Option<Timestamp>,
    /// Whether it may request admin scopes, which is what makes a server admin under MAS.
    pub admin: bool,
    /// Whether it was a guest before the homeserver delegated to MAS (MAS 1.3).
    #[serde(default)]
    pub legacy_guest: bool,
}

/// A session of a user, of any kind. A session that ended is deleted after 30 days.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Session {
    pub created_at: Timestamp,
    /// Up to a minute late; `None` until then.
    pub last_active_at: Option<Timestamp>,
}

/// An identity provider of MAS.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Provider {
    #[serde(default, deserialize_with = "optional")]
    pub issuer: Option<String>,
    #[serde(default, deserialize_with = "optional")]
    pub human_name: Option<String>,
    #[serde(default, deserialize_with = "optional")]
    pub brand_name: Option<String>,
    pub disabled_at: Option<Timestamp>,
}

/// The link between an identity at a provider and an account.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Link {
    pub created_at: Timestamp,
    pub provider_id: Ulid,
    /// The identity; unique at its provider.
    #[serde(deserialize_with = "bounded")]
    pub subject: String,
    /// `None` for an orphan: somebody began to log in and was not let in.
    pub user_id: Option<Ulid>,
    #[serde(default, deserialize_with = "optional")]
    pub human_account_name: Option<String>,
}

/// A session that acts as a user; its token is only in the response that issued it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct PersonalSession {
    pub revoked_at: Option<Timestamp>,
    pub owner_client_id: Option<Ulid>,
    pub actor_user_id: Ulid,
    /// Separated by spaces.
    #[serde(deserialize_with = "bounded")]
    pub scope: String,
    /// Of its present token; `None` if that never expires, or the session is revoked.
    pub expires_at: Option<Timestamp>,
}

/// A session of a client that logged in with OAuth 2.0.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct OAuth2Session {
    /// `None` for a client that acts for nobody.
    pub user_id: Option<Ulid>,
    /// Separated by spaces.
    #[serde(deserialize_with = "bounded")]
    pub scope: String,
    pub last_active_at: Option<Timestamp>,
    #[serde(default, deserialize_with = "optional")]
    pub human_name: Option<String>,
}

/// A session of a client that logged in with Matrix's own login.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct CompatSession {
    pub user_id: Ulid,
    #[serde(default, deserialize_with = "optional")]
    pub device_id: Option<String>,
    pub last_active_at: Option<Timestamp>,
    #[serde(default, deserialize_with = "optional")]
    pub human_name: Option<String>,
}

/// A token that people register with.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RegistrationToken {
    #[serde(deserialize_with = "bounded")]
    pub token: String,
    /// `None` without a limit.
    pub usage_limit: Option<u64>,
    pub times_used: u64,
    pub created_at: Timestamp,
    pub last_used_at: Option<Timestamp>,
    /// `None` if it never expires.
    pub expires_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
}

/// What MAS is configured for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct SiteConfig {
    /// The server name of the homeserver.
    #[serde(deserialize_with = "bounded")]
    pub server_name: String,
    pub password_login_enabled: bool,
}

/// Longer texts would fill history and log.
const MAX_BYTES: usize = 4096;

fn bounded<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.len() > MAX_BYTES {
        return Err(de::Error::custom(format!("a text of {} bytes is too long", text.len())));
    }
    Ok(text)
}

fn optional<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    struct Bounded(#[serde(deserialize_with = "bounded")] String);
    Ok(Option::<Bounded>::deserialize(deserializer)?.map(|text| text.0))
}
