//! Runs that were cut off: finding them, and completing their records.

use sqlx::{AnyConnection, AssertSqlSafe, Row};

use super::changes::{explain_planned, fail_unanswered};
use super::columns::{query, unsigned};
use super::error::Error;
use super::leases::IS_VALID;
use super::runs::{self, Overwrite};
use crate::plan::report::{Outcome, Report};
use crate::values::clock::Timestamp;

const CUT_OFF: &str = "microglia exited while the run was in progress";
const UNANSWERED: &str =
    "microglia exited before the response arrived: the change may have been made";
const NOT_ATTEMPTED: &str = "not attempted: the run was interrupted";

pub(super) const UNENDED: &str = "SELECT id, job FROM runs WHERE outcome IS NULL";
pub(super) const UNENDED_OF_JOB: &str = "SELECT id FROM runs WHERE job = $1 AND outcome IS NULL";
pub(super) const COUNT: &str = "\
    SELECT COUNT(*) AS times FROM runs
    WHERE job = $1 AND scheduled_for = $2 AND outcome = 'interrupted'";
const CHANGES_BY_STATE: &str = "\
    SELECT state, CAST(SUM(count) AS BIGINT) AS items FROM changes WHERE run = $1 GROUP BY state";
const BYTES_FREED: &str =
    "SELECT CAST(COALESCE(SUM(bytes), 0) AS BIGINT) AS bytes FROM files WHERE run = $1";

/// The scheduled runs that were interrupted and followed by no other of the same job and mode.
pub(super) const LAST_OF_JOB_AND_MODE: &str = "\
    SELECT * FROM runs
    WHERE outcome = 'interrupted' AND cause <> 'manual'
    AND NOT EXISTS (SELECT 1 FROM runs AS later WHERE later.job = runs.job
        AND later.mode = runs.mode AND later.id > runs.id)";

/// Returns the runs whose record has no end, oldest first, with their jobs.
pub(super) async fn unended(connection: &mut AnyConnection) -> Result<Vec<(i64, String)>, Error> {
    let rows = query(UNENDED).fetch_all(&mut *connection).await?;
    let mut unended = rows
        .iter()
        .map(|row| Ok((row.try_get("id")?, row.try_get("job")?)))
        .collect::<Result<Vec<(i64, String)>, Error>>()?;
    unended.sort_unstable();
    Ok(unended)
}

/// Records the unended runs of a job as interrupted at `now`.
pub(super) async fn end_all_of(
    connection: &mut AnyConnection,
    job: &str,
    now: Timestamp,
) -> Result<(), Error> {
    let rows = query(UNENDED_OF_JOB).bind(job).fetch_all(&mut *connection).await?;
    let ids = rows.iter().map(|row| row.try_get("id")).collect::<Result<Vec<i64>, _>>()?;
    end(connection, &ids, now).await
}

/// Records the unended runs as interrupted at `now` that were started under leases that are not valid any more, and
/// returns them.
///
/// `me` also ends its own of the job whose lock it holds.
pub(super) async fn end_without_lease(
    connection: &mut AnyConnection,
    mine: Option<(&str, &str)>,
    now: Timestamp,
) -> Result<Vec<i64>, Error> {
    let rows = match mine {
        None => {
            let sql =
                format!("{UNENDED} AND NOT EXISTS ({IS_VALID}) ORDER BY id FOR UPDATE OF runs");
            query(AssertSqlSafe(sql)).fetch_all(&mut *connection).await?
        }
        Some((me, job)) => {
            let sql = format!(
                "{UNENDED_OF_JOB} AND (holder = $2 OR NOT EXISTS ({IS_VALID})) ORDER BY id FOR UPDATE OF runs"
            );
            let statement = query(AssertSqlSafe(sql)).bind(job.to_owned()).bind(me.to_owned());
            statement.fetch_all(&mut *connection).await?
        }
    };
    let ids = rows.iter().map(|row| row.try_get("id")).collect::<Result<Vec<i64>, _>>()?;
    end(connection, &ids, now).await?;
    Ok(ids)
}

async fn end(connection: &mut AnyConnection, ids: &[i64], now: Timestamp) -> Result<(), Error> {
    for id in ids.iter().copied() {
        fail_unanswered(connection, id, UNANSWERED).await?;
        explain_planned(connection, id, NOT_ATTEMPTED).await?;
        let Some(run) = runs::get(connection, id).await? else { continue };
        let figures = Figures {
            by_state: by_state(connection, id).await?,
            bytes_freed: bytes_freed(connection, id).await?,
        };
        let ended = Report { finished_at: Some(now), ..figures.complete(run) };
        runs::update(connection, id, &ended, Overwrite::Any).await?;
    }
    Ok(())
}

/// Completes the report of an unended run as its record would be completed, and records nothing.
pub(super) async fn as_interrupted(
    connection: &mut AnyConnection,
    run: Report,
) -> Result<Report, Error> {
    let id = run.id.unwrap_or_default();
    let (by_state, bytes_freed) =
        (by_state(connection, id).await?, bytes_freed(connection, id).await?);
    Ok(Figures { by_state, bytes_freed }.complete(run))
}

/// Puts the counts of the recorded changes into the report of an unended run.
pub(super) async fn in_progress(
    connection: &mut AnyConnection,
    run: Report,
) -> Result<Report, Error> {
    let ItemsByState { done, failed, skipped, .. } =
        by_state(connection, run.id.unwrap_or_default()).await?;
    Ok(Report { done, failed, skipped, ..run })
}

/// Returns the scheduled runs that were interrupted and followed by no other of the same job and mode.
pub(super) async fn last_of_job_and_mode(
    connection: &mut AnyConnection,
) -> Result<Vec<Report>, Error> {
    let rows = query(LAST_OF_JOB_AND_MODE).fetch_all(&mut *connection).await?;
    rows.iter().map(runs::from_row).collect()
}

/// Returns how many runs of an occurrence were interrupted.
pub(super) async fn count(
    connection: &mut AnyConnection,
    job: &str,
    occurrence: Timestamp,
) -> Result<u64, Error> {
    let row = query(COUNT)
        .bind(job)
        .bind(occurrence.timestamp_millis())
        .fetch_one(&mut *connection)
        .await?;
    Ok(unsigned(row.try_get("times")?))
}

/// What the recorded changes of a run add up to.
struct Figures {
    by_state: ItemsByState,
    bytes_freed: u64,
}

#[derive(Default)]
struct ItemsByState {
    planned: u64,
    done: u64,
    /// Including those that were sent and got no response: they may or may not have been applied.
    failed: u64,
    skipped: u64,
}

async fn by_state(connection: &mut AnyConnection, run: i64) -> Result<ItemsByState, Error> {
    let rows = query(CHANGES_BY_STATE).bind(run).fetch_all(&mut *connection).await?;
    let mut items = ItemsByState::default();
    for row in &rows {
        let count = unsigned(row.try_get("items")?);
        match row.try_get("state")? {
            "done" => items.done += count,
            "failed" | "making" => items.failed += count,
            "skipped" => items.skipped += count,
            _ => items.planned += count,
        }
    }
    Ok(items)
}

async fn bytes_freed(connection: &mut AnyConnection, run: i64) -> Result<u64, Error> {
    let row = query(BYTES_FREED).bind(run).fetch_one(&mut *connection).await?;
    Ok(unsigned(row.try_get("bytes")?))
}

impl Figures {
    fn complete(&self, run: Report) -> Report {
        let ItemsByState { planned, done, failed, skipped } = self.by_state;
        // Files that Synapse kept are only in the run's own figure.
        let skipped = run.skipped.max(skipped);
        let unattempted = match run.planned {
            Some(all) => Some(all.saturating_sub(done + failed + skipped)),
            None => Some(planned).filter(|planned| *planned > 0),
        };
        Report {
            outcome: Some(Outcome::Interrupted),
            message: Some(CUT_OFF.to_owned()),
            waiting: None,
            remaining: unattempted.map(|items| run.remaining.unwrap_or(0) + items),
            bytes_freed: run.bytes_freed.map(|_| self.bytes_freed),
            done,
            failed,
            skipped,
            ..run
        }
    }
}
