//! The interface between a kind of job and the runner.

use std::collections::HashMap;
use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::plan::change::{Change, Plan};
use crate::plan::facts::{Facts, Topic};
use crate::plan::report::{Action, ChangeRecord, Event};
use crate::plan::round::{Portion, Rounds};
use crate::synapse::{self, Identity, Reader, Version};
use crate::values::clock::Timestamp;
use crate::values::duration::{HumanDuration, format_duration, rounded_up};
use crate::values::schema::{ConfigError, Key, RateLimit, Table};
use crate::values::text::format_number;

/// A kind of job; the implementing struct is the configuration of one job.
pub trait Job: Debug + Send + Sync + Sized + 'static {
    const KIND: &'static str;
    const ABOUT: &'static str;
    const KEYS: &'static [Key];
    /// Whether the kind knows in advance how many items it will change; otherwise `max_changes` and `at_most` are not supported.
    const COUNTS: bool = true;
    /// The default of `max_changes`, where the kind has one of its own.
    const MAX_CHANGES: Option<u32> = None;
    /// Whether the kind purges rooms, and when it reads finds purges under way, its own among them, to follow them to their end.
    const PURGES_ROOMS: bool = false;
    /// For a kind that reads a list in portions: see [`Context::portion`].
    const ROUNDS: Option<Rounds> = None;
    /// A kind that judges by what this one deletes, and so should run before it.
    const RUNS_AFTER: Option<&'static str> = None;
    const NEEDS: Needs;
    /// The action of all its changes.
    const ACTION: Action;
    /// How what its runs changed is restored.
    const UNDO: Undo;

    /// Reads the keys of the kind, and checks them against each other.
    fn read(table: &Table<'_, '_>, now: Timestamp, errors: &mut Vec<ConfigError>) -> Option<Self>;

    /// Whether an interrupted run may be repeated although some of its changes may have been sent.
    fn is_repeatable(&self) -> bool {
        true
    }

    /// How the job reads its list, where that depends on its keys.
    fn rounds(&self) -> Option<Rounds> {
        Self::ROUNDS
    }

    /// The facts that the job needs from earlier runs.
    fn topic(&self) -> Option<Topic> {
        None
    }

    /// Returns warnings for `check`, each with its key.
    fn warnings(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// Runs the checks of `check --online` that are specific to this job.
    fn check(
        &self,
        _reader: &Reader,
        _identity: &Identity,
    ) -> impl Future<Output = Vec<CheckResult>> + Send {
        async { Vec::new() }
    }

    /// Estimates the reads of a run, for `check --online`; `None` if they are not known in advance.
    fn read_estimate(
        &self,
        _reader: &Reader,
    ) -> impl Future<Output = Result<Option<ReadEstimate>, synapse::Error>> + Send {
        async { Ok(None) }
    }

    /// Reads the homeserver and adds the changes to make to the plan.
    fn plan(
        &self,
        context: &Context<'_>,
        plan: &mut Plan,
    ) -> impl Future<Output = Result<(), PlanError>> + Send;
}

/// The requirements of a kind, checked before a run reads anything.
#[derive(Debug, Clone, Copy)]
pub struct Needs {
    pub synapse: Version,
    /// The kind sends timestamps: with a wrong local clock, it would delete the wrong items.
    pub clock: bool,
    /// Why the kind is refused if MAS manages the accounts and no `[homeservers.NAME.mas]` is configured.
    pub without_mas_client: Option<&'static str>,
    /// The kind plans without any request: a dry run sends nothing at all.
    pub plans_offline: bool,
    /// The kind uses endpoints that the process behind `media_url` serves.
    pub media: bool,
}

/// How a kind restores what its runs changed.
#[derive(Debug, Clone, Copy)]
pub enum Undo {
    /// The reason completes "cannot be undone: ".
    Impossible(&'static str),
    /// Makes the change that restores what a recorded one changed, or says why there is none.
    ///
    /// The second argument is what is known of the job's [topic](Job::topic), by key.
    By(Restore),
}

/// Makes the change that restores what a record says; the error says why there is none.
pub type Restore = fn(&ChangeRecord, &HashMap<String, String>) -> Result<Box<dyn Change>, String>;

/// The result of one check of `check --online`; the error says what to do.
#[derive(Debug)]
pub struct CheckResult {
    pub question: String,
    pub answer: Result<String, String>,
}

/// What a run reads: one request per item.
#[derive(Debug, Clone, Copy)]
pub struct ReadEstimate {
    /// The name of the items, in the plural.
    pub what: &'static str,
    pub items: u64,
}

/// The request rate and the duration of a run.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    pub requests_per_second: RateLimit,
    pub time_limit: HumanDuration,
}

impl Budget {
    /// Returns in how many runs a kind that reads in portions completes a round; `None` if one will do.
    pub fn round(&self, volume: ReadEstimate) -> Option<String> {
        let (takes, rate) = self.reading_time(volume)?;
        // Half of a run's time is kept for its changes.
        let portion = (self.time_limit.0 / 2).as_secs().max(1);
        let runs = takes.as_secs().div_ceil(portion);
        (runs > 1).then(|| {
            format!(
                "about {} runs: reading {} {} at {rate} requests per second takes at least {}, and each run reads for at most half of its time_limit of {}",
                format_number(runs),
                format_number(volume.items),
                volume.what,
                format_duration(rounded_to_minutes(takes)),
                self.time_limit,
            )
        })
    }

    /// Returns the time that reading alone takes, and the rate; `None` without a limit.
    fn reading_time(&self, volume: ReadEstimate) -> Option<(Duration, f64)> {
        let rate = self.requests_per_second.number()?.0;
        #[expect(clippy::cast_precision_loss, reason = "a rounded time does as well")]
        let takes = Duration::try_from_secs_f64(volume.items as f64 / rate).ok()?;
        Some((takes, rate))
    }

    /// Returns a warning if reading alone takes longer than the time limit.
    pub fn warning(&self, volume: ReadEstimate) -> Option<String> {
        let (takes, rate) = self.reading_time(volume)?;
        (takes > self.time_limit.0).then(|| {
            format!(
                "reading {} {} at {rate} requests per second takes at least {}, but time_limit is {}: raise it to at least {}",
                format_number(volume.items),
                volume.what,
                format_duration(rounded_to_minutes(takes)),
                self.time_limit,
                format_duration(rounded_up(takes))
            )
        })
    }
}

/// Rounds a duration of an hour or more up to the minute.
fn rounded_to_minutes(takes: Duration) -> Duration {
    match takes.as_secs() {
        0..3600 => takes,
        seconds => Duration::from_secs(seconds.div_ceil(60).saturating_mul(60)),
    }
}

/// What a job can use while it plans.
pub struct Context<'a> {
    /// The start of the run, from which ages count back.
    pub started_at: Timestamp,
    pub reader: &'a Reader,
    /// What is known of the job's [topic](Job::topic).
    pub facts: Facts<'a>,
    /// What to read in this run, for a kind with [`Job::ROUNDS`].
    pub portion: Portion,
    pub emit: &'a (dyn Fn(Event) + Send + Sync),
    /// Where plans too large for the memory go; `None` without a usable state directory.
    pub spool_directory: Option<&'a Path>,
    /// Whether the homeserver keeps its media in object storage, where Synapse deletes nothing.
    pub media_in_object_storage: bool,
    /// How many requests to send at the same time.
    pub concurrency: usize,
    pub budget: Budget,
}

/// Why a plan failed.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("{0}")]
    Synapse(#[from] synapse::Error),
    /// The job must not run, although the homeserver works.
    #[error("{0}")]
    Refused(String),
}

impl Context<'_> {
    pub fn reading(&self, what: &str, done: u64, total: u64) {
        (self.emit)(Event::Reading { what: what.to_owned(), done, total });
    }

    /// Warns if the reads ahead take longer than the time limit of the run.
    pub fn expect_reading(&self, volume: ReadEstimate) {
        if let Some(warning) = self.budget.warning(volume) {
            (self.emit)(Event::Warning(warning));
        }
    }

    /// Returns the homeserver and the account of the token; the runner has requested both by now.
    pub async fn identity(&self) -> Result<&Identity, PlanError> {
        Ok(self.reader.identity().await?)
    }
}

/// A job of any kind, as the runner uses it.
pub trait AnyJob: Debug + Send + Sync {
    fn kind(&self) -> &'static Kind;
    fn is_repeatable(&self) -> bool;
    fn rounds(&self) -> Option<Rounds>;
    fn topic(&self) -> Option<Topic>;
    fn warnings(&self) -> Vec<(&'static str, String)>;
    fn check<'a>(
        &'a self,
        reader: &'a Reader,
        identity: &'a Identity,
    ) -> BoxFuture<'a, Vec<CheckResult>>;
    fn read_estimate<'a>(
        &'a self,
        reader: &'a Reader,
    ) -> BoxFuture<'a, Result<Option<ReadEstimate>, synapse::Error>>;
    fn plan<'a>(
        &'a self,
        context: &'a Context<'_>,
        plan: &'a mut Plan,
    ) -> BoxFuture<'a, Result<(), PlanError>>;
}

/// Reads the keys of a kind from a job's table; ages are checked against the given time.
pub type Read = fn(&Table<'_, '_>, Timestamp, &mut Vec<ConfigError>) -> Option<Arc<dyn AnyJob>>;

/// A row of the table of kinds.
#[derive(Debug)]
pub struct Kind {
    pub name: &'static str,
    pub about: &'static str,
    pub keys: &'static [Key],
    pub counts: bool,
    pub max_changes: Option<u32>,
    pub purges_rooms: bool,
    pub rounds: Option<Rounds>,
    pub runs_after: Option<&'static str>,
    pub needs: Needs,
    pub action: Action,
    pub undo: Undo,
    pub read: Read,
}

impl Kind {
    pub const fn of<J: Job>() -> Self {
        Self {
            name: J::KIND,
            about: J::ABOUT,
            keys: J::KEYS,
            counts: J::COUNTS,
            max_changes: J::MAX_CHANGES,
            purges_rooms: J::PURGES_ROOMS,
            rounds: J::ROUNDS,
            runs_after: J::RUNS_AFTER,
            needs: J::NEEDS,
            action: J::ACTION,
            undo: J::UNDO,
            read: |table, now, errors| Some(Arc::new(J::read(table, now, errors)?)),
        }
    }
}

impl<J: Job> AnyJob for J {
    fn kind(&self) -> &'static Kind {
        const { &Kind::of::<J>() }
    }

    fn is_repeatable(&self) -> bool {
        Job::is_repeatable(self)
    }

    fn rounds(&self) -> Option<Rounds> {
        Job::rounds(self)
    }

    fn topic(&self) -> Option<Topic> {
        Job::topic(self)
    }

    fn warnings(&self) -> Vec<(&'static str, String)> {
        Job::warnings(self)
    }

    fn check<'a>(
        &'a self,
        reader: &'a Reader,
        identity: &'a Identity,
    ) -> BoxFuture<'a, Vec<CheckResult>> {
        Box::pin(Job::check(self, reader, identity))
    }

    fn read_estimate<'a>(
        &'a self,
        reader: &'a Reader,
    ) -> BoxFuture<'a, Result<Option<ReadEstimate>, synapse::Error>> {
        Box::pin(Job::read_estimate(self, reader))
    }

    fn plan<'a>(
        &'a self,
        context: &'a Context<'_>,
        plan: &'a mut Plan,
    ) -> BoxFuture<'a, Result<(), PlanError>> {
        Box::pin(Job::plan(self, context, plan))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::values::schema::Rate;

    #[test]
    fn reading_that_takes_longer_than_the_time_limit_causes_a_warning() {
        let warning = |items, requests_per_second| {
            let time_limit = "1h".parse().unwrap();
            let budget = Budget { requests_per_second, time_limit };
            budget.warning(ReadEstimate { what: "accounts", items })
        };
        let fifty = RateLimit::Of(Rate(50.0));
        insta::assert_snapshot!(warning(500_000, fifty).unwrap(), @"reading 500,000 accounts at 50 requests per second takes at least 2 h 47 min, but time_limit is 1h: raise it to at least 2 h 50 min");
        assert_eq!(warning(180_000, fifty), None);
        let round = |items| {
            let time_limit = "1h".parse().unwrap();
            let budget = Budget { requests_per_second: fifty, time_limit };
            budget.round(ReadEstimate { what: "accounts", items })
        };
        insta::assert_snapshot!(round(1_000_000).unwrap(), @"about 12 runs: reading 1,000,000 accounts at 50 requests per second takes at least 5 h 34 min, and each run reads for at most half of its time_limit of 1h");
        assert_eq!(round(90_000), None);
        assert_eq!(warning(u64::MAX, RateLimit::Unlimited), None);
        assert_eq!(warning(u64::MAX, RateLimit::AUTO), None);
        assert_eq!(warning(u64::MAX, RateLimit::Of(Rate(f64::MIN_POSITIVE))), None);
    }
}
