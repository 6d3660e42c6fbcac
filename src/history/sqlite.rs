//! A SQLite file: one connection that writes, one that reads, and the file as it lies on a full disk.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::any::AnyConnectOptions;
use sqlx::{AnyConnection, ConnectOptions, Connection, Executor};
use tokio::sync::{Mutex, MutexGuard};

use super::database_url::percent_encoded;
use super::error::Error;
use super::state_dir::{Lock, StateDir, is_regular};

/// The database's file in the state directory.
pub(super) const FILE: &str = "history.db";
/// In KiB because it is negative. SQLite's default of 2 MiB per connection fills up as the history grows, and gains
/// nothing here. With a read-only root file system there is no /tmp to write temporary tables to. The timeout is how long
/// to wait for another process that writes, in milliseconds.
const READER: &str = "\
    PRAGMA busy_timeout = 10000; PRAGMA cache_size = -256; PRAGMA temp_store = memory";
/// As [`READER`]. A recorded change must survive a power failure: the record says what to restore.
const WRITER: &str = "\
    PRAGMA busy_timeout = 10000; PRAGMA cache_size = -256; PRAGMA temp_store = memory;
    PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON";
/// How long to wait for the connection: a thousand runs that start in one second write thousands of times.
const QUEUE_TIMEOUT: Duration = Duration::from_mins(10);
/// How often to look whether another process has opened the database.
const OPENING_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// One connection, for which everybody queues here rather than in SQLite, which would put them to sleep.
///
/// sqlx's pool would repeat the statements that make a connection usable for as long as they fail on a full disk.
#[derive(Debug, Clone)]
pub(super) struct Queued {
    options: Arc<AnyConnectOptions>,
    pragmas: &'static str,
    connection: Arc<Mutex<Place>>,
}

#[derive(Debug, Default)]
enum Place {
    #[default]
    Empty,
    Open(AnyConnection),
    /// Whoever used it was stopped, or failed: a transaction may be open on it.
    Left(AnyConnection),
    Closed,
}

/// The connection while it is in use.
pub(super) struct Borrowed<'a> {
    connection: Option<AnyConnection>,
    place: MutexGuard<'a, Place>,
}

impl Queued {
    fn new(options: AnyConnectOptions, pragmas: &'static str) -> Self {
        Self { options: Arc::new(options), pragmas, connection: Arc::default() }
    }

    pub(super) async fn borrow(&self) -> Result<Borrowed<'_>, Error> {
        let turn = tokio::time::timeout(QUEUE_TIMEOUT, self.connection.lock()).await;
        let mut place = turn.map_err(|_| sqlx::Error::PoolTimedOut)?;
        let connection = match std::mem::take(&mut *place) {
            Place::Open(connection) => connection,
            Place::Empty => self.connect().await?,
            Place::Left(connection) => {
                let _ = connection.close().await;
                self.connect().await?
            }
            Place::Closed => {
                *place = Place::Closed;
                return Err(sqlx::Error::PoolClosed.into());
            }
        };
        Ok(Borrowed { connection: Some(connection), place })
    }

    async fn connect(&self) -> Result<AnyConnection, Error> {
        let mut connection = self.options.connect().await?;
        connection.execute(sqlx::raw_sql(self.pragmas)).await?;
        Ok(connection)
    }

    /// Waits until nobody uses the connection; closing the last one of a file empties its write-ahead log.
    pub(super) async fn close(&self) {
        let before = std::mem::replace(&mut *self.connection.lock().await, Place::Closed);
        if let Place::Open(connection) | Place::Left(connection) = before {
            let _ = connection.close().await;
        }
    }
}

impl Borrowed<'_> {
    pub(super) fn connection(&mut self) -> &mut AnyConnection {
        self.connection.as_mut().expect("only `give_back` takes it")
    }

    /// Gives the connection back after a success.
    ///
    /// A commit that fails on a full disk can leave its transaction open. Whatever follows would be written into it, be
    /// reported as recorded, and be lost with the process: after an error the connection is not used again.
    pub(super) fn give_back<T>(mut self, result: Result<T, Error>) -> Result<T, Error> {
        if result.is_ok()
            && let Some(connection) = self.connection.take()
        {
            *self.place = Place::Open(connection);
        }
        result
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            *self.place = Place::Left(connection);
        }
    }
}

/// Opens the database of a state directory for writing and for reading, creates it if needed, and migrates it.
pub(super) async fn open(dir: &StateDir) -> Result<(Queued, Queued), Error> {
    let _lock = opening_lock(dir).await?;
    let path = dir.path(FILE);
    // It names people: others may not read it. SQLite creates the files beside it with the same mode.
    dir.create(FILE)?;
    refuse_links(&path)?;
    let write = Queued::new(connect_options(&path, "mode=rw")?, WRITER);
    let mut borrowed = write.borrow().await?;
    // `run` takes what its future cannot send to another thread.
    let migrations = sqlx::migrate!("src/history/migrations/sqlite");
    let migrated = migrations.run_direct(None, borrowed.connection(), false).await;
    borrowed.give_back(migrated.map_err(Error::from))?;
    Ok((write, reader(&path).await?))
}

/// Opens the database of a state directory for reading only; `None` if there is none yet.
pub(super) async fn open_read_only(dir: &Path) -> Result<Option<Queued>, Error> {
    let path = dir.join(FILE);
    if !is_regular(&path)? {
        return Ok(None);
    }
    refuse_links(&path)?;
    let reader = reader(&path).await?;
    // Another process may be about to create the tables.
    let mut borrowed = reader.borrow().await?;
    let runs = sqlx::raw_sql("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'runs'");
    let runs = borrowed.connection().fetch_optional(runs).await.map_err(Error::from);
    let has_history = borrowed.give_back(runs)?.is_some();
    Ok(has_history.then_some(reader))
}

/// Opens the file without a journal, which works on a full disk; `None` if there is no file.
///
/// What is only in the write-ahead log is not seen.
pub(super) fn open_immutable(dir: &StateDir) -> Result<Option<Queued>, Error> {
    let path = dir.path(FILE);
    if !path.exists() {
        return Ok(None);
    }
    Ok(Some(Queued::new(connect_options(&path, "mode=ro&immutable=true")?, "")))
}

/// One reader: each connection has a thread that keeps its freed memory, and a second one costs 1.4 MiB in 10,000 runs.
async fn reader(path: &Path) -> Result<Queued, Error> {
    let reader = Queued::new(connect_options(path, "mode=ro")?, READER);
    reader.borrow().await?.give_back(Ok(()))?;
    Ok(reader)
}

fn connect_options(path: &Path, parameters: &str) -> Result<AnyConnectOptions, Error> {
    sqlx::any::install_default_drivers();
    let text = path.to_str().ok_or_else(|| {
        std::io::Error::other(format!("the path {} is not UTF-8", path.display()))
    })?;
    // Without slashes a path is taken as it is: those of a URL lose their `..`.
    Ok(format!("sqlite:{}?{parameters}", percent_encoded(text)).parse()?)
}

/// Refuses anything but regular files where SQLite keeps what belongs to a database: it follows symbolic links.
fn refuse_links(path: &Path) -> Result<(), Error> {
    for suffix in ["-wal", "-shm", "-journal"] {
        let mut beside = path.as_os_str().to_owned();
        beside.push(suffix);
        is_regular(Path::new(&beside))?;
    }
    Ok(())
}

/// Waits until no other process opens the database: nothing else keeps two first starts from creating the same tables.
async fn opening_lock(dir: &StateDir) -> Result<Lock, Error> {
    loop {
        // The dot keeps the name apart from the locks of jobs.
        if let Some(lock) = dir.try_lock("history.open")? {
            return Ok(lock);
        }
        tokio::time::sleep(OPENING_POLL_INTERVAL).await;
    }
}
