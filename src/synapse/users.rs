//! Queries about accounts.

use std::collections::HashSet;

use serde::Deserialize;
use tokio_util::task::AbortOnDropHandle;

use super::account::{Device, ExternalId, User, UserRow};
use super::json::optional_count;
use super::page::MAX_PAGE_ROWS;
use super::pages::{PageToken, Pages};
use super::reader::Reader;
use super::rooms::Membership;
use crate::http::{Base, Error};

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

    /// Returns the devices of an account, the hidden ones of cross-signing not; none of one that does not exist.
    pub(crate) async fn devices(&self, user_id: &str) -> Result<Vec<Device>, Error> {
        #[derive(Deserialize)]
        struct Devices {
            devices: Vec<Device>,
        }
        let endpoint = "/_synapse/admin/v2/users/{}/devices";
        match self.get::<Devices>(endpoint, &[user_id], vec![]).await {
            Ok(found) => Ok(found.devices),
            Err(error) if error.is_not_found() => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Returns whose external id this is (`GET /v1/auth_providers/…`, Synapse 1.67).
    ///
    /// Right after the id was linked; Synapse may repeat the former owner of one that was removed.
    pub(crate) async fn owner_of(&self, id: &ExternalId) -> Result<String, Error> {
        #[derive(Deserialize)]
        struct Owner {
            user_id: String,
        }
        let endpoint = "/_synapse/admin/v1/auth_providers/{}/users/{}";
        let ids = [id.auth_provider.as_str(), id.external_id.as_str()];
        Ok(self.get::<Owner>(endpoint, &ids, vec![]).await?.user_id)
    }

    /// Returns all accounts except guests, also deactivated and locked ones, page by page.
    ///
    /// Begins after the account of `from`, or with the first one. MAS requires `guests=false`, Synapse 1.93 and later
    /// `locked=true`.
    pub(crate) fn user_pages(&self, from: Option<Position>) -> UserPages {
        let start = from.as_ref().map_or(0, |from| from.offset.saturating_sub(DRIFT));
        UserPages {
            reader: self.clone(),
            pending: Some(self.fetch_users(PageToken::of_offset(start))),
            pages: Pages::new(Self::USERS, MAX_PAGE_ROWS),
            start,
            seek: from.map(|from| Seek { after: from.after, step: DRIFT }),
            before: HashSet::new(),
        }
    }

    fn fetch_users(&self, from: PageToken) -> PendingPage {
        let reader = self.clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            let from = Some(from).filter(|from| *from != PageToken::of_offset(0));
            reader.user_page(from).await
        }))
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

    /// Returns the account's membership in a room, if it was ever in it (Synapse 1.145).
    pub(crate) async fn membership(
        &self,
        user_id: &str,
        room_id: &str,
    ) -> Result<Option<Membership>, Error> {
        Ok(self.memberships(user_id).await?.remove(room_id))
    }
}

/// A position in a list that is sorted by name.
///
/// The name stays right while entries are inserted and deleted; the offset drifts, and only says where to look for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The last entry before the position.
    pub after: String,
    /// The number of entries before the position.
    pub offset: u64,
}

/// A page of the list of accounts, without accounts of earlier pages.
#[derive(Debug)]
pub(crate) struct UserPage {
    pub rows: Vec<UserRow>,
    /// The number of accounts before the first row.
    pub offset: u64,
    /// The number of accounts in the list.
    pub total: u64,
}

/// The list of accounts, sorted by name; the next page is fetched while the caller processes this one.
///
/// An account that registers meanwhile moves others from one page to the next, where they are omitted.
pub(crate) struct UserPages {
    reader: Reader,
    pending: Option<PendingPage>,
    pages: Pages,
    /// The offset of the pending page.
    start: u64,
    /// The position to begin at, until it was found.
    seek: Option<Seek>,
    /// The accounts of the page before.
    before: HashSet<String>,
}

type PendingPage = AbortOnDropHandle<Result<Page, Error>>;

/// How far accounts may have moved towards the start of the list before it takes further requests to find a position.
const DRIFT: u64 = 100;

struct Seek {
    after: String,
    /// How far to go back next if the page begins behind the position.
    step: u64,
}

impl UserPages {
    /// Returns the next page; `None` at the end of the list.
    pub(crate) async fn next(&mut self) -> Result<Option<UserPage>, Error> {
        loop {
            let Some(pending) = self.pending.take() else { return Ok(None) };
            let mut page = joined(pending).await?;
            let start = self.start;
            if self.goes_back(&page.users) {
                continue;
            }
            let count = page.users.len();
            if let Some(next) = self.pages.next(count, page.total, page.next_token.take())? {
                self.start = next.offset().unwrap_or(start.saturating_add(count as u64));
                self.pending = Some(self.reader.fetch_users(next));
            }
            let names: HashSet<String> = page.users.iter().map(|row| row.name.clone()).collect();
            let mut rows = page.users;
            rows.drain(..self.rows_before_position(&rows));
            rows.retain(|row| !self.before.contains(&row.name));
            self.before = names;
            let offset = start.saturating_add((count - rows.len()) as u64);
            if self.seek.is_some() && self.pending.is_some() {
                continue;
            }
            let total = page.total.unwrap_or(0);
            return Ok(Some(UserPage { rows, offset, total }));
        }
    }

    /// Whether the last page was the end of the list.
    pub(crate) fn is_at_end(&self) -> bool {
        self.pending.is_none()
    }

    /// Fetches an earlier page if this one begins behind the position.
    fn goes_back(&mut self, rows: &[UserRow]) -> bool {
        let Some(seek) = &mut self.seek else { return false };
        let behind = rows.first().is_none_or(|first| first.name > seek.after);
        if self.start == 0 || !behind || !is_sorted(rows) {
            return false;
        }
        seek.step = seek.step.saturating_mul(10);
        self.start = self.start.saturating_sub(seek.step);
        self.pending = Some(self.reader.fetch_users(PageToken::of_offset(self.start)));
        true
    }

    /// Returns how many rows of the page are before the position, and ends the search once it is found.
    fn rows_before_position(&mut self, rows: &[UserRow]) -> usize {
        let Some(Seek { after, .. }) = &self.seek else { return 0 };
        let rows_before = match rows.iter().position(|row| row.name == *after) {
            Some(index) => index + 1,
            // The account is gone. Where the database does not sort by bytes, some accounts are read again.
            None if is_sorted(rows) => rows.partition_point(|row| row.name <= *after),
            None => 0,
        };
        if rows_before < rows.len() || rows.last().is_some_and(|last| last.name == *after) {
            self.seek = None;
        }
        rows_before
    }
}

fn is_sorted(rows: &[UserRow]) -> bool {
    rows.is_sorted_by(|a, b| a.name <= b.name)
}

async fn joined<T>(task: AbortOnDropHandle<Result<T, Error>>) -> Result<T, Error> {
    match task.await {
        Ok(outcome) => outcome,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
