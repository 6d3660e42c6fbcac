//! Scheduled jobs: since when each is known, and its watermark.

use std::collections::{HashMap, HashSet};

use sqlx::{AnyConnection, AssertSqlSafe, Row};

use super::columns::{ROWS_PER_STATEMENT, from_millis, query, values};
use super::error::Error;
use crate::values::clock::Timestamp;

/// What is recorded of a scheduled job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduleState {
    /// Since when the job is enabled with its present schedule.
    pub since: Timestamp,
    /// Every occurrence up to here was run or skipped.
    pub watermark: Option<Timestamp>,
}

/// What becomes of recorded jobs that are not in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    Delete,
    /// A replica with another configuration may have them.
    Keep,
}

const INSERT: &str = "INSERT INTO jobs (name, schedule, since)";
const OR_RESET: &str = "\
    ON CONFLICT (name) DO UPDATE SET schedule = excluded.schedule, since = excluded.since,
        watermark = NULL";
const SELECT: &str = "SELECT name, schedule, since, watermark FROM jobs";
const DELETE: &str = "DELETE FROM jobs WHERE name = $1";
const RAISE_WATERMARK: &str = "\
    UPDATE jobs SET watermark = $2 WHERE name = $1 AND COALESCE(watermark, 0) < $2";

/// Records the scheduled jobs by name and schedule.
///
/// A job that is new or has another schedule is known since `now`, without a watermark.
pub(super) async fn upsert(
    connection: &mut AnyConnection,
    jobs: &[(String, String)],
    others: Others,
    now: Timestamp,
) -> Result<HashMap<String, ScheduleState>, Error> {
    let mut known = known(connection).await?;
    let wanted: HashSet<&str> = jobs.iter().map(|(name, _)| name.as_str()).collect();
    let deleted = known.keys().filter(|name| !wanted.contains(name.as_str()));
    for name in deleted.filter(|_| others == Others::Delete) {
        query(DELETE).bind(name).execute(&mut *connection).await?;
    }
    let is_known = |name, schedule| known.get(name).is_some_and(|(known, _)| known == schedule);
    let new: Vec<&(String, String)> =
        jobs.iter().filter(|(name, schedule)| !is_known(name, schedule)).collect();
    insert(connection, &new, now).await?;
    known.retain(|name, _| wanted.contains(name.as_str()));
    let mut states: HashMap<String, ScheduleState> =
        known.into_iter().map(|(name, (_, state))| (name, state)).collect();
    let since = from_millis(now.timestamp_millis());
    for (name, _) in new {
        states.insert(name.clone(), ScheduleState { since, watermark: None });
    }
    Ok(states)
}

/// The recorded jobs by name, each with its schedule.
async fn known(
    connection: &mut AnyConnection,
) -> Result<HashMap<String, (String, ScheduleState)>, Error> {
    let rows = query(SELECT).fetch_all(&mut *connection).await?;
    rows.iter()
        .map(|row| {
            let watermark: Option<i64> = row.try_get("watermark")?;
            let state = ScheduleState {
                since: from_millis(row.try_get("since")?),
                watermark: watermark.map(from_millis),
            };
            Ok((row.try_get("name")?, (row.try_get("schedule")?, state)))
        })
        .collect()
}

async fn insert(
    connection: &mut AnyConnection,
    jobs: &[&(String, String)],
    now: Timestamp,
) -> Result<(), Error> {
    for chunk in jobs.chunks(ROWS_PER_STATEMENT) {
        let sql = format!("{INSERT} {} {OR_RESET}", values(chunk.len(), 3));
        let mut statement = query(AssertSqlSafe(sql));
        for (name, schedule) in chunk {
            statement =
                statement.bind(name.clone()).bind(schedule.clone()).bind(now.timestamp_millis());
        }
        statement.execute(&mut *connection).await?;
    }
    Ok(())
}

/// Raises the watermark of a job; never lowers it.
pub(super) async fn set_watermark(
    connection: &mut AnyConnection,
    job: &str,
    until: Timestamp,
) -> Result<(), Error> {
    query(RAISE_WATERMARK)
        .bind(job)
        .bind(until.timestamp_millis())
        .execute(&mut *connection)
        .await?;
    Ok(())
}
