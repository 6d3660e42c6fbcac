//! Queries about accounts.

use std::collections::{HashMap, HashSet};

use futures_util::stream::{self, Stream};
use serde::Deserialize;
use tokio_util::task::AbortOnDropHandle;

use super::account::{User, UserRow};
use super::error::Error;
use super::json::{Scalar, optional_count};
use super::page_size::MAX_PAGE_ROWS;
use super::pages::{PageToken, Pages};
use super::reader::Reader;
use super::request::Base;
use super::rooms::Membership;

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

    /// Returns one account; the error is `M_NOT_FOUND` if there is none.
    pub(crate) async fn user(&self, user_id: &str) -> Result<User, Error> {
        self.get(Self::USER, &[user_id], vec![]).await
    }

    /// Returns all accounts except guests, also deactivated and locked ones, page by page with their total.
    ///
    /// The next page is fetched while the caller processes this one. Sorted by name: an account that registers meanwhile
    /// moves others from one page to the next, where they are omitted. MAS requires `guests=false`, Synapse 1.93 and later
    /// `locked=true`.
    pub(crate) fn user_pages(
        &self,
    ) -> impl Stream<Item = Result<(Vec<UserRow>, u64), Error>> + Send + use<> {
        let fetch = |reader: Self, from: Option<PageToken>| {
            AbortOnDropHandle::new(tokio::spawn(async move { reader.user_page(from).await }))
        };
        let first = fetch(self.clone(), None);
        stream::unfold(
            (
                self.clone(),
                Some(first),
                Pages::new(Self::USERS, MAX_PAGE_ROWS),
                HashSet::<String>::new(),
            ),
            move |(reader, pending, mut pages, before)| async move {
                let followed = joined(pending?).await.and_then(|mut page| {
                    let next = pages.next(page.users.len(), page.total, page.next_token.take())?;
                    Ok((page, next))
                });
                let (mut page, next) = match followed {
                    Ok(followed) => followed,
                    Err(error) => return Some((Err(error), (reader, None, pages, before))),
                };
                let pending = next.map(|next| fetch(reader.clone(), Some(next)));
                let names = page.users.iter().map(|row| row.name.clone()).collect();
                page.users.retain(|row| !before.contains(&row.name));
                let total = page.total.unwrap_or(0);
                Some((Ok((page.users, total)), (reader, pending, pages, names)))
            },
        )
    }

    async fn user_page(&self, from: Option<PageToken>) -> Result<Page, Error> {
        let mut query = vec![
            ("guests", "false".to_owned()),
            ("deactivated", "true".to_owned()),
            ("locked", "true".to_owned()),
            ("order_by", "name".to_owned()),
        ];
        query.extend(from.map(|from| ("from", from.to_string())));
        self.page(MAX_PAGE_ROWS, Base::Homeserver, Self::USERS, &[], query).await
    }

    /// Returns the number of accounts except guests, including deactivated and locked ones.
    pub(crate) async fn count_accounts(&self) -> Result<u64, Error> {
        self.count_listed("true").await
    }

    /// The same without deactivated accounts.
    pub(crate) async fn count_usable_accounts(&self) -> Result<u64, Error> {
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

    /// Returns all accounts except guests, for jobs that need all of them in memory.
    pub(crate) async fn users(
        &self,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Vec<UserRow>, Error> {
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

    /// Returns the account's membership in a room, if it was ever in it (Synapse 1.145).
    pub(crate) async fn membership(
        &self,
        user_id: &str,
        room_id: &str,
    ) -> Result<Option<Membership>, Error> {
        #[derive(Deserialize)]
        struct Memberships {
            memberships: HashMap<String, Scalar>,
        }
        let mut rooms: Memberships =
            self.get("/_synapse/admin/v1/users/{}/memberships", &[user_id], vec![]).await?;
        let membership = rooms.memberships.remove(room_id).and_then(Scalar::into_text);
        Ok(membership.and_then(|membership| membership.parse().ok()))
    }
}

async fn joined<T>(task: AbortOnDropHandle<Result<T, Error>>) -> Result<T, Error> {
    match task.await {
        Ok(outcome) => outcome,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
