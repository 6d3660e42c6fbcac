//! The pause of scheduled runs, and other single values that outlive the daemon.

use sqlx::{AnyConnection, Row};

use super::columns::{from_millis, query};
use super::error::Error;
use crate::values::clock::Timestamp;

/// Whether scheduled runs are paused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pause {
    pub paused: bool,
    /// When scheduled runs were last resumed: nothing earlier is due.
    pub resumed_at: Option<Timestamp>,
}

const PAUSED: &str = "paused";
const RESUMED_AT: &str = "resumed_at";
const PROBE: &str = "probe";
const SELECT: &str = "SELECT name, value FROM switches";
const SET: &str = "\
    INSERT INTO switches (name, value) VALUES ($1, $2)
    ON CONFLICT (name) DO UPDATE SET value = excluded.value";

pub(super) async fn get(connection: &mut AnyConnection) -> Result<Pause, Error> {
    let rows = query(SELECT).fetch_all(&mut *connection).await?;
    let mut pause = Pause::default();
    for row in rows {
        let value: i64 = row.try_get("value")?;
        match row.try_get("name")? {
            PAUSED => pause.paused = value != 0,
            RESUMED_AT => pause.resumed_at = Some(from_millis(value)),
            _ => {}
        }
    }
    Ok(pause)
}

pub(super) async fn set(connection: &mut AnyConnection, pause: Pause) -> Result<(), Error> {
    set_value(connection, PAUSED, i64::from(pause.paused)).await?;
    match pause.resumed_at {
        Some(time) => set_value(connection, RESUMED_AT, time.timestamp_millis()).await,
        None => Ok(()),
    }
}

/// Writes a value that differs each time: SQLite would not write what is there already.
pub(super) async fn probe(connection: &mut AnyConnection, now: Timestamp) -> Result<(), Error> {
    set_value(connection, PROBE, now.timestamp_micros()).await
}

async fn set_value(connection: &mut AnyConnection, name: &str, value: i64) -> Result<(), Error> {
    query(SET).bind(name).bind(value).execute(&mut *connection).await?;
    Ok(())
}
