//! `microglia run JOB` where no daemon runs: the run happens in this process.

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use super::failure::Failure;
use super::left_alone::LeftAloneList;
use super::output::{print_error, print_message};
use super::progress::Progress;
use super::run_lease;
use crate::config::{Config, ConnectFor, Connections, JobSpec};
use crate::history::state_dir::StateDir;
use crate::history::{self, History};
use crate::http::{Clients, Observer};
use crate::observe::run_log;
use crate::plan::report::{Event, Outcome, Report};
use crate::runner::{HomeserverHandle, LostCallWait, RunParams, RunSlots, Runner, Stop};
use crate::values::clock::Clock;

/// How long giving back the lease may take.
const RESIGN_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs the job in this process.
#[expect(clippy::too_many_lines, reason = "composition, in one straight line")]
pub(super) async fn run(
    config: &Config,
    spec: &JobSpec,
    order: &RunParams,
    clock: &Clock,
    left_alone: Arc<LeftAloneList>,
) -> Result<Report, Failure> {
    let homeserver = config
        .homeservers
        .get(&spec.homeserver)
        .ok_or_else(|| anyhow::anyhow!("no homeserver {}", spec.homeserver))?;
    let (runs, limits) = config
        .limits()
        .remove(&homeserver.address())
        .ok_or_else(|| anyhow::anyhow!("no homeserver {}", spec.homeserver))?;
    let all_limits = config.new_limits();
    let observer: Observer = Arc::new(|_| {});
    let Connections { transport, mas } = homeserver
        .connect(
            &mut Clients::default(),
            ConnectFor {
                observer: &observer,
                clock,
                state_dir: &config.daemon.state_dir,
                expiry_observer: Arc::new(|_| {}),
            },
            |address| all_limits.get(address).cloned(),
        )
        .map_err(anyhow::Error::msg)?;
    let homeserver = HomeserverHandle {
        transport,
        mas,
        slots: RunSlots::Locks(runs),
        max_concurrent_requests: limits.max_concurrent_requests,
        yield_to: homeserver.yield_to.clone(),
    };
    let address = homeserver.transport.address.as_str().to_owned();
    let (dir, history) = open_state(config, clock).await;
    let history = history.into_replica();
    run_lease::take(&history, &spec.homeserver, &address).await?;
    let runner = Runner {
        history: history.clone(),
        dir,
        clock: clock.clone(),
        lost_call_wait: LostCallWait::default(),
    };
    let (stop, progress, name) =
        (Stop::default(), Progress::new(&spec.homeserver), spec.name.clone());
    let log = run_log::log(&spec.name, &spec.homeserver);
    let emit = Arc::new(move |event: Event| {
        progress.observe(&event);
        left_alone.observe(&event);
        log(event);
    });
    let signals = tokio::spawn(stop_on_signals(stop.clone(), name));
    let lease = match history.is_shared() {
        true => Some(tokio::spawn(run_lease::keep(history.clone(), address, stop.clone()))),
        false => None,
    };
    let report = Box::pin(runner.run(spec, &homeserver, order, &stop, emit)).await;
    signals.abort();
    if let Some(lease) = lease {
        lease.abort();
        // One that cannot be given back expires.
        let _ = tokio::time::timeout(RESIGN_TIMEOUT, history.leave_replicas()).await;
    }
    history.close().await;
    report.map_err(|busy| {
        print_error(&busy.to_string());
        Failure::Unsuccessful
    })
}

/// The state directory and its history, or the reason why they cannot be used.
async fn open_state(config: &Config, clock: &Clock) -> (Option<StateDir>, History) {
    let path = &config.daemon.state_dir;
    let problem = |error: &dyn std::fmt::Display| {
        format!(
            "the state directory {} cannot be used ({error}): run as the daemon's user, or set daemon.state_dir",
            path.display()
        )
    };
    match StateDir::open(path) {
        Err(error) => (None, History::unavailable(None, clock.clone(), &problem(&error))),
        Ok(dir) => match config.daemon.history.of(&dir) {
            Err(why) => (Some(dir), History::unavailable(None, clock.clone(), &why)),
            Ok(place) => match History::open(place, clock.clone()).await {
                Ok(history) => (Some(dir), history),
                Err(error @ history::Error::Unreachable { .. }) => {
                    (Some(dir), History::unavailable(None, clock.clone(), &error.to_string()))
                }
                Err(error) => {
                    (Some(dir), History::unavailable(None, clock.clone(), &problem(&error)))
                }
            },
        },
    }
}

/// The first signal ends the run between two changes, the second immediately.
async fn stop_on_signals(stop: Stop, job: String) {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return;
    };
    let mut next = async || {
        tokio::select! { _ = interrupt.recv() => "SIGINT (Ctrl-C)", _ = terminate.recv() => "SIGTERM" }
    };
    let first = next().await;
    print_message(&format!(
        "\nstopping {job} after the change in progress; press Ctrl-C again to stop immediately"
    ));
    stop.cancelled_by(first);
    let second = next().await;
    stop.now(Outcome::Cancelled, &format!("by a second signal, {second}"));
}
