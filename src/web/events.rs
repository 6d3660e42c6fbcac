//! Server-sent events of runs.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event as Message, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;

use super::access::Caller;
use super::api_error::ApiError;
use super::app::App;
use super::events_feed::Reader;
use crate::plan::report::{Event, Report};
use crate::scheduler::JobEvent;

/// How many events of a run may wait for a client that reads slowly.
const MAX_WAITING: usize = 10_000;

/// Whether the client asks for an event stream as the response.
pub(super) fn wants_events(headers: &HeaderMap) -> bool {
    let accept = headers.get_all(header::ACCEPT).iter();
    accept.filter_map(|value| value.to_str().ok()).any(|value| value.contains("text/event-stream"))
}

/// The events of a run that was just started.
pub(super) struct RunEvents {
    job: String,
    started: Box<Report>,
    /// The event with `started` in it.
    first: Event,
    rest: mpsc::UnboundedReceiver<Event>,
}

impl RunEvents {
    /// Waits until the run has started; fails where another process runs the job.
    pub(super) async fn from_start(
        job: &str,
        mut events: mpsc::UnboundedReceiver<Event>,
    ) -> Result<Self, ApiError> {
        while let Some(first) = events.recv().await {
            if let Event::Started(report) | Event::Ended(report) = &first {
                let started = report.clone();
                return Ok(Self { job: job.to_owned(), started, first, rest: events });
            }
        }
        let error = format!("{job} is already running in another process");
        Err(ApiError::new(StatusCode::CONFLICT, error))
    }

    /// `None` for a dry run that could not be recorded.
    pub(super) fn run_id(&self) -> Option<i64> {
        self.started.id
    }

    /// Streams the events until the job may be run again; a client that falls too far behind is disconnected.
    pub(super) fn into_sse(self) -> Response {
        let Self { job, first, mut rest, started: _ } = self;
        let (sender, receiver) = mpsc::channel(MAX_WAITING);
        tokio::spawn(async move {
            let (mut next, mut ended) = (Some(first), None);
            while let Some(event) = next {
                if matches!(event, Event::Ended(_)) {
                    ended = Some(event);
                } else if sender.try_send(event).is_err() {
                    // What the client misses is in the history.
                    return;
                }
                next = rest.recv().await;
            }
            if let Some(ended) = ended {
                let _ = sender.try_send(ended);
            }
        });
        let messages = stream::unfold((receiver, job), async |(mut receiver, job)| {
            let event = receiver.recv().await?;
            let message = message(&JobEvent { job: job.clone(), event });
            Some((Ok::<_, Infallible>(message), (receiver, job)))
        });
        Sse::new(messages).keep_alive(KeepAlive::default()).into_response()
    }
}

#[derive(Deserialize)]
pub(super) struct EventsQuery {
    #[serde(default)]
    job: String,
}

/// Streams the events of all runs, or of one job's, from now on.
///
/// Over TCP these are fewer and smaller ones, for browsers; without the admin token they name nobody.
pub(super) async fn all_events(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    query: Result<Query<EventsQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(EventsQuery { job }) = query?;
    if !caller.is_local() {
        let reader = if caller.sees_names() { Reader::Admin } else { Reader::Public };
        let seen = headers.get("last-event-id").and_then(|id| id.to_str().ok());
        return Ok(app.feed.stream(reader, job, seen, app.stop.clone()));
    }
    let source = (app.supervisor.subscribe(), app.stop.clone(), job);
    let messages = stream::unfold(source, async |(mut events, stop, job)| {
        let message = loop {
            let received = tokio::select! {
                () = stop.cancelled() => return None,
                received = events.recv() => received,
            };
            match received {
                Ok(event) if job.is_empty() || event.job == job => break message(&event),
                Ok(_) => {}
                Err(RecvError::Lagged(missed)) => {
                    break Message::default().event("lagged").data(missed.to_string());
                }
                Err(RecvError::Closed) => return None,
            }
        };
        Some((Ok::<_, Infallible>(message), (events, stop, job)))
    });
    Ok(Sse::new(messages).keep_alive(KeepAlive::default()).into_response())
}

/// An event as it is sent: its name, and as data the job and the event.
fn message(event: &JobEvent) -> Message {
    let name = match serde_json::to_value(&event.event) {
        Ok(serde_json::Value::String(name)) => name,
        Ok(serde_json::Value::Object(tagged)) => {
            tagged.into_iter().next().map(|(name, _)| name).unwrap_or_default()
        }
        _ => String::new(),
    };
    let message = Message::default().event(name);
    // An event is plain data, which serializes.
    message.json_data(event).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;

    use super::*;

    fn report() -> Box<Report> {
        let report = serde_json::json!({
            "id": 1, "job": "a", "kind": "request", "homeserver": "main", "mode": "apply", "trigger": "manual",
            "scheduled_for": null, "started_at": "2026-11-23T00:00:00Z", "finished_at": null, "attempts": 1,
            "outcome": null, "message": null, "planned": 1, "done": 1, "failed": 0, "skipped": 0, "remaining": 0,
            "bytes_planned": null, "bytes_freed": null,
        });
        serde_json::from_value(report).unwrap()
    }

    /// The names of what a client receives that begins to read when all has happened.
    async fn names(between: impl IntoIterator<Item = Event>) -> Vec<String> {
        let (sender, receiver) = mpsc::unbounded_channel();
        sender.send(Event::Started(report())).unwrap();
        for event in between {
            sender.send(event).unwrap();
        }
        drop(sender);
        let response = RunEvents::from_start("a", receiver).await.unwrap().into_sse();
        // The task that takes the events from the run goes first; it pauses now and then.
        for _ in 0..MAX_WAITING {
            tokio::task::yield_now().await;
        }
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        let body = String::from_utf8(body.to_vec()).unwrap();
        body.lines().filter_map(|line| line.strip_prefix("event: ")).map(str::to_owned).collect()
    }

    #[tokio::test]
    async fn the_end_of_a_run_is_sent_when_the_job_may_be_run_again() {
        let events = [Event::Slow(true), Event::Ended(report()), Event::Resumed];
        assert_eq!(names(events).await, ["started", "slow", "resumed", "ended"]);
    }

    #[tokio::test]
    async fn a_client_that_falls_too_far_behind_does_not_receive_the_end() {
        let events =
            |count| std::iter::repeat_n(Event::Resumed, count).chain([Event::Ended(report())]);
        let received = names(events(MAX_WAITING - 2)).await;
        assert_eq!((received.len(), received.last().unwrap().as_str()), (MAX_WAITING, "ended"));
        let received = names(events(MAX_WAITING)).await;
        assert_eq!((received.len(), received.last().unwrap().as_str()), (MAX_WAITING, "resumed"));
    }
}
