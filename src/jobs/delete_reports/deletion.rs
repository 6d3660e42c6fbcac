//! The deletion of one report, which is looked up in the list again just before.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::plan::change::{Change, ChangeResult, Check};
use crate::plan::report::Action;
use crate::synapse::{Error, Reader, ReportRow, Reported, Writer};
use crate::values::clock::Timestamp;

/// What was listed again counts for this long.
const FRESH: Duration = Duration::from_secs(1);

/// What the deletions of a run share.
#[derive(Debug)]
pub(super) struct Deletions {
    reported: Reported,
    action: Action,
    keep_record: bool,
    /// The oldest reports as they were listed last.
    recent: Mutex<Option<Recent>>,
}

#[derive(Debug)]
struct Recent {
    at: Instant,
    /// When reports were received, by id.
    received: HashMap<u64, Timestamp>,
    /// All that were received before this time are in it.
    before: Timestamp,
}

impl Deletions {
    pub fn new(reported: Reported, action: Action, keep_record: bool) -> Self {
        Self { reported, action, keep_record, recent: Mutex::default() }
    }

    /// Whether a report is still listed.
    ///
    /// The list decides, not the report itself: Synapse shows none whose event was purged. Reports are deleted from the
    /// oldest on, so that those to be deleted next are at its beginning.
    async fn lists(&self, reader: &Reader, report: &ReportRow) -> Result<bool, Error> {
        let mut recent = self.recent.lock().await;
        let is_fresh = |it: &Recent| it.at.elapsed() < FRESH && report.received_at() < it.before;
        if !recent.as_ref().is_some_and(is_fresh) {
            *recent = None;
            let (at, until) = (Instant::now(), report.received_at() + TimeDelta::milliseconds(1));
            let (reports, before) = reader.oldest_reports(self.reported, until).await?;
            let received = reports.iter().map(|report| (report.id, report.received_at()));
            *recent = Some(Recent { at, received: received.collect(), before });
        }
        let listed = recent.as_ref().and_then(|recent| recent.received.get(&report.id));
        // Synapse may give the id of a report that was deleted to another one.
        Ok(listed == Some(&report.received_at()))
    }
}

#[derive(Debug)]
pub(super) struct Deletion {
    pub report: ReportRow,
    pub deletions: Arc<Deletions>,
}

impl Change for Deletion {
    fn action(&self) -> Action {
        self.deletions.action
    }

    fn target(&self) -> String {
        let ReportRow { id, user_id, target_user_id, event_id, room_id, .. } = &self.report;
        let date = self.report.received_at().format("%Y-%m-%d");
        if !self.deletions.keep_record {
            return format!("report {id} of {date}");
        }
        let by = user_id.as_deref().unwrap_or("unknown");
        let about = match (event_id, room_id) {
            (Some(event_id), Some(room_id)) => format!("{event_id} in {room_id}"),
            (Some(event_id), None) => event_id.clone(),
            (None, _) => target_user_id.clone().unwrap_or_else(|| "unknown".to_owned()),
        };
        format!("report {id} of {date}, by {by} about {about}")
    }

    fn check<'a>(&'a self, reader: &'a Reader) -> BoxFuture<'a, Result<Check, Error>> {
        Box::pin(async move {
            if !self.deletions.lists(reader, &self.report).await? {
                return Ok(Check::Skip("the report no longer exists".to_owned()));
            }
            let keeps = self.deletions.keep_record;
            Ok(Check::Proceed(serde_json::to_value(&self.report).ok().filter(|_| keeps)))
        })
    }

    fn apply<'a>(
        &'a self,
        writer: &'a Writer,
        _before: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<ChangeResult, Error>> {
        Box::pin(async move {
            writer.delete_report(self.deletions.reported, self.report.id).await?;
            Ok(ChangeResult::items(1))
        })
    }
}
