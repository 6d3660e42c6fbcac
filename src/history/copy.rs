//! Copying a whole history from one database to another, all or nothing.

use std::io;

use futures_util::TryStreamExt;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, AssertSqlSafe, Connection, Executor, Row};

use super::columns::{query, storable, values};
use super::database::{Database, Dialect, Place};
use super::error::Error;
use super::postgres;
use super::sqlite::FILE;
use super::state_dir::{DaemonLock, is_regular};

/// Why a history was not copied; nothing was written then.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotCopied {
    #[error("{0}")]
    History(#[from] Error),
    #[error("{place} is in use: stop the daemon, and let runs end")]
    InUse { place: String },
    #[error("there is no history in {place}")]
    Missing { place: String },
    #[error(
        "the history in {place} is not empty ({count} in {table}): copy into an empty state directory or database"
    )]
    NotEmpty { place: String, table: &'static str, count: i64 },
    #[error("{table} has {read} rows and its copy {written}: the copy was given up")]
    Differs { table: &'static str, read: i64, written: i64 },
}

impl From<sqlx::Error> for NotCopied {
    fn from(error: sqlx::Error) -> Self {
        Self::History(error.into())
    }
}

impl From<io::Error> for NotCopied {
    fn from(error: io::Error) -> Self {
        Self::History(error.into())
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Number,
    Real,
    Text,
}

use Kind::{Number, Real, Text};

struct Table {
    name: &'static str,
    columns: &'static [(&'static str, Kind)],
}

/// Every table, each after those that it refers to.
const TABLES: &[Table] = &[
    Table {
        name: "runs",
        columns: &[
            ("id", Number),
            ("job", Text),
            ("kind", Text),
            ("homeserver", Text),
            ("mode", Text),
            ("cause", Text),
            ("scheduled_for", Number),
            ("started_at", Number),
            ("finished_at", Number),
            ("attempts", Number),
            ("outcome", Text),
            ("message", Text),
            ("planned", Number),
            ("done", Number),
            ("failed", Number),
            ("skipped", Number),
            ("bytes_planned", Number),
            ("bytes_freed", Number),
            ("sample", Text),
            ("waiting_for", Text),
            ("waiting_since", Number),
            ("waited_seconds", Real),
            ("waited_for", Text),
            ("left_alone", Text),
            ("remaining", Number),
            ("round", Text),
            ("approval_state", Text),
            ("approval_expires_at", Number),
            ("approval_by", Text),
            ("approval_decided_at", Number),
            ("approval_detail", Text),
            ("approval_definition", Text),
            ("approval_max_changes", Number),
            ("approval_run", Number),
            ("approval_starts", Number),
            ("unreported", Number),
        ],
    },
    Table {
        name: "messages",
        columns: &[
            ("id", Text),
            ("notification", Text),
            ("event", Text),
            ("subject", Text),
            ("job", Text),
            ("mode", Text),
            ("run", Number),
            ("created_at", Number),
            ("content", Text),
            ("state", Text),
            ("attempted", Number),
            ("room_id", Text),
            ("event_id", Text),
            ("sent_at", Number),
        ],
    },
    Table {
        name: "rounds",
        columns: &[
            ("job", Text),
            ("mode", Text),
            ("definition", Text),
            ("started_at", Number),
            ("finished_at", Number),
            ("entries_read", Number),
            ("entries_total", Number),
            ("resume_after", Text),
            ("resume_offset", Number),
            ("findings", Text),
        ],
    },
    Table {
        name: "changes",
        columns: &[
            ("run", Number),
            ("seq", Number),
            ("action", Text),
            ("target", Text),
            ("count", Number),
            ("state", Text),
            ("detail", Text),
            ("before", Text),
            ("answer", Text),
        ],
    },
    Table { name: "files", columns: &[("run", Number), ("media_id", Text), ("bytes", Number)] },
    Table {
        name: "facts",
        columns: &[("server", Text), ("topic", Text), ("key", Text), ("value", Text)],
    },
    Table {
        name: "media_calls",
        columns: &[("server", Text), ("sent_at", Number), ("uploaded_until", Number)],
    },
    Table {
        name: "jobs",
        columns: &[("name", Text), ("schedule", Text), ("since", Number), ("watermark", Number)],
    },
    Table { name: "switches", columns: &[("name", Text), ("value", Number)] },
];

/// Rows in one statement: with the columns of the widest table they are within what SQLite can bind.
const BATCH: usize = 900;

/// Copies everything, and returns the number of rows of each table.
///
/// `progress` is told the table and how many of its rows are copied.
pub(crate) async fn copy(
    from: &Place,
    to: &Place,
    mut progress: impl FnMut(&str, u64) + Send,
) -> Result<Vec<(&'static str, i64)>, NotCopied> {
    let (from, to) = (&from.for_copy(), &to.for_copy());
    // Held to the end: neither may change meanwhile.
    let _locks = [keep_out(from).await?, keep_out(to).await?];
    if let Place::Directory(dir) = from
        && !is_regular(&dir.path(FILE))?
    {
        return Err(NotCopied::Missing { place: from.to_string() });
    }
    if let Place::Postgres(url) = from
        && !postgres::has_history(url).await?
    {
        return Err(NotCopied::Missing { place: from.to_string() });
    }
    let (source, target) = (Database::open(from).await?, Database::open(to).await?);
    let result = copy_all(&source, &target, to, &mut progress).await;
    source.close().await;
    target.close().await;
    result
}

async fn copy_all(
    source: &Database,
    target: &Database,
    to: &Place,
    progress: &mut (impl FnMut(&str, u64) + Send),
) -> Result<Vec<(&'static str, i64)>, NotCopied> {
    let (from_dialect, to_dialect) = (source.dialect(), target.dialect());
    let (mut source, mut target) = (source.borrow().await?, target.borrow().await?);
    // What is read belongs together.
    let snapshot = match from_dialect {
        Dialect::Postgres => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        Dialect::Sqlite => "BEGIN",
    };
    let mut source = source.connection().begin_with(snapshot).await?;
    let mut target = target.connection().begin().await?;
    if to_dialect == Dialect::Postgres {
        // Of two copies into one database the second finds what the first wrote.
        target.execute(sqlx::raw_sql("LOCK TABLE runs IN EXCLUSIVE MODE")).await?;
    }
    for table in TABLES {
        let count = count(&mut target, table).await?;
        if count > 0 {
            return Err(NotCopied::NotEmpty { place: to.to_string(), table: table.name, count });
        }
    }
    let mut counts = Vec::new();
    for table in TABLES {
        copy_table(&mut source, &mut target, table, progress).await?;
        let (read, written) = (count(&mut source, table).await?, count(&mut target, table).await?);
        if read != written {
            return Err(NotCopied::Differs { table: table.name, read, written });
        }
        counts.push((table.name, read));
    }
    // An id that was given once is not given again.
    let last = last_id(&mut source, from_dialect).await?;
    set_last_id(&mut target, to_dialect, last).await?;
    target.commit().await?;
    Ok(counts)
}

async fn copy_table(
    source: &mut AnyConnection,
    target: &mut AnyConnection,
    table: &Table,
    progress: &mut (impl FnMut(&str, u64) + Send),
) -> Result<(), NotCopied> {
    let names: Vec<&str> = table.columns.iter().map(|(name, _)| *name).collect();
    let names = names.join(", ");
    let select = format!("SELECT {names} FROM {}", table.name);
    let mut rows = query(AssertSqlSafe(select)).fetch(source);
    let (mut batch, mut copied) = (Vec::with_capacity(BATCH), 0);
    loop {
        let row = rows.try_next().await?;
        let last = row.is_none();
        batch.extend(row);
        if batch.len() == BATCH || (last && !batch.is_empty()) {
            insert(target, table, &names, &batch).await?;
            copied += batch.len() as u64;
            progress(table.name, copied);
            batch.clear();
        }
        if last {
            return Ok(());
        }
    }
}

async fn insert(
    target: &mut AnyConnection,
    table: &Table,
    names: &str,
    rows: &[AnyRow],
) -> Result<(), NotCopied> {
    let places = values(rows.len(), table.columns.len());
    let sql = format!("INSERT INTO {} ({names}) {places}", table.name);
    let mut statement = query(AssertSqlSafe(sql));
    for row in rows {
        for (place, (_, kind)) in table.columns.iter().enumerate() {
            statement = match kind {
                Number => statement.bind(row.try_get::<Option<i64>, _>(place)?),
                Real => statement.bind(row.try_get::<f64, _>(place)?),
                Text => {
                    let text: Option<&str> = row.try_get(place)?;
                    statement.bind(text.map(|text| storable(text).into_owned()))
                }
            };
        }
    }
    statement.execute(target).await?;
    Ok(())
}

async fn count(connection: &mut AnyConnection, table: &Table) -> Result<i64, NotCopied> {
    let sql = format!("SELECT COUNT(*) AS rows FROM {}", table.name);
    Ok(query(AssertSqlSafe(sql)).fetch_one(connection).await?.try_get("rows")?)
}

/// The last id that was given to a run, which may be deleted; 0 before the first.
async fn last_id(source: &mut AnyConnection, dialect: Dialect) -> Result<i64, NotCopied> {
    let sql = match dialect {
        Dialect::Postgres => {
            "SELECT CASE WHEN is_called THEN last_value ELSE 0 END AS last FROM runs_id_seq"
        }
        Dialect::Sqlite => {
            "SELECT COALESCE(MAX(seq), 0) AS last FROM sqlite_sequence WHERE name = 'runs'"
        }
    };
    Ok(query(sql).fetch_one(source).await?.try_get("last")?)
}

async fn set_last_id(
    target: &mut AnyConnection,
    dialect: Dialect,
    last: i64,
) -> Result<(), NotCopied> {
    if last == 0 {
        return Ok(());
    }
    let statements = match dialect {
        Dialect::Postgres => vec![format!("SELECT setval('runs_id_seq', {last})")],
        // It has no unique key.
        Dialect::Sqlite => vec![
            "DELETE FROM sqlite_sequence WHERE name = 'runs'".to_owned(),
            format!("INSERT INTO sqlite_sequence (name, seq) VALUES ('runs', {last})"),
        ],
    };
    for statement in statements {
        target.execute(sqlx::raw_sql(AssertSqlSafe(statement))).await?;
    }
    Ok(())
}

/// Keeps daemons and runs out of a state directory, and refuses one that has any; a database can only be asked.
async fn keep_out(place: &Place) -> Result<Option<DaemonLock>, NotCopied> {
    let in_use = || NotCopied::InUse { place: place.to_string() };
    match place {
        Place::Directory(dir) => {
            let lock = dir.try_lock_daemon()?.ok_or_else(in_use)?;
            match dir.has_runs()? {
                true => Err(in_use()),
                false => Ok(Some(lock)),
            }
        }
        Place::Postgres(url) => match postgres::is_in_use(url).await? {
            true => Err(in_use()),
            false => Ok(None),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_of_the_widest_table_is_within_what_sqlite_can_bind() {
        let widest = TABLES.iter().map(|table| table.columns.len()).max().unwrap();
        assert!(widest * BATCH <= 32_766, "{widest} columns");
    }
}
