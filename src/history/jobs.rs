//! What outlives a run: scheduled jobs, what of them was dealt with or interrupted, and switches.

use std::collections::HashMap;

use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use sqlx::{QueryBuilder, Row, SqlitePool};

use super::{
    Error, FILE, History, Page, Pause, ROWS_AT_ONCE, ScheduleState, moment, read, unsigned,
};
use crate::history::state_dir::StateDir;
use crate::plan::report::Report;
use crate::values::clock::Timestamp;

const PAUSED: &str = "paused";
const RESUMED_AT: &str = "resumed_at";
pub(super) const UNENDED: &str = "SELECT id, job FROM runs WHERE outcome IS NULL";
pub(super) const INTERRUPTIONS: &str = "SELECT COUNT(*) AS times FROM runs WHERE job = $1 AND scheduled_for = $2 AND outcome = 'interrupted'";

pub(super) fn interrupted_sql() -> String {
    read::of_each_job(
        "SELECT * FROM runs WHERE id IN (SELECT (SELECT MAX(id) FROM runs WHERE runs.job = names.job \
         AND runs.mode = modes.mode AND outcome = 'interrupted') FROM names, modes) AND cause <> 'manual' \
         AND NOT EXISTS (SELECT 1 FROM runs AS later WHERE later.job = runs.job AND later.mode = runs.mode AND later.id > runs.id)",
    )
}

impl History {
    /// Ends the record of every run that nobody is at work on any more, and answers those.
    pub async fn end_interrupted(&self, dir: &StateDir) -> Result<Vec<Report>, Error> {
        let Some(pool) = self.readable() else { return Ok(Vec::new()) };
        let mut unended = sqlx::query(UNENDED)
            .fetch_all(&pool)
            .await?
            .iter()
            .map(|row| Ok((row.try_get("id")?, row.try_get("job")?)))
            .collect::<Result<Vec<(i64, String)>, Error>>()?;
        unended.sort_unstable();
        let mut ended = Vec::new();
        for (id, job) in unended {
            // The command line may have begun a run while there was no daemon.
            if let Some(_nobody_else) = dir.try_lock(&job)? {
                self.mark_interrupted(&job).await?;
                ended.extend(self.run(id, Page { offset: 0, limit: 0 }).await?);
            }
        }
        Ok(ended)
    }

    /// The scheduled runs that were interrupted, by whatever, and after which none of the same job and mode came.
    pub async fn interrupted(&self) -> Result<Vec<Report>, Error> {
        let Some(pool) = self.readable() else { return Ok(Vec::new()) };
        let rows = sqlx::query(sqlx::AssertSqlSafe(interrupted_sql())).fetch_all(&pool).await?;
        rows.iter().map(read::report).collect()
    }

    /// How many runs of an occurrence were interrupted.
    pub async fn interruptions(&self, job: &str, occurrence: Timestamp) -> Result<u64, Error> {
        let Some(pool) = self.readable() else { return Ok(0) };
        let row = sqlx::query(INTERRUPTIONS)
            .bind(job)
            .bind(occurrence.timestamp_millis())
            .fetch_one(&pool)
            .await?;
        Ok(unsigned(row.try_get("times")?))
    }

    /// Makes the scheduled jobs known, and forgets the others; a job whose schedule is another one is known since now.
    pub async fn upsert_schedules(
        &self,
        jobs: &[(String, String)],
    ) -> Result<HashMap<String, ScheduleState>, Error> {
        self.counting_errors(async {
            let Some(pool) = self.writable() else { return Ok(HashMap::new()) };
            let now = self.clock.now().timestamp_millis();
            let mut transaction = pool.begin().await?;
            let rows = sqlx::query("SELECT * FROM jobs").fetch_all(&mut *transaction).await?;
            let mut known: HashMap<String, (String, ScheduleState)> = HashMap::new();
            for row in &rows {
                let watermark: Option<i64> = row.try_get("watermark")?;
                let value = ScheduleState {
                    since: moment(row.try_get("since")?),
                    watermark: watermark.map(moment),
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
            let fresh: HashMap<String, ScheduleState> = new
                .into_iter()
                .map(|(name, _)| {
                    (name.clone(), ScheduleState { since: moment(now), watermark: None })
                })
                .collect();
            let kept = known
                .into_iter()
                .filter(|(name, _)| listed.contains(name.as_str()))
                .map(|(name, (_, value))| (name, value));
            Ok(kept.chain(fresh).collect())
        })
        .await
    }

    /// Records that an occurrence and all before it will not be run any more, so that none counts as missed.
    pub async fn set_watermark(&self, job: &str, occurrence: Timestamp) -> Result<(), Error> {
        self.counting_errors(async {
            let Some(pool) = self.writable() else { return Ok(()) };
            sqlx::query(
                "UPDATE jobs SET watermark = $2 WHERE name = $1 AND COALESCE(watermark, 0) < $2",
            )
            .bind(job)
            .bind(occurrence.timestamp_millis())
            .execute(&pool)
            .await?;
            Ok(())
        })
        .await
    }

    /// Whether scheduled runs are paused, and when they were last resumed.
    ///
    /// Where the history is not open the file is looked at as it lies: on a full disk that is all that can be done.
    pub async fn pause(&self, dir: Option<&StateDir>) -> Result<Pause, Error> {
        if let Some(pool) = self.readable() {
            return pause(&pool).await;
        }
        let Some(path) = dir.map(|dir| dir.path(FILE)).filter(|path| path.exists()) else {
            return Ok(Pause::default());
        };
        let options = SqliteConnectOptions::new().filename(path).immutable(true).read_only(true);
        let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await?;
        let pause = pause(&pool).await;
        pool.close().await;
        pause
    }

    /// Remembers a pause, or when it ended.
    pub async fn set_pause(&self, pause: Pause) -> Result<(), Error> {
        self.set(PAUSED, i64::from(pause.paused)).await?;
        match pause.resumed_at {
            Some(moment) => self.set(RESUMED_AT, moment.timestamp_millis()).await,
            None => Ok(()),
        }
    }

    async fn set(&self, name: &str, value: i64) -> Result<(), Error> {
        self.counting_errors(async {
            let pool = self.kept()?;
            sqlx::query("INSERT OR REPLACE INTO switches (name, value) VALUES ($1, $2)")
                .bind(name)
                .bind(value)
                .execute(&pool)
                .await?;
            Ok(())
        })
        .await
    }

    /// Whether the history can be written now: writes. SQLite would not write what is there already.
    pub async fn check_writable(&self) -> Result<(), Error> {
        self.set("probe", self.clock.now().timestamp_micros()).await
    }
}

pub(super) async fn pause(pool: &SqlitePool) -> Result<Pause, Error> {
    let rows = sqlx::query("SELECT name, value FROM switches").fetch_all(pool).await?;
    let mut pause = Pause::default();
    for row in rows {
        let value: i64 = row.try_get("value")?;
        match row.try_get("name")? {
            PAUSED => pause.paused = value != 0,
            RESUMED_AT => pause.resumed_at = Some(moment(value)),
            _ => {}
        }
    }
    Ok(pause)
}
