//! The events of all runs as browsers follow them: few, small, and made once for all of them.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::plan::report::{ChangeRecord, Event, Report, State};
use crate::scheduler::JobEvent;

/// How many messages a reader may fall behind before it misses some.
const MESSAGES_KEPT: usize = 256;
/// How long progress and changes are gathered before they are sent: a run may make thousands of changes a second.
const GATHER_TIME: Duration = Duration::from_millis(250);
/// How many changes one message names.
const MAX_CHANGES: usize = 20;
/// A comment at this interval keeps proxies from closing a stream.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long a browser waits before it connects again.
const RETRY: &str = "retry: 2000\n";

/// What the runs under way do, and who wants to know.
pub(crate) struct EventsFeed {
    messages: broadcast::Sender<Arc<Message>>,
    progress: Mutex<HashMap<String, Progress>>,
    /// Distinguishes the ids of messages from those before a restart.
    started: i64,
    last: AtomicU64,
}

/// How far a run under way has come.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress {
    pub(super) run: Option<i64>,
    /// What it reads; empty once it makes changes. May not be shown to everybody.
    pub(super) reading: String,
    pub(super) done: u64,
    pub(super) total: Option<u64>,
}

/// One message, ready to be sent.
struct Message {
    job: String,
    public: Bytes,
    admin: Bytes,
}

/// Who reads a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reader {
    /// Names of people and rooms are left out.
    Public,
    Admin,
}

/// What was gathered about a run since the last message.
#[derive(Default)]
struct Gathered {
    progressed: bool,
    done: u64,
    failed: u64,
    skipped: u64,
    changes: Vec<ChangeRecord>,
}

impl EventsFeed {
    pub(crate) fn new(started: i64) -> Self {
        Self {
            messages: broadcast::Sender::new(MESSAGES_KEPT),
            progress: Mutex::default(),
            started,
            last: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Progress>> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far the run of a job has come; `None` if nothing is known.
    pub(super) fn progress(&self, job: &str) -> Option<Progress> {
        self.lock().get(job).cloned()
    }

    /// Takes the events of all runs for as long as there are any.
    pub(crate) async fn run(self: Arc<Self>, mut events: broadcast::Receiver<JobEvent>) {
        let mut gathered: BTreeMap<String, Gathered> = BTreeMap::new();
        let mut due = Instant::now();
        loop {
            let received = tokio::select! {
                received = events.recv() => received,
                () = sleep_until(due), if !gathered.is_empty() => {
                    self.send_all(&mut gathered);
                    continue;
                }
            };
            match received {
                Ok(JobEvent { job, event }) => {
                    if gathered.is_empty() {
                        due = Instant::now() + GATHER_TIME;
                    }
                    self.take(&job, event, &mut gathered);
                }
                Err(RecvError::Lagged(_)) => self.send("", "reload", json!({}), json!({})),
                Err(RecvError::Closed) => return self.send_all(&mut gathered),
            }
        }
    }

    fn take(&self, job: &str, event: Event, gathered: &mut BTreeMap<String, Gathered>) {
        match event {
            Event::Started(report) => {
                let run = report.id;
                self.lock().insert(job.to_owned(), Progress { run, ..Progress::default() });
                let started = json!({ "job": job, "run": run, "mode": report.mode, "trigger": report.trigger });
                self.send(job, "started", started.clone(), started);
            }
            Event::Reading { what, done, total } => {
                let total = (total > 0).then_some(total);
                self.progressed(job, |known| {
                    (known.reading, known.done, known.total) = (what, done, total);
                });
                gathered.entry(job.to_owned()).or_default().progressed = true;
            }
            Event::Planned { planned, bytes } => {
                let run = self.progressed(job, |known| {
                    (known.reading, known.done, known.total) = (String::new(), 0, planned);
                });
                let planned = json!({ "job": job, "run": run, "planned": planned, "bytes": bytes });
                self.send(job, "planned", planned.clone(), planned);
            }
            Event::Changing { done, total } => {
                self.progressed(job, |known| {
                    (known.reading, known.done, known.total) = (String::new(), done, total);
                });
                gathered.entry(job.to_owned()).or_default().progressed = true;
            }
            Event::Changed(change) => gathered.entry(job.to_owned()).or_default().add(change),
            Event::Ended(report) => {
                if let Some(gathered) = gathered.remove(job) {
                    self.send_gathered(job, gathered);
                }
                self.lock().remove(job);
                let Report { id, outcome, done, failed, .. } = *report;
                let mut ended = json!({ "job": job, "run": id, "outcome": outcome, "done": done, "failed": failed });
                let public = ended.clone();
                ended["message"] = json!(report.message);
                self.send(job, "ended", public, ended);
            }
            Event::Waiting(_) | Event::Resumed | Event::Retrying { .. } => {
                gathered.entry(job.to_owned()).or_default().progressed = true;
            }
            Event::LeftAlone { .. }
            | Event::Slow(_)
            | Event::Silent { .. }
            | Event::Answering { .. }
            | Event::Warning(_) => {}
        }
    }

    /// Returns the run of the job.
    fn progressed(&self, job: &str, update: impl FnOnce(&mut Progress)) -> Option<i64> {
        let mut progress = self.lock();
        let known = progress.entry(job.to_owned()).or_default();
        update(known);
        known.run
    }

    fn send_all(&self, gathered: &mut BTreeMap<String, Gathered>) {
        for (job, gathered) in std::mem::take(gathered) {
            self.send_gathered(&job, gathered);
        }
    }

    fn send_gathered(&self, job: &str, gathered: Gathered) {
        let Gathered { progressed, done, failed, skipped, changes } = gathered;
        let known = self.progress(job).unwrap_or_default();
        if !changes.is_empty() {
            let public = json!({ "job": job, "run": known.run, "done": done, "failed": failed, "skipped": skipped });
            let mut admin = public.clone();
            admin["changes"] = changes.iter().map(named).collect();
            self.send(job, "change", public, admin);
        }
        if progressed {
            let public = json!({ "job": job, "run": known.run, "done": known.done, "total": known.total, "reading": !known.reading.is_empty() });
            let mut admin = public.clone();
            admin["what"] = json!(known.reading);
            self.send(job, "progress", public, admin);
        }
    }

    fn send(&self, job: &str, name: &str, public: Value, admin: Value) {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        if self.messages.receiver_count() == 0 {
            return;
        }
        let started = self.started;
        let bytes = |data: Value| {
            Bytes::from(format!("id: {started}-{number}\nevent: {name}\ndata: {data}\n\n"))
        };
        let message = Message { job: job.to_owned(), public: bytes(public), admin: bytes(admin) };
        let _ = self.messages.send(Arc::new(message));
    }

    /// Streams what happens from now on, of one job or of all; a reader that missed something is told to reload.
    ///
    /// `seen` is the id of the last message that a reader got before it was disconnected.
    pub(super) fn stream(
        &self,
        reader: Reader,
        job: String,
        seen: Option<&str>,
        stop: CancellationToken,
    ) -> Response {
        let messages = self.messages.subscribe();
        let mut first = RETRY.to_owned();
        let current = format!("{}-{}", self.started, self.last.load(Ordering::Relaxed));
        let missed = seen.is_some_and(|seen| seen != current);
        let _ = write!(first, "id: {current}\n{}\n", if missed { RELOAD } else { "" });
        let source = (Some(Bytes::from(first)), messages, (reader, job, stop));
        let chunks = stream::unfold(source, async |(first, mut messages, of)| {
            let chunk = match first {
                Some(first) => first,
                None => next(&mut messages, &of).await?,
            };
            Some((Ok::<_, Infallible>(chunk), (None, messages, of)))
        });
        let headers = [
            (header::CONTENT_TYPE, "text/event-stream"),
            (header::CACHE_CONTROL, "no-store"),
            // nginx otherwise holds messages back.
            (header::HeaderName::from_static("x-accel-buffering"), "no"),
        ];
        (headers, Body::from_stream(chunks)).into_response()
    }
}

const RELOAD: &str = "event: reload\ndata: {}\n";

/// The next piece of a stream; `None` at its end.
async fn next(
    messages: &mut broadcast::Receiver<Arc<Message>>,
    (reader, job, stop): &(Reader, String, CancellationToken),
) -> Option<Bytes> {
    loop {
        let received = tokio::select! {
            () = stop.cancelled() => return None,
            received = timeout(KEEP_ALIVE, messages.recv()) => received,
        };
        match received {
            Err(_) => return Some(Bytes::from_static(b":\n\n")),
            Ok(Ok(message)) if job.is_empty() || message.job == *job || message.job.is_empty() => {
                return Some(match reader {
                    Reader::Public => message.public.clone(),
                    Reader::Admin => message.admin.clone(),
                });
            }
            Ok(Ok(_)) => {}
            Ok(Err(RecvError::Lagged(_))) => {
                return Some(Bytes::from(format!("{RELOAD}\n")));
            }
            Ok(Err(RecvError::Closed)) => return None,
        }
    }
}

impl Gathered {
    fn add(&mut self, change: ChangeRecord) {
        let items = match change.state {
            State::Done => &mut self.done,
            State::Failed => &mut self.failed,
            State::Skipped => &mut self.skipped,
            State::Planned => return,
        };
        *items += change.count;
        self.progressed = true;
        if self.changes.len() < MAX_CHANGES {
            self.changes.push(change);
        }
    }
}

/// A change as the page shows it, without the response and what it replaced.
fn named(change: &ChangeRecord) -> Value {
    let ChangeRecord { action, target, count, state, detail, answer: _, before: _ } = change;
    json!({ "action": action, "target": target, "count": count, "state": state, "detail": detail })
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;

    use super::*;
    use crate::plan::report::Action;

    fn changed(target: &str, state: State) -> Event {
        Event::Changed(ChangeRecord {
            action: Action::JoinRoom,
            target: target.to_owned(),
            count: 1,
            state,
            detail: None,
            answer: None,
            before: None,
        })
    }

    /// What two readers get of some events of a job.
    async fn streamed(events: Vec<Event>, seen: Option<&str>) -> (String, String) {
        let (feed, stop) = (Arc::new(EventsFeed::new(7)), CancellationToken::new());
        let source = broadcast::Sender::new(10_000);
        let receiver = source.subscribe();
        let streams = [Reader::Public, Reader::Admin]
            .map(|reader| feed.stream(reader, String::new(), seen, CancellationToken::new()));
        for event in events {
            source.send(JobEvent { job: "lobby".to_owned(), event }).unwrap();
        }
        drop(source);
        Arc::clone(&feed).run(receiver).await;
        drop((feed, stop));
        let [public, admin] = streams;
        let text = async |stream: Response| {
            let bytes = to_bytes(stream.into_body(), usize::MAX).await.unwrap();
            String::from_utf8(bytes.to_vec()).unwrap()
        };
        (text(public).await, text(admin).await)
    }

    #[tokio::test]
    async fn without_the_token_no_message_names_anybody() {
        let events = vec![
            Event::Planned { planned: Some(2), bytes: None },
            changed("@a:example.com", State::Done),
            changed("@b:example.com", State::Failed),
            Event::Ended(Box::new(serde_json::from_value(json!({
                "id": 1, "job": "lobby", "kind": "join-rooms", "homeserver": "main", "mode": "apply", "trigger": "manual",
                "scheduled_for": null, "started_at": "2026-11-23T00:00:00Z", "finished_at": null, "attempts": 1,
                "outcome": "partial", "message": "@b:example.com is banned", "planned": 2, "done": 1, "failed": 1,
                "skipped": 0, "remaining": 0, "bytes_planned": null, "bytes_freed": null,
            })).unwrap())),
        ];
        let (public, admin) = streamed(events, None).await;
        insta::assert_snapshot!(public, @r#"
        retry: 2000
        id: 7-0

        id: 7-1
        event: planned
        data: {"bytes":null,"job":"lobby","planned":2,"run":null}

        id: 7-2
        event: change
        data: {"done":1,"failed":1,"job":"lobby","run":null,"skipped":0}

        id: 7-3
        event: progress
        data: {"done":0,"job":"lobby","reading":false,"run":null,"total":2}

        id: 7-4
        event: ended
        data: {"done":1,"failed":1,"job":"lobby","outcome":"partial","run":1}
        "#);
        for name in ["@a:example.com", "@b:example.com", "is banned"] {
            assert!(admin.contains(name), "{admin}");
        }
    }

    #[tokio::test]
    async fn a_reader_that_missed_something_is_told_to_reload() {
        let (stream, _) = streamed(Vec::new(), Some("7-0")).await;
        assert!(!stream.contains("reload"), "{stream}");
        let (stream, _) = streamed(Vec::new(), Some("6-0")).await;
        assert_eq!(stream, "retry: 2000\nid: 7-0\nevent: reload\ndata: {}\n\n");
        let planned = || Event::Planned { planned: Some(1), bytes: None };
        let many = (0..MESSAGES_KEPT + 10).map(|_| planned()).collect();
        let (stream, _) = streamed(many, None).await;
        assert_eq!(stream.matches("event: reload").count(), 1);
        assert_eq!(stream.matches("event: planned").count(), MESSAGES_KEPT);
    }

    #[tokio::test(start_paused = true)]
    async fn many_changes_become_one_message_that_names_the_first() {
        let changes =
            (0..9_000).map(|number| changed(&format!("@{number}:a"), State::Done)).collect();
        let (public, admin) = streamed(changes, None).await;
        assert!(public.contains(r#"data: {"done":9000,"failed":0,"#), "{public}");
        assert_eq!(admin.matches("event: change").count(), 1);
        assert_eq!(admin.matches("\"target\"").count(), MAX_CHANGES);
    }
}
