//! Opening a SQLite file: to write, to read, or as it lies on a full disk.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::{AnyPool, Executor};

use super::database_url::percent_encoded;
use super::error::Error;
use super::state_dir::{Lock, StateDir, is_regular};

/// The database's file in the state directory.
pub(super) const FILE: &str = "history.db";
/// In KiB because it is negative. SQLite's default of 2 MiB per connection fills up as the history grows, and gains
/// nothing here. With a read-only root file system there is no /tmp to write temporary tables to. The timeout is how long
/// to wait for another process that writes, in milliseconds.
const PRAGMAS: &str = "\
    PRAGMA busy_timeout = 10000; PRAGMA cache_size = -256; PRAGMA temp_store = memory";
/// A recorded change must survive a power failure: the record says what to restore.
const WRITER_PRAGMAS: &str = "\
    PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON";
/// How long a write may wait for the connection: a thousand runs that start in one second write thousands of times.
const ACQUIRE_TIMEOUT: Duration = Duration::from_mins(10);
/// How often to look whether another process has opened the database.
const OPENING_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Opens the database of a state directory for writing and for reading, creates it if needed, and migrates it.
///
/// One connection writes: writers queue for it here rather than in SQLite, which would put them to sleep.
pub(super) async fn open(dir: &StateDir) -> Result<(AnyPool, AnyPool), Error> {
    let _lock = opening_lock(dir).await?;
    let path = dir.path(FILE);
    // It names people: others may not read it. SQLite creates the files beside it with the same mode.
    dir.create(FILE)?;
    refuse_links(&path)?;
    let write = pool_options()
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .after_connect(|connection, _| {
            Box::pin(async move {
                connection.execute(sqlx::raw_sql(PRAGMAS)).await?;
                connection.execute(sqlx::raw_sql(WRITER_PRAGMAS)).await?;
                Ok(())
            })
        })
        // A commit that fails on a full disk can leave its transaction open. Whatever follows would be written into
        // it, be reported as recorded, and be lost with the process: close such a connection and open another.
        .after_release(|connection, _| {
            Box::pin(
                async move { Ok(connection.execute(sqlx::raw_sql("ROLLBACK")).await.is_err()) },
            )
        })
        .connect_with(connect_options(&path, "mode=rw")?)
        .await?;
    let mut connection = write.acquire().await?;
    // `run` takes what its future cannot send to another thread.
    let migrations = sqlx::migrate!("src/history/migrations/sqlite");
    migrations.run_direct(None, &mut *connection, false).await?;
    drop(connection);
    let read = read_pool(&path).await?;
    Ok((write, read))
}

/// Opens the database of a state directory for reading only; `None` if there is none yet.
pub(super) async fn open_read_only(dir: &Path) -> Result<Option<AnyPool>, Error> {
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
pub(super) async fn open_immutable(dir: &StateDir) -> Result<Option<AnyPool>, Error> {
    let path: PathBuf = dir.path(FILE);
    if !path.exists() {
        return Ok(None);
    }
    let options = connect_options(&path, "mode=ro&immutable=true")?;
    Ok(Some(pool_options().connect_with(options).await?))
}

async fn read_pool(path: &Path) -> Result<AnyPool, Error> {
    let pool = pool_options().after_connect(|connection, _| {
        Box::pin(async move {
            connection.execute(sqlx::raw_sql(PRAGMAS)).await?;
            Ok(())
        })
    });
    Ok(pool.connect_with(connect_options(path, "mode=ro")?).await?)
}

/// Each connection has a thread that keeps its freed memory: a second reader costs 1.4 MiB in 10,000 runs.
fn pool_options() -> AnyPoolOptions {
    AnyPoolOptions::new().max_connections(1).min_connections(0)
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
