//! Runs: their rows, and the last results of each job.

use std::borrow::Cow;
use std::collections::HashMap;

use futures_util::TryStreamExt;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, AssertSqlSafe, Row};

use super::columns::{from_millis, if_present, parsed, query, signed, storable, unsigned};
use super::error::Error;
use super::leases::IS_VALID;
use super::per_job::with_jobs_and_modes;
use crate::plan::report::{Approval, Mode, Outcome, Report, Waiting};
use crate::values::clock::Timestamp;

/// How a job's runs in one mode went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    /// The end of the last run that succeeded.
    pub last_success: Option<Timestamp>,
    /// Runs since then that did not succeed.
    pub failures: u64,
}

const INSERT: &str = "\
    INSERT INTO runs (job, kind, homeserver, mode, cause, scheduled_for, started_at, attempts)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING id";
const INSERT_UNDER_LEASE: &str = "\
    INSERT INTO runs (job, kind, homeserver, mode, cause, scheduled_for, started_at, attempts,
        lease, holder, term)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT DO NOTHING RETURNING id";
const MOVE_WATERMARK: &str = "UPDATE jobs SET watermark = $2 WHERE name = $1";
const UPDATE: &str = "\
    UPDATE runs SET finished_at = $2, attempts = $3, outcome = $4, message = $5, planned = $6,
        done = $7, failed = $8, skipped = $9, remaining = $10, bytes_planned = $11,
        bytes_freed = $12, sample = $13, waited_seconds = $14, waited_for = $15,
        waiting_for = $16, waiting_since = $17, left_alone = $18, round = $19,
        unreported = CASE WHEN outcome IS NULL AND CAST($4 AS TEXT) IS NOT NULL THEN 1
            ELSE unreported END
    WHERE id = $1";
const SELECT: &str = "SELECT * FROM runs WHERE id = $1";
// Two statements: with `$1 IS NULL OR job = $1` SQLite would not use the index on the job.
const NEWEST: &str = "SELECT * FROM runs ORDER BY id DESC LIMIT $1";
pub(super) const NEWEST_OF_JOB: &str =
    "SELECT * FROM runs WHERE job = $1 ORDER BY id DESC LIMIT $2";

pub(super) const NEWEST_ON: &str =
    "SELECT * FROM runs WHERE homeserver = $1 ORDER BY id DESC LIMIT $2";
const NEWEST_OF_JOB_ON: &str =
    "SELECT * FROM runs WHERE job = $1 AND homeserver = $2 ORDER BY id DESC LIMIT $3";

pub(super) fn last_of_each_job_sql() -> String {
    with_jobs_and_modes(
        "SELECT * FROM runs WHERE id IN (
            SELECT (SELECT MAX(id) FROM runs WHERE runs.job = names.job) FROM names)",
    )
}

/// A plan that waits for approval is not a success of the job yet, unless there is nothing to change.
pub(super) fn standings_sql() -> String {
    with_jobs_and_modes(
        "SELECT job, mode,
            (SELECT finished_at FROM runs WHERE id = CASE
                WHEN each.mode = 'approve' THEN (SELECT MAX(id) FROM runs WHERE runs.job = each.job
                    AND runs.mode = each.mode AND outcome = 'succeeded' AND planned = 0
                    AND cause <> 'undo')
                ELSE success END) AS last_success,
            (SELECT COUNT(*) FROM runs WHERE runs.job = each.job AND runs.mode = each.mode
                AND outcome <> 'succeeded' AND cause <> 'undo'
                AND id > COALESCE(success, 0)) AS failures
        FROM (
            SELECT names.job, modes.mode,
                (SELECT MAX(id) FROM runs WHERE runs.job = names.job AND runs.mode = modes.mode
                    AND outcome = 'succeeded' AND cause <> 'undo') AS success
            FROM names, modes WHERE names.job IS NOT NULL) AS each",
    )
}

/// The lease that a run is started under.
#[derive(Debug, Clone, Copy)]
pub(super) struct Under<'a> {
    pub homeserver: &'a str,
    pub holder: &'a str,
    pub term: i64,
}

/// Records that a run starts, and moves the watermark of its job to the occurrence; returns the run's id.
///
/// Under a lease an occurrence that has its run is refused.
pub(super) async fn insert(
    connection: &mut AnyConnection,
    report: &Report,
    under: Option<Under<'_>>,
) -> Result<i64, Error> {
    let statement = query(if under.is_some() { INSERT_UNDER_LEASE } else { INSERT })
        .bind(&report.job)
        .bind(&report.kind)
        .bind(&report.homeserver)
        .bind(report.mode.as_str())
        .bind(report.trigger.as_str())
        .bind(report.scheduled_for.map(|time| time.timestamp_millis()))
        .bind(report.started_at.timestamp_millis())
        .bind(i64::from(report.attempts + 1));
    let statement = match under {
        Some(Under { homeserver, holder, term }) => {
            statement.bind(homeserver.to_owned()).bind(holder.to_owned()).bind(term)
        }
        None => statement,
    };
    let row = statement.fetch_optional(&mut *connection).await?.ok_or(Error::Claimed)?;
    if let Some(occurrence) = report.scheduled_for {
        query(MOVE_WATERMARK)
            .bind(&report.job)
            .bind(occurrence.timestamp_millis())
            .execute(&mut *connection)
            .await?;
    }
    Ok(row.try_get("id")?)
}

/// Which outcome of a run an update replaces.
#[derive(Debug, Clone, Copy)]
pub(super) enum Overwrite {
    Any,
    /// One whose lease was lost stays interrupted: the occurrence may have another run by now.
    UnlessTakenOver,
}

/// Records the progress of a run, or how it ended.
pub(super) async fn update(
    connection: &mut AnyConnection,
    id: i64,
    report: &Report,
    outcome: Overwrite,
) -> Result<(), Error> {
    let waited_for: Vec<&str> = report.waited_for.iter().map(|reason| reason.as_str()).collect();
    let kept = format!(
        "outcome = CASE WHEN outcome = 'interrupted' AND NOT EXISTS ({IS_VALID}) THEN outcome ELSE $4 END"
    );
    let sql = match outcome {
        Overwrite::Any => UPDATE.to_owned(),
        Overwrite::UnlessTakenOver => UPDATE.replace("outcome = $4", &kept),
    };
    query(AssertSqlSafe(sql))
        .bind(id)
        .bind(report.finished_at.map(|time| time.timestamp_millis()))
        .bind(i64::from(report.attempts))
        .bind(report.outcome.map(Outcome::as_str))
        .bind(report.message.as_deref().map(storable).map(Cow::into_owned))
        .bind(report.planned.map(signed))
        .bind(signed(report.done))
        .bind(signed(report.failed))
        .bind(signed(report.skipped))
        .bind(report.remaining.map(signed))
        .bind(report.bytes_planned.map(signed))
        .bind(report.bytes_freed.map(signed))
        .bind(serde_json::to_string(&report.sample).ok())
        .bind(report.waited_seconds)
        .bind(waited_for.join(","))
        .bind(report.waiting.as_ref().map(|waiting| storable(&waiting.what).into_owned()))
        .bind(report.waiting.as_ref().map(|waiting| waiting.since.timestamp_millis()))
        .bind(serde_json::to_string(&report.left_alone).ok())
        .bind(report.round.and_then(|round| serde_json::to_string(&round).ok()))
        .execute(&mut *connection)
        .await?;
    Ok(())
}

/// Returns one run without its changes.
pub(super) async fn get(connection: &mut AnyConnection, id: i64) -> Result<Option<Report>, Error> {
    let row = query(SELECT).bind(id).fetch_optional(&mut *connection).await?;
    row.as_ref().map(from_row).transpose()
}

pub(super) async fn newest(
    connection: &mut AnyConnection,
    job: Option<&str>,
    limit: u32,
) -> Result<Vec<Report>, Error> {
    let statement = match job {
        Some(job) => query(NEWEST_OF_JOB).bind(job.to_owned()),
        None => query(NEWEST),
    };
    let rows = statement.bind(i64::from(limit)).fetch_all(&mut *connection).await?;
    rows.iter().map(from_row).collect()
}

/// Like [`newest`], on one homeserver.
pub(super) async fn newest_on(
    connection: &mut AnyConnection,
    homeserver: &str,
    job: Option<&str>,
    limit: u32,
) -> Result<Vec<Report>, Error> {
    let statement = match job {
        Some(job) => query(NEWEST_OF_JOB_ON).bind(job.to_owned()),
        None => query(NEWEST_ON),
    };
    let rows = statement
        .bind(homeserver.to_owned())
        .bind(i64::from(limit))
        .fetch_all(&mut *connection)
        .await?;
    rows.iter().map(from_row).collect()
}

pub(super) async fn last_of_each_job(
    connection: &mut AnyConnection,
) -> Result<HashMap<String, Report>, Error> {
    let sql = AssertSqlSafe(last_of_each_job_sql());
    // One row after the other: rows are several times as large as what is made of them, and there may be thousands.
    let mut rows = query(sql).fetch(&mut *connection);
    let mut last_runs = HashMap::new();
    while let Some(row) = rows.try_next().await? {
        let report = from_row(&row)?;
        last_runs.insert(report.job.clone(), report);
    }
    Ok(last_runs)
}

pub(super) async fn standings(
    connection: &mut AnyConnection,
) -> Result<HashMap<(String, Mode), Standing>, Error> {
    let mut rows = query(AssertSqlSafe(standings_sql())).fetch(&mut *connection);
    let mut standings = HashMap::new();
    while let Some(row) = rows.try_next().await? {
        let row = &row;
        let standing = Standing {
            last_success: row.try_get::<Option<i64>, _>("last_success")?.map(from_millis),
            failures: unsigned(row.try_get("failures")?),
        };
        if standing != Standing::default() {
            standings.insert((row.try_get("job")?, parsed(row, "mode")?), standing);
        }
    }
    Ok(standings)
}

pub(super) fn from_row(row: &AnyRow) -> Result<Report, Error> {
    let count = |column: &str| row.try_get::<i64, _>(column).map(unsigned);
    let known =
        |column: &str| row.try_get::<Option<i64>, _>(column).map(|value| value.map(unsigned));
    let time =
        |column: &str| row.try_get::<Option<i64>, _>(column).map(|value| value.map(from_millis));
    Ok(Report {
        id: Some(row.try_get("id")?),
        job: row.try_get("job")?,
        kind: row.try_get("kind")?,
        homeserver: row.try_get("homeserver")?,
        mode: parsed(row, "mode")?,
        trigger: parsed(row, "cause")?,
        scheduled_for: time("scheduled_for")?,
        started_at: from_millis(row.try_get("started_at")?),
        finished_at: time("finished_at")?,
        attempts: u32::try_from(row.try_get::<i64, _>("attempts")?).unwrap_or(u32::MAX),
        outcome: row
            .try_get::<Option<&str>, _>("outcome")?
            .map(|_| parsed(row, "outcome"))
            .transpose()?,
        message: row.try_get("message")?,
        waited_seconds: if_present(row, "waited_seconds")?.unwrap_or_default(),
        waited_for: if_present::<String>(row, "waited_for")?
            .iter()
            .flat_map(|reasons| reasons.split(','))
            .filter_map(|reason| reason.parse().ok())
            .collect(),
        waiting: if_present::<String>(row, "waiting_for")?
            .zip(if_present(row, "waiting_since")?)
            .map(|(what, since)| Waiting { what, since: from_millis(since) }),
        planned: known("planned")?,
        done: count("done")?,
        failed: count("failed")?,
        skipped: count("skipped")?,
        remaining: known("remaining")?,
        bytes_planned: known("bytes_planned")?,
        bytes_freed: known("bytes_freed")?,
        left_alone: if_present::<String>(row, "left_alone")?
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or_default(),
        sample: row
            .try_get::<Option<String>, _>("sample")?
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or_default(),
        round: if_present::<String>(row, "round")?
            .and_then(|text| serde_json::from_str(&text).ok()),
        approval: approval_of(row)?,
        changes: None,
    })
}

fn approval_of(row: &AnyRow) -> Result<Option<Approval>, Error> {
    if if_present::<String>(row, "approval_state")?.is_none() {
        return Ok(None);
    }
    let time = |column| row.try_get::<Option<i64>, _>(column).map(|it| it.map(from_millis));
    Ok(Some(Approval {
        state: parsed(row, "approval_state")?,
        expires_at: time("approval_expires_at")?.unwrap_or_default(),
        by: row.try_get("approval_by")?,
        decided_at: time("approval_decided_at")?,
        run: row.try_get("approval_run")?,
        detail: row.try_get("approval_detail")?,
    }))
}
