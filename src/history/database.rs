//! An open database: everything is read and written in transactions, whose end is known.

use std::fmt;
use std::marker::PhantomData;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use sqlx::{AnyConnection, Connection, Executor, Row};
use tokio::time::timeout;

use super::database_url::DatabaseUrl;
use super::error::Error;
use super::postgres::{self, Connections};
use super::sqlite::{self, Queued};
use super::state_dir::StateDir;
use crate::values::lock_file::identity;

/// Where a history is kept.
#[derive(Debug, Clone)]
pub enum Place {
    /// In a SQLite file of the state directory.
    Directory(StateDir),
    Postgres(DatabaseUrl),
}

impl From<&StateDir> for Place {
    fn from(dir: &StateDir) -> Self {
        Self::Directory(dir.clone())
    }
}

impl From<DatabaseUrl> for Place {
    fn from(url: DatabaseUrl) -> Self {
        Self::Postgres(url)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(dir) => write!(formatter, "{}", dir.path(sqlite::FILE).display()),
            Self::Postgres(url) => write!(formatter, "{url}"),
        }
    }
}

impl Place {
    /// The same place for a copy, whose connections are told from those of daemons and runs.
    pub(super) fn for_copy(&self) -> Self {
        match self {
            Self::Directory(_) => self.clone(),
            Self::Postgres(url) => Self::Postgres(url.for_copy()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Sqlite,
    Postgres,
}

/// The connection for one long transaction.
pub(super) enum Borrowed<'a> {
    Sqlite(sqlite::Borrowed<'a>),
    Postgres(postgres::Borrowed<'a>),
}

impl Borrowed<'_> {
    pub(super) fn connection(&mut self) -> &mut AnyConnection {
        match self {
            Self::Sqlite(borrowed) => borrowed.connection(),
            Self::Postgres(borrowed) => borrowed.connection(),
        }
    }
}

/// A database that is open for writing.
#[derive(Debug, Clone)]
pub(super) enum Database {
    Sqlite { write: Queued, read: Queued, path: Arc<Path>, file: Option<(u64, u64)> },
    Postgres(Connections),
}

/// A database that is open for reading.
#[derive(Debug, Clone)]
pub(super) enum Reading {
    Sqlite(Queued),
    Postgres(Connections),
}

// Each begins a transaction and bounds it. A server may turn off what lets a record survive a power failure. A replica that
// is frozen or cut off in mid-transaction keeps its locks for as long as a session may be idle, and nobody takes its leases.
const WRITE_SQLITE: &str = "BEGIN IMMEDIATE";
const WRITE_POSTGRES: &str = "\
    BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;
    SET LOCAL statement_timeout = '30s';
    SET LOCAL idle_in_transaction_session_timeout = '5s';
    SELECT set_config('synchronous_commit', 'on', true)
        WHERE current_setting('synchronous_commit') = 'off'";
const READ_SQLITE: &str = "BEGIN";
const READ_POSTGRES: &str = "\
    BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
    SET LOCAL statement_timeout = '30s';
    SET LOCAL idle_in_transaction_session_timeout = '60s'";
const TRANSACTION_ID: &str = "SELECT pg_current_xact_id()::text AS id";
/// How long a transaction on PostgreSQL may take before its connection is given up.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(45);
/// How often a transaction is tried that certainly was not committed.
const ATTEMPTS: u32 = 2;

/// What a transaction consists of.
///
/// A future that borrows the connection and what the statements are made of, on the heap so that those of runs stay small.
pub(super) struct Work<'a, 'c, T> {
    future: Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'c>>,
    /// `'a` outlives `'c`.
    borrowed: PhantomData<&'c &'a ()>,
}

pub(super) fn work<'a, 'c, T>(
    future: impl Future<Output = Result<T, Error>> + Send + 'c,
) -> Work<'a, 'c, T> {
    Work { future: Box::pin(future), borrowed: PhantomData }
}

impl<T> Future for Work<'_, '_, T> {
    type Output = Result<T, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.future.as_mut().poll(context)
    }
}

/// The type of a future says more than the compiler can follow in tasks.
pub(super) fn on_heap<'f, T>(
    future: impl Future<Output = T> + Send + 'f,
) -> Pin<Box<dyn Future<Output = T> + Send + 'f>> {
    Box::pin(future)
}

/// Makes a transaction's work, as often as the transaction is tried.
pub(super) trait Statements<'a, T>:
    for<'c> Fn(&'c mut AnyConnection) -> Work<'a, 'c, T> + Send + Sync
{
}

impl<'a, T, F> Statements<'a, T> for F where
    F: for<'c> Fn(&'c mut AnyConnection) -> Work<'a, 'c, T> + Send + Sync
{
}

/// The end of a transaction on PostgreSQL.
enum Attempt<T> {
    Committed(T),
    /// Nothing of it remains.
    NotCommitted(Error),
    /// The connection was lost: nothing of it remains, and it may be tried again.
    Lost(Error),
}

impl Database {
    /// Opens the database, creates it or its tables if needed, and migrates it.
    pub(super) async fn open(place: &Place) -> Result<Self, Error> {
        Ok(match place {
            Place::Directory(dir) => {
                let (write, read) = sqlite::open(dir).await?;
                let path = dir.path(sqlite::FILE);
                Self::Sqlite { write, read, file: identity(&path), path: path.into() }
            }
            Place::Postgres(url) => Self::Postgres(Connections::open(url).await?),
        })
    }

    pub(super) fn dialect(&self) -> Dialect {
        match self {
            Self::Sqlite { .. } => Dialect::Sqlite,
            Self::Postgres(_) => Dialect::Postgres,
        }
    }

    /// The connection that writes, without the bounds of [`write`](Self::write).
    pub(super) async fn borrow(&self) -> Result<Borrowed<'_>, Error> {
        Ok(match self {
            Self::Sqlite { write, .. } => Borrowed::Sqlite(write.borrow().await?),
            Self::Postgres(connections) => Borrowed::Postgres(connections.borrow().await?),
        })
    }

    pub(super) fn reading(&self) -> Reading {
        match self {
            Self::Sqlite { read, .. } => Reading::Sqlite(read.clone()),
            Self::Postgres(connections) => Reading::Postgres(connections.clone()),
        }
    }

    /// Fails if the file that was opened is not the one in the state directory any more.
    pub(super) fn ensure_in_place(&self) -> Result<(), Error> {
        let Self::Sqlite { path, file, .. } = self else { return Ok(()) };
        if identity(path) == *file {
            return Ok(());
        }
        let path = path.display();
        Err(Error::Unavailable(format!("{path} was deleted or replaced while it was open").into()))
    }

    /// Writes in one transaction.
    ///
    /// On PostgreSQL `write` is called again where the connection was lost and nothing was committed.
    pub(super) async fn write<'a, T>(&self, write: impl Statements<'a, T>) -> Result<T, Error> {
        match self {
            Self::Sqlite { write: queued, .. } => {
                let mut borrowed = queued.borrow().await?;
                let written = write_sqlite(borrowed.connection(), write).await;
                borrowed.give_back(written)
            }
            Self::Postgres(connections) => write_postgres(connections, &write).await,
        }
    }

    /// As [`write`](Self::write), without waiting for the turns of others where there are several connections.
    pub(super) async fn write_at_once<'a, T>(
        &self,
        write: impl Statements<'a, T>,
    ) -> Result<T, Error> {
        match self {
            Self::Sqlite { .. } => self.write(write).await,
            Self::Postgres(connections) => write_postgres(connections.reserved(), &write).await,
        }
    }

    pub(super) async fn close(&self) {
        match self {
            Self::Sqlite { write, read, .. } => {
                read.close().await;
                write.close().await;
            }
            Self::Postgres(connections) => connections.close().await,
        }
    }
}

impl Reading {
    /// Opens a history for reading only; `None` if there is none yet.
    pub(super) async fn open(dir: &Path, url: Option<&DatabaseUrl>) -> Result<Option<Self>, Error> {
        Ok(match url {
            None => sqlite::open_read_only(dir).await?.map(Self::Sqlite),
            Some(url) => Connections::open_read_only(url).await?.map(Self::Postgres),
        })
    }

    /// Opens the file of a directory as it lies there; `None` if there is none.
    pub(super) fn open_immutable(dir: &StateDir) -> Result<Option<Self>, Error> {
        Ok(sqlite::open_immutable(dir)?.map(Self::Sqlite))
    }

    /// Reads in one transaction: what is read belongs together.
    pub(super) async fn read<'a, T>(&self, read: impl Statements<'a, T>) -> Result<T, Error> {
        match self {
            Self::Sqlite(queued) => {
                let mut borrowed = queued.borrow().await?;
                let result = read_sqlite(borrowed.connection(), read).await;
                borrowed.give_back(result)
            }
            Self::Postgres(connections) => {
                let first = read_postgres(connections, &read).await;
                match first {
                    Err(error) if error.is_lost_connection() => {
                        read_postgres(connections, &read).await
                    }
                    result => result,
                }
            }
        }
    }

    /// As [`read`](Self::read), without waiting for the turns of others where there are several connections.
    pub(super) async fn read_at_once<'a, T>(
        &self,
        read: impl Statements<'a, T>,
    ) -> Result<T, Error> {
        match self {
            Self::Sqlite(_) => self.read(read).await,
            Self::Postgres(connections) => read_postgres(connections.reserved(), &read).await,
        }
    }

    pub(super) async fn close(&self) {
        match self {
            Self::Sqlite(queued) => queued.close().await,
            Self::Postgres(connections) => connections.close().await,
        }
    }
}

async fn write_sqlite<'a, T>(
    connection: &mut AnyConnection,
    write: impl Statements<'a, T>,
) -> Result<T, Error> {
    let mut transaction = connection.begin_with(WRITE_SQLITE).await?;
    let written = write(&mut transaction).await?;
    transaction.commit().await?;
    Ok(written)
}

async fn read_sqlite<'a, T>(
    connection: &mut AnyConnection,
    read: impl Statements<'a, T>,
) -> Result<T, Error> {
    let mut transaction = connection.begin_with(READ_SQLITE).await?;
    let result = read(&mut transaction).await?;
    transaction.rollback().await?;
    Ok(result)
}

async fn read_postgres<'a, T>(
    connections: &Connections,
    read: &impl Statements<'a, T>,
) -> Result<T, Error> {
    let mut borrowed = connections.borrow().await?;
    let reading = async {
        let mut transaction = borrowed.connection().begin_with(READ_POSTGRES).await?;
        let result = read(&mut transaction).await?;
        transaction.rollback().await?;
        Ok(result)
    };
    let result = timeout(TRANSACTION_TIMEOUT, reading).await.map_err(|_| too_slow(connections))?;
    if result.is_ok() {
        borrowed.give_back();
    }
    result
}

async fn write_postgres<'a, T>(
    connections: &Connections,
    write: &impl Statements<'a, T>,
) -> Result<T, Error> {
    let mut tried = 0;
    loop {
        tried += 1;
        match attempt(connections, write).await? {
            Attempt::Committed(written) => return Ok(written),
            Attempt::Lost(_) if tried < ATTEMPTS => {}
            Attempt::Lost(error) | Attempt::NotCommitted(error) => return Err(error),
        }
    }
}

async fn attempt<'a, T>(
    connections: &Connections,
    write: &impl Statements<'a, T>,
) -> Result<Attempt<T>, Error> {
    let mut borrowed = connections.borrow().await?;
    let writing = async {
        let mut transaction = borrowed.connection().begin_with(WRITE_POSTGRES).await?;
        let written = write(&mut transaction).await?;
        let id: String =
            transaction.fetch_one(sqlx::raw_sql(TRANSACTION_ID)).await?.try_get("id")?;
        Ok((transaction, written, id))
    };
    let (transaction, written, id) = match timeout(TRANSACTION_TIMEOUT, writing).await {
        Err(_) => return Ok(Attempt::NotCommitted(too_slow(connections))),
        Ok(Err(error)) => return Ok(not_committed(error)),
        Ok(Ok(ready)) => ready,
    };
    let committed = timeout(TRANSACTION_TIMEOUT, transaction.commit()).await;
    let error = match committed {
        Ok(Ok(())) => {
            borrowed.give_back();
            return Ok(Attempt::Committed(written));
        }
        Ok(Err(error)) => Error::from(error),
        Err(_) => too_slow(connections),
    };
    // Its turn is needed to ask.
    drop(borrowed);
    // The answer may be all that was lost.
    Ok(match connections.is_committed(&id).await? {
        true => Attempt::Committed(written),
        false => not_committed(error),
    })
}

fn not_committed<T>(error: Error) -> Attempt<T> {
    match error.is_lost_connection() {
        true => Attempt::Lost(error),
        false => Attempt::NotCommitted(error),
    }
}

fn too_slow(connections: &Connections) -> Error {
    Error::Unreachable {
        database: connections.url.to_string(),
        why: format!("no answer within {} s", TRANSACTION_TIMEOUT.as_secs()).into(),
    }
}
