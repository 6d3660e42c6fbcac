//! The history as everybody may read it; there is nothing here to write with.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use sqlx::SqlitePool;

use super::changes::{DeletedFile, Page};
use super::error::Error;
use super::media_calls::LostMediaCall;
use super::pause::Pause;
use super::runs::Standing;
use super::state_dir::StateDir;
use super::{changes, database, facts, interrupted, media_calls, pause, runs};
use crate::plan::facts::Topic;
use crate::plan::report::{Mode, Report};
use crate::values::clock::Timestamp;

/// Reads the history; without a database there is nothing in it.
#[derive(Debug, Clone, Default)]
pub struct HistoryReader {
    pool: Arc<RwLock<Option<SqlitePool>>>,
}

impl HistoryReader {
    /// Opens the history of a state directory without changing anything there.
    pub(crate) async fn open_read_only(dir: &Path) -> Result<Self, Error> {
        Ok(Self::of(database::open_read_only(dir).await?))
    }

    pub(super) fn of(pool: Option<SqlitePool>) -> Self {
        Self { pool: Arc::new(RwLock::new(pool)) }
    }

    /// Reads from another database from here on, for everybody who holds a clone.
    pub(super) fn replace(&self, pool: Option<SqlitePool>) {
        *self.pool.write().unwrap_or_else(PoisonError::into_inner) = pool;
    }

    pub(super) fn pool(&self) -> Option<SqlitePool> {
        self.pool.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The one place that decides what reading returns without a database: the default.
    async fn read<T: Default>(
        &self,
        read: impl AsyncFnOnce(SqlitePool) -> Result<T, Error>,
    ) -> Result<T, Error> {
        match self.pool() {
            // On the heap, so that the futures of runs stay small.
            Some(pool) => Box::pin(read(pool)).await,
            None => Ok(T::default()),
        }
    }

    /// Returns runs without their changes, newest first.
    pub(crate) async fn runs(&self, job: Option<&str>, limit: u32) -> Result<Vec<Report>, Error> {
        self.read(async |pool| runs::newest(&pool, job, limit).await).await
    }

    /// Returns runs on one homeserver without their changes, newest first.
    pub(crate) async fn runs_on(
        &self,
        homeserver: &str,
        job: Option<&str>,
        limit: u32,
    ) -> Result<Vec<Report>, Error> {
        self.read(async |pool| runs::newest_on(&pool, homeserver, job, limit).await).await
    }

    /// Returns one run with a page of its changes.
    pub(crate) async fn run(&self, id: i64, page: Page) -> Result<Option<Report>, Error> {
        self.read(async |pool| {
            let Some(run) = runs::get(&pool, id).await? else { return Ok(None) };
            let changes = Some(changes::page(&pool, id, page).await?);
            Ok(Some(Report { changes, ..run }))
        })
        .await
    }

    /// Returns the newest run of each job.
    pub(crate) async fn last_runs(&self) -> Result<HashMap<String, Report>, Error> {
        self.read(async |pool| runs::last_of_each_job(&pool).await).await
    }

    /// Returns how each job stands in each mode in which it ever ended.
    pub(crate) async fn standings(&self) -> Result<HashMap<(String, Mode), Standing>, Error> {
        self.read(async |pool| runs::standings(&pool).await).await
    }

    /// Completes the report of a run that has no end and that nobody works on any more.
    ///
    /// Records nothing: that is up to whoever holds the job's lock next.
    pub(crate) async fn as_interrupted(&self, run: Report) -> Result<Report, Error> {
        let completed =
            self.read(async |pool| interrupted::as_interrupted(&pool, run.clone()).await.map(Some));
        Ok(completed.await?.unwrap_or(run))
    }

    /// Returns the scheduled runs that were interrupted and followed by no other of the same job and mode.
    pub(crate) async fn interrupted(&self) -> Result<Vec<Report>, Error> {
        self.read(async |pool| interrupted::last_of_job_and_mode(&pool).await).await
    }

    /// Returns how many runs of an occurrence were interrupted.
    pub(crate) async fn interruptions(
        &self,
        job: &str,
        occurrence: Timestamp,
    ) -> Result<u64, Error> {
        self.read(async |pool| interrupted::count(&pool, job, occurrence).await).await
    }

    /// Returns the files that a run deleted.
    pub(crate) async fn files(&self, run: i64) -> Result<Vec<DeletedFile>, Error> {
        self.read(async |pool| changes::files(&pool, run).await).await
    }

    /// Returns what is known about a homeserver, by key.
    pub(crate) async fn facts(
        &self,
        server: &str,
        topic: Topic,
    ) -> Result<HashMap<String, String>, Error> {
        self.read(async |pool| facts::of_topic(&pool, server, topic).await).await
    }

    /// Returns the media call that Synapse may still be at work on.
    pub(crate) async fn lost_media_call(
        &self,
        server: &str,
    ) -> Result<Option<LostMediaCall>, Error> {
        self.read(async |pool| media_calls::get(&pool, server).await).await
    }

    /// Returns whether scheduled runs are paused.
    ///
    /// If the history is not open, reads the file as it lies in `dir`: on a full disk nothing else is possible.
    pub(crate) async fn pause(&self, dir: Option<&StateDir>) -> Result<Pause, Error> {
        let (Some(dir), None) = (dir, self.pool()) else {
            return self.read(async |pool| pause::get(&pool).await).await;
        };
        let Some(pool) = database::open_immutable(dir).await? else { return Ok(Pause::default()) };
        let pause = pause::get(&pool).await;
        pool.close().await;
        pause
    }
}
