//! Reports of events and of users, as people send them to the server administrator.

use std::collections::HashSet;

use reqwest::Method;
use serde::{Deserialize, Serialize};

use super::json::{optional_count, optional_id, optional_integer, optional_text};
use super::pages::{PageToken, Pages};
use super::reader::Reader;
use super::writer::Writer;
use crate::http::{Base, Error};
use crate::values::clock::Timestamp;

/// What is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reported {
    /// Since Synapse 1.79.
    Event,
    /// Since Synapse 1.152.
    User,
}

/// A report as it is listed. Of an event that was purged from its room, the sender is not known any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReportRow {
    pub id: u64,
    /// In milliseconds since 1970.
    pub received_ts: i64,
    /// Who reported it.
    #[serde(default, deserialize_with = "optional_id", skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    #[serde(default, deserialize_with = "optional_id", skip_serializing_if = "Option::is_none")]
    pub target_user_id: Option<String>,
    #[serde(default, deserialize_with = "optional_id", skip_serializing_if = "Option::is_none")]
    pub event_id: Option<String>,
    #[serde(default, deserialize_with = "optional_id", skip_serializing_if = "Option::is_none")]
    pub room_id: Option<String>,
    /// Who sent the event.
    #[serde(default, deserialize_with = "optional_id", skip_serializing_if = "Option::is_none")]
    pub sender: Option<String>,
    /// From -100, the worst, to 0.
    #[serde(
        default,
        deserialize_with = "optional_integer",
        skip_serializing_if = "Option::is_none"
    )]
    pub score: Option<i64>,
    /// In the words of who reported it.
    #[serde(default, deserialize_with = "optional_text", skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, deserialize_with = "optional_text", skip_serializing_if = "Option::is_none")]
    pub canonical_alias: Option<String>,
    #[serde(default, deserialize_with = "optional_text", skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// The oldest reports are listed again while they are deleted: larger pages would mostly show what is known already.
const PAGE_ROWS: usize = 1000;
/// A longer text is cut off after so many characters: clients may send megabytes.
const MAX_CHARS: usize = 10_000;

impl Reported {
    fn list(self) -> &'static str {
        match self {
            Self::Event => "/_synapse/admin/v1/event_reports",
            Self::User => "/_synapse/admin/v1/user_reports",
        }
    }

    fn single(self) -> &'static str {
        match self {
            Self::Event => "/_synapse/admin/v1/event_reports/{}",
            Self::User => "/_synapse/admin/v1/user_reports/{}",
        }
    }
}

impl ReportRow {
    pub(crate) fn received_at(&self) -> Timestamp {
        Timestamp::from_timestamp_millis(self.received_ts).unwrap_or(Timestamp::MAX_UTC)
    }

    fn cut(mut self) -> Self {
        for text in [&mut self.reason, &mut self.canonical_alias, &mut self.name] {
            let Some(text) = text else { continue };
            if let Some((end, _)) = text.char_indices().nth(MAX_CHARS) {
                text.truncate(end);
                text.push('…');
            }
        }
        self
    }
}

impl Reader {
    /// Returns the oldest reports: all that were received before `until`, perhaps more, and the time before which none is
    /// missing.
    ///
    /// Reports of events in rooms that were purged are in no list.
    pub(crate) async fn oldest_reports(
        &self,
        reported: Reported,
        until: Timestamp,
    ) -> Result<(Vec<ReportRow>, Timestamp), Error> {
        #[derive(Deserialize)]
        struct Page {
            #[serde(alias = "event_reports", alias = "user_reports")]
            reports: Vec<ReportRow>,
            next_token: Option<PageToken>,
            #[serde(default, deserialize_with = "optional_count")]
            total: Option<u64>,
        }
        let endpoint = reported.list();
        let mut pages = Pages::new(endpoint, PAGE_ROWS);
        let (mut reports, mut known) = (Vec::new(), HashSet::new());
        let mut from: Option<PageToken> = None;
        loop {
            let mut query = vec![("dir", "f".to_owned())];
            query.extend(from.map(|from| ("from", from.to_string())));
            let page: Page = self.page(PAGE_ROWS, Base::Homeserver, endpoint, &[], query).await?;
            from = pages.next(page.reports.len(), page.total, page.next_token)?;
            let last = page.reports.last().map(ReportRow::received_at);
            // Where Synapse cannot read some rows of a page, the next one repeats as many others.
            let new = page.reports.into_iter().filter(|report| known.insert(report.id));
            reports.extend(new.map(ReportRow::cut));
            match last {
                Some(last) if from.is_some() && last < until => {}
                Some(last) if from.is_some() => return Ok((reports, last)),
                _ => return Ok((reports, Timestamp::MAX_UTC)),
            }
        }
    }
}

impl Writer {
    /// Deletes a report; one that does not exist is as good as deleted.
    pub(crate) async fn delete_report(&self, reported: Reported, id: u64) -> Result<(), Error> {
        let id = id.to_string();
        match self.send_repeatable(Method::DELETE, reported.single(), &[&id], None).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}
