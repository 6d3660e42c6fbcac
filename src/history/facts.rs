//! Facts about homeservers, by the server's name.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use sqlx::{AnyConnection, AssertSqlSafe, Row};

use super::columns::{ROWS_PER_STATEMENT, query, storable, values};
use super::error::Error;
use crate::plan::facts::{Fact, Topic};

const INSERT: &str = "INSERT INTO facts (server, topic, key, value)";
const OR_REPLACE: &str = "ON CONFLICT (server, topic, key) DO UPDATE SET value = excluded.value";
const DELETE: &str = "DELETE FROM facts WHERE server = $1 AND topic = $2";
const SELECT: &str = "SELECT key, value FROM facts WHERE server = $1 AND topic = $2";
const SELECT_BETWEEN: &str = "\
    SELECT key, value FROM facts
    WHERE server = $1 AND topic = $2 AND key >= $3 AND key <= $4";

pub(super) async fn of_topic(
    connection: &mut AnyConnection,
    server: &str,
    topic: Topic,
) -> Result<HashMap<String, String>, Error> {
    let rows = query(SELECT).bind(server).bind(topic.as_str()).fetch_all(connection).await?;
    rows.iter().map(|row| Ok((row.try_get("key")?, row.try_get("value")?))).collect()
}

pub(super) async fn between(
    connection: &mut AnyConnection,
    server: &str,
    topic: Topic,
    (first, last): (&str, &str),
) -> Result<HashMap<String, String>, Error> {
    let statement = query(SELECT_BETWEEN).bind(server).bind(topic.as_str());
    let rows = statement.bind(first).bind(last).fetch_all(connection).await?;
    rows.iter().map(|row| Ok((row.try_get("key")?, row.try_get("value")?))).collect()
}

pub(super) async fn insert(
    connection: &mut AnyConnection,
    server: &str,
    facts: &[Fact],
) -> Result<(), Error> {
    // PostgreSQL refuses to write a row twice in one statement; the last one counts.
    let newest: BTreeMap<(&str, Cow<'_, str>), &str> = facts
        .iter()
        .map(|fact| ((fact.topic.as_str(), storable(&fact.key)), fact.value.as_str()))
        .collect();
    let newest: Vec<_> = newest.into_iter().collect();
    for chunk in newest.chunks(ROWS_PER_STATEMENT) {
        let sql = format!("{INSERT} {} {OR_REPLACE}", values(chunk.len(), 4));
        let mut statement = query(AssertSqlSafe(sql));
        for ((topic, key), value) in chunk {
            statement = statement
                .bind(server.to_owned())
                .bind(*topic)
                .bind(key.to_string())
                .bind(storable(value).into_owned());
        }
        statement.execute(&mut *connection).await?;
    }
    Ok(())
}

pub(super) async fn delete(
    connection: &mut AnyConnection,
    server: &str,
    topic: Topic,
    keys: &[String],
) -> Result<(), Error> {
    for chunk in keys.chunks(ROWS_PER_STATEMENT) {
        let places: Vec<String> = (3..chunk.len() + 3).map(|place| format!("${place}")).collect();
        let sql = format!("{DELETE} AND key IN ({})", places.join(", "));
        let mut statement = query(AssertSqlSafe(sql)).bind(server.to_owned()).bind(topic.as_str());
        for key in chunk {
            statement = statement.bind(key.clone());
        }
        statement.execute(&mut *connection).await?;
    }
    Ok(())
}
