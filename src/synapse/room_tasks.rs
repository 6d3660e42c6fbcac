//! The tasks in which Synapse deletes rooms, its own and those that a server admin requested.

use std::collections::HashMap;

use serde::Deserialize;

use super::json::{id, ids, object_or_default, optional_id, optional_text};
use super::reader::Reader;
use crate::http::Error;

/// What Synapse does, or did in the last seven days, to delete a room.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RoomTasks {
    /// Synapse purges the room on its own account, now or later (`forgotten_room_retention_period`).
    pub is_purge_scheduled: bool,
    /// The id of a requested deletion that has not ended.
    pub under_way: Option<String>,
    /// When the last deletion succeeded, in milliseconds since 1970.
    pub done_ms: Option<i64>,
    /// When the last deletion failed, and why.
    failed: Option<(i64, String)>,
}

/// How a requested deletion stands.
#[derive(Debug, Deserialize)]
pub(super) struct DeletionStatus {
    #[serde(deserialize_with = "id")]
    pub status: String,
    #[serde(default, deserialize_with = "object_or_default")]
    pub shutdown_room: Shutdown,
}

/// How a requested purge of a room's history stands.
#[derive(Debug, Deserialize)]
pub(super) struct HistoryPurgeStatus {
    #[serde(deserialize_with = "id")]
    pub status: String,
    #[serde(default, deserialize_with = "optional_text")]
    pub error: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Shutdown {
    /// Local users who were in the room, invited or knocking.
    #[serde(default, deserialize_with = "ids")]
    pub kicked_users: Vec<String>,
}

const PURGE: &str = "purge_room";
const HISTORY_PURGE: &str = "purge_history";
const DELETION: &str = "shutdown_and_purge_room";

#[derive(Debug, Deserialize)]
struct Task {
    #[serde(deserialize_with = "id")]
    id: String,
    #[serde(deserialize_with = "id")]
    action: String,
    #[serde(deserialize_with = "id")]
    status: String,
    timestamp_ms: i64,
    #[serde(default, deserialize_with = "optional_id")]
    resource_id: Option<String>,
    #[serde(default, deserialize_with = "optional_text")]
    error: Option<String>,
}

impl Task {
    /// Active, or waiting for its turn.
    fn is_under_way(&self) -> bool {
        !matches!(self.status.as_str(), "complete" | "failed" | "cancelled")
    }
}

impl Reader {
    /// Returns the tasks of one room, or of all rooms that have any (`GET /v1/scheduled_tasks`, Synapse 1.130).
    pub(crate) async fn room_tasks(
        &self,
        room_id: Option<&str>,
    ) -> Result<HashMap<String, RoomTasks>, Error> {
        let mut query =
            vec![("action_name", PURGE.to_owned()), ("action_name", DELETION.to_owned())];
        query.extend(room_id.map(|room_id| ("resource_id", room_id.to_owned())));
        let mut rooms: HashMap<String, RoomTasks> = HashMap::new();
        for Task { id, action, status, timestamp_ms, resource_id, error } in
            self.tasks(query).await?
        {
            let tasks = rooms.entry(resource_id.unwrap_or_default()).or_default();
            match (action.as_str(), status.as_str()) {
                (_, "cancelled") | (PURGE, "complete" | "failed") => {}
                (PURGE, _) => tasks.is_purge_scheduled = true,
                (DELETION, "complete") => {
                    tasks.done_ms = tasks.done_ms.max(Some(timestamp_ms));
                }
                (DELETION, "failed") => {
                    let why = error.unwrap_or_else(|| "no reason is given".to_owned());
                    tasks.failed = tasks.failed.take().max(Some((timestamp_ms, why)));
                }
                (DELETION, _) => tasks.under_way = Some(id),
                _ => {}
            }
        }
        Ok(rooms)
    }

    /// Returns the id of a purge of the room's history that has not ended.
    pub(crate) async fn history_purge_under_way(
        &self,
        room_id: &str,
    ) -> Result<Option<String>, Error> {
        let query =
            vec![("action_name", HISTORY_PURGE.to_owned()), ("resource_id", room_id.to_owned())];
        let mut tasks = self.tasks(query).await?.into_iter();
        Ok(tasks.find(Task::is_under_way).map(|task| task.id))
    }

    /// Returns how many deletions of rooms and of their history Synapse works on.
    ///
    /// After a restart of Synapse, a task may be listed for two minutes before work on it goes on.
    pub(super) async fn active_room_purges(&self) -> Result<usize, Error> {
        let actions =
            [PURGE, DELETION, HISTORY_PURGE].map(|action| ("action_name", action.to_owned()));
        let active = [("status", "active".to_owned())];
        let query = actions.into_iter().chain(active).collect();
        let is_active = |task: &Task| task.status == "active";
        Ok(self.tasks(query).await?.iter().filter(|task| is_active(task)).count())
    }

    async fn tasks(&self, query: Vec<(&'static str, String)>) -> Result<Vec<Task>, Error> {
        #[derive(Deserialize)]
        struct List {
            scheduled_tasks: Vec<Task>,
        }
        let list: List = self.get("/_synapse/admin/v1/scheduled_tasks", &[], query).await?;
        Ok(list.scheduled_tasks)
    }

    /// Returns why the last deletion of a room failed.
    pub(super) async fn deletion_failure(&self, room_id: &str) -> Result<String, Error> {
        let failed = self.room_tasks(Some(room_id)).await?.remove(room_id);
        let why = failed.and_then(|tasks| tasks.failed).map(|(_, why)| why);
        Ok(why.unwrap_or_else(|| "no reason is given".to_owned()))
    }

    pub(super) async fn deletion_status(&self, delete_id: &str) -> Result<DeletionStatus, Error> {
        self.get("/_synapse/admin/v2/rooms/delete_status/{}", &[delete_id], vec![]).await
    }

    pub(super) async fn history_purge_status(
        &self,
        purge_id: &str,
    ) -> Result<HistoryPurgeStatus, Error> {
        self.get("/_synapse/admin/v1/purge_history_status/{}", &[purge_id], vec![]).await
    }

    /// Whether Synapse knows the room, be it only by its id.
    pub(crate) async fn knows_room(&self, room_id: &str) -> Result<bool, Error> {
        let known = self
            .get::<serde::de::IgnoredAny>("/_synapse/admin/v1/rooms/{}", &[room_id], vec![])
            .await;
        match known {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }
}
