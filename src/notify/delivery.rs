//! Sending the messages of one notification, and reading what people answer.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::TimeDelta;

use super::compose::For;
use super::plans::{NotPolled, Poll};
use crate::history::{self, History, PlanMessage, SentMessage, WaitingMessage};
use crate::http::Transport;
use crate::observe::metrics::Metrics;
use crate::scheduler::supervisor::Supervisor;
use crate::synapse::{Cause, Error, Messenger, Reader, RoomForMessages};
use crate::values::clock::Clock;

/// How many messages are sent in a row.
const MESSAGES_AT_ONCE: u32 = 20;
const FIRST_WAIT: Duration = Duration::from_secs(5);
const LONGEST_WAIT: Duration = Duration::from_mins(10);
/// How long a room is taken to be as it was when it was looked at.
const LOOK_AGAIN_AFTER: Duration = Duration::from_hours(1);
/// How far the clocks of the homeserver and of this machine may be apart.
const CLOCK_MARGIN: TimeDelta = TimeDelta::hours(6);

/// What is known between two rounds of sending.
#[derive(Debug, Default)]
pub(super) struct Delivery {
    room: Option<Room>,
    failures: u32,
    not_before: Option<Instant>,
    /// What was wrong the last time.
    problem: Option<String>,
    /// Reactions that could not decide.
    refused: HashSet<String>,
}

/// A room that can take messages.
#[derive(Debug, Clone)]
struct Room {
    /// As it is configured.
    name: String,
    id: String,
    /// The account that sends.
    me: String,
    looked_at: Instant,
}

/// What sending needs.
#[derive(Clone)]
pub(super) struct Parts {
    pub supervisor: Arc<Supervisor>,
    pub history: History,
    pub metrics: Arc<Metrics>,
    pub clock: Clock,
}

/// Why messages wait.
struct Problem {
    text: String,
    retry_after: Option<Duration>,
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self { text: error.to_string(), retry_after: error.retry_after() }
    }
}

impl From<history::Error> for Problem {
    fn from(error: history::Error) -> Self {
        Self { text: format!("cannot use the history: {error}"), retry_after: None }
    }
}

impl From<NotPolled> for Problem {
    fn from(not_polled: NotPolled) -> Self {
        match not_polled {
            NotPolled::Synapse(error) => error.into(),
            NotPolled::History(error) => error.into(),
        }
    }
}

impl Delivery {
    /// Sends what waits, unless it is too early after a failure, and carries out what people decided about `plans`.
    pub(super) async fn round(
        &mut self,
        parts: &Parts,
        made_for: &For<'_>,
        transport: Arc<Transport>,
        plans: &[PlanMessage],
    ) {
        if self.not_before.is_some_and(|not_before| Instant::now() < not_before) {
            return;
        }
        let (name, homeserver) = (&made_for.notification.name, &made_for.notification.homeserver);
        match self.send_and_poll(parts, made_for, transport, plans).await {
            Ok(()) => {
                (self.failures, self.not_before) = (0, None);
                if self.problem.take().is_some() {
                    tracing::info!(target: "microglia::notification", notification = %name, "notification {name}: messages are sent again");
                }
            }
            Err(Problem { text, retry_after }) => {
                parts.metrics.notifications.with_label_values(&[name.as_str(), "failed"]).inc();
                let wait = FIRST_WAIT
                    .saturating_mul(1 << self.failures.min(10))
                    .min(LONGEST_WAIT)
                    .max(retry_after.unwrap_or_default().min(LONGEST_WAIT));
                self.failures += 1;
                self.not_before = Some(Instant::now() + wait);
                // It may have been left, replaced or encrypted.
                self.room = None;
                if self.problem.as_ref() != Some(&text) {
                    tracing::warn!(target: "microglia::notification", notification = %name, %homeserver, "notification {name}: messages wait, because {text}");
                }
                self.problem = Some(text);
            }
        }
    }

    async fn send_and_poll(
        &mut self,
        parts: &Parts,
        made_for: &For<'_>,
        transport: Arc<Transport>,
        plans: &[PlanMessage],
    ) -> Result<(), Problem> {
        let notification = made_for.notification;
        let messages = parts.history.waiting_messages(&notification.name, MESSAGES_AT_ONCE).await?;
        let polled: Vec<(i64, &SentMessage)> = plans
            .iter()
            .filter(|plan| plan.notification == notification.name)
            .filter_map(|plan| Some((plan.run, plan.sent.as_ref()?)))
            .filter(|_| !notification.approvers.is_empty())
            .collect();
        if messages.is_empty() && polled.is_empty() {
            return Ok(());
        }
        let reader = Reader::new(transport, parts.clock.clone());
        let room = self.room(&notification.room, &reader).await?;
        let messenger = Messenger::new(reader.clone());
        for message in &messages {
            send(parts, &room, (&reader, &messenger), message).await?;
            parts
                .metrics
                .notifications
                .with_label_values(&[notification.name.as_str(), "sent"])
                .inc();
        }
        let poll =
            Poll { supervisor: &parts.supervisor, history: &parts.history, made_for, me: &room.me };
        for (run, sent) in polled {
            poll.decide(&reader, run, sent, &mut self.refused).await?;
        }
        Ok(())
    }

    /// Looks whether the room can take messages, if that was not done lately.
    async fn room(&mut self, name: &str, reader: &Reader) -> Result<Room, Problem> {
        let known = self
            .room
            .as_ref()
            .filter(|room| room.name == name && room.looked_at.elapsed() < LOOK_AGAIN_AFTER);
        if let Some(room) = known {
            return Ok(room.clone());
        }
        let me = reader.whoami().await?.user_id;
        let id = match reader.room_for_messages(name, &me).await? {
            RoomForMessages::Usable(id) => id,
            RoomForMessages::Unusable(text) => return Err(Problem { text, retry_after: None }),
        };
        let room = Room { name: name.to_owned(), id, me, looked_at: Instant::now() };
        self.room = Some(room.clone());
        Ok(room)
    }
}

/// Sends a message once, also where the answer to an earlier attempt was lost.
async fn send(
    parts: &Parts,
    room: &Room,
    (reader, messenger): (&Reader, &Messenger),
    message: &WaitingMessage,
) -> Result<(), Problem> {
    let id = &message.id;
    if message.attempted {
        // Synapse knows the transaction for a day, and only for the device that sent it.
        let since = message.created_at - CLOCK_MARGIN;
        if let Some(event_id) = reader.find_message(&room.id, id, (&room.me, since)).await? {
            let sent = SentMessage { room_id: room.id.clone(), event_id };
            return Ok(parts.history.message_sent(id, &sent).await?);
        }
    }
    parts.history.attempt_message(id).await?;
    match messenger.send(&room.id, id, &message.content).await {
        Ok(event_id) => {
            let sent = SentMessage { room_id: room.id.clone(), event_id };
            Ok(parts.history.message_sent(id, &sent).await?)
        }
        Err(error) if is_about_message(&error) => {
            tracing::error!(target: "microglia::notification", "a bug in microglia, please report it: a message can never be sent: {error}");
            Ok(parts.history.drop_message(id).await?)
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether the homeserver will never accept the message, whatever a person does.
fn is_about_message(error: &Error) -> bool {
    matches!(&error.cause, Cause::Synapse { errcode, .. }
        if ["M_TOO_LARGE", "M_BAD_JSON", "M_NOT_JSON"].contains(&errcode.as_str()))
}
