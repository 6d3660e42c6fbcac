//! A PostgreSQL database: opening it, its few connections, and what became of a commit whose answer was lost.
//!
//! Everything works through PgBouncer in transaction mode: each statement runs in a transaction, and no session keeps
//! anything beyond one.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::pool::PoolConnection;
use sqlx::{Any, AnyConnection, AnyPool, ConnectOptions, Connection, Executor, Row};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::database_url::{APPLICATION, DatabaseUrl};
use super::error::Error;

pub(super) const CONNECTIONS: u32 = 5;
/// The oldest version that is tested, as PostgreSQL numbers it.
const OLDEST_VERSION: i64 = 130_000;
/// How long connecting may take, with TLS and log-in.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long an idle connection may take to answer before another one is opened.
const PING_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a transaction may wait for its turn: a thousand runs that start in one second write thousands of times.
const QUEUE_TIMEOUT: Duration = Duration::from_mins(10);
/// How long a migration may take.
const MIGRATION_TIMEOUT: Duration = Duration::from_mins(30);
/// How often to ask what became of a commit whose answer was lost, and for how long.
const COMMIT_POLL_INTERVAL: Duration = Duration::from_millis(100);
const COMMIT_POLL_TIMEOUT: Duration = Duration::from_secs(10);
/// The key of the advisory lock under which migrations run: "microgli" in ASCII.
const MIGRATION_LOCK: i64 = i64::from_be_bytes(*b"microgli");

/// The connections to a database; clones share them.
#[derive(Debug, Clone)]
pub(super) struct Connections {
    pub(super) url: DatabaseUrl,
    pool: AnyPool,
    /// Waiting for a turn may take long, connecting may not: the pool has one timeout for both.
    turns: Arc<Semaphore>,
    /// When connecting last failed, and why.
    failed: Arc<Mutex<Option<Failure>>>,
    /// A connection apart, for what must not wait behind everything else.
    reserved: Option<Arc<Connections>>,
}

type Failure = (Instant, Arc<str>);

/// A connection that goes back to the pool only if it was told to: one in an unknown state is closed.
pub(super) struct Borrowed<'a> {
    connection: Option<PoolConnection<Any>>,
    _turn: SemaphorePermit<'a>,
}

impl Connections {
    /// Connects, checks the server's version, and migrates the database.
    pub(super) async fn open(url: &DatabaseUrl) -> Result<Self, Error> {
        let mut first = connect(url).await?;
        check_version(&mut first, url).await?;
        timeout(MIGRATION_TIMEOUT, migrate(&mut first))
            .await
            .map_err(|_| unreachable(url, "the migration of the database took too long"))??;
        close(first).await;
        Self::of(url)
    }

    /// Connects and changes nothing; `None` if there is no history yet.
    pub(super) async fn open_read_only(url: &DatabaseUrl) -> Result<Option<Self>, Error> {
        match has_history(url).await? {
            true => Self::of(url).map(Some),
            false => Ok(None),
        }
    }

    fn of(url: &DatabaseUrl) -> Result<Self, Error> {
        let reserved = Self::limited(url, 1)?;
        let shared = Self::limited(url, CONNECTIONS - 1)?;
        Ok(Self { reserved: Some(Arc::new(reserved)), ..shared })
    }

    /// The connection for what must not wait behind everything else.
    pub(super) fn reserved(&self) -> &Self {
        self.reserved.as_deref().unwrap_or(self)
    }

    fn limited(url: &DatabaseUrl, connections: u32) -> Result<Self, Error> {
        let pool = AnyPoolOptions::new()
            .max_connections(connections)
            .min_connections(0)
            .acquire_timeout(CONNECT_TIMEOUT)
            // A dead network does not answer: the pool's own test would wait for as long as the kernel tries.
            .test_before_acquire(false)
            .before_acquire(|connection, _| {
                Box::pin(async move {
                    Ok(matches!(timeout(PING_TIMEOUT, connection.ping()).await, Ok(Ok(()))))
                })
            })
            .connect_lazy_with(connect_options(url)?);
        Ok(Self {
            url: url.clone(),
            pool,
            turns: Arc::new(Semaphore::new(connections as usize)),
            failed: Arc::default(),
            reserved: None,
        })
    }

    /// Returns a connection that answers, when it is this transaction's turn.
    pub(super) async fn borrow(&self) -> Result<Borrowed<'_>, Error> {
        let queued = Instant::now();
        let Ok(Ok(turn)) = timeout(QUEUE_TIMEOUT, self.turns.acquire()).await else {
            return Err(unreachable(&self.url, "too many transactions wait"));
        };
        // While the server is away, a thousand that wait must not try to connect one after the other.
        if let Some((at, why)) = &*self.failed.lock().unwrap_or_else(PoisonError::into_inner)
            && *at > queued
        {
            return Err(unreachable(&self.url, why));
        }
        match self.pool.acquire().await {
            Ok(connection) => Ok(Borrowed { connection: Some(connection), _turn: turn }),
            Err(sqlx::Error::PoolClosed) => Err(sqlx::Error::PoolClosed.into()),
            // The pool tells no reason where it tried more than once.
            Err(_) => Err(self.why_unreachable().await),
        }
    }

    async fn why_unreachable(&self) -> Error {
        let error = match connect(&self.url).await {
            Ok(connection) => {
                close(connection).await;
                unreachable(&self.url, "no connection in time")
            }
            Err(error) => error,
        };
        let why: Arc<str> = match &error {
            Error::Unreachable { why, .. } => Arc::clone(why),
            other => other.to_string().into(),
        };
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), why));
        error
    }

    /// Returns whether a transaction was committed; an error where that cannot be found out.
    pub(super) async fn is_committed(&self, transaction: &str) -> Result<bool, Error> {
        let end = Instant::now() + COMMIT_POLL_TIMEOUT;
        loop {
            match self.status(transaction).await {
                Ok(Some(status)) if status == "committed" => return Ok(true),
                Ok(Some(status)) if status == "aborted" => return Ok(false),
                Err(error) if Instant::now() > end => return Err(error),
                // It is old enough to be forgotten, or still in progress: the server has not noticed the lost connection.
                Ok(_) if Instant::now() > end => {
                    return Err(unreachable(&self.url, "the answer to a commit was lost"));
                }
                Ok(_) | Err(_) => tokio::time::sleep(COMMIT_POLL_INTERVAL).await,
            }
        }
    }

    async fn status(&self, transaction: &str) -> Result<Option<String>, Error> {
        let mut borrowed = self.borrow().await?;
        // The number came from PostgreSQL.
        let sql = format!("SELECT pg_xact_status('{transaction}'::text::xid8) AS status");
        let query = borrowed.connection().fetch_one(sqlx::raw_sql(sqlx::AssertSqlSafe(sql)));
        let row = timeout(CONNECT_TIMEOUT, query)
            .await
            .map_err(|_| unreachable(&self.url, "no answer"))??;
        borrowed.give_back();
        Ok(row.try_get("status")?)
    }

    pub(super) async fn close(&self) {
        if let Some(reserved) = &self.reserved {
            reserved.pool.close().await;
        }
        self.pool.close().await;
    }
}

impl Borrowed<'_> {
    pub(super) fn connection(&mut self) -> &mut AnyConnection {
        self.connection.as_mut().expect("only `give_back` takes it")
    }

    /// Gives the connection back: no transaction is open on it, and no answer is awaited.
    pub(super) fn give_back(mut self) {
        drop(self.connection.take());
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        // Back in the pool it would wait for an answer that may never come.
        if let Some(connection) = self.connection.take() {
            drop(connection.detach());
        }
    }
}

/// Returns whether there is a history, of whatever version.
pub(super) async fn has_history(url: &DatabaseUrl) -> Result<bool, Error> {
    let sql = "SELECT COUNT(*) AS count FROM pg_catalog.pg_class WHERE oid = to_regclass('runs')";
    Ok(count(url, sql).await? > 0)
}

/// Returns whether a daemon or a run is connected.
pub(super) async fn is_in_use(url: &DatabaseUrl) -> Result<bool, Error> {
    let sql = format!(
        "SELECT COUNT(*) AS count FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = '{APPLICATION}'"
    );
    Ok(count(url, &sql).await? > 0)
}

async fn count(url: &DatabaseUrl, sql: &str) -> Result<i64, Error> {
    let mut connection = connect(url).await?;
    check_version(&mut connection, url).await?;
    let sql = sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned()));
    let row = timeout(CONNECT_TIMEOUT, connection.fetch_one(sql))
        .await
        .map_err(|_| unreachable(url, "no answer"))??;
    close(connection).await;
    Ok(row.try_get("count")?)
}

fn connect_options(url: &DatabaseUrl) -> Result<AnyConnectOptions, Error> {
    sqlx::any::install_default_drivers();
    Ok(url.expose().parse()?)
}

/// Opens one connection, and says why it cannot.
async fn connect(url: &DatabaseUrl) -> Result<AnyConnection, Error> {
    let options = connect_options(url)?;
    match timeout(CONNECT_TIMEOUT, options.connect()).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(unreachable(url, &with_advice(&error.to_string()))),
        Err(_) => {
            Err(unreachable(url, &format!("no connection within {} s", CONNECT_TIMEOUT.as_secs())))
        }
    }
}

/// Says what to do about a certificate, which libpq may accept where we do not.
fn with_advice(problem: &str) -> String {
    let advice = if problem.contains("CaUsedAsEndEntity") {
        "the server uses the certificate of a certification authority as its own: give it one that this authority issued, or use sslmode=require"
    } else if problem.contains("UnknownIssuer") {
        "name the certificate of its issuer as sslrootcert"
    } else if problem.contains("not valid for name") {
        "the host in the URL must be one of the names in the server's certificate"
    } else {
        return problem.to_owned();
    };
    format!("{problem}: {advice}")
}

async fn close(connection: AnyConnection) {
    let _ = timeout(PING_TIMEOUT, connection.close()).await;
}

fn unreachable(url: &DatabaseUrl, why: &str) -> Error {
    Error::Unreachable { database: url.to_string(), why: why.into() }
}

async fn check_version(connection: &mut AnyConnection, url: &DatabaseUrl) -> Result<(), Error> {
    let sql = "SELECT current_setting('server_version_num') AS number, current_setting('server_version') AS name";
    let row = timeout(CONNECT_TIMEOUT, connection.fetch_one(sqlx::raw_sql(sql)))
        .await
        .map_err(|_| unreachable(url, "no answer"))??;
    let number: String = row.try_get("number")?;
    if number.parse::<i64>().is_ok_and(|number| number >= OLDEST_VERSION) {
        return Ok(());
    }
    let name: String = row.try_get("name")?;
    Err(unreachable(url, &format!("its version is {name}: PostgreSQL 13 or newer is needed")))
}

/// Migrates under a lock of the transaction: several replicas may start at once, also behind PgBouncer.
async fn migrate(connection: &mut AnyConnection) -> Result<(), Error> {
    let mut transaction = connection.begin().await?;
    let lock = format!("SELECT pg_advisory_xact_lock({MIGRATION_LOCK})");
    transaction.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(lock))).await?;
    let mut migrations = sqlx::migrate!("src/history/migrations/postgres");
    // Its own lock is one of the session.
    migrations.set_locking(false);
    migrations.run_direct(None, &mut *transaction, false).await?;
    transaction.commit().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_that_is_not_accepted_comes_with_advice() {
        let refused = |why: &str| with_advice(&format!("error communicating with database: {why}"));
        insta::assert_snapshot!(
            refused("invalid peer certificate: Other(OtherError(CaUsedAsEndEntity))"),
            @"error communicating with database: invalid peer certificate: Other(OtherError(CaUsedAsEndEntity)): the server uses the certificate of a certification authority as its own: give it one that this authority issued, or use sslmode=require"
        );
        assert!(refused("invalid peer certificate: UnknownIssuer").ends_with("sslrootcert"));
        assert_eq!(with_advice("Connection refused"), "Connection refused");
    }
}
