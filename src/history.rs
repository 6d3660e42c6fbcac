//! The history: runs, their changes, and what was learned, written as it happens.

mod jobs;
mod read;
pub mod state_dir;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use serde_json::Value;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{QueryBuilder, Row, SqlitePool};

use crate::history::state_dir::{Lock, StateDir, identity, is_regular};
use crate::plan::change::MediaStore;
use crate::plan::facts::{Fact, Topic};
use crate::plan::report::{CHANGES_SHOWN, ChangeRecord, Outcome, Report, State};
use crate::values::clock::{Clock, Timestamp};

/// What is known of earlier runs. One without a database keeps nothing and knows nothing: only a dry run may use it.
#[derive(Debug, Clone)]
pub struct History {
    /// Or why there is no database.
    pools: Arc<RwLock<Result<Pools, Arc<str>>>>,
    write_errors: Arc<AtomicU64>,
    clock: Clock,
}

/// One connection writes, so that writers queue here and not in SQLite, which makes them sleep.
#[derive(Debug, Clone)]
struct Pools {
    write: SqlitePool,
    read: SqlitePool,
    path: Arc<Path>,
    /// The file that was opened, by device and inode.
    file: Option<(u64, u64)>,
}

impl Pools {
    async fn open(dir: &StateDir) -> Result<Self, Error> {
        let _opening = opening(dir).await?;
        let path = dir.path(FILE);
        // It names people: others may not read it. SQLite gives the files that it makes beside it the same mode.
        dir.create(FILE)?;
        refuse_links(&path)?;
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
            // A commit that fails on a full disk can leave its transaction open. What follows would be written into it, be
            // called recorded, and be gone with the process: such a connection is closed, and another one opened.
            .after_release(|connection, _| {
                Box::pin(
                    async move { Ok(sqlx::query("ROLLBACK").execute(connection).await.is_err()) },
                )
            })
            .connect_with(options)
            .await?;
        sqlx::migrate!("src/history/migrations").run(&write).await?;
        let read = reading(&path).await?;
        Ok(Self { write, read, file: identity(&path), path: path.into() })
    }

    async fn close(&self) {
        self.read.close().await;
        self.write.close().await;
    }
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
    Unavailable(Arc<str>),
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
pub struct LostMediaCall {
    pub store: MediaStore,
    pub sent_at: Timestamp,
}

/// A scheduled job as the history knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduleState {
    /// Since when it is enabled with its present schedule.
    pub since: Timestamp,
    /// The last occurrence that was run or skipped.
    pub watermark: Option<Timestamp>,
}

/// How a job does in one mode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    pub last_success: Option<Timestamp>,
    /// Runs since then that did not succeed.
    pub failures: u64,
}

/// What is remembered of pauses beyond the daemon.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pause {
    /// Whether scheduled runs are paused.
    pub paused: bool,
    /// When scheduled runs were last resumed: nothing was due before.
    pub resumed_at: Option<Timestamp>,
}

const FILE: &str = "history.db";
const UNENDED_OF_JOB: &str = "SELECT id FROM runs WHERE job = $1 AND outcome IS NULL";
/// The message of a run that was cut off without a word.
const CUT_OFF: &str = "the program ended while this run was at work";
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
        Ok(Self::of(Ok(Pools::open(dir).await?), clock))
    }

    /// Opens the history of a directory to look at; `None` where there is none yet.
    pub async fn open_read_only(dir: &Path, clock: Clock) -> Result<Option<Self>, Error> {
        let path = dir.join(FILE);
        if !is_regular(&path)? {
            return Ok(None);
        }
        refuse_links(&path)?;
        let read = reading(&path).await?;
        let pools = Pools { write: read.clone(), read, file: identity(&path), path: path.into() };
        Ok(Some(Self::of(Ok(pools), clock)))
    }

    pub fn unavailable(clock: Clock, problem: &str) -> Self {
        Self::of(Err(problem.into()), clock)
    }

    fn of(pools: Result<Pools, Arc<str>>, clock: Clock) -> Self {
        Self { pools: Arc::new(RwLock::new(pools)), write_errors: Arc::default(), clock }
    }

    /// Opens, for all who hold it, a history that is not open; `recall` hears of pauses before anybody can use it.
    pub async fn open_now(
        &self,
        dir: &StateDir,
        recall: impl FnOnce(Result<Pause, Error>),
    ) -> Result<(), Error> {
        let opened = Pools::open(dir).await;
        if let Ok(pools) = &opened {
            recall(jobs::pause(&pools.read).await);
        }
        let (pools, result) = match opened {
            Ok(opened) => (Ok(opened), Ok(())),
            Err(error) => {
                (Err(format!("the history cannot be opened: {error}").into()), Err(error))
            }
        };
        let before = std::mem::replace(
            &mut *self.pools.write().unwrap_or_else(PoisonError::into_inner),
            pools,
        );
        if let Ok(before) = before {
            before.close().await;
        }
        result
    }

    /// Why nothing can be recorded until it is opened again.
    pub fn problem(&self) -> Option<Arc<str>> {
        self.kept().err().map(|error| error.to_string().into())
    }

    fn pools(&self) -> Result<Pools, Arc<str>> {
        self.pools.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How often something could not be written since the start.
    pub fn write_errors(&self) -> u64 {
        self.write_errors.load(Ordering::Relaxed)
    }

    pub async fn close(&self) {
        if let Ok(pools) = self.pools() {
            pools.close().await;
        }
    }

    /// Where to write what must be kept: nothing that is deleted already.
    fn kept(&self) -> Result<SqlitePool, Error> {
        let pools = self.pools().map_err(Error::Unavailable)?;
        if identity(&pools.path) == pools.file {
            return Ok(pools.write);
        }
        Err(Error::Unavailable(
            format!("{} was deleted or replaced while it was open", pools.path.display()).into(),
        ))
    }

    fn writable(&self) -> Option<SqlitePool> {
        self.pools().ok().map(|pools| pools.write)
    }

    fn readable(&self) -> Option<SqlitePool> {
        self.pools().ok().map(|pools| pools.read)
    }

    /// Counts what could not be written.
    async fn counting_errors<T>(
        &self,
        write: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let written = write.await;
        if written.is_err() {
            self.write_errors.fetch_add(1, Ordering::Relaxed);
        }
        written
    }

    /// Records that a run begins; its id is what everything else is recorded under.
    pub async fn begin_run(&self, report: &Report) -> Result<i64, Error> {
        self.counting_errors(async {
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
            sqlx::query("UPDATE jobs SET watermark = $2 WHERE name = $1").bind(&report.job).bind(occurrence.timestamp_millis()).execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        Ok(row.try_get("id")?)
        })
        .await
    }

    /// Records where the run stands, or how it ended.
    pub async fn update_run(&self, report: &Report) -> Result<(), Error> {
        self.counting_errors(async {
        let (Some(pool), Some(id)) = (self.writable(), report.id) else { return Ok(()) };
        sqlx::query(
            "UPDATE runs SET finished_at = $2, attempts = $3, outcome = $4, message = $5, planned = $6, done = $7, failed = $8, skipped = $9, \
             remaining = $10, bytes_planned = $11, bytes_freed = $12, sample = $13, \
             waited_seconds = $14, waited_for = $15, waiting_for = $16, waiting_since = $17, left_alone = $18 WHERE id = $1",
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
        .bind(report.remaining.map(signed))
        .bind(report.bytes_planned.map(signed))
        .bind(report.bytes_freed.map(signed))
        .bind(serde_json::to_string(&report.sample).ok())
        .bind(report.waited_seconds)
        .bind(report.waited_for.iter().map(|reason| reason.as_str()).collect::<Vec<_>>().join(","))
        .bind(report.waiting.as_ref().map(|waiting| &waiting.what))
        .bind(report.waiting.as_ref().map(|waiting| waiting.since.timestamp_millis()))
        .bind(serde_json::to_string(&report.left_alone).ok())
        .execute(&pool)
        .await?;
        Ok(())
        })
        .await
    }

    /// Replaces what the run had planned and not made, or failed to make, by a new plan; answers the number of its first change.
    pub async fn record_plan(
        &self,
        run: Option<i64>,
        changes: &[ChangeRecord],
    ) -> Result<i64, Error> {
        self.counting_errors(async {
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
    pub async fn record_sent(
        &self,
        run: Option<i64>,
        seq: i64,
        change: &ChangeRecord,
    ) -> Result<(), Error> {
        self.counting_errors(async {
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
        .execute(&pool)
        .await?;
        Ok(())
        })
        .await
    }

    /// Records what became of a change, with the files that went and what was learned, all at once.
    pub async fn record_result(
        &self,
        run: Option<i64>,
        seq: i64,
        change: &ChangeRecord,
        server: &str,
        files: &[(String, Option<u64>)],
        facts: &[Fact],
    ) -> Result<(), Error> {
        self.counting_errors(async {
        let (pool, Some(run)) = (self.kept()?, run) else { return Ok(()) };
        let mut transaction = pool.begin().await?;
        sqlx::query(
            "INSERT INTO changes (run, seq, action, target, count, state, detail, answer) VALUES ($1, $2, $3, $4, $5, $6, $7, $8) \
             ON CONFLICT (run, seq) DO UPDATE SET count = excluded.count, state = excluded.state, detail = excluded.detail, answer = excluded.answer",
        )
        .bind(run)
        .bind(seq)
        .bind(change.action.as_str())
        .bind(&change.target)
        .bind(signed(change.count))
        .bind(change.state.as_str())
        .bind(&change.detail)
        .bind(&change.answer)
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
    pub async fn remember(&self, server: &str, facts: &[Fact]) -> Result<(), Error> {
        self.counting_errors(async {
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
            .fetch_all(&pool)
            .await?;
        rows.iter().map(|row| Ok((row.try_get("key")?, row.try_get("value")?))).collect()
    }

    /// Records that a media call goes out, before it does.
    pub async fn media_call_sent(&self, server: &str, store: MediaStore) -> Result<(), Error> {
        self.counting_errors(async {
        let pool = self.kept()?;
        let uploaded_until = match store {
            MediaStore::Local { until } => Some(until.timestamp_millis()),
            MediaStore::Remote => None,
        };
        sqlx::query("INSERT OR REPLACE INTO media_calls (server, sent_at, uploaded_until) VALUES ($1, $2, $3)")
            .bind(server)
            .bind(self.clock.now().timestamp_millis())
            .bind(uploaded_until)
            .execute(&pool)
            .await?;
        Ok(())
        })
        .await
    }

    /// Forgets a media call: it was answered, or is certainly over.
    pub async fn media_call_ended(&self, server: &str) -> Result<(), Error> {
        self.counting_errors(async {
            let pool = self.kept()?;
            sqlx::query("DELETE FROM media_calls WHERE server = $1")
                .bind(server)
                .execute(&pool)
                .await?;
            Ok(())
        })
        .await
    }

    pub async fn lost_media_call(&self, server: &str) -> Result<Option<LostMediaCall>, Error> {
        let Some(pool) = self.readable() else { return Ok(None) };
        let row = sqlx::query("SELECT sent_at, uploaded_until FROM media_calls WHERE server = $1")
            .bind(server)
            .fetch_optional(&pool)
            .await?;
        row.map(|row| {
            let until: Option<i64> = row.try_get("uploaded_until")?;
            Ok(LostMediaCall {
                store: until
                    .map_or(MediaStore::Remote, |until| MediaStore::Local { until: moment(until) }),
                sent_at: moment(row.try_get("sent_at")?),
            })
        })
        .transpose()
    }

    /// Ends the record of changes that were sent and whose answer was never seen.
    pub async fn fail_unanswered(&self, run: Option<i64>, why: &str) -> Result<u64, Error> {
        self.counting_errors(async {
        let (Some(pool), Some(run)) = (self.writable(), run) else { return Ok(0) };
        let rows = sqlx::query("UPDATE changes SET state = 'failed', detail = $2 WHERE run = $1 AND state = 'making' RETURNING count").bind(run).bind(why).fetch_all(&pool).await?;
        rows.iter().map(|row| Ok(unsigned(row.try_get("count")?))).sum()
        })
        .await
    }

    /// Gives the reason why planned changes were not attempted.
    pub async fn explain_planned(&self, run: Option<i64>, why: &str) -> Result<(), Error> {
        self.counting_errors(async {
            let (Some(pool), Some(run)) = (self.writable(), run) else { return Ok(()) };
            sqlx::query(
                "UPDATE changes SET detail = $2 WHERE run = $1 AND state = 'planned' AND detail IS NULL",
            )
            .bind(run)
            .bind(why)
            .execute(&pool)
            .await?;
            Ok(())
        })
        .await
    }

    /// Calls the unended runs of a job interrupted: nobody is at work on them, since the caller holds the job's lock.
    pub async fn mark_interrupted(&self, job: &str) -> Result<(), Error> {
        self.counting_errors(async {
        let (Some(read), Some(pool)) = (self.readable(), self.writable()) else { return Ok(()) };
        let rows = sqlx::query(UNENDED_OF_JOB)
            .bind(job)
            .fetch_all(&read)
            .await?;
        for row in rows {
            let id: i64 = row.try_get("id")?;
            self.fail_unanswered(Some(id), "the program ended while this was sent: it may have been made")
                .await?;
            self.explain_planned(Some(id), "not attempted: the run was interrupted").await?;
            let counted = |state: State| {
                format!(
                    "(SELECT COALESCE(SUM(count), 0) FROM changes WHERE run = $1 AND state = '{state}')"
                )
            };
            let (done, failed) = (counted(State::Done), counted(State::Failed));
            // Files that Synapse kept are only in the run's own figure.
            let skipped = format!("MAX(skipped, {})", counted(State::Skipped));
            let sql = format!(
                "UPDATE runs SET outcome = 'interrupted', finished_at = $2, message = '{CUT_OFF}', \
                 waiting_for = NULL, waiting_since = NULL, \
                 done = {done}, failed = {failed}, skipped = {skipped}, \
                 remaining = COALESCE(remaining, 0) + COALESCE(MAX(planned - {done} - {failed} - {skipped}, 0), NULLIF({}, 0)), \
                 bytes_freed = bytes_freed - bytes_freed + (SELECT COALESCE(SUM(bytes), 0) FROM files WHERE run = $1) WHERE id = $1",
                counted(State::Planned),
            );
            sqlx::query(sqlx::AssertSqlSafe(sql))
                .bind(id)
                .bind(self.clock.now().timestamp_millis())
                .execute(&pool)
                .await?;
        }
        Ok(())
        })
        .await
    }

    /// Deletes runs that began before `moment`, with all that belongs to them; the facts stay.
    ///
    /// Of the last run of a scheduled job and of its last success the figures stay: the metrics are made of them.
    pub async fn delete_runs_before(&self, moment: Timestamp) -> Result<u64, Error> {
        self.counting_errors(async {
            let Some(pool) = self.writable() else { return Ok(0) };
            let mut transaction = pool.begin().await?;
            let mut gone = 0;
            for sql in forget_sql() {
                let forgotten = sqlx::query(sqlx::AssertSqlSafe(sql))
                    .bind(moment.timestamp_millis())
                    .execute(&mut *transaction)
                    .await?;
                gone = forgotten.rows_affected();
            }
            transaction.commit().await?;
            Ok(gone)
        })
        .await
    }
}

/// The statements that forget the runs that began before a timestamp; the last one deletes the runs themselves.
fn forget_sql() -> [String; 4] {
    const OLD: &str = "started_at < $1 AND outcome IS NOT NULL";
    const LATER: &str = "SELECT 1 FROM runs AS later WHERE later.job = runs.job AND later.mode = runs.mode AND later.id > runs.id";
    let of_old =
        |table| format!("DELETE FROM {table} WHERE run IN (SELECT id FROM runs WHERE {OLD})");
    [
        of_old("changes"),
        of_old("files"),
        format!("UPDATE runs SET sample = NULL WHERE {OLD} AND sample IS NOT NULL"),
        format!(
            "DELETE FROM runs WHERE {OLD} AND NOT (job IN (SELECT name FROM jobs) AND (NOT EXISTS ({LATER}) \
             OR outcome = 'succeeded' AND NOT EXISTS ({LATER} AND later.outcome = 'succeeded')))"
        ),
    ]
}

/// Refuses anything but regular files where SQLite keeps what belongs to a database: it follows links.
fn refuse_links(path: &Path) -> Result<(), Error> {
    for suffix in ["-wal", "-shm", "-journal"] {
        let mut beside = path.as_os_str().to_owned();
        beside.push(suffix);
        is_regular(Path::new(&beside))?;
    }
    Ok(())
}

async fn reading(path: &Path) -> Result<SqlitePool, Error> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        .pragma("cache_size", CACHE)
        .pragma("temp_store", "memory")
        .busy_timeout(BUSY);
    // Each connection has a thread, and each thread keeps freed memory for itself: a second one is 1.4 MiB in 10,000 runs.
    Ok(SqlitePoolOptions::new().max_connections(1).min_connections(0).connect_with(options).await?)
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

fn moment(ms: i64) -> Timestamp {
    Timestamp::from_timestamp_millis(ms).unwrap_or_default()
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
