//! What a kind of job is: its keys, its guards, and how it plans.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::history::{self, History};
use crate::plan::change::{Fact, Plan, Topic};
use crate::plan::report::{Action, Event};
use crate::synapse::{self, Identity, Reader, Version};
use crate::values::clock::Timestamp;
use crate::values::duration::{HumanDuration, format_duration, rounded_up};
use crate::values::schema::{ConfigError, Key, Limit, Rate, Table};
use crate::values::text::format_number;

/// A kind, written for its author: the struct is the kind's own config.
pub trait Job: Debug + Send + Sync + Sized + 'static {
    const KIND: &'static str;
    const ABOUT: &'static str;
    const KEYS: &'static [Key];
    /// Whether the kind knows beforehand how many things it will change; without it `max_changes` and `at_most` mean nothing.
    const COUNTS: bool = true;
    const NEEDS: Needs;
    /// What all its changes do.
    const ACTION: Action;

    /// Reads the kind's keys; a mistake that takes several keys together is found here.
    fn read(table: &Table<'_, '_>, now: Timestamp, mistakes: &mut Vec<ConfigError>)
    -> Option<Self>;

    /// Whether a run that was cut off may be run again although something of it may have been sent.
    fn is_repeatable(&self) -> bool {
        true
    }

    /// What `check` should warn of, with the key it is about.
    fn warnings(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// What `check --online` asks for this job beyond what every homeserver is asked.
    fn check(
        &self,
        _reader: &Reader,
        _identity: &Identity,
    ) -> impl Future<Output = Vec<CheckResult>> + Send {
        async { Vec::new() }
    }

    /// What the reading of a run takes, for `check --online`; `None` where that is not known beforehand.
    fn read_estimate(
        &self,
        _reader: &Reader,
    ) -> impl Future<Output = Result<Option<ReadEstimate>, synapse::Error>> + Send {
        async { Ok(None) }
    }

    /// Reads the homeserver and writes down what would have to change. It has nothing to change it with.
    fn plan(
        &self,
        context: &Context<'_>,
        plan: &mut Plan,
    ) -> impl Future<Output = Result<(), PlanError>> + Send;
}

/// What must hold before a run of a kind may plan.
#[derive(Debug, Clone, Copy)]
pub struct Needs {
    pub synapse: Version,
    /// The kind sends moments: a wrong local clock would delete the wrong things.
    pub clock: bool,
    /// Why the kind makes no sense where accounts live in MAS.
    pub not_under_mas: Option<&'static str>,
    /// The kind plans without asking anything, so that a dry run sends nothing at all.
    pub plans_offline: bool,
    /// The kind uses endpoints that the process behind `media_url` serves.
    pub media: bool,
}

/// A question that `check --online` asked; the error says what to do.
#[derive(Debug)]
pub struct CheckResult {
    pub question: String,
    pub answer: Result<String, String>,
}

/// What the reading of a run takes: one request for each item.
#[derive(Debug, Clone, Copy)]
pub struct ReadEstimate {
    /// What the items are, in the plural.
    pub what: &'static str,
    pub items: u64,
}

/// How many requests a run may send, and how long it may take.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    pub requests_per_second: Limit<Rate>,
    pub time_limit: HumanDuration,
}

impl Budget {
    /// Says that the reading alone takes longer than the time limit; `None` where it does not, or the rate is unlimited.
    pub fn warning(&self, volume: ReadEstimate) -> Option<String> {
        let rate = self.requests_per_second.number()?.0;
        #[expect(clippy::cast_precision_loss, reason = "a rounded time does as well")]
        let takes = Duration::try_from_secs_f64(volume.items as f64 / rate).ok()?;
        (takes > self.time_limit.0).then(|| {
            format!(
                "{} {} at {rate} requests a second take at least {}; time_limit is {}: raise it to at least {}",
                format_number(volume.items),
                volume.what,
                format_duration(to_the_minute(takes)),
                self.time_limit,
                format_duration(rounded_up(takes))
            )
        })
    }
}

/// Rounds up what is given in hours and minutes.
fn to_the_minute(takes: Duration) -> Duration {
    match takes.as_secs() {
        0..3600 => takes,
        seconds => Duration::from_secs(seconds.div_ceil(60).saturating_mul(60)),
    }
}

/// What a job may use while it plans.
pub struct Context<'a> {
    /// When the run started: ages count back from here.
    pub started_at: Timestamp,
    pub reader: &'a Reader,
    pub memory: Memory<'a>,
    pub emit: &'a (dyn Fn(Event) + Send + Sync),
    /// Whether the homeserver keeps its media in object storage, where Synapse deletes nothing.
    pub media_in_object_storage: bool,
    /// How many requests to send at the same time.
    pub concurrency: usize,
    pub budget: Budget,
}

/// What earlier runs learned about this homeserver.
pub struct Memory<'a> {
    history: &'a History,
    server: &'a str,
}

/// Why a plan could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("{0}")]
    Synapse(#[from] synapse::Error),
    #[error("the history cannot be used: {0}")]
    History(#[from] history::Error),
    /// A guard: nothing is wrong with the homeserver, and nothing may be done.
    #[error("{0}")]
    Refused(String),
}

impl Context<'_> {
    pub fn reading(&self, what: &str, done: u64, total: u64) {
        (self.emit)(Event::Reading { what: what.to_owned(), done, total });
    }

    /// Warns where what is about to be read takes longer than the run may.
    pub fn expect_reading(&self, volume: ReadEstimate) {
        if let Some(warning) = self.budget.warning(volume) {
            (self.emit)(Event::Warning(warning));
        }
    }

    /// Who we are there; the runner has asked by now.
    pub async fn identity(&self) -> Result<&Identity, PlanError> {
        Ok(self.reader.identity().await?)
    }
}

impl<'a> Memory<'a> {
    pub fn new(history: &'a History, server: &'a str) -> Self {
        Self { history, server }
    }

    pub async fn facts(
        &self,
        topic: Topic,
    ) -> Result<std::collections::HashMap<String, String>, PlanError> {
        Ok(self.history.facts(self.server, topic).await?)
    }

    /// Remembers as well as it can: what is forgotten is asked again.
    pub async fn remember(&self, facts: &[Fact]) {
        if let Err(error) = self.history.remember(self.server, facts).await {
            tracing::warn!(
                "{} facts about {} could not be remembered and will be asked again: {error}",
                facts.len(),
                self.server
            );
        }
    }
}

/// A job whose kind is not known any more, as the runner uses it.
pub trait AnyJob: Debug + Send + Sync {
    fn kind(&self) -> &'static Kind;
    fn is_repeatable(&self) -> bool;
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

/// Reads a kind's keys from a job's table, at a moment that ages are judged by.
pub type Read = fn(&Table<'_, '_>, Timestamp, &mut Vec<ConfigError>) -> Option<Arc<dyn AnyJob>>;

/// One row of the table of kinds.
#[derive(Debug)]
pub struct Kind {
    pub name: &'static str,
    pub about: &'static str,
    pub keys: &'static [Key],
    pub counts: bool,
    pub needs: Needs,
    pub action: Action,
    pub read: Read,
}

impl Kind {
    pub const fn of<J: Job>() -> Self {
        Self {
            name: J::KIND,
            about: J::ABOUT,
            keys: J::KEYS,
            counts: J::COUNTS,
            needs: J::NEEDS,
            action: J::ACTION,
            read: |table, now, mistakes| Some(Arc::new(J::read(table, now, mistakes)?)),
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

    #[test]
    fn reading_that_takes_longer_than_the_time_limit_is_warned_of() {
        let warning = |items, requests_per_second| {
            let time_limit = "1h".parse().unwrap();
            let budget = Budget { requests_per_second, time_limit };
            budget.warning(ReadEstimate { what: "accounts", items })
        };
        let fifty = Limit::Of(Rate(50.0));
        insta::assert_snapshot!(warning(500_000, fifty).unwrap(), @"500,000 accounts at 50 requests a second take at least 2 h 47 min; time_limit is 1h: raise it to at least 2 h 50 min");
        assert_eq!(warning(180_000, fifty), None);
        assert_eq!(warning(u64::MAX, Limit::Unlimited), None);
        assert_eq!(warning(u64::MAX, Limit::Of(Rate(f64::MIN_POSITIVE))), None);
    }
}
