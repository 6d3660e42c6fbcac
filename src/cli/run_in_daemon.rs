//! `microglia run JOB` where a daemon owns the state directory: the run happens in the daemon.

use anyhow::anyhow;
use axum::http::StatusCode;
use tokio::signal::unix::{SignalKind, signal};

use super::client::{Client, Reply};
use super::event_stream::EventStream;
use super::failure::Failure;
use super::left_alone::LeftAloneList;
use super::output::print_message;
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
    let mut events = match client.post_for_events(&path, body).await? {
        Ok(events) => events,
        Err(reply) => return Err(refused(reply)),
    };
    let mut cancelled = false;
    loop {
        tokio::select! {
            event = next(&mut events, spec) => {
                let event = event?;
                progress.observe(&event);
                left_alone.observe(&event);
                if let Event::Ended(report) = event {
                    return Ok(*report);
                }
            }
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
                cancel(config, spec).await?;
            }
        }
    }
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

/// A run that has just ended cannot be cancelled, which is not an error.
async fn cancel(config: &Config, spec: &JobSpec) -> Result<(), Failure> {
    if let Some(client) = Client::connect(&config.daemon.state_dir).await? {
        client.post(&["api", "v1", "jobs", &spec.name, "cancel"]).await?;
    }
    Ok(())
}
