//! The purge of one room's history.

use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use crate::plan::change::{Change, ChangeResult, Check, Lane};
use crate::plan::report::Action;
use crate::synapse::{self, OldHistory, Reader, RoomRow, Writer};
use crate::values::clock::{Timestamp, format_time};
use crate::values::text::{format_count, format_number};

/// Between two rooms, for Synapse to free the state that only the purged messages used.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Purge {
    pub row: RoomRow,
    pub old: OldHistory,
    /// Nothing that was sent later may go.
    pub before: Timestamp,
    pub delete_local_events: bool,
}

impl Change for Purge {
    fn action(&self) -> Action {
        Action::PurgeHistory
    }

    fn target(&self) -> String {
        let OldHistory { first_kept, first_kept_ms, events, has_more, .. } = &self.old;
        let events = match has_more {
            true => format!("more than {} messages", format_number(*events)),
            false => format_count(*events, "message", "messages"),
        };
        let time = Timestamp::from_timestamp_millis(*first_kept_ms).unwrap_or_default();
        let encrypted = if self.row.encryption.is_some() { "encrypted" } else { "not encrypted" };
        format!(
            "{} ({encrypted}): {events} before {first_kept} of {}",
            self.row.label(),
            format_time(time)
        )
    }

    fn lane(&self) -> Lane {
        Lane::RoomDeletion { pause: PAUSE }
    }

    fn check<'a>(&'a self, reader: &'a Reader) -> BoxFuture<'a, Result<Check, synapse::Error>> {
        Box::pin(async move {
            let room_id = &self.row.room_id;
            if let Some(purge_id) = reader.history_purge_under_way(room_id).await? {
                return Ok(Check::Proceed(Some(json!({ "purge_id": purge_id }))));
            }
            let row = reader.room(room_id).await?;
            if row.joined_members > row.joined_local_members {
                return Ok(Check::Skip(
                    "users of other servers joined the room since the plan".to_owned(),
                ));
            }
            let old = reader.history_before(room_id, self.before).await?;
            if old.is_none_or(|old| old.first_kept != self.old.first_kept || old.has_newer) {
                return Ok(Check::Skip("the old messages changed since the plan".to_owned()));
            }
            Ok(Check::Proceed(None))
        })
    }

    fn apply<'a>(
        &'a self,
        writer: &'a Writer,
        before: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<ChangeResult, synapse::Error>> {
        Box::pin(async move {
            let room_id = &self.row.room_id;
            let under_way = before.and_then(|before| before["purge_id"].as_str());
            let purge_id = if let Some(purge_id) = under_way {
                purge_id.to_owned()
            } else {
                let first_kept = &self.old.first_kept;
                writer.purge_history(room_id, first_kept, self.delete_local_events).await?
            };
            writer.history_purge_ended(room_id, &purge_id).await?;
            let detail = under_way.map(|_| "the purge was under way already".to_owned());
            Ok(ChangeResult { detail, ..ChangeResult::items(1) })
        })
    }
}
