//! Conversions between values and the columns that hold them.

use std::str::FromStr;

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite};

use super::error::Error;
use crate::values::clock::Timestamp;

/// Rows in one statement: SQLite binds at most 32,766 values, and no table here has more than 16 columns to insert.
pub(super) const ROWS_PER_STATEMENT: usize = 2000;

pub(super) fn from_millis(millis: i64) -> Timestamp {
    Timestamp::from_timestamp_millis(millis).unwrap_or_default()
}

pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// Reads a value that is stored as its name.
pub(super) fn parsed<T: FromStr<Err = String>>(row: &SqliteRow, column: &str) -> Result<T, Error> {
    row.try_get::<&str, _>(column)?
        .parse()
        .map_err(|error: String| sqlx::Error::Decode(error.into()).into())
}

/// Reads a column that the database of an older version may lack: a read-only opening does not migrate.
pub(super) fn if_present<'a, T>(row: &'a SqliteRow, column: &str) -> Result<Option<T>, Error>
where
    Option<T>: sqlx::Decode<'a, Sqlite> + sqlx::Type<Sqlite>,
{
    match row.try_get(column) {
        Err(sqlx::Error::ColumnNotFound(_)) => Ok(None),
        value => Ok(value?),
    }
}
