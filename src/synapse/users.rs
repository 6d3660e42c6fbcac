//! Accounts: the list, one of them, and what they belong to.

use std::collections::{HashMap, HashSet};

use futures_util::stream::{self, Stream};
use serde::{Deserialize, Serialize};
use tokio_util::task::AbortOnDropHandle;

use super::error::Error;
use super::pages::Pages;
use super::reader::Reader;
use super::transport::Base;
use super::{Id, PageToken, flag, id, optional_count, optional_id};

/// An account as the list shows it: neither external ids nor suspension nor the bridge that owns it.
#[derive(Debug, Clone, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "Synapse's own fields")]
pub struct UserRow {
    #[serde(deserialize_with = "id")]
    pub name: String,
    pub user_type: Option<String>,
    #[serde(default, deserialize_with = "flag")]
    pub is_guest: bool,
    #[serde(default, deserialize_with = "flag")]
    pub admin: bool,
    #[serde(default, deserialize_with = "flag")]
    pub deactivated: bool,
    #[serde(default, deserialize_with = "flag")]
    pub locked: bool,
}

/// An account as `GET /v2/users/<id>` shows it.
#[derive(Debug, Clone, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "Synapse's own fields")]
pub struct User {
    #[serde(deserialize_with = "id")]
    pub name: String,
    pub user_type: Option<String>,
    #[serde(default, deserialize_with = "flag")]
    pub admin: bool,
    #[serde(default, deserialize_with = "flag")]
    pub deactivated: bool,
    #[serde(default, deserialize_with = "flag")]
    pub locked: bool,
    /// Since Synapse 1.121.
    #[serde(default, deserialize_with = "flag")]
    pub suspended: bool,
    /// The bridge that owns the account.
    #[serde(default, deserialize_with = "optional_id")]
    pub appservice_id: Option<String>,
    #[serde(default)]
    pub external_ids: Vec<ExternalId>,
}

/// An SSO identity that can log in to an account.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ExternalId {
    pub auth_provider: String,
    pub external_id: String,
}

impl std::fmt::Display for ExternalId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.auth_provider, self.external_id)
    }
}

/// Each page costs Synapse two scans over all devices: few large pages are kinder than many small ones.
const PAGE: usize = 1000;

#[derive(Deserialize)]
struct Page {
    users: Vec<UserRow>,
    next_token: Option<PageToken>,
    #[serde(default, deserialize_with = "optional_count")]
    total: Option<u64>,
}

impl Reader {
    const USERS: &'static str = "/_synapse/admin/v2/users";
    pub(super) const USER: &'static str = "/_synapse/admin/v2/users/{}";

    /// One account; `M_NOT_FOUND` where there is none.
    pub async fn user(&self, user_id: &str) -> Result<User, Error> {
        self.get(Self::USER, &[user_id], vec![]).await
    }

    /// Every account but guests, a page at a time with the total: deactivated and locked ones too.
    ///
    /// The next page is read while the caller works on this one. Sorted by name: who registers meanwhile moves others from
    /// one page to the next, where they are left out. `guests=false` is needed under MAS, `locked=true` since Synapse 1.93.
    pub fn user_pages(
        &self,
    ) -> impl Stream<Item = Result<(Vec<UserRow>, u64), Error>> + Send + use<> {
        let ask = |reader: Self, from: Option<PageToken>| {
            AbortOnDropHandle::new(tokio::spawn(async move {
                let mut query = vec![
                    ("guests", "false".to_owned()),
                    ("deactivated", "true".to_owned()),
                    ("locked", "true".to_owned()),
                    ("order_by", "name".to_owned()),
                    ("limit", PAGE.to_string()),
                ];
                query.extend(from.map(|from| ("from", from.to_string())));
                reader.get::<Page>(Self::USERS, &[], query).await
            }))
        };
        let first = ask(self.clone(), None);
        stream::unfold(
            (self.clone(), Some(first), Pages::of(Self::USERS, PAGE), HashSet::<String>::new()),
            move |(reader, pending, mut pages, before)| async move {
                let followed = joined(pending?).await.and_then(|mut page| {
                    let next = pages.next(page.users.len(), page.total, page.next_token.take())?;
                    Ok((page, next))
                });
                let (mut page, next) = match followed {
                    Ok(followed) => followed,
                    Err(error) => return Some((Err(error), (reader, None, pages, before))),
                };
                let pending = next.map(|next| ask(reader.clone(), Some(next)));
                let names = page.users.iter().map(|row| row.name.clone()).collect();
                page.users.retain(|row| !before.contains(&row.name));
                let total = page.total.unwrap_or(0);
                Some((Ok((page.users, total)), (reader, pending, pages, names)))
            },
        )
    }

    /// How many accounts there are but guests, deactivated and locked ones included.
    pub async fn count_accounts(&self) -> Result<u64, Error> {
        self.count_listed("true").await
    }

    /// The same without the deactivated ones.
    pub async fn count_usable_accounts(&self) -> Result<u64, Error> {
        self.count_listed("false").await
    }

    async fn count_listed(&self, deactivated: &str) -> Result<u64, Error> {
        let query = vec![
            ("guests", "false".to_owned()),
            ("deactivated", deactivated.to_owned()),
            ("locked", "true".to_owned()),
            ("limit", "1".to_owned()),
        ];
        Ok(self.get::<Page>(Self::USERS, &[], query).await?.total.unwrap_or(0))
    }

    /// All accounts but guests; for jobs that need them all at hand.
    pub async fn users(&self, mut progress: impl FnMut(u64, u64)) -> Result<Vec<UserRow>, Error> {
        use futures_util::StreamExt;
        let mut pages = std::pin::pin!(self.user_pages());
        let mut all: Vec<UserRow> = Vec::new();
        while let Some(page) = pages.next().await {
            let (rows, total) = page?;
            all.extend(rows);
            progress(all.len() as u64, total);
        }
        Ok(all)
    }

    /// Every room that the account ever was in, with its membership there (Synapse 1.145).
    pub async fn memberships(&self, user_id: &str) -> Result<HashMap<String, String>, Error> {
        #[derive(Deserialize)]
        struct Answer {
            memberships: HashMap<Id, Id>,
        }
        let answer: Answer =
            self.get("/_synapse/admin/v1/users/{}/memberships", &[user_id], vec![]).await?;
        Ok(answer
            .memberships
            .into_iter()
            .map(|(room, membership)| (room.0, membership.0))
            .collect())
    }

    pub(super) async fn answers(
        &self,
        base: Base,
        endpoint: &'static str,
        ids: &[&str],
    ) -> Result<(), Error> {
        self.get_from(base, endpoint, ids, vec![]).await.map(drop)
    }
}

async fn joined<T>(task: AbortOnDropHandle<Result<T, Error>>) -> Result<T, Error> {
    match task.await {
        Ok(outcome) => outcome,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
