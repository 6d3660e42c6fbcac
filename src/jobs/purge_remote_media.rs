//! `purge-remote-media`: empties the cache of other servers' files.

use std::collections::HashSet;
use std::time::Duration;

use chrono::TimeDelta;
use futures_util::future::BoxFuture;
use serde_json::Value;

use super::steps::{Call, Step};
use crate::jobs::job::{Context, Job, Needs, PlanError};
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
        /// Only cached files not accessed for this long, counted back from the start of the run. Exactly one of `older_than` and `before`.
        pub older_than: Option<HumanDuration> where "\"0s\"" to "\"3650d\"",
        /// Only cached files not accessed since this moment.
        pub before: Option<Timestamp>,
        /// Allows an age under 7 days.
        pub allow_recent: bool = "false",
    }
}

#[derive(Debug)]
pub struct PurgeRemoteMedia {
    age: Age,
}

impl Job for PurgeRemoteMedia {
    const KIND: &'static str = "purge-remote-media";
    const ABOUT: &'static str = "Deletes cached copies of other servers' files that nobody accessed for long. They are fetched again when somebody asks, if their own server still has them. \
        Leaves alone what is quarantined. Has no preview: Synapse lists its cache nowhere, so that a dry run can only say what it would ask for.";
    const KEYS: &'static [Key] = Keys::KEYS;
    const ACTION: Action = Action::PurgeRemoteMedia;
    const COUNTS: bool = false;
    const NEEDS: Needs = Needs {
        synapse: Version(1, 78),
        clock: true,
        not_under_mas: None,
        plans_offline: false,
        media: true,
    };

    fn read(
        table: &Table<'_, '_>,
        now: Timestamp,
        mistakes: &mut Vec<ConfigError>,
    ) -> Option<Self> {
        let keys = Keys::parse(table, mistakes);
        let age = AgeEntries {
            older_than: &keys.older_than,
            before: &keys.before,
            allow_recent: &keys.allow_recent,
        };
        Some(Self { age: Age::combine(age, &table.span, now, mistakes)? })
    }

    fn topic(&self) -> Option<Topic> {
        Some(Topic::RemoteCutOff)
    }

    async fn plan(&self, context: &Context<'_>, plan: &mut Plan) -> Result<(), PlanError> {
        if !context.reader.serves_media(&context.identity().await?.server_name).await? {
            return Err(PlanError::Refused(
                "the process that answered does not serve the media endpoints: set `media_url` to the worker that does"
                    .to_owned(),
            ));
        }
        let until_ms = self
            .age
            .past_cut_off(context.started_at)
            .map_err(PlanError::Refused)?
            .timestamp_millis();
        let reached =
            context.facts.known().get("").and_then(|ms| ms.parse().ok()).unwrap_or(MATRIX_BEGAN_MS);
        plan.notes.push("Synapse lists its cache of remote media nowhere: there is no preview of how many files will go".to_owned());
        plan.work = Work::BatchPlan(Box::new(Cache {
            until_ms,
            reached_ms: i64::min(reached, until_ms - 1),
            sent_ms: 0,
            step: Step::new(FIRST_STEP_MS, LEAST_STEP_MS, MOST_STEP_MS),
        }));
        Ok(())
    }
}

/// 2014-08-01, before the first Matrix server: nothing was accessed earlier.
const MATRIX_BEGAN_MS: i64 = 1_406_851_200_000;
const FIRST_STEP_MS: i64 = TimeDelta::days(15).num_milliseconds();
/// Shorter steps would be more calls, each with the part of its time that does not depend on how many files go.
const LEAST_STEP_MS: i64 = TimeDelta::days(1).num_milliseconds();
/// Old years are nearly empty, and a step that grew over them must not swallow a full month.
const MOST_STEP_MS: i64 = TimeDelta::days(60).num_milliseconds();

/// The cache, purged by a cut-off that walks upward from where the last run came.
#[derive(Debug)]
struct Cache {
    until_ms: i64,
    reached_ms: i64,
    /// The span of the last call.
    sent_ms: i64,
    step: Step,
}

impl BatchPlan for Cache {
    fn action(&self) -> Action {
        Action::PurgeRemoteMedia
    }

    fn target(&self) -> String {
        format!("cached remote files last accessed before {}", spoken_ms(self.until_ms))
    }

    fn remaining(&self) -> Option<u64> {
        None
    }

    fn items(&self) -> HashSet<String> {
        HashSet::new()
    }

    fn truncate(&mut self, _most: u64) -> u64 {
        0
    }

    fn next(&mut self, last: Option<Duration>) -> Option<Box<dyn Change>> {
        if self.reached_ms >= self.until_ms {
            return None;
        }
        let last = last.map(|took| Call { size: self.sent_ms, took });
        let reached = (self.reached_ms + self.step.next(last)).min(self.until_ms);
        self.sent_ms = reached - self.reached_ms;
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
        format!("cached remote files last accessed before {}", spoken_ms(self.before_ms))
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

fn spoken_ms(ms: i64) -> String {
    format_time(Timestamp::from_timestamp_millis(ms).unwrap_or_default())
}
