//! The daemon: opens everything, runs it, and shuts it down in order.

mod tasks;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Environment};
use crate::history::state_dir::{DaemonLock, LockState, StateDir, this_user};
use crate::history::{self, History};
use crate::notify::Notifier;
use crate::observe::metrics::Metrics;
use crate::runner::{LostCallWait, Runner};
use crate::scheduler::lease_keeper::LeaseKeeper;
use crate::scheduler::lease_times::LeaseTimes;
use crate::scheduler::reload::Reloader;
use crate::scheduler::supervisor::{RECORD_TIMEOUT, Supervisor};
use crate::scheduler::ticker::Ticker;
use crate::values::clock::Clock;
use crate::values::lock_file::identity;
use crate::web::{self, App, EventsFeed, Health, PageState, Sessions};
use tasks::Tasks;

/// How often to check that each homeserver responds.
const PROBE_EVERY: Duration = Duration::from_mins(5);
/// How often to try to open a history that is not open: the disk may be full or not mounted yet.
const OPEN_EVERY: Duration = Duration::from_secs(10);
/// How often to check that the lock of the state directory still keeps other daemons out.
const CHECK_LOCK_EVERY: Duration = Duration::from_secs(2);
/// How often old runs are deleted.
const DELETE_OLD_RUNS_EVERY: Duration = Duration::from_hours(1);
/// How often to update the status that systemd shows.
const STATUS_EVERY: Duration = Duration::from_secs(5);
/// What the HTTP listeners and the history may take to close after the runs have ended.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs until SIGTERM or SIGINT. A second signal ends it at once, which is an error.
#[expect(clippy::too_many_lines, reason = "composition, in one straight line")]
pub(crate) async fn serve(
    path: PathBuf,
    config: Config,
    environment: Environment,
    clock: Clock,
) -> anyhow::Result<()> {
    // A thousand concurrent runs hold a lock and a connection each; the usual soft limit is 1,024.
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::debug!(target: "microglia::daemon", "cannot raise the limit of open files: {error}");
    }
    let daemon = config.daemon.clone();
    let unusable = || {
        format!(
            "cannot use the state directory {}: make it writable for {}, or set daemon.state_dir",
            daemon.state_dir.display(),
            this_user()
        )
    };
    let dir = StateDir::open(&daemon.state_dir).with_context(unusable)?;
    let Some(mut lock) = dir.try_lock_daemon().with_context(unusable)? else {
        anyhow::bail!(
            "another daemon is running on the state directory {}: stop it, or give this one a state_dir of its own",
            daemon.state_dir.display()
        );
    };
    let place = daemon.history.of(&dir).map_err(anyhow::Error::msg)?;
    // Without a history the daemon still plans and serves; it refuses what it cannot record.
    let history = History::open(place.clone(), clock.clone()).await.unwrap_or_else(|error| {
        tracing::error!(
            target: "microglia::daemon",
            "cannot open the history; runs in apply mode are refused until it can be opened: {error}"
        );
        let problem = format!("the history cannot be opened: {error}");
        History::unavailable(Some(place), clock.clone(), &problem)
    });
    let history = history.into_replica();
    let metrics = Arc::new(Metrics::new(clock.now())?);
    // Before readiness is reported: a signal without a handler ends the process.
    let mut signals = Signals::new()?;
    let runner = Runner {
        history: history.clone(),
        dir: Some(dir.clone()),
        clock: clock.clone(),
        lost_call_wait: LostCallWait::default(),
    };
    let (supervisor, owner) = Supervisor::new(runner, Arc::clone(&metrics), clock.clone());
    // Servers are reported to stop and finish their responses; chores are aborted.
    let (mut servers, mut chores) = (Tasks::default(), Tasks::default());
    chores.spawn("scheduler", owner.run());
    let listener = TcpListener::bind(daemon.listen).await.with_context(|| {
        format!("cannot listen on {}: check whether another program uses this address, or set daemon.listen", daemon.listen)
    })?;
    let socket = web::listen(&daemon.state_dir).with_context(unusable)?;
    let socket_path = daemon.state_dir.join(web::SOCKET);
    let socket_identity = identity(&socket_path);
    let config = Arc::new(config);
    let adopted = supervisor.start(&config).await?;
    let keeper = LeaseKeeper::new(&supervisor, LeaseTimes::default(), this_replica());
    let keeper = match keeper {
        Some(mut keeper) => {
            end_leases_of_predecessor(&history, &dir).await;
            keeper.renew().await;
            Some(keeper)
        }
        None => None,
    };
    for warning in &config.warnings {
        tracing::warn!(target: "microglia::daemon", "{}", warning.line());
    }
    let reloader = Arc::new(Reloader::new(
        path,
        environment,
        &config,
        Arc::clone(&supervisor),
        Arc::clone(&metrics),
        clock.clone(),
    ));
    // The scheduler has its own copy of the jobs: with thousands of them this one would take megabytes.
    drop(config);
    let ticker = Ticker::start(Arc::clone(&supervisor.agenda), clock.clone(), supervisor.wakes())
        .await
        .map_err(|error| anyhow::anyhow!("cannot start the scheduler: {error:?}"))?;
    let ticker = Arc::new(ticker);

    let stop = CancellationToken::new();
    let health = Health::new(Arc::clone(&ticker), history.clone(), Arc::clone(&metrics));
    let notifier = Notifier::new(
        Arc::clone(&supervisor),
        Arc::clone(&reloader),
        history.clone(),
        Arc::clone(&metrics),
        clock.clone(),
    );
    let feed = Arc::new(EventsFeed::new(clock.now().timestamp_millis()));
    let app = Arc::new(App {
        supervisor: Arc::clone(&supervisor),
        reloader: Arc::clone(&reloader),
        history: history.clone(),
        health: Arc::new(health),
        metrics,
        feed: Arc::clone(&feed),
        sessions: Sessions::default(),
        pages: PageState::default(),
        clock: clock.clone(),
        stop: stop.clone(),
    });
    let router = web::router(app);
    let address = listener.local_addr()?;
    servers.spawn("HTTP listener", web::serve(listener, router.clone(), stop.clone()));
    servers.spawn("control socket", web::serve(socket, router, stop.clone()));
    chores.spawn("event feed", feed.run(supervisor.subscribe()));
    chores.spawn("config watcher", Arc::clone(&reloader).watch());
    chores.spawn("homeserver probe", probe(Arc::clone(&supervisor)));
    chores.spawn("history opener", open_history(history.clone(), Arc::clone(&supervisor)));
    chores
        .spawn("history clean-up", delete_old_runs(history.clone(), Arc::clone(&reloader), clock));
    chores.spawn("plans", Arc::clone(&supervisor).tend_plans());
    chores.spawn("notifications", notifier.run());
    if let Some(keeper) = keeper {
        chores.spawn("leases", keeper.keep());
    }
    chores.spawn("watchdog", watchdog(Arc::clone(&supervisor), Arc::clone(&ticker)));
    tracing::info!(
        target: "microglia::daemon",
        "microglia {} serves http://{address} with {}",
        env!("CARGO_PKG_VERSION"),
        crate::values::text::format_count(adopted.added.len() as u64, "job", "jobs")
    );
    notify(&[NotifyState::Ready, NotifyState::Status(&supervisor.status().await)]);

    let broken = tokio::select! {
        ended = signals.until_stop(&reloader, &supervisor) => ended.err(),
        // Without one of them the daemon would silently do less than it should; a service manager restarts it.
        ended = chores.unexpected_end() => Some(ended),
        ended = servers.unexpected_end() => Some(ended),
        lost = until_lock_lost(&mut lock) => Some(lost),
    };
    if let Some(bug) = &broken {
        tracing::error!(target: "microglia::daemon", "{bug}; stopping the daemon, because it can no longer work correctly");
    }
    let grace = reloader.daemon().shutdown_grace.0;
    // Else a grace above the unit's TimeoutStopSec would be cut off.
    let longest = (grace + RECORD_TIMEOUT + CLOSE_TIMEOUT).as_micros();
    notify(&[
        NotifyState::Stopping,
        NotifyState::Custom(&format!("EXTEND_TIMEOUT_USEC={longest}")),
    ]);
    tracing::info!(target: "microglia::daemon", "stopping: no new runs are started");
    let cut_short = tokio::select! {
        () = supervisor.drain(grace) => false,
        () = signals.stop_requested() => true,
    };
    if history.is_shared() {
        let left = tokio::time::timeout(CLOSE_TIMEOUT, history.leave_replicas()).await;
        if !matches!(left, Ok(Ok(()))) {
            tracing::warn!(target: "microglia::daemon", "cannot hand over the leases of homeservers: other replicas wait until they expire");
        }
    }
    stop.cancel();
    chores.abort();
    if cut_short {
        anyhow::bail!(
            "stopped immediately by a second signal: active runs are recorded as interrupted at the next start"
        );
    }
    servers.ended().await;
    // It may be another daemon's by now.
    if socket_identity.is_some() && identity(&socket_path) == socket_identity {
        let _ = std::fs::remove_file(socket_path);
    }
    history.close().await;
    if let Some(bug) = broken {
        anyhow::bail!(bug);
    }
    tracing::info!(target: "microglia::daemon", "stopped");
    Ok(())
}

/// The file of the state directory that names the replica of the daemon that last ran on it.
pub(crate) const REPLICA: &str = "replica";

/// Ends the leases of the daemon that ran on the state directory before: whose lock this one holds, it has ended.
async fn end_leases_of_predecessor(history: &History, dir: &StateDir) {
    let path = dir.path(REPLICA);
    if let Ok(before) = std::fs::read_to_string(&path)
        && let Err(error) = history.end_leases_of(before.trim()).await
    {
        tracing::debug!(target: "microglia::daemon", "cannot end the leases of the daemon before: {error}");
    }
    if let Err(error) = std::fs::write(&path, history.replica()) {
        tracing::warn!(target: "microglia::daemon", "cannot write {}: after a crash the leases of this daemon are not free before they expire: {error}", path.display());
    }
}

/// What other replicas call this one.
fn this_replica() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{} (process {})", host.trim(), std::process::id())
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Reloads at each SIGHUP until SIGTERM or SIGINT arrives, without waiting for a reload to end; an error is a bug.
    async fn until_stop(
        &mut self,
        reloader: &Arc<Reloader>,
        supervisor: &Arc<Supervisor>,
    ) -> Result<(), String> {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return Ok(()),
                _ = self.interrupt.recv() => return Ok(()),
                _ = self.hangup.recv() => {}
            }
            let reload = reload_at_signal(Arc::clone(reloader), Arc::clone(supervisor));
            let reload = tokio::spawn(reload);
            tokio::select! {
                ended = reload => ended.map_err(|error| {
                    format!("a bug in microglia, please report it: the reload {}", tasks::failure(error))
                })?,
                () = self.stop_requested() => return Ok(()),
            }
        }
    }

    async fn stop_requested(&mut self) {
        tokio::select! { _ = self.terminate.recv() => {} _ = self.interrupt.recv() => {} }
    }
}

async fn reload_at_signal(reloader: Arc<Reloader>, supervisor: Arc<Supervisor>) {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        notify(&[NotifyState::Reloading, now]);
    }
    // What is wrong with the config is in the log and in the metrics.
    let _ = reloader.reload("SIGHUP").await;
    notify(&[NotifyState::Ready, NotifyState::Status(&supervisor.status().await)]);
}

/// Keeps other daemons out of the state directory; returns the reason once that is no longer possible.
async fn until_lock_lost(lock: &mut DaemonLock) -> String {
    let path = lock.path();
    let mut failing = false;
    loop {
        tokio::time::sleep(CHECK_LOCK_EVERY).await;
        let held = lock.ensure_held();
        match &held {
            Ok(LockState::Relocked) => {
                tracing::warn!(target: "microglia::daemon", "{} was deleted or replaced: locked again", path.display());
            }
            Ok(LockState::Lost) => {
                let why = format!(
                    "{} was deleted or replaced, and another process has locked it: stopping, because only one daemon may use a state directory",
                    path.display()
                );
                tracing::error!(target: "microglia::daemon", "{why}");
                return why;
            }
            Err(error) if !failing => {
                tracing::error!(target: "microglia::daemon", "cannot lock {} again: {error}", path.display());
            }
            Ok(LockState::Held) | Err(_) => {}
        }
        failing = held.is_err();
    }
}

/// Probes all homeservers at the start, then one after the other, so that the load of many is even.
async fn probe(supervisor: Arc<Supervisor>) {
    supervisor.probe_all();
    let mut homeservers = 1;
    loop {
        tokio::time::sleep(PROBE_EVERY / u32::try_from(homeservers).unwrap_or(u32::MAX)).await;
        homeservers = supervisor.probe_next().await.max(1);
    }
}

/// Opens a history that could not be opened at the start, or was deleted or replaced since.
async fn open_history(history: History, supervisor: Arc<Supervisor>) {
    let mut reported = history.problem();
    loop {
        tokio::time::sleep(OPEN_EVERY).await;
        let problem = history.problem();
        if let Some(problem) = &problem {
            if reported.as_ref() != Some(problem) {
                tracing::error!(target: "microglia::daemon", "runs in apply mode are refused: {problem}");
            }
            if let Err(error) = supervisor.open_history().await {
                tracing::debug!(target: "microglia::daemon", "the history cannot be opened yet: {error}");
            }
        }
        reported = problem;
    }
}

async fn delete_old_runs(history: History, reloader: Arc<Reloader>, clock: Clock) {
    loop {
        let before = clock.now() - reloader.daemon().keep_history.as_chrono();
        match history.delete_runs_before(before).await {
            Ok(0) | Err(history::Error::Unavailable(_)) => {}
            Ok(gone) => {
                tracing::debug!(target: "microglia::daemon", "deleted {gone} old runs");
            }
            Err(error) => {
                tracing::error!(target: "microglia::daemon", "cannot delete old runs: {error}");
            }
        }
        tokio::time::sleep(DELETE_OLD_RUNS_EVERY).await;
    }
}

/// Reports status and liveness to systemd; liveness only while the ticker ticks.
async fn watchdog(supervisor: Arc<Supervisor>, ticker: Arc<Ticker>) {
    let limit = sd_notify::watchdog_enabled();
    let every = limit.map_or(STATUS_EVERY, |limit| STATUS_EVERY.min(limit / 3));
    let mut reported = String::new();
    loop {
        tokio::time::sleep(every).await;
        match ticker.alive() {
            Ok(_) if limit.is_some() => notify(&[NotifyState::Watchdog]),
            Ok(_) => {}
            Err(ago) => {
                tracing::error!(target: "microglia::daemon", "the ticker has not ticked for {} s", ago.as_secs());
            }
        }
        let status = supervisor.status().await;
        if status != reported {
            notify(&[NotifyState::Status(&status)]);
            reported = status;
        }
    }
}

/// Does nothing without systemd.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(target: "microglia::daemon", "cannot notify systemd: {error}");
    }
}
