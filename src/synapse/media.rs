//! Local media: who has how much, and which files.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::error::Error;
use super::pages::Pages;
use super::reader::Reader;
use super::transport::Base;
use super::{PageToken, count, flag, id, optional_count, optional_id};
use crate::values::clock::Timestamp;

/// An account's uploads, as the statistics count them.
#[derive(Debug, Clone, Deserialize)]
pub struct MediaOwner {
    #[serde(default, deserialize_with = "optional_id")]
    pub user_id: Option<String>,
    #[serde(deserialize_with = "count")]
    pub media_count: u64,
    #[serde(default, deserialize_with = "optional_count")]
    pub media_length: Option<u64>,
}

/// An uploaded file. Nothing in it tells whether it is an avatar.
#[derive(Debug, Clone, Deserialize)]
pub struct File {
    #[serde(deserialize_with = "id")]
    pub media_id: String,
    /// `None` while the upload is pending.
    #[serde(default, deserialize_with = "optional_count")]
    pub media_length: Option<u64>,
    /// Milliseconds since 1970.
    pub created_ts: i64,
    /// Milliseconds since 1970; `None` where the file was never accessed.
    pub last_access_ts: Option<i64>,
    #[serde(default, deserialize_with = "optional_id")]
    pub quarantined_by: Option<String>,
    #[serde(default, deserialize_with = "flag")]
    pub safe_from_quarantine: bool,
}

impl File {
    /// What Synapse compares with `before_ts`: the last access, and the upload where there was none.
    pub fn used_ms(&self) -> i64 {
        self.last_access_ts.unwrap_or(self.created_ts)
    }
}

const PAGE: usize = 1000;

impl Reader {
    /// Everybody with files uploaded before `until`, most bytes first.
    pub async fn media_owners(&self, until: Option<Timestamp>) -> Result<Vec<MediaOwner>, Error> {
        #[derive(Deserialize)]
        struct Page {
            users: Vec<MediaOwner>,
            next_token: Option<PageToken>,
            #[serde(default, deserialize_with = "optional_count")]
            total: Option<u64>,
        }
        const LIST: &str = "/_synapse/admin/v1/statistics/users/media";
        let mut pages = Pages::of(LIST, PAGE);
        let mut owners: BTreeMap<Option<String>, MediaOwner> = BTreeMap::new();
        let mut from: Option<PageToken> = None;
        loop {
            let mut query = vec![("order_by", "user_id".to_owned()), ("limit", PAGE.to_string())];
            query.extend(until.map(|until| ("until_ts", until.timestamp_millis().to_string())));
            query.extend(from.as_ref().map(|from| ("from", from.to_string())));
            // Served by the main process, even where a worker serves the files themselves.
            let page: Page = self.get(LIST, &[], query).await?;
            from = pages.next(page.users.len(), page.total, page.next_token)?;
            owners.extend(page.users.into_iter().map(|owner| (owner.user_id.clone(), owner)));
            if from.is_none() {
                break;
            }
        }
        let mut owners: Vec<MediaOwner> = owners.into_values().collect();
        owners.sort_by_key(|owner| std::cmp::Reverse(owner.media_length));
        Ok(owners)
    }

    /// How many accounts have files.
    pub async fn count_media_owners(&self) -> Result<u64, Error> {
        #[derive(Deserialize)]
        struct Page {
            total: u64,
        }
        let query = vec![("limit", "1".to_owned())];
        let page: Page = self.get("/_synapse/admin/v1/statistics/users/media", &[], query).await?;
        Ok(page.total)
    }

    /// The account's files uploaded before `until`, oldest first; `M_NOT_FOUND` where Synapse does not know the account.
    pub async fn files_of(&self, user_id: &str, until: Timestamp) -> Result<Vec<File>, Error> {
        #[derive(Deserialize)]
        struct Page {
            media: Vec<File>,
            next_token: Option<PageToken>,
            #[serde(default, deserialize_with = "optional_count")]
            total: Option<u64>,
        }
        let mut pages = Pages::of(format!("/_synapse/admin/v1/users/{user_id}/media"), PAGE);
        let (mut files, mut from): (Vec<File>, Option<PageToken>) = (Vec::new(), None);
        loop {
            let mut query = vec![
                ("order_by", "created_ts".to_owned()),
                ("dir", "f".to_owned()),
                ("limit", PAGE.to_string()),
            ];
            query.extend(from.as_ref().map(|from| ("from", from.to_string())));
            let page: Page = self
                .get_from(Base::Media, "/_synapse/admin/v1/users/{}/media", &[user_id], query)
                .await?
                .decode()?;
            let read = page.media.len();
            let before = files.len();
            files.extend(
                page.media
                    .into_iter()
                    .take_while(|file| file.created_ts < until.timestamp_millis()),
            );
            let all_old = files.len() - before == read;
            from = pages.next(read, page.total, page.next_token.filter(|_| all_old))?;
            if from.is_none() {
                return Ok(files);
            }
        }
    }

    /// Whether the process behind `media_url` serves the media endpoints.
    ///
    /// Asks for a file that cannot exist: `M_NOT_FOUND` says that the endpoint is there (Synapse 1.140; older ones answer 405).
    pub async fn serves_media(&self, server_name: &str) -> Result<bool, Error> {
        match self
            .answers(
                Base::Media,
                "/_synapse/admin/v1/media/{}/{}",
                &[server_name, "microglia-asks-whether-media-is-served-here"],
            )
            .await
        {
            Ok(()) => Ok(true),
            Err(error) if error.is_not_found() => Ok(true),
            Err(error) if matches!(error.cause, super::Cause::Synapse { status: 405, .. }) => {
                Ok(true)
            }
            Err(error) if error.is_unrecognized() => Ok(false),
            Err(error) => Err(error),
        }
    }
}
