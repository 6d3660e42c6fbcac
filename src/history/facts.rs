//! Facts about homeservers, by the server's name.

use std::collections::HashMap;

use sqlx::{QueryBuilder, Row, SqlitePool, SqliteTransaction};

use super::columns::ROWS_PER_STATEMENT;
use super::error::Error;
use crate::plan::facts::{Fact, Topic};

const SELECT: &str = "SELECT key, value FROM facts WHERE server = $1 AND topic = $2";
const SELECT_BETWEEN: &str = "\
    SELECT key, value FROM facts
    WHERE server = $1 AND topic = $2 AND key >= $3 AND key <= $4";

pub(super) async fn of_topic(
    pool: &SqlitePool,
    server: &str,
    topic: Topic,
) -> Result<HashMap<String, String>, Error> {
    let rows = sqlx::query(SELECT).bind(server).bind(topic.as_str()).fetch_all(pool).await?;
    rows.iter().map(|row| Ok((row.try_get("key")?, row.try_get("value")?))).collect()
}

pub(super) async fn between(
    pool: &SqlitePool,
    server: &str,
    topic: Topic,
    first: &str,
    last: &str,
) -> Result<HashMap<String, String>, Error> {
    let query = sqlx::query(SELECT_BETWEEN).bind(server).bind(topic.as_str());
    let rows = query.bind(first).bind(last).fetch_all(pool).await?;
    rows.iter().map(|row| Ok((row.try_get("key")?, row.try_get("value")?))).collect()
}

pub(super) async fn store(pool: &SqlitePool, server: &str, facts: &[Fact]) -> Result<(), Error> {
    let mut transaction = pool.begin().await?;
    insert(&mut transaction, server, facts).await?;
    transaction.commit().await?;
    Ok(())
}

pub(super) async fn insert(
    transaction: &mut SqliteTransaction<'_>,
    server: &str,
    facts: &[Fact],
) -> Result<(), Error> {
    for chunk in facts.chunks(ROWS_PER_STATEMENT) {
        QueryBuilder::new("INSERT OR REPLACE INTO facts (server, topic, key, value) ")
            .push_values(chunk, |mut row, fact| {
                row.push_bind(server)
                    .push_bind(fact.topic.as_str())
                    .push_bind(&fact.key)
                    .push_bind(&fact.value);
            })
            .build()
            .execute(&mut **transaction)
            .await?;
    }
    Ok(())
}
