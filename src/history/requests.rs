//! Requests that a replica records for the holder of a homeserver's lease: each is taken once at most, and answered.

use std::time::Duration;

use sqlx::{AnyConnection, Row};

use super::columns::{query, storable};
use super::error::Error;

/// A request that waits to be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingRequest {
    pub id: i64,
    /// The address whose lease decides who may take it.
    pub homeserver: String,
}

/// A request that this process has taken, and nobody else can.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TakenRequest {
    pub job: String,
    /// What is requested, as JSON.
    pub request: String,
    /// The name of the replica that asks.
    pub asked_by: String,
}

/// How far a request has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestState {
    Waiting,
    /// Nobody took it in time.
    Expired,
    /// By the replica of this name.
    Taken {
        by: String,
        /// Whether that replica still holds the lease.
        is_holder: bool,
    },
    Answered {
        by: String,
        /// As JSON.
        answer: String,
    },
}

/// How many requests there are at most: more than people make, and few enough to be read every second.
const MAX_REQUESTS: i64 = 100;

const DELETE_OLD: &str = "\
    DELETE FROM forwarded_requests WHERE expires_at < now() - interval '10 minutes'";
const INSERT: &str = "\
    INSERT INTO forwarded_requests (homeserver, job, request, asked_by, expires_at)
    SELECT $1, $2, $3, $4, now() + make_interval(secs => $5)
    WHERE (SELECT COUNT(*) FROM forwarded_requests) < $6 RETURNING id";
const WAITING: &str = "\
    SELECT id, homeserver FROM forwarded_requests
    WHERE taken_by IS NULL AND expires_at > now() ORDER BY id";
const TAKE: &str = "\
    UPDATE forwarded_requests SET taken_by = $2
    WHERE id = $1 AND taken_by IS NULL AND expires_at > clock_timestamp()
        AND EXISTS (SELECT 1 FROM leases WHERE leases.homeserver = forwarded_requests.homeserver
            AND leases.holder = $2 AND leases.expires_at > clock_timestamp())
    RETURNING job, request,
        COALESCE((SELECT name FROM replicas WHERE id = asked_by), asked_by) AS asked_by";
const ANSWER: &str = "UPDATE forwarded_requests SET answer = $3 WHERE id = $1 AND taken_by = $2";
const STATE: &str = "\
    SELECT COALESCE(replicas.name, taken_by) AS taken_by, answer,
        CASE WHEN expires_at > clock_timestamp() THEN 1 ELSE 0 END AS is_waiting,
        CASE WHEN EXISTS (SELECT 1 FROM leases
            WHERE leases.homeserver = forwarded_requests.homeserver AND leases.holder = taken_by
                AND leases.expires_at > clock_timestamp()) THEN 1 ELSE 0 END AS is_holder
    FROM forwarded_requests LEFT JOIN replicas ON replicas.id = taken_by
    WHERE forwarded_requests.id = $1";
const WITHDRAW: &str = "\
    DELETE FROM forwarded_requests WHERE id = $1 AND taken_by IS NULL RETURNING id";
const DELETE: &str = "DELETE FROM forwarded_requests WHERE id = $1";

/// Records a request, and returns its id; `None` where there are too many.
pub(super) async fn insert(
    connection: &mut AnyConnection,
    me: &str,
    (homeserver, job): (&str, &str),
    request: &str,
    valid_for: Duration,
) -> Result<Option<i64>, Error> {
    query(DELETE_OLD).execute(&mut *connection).await?;
    let row = query(INSERT)
        .bind(homeserver)
        .bind(storable(job).into_owned())
        .bind(storable(request).into_owned())
        .bind(me)
        .bind(valid_for.as_secs_f64())
        .bind(MAX_REQUESTS)
        .fetch_optional(&mut *connection)
        .await?;
    Ok(row.map(|row| row.try_get("id")).transpose()?)
}

/// Returns the requests that wait to be taken, in their order.
pub(super) async fn waiting(connection: &mut AnyConnection) -> Result<Vec<WaitingRequest>, Error> {
    let rows = query(WAITING).fetch_all(&mut *connection).await?;
    rows.iter()
        .map(|row| {
            Ok(WaitingRequest { id: row.try_get("id")?, homeserver: row.try_get("homeserver")? })
        })
        .collect()
}

/// Takes a request; `None` where it is taken, expired or withdrawn, or this process does not hold the lease.
pub(super) async fn take(
    connection: &mut AnyConnection,
    me: &str,
    id: i64,
) -> Result<Option<TakenRequest>, Error> {
    let row = query(TAKE).bind(id).bind(me).fetch_optional(&mut *connection).await?;
    row.map(|row| {
        let (job, request) = (row.try_get("job")?, row.try_get("request")?);
        Ok(TakenRequest { job, request, asked_by: row.try_get("asked_by")? })
    })
    .transpose()
}

/// Answers a request that this process has taken.
pub(super) async fn answer(
    connection: &mut AnyConnection,
    me: &str,
    id: i64,
    answer: &str,
) -> Result<(), Error> {
    let answer = storable(answer).into_owned();
    query(ANSWER).bind(id).bind(me).bind(answer).execute(&mut *connection).await?;
    Ok(())
}

pub(super) async fn state(connection: &mut AnyConnection, id: i64) -> Result<RequestState, Error> {
    let Some(row) = query(STATE).bind(id).fetch_optional(&mut *connection).await? else {
        return Ok(RequestState::Expired);
    };
    Ok(match (row.try_get::<Option<String>, _>("taken_by")?, row.try_get("answer")?) {
        (Some(by), Some(answer)) => RequestState::Answered { by, answer },
        (Some(by), None) => {
            RequestState::Taken { by, is_holder: row.try_get::<i32, _>("is_holder")? > 0 }
        }
        (None, _) if row.try_get::<i32, _>("is_waiting")? > 0 => RequestState::Waiting,
        (None, _) => RequestState::Expired,
    })
}

/// Takes a request back; returns whether nobody has taken it, and nobody can any more.
pub(super) async fn withdraw(connection: &mut AnyConnection, id: i64) -> Result<bool, Error> {
    let row = query(WITHDRAW).bind(id).fetch_optional(&mut *connection).await?;
    if row.is_some() {
        return Ok(true);
    }
    Ok(state(connection, id).await? == RequestState::Expired)
}

pub(super) async fn delete(connection: &mut AnyConnection, id: i64) -> Result<(), Error> {
    query(DELETE).bind(id).execute(&mut *connection).await?;
    Ok(())
}
