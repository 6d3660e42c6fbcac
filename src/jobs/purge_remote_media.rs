//! `purge-remote-media`: deletes cached files of other servers.

use std::collections::HashSet;
use std::time::Duration;

use chrono::TimeDelta;
use futures_util::future::BoxFuture;
use serde_json::Value;

use super::batch_size::{BatchSize, Sample};
use super::job::{Context, Job, Needs, PlanError, Undo};
use crate::plan::change::{BatchPlan, Change, ChangeResult, Lane, MediaStore, Plan, Work};
use crate::plan::facts::{Fact, Topic};
use crate::plan::report::Action;
use crate::synapse::{self, Version, Writer};
use crate::values::age::{Age, AgeEntries};
use crate::values::clock::{Timestamp, format_time};
use crate::values::duration::HumanDuration;
use crate::values::schema::schema;
use crate::values::schema::{ConfigError, Key, Table};

schema! {
    pub entries Keys {
        /// Deletes cached files not accessed for this long, counted back from the start of the run. Set exactly one of `older_than` and `before`.
        pub older_than: Option<HumanDuration> where "\"0s\"" to "\"3650d\"",
        /// Deletes cached files not accessed since this time.
        pub before: Option<Timestamp>,
        /// Allows an age of less than 7 days.
        pub allow_recent: bool = "false",
    }
}

#[derive(Debug)]
pub struct PurgeRemoteMedia {
    age: Age,
}

impl Job for PurgeRemoteMedia {
    const KIND: &'static str = "purge-remote-media";
    const ABOUT: &'static str = "Deletes cached copies of other servers' files that have not been accessed for a long time. Synapse fetches them again on demand, if their own server still has them. \
        Skips quarantined files. There is no preview: Synapse cannot list its cache, so a dry run only shows the request that it would send.";
    const KEYS: &'static [Key] = Keys::KEYS;
    const ACTION: Action = Action::PurgeRemoteMedia;
    const UNDO: Undo = Undo::Impossible("files are gone for good");
    const COUNTS: bool = false;
    const NEEDS: Needs = Needs {
        synapse: Version(1, 78),
        clock: true,
        without_mas_client: None,
        plans_offline: false,
        media: true,
    };

    fn read(table: &Table<'_, '_>, now: Timestamp, errors: &mut Vec<ConfigError>) -> Option<Self> {
        let keys = Keys::parse(table, errors);
        let age = AgeEntries {
            older_than: &keys.older_than,
            before: &keys.before,
            allow_recent: &keys.allow_recent,
        };
        Some(Self { age: Age::combine(age, &table.span, now, errors)? })
    }

    fn topic(&self) -> Option<Topic> {
        Some(Topic::RemoteCutOff)
    }

    async fn plan(&self, context: &Context<'_>, plan: &mut Plan) -> Result<(), PlanError> {
        if !context.reader.serves_media(&context.identity().await?.server_name).await? {
            return Err(PlanError::Refused(
                "the process that responded does not serve the media endpoints: set `media_url` to the worker that does"
                    .to_owned(),
            ));
        }
        let until_ms = self
            .age
            .past_cut_off(context.started_at)
            .map_err(PlanError::Refused)?
            .timestamp_millis();
        let reached =
            context.facts.known().get("").and_then(|ms| ms.parse().ok()).unwrap_or(MATRIX_START_MS);
        plan.notes.push("Synapse cannot list its cache of remote media: the number of files is not known in advance".to_owned());
        plan.work = Work::BatchPlan(Box::new(Cache {
            until_ms,
            reached_ms: i64::min(reached, until_ms - 1),
            span_ms: 0,
            batch_size: BatchSize::new(FIRST_SPAN_MS, MIN_SPAN_MS, MAX_SPAN_MS),
        }));
        Ok(())
    }
}

/// 2014-08-01, before the first Matrix server: no file was accessed earlier.
const MATRIX_START_MS: i64 = 1_406_851_200_000;
const FIRST_SPAN_MS: i64 = TimeDelta::days(15).num_milliseconds();
/// Shorter spans would mean more calls, each with the time that does not depend on the number of files.
const MIN_SPAN_MS: i64 = TimeDelta::days(1).num_milliseconds();
/// Early years are nearly empty: a span that grew over them must not include too many files of later ones.
const MAX_SPAN_MS: i64 = TimeDelta::days(60).num_milliseconds();

/// The cache, purged up to a cut-off that moves forward, starting where the last run ended.
#[derive(Debug)]
struct Cache {
    until_ms: i64,
    reached_ms: i64,
    /// The time span of the last call.
    span_ms: i64,
    batch_size: BatchSize,
}

impl BatchPlan for Cache {
    fn action(&self) -> Action {
        Action::PurgeRemoteMedia
    }

    fn target(&self) -> String {
        format!("cached remote files last accessed before {}", format_ms(self.until_ms))
    }

    fn remaining(&self) -> Option<u64> {
        None
    }

    fn planned_among(&self, _items: &HashSet<&str>) -> HashSet<String> {
        HashSet::new()
    }

    fn truncate(&mut self, _most: u64) -> u64 {
        0
    }

    fn next(&mut self, last: Option<Duration>) -> Option<Box<dyn Change>> {
        if self.reached_ms >= self.until_ms {
            return None;
        }
        let last = last.map(|took| Sample { size: self.span_ms, took });
        let reached = (self.reached_ms + self.batch_size.next(last)).min(self.until_ms);
        self.span_ms = reached - self.reached_ms;
        self.reached_ms = reached;
        Some(Box::new(Purge { before_ms: self.reached_ms }))
    }
}

#[derive(Debug)]
struct Purge {
    before_ms: i64,
}

impl Change for Purge {
    fn action(&self) -> Action {
        Action::PurgeRemoteMedia
    }

    fn target(&self) -> String {
        format!("cached remote files last accessed before {}", format_ms(self.before_ms))
    }

    fn count(&self) -> u64 {
        0
    }

    fn lane(&self) -> Lane {
        Lane::Media(MediaStore::Remote)
    }

    fn items(&self) -> Vec<(String, Option<u64>)> {
        Vec::new()
    }

    fn apply<'a>(
        &'a self,
        writer: &'a Writer,
        _before: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<ChangeResult, synapse::Error>> {
        Box::pin(async move {
            let deleted = writer
                .purge_media_cache(
                    Timestamp::from_timestamp_millis(self.before_ms).unwrap_or_default(),
                )
                .await?;
            let facts = vec![Fact {
                topic: Topic::RemoteCutOff,
                key: String::new(),
                value: self.before_ms.to_string(),
            }];
            Ok(ChangeResult { facts, ..ChangeResult::items(deleted) })
        })
    }
}

fn format_ms(ms: i64) -> String {
    format_time(Timestamp::from_timestamp_millis(ms).unwrap_or_default())
}
