//! Write access to a homeserver. Only the runner creates a writer, and never in a dry run.

mod accounts;

use std::time::Duration;

use reqwest::Method;
use serde::Deserialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::account::{ExternalId, User};
use super::json::{count, ids};
use super::media::FILE;
use super::reader::Reader;
use crate::http::retry::{self, Attempts, Retry, TokenState};
use crate::http::{
    Base, Call, Cause, Error, JOIN_ENDPOINT, Pacing, RawRequest, Repeat, Response, unless_cancelled,
};
use crate::mas;
use crate::values::clock::Timestamp;

#[derive(Debug)]
pub struct Writer {
    reader: Reader,
    mas: Option<mas::Writer>,
    cancel: CancellationToken,
}

/// How a room is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// Removes local users, invited ones too, so that their clients notice; nothing is deleted.
    Shutdown,
    /// Also deletes all that Synapse knows of the room.
    Purge,
}

/// What becomes of the protection of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// From quarantine, and from purges of local media.
    Protect,
    Unprotect,
}

/// The result of a deletion that ended.
#[derive(Debug)]
pub(crate) struct EndedDeletion {
    pub ended_at: Timestamp,
    /// Local users who were in the room, invited or knocking.
    pub removed_users: Vec<String>,
}

/// How often to ask whether a task has ended: at first, and at most.
const FIRST_POLL: Duration = Duration::from_millis(100);
const MAX_POLL: Duration = Duration::from_secs(1);

impl Writer {
    /// Once `cancel` is cancelled, requests that still wait to be sent fail with [`super::Cause::Cancelled`].
    pub(crate) fn new(reader: Reader, cancel: CancellationToken) -> Self {
        let mas = reader.mas().map(|mas| mas::Writer::new(mas.clone(), cancel.clone()));
        Self { reader, mas, cancel }
    }

    pub(crate) fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Changes in the MAS that manages the accounts; `None` where none is configured.
    pub(crate) fn mas(&self) -> Option<&mas::Writer> {
        self.mas.as_ref()
    }

    /// Deletes local files last used before `before` and larger than `larger_than` bytes; returns the ids of those deleted.
    ///
    /// Synapse continues after a lost connection: a lost response says nothing about the files. Files that are quarantined
    /// or protected are kept, and with `keep_avatars` all that ever were an avatar (`POST /v1/media/delete`, Synapse 1.78).
    pub(crate) async fn delete_local_media(
        &self,
        before: Timestamp,
        larger_than: u64,
        keep_avatars: bool,
    ) -> Result<Vec<String>, Error> {
        #[derive(Deserialize)]
        struct Deleted {
            #[serde(deserialize_with = "ids")]
            deleted_media: Vec<String>,
        }
        let query = vec![
            ("before_ts", before.timestamp_millis().to_string()),
            ("size_gt", larger_than.to_string()),
            ("keep_profiles", keep_avatars.to_string()),
        ];
        let response = self.purge("/_synapse/admin/v1/media/delete", query).await?;
        Ok(response.decode::<Deleted>()?.deleted_media)
    }

    /// Deletes cached remote files last used before `before`; returns how many (`POST /v1/purge_media_cache`).
    pub(crate) async fn purge_media_cache(&self, before: Timestamp) -> Result<u64, Error> {
        #[derive(Deserialize)]
        struct Deleted {
            #[serde(deserialize_with = "count")]
            deleted: u64,
        }
        let query = vec![("before_ts", before.timestamp_millis().to_string())];
        let response = self.purge("/_synapse/admin/v1/purge_media_cache", query).await?;
        Ok(response.decode::<Deleted>()?.deleted)
    }

    /// Deletes one local file, whatever it is used for (`DELETE /v1/media/…`, Synapse 1.23).
    ///
    /// A file that is gone counts as deleted: a lost request may have done it.
    pub(crate) async fn delete_file(&self, server_name: &str, media_id: &str) -> Result<(), Error> {
        #[derive(Deserialize)]
        struct Deleted {
            #[serde(deserialize_with = "count")]
            total: u64,
        }
        let call = Call {
            method: Method::DELETE,
            base: Base::Media,
            endpoint: FILE,
            ids: &[server_name, media_id],
            query: vec![],
            body: None,
            repeat: Repeat::Always,
            pacing: Pacing::Normal,
            timeout: Some(self.reader.transport.request_timeout()),
        };
        let response = match self.send(call).await {
            Err(error) if error.is_not_found() => return Ok(()),
            response => response?,
        };
        match response.decode::<Deleted>()?.total {
            // Synapse responds with status 200 all the same.
            0 => Err(response.contradicted("Synapse did not delete the file: its log says why")),
            _ => Ok(()),
        }
    }

    /// Protects a local file, or ends that; returns false if there is no such file (`POST /v1/media/protect/…`, Synapse 1.36).
    pub(crate) async fn set_protection(
        &self,
        media_id: &str,
        protection: Protection,
    ) -> Result<bool, Error> {
        let call = Call {
            method: Method::POST,
            base: Base::Media,
            endpoint: match protection {
                Protection::Protect => "/_synapse/admin/v1/media/protect/{}",
                Protection::Unprotect => "/_synapse/admin/v1/media/unprotect/{}",
            },
            ids: &[media_id],
            query: vec![],
            body: None,
            // To do it twice changes nothing.
            repeat: Repeat::Always,
            pacing: Pacing::Normal,
            timeout: Some(self.reader.transport.request_timeout()),
        };
        let response = match self.send(call).await {
            Err(Error { cause: Cause::Synapse { status: 404, errcode, .. }, .. })
                if errcode == "M_UNKNOWN" =>
            {
                return Ok(false);
            }
            response => response?,
        };
        // A response with anything but an object is not Synapse's.
        response.decode::<serde_json::Map<String, serde_json::Value>>()?;
        Ok(true)
    }

    async fn purge(
        &self,
        endpoint: &'static str,
        query: Vec<(&'static str, String)>,
    ) -> Result<Response, Error> {
        self.send(Call {
            method: Method::POST,
            base: Base::Media,
            endpoint,
            ids: &[],
            query,
            body: None,
            repeat: Repeat::IfNotApplied,
            pacing: Pacing::Normal,
            timeout: None,
        })
        .await
    }

    /// Waits for a turn among all joins to this homeserver.
    pub(crate) async fn join_turn(&self) {
        self.reader.transport.join_turn().await;
    }

    /// Joins a local user to a room; into a room that is not public, the token's account invites the user first.
    pub(crate) async fn join(&self, room_id: &str, user_id: &str) -> Result<(), Error> {
        #[derive(Deserialize)]
        struct Joined {
            #[expect(
                dead_code,
                reason = "its presence distinguishes Synapse's response from a proxy's"
            )]
            room_id: String,
        }
        let response = self
            .send(Call {
                method: Method::POST,
                base: Base::Homeserver,
                endpoint: JOIN_ENDPOINT,
                ids: &[room_id],
                query: vec![],
                body: Some(json!({ "user_id": user_id })),
                repeat: Repeat::IfNotApplied,
                pacing: Pacing::Normal,
                timeout: Some(self.reader.transport.request_timeout()),
            })
            .await?;
        response.decode::<Joined>().map(drop)
    }

    /// Replaces the list of an account's external ids if it still is `expected`, and returns the account afterwards.
    ///
    /// Otherwise the error is [`super::Cause::Changed`], and nothing was done. Synapse has no compare-and-set: the list is
    /// read, and the new one is sent as soon as the response arrives, ahead of the rate limit. An id that a login links
    /// within these few milliseconds is lost. For the same reason a request that Synapse did not accept is repeated from
    /// the read on. Synapse creates an account that does not exist: a response that reports this is an error.
    pub(crate) async fn swap_external_ids(
        &self,
        user_id: &str,
        expected: &[ExternalId],
        new: &[ExternalId],
    ) -> Result<User, Error> {
        let mut attempts = Attempts::default();
        loop {
            let error = match self.try_swap(user_id, expected, new).await {
                Ok(user) => return Ok(user),
                Err(error) => error,
            };
            let (repeat, token) = (Repeat::IfNotApplied, TokenState::Unchanged);
            let decision = retry::decide(&error, repeat, attempts, token, fastrand::f64());
            attempts.add(&error);
            match decision {
                Retry::Stop => return Err(error),
                Retry::Now => {}
                Retry::After(wait) => unless_cancelled(&self.cancel, tokio::time::sleep(wait))
                    .await
                    .map_err(|cause| Error { cause, advice: None, ..error })?,
            }
        }
    }

    async fn try_swap(
        &self,
        user_id: &str,
        expected: &[ExternalId],
        new: &[ExternalId],
    ) -> Result<User, Error> {
        let timeout = Some(self.reader.transport.request_timeout());
        let read = Call {
            method: Method::GET,
            base: Base::Homeserver,
            endpoint: Reader::USER,
            ids: &[user_id],
            query: vec![],
            body: None,
            repeat: Repeat::Always,
            pacing: Pacing::ReserveNext,
            timeout,
        };
        let response = self.send(read).await?;
        let mut current = response.decode::<User>()?.external_ids;
        let mut expected = expected.to_vec();
        current.sort_unstable();
        expected.sort_unstable();
        if current != expected {
            return Err(response.changed());
        }
        let write = Call {
            method: Method::PUT,
            base: Base::Homeserver,
            endpoint: Reader::USER,
            ids: &[user_id],
            query: vec![],
            body: Some(json!({ "external_ids": new })),
            repeat: Repeat::Never,
            pacing: Pacing::Reserved,
            timeout,
        };
        let response = self.send(write).await?;
        if response.status.as_u16() == 201 {
            return Err(response.unexpected(format!("Synapse created the account {user_id}, which existed just before: deactivate it and find out who removed the original one")));
        }
        response.decode()
    }

    /// Has Synapse delete a room, and returns the id of the deletion (`DELETE /v2/rooms/{room_id}`).
    pub(crate) async fn delete_room(
        &self,
        room_id: &str,
        removal: Removal,
        block: bool,
    ) -> Result<String, Error> {
        #[derive(Deserialize)]
        struct Accepted {
            delete_id: String,
        }
        let response = self
            .send(Call {
                method: Method::DELETE,
                base: Base::Homeserver,
                endpoint: "/_synapse/admin/v2/rooms/{}",
                ids: &[room_id],
                query: vec![],
                body: Some(json!({ "purge": removal == Removal::Purge, "block": block })),
                repeat: Repeat::IfNotApplied,
                pacing: Pacing::Normal,
                timeout: Some(self.reader.transport.request_timeout()),
            })
            .await?;
        Ok(response.decode::<Accepted>()?.delete_id)
    }

    /// Waits until a deletion has ended, however long that takes and however often Synapse is restarted meanwhile.
    ///
    /// After a restart in the middle of a purge, Synapse continues two minutes later, and nothing shows that until then.
    pub(crate) async fn deletion_ended(
        &self,
        room_id: &str,
        delete_id: &str,
    ) -> Result<EndedDeletion, Error> {
        let failed = |problem: String| Error {
            method: Method::DELETE,
            path: format!("/_synapse/admin/v2/rooms/{room_id}"),
            cause: Cause::Contradicted(problem),
            advice: None,
        };
        let deletion = ended(|| async {
            let deletion = self.reader.deletion_status(delete_id).await?;
            let is_over = matches!(deletion.status.as_str(), "complete" | "failed" | "cancelled");
            Ok(is_over.then_some(deletion))
        });
        let removed_users = match deletion.await? {
            Some(deletion) if deletion.status == "complete" => deletion.shutdown_room.kicked_users,
            Some(_) => {
                let why = self.reader.deletion_failure(room_id).await?;
                return Err(failed(format!("Synapse could not delete the room: {why}")));
            }
            // Synapse forgets a deletion after seven days.
            None if self.reader.knows_room(room_id).await? => {
                let why = "Synapse no longer knows the deletion, and still has the room";
                return Err(failed(why.to_owned()));
            }
            None => Vec::new(),
        };
        Ok(EndedDeletion { ended_at: self.reader.clock.now(), removed_users })
    }

    /// Has Synapse delete the messages of a room before an event, which stays, and returns the id of the purge
    /// (`POST /v1/purge_history/{room_id}`).
    pub(crate) async fn purge_history(
        &self,
        room_id: &str,
        first_kept: &str,
        delete_local_events: bool,
    ) -> Result<String, Error> {
        #[derive(Deserialize)]
        struct Accepted {
            purge_id: String,
        }
        let response = self
            .send(Call {
                method: Method::POST,
                base: Base::Homeserver,
                endpoint: "/_synapse/admin/v1/purge_history/{}",
                ids: &[room_id],
                query: vec![],
                body: Some(json!({
                    "purge_up_to_event_id": first_kept,
                    "delete_local_events": delete_local_events,
                })),
                repeat: Repeat::IfNotApplied,
                pacing: Pacing::Normal,
                timeout: Some(self.reader.transport.request_timeout()),
            })
            .await?;
        Ok(response.decode::<Accepted>()?.purge_id)
    }

    /// Waits until a purge of a room's history has ended, as [`deletion_ended`](Self::deletion_ended) does.
    pub(crate) async fn history_purge_ended(
        &self,
        room_id: &str,
        purge_id: &str,
    ) -> Result<(), Error> {
        let purge = ended(|| async {
            let purge = self.reader.history_purge_status(purge_id).await?;
            Ok(matches!(purge.status.as_str(), "complete" | "failed").then_some(purge))
        });
        let why = match purge.await? {
            Some(purge) if purge.status == "complete" => return Ok(()),
            Some(purge) => purge.error.unwrap_or_else(|| "no reason is given".to_owned()),
            None => "it no longer knows the purge".to_owned(),
        };
        Err(Error {
            method: Method::POST,
            path: format!("/_synapse/admin/v1/purge_history/{room_id}"),
            cause: Cause::Contradicted(format!("Synapse could not purge the history: {why}")),
            advice: None,
        })
    }

    /// Sends a request from the configuration and returns the body of the response.
    pub(crate) async fn request(&self, raw: &RawRequest) -> Result<Vec<u8>, Error> {
        let session = self.reader.session(&self.cancel);
        let response = self.reader.transport.send_raw(raw, session).await?;
        Ok(response.body)
    }

    /// Sends a change that has the same effect if it is sent twice.
    pub(super) async fn send_repeatable(
        &self,
        method: Method,
        endpoint: &'static str,
        ids: &[&str],
        body: Option<serde_json::Value>,
    ) -> Result<Response, Error> {
        self.send(Call {
            method,
            base: Base::Homeserver,
            endpoint,
            ids,
            query: vec![],
            body,
            repeat: Repeat::Always,
            pacing: Pacing::Normal,
            timeout: Some(self.reader.transport.request_timeout()),
        })
        .await
    }

    async fn send(&self, call: Call<'_>) -> Result<Response, Error> {
        self.reader.transport.send(&call, self.reader.session(&self.cancel)).await
    }
}

/// Asks for the end of a task until there is one; `None` if Synapse does not know the task.
async fn ended<T, F>(ask: impl Fn() -> F) -> Result<Option<T>, Error>
where
    F: Future<Output = Result<Option<T>, Error>>,
{
    let mut wait = FIRST_POLL;
    loop {
        tokio::time::sleep(wait).await;
        wait = wait.saturating_mul(2).min(MAX_POLL);
        match ask().await {
            Ok(None) => {}
            Ok(ended) => return Ok(ended),
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) if error.is_transient() => {}
            Err(error) => return Err(error),
        }
    }
}
