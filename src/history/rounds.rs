//! Rounds: how far each job has come, across runs and restarts.

use std::collections::HashMap;

use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row};

use super::columns::{from_millis, parsed, query, signed, storable, unsigned};
use super::error::Error;
use crate::plan::report::Mode;
use crate::plan::round::RoundState;
use crate::synapse::Position;

const SELECT: &str = "SELECT * FROM rounds WHERE job = $1 AND mode = $2";
const SELECT_ALL: &str = "SELECT * FROM rounds";
const UPSERT: &str = "\
    INSERT INTO rounds (job, mode, definition, started_at, finished_at, entries_read,
        entries_total, resume_after, resume_offset, findings)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
    ON CONFLICT (job, mode) DO UPDATE SET definition = excluded.definition,
        started_at = excluded.started_at, finished_at = excluded.finished_at,
        entries_read = excluded.entries_read, entries_total = excluded.entries_total,
        resume_after = excluded.resume_after, resume_offset = excluded.resume_offset,
        findings = excluded.findings";

pub(super) async fn get(
    connection: &mut AnyConnection,
    job: &str,
    mode: Mode,
) -> Result<Option<RoundState>, Error> {
    let row = query(SELECT).bind(job).bind(mode.as_str()).fetch_optional(&mut *connection).await?;
    row.as_ref().map(from_row).transpose()
}

pub(super) async fn all(
    connection: &mut AnyConnection,
) -> Result<HashMap<(String, Mode), RoundState>, Error> {
    let rows = query(SELECT_ALL).fetch_all(&mut *connection).await?;
    rows.iter()
        .map(|row| Ok(((row.try_get("job")?, parsed(row, "mode")?), from_row(row)?)))
        .collect()
}

pub(super) async fn set(
    connection: &mut AnyConnection,
    job: &str,
    mode: Mode,
    round: &RoundState,
) -> Result<(), Error> {
    let RoundState { definition, started_at, finished_at, read, total, position, findings } = round;
    query(UPSERT)
        .bind(job)
        .bind(mode.as_str())
        .bind(definition)
        .bind(started_at.timestamp_millis())
        .bind(finished_at.map(|time| time.timestamp_millis()))
        .bind(signed(*read))
        .bind(signed(*total))
        .bind(position.as_ref().map(|position| storable(&position.after).into_owned()))
        .bind(position.as_ref().map(|position| signed(position.offset)))
        .bind(findings.as_ref().map(|findings| storable(&findings.to_string()).into_owned()))
        .execute(&mut *connection)
        .await?;
    Ok(())
}

fn from_row(row: &AnyRow) -> Result<RoundState, Error> {
    let after: Option<String> = row.try_get("resume_after")?;
    let offset: Option<i64> = row.try_get("resume_offset")?;
    let findings: Option<String> = row.try_get("findings")?;
    Ok(RoundState {
        definition: row.try_get("definition")?,
        started_at: from_millis(row.try_get("started_at")?),
        finished_at: row.try_get::<Option<i64>, _>("finished_at")?.map(from_millis),
        read: unsigned(row.try_get("entries_read")?),
        total: unsigned(row.try_get("entries_total")?),
        position: after.map(|after| Position { after, offset: offset.map_or(0, unsigned) }),
        findings: findings.and_then(|text| serde_json::from_str(&text).ok()),
    })
}
