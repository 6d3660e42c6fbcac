//! Leases on PostgreSQL: which of several processes may work on a homeserver.
//!
//! Only the clock of the database counts. A lease that expired is never valid again: whoever takes it, be it the same
//! holder, gets a new term.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sqlx::{AnyConnection, AssertSqlSafe, Row};

use super::columns::{ROWS_PER_STATEMENT, query};
use super::error::Error;
use super::spread::{Lease, LeaseState, Replica, shares};
use crate::values::clock::Timestamp;
use crate::values::random::random_bytes;

/// What a process found out about leases, and has of them now.
#[derive(Debug, Clone, Default)]
pub struct Renewal {
    /// Homeservers by address, with the terms of their leases.
    pub held: BTreeMap<String, i64>,
    /// How many of them others should have.
    pub surplus: usize,
    /// The homeservers whose leases others hold.
    pub elsewhere: BTreeSet<String>,
    /// Every daemon that was seen lately.
    pub replicas: Vec<Replica>,
    /// The time by the clock of the database.
    pub now: Option<Timestamp>,
}

/// The daemons that share a history, and what they work on.
#[derive(Debug, Clone, Default)]
pub struct Replicas {
    /// Every daemon that was seen lately.
    pub seen: Vec<Replica>,
    /// Who holds the lease of a homeserver, by its address.
    pub holders: BTreeMap<String, String>,
}

impl Replicas {
    /// The names of the daemons, those with the same configuration together; empty where all have the same.
    pub fn by_configuration(&self) -> Vec<Vec<String>> {
        let mut groups: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for replica in &self.seen {
            groups.entry(&replica.config).or_default().push(replica.name.clone());
        }
        let mut groups: Vec<Vec<String>> = groups.into_values().collect();
        if groups.len() < 2 {
            return Vec::new();
        }
        for names in &mut groups {
            names.sort_unstable();
        }
        groups.sort_unstable();
        groups
    }
}

/// What a daemon wants leases for.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    pub homeservers: BTreeSet<String>,
    /// The name of this replica, for people.
    pub name: String,
    /// The fingerprint of its configuration.
    pub config: String,
    /// Whether the daemon is stopping: it keeps what it has until its runs end, and takes nothing.
    pub stopping: bool,
}

/// Whether a run's lease is valid now, which it is not any more once it was not for a moment.
pub(super) const IS_VALID: &str = "\
    SELECT 1 FROM leases WHERE leases.homeserver = runs.lease AND leases.holder = runs.holder
        AND leases.term = runs.term AND leases.expires_at > clock_timestamp()";
// A renewal must not wait for the records of runs, and a takeover must: this lock stops only who also writes the key.
const FENCE: &str = "\
    SELECT leases.homeserver FROM leases JOIN runs ON leases.homeserver = runs.lease
        AND leases.holder = runs.holder AND leases.term = runs.term
    WHERE runs.id = $1 AND runs.outcome IS NULL AND leases.expires_at > clock_timestamp()
    FOR KEY SHARE OF leases";
const LEASE_OF: &str = "SELECT lease FROM runs WHERE id = $1";
const TERM: &str = "\
    SELECT term FROM leases
    WHERE homeserver = $1 AND holder = $2 AND expires_at > clock_timestamp() FOR KEY SHARE";
/// Who holds a lease without being a daemon.
const COMMAND_LINE: &str = "a run of the command line";
const SEEN: &str = "\
    INSERT INTO replicas (id, name, config, seen_at) VALUES ($1, $2, $3, now())
    ON CONFLICT (id) DO UPDATE SET name = excluded.name, config = excluded.config, seen_at = now()
    RETURNING (EXTRACT(EPOCH FROM now()) * 1000)::BIGINT AS now";
const FORGET: &str = "DELETE FROM replicas WHERE id = $1 OR seen_at < now() - interval '1 hour'";
const REPLICAS: &str = "\
    SELECT id, name, config FROM replicas
    WHERE seen_at > now() - make_interval(secs => $1) ORDER BY id";
const RENEW: &str = "\
    UPDATE leases SET expires_at = now() + make_interval(secs => $2)
    WHERE holder = $1 AND expires_at > now() RETURNING homeserver, term";
const SELECT: &str = "\
    SELECT homeserver, holder, CASE WHEN expires_at > now() THEN 0
        WHEN expires_at > now() - make_interval(secs => $1) THEN 1 ELSE 2 END AS state
    FROM leases";
const TAKE: &str = "INSERT INTO leases (homeserver, holder, term, expires_at)";
const TAKE_EXPIRED: &str = "\
    ON CONFLICT (homeserver) DO UPDATE SET homeserver = excluded.homeserver,
        holder = excluded.holder, term = leases.term + 1, expires_at = excluded.expires_at
    WHERE leases.expires_at <= now() RETURNING homeserver, term";
const RESIGN: &str =
    "UPDATE leases SET expires_at = now() WHERE holder = $1 AND expires_at > now()";
const HOLDERS: &str = "\
    SELECT leases.homeserver, replicas.name FROM leases
    LEFT JOIN replicas ON replicas.id = leases.holder WHERE leases.expires_at > now()";
const FREE: &str = "SELECT homeserver, term FROM leases WHERE expires_at <= now()";
const HOLDER: &str = "\
    SELECT leases.holder, replicas.name FROM leases LEFT JOIN replicas ON replicas.id = leases.holder
    WHERE leases.homeserver = $1 AND leases.expires_at > now()";

/// An id that no other process has.
pub(super) fn random_id() -> String {
    uuid::Builder::from_random_bytes(random_bytes()).into_uuid().to_string()
}

/// Fails unless the lease of a run is valid, and keeps others from taking it until the transaction ends.
pub(super) async fn fence(connection: &mut AnyConnection, run: i64) -> Result<(), Error> {
    if query(FENCE).bind(run).fetch_optional(&mut *connection).await?.is_some() {
        return Ok(());
    }
    let row = query(LEASE_OF).bind(run).fetch_optional(&mut *connection).await?;
    let homeserver: Option<String> = row.and_then(|row| row.try_get("lease").ok());
    Err(Error::LeaseLost { homeserver: homeserver.unwrap_or_default() })
}

/// Returns the term of a lease that the process holds, and keeps others from taking it until the transaction ends.
pub(super) async fn term(
    connection: &mut AnyConnection,
    homeserver: &str,
    me: &str,
) -> Result<i64, Error> {
    match query(TERM).bind(homeserver).bind(me).fetch_optional(&mut *connection).await? {
        Some(row) => Ok(row.try_get("term")?),
        None => Err(Error::LeaseLost { homeserver: homeserver.to_owned() }),
    }
}

/// Renews what the process holds, and takes its share of what is free.
pub(super) async fn renew(
    connection: &mut AnyConnection,
    me: &str,
    wanted: &Wanted,
    ttl: Duration,
) -> Result<Renewal, Error> {
    let seconds = ttl.as_secs_f64();
    let Wanted { homeservers, name, config, stopping } = wanted;
    let mut held = extend(connection, me, ttl).await?;
    if *stopping {
        query(FORGET).bind(me).execute(&mut *connection).await?;
        return Ok(Renewal { held, ..Renewal::default() });
    }
    let row = query(SEEN).bind(me).bind(name).bind(config).fetch_one(&mut *connection).await?;
    let now = Timestamp::from_timestamp_millis(row.try_get("now")?);
    let replicas = seen(connection, seconds).await?;
    let leases = all(connection, seconds).await?;
    let shares = shares(me, homeservers, &leases, &replicas);
    held.extend(take(connection, me, &shares.take, ttl).await?);
    let elsewhere = leases
        .into_iter()
        .filter(|lease| lease.state == LeaseState::Valid && lease.holder != me)
        .map(|lease| lease.homeserver)
        .collect();
    Ok(Renewal { held, surplus: shares.surplus, elsewhere, replicas, now })
}

/// The daemons that were seen within so many seconds.
async fn seen(connection: &mut AnyConnection, seconds: f64) -> Result<Vec<Replica>, Error> {
    let rows = query(REPLICAS).bind(seconds).fetch_all(&mut *connection).await?;
    rows.iter()
        .map(|row| {
            let (id, name) = (row.try_get("id")?, row.try_get("name")?);
            Ok(Replica { id, name, config: row.try_get("config")? })
        })
        .collect()
}

/// The daemons that were seen within `ttl`, and what they hold.
pub(super) async fn replicas(
    connection: &mut AnyConnection,
    ttl: Duration,
) -> Result<Replicas, Error> {
    let rows = query(HOLDERS).fetch_all(&mut *connection).await?;
    let holders = rows.iter().map(|row| {
        let name: Option<String> = row.try_get("name")?;
        Ok((row.try_get("homeserver")?, name.unwrap_or_else(|| COMMAND_LINE.to_owned())))
    });
    let holders = holders.collect::<Result<_, Error>>()?;
    Ok(Replicas { seen: seen(connection, ttl.as_secs_f64()).await?, holders })
}

/// Renews what the process holds.
pub(super) async fn extend(
    connection: &mut AnyConnection,
    me: &str,
    ttl: Duration,
) -> Result<BTreeMap<String, i64>, Error> {
    let rows = query(RENEW).bind(me).bind(ttl.as_secs_f64()).fetch_all(&mut *connection).await?;
    rows.iter().map(|row| Ok((row.try_get("homeserver")?, row.try_get("term")?))).collect()
}

async fn all(connection: &mut AnyConnection, abandoned_after: f64) -> Result<Vec<Lease>, Error> {
    let rows = query(SELECT).bind(abandoned_after).fetch_all(&mut *connection).await?;
    rows.iter()
        .map(|row| {
            let state = match row.try_get::<i32, _>("state")? {
                0 => LeaseState::Valid,
                1 => LeaseState::Expired,
                _ => LeaseState::Abandoned,
            };
            let (homeserver, holder) = (row.try_get("homeserver")?, row.try_get("holder")?);
            Ok(Lease { homeserver, holder, state })
        })
        .collect()
}

/// Takes leases that are free; returns those that nobody else took first.
pub(super) async fn take(
    connection: &mut AnyConnection,
    me: &str,
    homeservers: &[String],
    ttl: Duration,
) -> Result<BTreeMap<String, i64>, Error> {
    let mut taken = BTreeMap::new();
    for chunk in homeservers.chunks(ROWS_PER_STATEMENT) {
        let rows: Vec<String> = (0..chunk.len())
            .map(|row| format!("(${}, $1, 1, now() + make_interval(secs => $2))", row + 3))
            .collect();
        let sql = format!("{TAKE} VALUES {} {TAKE_EXPIRED}", rows.join(", "));
        let mut statement = query(AssertSqlSafe(sql)).bind(me.to_owned()).bind(ttl.as_secs_f64());
        for homeserver in chunk {
            statement = statement.bind(homeserver.clone());
        }
        for row in statement.fetch_all(&mut *connection).await? {
            taken.insert(row.try_get("homeserver")?, row.try_get("term")?);
        }
    }
    Ok(taken)
}

/// Ends leases of a holder at once.
pub(super) async fn resign(
    connection: &mut AnyConnection,
    holder: &str,
    homeservers: &[String],
) -> Result<(), Error> {
    let places: Vec<String> = (0..homeservers.len()).map(|n| format!("${}", n + 2)).collect();
    let sql = format!("{RESIGN} AND homeserver IN ({})", places.join(", "));
    let mut statement = query(AssertSqlSafe(sql)).bind(holder.to_owned());
    for homeserver in homeservers {
        statement = statement.bind(homeserver.clone());
    }
    statement.execute(&mut *connection).await?;
    Ok(())
}

/// Ends every lease of a process that has ended or is about to, and forgets it.
pub(super) async fn leave(connection: &mut AnyConnection, holder: &str) -> Result<(), Error> {
    query(RESIGN).bind(holder).execute(&mut *connection).await?;
    query(FORGET).bind(holder).execute(&mut *connection).await?;
    Ok(())
}

/// Homeservers whose leases nobody holds, of those that anybody ever held, with the last term of each.
pub(super) async fn free(connection: &mut AnyConnection) -> Result<BTreeMap<String, i64>, Error> {
    let rows = query(FREE).fetch_all(&mut *connection).await?;
    rows.iter().map(|row| Ok((row.try_get("homeserver")?, row.try_get("term")?))).collect()
}

/// Who holds a lease: a daemon by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    Nobody,
    Daemon(String),
    /// A run of the command line, which ends by itself.
    Run,
}

pub(super) async fn holder(
    connection: &mut AnyConnection,
    homeserver: &str,
) -> Result<Holder, Error> {
    let row = query(HOLDER).bind(homeserver).fetch_optional(&mut *connection).await?;
    Ok(match row {
        None => Holder::Nobody,
        Some(row) => row.try_get::<Option<String>, _>("name")?.map_or(Holder::Run, Holder::Daemon),
    })
}

/// Whether somebody works on a run whose record has no end; `None` for one that was started under no lease.
pub(super) async fn is_under_way(
    connection: &mut AnyConnection,
    run: i64,
) -> Result<Option<bool>, Error> {
    let sql = format!(
        "SELECT CASE WHEN EXISTS ({IS_VALID}) THEN 1 ELSE 0 END AS valid FROM runs
        WHERE id = $1 AND holder IS NOT NULL"
    );
    let row = query(AssertSqlSafe(sql)).bind(run).fetch_optional(&mut *connection).await?;
    Ok(row.map(|row| row.try_get::<i32, _>("valid")).transpose()?.map(|valid| valid > 0))
}
