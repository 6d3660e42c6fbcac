//! What changes a homeserver. Only the runner makes a writer, and never in a dry run.

use std::time::Duration;

use reqwest::Method;
use serde::Deserialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::error::{Cause, Error};
use super::pace::unless;
use super::reader::Reader;
use super::transport::{
    Answer, Base, Call, LIMITED, LONGEST_WAIT, REPEATS, RawRequest, Repeat, Turn,
};
use super::users::{ExternalId, User};
use super::{count, ids};
use crate::values::clock::Timestamp;

#[derive(Debug)]
pub struct Writer {
    reader: Reader,
    given_up: CancellationToken,
}

impl Writer {
    /// What waits to be sent when `given_up` is cancelled is an error that says so, and did nothing.
    pub fn new(reader: Reader, given_up: CancellationToken) -> Self {
        Self { reader, given_up }
    }

    /// Deletes local files last used before `before` and larger than `larger_than` bytes; answers the ids that went.
    ///
    /// Synapse works on when the connection is lost, so that a lost answer says nothing. It keeps what is quarantined or
    /// protected, and with `keep_avatars` every file that ever was an avatar (`POST /v1/media/delete`, Synapse 1.78).
    pub async fn delete_local_media(
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
        let answer = self.media_call("/_synapse/admin/v1/media/delete", query).await?;
        Ok(answer.decode::<Deleted>()?.deleted_media)
    }

    /// Deletes cached remote files last used before `before`; answers how many (`POST /v1/purge_media_cache`).
    pub async fn purge_media_cache(&self, before: Timestamp) -> Result<u64, Error> {
        #[derive(Deserialize)]
        struct Deleted {
            #[serde(deserialize_with = "count")]
            deleted: u64,
        }
        let query = vec![("before_ts", before.timestamp_millis().to_string())];
        let answer = self.media_call("/_synapse/admin/v1/purge_media_cache", query).await?;
        Ok(answer.decode::<Deleted>()?.deleted)
    }

    async fn media_call(
        &self,
        endpoint: &'static str,
        query: Vec<(&'static str, String)>,
    ) -> Result<Answer, Error> {
        self.send(Call {
            method: Method::POST,
            base: Base::Media,
            endpoint,
            ids: &[],
            query,
            body: None,
            repeat: Repeat::Never,
            turn: Turn::Own,
            timeout: None,
        })
        .await
    }

    /// Waits for a turn among all joins to this homeserver.
    pub async fn join_turn(&self) {
        self.reader.transport.join_turn().await;
    }

    /// Joins a local user, as its own act or through an invitation by the token's account.
    pub async fn join(&self, room_id: &str, user_id: &str) -> Result<(), Error> {
        #[derive(Deserialize)]
        struct Joined {
            #[expect(dead_code, reason = "that it is there tells Synapse's answer from a proxy's")]
            room_id: String,
        }
        let body = json!({ "user_id": user_id });
        let answer =
            self.call(Method::POST, "/_synapse/admin/v1/join/{}", &[room_id], body).await?;
        answer.decode::<Joined>().map(drop)
    }

    /// Replaces the whole list of an account's external ids where it still is `expected`, and answers the account as it
    /// is then; else the error is [`Cause::Changed`], and nothing was done.
    ///
    /// Synapse's API cannot compare and set: the list is read, and the new one is sent as soon as the answer is there,
    /// ahead of the rate limit. What a login links within these few milliseconds is lost. For the same reason a change
    /// that Synapse did not accept now begins with the reading again. Synapse creates an account that does not exist: an
    /// answer that says so is an error.
    pub async fn swap_external_ids(
        &self,
        user_id: &str,
        expected: &[ExternalId],
        new: &[ExternalId],
    ) -> Result<User, Error> {
        let mut tries = 0;
        loop {
            let error = match self.swap_once(user_id, expected, new).await {
                Err(error) if error.is_limited() && tries < LIMITED => error,
                Err(error) if matches!(error.cause, Cause::Unreachable(_)) && tries < REPEATS => {
                    error
                }
                outcome => return outcome,
            };
            let wait = error.retry_after().unwrap_or(Duration::from_secs(1 << tries.min(5)));
            if wait > LONGEST_WAIT {
                return Err(error);
            }
            tries += 1;
            unless(&self.given_up, tokio::time::sleep(wait)).await.map_err(|cause| Error {
                cause,
                advice: None,
                ..error
            })?;
        }
    }

    async fn swap_once(
        &self,
        user_id: &str,
        expected: &[ExternalId],
        new: &[ExternalId],
    ) -> Result<User, Error> {
        let timeout = Some(self.reader.transport.request_timeout());
        let call = Call {
            method: Method::GET,
            base: Base::Homeserver,
            endpoint: Reader::USER,
            ids: &[user_id],
            query: vec![],
            body: None,
            repeat: Repeat::Safe,
            turn: Turn::WithNext,
            timeout,
        };
        let answer = self.send(call).await?;
        let mut now = answer.decode::<User>()?.external_ids;
        let mut expected = expected.to_vec();
        now.sort_unstable();
        expected.sort_unstable();
        if now != expected {
            return Err(answer.changed());
        }
        let call = Call {
            method: Method::PUT,
            base: Base::Homeserver,
            endpoint: Reader::USER,
            ids: &[user_id],
            query: vec![],
            body: Some(json!({ "external_ids": new })),
            repeat: Repeat::Once,
            turn: Turn::Taken,
            timeout,
        };
        let answer = self.send(call).await?;
        if answer.status.as_u16() == 201 {
            return Err(answer.unexpected(format!("Synapse created the account {user_id}, which was there a moment ago: deactivate it and find out who removed the old one")));
        }
        answer.decode()
    }

    /// Sends what the user wrote; returns the body of the answer.
    pub async fn request(&self, raw: &RawRequest) -> Result<Vec<u8>, Error> {
        let answer =
            self.reader.transport.send_raw(raw, &self.reader.watch, &self.given_up).await?;
        Ok(answer.body)
    }

    async fn call(
        &self,
        method: Method,
        endpoint: &'static str,
        ids: &[&str],
        body: serde_json::Value,
    ) -> Result<Answer, Error> {
        let timeout = Some(self.reader.transport.request_timeout());
        self.send(Call {
            method,
            base: Base::Homeserver,
            endpoint,
            ids,
            query: vec![],
            body: Some(body),
            repeat: Repeat::Never,
            turn: Turn::Own,
            timeout,
        })
        .await
    }

    async fn send(&self, call: Call<'_>) -> Result<Answer, Error> {
        self.reader.transport.send(&call, &self.reader.watch, &self.given_up).await
    }
}
