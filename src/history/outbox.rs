//! What notifications have to tell: runs that are not reported yet, and the messages that were made about them.

use std::collections::HashMap;

use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row};
use uuid::Uuid;

use super::columns::{from_millis, parsed, query, storable, unsigned};
use super::database::work;
use super::error::Error;
use super::reader::HistoryReader;
use super::runs;
use super::writer::History;
use crate::plan::notification::MessageEvent;
use crate::plan::report::{ChangeRecord, Mode, Report, State};
use crate::values::clock::Timestamp;
use crate::values::random::random_bytes;

/// A message that is to be sent.
#[derive(Debug, Clone, PartialEq)]
pub struct NewMessage {
    pub notification: String,
    pub event: MessageEvent,
    /// What it is about: a notification tells each event of a subject once.
    pub subject: String,
    /// The job that it is about, and in which mode.
    pub job: Option<(String, Mode)>,
    pub run: Option<i64>,
    /// `None` to record the event without a message.
    pub content: Option<serde_json::Value>,
}

/// A message that waits to be sent.
#[derive(Debug, Clone, PartialEq)]
pub struct WaitingMessage {
    /// Also the id of the transaction in which it is sent, however often.
    pub id: String,
    pub created_at: Timestamp,
    pub content: serde_json::Value,
    /// Whether it was sent before, and may have arrived.
    pub attempted: bool,
}

/// A message about a plan whose decision was not told yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanMessage {
    pub notification: String,
    /// The run that made the plan.
    pub run: i64,
    /// `None` while it waits to be sent.
    pub sent: Option<SentMessage>,
}

/// Where a message is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentMessage {
    pub room_id: String,
    pub event_id: String,
}

/// What a notification said last about whether a job works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastTold {
    pub event: MessageEvent,
    pub at: Timestamp,
}

/// What the runs of a job since some time did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobTotals {
    pub job: String,
    pub runs: u64,
    pub unsuccessful: u64,
    /// Items changed.
    pub done: u64,
    pub bytes_freed: u64,
}

/// How many runs are reported at a time.
const RUNS_AT_ONCE: i64 = 100;

const UNREPORTED: &str =
    "SELECT * FROM runs WHERE unreported = 1 ORDER BY finished_at, id LIMIT $1";
const REPORTED: &str = "UPDATE runs SET unreported = NULL WHERE id = $1 AND unreported = 1";
const ALL_REPORTED: &str = "UPDATE runs SET unreported = NULL WHERE unreported = 1";
const INSERT: &str = "\
    INSERT INTO messages (id, notification, event, subject, job, mode, run, created_at, content, state)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT DO NOTHING";
const LAST_TOLD: &str = "\
    SELECT event, created_at FROM messages
    WHERE notification = $1 AND job = $2 AND mode = $3 AND event IN ('failure', 'recovery')
    ORDER BY created_at DESC LIMIT 1";
const LAST_DIGEST: &str = "\
    SELECT MAX(created_at) AS last FROM messages WHERE notification = $1 AND event = 'digest'";
const FAILURES: &str = "\
    SELECT COUNT(*) AS failures, MIN(started_at) AS since FROM runs
    WHERE job = $1 AND mode = $2 AND outcome <> 'succeeded' AND outcome <> 'cancelled'
        AND cause <> 'undo' AND id <= $3 AND id > COALESCE((SELECT MAX(id) FROM runs
            WHERE job = $1 AND mode = $2 AND outcome = 'succeeded' AND cause <> 'undo'
                AND id < $3), 0)";
const WAITING: &str = "\
    SELECT id, created_at, content, attempted FROM messages
    WHERE notification = $1 AND state = 'waiting' ORDER BY created_at, id LIMIT $2";
const PENDING: &str = "\
    SELECT notification, COUNT(*) AS pending FROM messages
    WHERE state = 'waiting' GROUP BY notification";
const ATTEMPTED: &str = "UPDATE messages SET attempted = 1 WHERE id = $1 AND state = 'waiting'";
const SENT: &str = "\
    UPDATE messages SET state = 'sent', room_id = $2, event_id = $3, sent_at = $4
    WHERE id = $1 AND state = 'waiting'";
const DROP: &str = "UPDATE messages SET state = 'dropped' WHERE id = $1 AND state = 'waiting'";
const DROP_OLD: &str = "\
    UPDATE messages SET state = 'dropped' WHERE state = 'waiting' AND created_at < $1
    RETURNING notification";
/// A plan that was decided before its message was sent needs none.
const DROP_PLAN: &str = "\
    UPDATE messages SET state = 'dropped'
    WHERE notification = $1 AND event = 'approval' AND subject = $2 AND state = 'waiting'";
const UNDECIDED: &str = "\
    SELECT notification, run, state, room_id, event_id FROM messages
    WHERE event = 'approval' AND state IN ('waiting', 'sent') AND NOT EXISTS (
        SELECT 1 FROM messages AS decision WHERE decision.notification = messages.notification
            AND decision.event = 'decision' AND decision.subject = messages.subject)
    ORDER BY created_at, id LIMIT 1000";
const PLAN_OF: &str = "\
    SELECT messages.notification, room_id, event_id FROM runs
    JOIN messages ON event = 'approval' AND messages.run = runs.id AND state = 'sent'
    WHERE runs.approval_state = 'approved' AND runs.approval_run = $1";
const BIGGEST: &str = "\
    SELECT * FROM changes WHERE run = $1 AND state = $2 ORDER BY count DESC, seq LIMIT $3";
const JOB_TOTALS: &str = "\
    SELECT job, COUNT(*) AS runs,
        CAST(SUM(CASE WHEN outcome IN ('succeeded', 'cancelled') THEN 0 ELSE 1 END) AS BIGINT)
            AS unsuccessful,
        CAST(SUM(done) AS BIGINT) AS done, CAST(SUM(COALESCE(bytes_freed, 0)) AS BIGINT) AS freed
    FROM runs WHERE started_at >= $1 AND outcome IS NOT NULL GROUP BY job ORDER BY job";
const DRY_RUNS_SINCE: &str = "\
    SELECT MIN(started_at) AS since FROM runs
    WHERE job = $1 AND mode = 'dry-run' AND id > COALESCE((SELECT MAX(id) FROM runs
        WHERE job = $1 AND mode IN ('apply', 'approve')), 0)";

impl HistoryReader {
    /// Returns runs that ended and are not reported yet, in the order of their ends.
    pub(crate) async fn unreported_runs(&self) -> Result<Vec<Report>, Error> {
        self.read(|connection| {
            work(async move {
                let rows = query(UNREPORTED).bind(RUNS_AT_ONCE).fetch_all(connection).await?;
                rows.iter().map(runs::from_row).collect()
            })
        })
        .await
    }

    /// Returns what a notification said last about whether a job works in a mode.
    pub(crate) async fn last_told(
        &self,
        notification: &str,
        job: &str,
        mode: Mode,
    ) -> Result<Option<LastTold>, Error> {
        self.read(|connection| {
            work(async move {
                let row = query(LAST_TOLD)
                    .bind(notification.to_owned())
                    .bind(job.to_owned())
                    .bind(mode.as_str())
                    .fetch_optional(connection)
                    .await?;
                row.map(|row| {
                    let at = from_millis(row.try_get("created_at")?);
                    Ok(LastTold { event: parsed(&row, "event")?, at })
                })
                .transpose()
            })
        })
        .await
    }

    /// Returns when the last digest of a notification was made.
    pub(crate) async fn last_digest(&self, notification: &str) -> Result<Option<Timestamp>, Error> {
        self.read(|connection| {
            work(async move {
                let row = query(LAST_DIGEST).bind(notification.to_owned());
                let last: Option<i64> = row.fetch_one(connection).await?.try_get("last")?;
                Ok(last.map(from_millis))
            })
        })
        .await
    }

    /// Returns how many runs of a job in a mode up to `run` did not succeed since the last that did, and when the first of
    /// them started.
    pub(crate) async fn failures_up_to(
        &self,
        run: i64,
        job: &str,
        mode: Mode,
    ) -> Result<(u64, Option<Timestamp>), Error> {
        self.read(|connection| {
            work(async move {
                let row = query(FAILURES)
                    .bind(job.to_owned())
                    .bind(mode.as_str())
                    .bind(run)
                    .fetch_one(connection)
                    .await?;
                let since: Option<i64> = row.try_get("since")?;
                Ok((unsigned(row.try_get("failures")?), since.map(from_millis)))
            })
        })
        .await
    }

    /// Returns the oldest messages of a notification that wait to be sent.
    pub(crate) async fn waiting_messages(
        &self,
        notification: &str,
        limit: u32,
    ) -> Result<Vec<WaitingMessage>, Error> {
        self.read(|connection| {
            work(async move {
                let rows = query(WAITING)
                    .bind(notification.to_owned())
                    .bind(i64::from(limit))
                    .fetch_all(connection)
                    .await?;
                rows.iter().map(waiting_from_row).collect()
            })
        })
        .await
    }

    /// Returns how many messages of each notification wait to be sent.
    pub(crate) async fn pending_messages(&self) -> Result<HashMap<String, u64>, Error> {
        self.read(|connection| {
            work(async move {
                let rows = query(PENDING).fetch_all(connection).await?;
                rows.iter()
                    .map(|row| {
                        Ok((row.try_get("notification")?, unsigned(row.try_get("pending")?)))
                    })
                    .collect()
            })
        })
        .await
    }

    /// Returns the messages about plans whose decision was not told yet.
    pub(crate) async fn undecided_plans(&self) -> Result<Vec<PlanMessage>, Error> {
        self.read(|connection| {
            work(async move {
                let rows = query(UNDECIDED).fetch_all(connection).await?;
                rows.iter().map(plan_from_row).collect()
            })
        })
        .await
    }

    /// Returns the messages about the plan that a run applies, by notification.
    pub(crate) async fn messages_of_plan(
        &self,
        applied_by: i64,
    ) -> Result<HashMap<String, SentMessage>, Error> {
        self.read(|connection| {
            work(async move {
                let rows = query(PLAN_OF).bind(applied_by).fetch_all(connection).await?;
                rows.iter()
                    .filter_map(|row| {
                        Some((row.try_get("notification").ok()?, sent_from_row(row)?))
                    })
                    .map(Ok)
                    .collect()
            })
        })
        .await
    }

    /// Returns the changes of a run in a state that have the most items.
    pub(crate) async fn biggest_changes(
        &self,
        run: i64,
        state: State,
        limit: u32,
    ) -> Result<Vec<ChangeRecord>, Error> {
        self.read(|connection| {
            work(async move {
                let rows = query(BIGGEST)
                    .bind(run)
                    .bind(state.as_str())
                    .bind(i64::from(limit))
                    .fetch_all(connection)
                    .await?;
                rows.iter().map(super::changes::from_row).collect()
            })
        })
        .await
    }

    /// Returns since when jobs have had nothing but dry runs; those without any are left out.
    pub(crate) async fn dry_runs_since(
        &self,
        jobs: &[String],
    ) -> Result<HashMap<String, Timestamp>, Error> {
        self.read(|connection| {
            work(async move {
                let mut found = HashMap::new();
                for job in jobs {
                    let row =
                        query(DRY_RUNS_SINCE).bind(job.clone()).fetch_one(&mut *connection).await?;
                    if let Some(since) = row.try_get::<Option<i64>, _>("since")? {
                        found.insert(job.clone(), from_millis(since));
                    }
                }
                Ok(found)
            })
        })
        .await
    }

    /// Returns what the runs since a time did, by job.
    pub(crate) async fn job_totals(&self, since: Timestamp) -> Result<Vec<JobTotals>, Error> {
        self.read(|connection| {
            work(async move {
                let rows =
                    query(JOB_TOTALS).bind(since.timestamp_millis()).fetch_all(connection).await?;
                rows.iter()
                    .map(|row| {
                        Ok(JobTotals {
                            job: row.try_get("job")?,
                            runs: unsigned(row.try_get("runs")?),
                            unsuccessful: unsigned(row.try_get("unsuccessful")?),
                            done: unsigned(row.try_get("done")?),
                            bytes_freed: unsigned(row.try_get("freed")?),
                        })
                    })
                    .collect()
            })
        })
        .await
    }
}

/// What is written fails while the history is unavailable, and is tried again.
impl History {
    /// Records the messages about a run, which is reported with that; does nothing if it was reported already.
    pub(crate) async fn report_run(&self, run: i64, messages: &[NewMessage]) -> Result<(), Error> {
        let now = self.now();
        let numbered: Vec<(String, &NewMessage)> =
            messages.iter().map(|message| (new_id(), message)).collect();
        let numbered = &numbered;
        self.required(|connection| {
            work(async move {
                let reported = query(REPORTED).bind(run).execute(&mut *connection).await?;
                if reported.rows_affected() > 0 {
                    for (id, message) in numbered {
                        insert(connection, id, message, now).await?;
                    }
                }
                Ok(())
            })
        })
        .await
    }

    /// Reports no run that ended up to now: there is nobody to tell.
    pub(crate) async fn report_nothing(&self) -> Result<(), Error> {
        self.required(|connection| {
            work(async move {
                query(ALL_REPORTED).execute(connection).await?;
                Ok(())
            })
        })
        .await
    }

    /// Records a message, unless there is one about the event.
    pub(crate) async fn add_message(&self, message: &NewMessage) -> Result<(), Error> {
        let (now, id) = (self.now(), new_id());
        let id = &id;
        self.required(|connection| work(insert(connection, id, message, now))).await
    }

    /// Records what became of a plan; its message is not sent any more if that did not happen yet.
    pub(crate) async fn tell_decision(&self, decision: &NewMessage) -> Result<(), Error> {
        let (now, id) = (self.now(), new_id());
        let id = &id;
        self.required(|connection| {
            work(async move {
                query(DROP_PLAN)
                    .bind(decision.notification.clone())
                    .bind(decision.subject.clone())
                    .execute(&mut *connection)
                    .await?;
                insert(connection, id, decision, now).await
            })
        })
        .await
    }

    /// Records that a message is about to be sent.
    pub(crate) async fn attempt_message(&self, id: &str) -> Result<(), Error> {
        self.required(|connection| {
            work(async move {
                query(ATTEMPTED).bind(id.to_owned()).execute(connection).await?;
                Ok(())
            })
        })
        .await
    }

    /// Records where a message is that was sent.
    pub(crate) async fn message_sent(&self, id: &str, sent: &SentMessage) -> Result<(), Error> {
        let now = self.now();
        self.required(|connection| {
            work(async move {
                query(SENT)
                    .bind(id.to_owned())
                    .bind(storable(&sent.room_id).into_owned())
                    .bind(storable(&sent.event_id).into_owned())
                    .bind(now.timestamp_millis())
                    .execute(connection)
                    .await?;
                Ok(())
            })
        })
        .await
    }

    /// Gives up a message that can never be sent.
    pub(crate) async fn drop_message(&self, id: &str) -> Result<(), Error> {
        self.required(|connection| {
            work(async move {
                query(DROP).bind(id.to_owned()).execute(connection).await?;
                Ok(())
            })
        })
        .await
    }

    /// Gives up the messages that were made before `time` and could not be sent; returns their notifications.
    pub(crate) async fn drop_messages_before(&self, time: Timestamp) -> Result<Vec<String>, Error> {
        self.required(|connection| {
            work(async move {
                let rows =
                    query(DROP_OLD).bind(time.timestamp_millis()).fetch_all(connection).await?;
                rows.iter().map(|row| Ok(row.try_get("notification")?)).collect()
            })
        })
        .await
    }
}

/// Not derived from what the message is about: a history that was restored from a copy may tell it again.
fn new_id() -> String {
    format!("microglia-{}", Uuid::from_bytes(random_bytes()).simple())
}

async fn insert(
    connection: &mut AnyConnection,
    id: &str,
    message: &NewMessage,
    now: Timestamp,
) -> Result<(), Error> {
    let (job, mode) = message.job.clone().unzip();
    query(INSERT)
        .bind(id.to_owned())
        .bind(message.notification.clone())
        .bind(message.event.as_str())
        .bind(message.subject.clone())
        .bind(job)
        .bind(mode.map(Mode::as_str))
        .bind(message.run)
        .bind(now.timestamp_millis())
        .bind(message.content.as_ref().map(|content| storable(&content.to_string()).into_owned()))
        .bind(if message.content.is_some() { "waiting" } else { "dropped" })
        .execute(connection)
        .await?;
    Ok(())
}

fn waiting_from_row(row: &AnyRow) -> Result<WaitingMessage, Error> {
    let content: Option<&str> = row.try_get("content")?;
    let content = serde_json::from_str(content.unwrap_or_default())
        .map_err(|error| sqlx::Error::Decode(error.into()))?;
    Ok(WaitingMessage {
        id: row.try_get("id")?,
        created_at: from_millis(row.try_get("created_at")?),
        content,
        attempted: row.try_get::<i64, _>("attempted")? != 0,
    })
}

fn plan_from_row(row: &AnyRow) -> Result<PlanMessage, Error> {
    Ok(PlanMessage {
        notification: row.try_get("notification")?,
        run: row.try_get::<Option<i64>, _>("run")?.unwrap_or_default(),
        sent: sent_from_row(row),
    })
}

fn sent_from_row(row: &AnyRow) -> Option<SentMessage> {
    Some(SentMessage {
        room_id: row.try_get::<Option<String>, _>("room_id").ok()??,
        event_id: row.try_get::<Option<String>, _>("event_id").ok()??,
    })
}
