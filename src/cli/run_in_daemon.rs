//! `microglia run JOB` where a daemon owns the state directory: the run happens in the daemon.

use std::pin::pin;

use anyhow::anyhow;
use axum::http::StatusCode;
use tokio::signal::unix::{SignalKind, signal};

use super::client::{Client, Reply};
use super::event_stream::EventStream;
use super::failure::Failure;
use super::left_alone::LeftAloneList;
use super::output::{print_error, print_message};
use super::progress::Progress;
use crate::config::{Config, JobSpec};
use crate::plan::report::{Event, Report};
use crate::scheduler::RunOverrides;

/// Starts the run and follows it to its end. The first Ctrl-C cancels it, the second detaches from it.
pub(super) async fn run(
    client: Client,
    config: &Config,
    spec: &JobSpec,
    overrides: RunOverrides,
    left_alone: &LeftAloneList,
) -> Result<Report, Failure> {
    let homeserver = config.homeservers.get(&spec.homeserver);
    let fingerprint = homeserver.map(|homeserver| spec.fingerprint(homeserver.fingerprint()));
    let body = serde_json::to_vec(&RunOverrides { fingerprint, ..overrides })?;
    let progress = Progress::new(&spec.homeserver);
    let mut interrupt = signal(SignalKind::interrupt())?;
    let path = ["api", "v1", "jobs", &spec.name, "run"];
    let mut starting = pin!(client.post_for_events(&path, body));
    let (mut events, mut cancelled) = (None, false);
    loop {
        // Where another replica runs the job, it takes some seconds to start.
        let event = async {
            match &mut events {
                None => starting.as_mut().await.map(Next::Response),
                Some(events) => next(events, spec).await.map(Next::Event),
            }
        };
        tokio::select! {
            next = event => match next? {
                Next::Response(Ok(started)) => {
                    events = Some(started);
                    if cancelled {
                        cancel(config, spec);
                    }
                }
                Next::Response(Err(reply)) => return Err(refused(reply)),
                Next::Event(event) => {
                    progress.observe(&event);
                    left_alone.observe(&event);
                    if let Event::Ended(report) = event {
                        return Ok(*report);
                    }
                }
            },
            _ = interrupt.recv() => {
                if cancelled {
                    print_message(&format!(
                        "the run continues in the daemon: microglia runs {}",
                        spec.name
                    ));
                    return Err(Failure::Unsuccessful);
                }
                cancelled = true;
                print_message(&format!(
                    "\nstopping {} after the change in progress; press Ctrl-C again to detach",
                    spec.name
                ));
                if events.is_some() {
                    cancel(config, spec);
                }
            }
        }
    }
}

enum Next {
    Response(Result<EventStream, Reply>),
    Event(Event),
}

fn refused(reply: Reply) -> Failure {
    if reply.status != StatusCode::NOT_FOUND {
        return reply.succeeded().err().unwrap_or(Failure::Unsuccessful);
    }
    Failure::Usage(format!(
        "the running daemon reports: {} (it uses the configuration it last loaded: run `microglia reload`)",
        reply.error()
    ))
}

async fn next(events: &mut EventStream, spec: &JobSpec) -> Result<Event, Failure> {
    let event = events.next().await?.ok_or_else(|| {
        anyhow!("lost the connection to the daemon: `microglia runs {}` shows the run", spec.name)
    })?;
    Ok(event.event)
}

/// Cancels the run in a task of its own: where another replica runs it, that takes some seconds.
fn cancel(config: &Config, spec: &JobSpec) {
    let (state_dir, job) = (config.daemon.state_dir.clone(), spec.name.clone());
    tokio::spawn(async move {
        let cancelled = async {
            let client = Client::connect(&state_dir).await?;
            let client = client.ok_or_else(|| anyhow!("no daemon is running"))?;
            client.post(&["api", "v1", "jobs", &job, "cancel"]).await
        };
        match cancelled.await {
            // A run that has just ended cannot be cancelled, which is not an error.
            Ok(reply) if reply.status.is_success() || reply.status == StatusCode::CONFLICT => {}
            Ok(reply) => print_error(&format!("cannot stop {job}: {}", reply.error())),
            Err(Failure::Error(error)) => print_error(&format!("cannot stop {job}: {error:#}")),
            Err(_) => {}
        }
    });
}
