//! Runs, their changes and their files as they are read back.

use std::collections::HashMap;

use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::{Error, History, Page, Standing, moment, unsigned};
use crate::report::{Action, ChangeRecord, Mode, Report, State};

impl History {
    /// How each job stands in each mode: when it last succeeded, and how many of its runs since did not.
    pub async fn standings(&self) -> Result<HashMap<(String, Mode), Standing>, Error> {
        let Some(pool) = self.readable() else { return Ok(HashMap::new()) };
        let mut standings: HashMap<(String, Mode), Standing> = HashMap::new();
        let rows = sqlx::query("SELECT * FROM runs WHERE id IN (SELECT MAX(id) FROM runs WHERE outcome = 'succeeded' GROUP BY job, mode)").fetch_all(&pool).await?;
        for row in &rows {
            let run = report(row)?;
            standings.entry((run.job, run.mode)).or_default().last_success = run.finished_at;
        }
        let rows = sqlx::query(
            "SELECT job, mode, COUNT(*) AS failures FROM runs AS run WHERE outcome IS NOT NULL AND id > COALESCE( \
             (SELECT MAX(id) FROM runs AS good WHERE good.job = run.job AND good.mode = run.mode AND good.outcome = 'succeeded'), 0) GROUP BY job, mode",
        )
        .fetch_all(&pool)
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
        .fetch_all(&pool)
        .await?;
        rows.iter().map(report).collect()
    }

    /// The newest run of each job.
    pub async fn last_runs(&self) -> Result<HashMap<String, Report>, Error> {
        let Some(pool) = self.readable() else { return Ok(HashMap::new()) };
        let rows =
            sqlx::query("SELECT * FROM runs WHERE id IN (SELECT MAX(id) FROM runs GROUP BY job)")
                .fetch_all(&pool)
                .await?;
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
