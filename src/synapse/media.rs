//! Queries about local media.

use std::collections::BTreeMap;

use futures_util::stream::{self, Stream};
use serde::Deserialize;

use super::json::{count, flag, id, optional_count, optional_id, optional_text};
use super::page::{MAX_FILE_ROWS, MAX_PAGE_ROWS};
use super::pages::{PageToken, Pages};
use super::reader::Reader;
use crate::http::{Base, Cause, Error};
use crate::values::clock::Timestamp;

/// The uploads of one account, according to the media statistics.
#[derive(Debug, Clone, Deserialize)]
pub struct MediaOwner {
    #[serde(default, deserialize_with = "optional_id")]
    pub user_id: Option<String>,
    #[serde(deserialize_with = "count")]
    pub media_count: u64,
    #[serde(default, deserialize_with = "optional_count")]
    pub media_length: Option<u64>,
}

/// An uploaded file. Whether it is an avatar is not known.
#[derive(Debug, Clone, Deserialize)]
pub struct File {
    #[serde(deserialize_with = "id")]
    pub media_id: String,
    /// `None` while the upload is pending.
    #[serde(default, deserialize_with = "optional_count")]
    pub media_length: Option<u64>,
    /// Milliseconds since 1970.
    pub created_ts: i64,
    /// Milliseconds since 1970; `None` if the file was never accessed.
    pub last_access_ts: Option<i64>,
    #[serde(default, deserialize_with = "optional_id")]
    pub quarantined_by: Option<String>,
    #[serde(default, deserialize_with = "flag")]
    pub safe_from_quarantine: bool,
    /// As the uploader's client gave it.
    #[serde(default, deserialize_with = "optional_text")]
    pub media_type: Option<String>,
    #[serde(default, deserialize_with = "optional_text")]
    pub upload_name: Option<String>,
    /// The URL of which the file is a preview.
    #[serde(default, deserialize_with = "optional_text")]
    pub url_cache: Option<String>,
}

impl File {
    /// The last access, or the upload if there was none, which Synapse compares with `before_ts`. In milliseconds since 1970.
    pub(crate) fn last_used_ms(&self) -> i64 {
        self.last_access_ts.unwrap_or(self.created_ts)
    }
}

const STATISTICS: &str = "/_synapse/admin/v1/statistics/users/media";
const FILES: &str = "/_synapse/admin/v1/users/{}/media";
pub(super) const FILE: &str = "/_synapse/admin/v1/media/{}/{}";

impl Reader {
    /// Returns the accounts with files uploaded before `until`, in the order of their names.
    pub(crate) async fn media_owners(
        &self,
        until: Option<Timestamp>,
    ) -> Result<Vec<MediaOwner>, Error> {
        self.media_statistics(until.map(|until| ("until_ts", until))).await
    }

    /// Returns the accounts that uploaded files since then, in the order of their names.
    pub(crate) async fn uploaders_since(
        &self,
        since: Option<Timestamp>,
    ) -> Result<Vec<MediaOwner>, Error> {
        self.media_statistics(since.map(|since| ("from_ts", since))).await
    }

    async fn media_statistics(
        &self,
        bound: Option<(&'static str, Timestamp)>,
    ) -> Result<Vec<MediaOwner>, Error> {
        #[derive(Deserialize)]
        struct Page {
            users: Vec<MediaOwner>,
            next_token: Option<PageToken>,
            #[serde(default, deserialize_with = "optional_count")]
            total: Option<u64>,
        }
        let mut pages = Pages::new(STATISTICS, MAX_PAGE_ROWS);
        let mut owners: BTreeMap<Option<String>, MediaOwner> = BTreeMap::new();
        let mut from: Option<PageToken> = None;
        loop {
            let mut query = vec![("order_by", "user_id".to_owned())];
            query.extend(bound.map(|(name, at)| (name, at.timestamp_millis().to_string())));
            query.extend(from.as_ref().map(|from| ("from", from.to_string())));
            // The main process serves this even if a worker serves the media endpoints.
            let page: Page =
                self.page(MAX_PAGE_ROWS, Base::Homeserver, STATISTICS, &[], query).await?;
            from = pages.next(page.users.len(), page.total, page.next_token)?;
            owners.extend(page.users.into_iter().map(|owner| (owner.user_id.clone(), owner)));
            if from.is_none() {
                break;
            }
        }
        Ok(owners.into_values().collect())
    }

    /// Returns how many accounts have files.
    pub(crate) async fn count_media_owners(&self) -> Result<u64, Error> {
        #[derive(Deserialize)]
        struct Page {
            total: u64,
        }
        let query = vec![("limit", "1".to_owned())];
        let page: Page = self.get(STATISTICS, &[], query).await?;
        Ok(page.total)
    }

    /// Returns an account's files uploaded before `until`, oldest first, page by page.
    ///
    /// The error is `M_NOT_FOUND` for an unknown account.
    pub(crate) fn file_pages<'a>(
        &'a self,
        user_id: &'a str,
        until: Timestamp,
    ) -> impl Stream<Item = Result<Vec<File>, Error>> + Send + 'a {
        #[derive(Deserialize)]
        struct Page {
            media: Vec<File>,
            next_token: Option<PageToken>,
            #[serde(default, deserialize_with = "optional_count")]
            total: Option<u64>,
        }
        let list = format!("/_synapse/admin/v1/users/{user_id}/media");
        let first = Some((Pages::new(list, MAX_FILE_ROWS), None::<PageToken>));
        stream::try_unfold(first, move |state| async move {
            let Some((mut pages, from)) = state else { return Ok(None) };
            let mut query = vec![("order_by", "created_ts".to_owned()), ("dir", "f".to_owned())];
            query.extend(from.map(|from| ("from", from.to_string())));
            let page: Page =
                self.page(MAX_FILE_ROWS, Base::Media, FILES, &[user_id], query).await?;
            let (rows, mut files) = (page.media.len(), page.media);
            let is_late = |file: &File| file.created_ts >= until.timestamp_millis();
            files.truncate(files.iter().position(is_late).unwrap_or(rows));
            let token = page.next_token.filter(|_| files.len() == rows);
            let next = pages.next(rows, page.total, token)?;
            Ok(Some((files, next.map(|next| (pages, Some(next))))))
        })
    }

    /// Returns `limit` of an account's files from the one at `from` on, in the order of [`file_pages`](Self::file_pages).
    pub(crate) async fn some_files(
        &self,
        user_id: &str,
        from: u32,
        limit: u32,
    ) -> Result<Vec<File>, Error> {
        #[derive(Deserialize)]
        struct Page {
            media: Vec<File>,
        }
        let query = vec![
            ("order_by", "created_ts".to_owned()),
            ("dir", "f".to_owned()),
            ("from", from.to_string()),
            ("limit", limit.to_string()),
        ];
        let page: Page = self.get_from(Base::Media, FILES, &[user_id], query).await?.decode()?;
        Ok(page.media)
    }

    /// Returns one local file (Synapse 1.140); the error is `M_NOT_FOUND` if there is none.
    pub(crate) async fn file(&self, server_name: &str, media_id: &str) -> Result<File, Error> {
        #[derive(Deserialize)]
        struct Info {
            media_info: File,
        }
        let response = self.get_from(Base::Media, FILE, &[server_name, media_id], vec![]).await?;
        Ok(response.decode::<Info>()?.media_info)
    }

    /// Whether the process behind `media_url` serves the media endpoints.
    ///
    /// Requests a file that cannot exist: Synapse 1.140 and later return `M_NOT_FOUND`, older versions status 405.
    pub(crate) async fn serves_media(&self, server_name: &str) -> Result<bool, Error> {
        let ids = [server_name, "microglia-probe-of-the-media-endpoints"];
        let response = self.get_from(Base::Media, FILE, &ids, vec![]).await;
        match response {
            Ok(_) | Err(Error { cause: Cause::Synapse { status: 405, .. }, .. }) => Ok(true),
            Err(error) if error.is_not_found() => Ok(true),
            Err(error) if error.is_unrecognized() => Ok(false),
            Err(error) => Err(error),
        }
    }
}
