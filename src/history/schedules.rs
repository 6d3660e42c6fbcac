//! Scheduled jobs: since when each is known, and its watermark.

use std::collections::{HashMap, HashSet};

use sqlx::{QueryBuilder, Row, SqlitePool, SqliteTransaction};

use super::columns::{ROWS_PER_STATEMENT, from_millis};
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

const SELECT: &str = "SELECT name, schedule, since, watermark FROM jobs";
const DELETE: &str = "DELETE FROM jobs WHERE name = $1";
const RAISE_WATERMARK: &str = "\
    UPDATE jobs SET watermark = $2 WHERE name = $1 AND COALESCE(watermark, 0) < $2";

/// Records the scheduled jobs by name and schedule, and deletes all others.
///
/// A job that is new or has another schedule is known since `now`, without a watermark.
pub(super) async fn upsert(
    pool: &SqlitePool,
    jobs: &[(String, String)],
    now: Timestamp,
) -> Result<HashMap<String, ScheduleState>, Error> {
    let mut transaction = pool.begin().await?;
    let mut known = known(&mut transaction).await?;
    let wanted: HashSet<&str> = jobs.iter().map(|(name, _)| name.as_str()).collect();
    for name in known.keys().filter(|name| !wanted.contains(name.as_str())) {
        sqlx::query(DELETE).bind(name).execute(&mut *transaction).await?;
    }
    let is_known = |name, schedule| known.get(name).is_some_and(|(known, _)| known == schedule);
    let new: Vec<&(String, String)> =
        jobs.iter().filter(|(name, schedule)| !is_known(name, schedule)).collect();
    insert(&mut transaction, &new, now).await?;
    transaction.commit().await?;
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
    transaction: &mut SqliteTransaction<'_>,
) -> Result<HashMap<String, (String, ScheduleState)>, Error> {
    let rows = sqlx::query(SELECT).fetch_all(&mut **transaction).await?;
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
    transaction: &mut SqliteTransaction<'_>,
    jobs: &[&(String, String)],
    now: Timestamp,
) -> Result<(), Error> {
    for chunk in jobs.chunks(ROWS_PER_STATEMENT) {
        QueryBuilder::new("INSERT OR REPLACE INTO jobs (name, schedule, since) ")
            .push_values(chunk, |mut row, (name, schedule)| {
                row.push_bind(name).push_bind(schedule).push_bind(now.timestamp_millis());
            })
            .build()
            .execute(&mut **transaction)
            .await?;
    }
    Ok(())
}

/// Raises the watermark of a job; never lowers it.
pub(super) async fn set_watermark(
    pool: &SqlitePool,
    job: &str,
    until: Timestamp,
) -> Result<(), Error> {
    sqlx::query(RAISE_WATERMARK).bind(job).bind(until.timestamp_millis()).execute(pool).await?;
    Ok(())
}
