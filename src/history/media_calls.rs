//! Media calls that Synapse may still be processing: at most one per homeserver.

use sqlx::{AnyConnection, Row};

use super::columns::{from_millis, query};
use super::error::Error;
use crate::plan::change::MediaStore;
use crate::values::clock::Timestamp;

/// A media call whose response was never recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostMediaCall {
    pub store: MediaStore,
    pub sent_at: Timestamp,
}

const INSERT: &str = "\
    INSERT INTO media_calls (server, sent_at, uploaded_until) VALUES ($1, $2, $3)
    ON CONFLICT (server) DO UPDATE SET sent_at = excluded.sent_at,
        uploaded_until = excluded.uploaded_until";
const DELETE: &str = "DELETE FROM media_calls WHERE server = $1";
const SELECT: &str = "SELECT sent_at, uploaded_until FROM media_calls WHERE server = $1";

pub(super) async fn insert(
    connection: &mut AnyConnection,
    server: &str,
    store: MediaStore,
    now: Timestamp,
) -> Result<(), Error> {
    let uploaded_until = match store {
        MediaStore::Local { until } => Some(until.timestamp_millis()),
        MediaStore::Remote => None,
    };
    query(INSERT)
        .bind(server)
        .bind(now.timestamp_millis())
        .bind(uploaded_until)
        .execute(&mut *connection)
        .await?;
    Ok(())
}

pub(super) async fn delete(connection: &mut AnyConnection, server: &str) -> Result<(), Error> {
    query(DELETE).bind(server).execute(&mut *connection).await?;
    Ok(())
}

pub(super) async fn get(
    connection: &mut AnyConnection,
    server: &str,
) -> Result<Option<LostMediaCall>, Error> {
    let Some(row) = query(SELECT).bind(server).fetch_optional(&mut *connection).await? else {
        return Ok(None);
    };
    let until: Option<i64> = row.try_get("uploaded_until")?;
    Ok(Some(LostMediaCall {
        store: until
            .map_or(MediaStore::Remote, |until| MediaStore::Local { until: from_millis(until) }),
        sent_at: from_millis(row.try_get("sent_at")?),
    }))
}
