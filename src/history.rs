//! The history: runs, their changes, and what was learned, written as it happens.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{QueryBuilder, Row, SqlitePool};

use crate::change::{Fact, Store, Topic};
use crate::clock::{Clock, Timestamp};
use crate::report::{Action, CHANGES_SHOWN, ChangeRecord, Mode, Outcome, Report, State};
use crate::state_dir::{Lock, StateDir};

/// What is known of earlier runs. One without a database keeps nothing and knows nothing: only a dry run may use it.
#[derive(Debug, Clone)]
pub struct History {
    pools: Option<Pools>,
    /// Why there is no database.
    problem: Arc<str>,
    write_errors: Arc<AtomicU64>,
    clock: Clock,
}

/// One connection writes, so that writers queue here and not in SQLite, which makes them sleep.
#[derive(Debug, Clone)]
struct Pools {
    write: SqlitePool,
    read: SqlitePool,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Database(#[from] sqlx::Error),
    #[error("{0}")]
    Migration(#[from] sqlx::migrate::MigrateError),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    NotKept(Arc<str>),
}

/// Which changes of a run to read.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    pub offset: u32,
    pub limit: u32,
}

impl Default for Page {
    fn default() -> Self {
        Self { offset: 0, limit: CHANGES_SHOWN }
    }
}

/// A media call whose answer was never recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostCall {
    pub store: Store,
    pub sent_at: Timestamp,
}

/// A scheduled job as the history knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Since when it is enabled with its present schedule.
    pub since: Timestamp,
    /// The last occurrence that was run or skipped.
    pub dealt_with: Option<Timestamp>,
}

/// How a job does in one mode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    pub last_success: Option<Timestamp>,
    /// Runs since then that did not succeed.
    pub failures: u64,
}

/// A switch that outlives the daemon: whether scheduled runs are paused.
pub const PAUSED: &str = "paused";

const FILE: &str = "history.db";
/// SQLite takes 32,766 values in a statement.
const ROWS_AT_ONCE: usize = 2000;
/// In KiB where negative. SQLite's own 2 MiB fill up for each connection as the history grows, and gain nothing here.
const CACHE: &str = "-256";
/// How long to wait for another process that writes.
const BUSY: Duration = Duration::from_secs(10);
/// How long a write may wait for its turn: a thousand runs that begin in one second write thousands of times.
const TURN: Duration = Duration::from_mins(10);

impl History {
    /// Opens the history in the state directory and brings its tables up to date.
    pub async fn open(dir: &StateDir, clock: Clock) -> Result<Self, Error> {
        let _opening = opening(dir).await?;
        let path = dir.path(FILE);
        if !path.exists() {
            // It names people. SQLite gives the files that it makes beside it the same mode and owner.
            OpenOptions::new().write(true).create_new(true).mode(0o640).open(&path)?;
            dir.give_to_owner(&path)?;
        }
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .journal_mode(SqliteJournalMode::Wal)
            // A change that was recorded must survive a power cut: it says what to put back.
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .pragma("cache_size", CACHE)
            // A read-only root filesystem has no /tmp to write to.
            .pragma("temp_store", "memory")
            .busy_timeout(BUSY);
        let write = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(TURN)
            .connect_with(options)
            .await?;
        sqlx::migrate!("src/history/migrations").run(&write).await?;
        let read = reading(&path).await?;
        Ok(Self {
            pools: Some(Pools { write, read }),
            problem: "".into(),
            write_errors: Arc::default(),
            clock,
        })
    }

    /// Opens the history of a directory to look at; `None` where there is none yet.
    pub async fn look(dir: &Path, clock: Clock) -> Result<Option<Self>, Error> {
        let path = dir.join(FILE);
        if !path.try_exists()? {
            return Ok(None);
        }
        let read = reading(&path).await?;
        Ok(Some(Self {
            pools: Some(Pools { write: read.clone(), read }),
            problem: "".into(),
            write_errors: Arc::default(),
            clock,
        }))
    }

    pub fn none(clock: Clock, problem: &str) -> Self {
        Self { pools: None, problem: problem.into(), write_errors: Arc::default(), clock }
    }

    /// How often something could not be written since the start.
    pub fn write_errors(&self) -> u64 {
        self.write_errors.load(Ordering::Relaxed)
    }

    pub async fn close(&self) {
        if let Some(pools) = &self.pools {
            pools.read.close().await;
            pools.write.close().await;
        }
    }

    fn kept(&self) -> Result<&SqlitePool, Error> {
        self.writable().ok_or_else(|| Error::NotKept(Arc::clone(&self.problem)))
    }

    fn writable(&self) -> Option<&SqlitePool> {
        self.pools.as_ref().map(|pools| &pools.write)
    }

    fn readable(&self) -> Option<&SqlitePool> {
        self.pools.as_ref().map(|pools| &pools.read)
    }

    /// Counts what could not be written.
    async fn counted<T>(&self, write: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let written = write.await;
        if written.is_err() {
            self.write_errors.fetch_add(1, Ordering::Relaxed);
        }
        written
    }

    /// Records that a run begins; its id is what everything else is recorded under.
    pub async fn begin(&self, report: &Report) -> Result<i64, Error> {
        self.counted(async {
        let mut transaction = self.kept()?.begin().await?;
        let row = sqlx::query(
            "INSERT INTO runs (job, kind, homeserver, mode, cause, scheduled_for, started_at, attempts) VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING id",
        )
        .bind(&report.job)
        .bind(&report.kind)
        .bind(&report.homeserver)
        .bind(report.mode.as_str())
        .bind(report.trigger.as_str())
        .bind(report.scheduled_for.map(|moment| moment.timestamp_millis()))
        .bind(report.started_at.timestamp_millis())
        .bind(report.attempts + 1)
        .fetch_one(&mut *transaction)
        .await?;
        if let Some(occurrence) = report.scheduled_for {
            sqlx::query("UPDATE jobs SET dealt_with = $2 WHERE name = $1").bind(&report.job).bind(occurrence.timestamp_millis()).execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        Ok(row.try_get("id")?)
        })
        .await
    }

    /// Records where the run stands, or how it ended.
    pub async fn save(&self, report: &Report) -> Result<(), Error> {
        self.counted(async {
        let (Some(pool), Some(id)) = (self.writable(), report.id) else { return Ok(()) };
        sqlx::query(
            "UPDATE runs SET finished_at = $2, attempts = $3, outcome = $4, message = $5, planned = $6, done = $7, failed = $8, skipped = $9, \
             remaining = $10, bytes_planned = $11, bytes_freed = $12, sample = $13 WHERE id = $1",
        )
        .bind(id)
        .bind(report.finished_at.map(|moment| moment.timestamp_millis()))
        .bind(report.attempts)
        .bind(report.outcome.map(Outcome::as_str))
        .bind(&report.message)
        .bind(report.planned.map(signed))
        .bind(signed(report.done))
        .bind(signed(report.failed))
        .bind(signed(report.skipped))
        .bind(signed(report.remaining))
        .bind(report.bytes_planned.map(signed))
        .bind(report.bytes_freed.map(signed))
        .bind(serde_json::to_string(&report.sample).ok())
        .execute(pool)
        .await?;
        Ok(())
        })
        .await
    }

    /// Replaces what the run had planned and not made, or failed to make, by a new plan; answers the number of its first change.
    pub async fn plan(&self, run: Option<i64>, changes: &[ChangeRecord]) -> Result<i64, Error> {
        self.counted(async {
            let (Some(pool), Some(run)) = (self.writable(), run) else { return Ok(0) };
            let mut transaction = pool.begin().await?;
            sqlx::query("DELETE FROM changes WHERE run = $1 AND state = 'planned'")
                .bind(run)
                .execute(&mut *transaction)
                .await?;
            let first: i64 = sqlx::query(
                "SELECT COALESCE(MAX(seq) + 1, 0) AS first FROM changes WHERE run = $1",
            )
            .bind(run)
            .fetch_one(&mut *transaction)
            .await?
            .try_get("first")?;
            let numbered: Vec<(i64, &ChangeRecord)> = (first..).zip(changes).collect();
            for some in numbered.chunks(ROWS_AT_ONCE) {
                QueryBuilder::new(
                    "INSERT INTO changes (run, seq, action, target, count, state, detail) ",
                )
                .push_values(some, |mut row, (seq, change)| {
                    row.push_bind(run)
                        .push_bind(seq)
                        .push_bind(change.action.as_str())
                        .push_bind(&change.target)
                        .push_bind(signed(change.count))
                        .push_bind(change.state.as_str())
                        .push_bind(&change.detail);
                })
                .build()
                .execute(&mut *transaction)
                .await?;
            }
            // What failed and is planned again is replaced, save where the record says what to put back.
            sqlx::query(
                "DELETE FROM changes WHERE run = $1 AND seq < $2 AND state = 'failed' AND before IS NULL \
                 AND target IN (SELECT target FROM changes WHERE run = $1 AND seq >= $2)",
            )
            .bind(run)
            .bind(first)
            .execute(&mut *transaction)
            .await?;
            transaction.commit().await?;
            Ok(first)
        })
        .await
    }

    /// Records that a change is about to be sent, and what it will replace.
    pub async fn making(
        &self,
        run: Option<i64>,
        seq: i64,
        change: &ChangeRecord,
    ) -> Result<(), Error> {
        self.counted(async {
        let (pool, Some(run)) = (self.kept()?, run) else { return Ok(()) };
        sqlx::query(
            "INSERT INTO changes (run, seq, action, target, count, state, before) VALUES ($1, $2, $3, $4, $5, 'making', $6) \
             ON CONFLICT (run, seq) DO UPDATE SET state = 'making', before = excluded.before",
        )
        .bind(run)
        .bind(seq)
        .bind(change.action.as_str())
        .bind(&change.target)
        .bind(signed(change.count))
        .bind(change.before.as_ref().map(Value::to_string))
        .execute(pool)
        .await?;
        Ok(())
        })
        .await
    }

    /// Records what became of a change, with the files that went and what was learned, all at once.
    pub async fn made(
        &self,
        run: Option<i64>,
        seq: i64,
        change: &ChangeRecord,
        server: &str,
        files: &[(String, Option<u64>)],
        facts: &[Fact],
    ) -> Result<(), Error> {
        self.counted(async {
        let (pool, Some(run)) = (self.kept()?, run) else { return Ok(()) };
        let mut transaction = pool.begin().await?;
        sqlx::query(
            "INSERT INTO changes (run, seq, action, target, count, state, detail) VALUES ($1, $2, $3, $4, $5, $6, $7) \
             ON CONFLICT (run, seq) DO UPDATE SET count = excluded.count, state = excluded.state, detail = excluded.detail",
        )
        .bind(run)
        .bind(seq)
        .bind(change.action.as_str())
        .bind(&change.target)
        .bind(signed(change.count))
        .bind(change.state.as_str())
        .bind(&change.detail)
        .execute(&mut *transaction)
        .await?;
        for some in files.chunks(ROWS_AT_ONCE) {
            QueryBuilder::new("INSERT OR IGNORE INTO files (run, media_id, bytes) ")
                .push_values(some, |mut row, (id, bytes)| {
                    row.push_bind(run).push_bind(id).push_bind(bytes.map(signed));
                })
                .build()
                .execute(&mut *transaction)
                .await?;
        }
        insert_facts(&mut transaction, server, facts).await?;
        transaction.commit().await?;
        Ok(())
        })
        .await
    }

    /// Records what was learned; without a history it is forgotten.
    pub async fn learn(&self, server: &str, facts: &[Fact]) -> Result<(), Error> {
        self.counted(async {
            let Some(pool) = self.writable() else { return Ok(()) };
            let mut transaction = pool.begin().await?;
            insert_facts(&mut transaction, server, facts).await?;
            transaction.commit().await?;
            Ok(())
        })
        .await
    }

    /// All that is known of a topic.
    pub async fn facts(
        &self,
        server: &str,
        topic: Topic,
    ) -> Result<HashMap<String, String>, Error> {
        let Some(pool) = self.readable() else { return Ok(HashMap::new()) };
        let rows = sqlx::query("SELECT key, value FROM facts WHERE server = $1 AND topic = $2")
            .bind(server)
            .bind(topic.as_str())
            .fetch_all(pool)
            .await?;
        rows.iter().map(|row| Ok((row.try_get("key")?, row.try_get("value")?))).collect()
    }

    /// Records that a media call goes out, before it does.
    pub async fn media_call_sent(&self, server: &str, store: Store) -> Result<(), Error> {
        self.counted(async {
        let pool = self.kept()?;
        let uploaded_until = match store {
            Store::Local { until } => Some(until.timestamp_millis()),
            Store::Remote => None,
        };
        sqlx::query("INSERT OR REPLACE INTO media_calls (server, sent_at, uploaded_until) VALUES ($1, $2, $3)")
            .bind(server)
            .bind(self.clock.now().timestamp_millis())
            .bind(uploaded_until)
            .execute(pool)
            .await?;
        Ok(())
        })
        .await
    }

    /// Forgets a media call: it was answered, or is certainly over.
    pub async fn media_call_over(&self, server: &str) -> Result<(), Error> {
        self.counted(async {
            let pool = self.kept()?;
            sqlx::query("DELETE FROM media_calls WHERE server = $1")
                .bind(server)
                .execute(pool)
                .await?;
            Ok(())
        })
        .await
    }

    pub async fn lost_media_call(&self, server: &str) -> Result<Option<LostCall>, Error> {
        let Some(pool) = self.readable() else { return Ok(None) };
        let row = sqlx::query("SELECT sent_at, uploaded_until FROM media_calls WHERE server = $1")
            .bind(server)
            .fetch_optional(pool)
            .await?;
        row.map(|row| {
            let until: Option<i64> = row.try_get("uploaded_until")?;
            Ok(LostCall {
                store: until.map_or(Store::Remote, |until| Store::Local { until: moment(until) }),
                sent_at: moment(row.try_get("sent_at")?),
            })
        })
        .transpose()
    }

    /// Ends the record of changes that were sent and whose answer was never seen.
    pub async fn abandon(&self, run: Option<i64>, why: &str) -> Result<u64, Error> {
        self.counted(async {
        let (Some(pool), Some(run)) = (self.writable(), run) else { return Ok(0) };
        let rows = sqlx::query("UPDATE changes SET state = 'failed', detail = $2 WHERE run = $1 AND state = 'making' RETURNING count").bind(run).bind(why).fetch_all(pool).await?;
        rows.iter().map(|row| Ok(unsigned(row.try_get("count")?))).sum()
        })
        .await
    }

    /// Calls the unended runs of a job interrupted: nobody is at work on them, since the caller holds the job's lock.
    pub async fn interrupt(&self, job: &str) -> Result<(), Error> {
        self.counted(async {
        let (Some(read), Some(pool)) = (self.readable(), self.writable()) else { return Ok(()) };
        let rows = sqlx::query("SELECT id FROM runs WHERE job = $1 AND outcome IS NULL")
            .bind(job)
            .fetch_all(read)
            .await?;
        for row in rows {
            let id: i64 = row.try_get("id")?;
            self.abandon(Some(id), "the program ended while this was sent: it may have been made")
                .await?;
            let counted = |state: State| {
                format!(
                    "(SELECT COALESCE(SUM(count), 0) FROM changes WHERE run = $1 AND state = '{state}')"
                )
            };
            let (done, failed) = (counted(State::Done), counted(State::Failed));
            // Files that Synapse kept are only in the run's own figure.
            let skipped = format!("MAX(skipped, {})", counted(State::Skipped));
            let sql = format!(
                "UPDATE runs SET outcome = 'interrupted', finished_at = $2, message = 'the program ended while this run was at work', \
                 done = {done}, failed = {failed}, skipped = {skipped}, \
                 remaining = COALESCE(MAX(planned - {done} - {failed} - {skipped}, 0), {}), \
                 bytes_freed = bytes_freed - bytes_freed + (SELECT COALESCE(SUM(bytes), 0) FROM files WHERE run = $1) WHERE id = $1",
                counted(State::Planned),
            );
            sqlx::query(sqlx::AssertSqlSafe(sql))
                .bind(id)
                .bind(self.clock.now().timestamp_millis())
                .execute(pool)
                .await?;
        }
        Ok(())
        })
        .await
    }

    /// Ends the record of every run that nobody is at work on any more.
    ///
    /// Answers the scheduled runs that were interrupted, by whatever, and after which none of the same job and mode came.
    pub async fn interrupted(&self, dir: &StateDir) -> Result<Vec<Report>, Error> {
        let Some(pool) = self.readable() else { return Ok(Vec::new()) };
        let rows = sqlx::query("SELECT DISTINCT job FROM runs WHERE outcome IS NULL")
            .fetch_all(pool)
            .await?;
        for row in rows {
            let job: String = row.try_get("job")?;
            // The command line may have begun a run while there was no daemon.
            if let Some(_nobody_else) = dir.try_lock(&job)? {
                self.interrupt(&job).await?;
            }
        }
        let rows = sqlx::query(
            "SELECT * FROM runs WHERE id IN (SELECT MAX(id) FROM runs GROUP BY job, mode) AND outcome = 'interrupted' AND cause <> 'manual'",
        )
        .fetch_all(pool)
        .await?;
        rows.iter().map(report).collect()
    }

    /// How many runs of an occurrence were interrupted.
    pub async fn interruptions(&self, job: &str, occurrence: Timestamp) -> Result<u64, Error> {
        let Some(pool) = self.readable() else { return Ok(0) };
        let row = sqlx::query("SELECT COUNT(*) AS times FROM runs WHERE job = $1 AND scheduled_for = $2 AND outcome = 'interrupted'")
            .bind(job)
            .bind(occurrence.timestamp_millis())
            .fetch_one(pool)
            .await?;
        Ok(unsigned(row.try_get("times")?))
    }

    /// Makes the scheduled jobs known, and forgets the others; a job whose schedule is another one is known since now.
    pub async fn know(&self, jobs: &[(String, String)]) -> Result<HashMap<String, Known>, Error> {
        self.counted(async {
            let Some(pool) = self.writable() else { return Ok(HashMap::new()) };
            let now = self.clock.now().timestamp_millis();
            let mut transaction = pool.begin().await?;
            let rows = sqlx::query("SELECT * FROM jobs").fetch_all(&mut *transaction).await?;
            let mut known: HashMap<String, (String, Known)> = HashMap::new();
            for row in &rows {
                let dealt_with: Option<i64> = row.try_get("dealt_with")?;
                let value = Known {
                    since: moment(row.try_get("since")?),
                    dealt_with: dealt_with.map(moment),
                };
                known.insert(row.try_get("name")?, (row.try_get("schedule")?, value));
            }
            let new: Vec<&(String, String)> = jobs
                .iter()
                .filter(|(name, schedule)| {
                    known.get(name).is_none_or(|(known, _)| known != schedule)
                })
                .collect();
            let listed: std::collections::HashSet<&str> =
                jobs.iter().map(|(name, _)| name.as_str()).collect();
            for name in known.keys().filter(|name| !listed.contains(name.as_str())) {
                sqlx::query("DELETE FROM jobs WHERE name = $1")
                    .bind(name)
                    .execute(&mut *transaction)
                    .await?;
            }
            for some in new.chunks(ROWS_AT_ONCE) {
                QueryBuilder::new("INSERT OR REPLACE INTO jobs (name, schedule, since) ")
                    .push_values(some, |mut row, (name, schedule)| {
                        row.push_bind(name).push_bind(schedule).push_bind(now);
                    })
                    .build()
                    .execute(&mut *transaction)
                    .await?;
            }
            transaction.commit().await?;
            let fresh: HashMap<String, Known> = new
                .into_iter()
                .map(|(name, _)| (name.clone(), Known { since: moment(now), dealt_with: None }))
                .collect();
            let kept = known
                .into_iter()
                .filter(|(name, _)| listed.contains(name.as_str()))
                .map(|(name, (_, value))| (name, value));
            Ok(kept.chain(fresh).collect())
        })
        .await
    }

    /// Records that an occurrence was run or skipped, so that it does not count as missed.
    pub async fn dealt_with(&self, job: &str, occurrence: Timestamp) -> Result<(), Error> {
        self.counted(async {
            let Some(pool) = self.writable() else { return Ok(()) };
            sqlx::query("UPDATE jobs SET dealt_with = $2 WHERE name = $1")
                .bind(job)
                .bind(occurrence.timestamp_millis())
                .execute(pool)
                .await?;
            Ok(())
        })
        .await
    }

    pub async fn switch(&self, name: &str) -> Result<bool, Error> {
        let Some(pool) = self.readable() else { return Ok(false) };
        let row = sqlx::query("SELECT value FROM switches WHERE name = $1")
            .bind(name)
            .fetch_optional(pool)
            .await?;
        Ok(row.map(|row| row.try_get::<i64, _>("value")).transpose()?.unwrap_or(0) != 0)
    }

    pub async fn set_switch(&self, name: &str, on: bool) -> Result<(), Error> {
        self.set(name, i64::from(on)).await
    }

    async fn set(&self, name: &str, value: i64) -> Result<(), Error> {
        self.counted(async {
            let pool = self.kept()?;
            sqlx::query("INSERT OR REPLACE INTO switches (name, value) VALUES ($1, $2)")
                .bind(name)
                .bind(value)
                .execute(pool)
                .await?;
            Ok(())
        })
        .await
    }

    /// Whether the history can be written now: writes. SQLite would not write what is there already.
    pub async fn probe(&self) -> Result<(), Error> {
        self.set("probe", self.clock.now().timestamp_micros()).await
    }

    /// How each job stands in each mode: when it last succeeded, and how many of its runs since did not.
    pub async fn standings(&self) -> Result<HashMap<(String, Mode), Standing>, Error> {
        let Some(pool) = self.readable() else { return Ok(HashMap::new()) };
        let mut standings: HashMap<(String, Mode), Standing> = HashMap::new();
        let rows = sqlx::query("SELECT * FROM runs WHERE id IN (SELECT MAX(id) FROM runs WHERE outcome = 'succeeded' GROUP BY job, mode)").fetch_all(pool).await?;
        for row in &rows {
            let run = report(row)?;
            standings.entry((run.job, run.mode)).or_default().last_success = run.finished_at;
        }
        let rows = sqlx::query(
            "SELECT job, mode, COUNT(*) AS failures FROM runs AS run WHERE outcome IS NOT NULL AND id > COALESCE( \
             (SELECT MAX(id) FROM runs AS good WHERE good.job = run.job AND good.mode = run.mode AND good.outcome = 'succeeded'), 0) GROUP BY job, mode",
        )
        .fetch_all(pool)
        .await?;
        for row in &rows {
            standings.entry((row.try_get("job")?, word(row, "mode")?)).or_default().failures =
                unsigned(row.try_get("failures")?);
        }
        Ok(standings)
    }

    /// Runs without their changes, newest first.
    pub async fn runs(&self, job: Option<&str>, limit: u32) -> Result<Vec<Report>, Error> {
        let Some(pool) = self.readable() else { return Ok(Vec::new()) };
        let rows = sqlx::query(
            "SELECT * FROM runs WHERE $1 IS NULL OR job = $1 ORDER BY id DESC LIMIT $2",
        )
        .bind(job)
        .bind(limit)
        .fetch_all(pool)
        .await?;
        rows.iter().map(report).collect()
    }

    /// The newest run of each job.
    pub async fn last_runs(&self) -> Result<HashMap<String, Report>, Error> {
        let Some(pool) = self.readable() else { return Ok(HashMap::new()) };
        let rows =
            sqlx::query("SELECT * FROM runs WHERE id IN (SELECT MAX(id) FROM runs GROUP BY job)")
                .fetch_all(pool)
                .await?;
        rows.iter().map(|row| report(row).map(|report| (report.job.clone(), report))).collect()
    }

    /// One run with a page of its changes.
    pub async fn run(&self, id: i64, page: Page) -> Result<Option<Report>, Error> {
        let Some(pool) = self.readable() else { return Ok(None) };
        let Some(row) =
            sqlx::query("SELECT * FROM runs WHERE id = $1").bind(id).fetch_optional(pool).await?
        else {
            return Ok(None);
        };
        let mut report = report(&row)?;
        let rows =
            sqlx::query("SELECT * FROM changes WHERE run = $1 ORDER BY seq LIMIT $2 OFFSET $3")
                .bind(id)
                .bind(page.limit)
                .bind(page.offset)
                .fetch_all(pool)
                .await?;
        report.changes = Some(rows.iter().map(change).collect::<Result<_, Error>>()?);
        Ok(Some(report))
    }

    /// The files that a run deleted.
    pub async fn files(&self, run: i64) -> Result<Vec<(String, Option<u64>)>, Error> {
        let Some(pool) = self.readable() else { return Ok(Vec::new()) };
        let rows =
            sqlx::query("SELECT media_id, bytes FROM files WHERE run = $1 ORDER BY media_id")
                .bind(run)
                .fetch_all(pool)
                .await?;
        rows.iter()
            .map(|row| {
                Ok((
                    row.try_get("media_id")?,
                    row.try_get::<Option<i64>, _>("bytes")?.map(unsigned),
                ))
            })
            .collect()
    }

    /// Deletes runs that began before `moment`, with all that belongs to them; the facts stay.
    pub async fn forget_before(&self, moment: Timestamp) -> Result<u64, Error> {
        self.counted(async {
            let Some(pool) = self.writable() else { return Ok(0) };
            let gone =
                sqlx::query("DELETE FROM runs WHERE started_at < $1 AND outcome IS NOT NULL")
                    .bind(moment.timestamp_millis())
                    .execute(pool)
                    .await?;
            Ok(gone.rows_affected())
        })
        .await
    }
}

async fn reading(path: &Path) -> Result<SqlitePool, Error> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        .pragma("cache_size", CACHE)
        .pragma("temp_store", "memory")
        .busy_timeout(BUSY);
    Ok(SqlitePoolOptions::new().max_connections(2).min_connections(0).connect_with(options).await?)
}

/// One process at a time: nothing else keeps two first starts from making the same tables.
async fn opening(dir: &StateDir) -> Result<Lock, Error> {
    const LOOK_AGAIN: Duration = Duration::from_millis(20);
    loop {
        // The dot keeps it apart from the locks of jobs.
        if let Some(lock) = dir.try_lock("history.open")? {
            return Ok(lock);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

async fn insert_facts(
    transaction: &mut sqlx::SqliteTransaction<'_>,
    server: &str,
    facts: &[Fact],
) -> Result<(), Error> {
    for some in facts.chunks(ROWS_AT_ONCE) {
        QueryBuilder::new("INSERT OR REPLACE INTO facts (server, topic, key, value) ")
            .push_values(some, |mut row, fact| {
                row.push_bind(server)
                    .push_bind(fact.topic.as_str())
                    .push_bind(&fact.key)
                    .push_bind(&fact.value);
            })
            .build()
            .execute(&mut **transaction)
            .await?;
    }
    Ok(())
}

fn report(row: &SqliteRow) -> Result<Report, Error> {
    let count = |column: &str| row.try_get::<i64, _>(column).map(unsigned);
    let known =
        |column: &str| row.try_get::<Option<i64>, _>(column).map(|value| value.map(unsigned));
    let at = |column: &str| row.try_get::<Option<i64>, _>(column).map(|value| value.map(moment));
    Ok(Report {
        id: Some(row.try_get("id")?),
        job: row.try_get("job")?,
        kind: row.try_get("kind")?,
        homeserver: row.try_get("homeserver")?,
        mode: word(row, "mode")?,
        trigger: word(row, "cause")?,
        scheduled_for: at("scheduled_for")?,
        started_at: moment(row.try_get("started_at")?),
        finished_at: at("finished_at")?,
        attempts: row.try_get("attempts")?,
        outcome: row
            .try_get::<Option<String>, _>("outcome")?
            .map(|_| word(row, "outcome"))
            .transpose()?,
        message: row.try_get("message")?,
        planned: known("planned")?,
        done: count("done")?,
        failed: count("failed")?,
        skipped: count("skipped")?,
        remaining: count("remaining")?,
        bytes_planned: known("bytes_planned")?,
        bytes_freed: known("bytes_freed")?,
        sample: row
            .try_get::<Option<String>, _>("sample")?
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or_default(),
        changes: None,
    })
}

fn change(row: &SqliteRow) -> Result<ChangeRecord, Error> {
    // A change that is being made is still only planned to everybody else.
    let making = row.try_get::<&str, _>("state")? == "making";
    Ok(ChangeRecord {
        action: word::<Action>(row, "action")?,
        target: row.try_get("target")?,
        count: unsigned(row.try_get("count")?),
        state: if making { State::Planned } else { word(row, "state")? },
        detail: if making { Some("being made".to_owned()) } else { row.try_get("detail")? },
        before: row
            .try_get::<Option<String>, _>("before")?
            .and_then(|text| serde_json::from_str(&text).ok()),
    })
}

fn word<T: std::str::FromStr<Err = String>>(row: &SqliteRow, column: &str) -> Result<T, Error> {
    row.try_get::<&str, _>(column)?
        .parse()
        .map_err(|error: String| sqlx::Error::Decode(error.into()).into())
}

fn moment(ms: i64) -> Timestamp {
    Timestamp::from_timestamp_millis(ms).unwrap_or_default()
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
