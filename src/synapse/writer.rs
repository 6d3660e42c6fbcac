//! Write access to a homeserver. Only the runner creates a writer, and never in a dry run.

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
    Base, Call, Error, JOIN_ENDPOINT, Pacing, RawRequest, Repeat, Response, unless_cancelled,
};
use crate::mas;
use crate::values::clock::Timestamp;

#[derive(Debug)]
pub struct Writer {
    reader: Reader,
    mas: Option<mas::Writer>,
    cancel: CancellationToken,
}

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

    /// Sends a request from the configuration and returns the body of the response.
    pub(crate) async fn request(&self, raw: &RawRequest) -> Result<Vec<u8>, Error> {
        let session = self.reader.session(&self.cancel);
        let response = self.reader.transport.send_raw(raw, session).await?;
        Ok(response.body)
    }

    async fn send(&self, call: Call<'_>) -> Result<Response, Error> {
        self.reader.transport.send(&call, self.reader.session(&self.cancel)).await
    }
}
