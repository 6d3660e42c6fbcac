//! Conversions between values and the columns that hold them.

use std::borrow::Cow;
use std::str::FromStr;

use sqlx::any::{AnyArguments, AnyRow};
use sqlx::query::Query;
use sqlx::{Any, Row, SqlSafeStr};

use super::error::Error;
use crate::values::clock::Timestamp;

/// Rows in one statement: SQLite looks for each placeholder among all that come before it, so that 2,000 rows in one take
/// half a second, and in twenty statements a twentieth of that.
pub(super) const ROWS_PER_STATEMENT: usize = 100;

/// A statement that PostgreSQL forgets at once: the next transaction may have another connection.
pub(super) fn query<'a>(sql: impl SqlSafeStr) -> Query<'a, Any, AnyArguments> {
    sqlx::query(sql).persistent(false)
}

/// `VALUES ($1, $2), ($3, $4)` for as many rows and columns; sqlx's builder does not know PostgreSQL's placeholders.
pub(super) fn values(rows: usize, columns: usize) -> String {
    let row = |first: usize| {
        let places: Vec<String> =
            (first..first + columns).map(|place| format!("${place}")).collect();
        format!("({})", places.join(", "))
    };
    let rows: Vec<String> = (0..rows).map(|number| row(number * columns + 1)).collect();
    format!("VALUES {}", rows.join(", "))
}

/// A text as both databases can store it: PostgreSQL knows no NUL.
pub(super) fn storable(text: &str) -> Cow<'_, str> {
    match text.contains('\0') {
        true => text.replace('\0', "\u{fffd}").into(),
        false => text.into(),
    }
}

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
pub(super) fn parsed<T: FromStr<Err = String>>(row: &AnyRow, column: &str) -> Result<T, Error> {
    row.try_get::<&str, _>(column)?
        .parse()
        .map_err(|error: String| sqlx::Error::Decode(error.into()).into())
}

/// Reads a column that the database of an older version may lack: a read-only opening does not migrate.
pub(super) fn if_present<'a, T>(row: &'a AnyRow, column: &str) -> Result<Option<T>, Error>
where
    Option<T>: sqlx::Decode<'a, Any> + sqlx::Type<Any>,
{
    match row.try_get(column) {
        Err(sqlx::Error::ColumnNotFound(_)) => Ok(None),
        value => Ok(value?),
    }
}
