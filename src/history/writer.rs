//! The history as runs and the daemon write it, and what happens while nothing can be recorded.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use sqlx::AnyConnection;

use super::approvals::{Claim, Decision};
use super::changes::{DeletedFile, Page};
use super::database::{Database, Place, Reading, Statements, Work, on_heap, work};
use super::error::Error;
use super::leases::random_id;
use super::pause::Pause;
use super::reader::HistoryReader;
use super::runs::{Overwrite, Under};
use super::schedules::{Others, ScheduleState};
use super::state_dir::StateDir;
use super::{
    approvals, changes, facts, interrupted, leases, media_calls, pause, retention, rounds, runs,
    schedules,
};
use crate::plan::change::MediaStore;
use crate::plan::facts::{Fact, Topic};
use crate::plan::report::{ChangeRecord, Mode, Report};
use crate::plan::round::RoundState;
use crate::values::clock::{Clock, Timestamp};

/// Reads and writes the history; clones share it.
///
/// Without a database it is unavailable: only a dry run may continue then.
#[derive(Debug, Clone)]
pub struct History {
    reader: HistoryReader,
    /// Or why there is none.
    database: Arc<RwLock<Result<Database, Arc<str>>>>,
    place: Option<Place>,
    write_errors: Arc<AtomicU64>,
    clock: Clock,
    /// The id of this process as a holder of leases, where the history is shared.
    holder: Option<Arc<str>>,
}

impl Deref for History {
    type Target = HistoryReader;

    fn deref(&self) -> &HistoryReader {
        &self.reader
    }
}

/// What happens while nothing can be recorded is decided in these functions and nowhere else.
impl History {
    /// Writes what must be on record before anything depends on it: fails while the history is unavailable.
    pub(super) async fn required<'a, T: Send>(
        &self,
        write: impl Statements<'a, T>,
    ) -> Result<T, Error> {
        self.count_error(match self.writable() {
            // On the heap, so that the futures of runs stay small.
            Ok(database) => on_heap(database.write(write)).await,
            Err(error) => Err(error),
        })
    }

    /// As [`required`](Self::required), without waiting behind the records of runs.
    pub(super) async fn required_at_once<'a, T: Send>(
        &self,
        write: impl Statements<'a, T>,
    ) -> Result<T, Error> {
        self.count_error(match self.writable() {
            Ok(database) => on_heap(database.write_at_once(write)).await,
            Err(error) => Err(error),
        })
    }

    /// As [`required`](Self::required), for a run whose start is on record.
    async fn required_of_run<'a, T: Send>(
        &self,
        run: Option<i64>,
        write: impl for<'c> Fn(&'c mut AnyConnection, i64) -> Work<'a, 'c, T> + Send + Sync,
    ) -> Result<T, Error> {
        let Some(run) = run else {
            let problem = "the start of this run was not recorded".into();
            return self.count_error(Err(Error::Unavailable(problem)));
        };
        self.required(|connection| write(connection, run)).await
    }

    /// Writes what can be lost: while the history is unavailable it does nothing, and returns the default.
    async fn optional<'a, T: Default + Send>(
        &self,
        write: impl Statements<'a, T>,
    ) -> Result<T, Error> {
        match self.database() {
            Ok(database) => self.count_error(on_heap(database.write(write)).await),
            Err(_) => Ok(T::default()),
        }
    }

    /// As [`optional`](Self::optional); does nothing either for a run whose start is not on record, a dry run.
    async fn optional_of_run<'a, T: Default + Send>(
        &self,
        run: Option<i64>,
        write: impl for<'c> Fn(&'c mut AnyConnection, i64) -> Work<'a, 'c, T> + Send + Sync,
    ) -> Result<T, Error> {
        match run {
            Some(run) => self.optional(|connection| write(connection, run)).await,
            None => Ok(T::default()),
        }
    }

    /// Returns why nothing can be recorded until the history is opened again.
    pub(crate) fn problem(&self) -> Option<Arc<str>> {
        self.writable().err().map(|error| error.to_string().into())
    }

    /// Where to write what must not get lost: not into a file that is deleted already.
    pub(super) fn writable(&self) -> Result<Database, Error> {
        let database = self.database().map_err(Error::Unavailable)?;
        database.ensure_in_place()?;
        Ok(database)
    }

    fn database(&self) -> Result<Database, Arc<str>> {
        self.database.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn count_error<T>(&self, written: Result<T, Error>) -> Result<T, Error> {
        if written.as_ref().is_err_and(|error| !error.is_refusal()) {
            self.write_errors.fetch_add(1, Ordering::Relaxed);
        }
        written
    }

    /// Returns how many writes have failed since the start.
    pub(crate) fn write_errors(&self) -> u64 {
        self.write_errors.load(Ordering::Relaxed)
    }
}

/// Opening and closing.
impl History {
    /// Opens the history, creates it if needed, and migrates it.
    pub async fn open(place: impl Into<Place>, clock: Clock) -> Result<Self, Error> {
        let place = place.into();
        Ok(Self::of(Ok(Database::open(&place).await?), Some(place), clock))
    }

    /// A history that is not open, and why; it may be opened later where there is a place for it.
    pub fn unavailable(place: Option<Place>, clock: Clock, problem: &str) -> Self {
        Self::of(Err(problem.into()), place, clock)
    }

    fn of(database: Result<Database, Arc<str>>, place: Option<Place>, clock: Clock) -> Self {
        Self {
            holder: None,
            reader: HistoryReader::of(database.as_ref().ok().map(Database::reading)),
            database: Arc::new(RwLock::new(database)),
            place,
            write_errors: Arc::default(),
            clock,
        }
    }

    /// Makes this process one of those that share the history, each under the leases that it holds, where that is possible.
    #[must_use]
    pub(crate) fn into_replica(self) -> Self {
        let is_shared = matches!(self.place, Some(Place::Postgres(_)));
        Self { holder: is_shared.then(|| random_id().into()), ..self }
    }

    /// Opens the history again, in all clones.
    ///
    /// `recall` receives a pause before the history can be used.
    pub(crate) async fn open_now(
        &self,
        recall: impl FnOnce(Result<Pause, Error>),
    ) -> Result<(), Error> {
        let Some(place) = &self.place else { return Ok(()) };
        let opened = on_heap(Database::open(place)).await;
        if let Ok(database) = &opened {
            let reading = database.reading();
            recall(on_heap(reading.read(|connection| work(pause::get(connection)))).await);
        }
        let (database, result) = match opened {
            Ok(database) => (Ok(database), Ok(())),
            Err(error) => {
                (Err(format!("the history cannot be opened: {error}").into()), Err(error))
            }
        };
        self.reader.replace(database.as_ref().ok().map(Database::reading));
        let before = std::mem::replace(
            &mut *self.database.write().unwrap_or_else(PoisonError::into_inner),
            database,
        );
        if let Ok(before) = before {
            before.close().await;
        }
        result
    }

    pub async fn close(&self) {
        if let Ok(database) = self.database() {
            database.close().await;
        }
    }
}

/// Runs and their changes.
impl History {
    /// Records that a run starts, and returns its id; where the history is shared, only under the homeserver's lease.
    ///
    /// One that applies an approved plan claims it, and fails if it must not.
    pub(crate) async fn begin_run(
        &self,
        report: &Report,
        homeserver: &str,
        claim: Option<&Claim>,
    ) -> Result<i64, Error> {
        let (holder, now) = (self.holder.as_deref(), self.clock.now());
        self.required(|connection| {
            work(async move {
                let run = match holder {
                    None => runs::insert(connection, report, None).await?,
                    Some(holder) => {
                        let term = leases::term(connection, homeserver, holder).await?;
                        let under = Under { homeserver, holder, term };
                        runs::insert(connection, report, Some(under)).await?
                    }
                };
                if let Some(claim) = claim {
                    approvals::claim(connection, claim, run, now).await?;
                }
                Ok(run)
            })
        })
        .await
    }

    /// Records where a run stands, or how it ended.
    pub(crate) async fn update_run(&self, report: &Report) -> Result<(), Error> {
        let outcome = self.overwrite();
        self.optional_of_run(report.id, |connection, run| {
            work(runs::update(connection, run, report, outcome))
        })
        .await
    }

    fn overwrite(&self) -> Overwrite {
        match self.holder {
            Some(_) => Overwrite::UnlessTakenOver,
            None => Overwrite::Any,
        }
    }

    /// Records the end of a run in approve mode: its plan replaces older ones, and waits for a decision if it has an
    /// [`approval`](Report::approval).
    pub(crate) async fn end_planning(
        &self,
        report: &Report,
        definition: &str,
    ) -> Result<(), Error> {
        let now = self.clock.now();
        self.optional_of_run(report.id, |connection, run| {
            work(async move {
                runs::update(connection, run, report, self.overwrite()).await?;
                approvals::supersede_older(connection, report, run, now).await?;
                match &report.approval {
                    Some(approval) => {
                        approvals::wait(connection, run, approval.expires_at, definition).await
                    }
                    None => Ok(()),
                }
            })
        })
        .await
    }

    /// Replaces what a run had planned and not attempted, or failed to apply, by a new plan.
    ///
    /// Returns the sequence number of its first change.
    pub(crate) async fn record_plan(
        &self,
        run: Option<i64>,
        changes: &[ChangeRecord],
    ) -> Result<i64, Error> {
        self.optional_of_run(run, |connection, run| {
            work(async move {
                self.fence(connection, run).await?;
                changes::replace_plan(connection, run, changes).await
            })
        })
        .await
    }

    /// Records that a change is about to be sent, and what it will replace; `media` is the call of a media purge.
    ///
    /// Where the history is shared, only under the lease of the run: who has lost it cannot record, and sends nothing.
    pub(crate) async fn record_sent(
        &self,
        run: Option<i64>,
        seq: i64,
        change: &ChangeRecord,
        media: Option<(&str, MediaStore)>,
        facts: (&str, &[Fact]),
    ) -> Result<(), Error> {
        let now = self.clock.now();
        self.required_of_run(run, |connection, run| {
            work(async move {
                self.fence(connection, run).await?;
                if let Some((server, store)) = media {
                    media_calls::insert(connection, server, store, now).await?;
                }
                changes::sent(connection, run, seq, change, facts).await
            })
        })
        .await
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The id of this process as a holder of leases; `None` where nobody shares the history.
    pub(super) fn holder(&self) -> Option<&str> {
        self.holder.as_deref()
    }

    async fn fence(&self, connection: &mut AnyConnection, run: i64) -> Result<(), Error> {
        match self.holder {
            Some(_) => leases::fence(connection, run).await,
            None => Ok(()),
        }
    }

    /// Records the result of a change with the files it deleted and the facts it showed, all at once.
    pub(crate) async fn record_result(
        &self,
        run: Option<i64>,
        seq: i64,
        change: &ChangeRecord,
        server: &str,
        files: &[DeletedFile],
        facts: &[Fact],
    ) -> Result<(), Error> {
        self.required_of_run(run, |connection, run| {
            work(changes::result(connection, run, seq, change, files, (server, facts)))
        })
        .await
    }

    /// Marks changes that were sent and got no response as failed; returns the number of their items.
    pub(crate) async fn fail_unanswered(&self, run: Option<i64>, why: &str) -> Result<u64, Error> {
        self.optional_of_run(run, |connection, run| {
            work(changes::fail_unanswered(connection, run, why))
        })
        .await
    }

    /// Records why planned changes were not attempted.
    pub(crate) async fn explain_planned(&self, run: Option<i64>, why: &str) -> Result<(), Error> {
        self.optional_of_run(run, |connection, run| {
            work(changes::explain_planned(connection, run, why))
        })
        .await
    }

    /// Records the unended runs of a job as interrupted; the caller holds the job's lock.
    pub(crate) async fn mark_interrupted(&self, job: &str) -> Result<(), Error> {
        let (now, holder) = (self.clock.now(), self.holder.as_deref());
        self.optional(|connection| {
            work(async move {
                match holder {
                    None => interrupted::end_all_of(connection, job, now).await,
                    Some(me) => {
                        let mine = Some((me, job));
                        interrupted::end_without_lease(connection, mine, now).await.map(|_| ())
                    }
                }
            })
        })
        .await
    }

    /// Records the end of every run that nobody works on any more, and returns those runs.
    ///
    /// The locks of the state directory tell, and where the history is shared, the leases.
    pub(crate) async fn end_interrupted(&self, dir: &StateDir) -> Result<Vec<Report>, Error> {
        let mut ended = Vec::new();
        if self.holder.is_some() {
            let now = self.clock.now();
            let ids = self
                .optional(|connection| work(interrupted::end_without_lease(connection, None, now)));
            for id in ids.await? {
                ended.extend(self.run(id, Page { offset: 0, limit: 0 }).await?);
            }
            return Ok(ended);
        }
        let unended = self.read(|connection| work(interrupted::unended(connection)));
        for (id, job) in unended.await? {
            // The command line may have started a run while there was no daemon.
            if let Some(_lock) = dir.try_lock(&job)? {
                self.mark_interrupted(&job).await?;
                ended.extend(self.run(id, Page { offset: 0, limit: 0 }).await?);
            }
        }
        Ok(ended)
    }

    /// Deletes runs that started before `time`, and returns their number; facts stay.
    ///
    /// Keeps the counts of the last run of a scheduled job and of its last success: metrics are built from them.
    pub async fn delete_runs_before(&self, time: Timestamp) -> Result<u64, Error> {
        let (mut deleted, mut bound) = (0, Timestamp::UNIX_EPOCH);
        while bound < time && self.database().is_ok() {
            let from = bound;
            let next = self.read(|connection| {
                work(async move { retention::next_bound(connection, from, time).await.map(Some) })
            });
            bound = next.await?.unwrap_or(time);
            let before = bound;
            deleted += self
                .optional(|connection| work(retention::delete_runs_before(connection, before)))
                .await?;
        }
        Ok(deleted)
    }
}

/// Decisions about plans.
impl History {
    /// Records what a person decided about the plan of a run; whether the plan waited for it.
    pub(crate) async fn decide(&self, run: i64, decision: &Decision) -> Result<bool, Error> {
        let now = self.clock.now();
        self.required(|connection| work(approvals::decide(connection, run, decision, now))).await
    }

    /// Ends the wait of a plan that can no longer be applied; whether it waited.
    pub(crate) async fn supersede_plan(&self, run: i64, why: &str) -> Result<bool, Error> {
        let now = self.clock.now();
        self.required(|connection| work(approvals::supersede(connection, run, why, now))).await
    }

    /// Ends the wait of plans that nobody decided about in time; returns their runs and jobs.
    pub(crate) async fn expire_plans(&self) -> Result<Vec<(i64, String)>, Error> {
        let now = self.clock.now();
        self.optional(|connection| work(approvals::expire(connection, now))).await
    }
}

/// What outlives a run.
impl History {
    /// Stores facts about a homeserver.
    pub(crate) async fn remember(&self, server: &str, facts: &[Fact]) -> Result<(), Error> {
        self.optional(|connection| work(facts::insert(connection, server, facts))).await
    }

    /// Forgets facts about a homeserver.
    pub(crate) async fn forget(
        &self,
        server: &str,
        topic: Topic,
        keys: &[String],
    ) -> Result<(), Error> {
        self.optional(|connection| work(facts::delete(connection, server, topic, keys))).await
    }

    /// Records where the round of a job in a mode stands after a run.
    pub(crate) async fn set_round(
        &self,
        run: Option<i64>,
        job: &str,
        mode: Mode,
        round: &RoundState,
    ) -> Result<(), Error> {
        self.optional(|connection| {
            work(async move {
                if let Some(run) = run {
                    self.fence(connection, run).await?;
                }
                rounds::set(connection, job, mode, round).await
            })
        })
        .await
    }

    /// Records that the media call was answered, or is certainly over.
    ///
    /// Who has lost the lease of the run leaves that to the next: the record may be about another call by now.
    pub(crate) async fn media_call_ended(
        &self,
        run: Option<i64>,
        server: &str,
    ) -> Result<(), Error> {
        let ended = self.required(|connection| {
            work(async move {
                if let Some(run) = run {
                    self.fence(connection, run).await?;
                }
                media_calls::delete(connection, server).await
            })
        });
        match ended.await {
            Err(Error::LeaseLost { .. }) => Ok(()),
            ended => ended,
        }
    }

    /// Records the scheduled jobs by name and schedule, and returns what is recorded of each.
    pub(crate) async fn upsert_schedules(
        &self,
        jobs: &[(String, String)],
        others: Others,
    ) -> Result<HashMap<String, ScheduleState>, Error> {
        let now = self.clock.now();
        self.optional(|connection| work(schedules::upsert(connection, jobs, others, now))).await
    }

    /// Records that no occurrence up to `until` is still to be run.
    pub(crate) async fn set_watermark(&self, job: &str, until: Timestamp) -> Result<(), Error> {
        self.optional(|connection| work(schedules::set_watermark(connection, job, until))).await
    }

    /// Returns whether scheduled runs are paused, also while the history is not open.
    ///
    /// A file is read as it lies there then: on a full disk nothing else is possible.
    pub(crate) async fn last_pause(&self) -> Result<Pause, Error> {
        match (self.reader.open(), &self.place) {
            (None, Some(Place::Directory(dir))) => {
                let Some(file) = Reading::open_immutable(dir)? else { return Ok(Pause::default()) };
                let pause = file.read(|connection| work(pause::get(connection))).await;
                file.close().await;
                pause
            }
            (None, Some(Place::Postgres(_))) => {
                Err(Error::Unavailable(self.problem().unwrap_or_default()))
            }
            _ => self.reader.pause().await,
        }
    }

    /// Records a pause, or its end.
    pub(crate) async fn set_pause(&self, pause: Pause) -> Result<(), Error> {
        self.required(|connection| work(pause::set(connection, pause))).await
    }

    /// Fails if the history cannot be written now.
    pub(crate) async fn check_writable(&self) -> Result<(), Error> {
        let now = self.clock.now();
        self.required(|connection| work(pause::probe(connection, now))).await
    }
}
