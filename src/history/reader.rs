//! The history as everybody may read it; there is nothing here to write with.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use super::approvals::WaitingPlan;
use super::changes::{DeletedFile, Page};
use super::database::{Reading, Statements, on_heap, work};
use super::database_url::DatabaseUrl;
use super::error::Error;
use super::leases::Replicas;
use super::media_calls::LostMediaCall;
use super::pause::Pause;
use super::requests::{RequestState, WaitingRequest};
use super::runs::Standing;
use super::{
    approvals, changes, facts, interrupted, leases, media_calls, pause, requests, rounds, runs,
};
use crate::plan::facts::Topic;
use crate::plan::report::{Action, Mode, Report};
use crate::plan::round::RoundState;
use crate::values::clock::Timestamp;

/// Reads the history; without a database there is nothing in it.
#[derive(Debug, Clone, Default)]
pub struct HistoryReader {
    open: Arc<RwLock<Option<Reading>>>,
}

/// What replicas read often, to follow each other.
#[derive(Debug, Clone, Default)]
pub struct SharedState {
    /// Homeservers whose leases nobody holds, with the last term of each.
    pub free: BTreeMap<String, i64>,
    pub pause: Pause,
    pub requests: Vec<WaitingRequest>,
}

impl HistoryReader {
    /// Opens the history of a state directory without changing anything there, or that of a database.
    pub(crate) async fn open_read_only(
        dir: &Path,
        url: Option<&DatabaseUrl>,
    ) -> Result<Self, Error> {
        Ok(Self::of(Reading::open(dir, url).await?))
    }

    pub(super) fn of(open: Option<Reading>) -> Self {
        Self { open: Arc::new(RwLock::new(open)) }
    }

    /// Reads from another database from now on, in all clones.
    pub(super) fn replace(&self, open: Option<Reading>) {
        *self.open.write().unwrap_or_else(PoisonError::into_inner) = open;
    }

    pub(super) fn open(&self) -> Option<Reading> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The one place that decides what reading returns without a database: the default.
    pub(super) async fn read<'a, T: Default + Send>(
        &self,
        read: impl Statements<'a, T>,
    ) -> Result<T, Error> {
        match self.open() {
            // On the heap, so that the futures of runs stay small.
            Some(open) => on_heap(open.read(read)).await,
            None => Ok(T::default()),
        }
    }

    /// Returns runs without their changes, newest first.
    pub(crate) async fn runs(&self, job: Option<&str>, limit: u32) -> Result<Vec<Report>, Error> {
        self.read(|connection| work(runs::newest(connection, job, limit))).await
    }

    /// Returns runs on one homeserver without their changes, newest first.
    pub(crate) async fn runs_on(
        &self,
        homeserver: &str,
        job: Option<&str>,
        limit: u32,
    ) -> Result<Vec<Report>, Error> {
        self.read(|connection| work(runs::newest_on(connection, homeserver, job, limit))).await
    }

    /// Returns one run with a page of its changes.
    pub(crate) async fn run(&self, id: i64, page: Page) -> Result<Option<Report>, Error> {
        self.read(|connection| {
            work(async move {
                let Some(run) = runs::get(connection, id).await? else { return Ok(None) };
                let changes = Some(changes::page(connection, id, page).await?);
                Ok(Some(Report { changes, ..run }))
            })
        })
        .await
    }

    /// Returns what a run has planned and not attempted, by action and target.
    pub(crate) async fn planned(&self, run: i64) -> Result<HashSet<(Action, String)>, Error> {
        self.read(|connection| work(changes::planned(connection, run))).await
    }

    /// Returns the plans that wait for a decision or for their run, oldest first.
    pub(crate) async fn waiting_plans(&self) -> Result<Vec<WaitingPlan>, Error> {
        self.read(|connection| work(approvals::waiting(connection))).await
    }

    /// Returns the newest run of each job.
    pub(crate) async fn last_runs(&self) -> Result<HashMap<String, Report>, Error> {
        self.read(|connection| work(runs::last_of_each_job(connection))).await
    }

    /// Returns the last results of each job, in each mode in which it ever ended.
    pub(crate) async fn standings(&self) -> Result<HashMap<(String, Mode), Standing>, Error> {
        self.read(|connection| work(runs::standings(connection))).await
    }

    /// Returns where the round of a job in a mode stands.
    pub(crate) async fn round(&self, job: &str, mode: Mode) -> Result<Option<RoundState>, Error> {
        self.read(|connection| work(rounds::get(connection, job, mode))).await
    }

    /// Returns where all rounds stand.
    pub(crate) async fn rounds(&self) -> Result<HashMap<(String, Mode), RoundState>, Error> {
        self.read(|connection| work(rounds::all(connection))).await
    }

    /// Returns what this replica has to know of what others did.
    pub(crate) async fn shared_state(&self) -> Result<SharedState, Error> {
        let Some(open) = self.open() else { return Ok(SharedState::default()) };
        let read = open.read_at_once(|connection| {
            work(async move {
                Ok(SharedState {
                    free: leases::free(connection).await?,
                    pause: pause::get(connection).await?,
                    requests: requests::waiting(connection).await?,
                })
            })
        });
        on_heap(read).await
    }

    /// Returns the daemons that were seen within `ttl`, and what they work on; none where nobody shares the history.
    pub(crate) async fn replicas(&self, ttl: Duration) -> Result<Replicas, Error> {
        match self.open() {
            Some(open @ Reading::Postgres(_)) => {
                on_heap(open.read(|connection| work(leases::replicas(connection, ttl)))).await
            }
            _ => Ok(Replicas::default()),
        }
    }

    /// Returns a run of another replica as it stands: with the counts of its recorded changes while it is in progress,
    /// with its first changes at its end, and completed if nobody works on it any more.
    pub(crate) async fn followed_run(&self, id: i64) -> Result<Option<Report>, Error> {
        self.read(|connection| {
            work(async move {
                let Some(run) = runs::get(connection, id).await? else { return Ok(None) };
                let under_way = run.outcome.is_none()
                    && leases::is_under_way(connection, id).await? != Some(false);
                if under_way {
                    return interrupted::in_progress(connection, run).await.map(Some);
                }
                let run = match run.outcome {
                    Some(_) => run,
                    None => interrupted::as_interrupted(connection, run).await?,
                };
                let changes = changes::page(connection, id, Page::default()).await?;
                Ok(Some(Report { changes: Some(changes), ..run }))
            })
        })
        .await
    }

    /// Whether a run that has no end is under way, on whichever replica; `None` where only locks tell.
    pub(crate) async fn is_under_way(&self, run: i64) -> Result<Option<bool>, Error> {
        match self.open() {
            Some(open @ Reading::Postgres(_)) => {
                let read = open.read(|connection| work(leases::is_under_way(connection, run)));
                on_heap(read).await
            }
            _ => Ok(None),
        }
    }

    /// Completes the report of a run that has no end and that nobody works on any more.
    ///
    /// Records nothing: the next holder of the job's lock does that.
    pub(crate) async fn as_interrupted(&self, run: Report) -> Result<Report, Error> {
        let completed = self.read(|connection| {
            let run = run.clone();
            work(async move { interrupted::as_interrupted(connection, run).await.map(Some) })
        });
        Ok(completed.await?.unwrap_or(run))
    }

    /// Returns the scheduled runs that were interrupted and followed by no other of the same job and mode.
    pub(crate) async fn interrupted(&self) -> Result<Vec<Report>, Error> {
        self.read(|connection| work(interrupted::last_of_job_and_mode(connection))).await
    }

    /// Returns how many runs of an occurrence were interrupted.
    pub(crate) async fn interruptions(
        &self,
        job: &str,
        occurrence: Timestamp,
    ) -> Result<u64, Error> {
        self.read(|connection| work(interrupted::count(connection, job, occurrence))).await
    }

    /// Returns the files that a run deleted.
    pub(crate) async fn files(&self, run: i64) -> Result<Vec<DeletedFile>, Error> {
        self.read(|connection| work(changes::files(connection, run))).await
    }

    /// Returns what is known about a homeserver, by key.
    pub(crate) async fn facts(
        &self,
        server: &str,
        topic: Topic,
    ) -> Result<HashMap<String, String>, Error> {
        self.read(|connection| work(facts::of_topic(connection, server, topic))).await
    }

    /// Returns what is known of a topic for keys from `first` to `last`.
    pub(crate) async fn facts_between(
        &self,
        server: &str,
        topic: Topic,
        range: (&str, &str),
    ) -> Result<HashMap<String, String>, Error> {
        self.read(|connection| work(facts::between(connection, server, topic, range))).await
    }

    /// Returns the media call that Synapse may still be processing.
    pub(crate) async fn lost_media_call(
        &self,
        server: &str,
    ) -> Result<Option<LostMediaCall>, Error> {
        self.read(|connection| work(media_calls::get(connection, server))).await
    }

    /// Returns how far a request for another replica has come; `None` without a history.
    pub(crate) async fn request_state(&self, id: i64) -> Result<Option<RequestState>, Error> {
        self.read(|connection| work(async move { requests::state(connection, id).await.map(Some) }))
            .await
    }

    /// Returns whether scheduled runs are paused.
    pub(crate) async fn pause(&self) -> Result<Pause, Error> {
        self.read(|connection| work(pause::get(connection))).await
    }
}
