//! Accounts, as Synapse's user admin API returns them.

use serde::{Deserialize, Serialize};

use super::json::{flag, id, milliseconds, optional_id, optional_text, seconds};
use crate::values::clock::Timestamp;

/// An account in the list, which shows neither external ids nor suspension nor the bridge that owns it.
#[derive(Debug, Clone, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "Synapse's own fields")]
pub struct UserRow {
    #[serde(deserialize_with = "id")]
    pub name: String,
    pub user_type: Option<String>,
    #[serde(default, deserialize_with = "flag")]
    pub is_guest: bool,
    #[serde(default, deserialize_with = "flag")]
    pub admin: bool,
    #[serde(default, deserialize_with = "flag")]
    pub deactivated: bool,
    #[serde(default, deserialize_with = "flag")]
    pub locked: bool,
    #[serde(default, deserialize_with = "optional_text")]
    pub avatar_url: Option<String>,
    #[serde(default, rename = "creation_ts", deserialize_with = "milliseconds")]
    pub created_at: Option<Timestamp>,
    /// Of its devices, or only if they show no use, of its requests (since Synapse 1.140).
    #[serde(default, rename = "last_seen_ts", deserialize_with = "milliseconds")]
    pub last_seen_at: Option<Timestamp>,
}

/// An account from `GET /v2/users/<id>`.
#[derive(Debug, Clone, Deserialize)]
#[expect(
    clippy::struct_excessive_bools,
    clippy::struct_field_names,
    reason = "Synapse's own fields"
)]
pub struct User {
    #[serde(deserialize_with = "id")]
    pub name: String,
    pub user_type: Option<String>,
    #[serde(default, deserialize_with = "flag")]
    pub is_guest: bool,
    #[serde(default, deserialize_with = "flag")]
    pub admin: bool,
    #[serde(default, deserialize_with = "flag")]
    pub deactivated: bool,
    #[serde(default, deserialize_with = "flag")]
    pub locked: bool,
    /// Since Synapse 1.121.
    #[serde(default, deserialize_with = "flag")]
    pub suspended: bool,
    /// The bridge that owns the account.
    #[serde(default, deserialize_with = "optional_id")]
    pub appservice_id: Option<String>,
    #[serde(default, deserialize_with = "optional_text")]
    pub avatar_url: Option<String>,
    #[serde(default)]
    pub external_ids: Vec<ExternalId>,
    /// In seconds here, and in milliseconds in the list.
    #[serde(default, rename = "creation_ts", deserialize_with = "seconds")]
    pub created_at: Option<Timestamp>,
    /// Of its requests.
    #[serde(default, rename = "last_seen_ts", deserialize_with = "milliseconds")]
    pub last_seen_at: Option<Timestamp>,
}

/// A device of an account. Cross-signing keys, which Synapse stores as devices, are not among them.
#[derive(Debug, Clone, Deserialize)]
pub struct Device {
    #[serde(rename = "device_id", deserialize_with = "id")]
    pub id: String,
    #[serde(default, deserialize_with = "optional_text")]
    pub display_name: Option<String>,
    /// `None` for one that logged in and was not used since, that a bridge uses, or that is dehydrated.
    #[serde(default, rename = "last_seen_ts", deserialize_with = "milliseconds")]
    pub last_seen_at: Option<Timestamp>,
    /// Holds keys for messages that arrive while the person has no other device (since Synapse 1.132).
    #[serde(default, deserialize_with = "flag")]
    pub dehydrated: bool,
}

/// An SSO identity that can log in to an account.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ExternalId {
    pub auth_provider: String,
    pub external_id: String,
}

impl std::fmt::Display for ExternalId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.auth_provider, self.external_id)
    }
}
