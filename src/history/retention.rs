//! Deleting old runs with everything that belongs to them.

use sqlx::{AnyConnection, Row};

use super::columns::{from_millis, query};
use super::error::Error;
use crate::values::clock::Timestamp;

const DELETE_CHANGES: &str = "\
    DELETE FROM changes WHERE run IN (
        SELECT id FROM runs WHERE started_at < $1 AND outcome IS NOT NULL
            AND NOT (COALESCE(approval_state, '') = 'pending'
            OR COALESCE(approval_state, '') = 'approved' AND approval_run IS NULL))";
const DELETE_FILES: &str = "\
    DELETE FROM files WHERE run IN (
        SELECT id FROM runs WHERE started_at < $1 AND outcome IS NOT NULL
            AND NOT (COALESCE(approval_state, '') = 'pending'
            OR COALESCE(approval_state, '') = 'approved' AND approval_run IS NULL))";
const CLEAR_SAMPLES: &str = "\
    UPDATE runs SET sample = NULL
    WHERE started_at < $1 AND outcome IS NOT NULL AND sample IS NOT NULL
        AND NOT (COALESCE(approval_state, '') = 'pending'
            OR COALESCE(approval_state, '') = 'approved' AND approval_run IS NULL)";
/// Keeps the last run of a scheduled job in each mode, and the last one that succeeded, and plans that wait for a decision or for their run.
const DELETE_RUNS: &str = "\
    DELETE FROM runs WHERE started_at < $1 AND outcome IS NOT NULL
    AND NOT (COALESCE(approval_state, '') = 'pending'
            OR COALESCE(approval_state, '') = 'approved' AND approval_run IS NULL)
    AND NOT (job IN (SELECT name FROM jobs) AND (
        NOT EXISTS (
            SELECT 1 FROM runs AS later WHERE later.job = runs.job AND later.mode = runs.mode
                AND later.id > runs.id)
        OR outcome = 'succeeded' AND NOT EXISTS (
            SELECT 1 FROM runs AS later WHERE later.job = runs.job AND later.mode = runs.mode
                AND later.id > runs.id AND later.outcome = 'succeeded')))";

/// The newest digest says when the next one is due, and people react to the message of a plan that waits. Two days longer than
/// runs: what was told within a day is not told again.
const DELETE_MESSAGES: &str = "\
    DELETE FROM messages WHERE created_at < $1 - 172800000 AND state <> 'waiting'
        AND NOT (event = 'approval' AND EXISTS (SELECT 1 FROM runs
            WHERE runs.id = messages.run AND approval_state = 'pending'))
        AND NOT (event = 'digest'
        AND created_at = (SELECT MAX(created_at) FROM messages AS newest
            WHERE newest.notification = messages.notification AND newest.event = 'digest'))";

/// The start of the run that so many finished ones follow, from `$2` on.
const NEXT_BOUND: &str = "\
    SELECT started_at FROM runs WHERE started_at >= $2 AND started_at < $1
    ORDER BY started_at LIMIT 1 OFFSET 5000";

/// What belongs to old runs, and then the runs.
pub(super) const STATEMENTS: [&str; 4] = [DELETE_CHANGES, DELETE_FILES, CLEAR_SAMPLES, DELETE_RUNS];

/// Returns up to where to delete next: a long history is forgotten in several transactions, each within its time limit.
pub(super) async fn next_bound(
    connection: &mut AnyConnection,
    from: Timestamp,
    until: Timestamp,
) -> Result<Timestamp, Error> {
    let row = query(NEXT_BOUND)
        .bind(until.timestamp_millis())
        .bind(from.timestamp_millis())
        .fetch_optional(&mut *connection)
        .await?;
    let Some(row) = row else { return Ok(until) };
    let bound = from_millis(row.try_get("started_at")?);
    // More runs than that may start in one millisecond.
    Ok(if bound > from { bound } else { until })
}

/// Deletes runs that started before `time`, and returns their number; facts stay.
///
/// Keeps the counts of the last run of a scheduled job and of its last success: metrics are built from them.
pub(super) async fn delete_runs_before(
    connection: &mut AnyConnection,
    time: Timestamp,
) -> Result<u64, Error> {
    let mut deleted = 0;
    for statement in [DELETE_MESSAGES].into_iter().chain(STATEMENTS) {
        let result =
            query(statement).bind(time.timestamp_millis()).execute(&mut *connection).await?;
        deleted = result.rows_affected();
    }
    Ok(deleted)
}
