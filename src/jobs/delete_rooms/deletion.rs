//! One step of the deletion of a room: its shutdown, or its purge.

use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use super::memory::Memory;
use crate::plan::change::{Change, ChangeResult, Check, Lane, Warning};
use crate::plan::report::Action;
use crate::synapse::{self, FormerRoom, Reader, Removal, Writer};
use crate::values::duration::HumanDuration;
use crate::values::text::{format_count, join_some};

/// Between two rooms: Synapse is busy with a purge for some time after it has ended, and requests of others wait.
const PAUSE: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct Deletion {
    pub removal: Removal,
    pub block: bool,
    pub with_invites: bool,
    pub purge_after: HumanDuration,
    pub memory: Memory,
    pub room_id: String,
    pub target: String,
    pub server_name: String,
    /// The room as it was planned.
    pub former: FormerRoom,
}

impl Change for Deletion {
    fn action(&self) -> Action {
        match self.removal {
            Removal::Shutdown => Action::ShutDownRoom,
            Removal::Purge => Action::PurgeRoom,
        }
    }

    fn target(&self) -> String {
        self.target.clone()
    }

    fn lane(&self) -> Lane {
        Lane::RoomDeletion { pause: PAUSE }
    }

    fn warning(&self) -> Option<Warning> {
        self.former.encrypted.then_some(Warning::KeyBackups)
    }

    fn check<'a>(&'a self, reader: &'a Reader) -> BoxFuture<'a, Result<Check, synapse::Error>> {
        Box::pin(async move {
            let skip = |why: &str| Ok(Check::Skip(why.to_owned()));
            let tasks = reader.room_tasks(Some(&self.room_id)).await?.remove(&self.room_id);
            let tasks = tasks.unwrap_or_default();
            if tasks.is_purge_scheduled {
                return skip("Synapse has scheduled a purge of the room itself since the plan");
            }
            // One that was requested before a restart, of microglia or of Synapse, or whose response was lost.
            if let Some(delete_id) = tasks.under_way {
                return Ok(Check::Proceed(Some(json!({ "delete_id": delete_id }))));
            }
            // Synapse has no "only if empty", and would remove whoever joined.
            match reader.joined_members(&self.room_id).await {
                Ok(members) if members.len() == 0 => {}
                Ok(_) => return skip("somebody joined the room since the plan"),
                Err(error) if error.is_not_found() => return skip("the room no longer exists"),
                Err(error) => return Err(error),
            }
            let former = reader.former_room(&self.room_id, &self.server_name).await?;
            if former.is_none_or(|former| former.newest != self.former.newest) {
                return skip("something happened in the room since the plan");
            }
            Ok(Check::Proceed(match self.removal {
                Removal::Shutdown => None,
                Removal::Purge => Some(json!({ "aliases": self.local_aliases(reader).await })),
            }))
        })
    }

    fn apply<'a>(
        &'a self,
        writer: &'a Writer,
        before: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<ChangeResult, synapse::Error>> {
        Box::pin(async move {
            let under_way = before.and_then(|before| before["delete_id"].as_str());
            let delete_id = match under_way {
                Some(delete_id) => delete_id.to_owned(),
                None => writer.delete_room(&self.room_id, self.removal, self.block).await?,
            };
            let ended = writer.deletion_ended(&self.room_id, &delete_id).await?;
            let mut details = Vec::new();
            if under_way.is_some() {
                details.push("the deletion was under way already".to_owned());
            }
            let mut facts = Vec::new();
            match self.removal {
                Removal::Shutdown => {
                    let shut_down_ms = Some(ended.ended_at.timestamp_millis());
                    facts.push(Memory { shut_down_ms, ..self.memory }.fact(&self.room_id));
                    let after = self.purge_after;
                    details.push(format!("a run after {after} or more purges it"));
                }
                Removal::Purge => details.extend(freed_aliases(before)),
            }
            let removed = ended.removed_users.len() as u64;
            if removed > 0 && self.with_invites {
                let users = format_count(removed, "local user", "local users");
                details.push(format!("ended the invitations or knocks of {users}"));
            } else if removed > 0 {
                let users: Vec<&str> = ended.removed_users.iter().map(String::as_str).collect();
                details.push(format!(
                    "removed local users who joined or were invited in the last moment: {}",
                    join_some(&users)
                ));
            }
            let detail = (!details.is_empty()).then(|| details.join("; "));
            Ok(ChangeResult { facts, detail, ..ChangeResult::items(1) })
        })
    }
}

impl Deletion {
    /// The aliases of this server that still lead to the room.
    async fn local_aliases(&self, reader: &Reader) -> Vec<&str> {
        let mut found = Vec::new();
        for alias in &self.former.aliases {
            let server = alias.split_once(':').map(|(_, server)| server);
            if server == Some(&self.server_name)
                && reader.resolve_alias(alias).await.is_ok_and(|room_id| room_id == self.room_id)
            {
                found.push(alias.as_str());
            }
        }
        found
    }
}

/// Says which aliases anybody can register once the room is purged.
fn freed_aliases(before: Option<&Value>) -> Option<String> {
    let aliases = before?.get("aliases")?.as_array()?;
    let aliases: Vec<&str> = aliases.iter().filter_map(Value::as_str).collect();
    (!aliases.is_empty()).then(|| format!("anybody can register now: {}", join_some(&aliases)))
}
