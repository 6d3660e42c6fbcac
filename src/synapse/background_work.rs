//! What Synapse does on its own account that a run had better not disturb.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::json::{flag, id};
use super::reader::Reader;
use crate::http::{Cause, Error};
use crate::values::string_enum::string_enum;

string_enum! {
    /// Work of Synapse that runs wait for.
    pub enum YieldTo {
        /// Changes of the database schema after an upgrade; some requests fail meanwhile.
        BackgroundUpdates = "background-updates",
        /// Deletions of rooms and of their history.
        RoomPurges = "room-purges",
    }
}

/// `GET /v1/background_updates/status` (Synapse 1.47): at most one update per database, by the name of the database.
#[derive(Debug, Deserialize)]
struct BackgroundUpdates {
    #[serde(default, deserialize_with = "flag")]
    enabled: bool,
    #[serde(default)]
    current_updates: BTreeMap<String, BackgroundUpdate>,
}

#[derive(Debug, Deserialize)]
struct BackgroundUpdate {
    #[serde(deserialize_with = "id")]
    name: String,
}

impl Reader {
    /// Returns what of `yield_to` Synapse is doing now; it completes "waiting for", and names no room.
    ///
    /// An older Synapse, or a proxy that does not forward these endpoints, cannot tell: then there is nothing to wait for.
    pub(crate) async fn background_work(
        &self,
        yield_to: &[YieldTo],
    ) -> Result<Option<String>, Error> {
        for work in yield_to {
            let found = match work {
                YieldTo::BackgroundUpdates => self.background_update().await,
                YieldTo::RoomPurges => self.active_room_purges().await.map(|purges| match purges {
                    0 => None,
                    1 => Some("Synapse to finish a purge of a room".to_owned()),
                    many => Some(format!("Synapse to finish {many} purges of rooms")),
                }),
            };
            match found {
                Ok(None) => {}
                Ok(found) => return Ok(found),
                Err(error) if error.is_transient() && !is_of_a_proxy(&error) => return Err(error),
                Err(error) => {
                    tracing::debug!(target: "microglia::homeserver", "cannot tell whether Synapse is busy with {work}: {error}");
                }
            }
        }
        Ok(None)
    }

    async fn background_update(&self) -> Result<Option<String>, Error> {
        let path = "/_synapse/admin/v1/background_updates/status";
        let updates: BackgroundUpdates = self.get(path, &[], vec![]).await?;
        // While they are disabled, the current one does not continue.
        let current = updates.current_updates.into_values().next().filter(|_| updates.enabled);
        Ok(current.map(|update| format!("Synapse to finish the background update {}", update.name)))
    }
}

/// Whether the response is none of Synapse's: repeating the request would bring the same.
fn is_of_a_proxy(error: &Error) -> bool {
    matches!(error.cause, Cause::Undecodable { .. })
}
