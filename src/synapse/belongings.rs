//! What an account has besides its devices: rooms, invitations, a key backup.

use std::collections::HashMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::json::{Scalar, object_or_default};
use super::reader::Reader;
use super::rooms::Membership;
use crate::http::Error;

/// The rooms of an account. Emptied rooms, also with a pending invitation, are not among them.
#[derive(Debug, Default)]
pub(crate) struct RoomsOfUser {
    pub joined: Vec<String>,
    /// Rooms to which the account is invited.
    pub invitations: u64,
}

impl Reader {
    /// Returns the rooms of an account; none of one that does not exist (Synapse 1.145).
    pub(crate) async fn rooms_of_user(&self, user_id: &str) -> Result<RoomsOfUser, Error> {
        let mut rooms = RoomsOfUser::default();
        for (room_id, membership) in self.memberships(user_id).await? {
            match membership {
                Membership::Join => rooms.joined.push(room_id),
                Membership::Invite => rooms.invitations += 1,
                Membership::Knock | Membership::Leave | Membership::Ban => {}
            }
        }
        Ok(rooms)
    }

    /// Returns an account's membership in each room in which it ever was (Synapse 1.145).
    pub(super) async fn memberships(
        &self,
        user_id: &str,
    ) -> Result<HashMap<String, Membership>, Error> {
        #[derive(Deserialize)]
        struct Memberships {
            memberships: HashMap<String, Scalar>,
        }
        let endpoint = "/_synapse/admin/v1/users/{}/memberships";
        let found: Memberships = self.get(endpoint, &[user_id], vec![]).await?;
        let known = found.memberships.into_iter().filter_map(|(room_id, membership)| {
            Some((room_id, membership.into_text()?.parse().ok()?))
        });
        Ok(known.collect())
    }

    /// Whether the account has a key for its server-side key backup in its account data (Synapse 1.57).
    ///
    /// The backup itself is not visible: one of a client that keeps the key to itself is missed.
    pub(crate) async fn has_key_backup(&self, user_id: &str) -> Result<bool, Error> {
        #[derive(Deserialize)]
        struct Found {
            account_data: AccountData,
        }
        #[derive(Deserialize)]
        struct AccountData {
            global: Global,
        }
        #[derive(Deserialize)]
        struct Global {
            #[serde(
                default,
                rename = "m.megolm_backup.v1",
                deserialize_with = "object_or_default"
            )]
            backup_key: BackupKey,
        }
        // Empty where a client deleted it.
        #[derive(Default, Deserialize)]
        struct BackupKey {
            encrypted: Option<IgnoredAny>,
        }
        let endpoint = "/_synapse/admin/v1/users/{}/accountdata";
        let found: Found = self.get(endpoint, &[user_id], vec![]).await?;
        Ok(found.account_data.global.backup_key.encrypted.is_some())
    }
}
