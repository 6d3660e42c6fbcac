//! Runs, their changes and their files as they are read back.

use std::collections::HashMap;

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite};

use super::{CUT_OFF, Error, History, Page, Standing, moment, unsigned};
use crate::plan::report::{Action, ChangeRecord, Mode, Outcome, Report, State, Waiting};

// Two statements: SQLite plans one with `$1 IS NULL OR job = $1` without the index on the job.
const RUNS: &str = "SELECT * FROM runs ORDER BY id DESC LIMIT $1";
const RUNS_OF_JOB: &str = "SELECT * FROM runs WHERE job = $1 ORDER BY id DESC LIMIT $2";

/// Puts `select` behind the tables `names`, one row per job and a last one that is null, and `modes`.
///
/// Finds the names by one index look-up each, where `GROUP BY job` reads every run.
pub(super) fn of_each_job(select: &str) -> String {
    let modes: Vec<String> = Mode::ALL.iter().map(|mode| format!("('{mode}')")).collect();
    format!(
        "WITH RECURSIVE names (job) AS (SELECT MIN(job) FROM runs UNION ALL \
         SELECT (SELECT MIN(job) FROM runs WHERE job > names.job) FROM names WHERE names.job IS NOT NULL), \
         modes (mode) AS (VALUES {}) {select}",
        modes.join(", ")
    )
}

fn last_runs_sql() -> String {
    of_each_job(
        "SELECT * FROM runs WHERE id IN (SELECT (SELECT MAX(id) FROM runs WHERE runs.job = names.job) FROM names)",
    )
}

fn standings_sql() -> String {
    let failures: Vec<String> = Outcome::ALL
        .iter()
        .filter(|outcome| **outcome != Outcome::Succeeded)
        .map(|outcome| format!("'{outcome}'"))
        .collect();
    of_each_job(&format!(
        "SELECT job, mode, (SELECT finished_at FROM runs WHERE id = success) AS last_success, \
         (SELECT COUNT(*) FROM runs WHERE runs.job = each.job AND runs.mode = each.mode AND outcome IN ({}) \
         AND id > COALESCE(success, 0)) AS failures \
         FROM (SELECT names.job, modes.mode, (SELECT MAX(id) FROM runs WHERE runs.job = names.job \
         AND runs.mode = modes.mode AND outcome = 'succeeded') AS success FROM names, modes \
         WHERE names.job IS NOT NULL) AS each",
        failures.join(", ")
    ))
}

impl History {
    /// How each job stands in each mode: when it last succeeded, and how many of its runs since did not.
    pub async fn standings(&self) -> Result<HashMap<(String, Mode), Standing>, Error> {
        let Some(pool) = self.readable() else { return Ok(HashMap::new()) };
        let rows = sqlx::query(sqlx::AssertSqlSafe(standings_sql())).fetch_all(&pool).await?;
        let mut standings = HashMap::new();
        for row in &rows {
            let standing = Standing {
                last_success: row.try_get::<Option<i64>, _>("last_success")?.map(moment),
                failures: unsigned(row.try_get("failures")?),
            };
            if standing != Standing::default() {
                standings.insert((row.try_get("job")?, word(row, "mode")?), standing);
            }
        }
        Ok(standings)
    }

    /// Runs without their changes, newest first.
    pub async fn runs(&self, job: Option<&str>, limit: u32) -> Result<Vec<Report>, Error> {
        let Some(pool) = self.readable() else { return Ok(Vec::new()) };
        let query = match job {
            Some(job) => sqlx::query(RUNS_OF_JOB).bind(job),
            None => sqlx::query(RUNS),
        };
        let rows = query.bind(limit).fetch_all(&pool).await?;
        rows.iter().map(report).collect()
    }

    /// The newest run of each job.
    pub async fn last_runs(&self) -> Result<HashMap<String, Report>, Error> {
        let Some(pool) = self.readable() else { return Ok(HashMap::new()) };
        let rows = sqlx::query(sqlx::AssertSqlSafe(last_runs_sql())).fetch_all(&pool).await?;
        rows.iter().map(|row| report(row).map(|report| (report.job.clone(), report))).collect()
    }

    /// One run with a page of its changes.
    pub async fn run(&self, id: i64, page: Page) -> Result<Option<Report>, Error> {
        let Some(pool) = self.readable() else { return Ok(None) };
        let Some(row) =
            sqlx::query("SELECT * FROM runs WHERE id = $1").bind(id).fetch_optional(&pool).await?
        else {
            return Ok(None);
        };
        let mut report = report(&row)?;
        let rows =
            sqlx::query("SELECT * FROM changes WHERE run = $1 ORDER BY seq LIMIT $2 OFFSET $3")
                .bind(id)
                .bind(page.limit)
                .bind(page.offset)
                .fetch_all(&pool)
                .await?;
        report.changes = Some(rows.iter().map(change).collect::<Result<_, Error>>()?);
        Ok(Some(report))
    }

    /// A run whose record has no end and that nobody is at work on, with the figures of its changes so far.
    ///
    /// Changes nothing: the end is recorded by whoever next holds the job's lock.
    pub async fn as_interrupted(&self, mut run: Report) -> Result<Report, Error> {
        let Some(pool) = self.readable() else { return Ok(run) };
        let counted = sqlx::query(
            "SELECT state, SUM(count) AS items FROM changes WHERE run = $1 GROUP BY state",
        )
        .bind(run.id)
        .fetch_all(&pool)
        .await?;
        let (mut done, mut failed, mut skipped) = (0, 0, 0);
        for row in &counted {
            let items = unsigned(row.try_get("items")?);
            match row.try_get("state")? {
                "done" => done += items,
                // What was being made may or may not have been made.
                "failed" | "making" => failed += items,
                "skipped" => skipped += items,
                _ => {}
            }
        }
        (run.done, run.failed, run.skipped) = (done, failed, run.skipped.max(skipped));
        if let Some(planned) = run.planned {
            let left = planned.saturating_sub(run.done + run.failed + run.skipped);
            run.remaining = Some(run.remaining.unwrap_or(0) + left);
        }
        run.outcome = Some(Outcome::Interrupted);
        run.message.get_or_insert_with(|| CUT_OFF.to_owned());
        Ok(run)
    }

    /// The files that a run deleted.
    pub async fn files(&self, run: i64) -> Result<Vec<(String, Option<u64>)>, Error> {
        let Some(pool) = self.readable() else { return Ok(Vec::new()) };
        let rows =
            sqlx::query("SELECT media_id, bytes FROM files WHERE run = $1 ORDER BY media_id")
                .bind(run)
                .fetch_all(&pool)
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
}

pub(super) fn report(row: &SqliteRow) -> Result<Report, Error> {
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
        waited_seconds: newer(row, "waited_seconds")?.unwrap_or_default(),
        waited_for: newer::<String>(row, "waited_for")?
            .iter()
            .flat_map(|reasons| reasons.split(','))
            .filter_map(|reason| reason.parse().ok())
            .collect(),
        waiting: newer::<String>(row, "waiting_for")?
            .zip(newer(row, "waiting_since")?)
            .map(|(what, since)| Waiting { what, since: moment(since) }),
        planned: known("planned")?,
        done: count("done")?,
        failed: count("failed")?,
        skipped: count("skipped")?,
        remaining: known("remaining")?,
        bytes_planned: known("bytes_planned")?,
        bytes_freed: known("bytes_freed")?,
        // Absent where the history was not opened for writing since an update.
        left_alone: row
            .try_get::<Option<String>, _>("left_alone")
            .ok()
            .flatten()
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or_default(),
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
        answer: newer(row, "answer")?,
        before: row
            .try_get::<Option<String>, _>("before")?
            .and_then(|text| serde_json::from_str(&text).ok()),
    })
}

/// A column that an older program may not have added yet: `runs` reads the history of a daemon that still runs.
fn newer<'a, T>(row: &'a SqliteRow, column: &str) -> Result<Option<T>, Error>
where
    Option<T>: sqlx::Decode<'a, Sqlite> + sqlx::Type<Sqlite>,
{
    match row.try_get(column) {
        Err(sqlx::Error::ColumnNotFound(_)) => Ok(None),
        read => Ok(read?),
    }
}

fn word<T: std::str::FromStr<Err = String>>(row: &SqliteRow, column: &str) -> Result<T, Error> {
    row.try_get::<&str, _>(column)?
        .parse()
        .map_err(|error: String| sqlx::Error::Decode(error.into()).into())
}

#[cfg(test)]
mod tests;
