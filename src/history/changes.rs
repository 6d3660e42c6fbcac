//! Changes of a run and their states, and the files that they deleted.

use std::borrow::Cow;
use std::collections::HashSet;

use futures_util::TryStreamExt;
use serde_json::Value;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, AssertSqlSafe, Row};

use super::columns::{
    ROWS_PER_STATEMENT, if_present, parsed, query, signed, storable, unsigned, values,
};
use super::error::Error;
use super::facts;
use crate::plan::facts::Fact;
use crate::plan::report::{Action, CHANGES_SHOWN, ChangeRecord, State};

/// Which changes of a run to read.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    pub offset: u32,
    pub limit: u32,
}

impl Default for Page {
    fn default() -> Self {
        Self { offset: 0, limit: CHANGES_SHOWN }
    }
}

/// A file that a run deleted: its id, and its size in bytes where that was known.
pub type DeletedFile = (String, Option<u64>);

// The state 'making' means that a change was sent and its response is not recorded.
const DELETE_PLANNED: &str = "DELETE FROM changes WHERE run = $1 AND state = 'planned'";
const INSERT: &str = "INSERT INTO changes (run, seq, action, target, count, state, detail)";
const INSERT_FILES: &str = "INSERT INTO files (run, media_id, bytes)";
const NEXT_SEQ: &str = "SELECT COALESCE(MAX(seq) + 1, 0) AS next FROM changes WHERE run = $1";
/// Takes back what failed and is planned again, unless its record says what to restore.
const DELETE_PLANNED_AGAIN: &str = "\
    DELETE FROM changes WHERE run = $1 AND seq < $2 AND state = 'failed' AND before IS NULL
        AND target IN (SELECT target FROM changes WHERE run = $1 AND seq >= $2)";
const SENT: &str = "\
    INSERT INTO changes (run, seq, action, target, count, state, before)
    VALUES ($1, $2, $3, $4, $5, 'making', $6)
    ON CONFLICT (run, seq) DO UPDATE SET state = 'making', before = excluded.before";
const RESULT: &str = "\
    INSERT INTO changes (run, seq, action, target, count, state, detail, answer)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
    ON CONFLICT (run, seq) DO UPDATE SET count = excluded.count, state = excluded.state,
        detail = excluded.detail, answer = excluded.answer";
const FAIL_UNANSWERED: &str = "\
    UPDATE changes SET state = 'failed', detail = $2
    WHERE run = $1 AND state = 'making' RETURNING count";
const EXPLAIN_PLANNED: &str = "\
    UPDATE changes SET detail = $2 WHERE run = $1 AND state = 'planned' AND detail IS NULL";
const SELECT_PAGE: &str = "SELECT * FROM changes WHERE run = $1 ORDER BY seq LIMIT $2 OFFSET $3";
const SELECT_PLANNED: &str =
    "SELECT action, target FROM changes WHERE run = $1 AND state = 'planned'";
const SELECT_FILES: &str = "SELECT media_id, bytes FROM files WHERE run = $1 ORDER BY media_id";

/// Replaces what a run had planned and not attempted, or failed to apply, by a new plan.
///
/// Returns the sequence number of its first change.
pub(super) async fn replace_plan(
    connection: &mut AnyConnection,
    run: i64,
    changes: &[ChangeRecord],
) -> Result<i64, Error> {
    query(DELETE_PLANNED).bind(run).execute(&mut *connection).await?;
    let next = query(NEXT_SEQ).bind(run).fetch_one(&mut *connection).await?;
    let first: i64 = next.try_get("next")?;
    insert(connection, run, first, changes).await?;
    query(DELETE_PLANNED_AGAIN).bind(run).bind(first).execute(&mut *connection).await?;
    Ok(first)
}

async fn insert(
    connection: &mut AnyConnection,
    run: i64,
    first: i64,
    changes: &[ChangeRecord],
) -> Result<(), Error> {
    let numbered: Vec<(i64, &ChangeRecord)> = (first..).zip(changes).collect();
    for chunk in numbered.chunks(ROWS_PER_STATEMENT) {
        let sql = format!("{INSERT} {}", values(chunk.len(), 7));
        let mut statement = query(AssertSqlSafe(sql));
        for (seq, change) in chunk {
            statement = statement
                .bind(run)
                .bind(*seq)
                .bind(change.action.as_str())
                .bind(storable(&change.target).into_owned())
                .bind(signed(change.count))
                .bind(change.state.as_str())
                .bind(change.detail.as_deref().map(storable).map(Cow::into_owned));
        }
        statement.execute(&mut *connection).await?;
    }
    Ok(())
}

/// Records that a change is about to be sent, what it will replace, and the facts that hold from then on.
pub(super) async fn sent(
    connection: &mut AnyConnection,
    run: i64,
    seq: i64,
    change: &ChangeRecord,
    (server, found): (&str, &[Fact]),
) -> Result<(), Error> {
    query(SENT)
        .bind(run)
        .bind(seq)
        .bind(change.action.as_str())
        .bind(storable(&change.target).into_owned())
        .bind(signed(change.count))
        .bind(change.before.as_ref().map(Value::to_string))
        .execute(&mut *connection)
        .await?;
    facts::insert(connection, server, found).await
}

/// Records the result of a change with the files it deleted and the facts it showed, all at once.
pub(super) async fn result(
    connection: &mut AnyConnection,
    run: i64,
    seq: i64,
    change: &ChangeRecord,
    files: &[DeletedFile],
    (server, found): (&str, &[Fact]),
) -> Result<(), Error> {
    query(RESULT)
        .bind(run)
        .bind(seq)
        .bind(change.action.as_str())
        .bind(storable(&change.target).into_owned())
        .bind(signed(change.count))
        .bind(change.state.as_str())
        .bind(change.detail.as_deref().map(storable).map(Cow::into_owned))
        .bind(change.answer.as_deref().map(storable).map(Cow::into_owned))
        .execute(&mut *connection)
        .await?;
    insert_files(connection, run, files).await?;
    facts::insert(connection, server, found).await?;
    Ok(())
}

async fn insert_files(
    connection: &mut AnyConnection,
    run: i64,
    files: &[DeletedFile],
) -> Result<(), Error> {
    for chunk in files.chunks(ROWS_PER_STATEMENT) {
        let sql = format!("{INSERT_FILES} {} ON CONFLICT DO NOTHING", values(chunk.len(), 3));
        let mut statement = query(AssertSqlSafe(sql));
        for (id, bytes) in chunk {
            statement = statement.bind(run).bind(storable(id).into_owned()).bind(bytes.map(signed));
        }
        statement.execute(&mut *connection).await?;
    }
    Ok(())
}

/// Marks changes that were sent and got no response as failed; returns the number of their items.
pub(super) async fn fail_unanswered(
    connection: &mut AnyConnection,
    run: i64,
    why: &str,
) -> Result<u64, Error> {
    let rows = query(FAIL_UNANSWERED).bind(run).bind(why).fetch_all(connection).await?;
    rows.iter().map(|row| Ok(unsigned(row.try_get("count")?))).sum()
}

/// Records why planned changes were not attempted.
pub(super) async fn explain_planned(
    connection: &mut AnyConnection,
    run: i64,
    why: &str,
) -> Result<(), Error> {
    query(EXPLAIN_PLANNED).bind(run).bind(why).execute(connection).await?;
    Ok(())
}

pub(super) async fn page(
    connection: &mut AnyConnection,
    run: i64,
    page: Page,
) -> Result<Vec<ChangeRecord>, Error> {
    let rows = query(SELECT_PAGE)
        .bind(run)
        .bind(i64::from(page.limit))
        .bind(i64::from(page.offset))
        .fetch_all(connection)
        .await?;
    rows.iter().map(from_row).collect()
}

/// Returns what a run has planned and not attempted.
pub(super) async fn planned(
    connection: &mut AnyConnection,
    run: i64,
) -> Result<HashSet<(Action, String)>, Error> {
    let mut rows = query(SELECT_PLANNED).bind(run).fetch(&mut *connection);
    let mut planned = HashSet::new();
    while let Some(row) = rows.try_next().await? {
        planned.insert((parsed(&row, "action")?, row.try_get("target")?));
    }
    Ok(planned)
}

/// Returns the files that a run deleted.
pub(super) async fn files(
    connection: &mut AnyConnection,
    run: i64,
) -> Result<Vec<DeletedFile>, Error> {
    let rows = query(SELECT_FILES).bind(run).fetch_all(connection).await?;
    rows.iter()
        .map(|row| {
            let bytes: Option<i64> = row.try_get("bytes")?;
            Ok((row.try_get("media_id")?, bytes.map(unsigned)))
        })
        .collect()
}

pub(super) fn from_row(row: &AnyRow) -> Result<ChangeRecord, Error> {
    // Outside the history a change without a response is still planned.
    let unanswered = row.try_get::<&str, _>("state")? == "making";
    let (state, detail) = if unanswered {
        (State::Planned, Some("sent, no response yet".to_owned()))
    } else {
        (parsed(row, "state")?, row.try_get("detail")?)
    };
    Ok(ChangeRecord {
        action: parsed::<Action>(row, "action")?,
        target: row.try_get("target")?,
        count: unsigned(row.try_get("count")?),
        state,
        detail,
        answer: if_present(row, "answer")?,
        before: row
            .try_get::<Option<String>, _>("before")?
            .and_then(|text| serde_json::from_str(&text).ok()),
    })
}
