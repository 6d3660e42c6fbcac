//! Opening the database: to write, to read, or as its file lies on a full disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

use super::error::Error;
use super::state_dir::{Lock, StateDir, identity, is_regular};

/// The database's file in the state directory.
const FILE: &str = "history.db";
/// In KiB because it is negative. SQLite's default of 2 MiB per connection fills up as the history grows, and gains
/// nothing here.
const CACHE_SIZE: &str = "-256";
/// How long to wait for another process that writes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a write may wait for the connection: a thousand runs that start in one second write thousands of times.
const ACQUIRE_TIMEOUT: Duration = Duration::from_mins(10);
/// How often to look whether another process has opened the database.
const OPENING_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A database that is open for writing.
///
/// One connection writes: writers queue for it here rather than in SQLite, which would put them to sleep.
#[derive(Debug, Clone)]
pub(super) struct Database {
    pub(super) write: SqlitePool,
    pub(super) read: SqlitePool,
    path: Arc<Path>,
    /// Device and inode of the file that was opened.
    file: Option<(u64, u64)>,
}

impl Database {
    /// Opens the database of a state directory, creates it if needed, and migrates it.
    pub(super) async fn open(dir: &StateDir) -> Result<Self, Error> {
        let _lock = opening_lock(dir).await?;
        let path = dir.path(FILE);
        // It names people: others may not read it. SQLite creates the files beside it with the same mode.
        dir.create(FILE)?;
        refuse_links(&path)?;
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .journal_mode(SqliteJournalMode::Wal)
            // A recorded change must survive a power failure: the record says what to restore.
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .pragma("cache_size", CACHE_SIZE)
            // With a read-only root file system there is no /tmp to write to.
            .pragma("temp_store", "memory")
            .busy_timeout(BUSY_TIMEOUT);
        let write = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            // A commit that fails on a full disk can leave its transaction open. Whatever follows would be written into
            // it, be reported as recorded, and be lost with the process: close such a connection and open another.
            .after_release(|connection, _| {
                Box::pin(
                    async move { Ok(sqlx::query("ROLLBACK").execute(connection).await.is_err()) },
                )
            })
            .connect_with(options)
            .await?;
        sqlx::migrate!("src/history/migrations").run(&write).await?;
        let read = read_pool(&path).await?;
        Ok(Self { write, read, file: identity(&path), path: path.into() })
    }

    /// Fails if the file that was opened is not the one in the state directory any more.
    pub(super) fn ensure_in_place(&self) -> Result<(), Error> {
        if identity(&self.path) == self.file {
            return Ok(());
        }
        let path = self.path.display();
        Err(Error::Unavailable(format!("{path} was deleted or replaced while it was open").into()))
    }

    pub(super) async fn close(&self) {
        self.read.close().await;
        self.write.close().await;
    }
}

/// Opens the database of a state directory for reading only; `None` if there is none yet.
pub(super) async fn open_read_only(dir: &Path) -> Result<Option<SqlitePool>, Error> {
    let path = dir.join(FILE);
    if !is_regular(&path)? {
        return Ok(None);
    }
    refuse_links(&path)?;
    Ok(Some(read_pool(&path).await?))
}

/// Opens the file without a journal, which works on a full disk; `None` if there is no file.
///
/// What is only in the write-ahead log is not seen.
pub(super) async fn open_immutable(dir: &StateDir) -> Result<Option<SqlitePool>, Error> {
    let path: PathBuf = dir.path(FILE);
    if !path.exists() {
        return Ok(None);
    }
    let options = SqliteConnectOptions::new().filename(path).immutable(true).read_only(true);
    Ok(Some(SqlitePoolOptions::new().max_connections(1).connect_with(options).await?))
}

async fn read_pool(path: &Path) -> Result<SqlitePool, Error> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        .pragma("cache_size", CACHE_SIZE)
        .pragma("temp_store", "memory")
        .busy_timeout(BUSY_TIMEOUT);
    // Each connection has a thread that keeps its freed memory: a second one costs 1.4 MiB in 10,000 runs.
    Ok(SqlitePoolOptions::new().max_connections(1).min_connections(0).connect_with(options).await?)
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
