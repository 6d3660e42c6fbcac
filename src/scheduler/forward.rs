//! Requests for jobs that another replica runs: recorded in the shared history for it, and followed to their end.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::request::{Answer, ForwardedRequest, Refusal, RunOverrides};
use super::supervisor::Supervisor;
use crate::history::{self, HistoryReader, Holder, RequestState};
use crate::plan::report::{Event, Report};

/// How long a request may wait to be taken: longer than it takes another replica to take over after a crash.
const TAKE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the replica that took it may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(1);
/// How often a request follows a lease that moved while it was asked for.
const MAX_MOVES: u32 = 3;
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// How long the answer of a replica may take that has lost or left the lease since it took the request.
const PARTING_TIMEOUT: Duration = Duration::from_secs(5);
/// How often to read how far a run on another replica has come.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(1);

impl Supervisor {
    /// Starts a run on the replica that runs the job; its events come out of the channel, which closes when it has ended.
    ///
    /// From another replica only those events come that the history knows about.
    pub async fn run(
        &self,
        job: &str,
        overrides: RunOverrides,
    ) -> Result<mpsc::UnboundedReceiver<Event>, Refusal> {
        let (homeserver, fingerprint) = match self.run_here(job, overrides.clone()).await {
            Err(Refusal::Elsewhere { homeserver, fingerprint }) => (homeserver, fingerprint),
            run => return run,
        };
        // The other replica must not run another definition than this one knows.
        let overrides = RunOverrides { fingerprint: Some(fingerprint), ..overrides };
        let request = ForwardedRequest::Run(overrides);
        let run = self.forward(job, &homeserver, &request).await?;
        let started = match run {
            Some(run) => {
                self.history().followed_run(run).await.map_err(|error| unusable(&error))?
            }
            None => None,
        };
        let gone = || Refusal::Unanswered(format!("there is no record of the run of {job}"));
        let started = started.ok_or_else(gone)?;
        let (events, receiver) = mpsc::unbounded_channel();
        let history: HistoryReader = HistoryReader::clone(self.history());
        let _ = events.send(Event::Started(Box::new(started.clone())));
        tokio::spawn(follow(history, started, events));
        Ok(receiver)
    }

    /// Ends a job's run at its next change boundary, or drops its waiting run, on whichever replica.
    ///
    /// `by` reads well after "cancelled by".
    pub async fn cancel(&self, job: &str, by: &str) -> Result<(), Refusal> {
        match self.cancel_here(job, by).await {
            Err(Refusal::Elsewhere { homeserver, .. }) => {
                let request = ForwardedRequest::Cancel { by: by.to_owned() };
                self.forward(job, &homeserver, &request).await.map(|_| ())
            }
            cancelled => cancelled,
        }
    }

    /// Has the holder of a homeserver's lease carry out a request, and returns the id of the run that it started.
    pub(super) async fn forward(
        &self,
        job: &str,
        homeserver: &str,
        request: &ForwardedRequest,
    ) -> Result<Option<i64>, Refusal> {
        let unwritable = |error| Refusal::Unanswered(format!("cannot write a request: {error}"));
        let request = serde_json::to_string(request).map_err(unwritable)?;
        let mut moves = 0;
        loop {
            let (by, answer) = self.ask_holder(job, homeserver, &request).await?;
            return match answer {
                // It did nothing, and another replica takes over.
                Err(Refusal::Draining | Refusal::Elsewhere { .. }) if moves < MAX_MOVES => {
                    moves += 1;
                    continue;
                }
                Err(Refusal::Draining | Refusal::Elsewhere { .. }) => {
                    Err(Refusal::Unanswered(format!(
                        "the jobs of this homeserver are moving from {by} to another replica: try again"
                    )))
                }
                Err(Refusal::Edited(_) | Refusal::Unknown(_)) => {
                    Err(Refusal::Differs { job: job.to_owned(), holder: by })
                }
                answer => answer,
            };
        }
    }

    /// Records a request, and returns the answer of the replica that carried it out, and its name.
    async fn ask_holder(
        &self,
        job: &str,
        homeserver: &str,
        request: &str,
    ) -> Result<(String, Answer), Refusal> {
        let history = self.history();
        let recorded = history.record_request(homeserver, job, request, TAKE_TIMEOUT).await;
        let id = recorded.map_err(|error| unusable(&error))?.ok_or_else(|| {
            Refusal::Unanswered(
                "too many requests wait for other replicas: try again later".to_owned(),
            )
        })?;
        let answered = self.answer(id, job, homeserver).await;
        // One that cannot be deleted now is deleted later.
        let _ = history.delete_request(id).await;
        let (by, answer) = answered?;
        let answer: Answer = serde_json::from_str(&answer).map_err(|error| {
            Refusal::Unanswered(format!("cannot read the answer of the replica {by}: {error}"))
        })?;
        Ok((by, answer))
    }

    /// Waits for the answer to a request, and returns who gave it.
    async fn answer(
        &self,
        id: i64,
        job: &str,
        homeserver: &str,
    ) -> Result<(String, String), Refusal> {
        let history = self.history();
        let (mut taken, mut parted): (Option<Instant>, Option<Instant>) = (None, None);
        loop {
            let state = history.request_state(id).await.map_err(|error| unusable(&error))?;
            match state.unwrap_or(RequestState::Expired) {
                RequestState::Answered { by, answer } => return Ok((by, answer)),
                RequestState::Taken { by, is_holder } => {
                    let since = *taken.get_or_insert_with(Instant::now);
                    if is_holder {
                        parted = None;
                    }
                    let gone = !is_holder
                        && parted.get_or_insert_with(Instant::now).elapsed() > PARTING_TIMEOUT;
                    if gone || since.elapsed() > ANSWER_TIMEOUT {
                        return Err(Refusal::Unanswered(format!(
                            "the replica {by} took the request and has not answered: `microglia runs {job}` shows whether it was carried out"
                        )));
                    }
                }
                RequestState::Waiting => {}
                RequestState::Expired => {
                    // It may be taken at this moment.
                    if history.withdraw_request(id).await.map_err(|error| unusable(&error))? {
                        return Err(not_taken(history.lease_holder(homeserver).await, job));
                    }
                }
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}

pub(super) fn unusable(error: &history::Error) -> Refusal {
    Refusal::Unanswered(format!(
        "another replica runs the jobs of this homeserver, and cannot be asked: {error}"
    ))
}

/// Nobody has carried out the request, nor will.
fn not_taken(holder: Result<Holder, history::Error>, job: &str) -> Refusal {
    let seconds = TAKE_TIMEOUT.as_secs();
    Refusal::Unanswered(match holder {
        Ok(Holder::Daemon(name)) => format!(
            "the replica {name} runs {job} and did not take the request within {seconds} s, so that nothing was done: see its log"
        ),
        Ok(Holder::Run) => format!(
            "a run of the command line works on the homeserver of {job}, perhaps on another machine: try again when it has ended"
        ),
        Ok(Holder::Nobody) => format!(
            "no replica took over the homeserver of {job} within {seconds} s, so that nothing was done: see the logs of all replicas"
        ),
        Err(error) => format!("no replica took the request within {seconds} s: {error}"),
    })
}

/// Sends what becomes of a run on another replica, until it ends or nobody listens.
async fn follow(history: HistoryReader, mut seen: Report, events: mpsc::UnboundedSender<Event>) {
    let Some(run) = seen.id else { return };
    let mut is_failing = false;
    loop {
        if seen.outcome.is_some() {
            let _ = events.send(Event::Ended(Box::new(seen)));
            return;
        }
        tokio::select! {
            () = events.closed() => return,
            () = tokio::time::sleep(FOLLOW_INTERVAL) => {}
        }
        match history.followed_run(run).await {
            Ok(Some(now)) => {
                is_failing = false;
                for event in progress(&seen, &now) {
                    let _ = events.send(event);
                }
                seen = now;
            }
            Ok(None) => return,
            Err(error) => {
                if !std::mem::replace(&mut is_failing, true) {
                    let _ = events.send(Event::Warning(format!(
                        "the run continues, but its record cannot be read: {error}"
                    )));
                }
            }
        }
    }
}

/// What happened between two looks at the record of a run.
fn progress(before: &Report, now: &Report) -> Vec<Event> {
    let mut events = Vec::new();
    if before.waiting != now.waiting {
        events.push(match &now.waiting {
            Some(waiting) => Event::Waiting(waiting.what.clone()),
            None => Event::Resumed,
        });
    }
    let made = |run: &Report| run.done + run.failed + run.skipped;
    if now.waiting.is_none() && made(now) > 0 && made(before) != made(now) {
        events.push(Event::Changing { done: made(now), total: now.planned });
    }
    events
}
