//! The daemon's runs: what is due, overlap, catch-up, pause, adopting a new config, draining.

mod adopt;
mod missed;
mod series;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{JobSpec, Overlap};
use crate::history::{self, Pause};
use crate::observe::metrics::{Metrics, Skipped};
use crate::observe::run_log;
use crate::plan::report::{Event, Mode, Outcome, Trigger};
use crate::runner::{HomeserverHandle, RunParams, Runner, Stop, WindowRule};
use crate::scheduler::agenda::{Agenda, Due};
use crate::scheduler::job_list::{ListedJob, job_list};
use crate::synapse::Address;
use crate::values::clock::{Clock, Timestamp};
use crate::values::fingerprint::Fingerprint;
use crate::values::schema::Limit;
use crate::values::text::unknown;

pub use adopt::Adopted;
use adopt::{Live, Shared};
use missed::Missed;

/// Runs jobs when they are due or asked for. Used through an `Arc`, whose runs hold it.
///
/// Who needs several of its locks takes them in this order: state, agenda, the table of the metrics.
pub struct Supervisor {
    runner: Runner,
    metrics: Arc<Metrics>,
    pub agenda: Arc<Mutex<Agenda>>,
    clock: Clock,
    state: Mutex<State>,
    tasks: TaskTracker,
    /// Cancelled when nothing more may start.
    draining: CancellationToken,
}

#[derive(Default)]
struct State {
    jobs: BTreeMap<String, Entry>,
    homeservers: BTreeMap<String, Live>,
    addresses: BTreeMap<Address, Shared>,
    /// Runs of jobs that were removed, until they end.
    leaving: BTreeMap<String, Running>,
    pause: Pause,
    /// Whether that could not be read, and scheduled runs are only taken for paused.
    pause_assumed: bool,
    /// Whether something looks again and again whether what was missed can start.
    looks_at_missed: bool,
}

struct Entry {
    spec: Arc<JobSpec>,
    fingerprint: Fingerprint,
    place: HomeserverHandle,
    /// Since when the job is known with its present schedule.
    since: Timestamp,
    running: Option<Running>,
    queued: Option<Timestamp>,
    /// The last occurrence that was skipped during runs: remembered when they have ended, since it is missed when they are cut off.
    passed: Option<Timestamp>,
    /// The last occurrence whose run was recorded.
    begun: Option<Timestamp>,
    /// What is to be caught up, until its run has begun.
    missed: Option<Missed>,
}

struct Running {
    stop: Stop,
    /// The occurrence that it catches up: it stands for all that came before, too.
    catches_up: Option<Timestamp>,
    /// Whether it is past its splay.
    begun: bool,
    run: Option<i64>,
}

/// What a run that was asked for may differ in.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunOverrides {
    pub mode: Option<Mode>,
    pub max_changes: Option<u32>,
    /// Lifts the job's window for this run.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ignore_window: bool,
    /// What the asker read in the config: the daemon must not run an older definition unseen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Fingerprint>,
}

/// Why a run or a cancellation that was asked for is not possible.
#[derive(Debug, Clone, thiserror::Error, Serialize, Deserialize)]
pub enum Refusal {
    #[error("{0}")]
    Unknown(String),
    #[error("{job} is running already{}", run.map(|id| format!(" (run {id})")).unwrap_or_default())]
    Running { job: String, run: Option<i64> },
    #[error("{0} is not running")]
    NotRunning(String),
    #[error(
        "{0} was edited since the daemon loaded the config, and it would run the old definition: `microglia reload` first"
    )]
    Edited(String),
    #[error("the daemon is stopping")]
    Draining,
    #[error("{0}")]
    Usage(String),
}

/// How long after a cut-off runs may take to record that they were cut off.
pub const LAST_WORDS: Duration = Duration::from_secs(5);

impl Supervisor {
    pub fn new(runner: Runner, metrics: Arc<Metrics>, clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            runner,
            metrics,
            agenda: Arc::default(),
            clock,
            state: Mutex::default(),
            tasks: TaskTracker::new(),
            draining: CancellationToken::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn agenda(&self) -> MutexGuard<'_, Agenda> {
        self.agenda.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what the ticker sends until it stops.
    pub async fn listen(self: Arc<Self>, mut due: mpsc::UnboundedReceiver<Vec<Due>>) {
        while let Some(all) = due.recv().await {
            for due in all {
                self.due(&due);
            }
        }
    }

    fn due(self: &Arc<Self>, due: &Due) {
        let mut state = self.state();
        if self.draining.is_cancelled() {
            return;
        }
        let (paused, now) = (state.pause.paused, self.clock.now());
        let Some(entry) = state.jobs.get_mut(&*due.job) else { return };
        if !entry.spec.common.enabled {
            return;
        }
        let running = entry.running.as_ref();
        if running.is_some_and(|running| running.catches_up >= Some(due.occurrence)) {
            return;
        }
        let skipped = match () {
            () if paused => Some(Skipped::Paused),
            () if entry.spec.is_outside_window(now) => Some(Skipped::Window),
            () if running.is_some()
                && (entry.spec.common.overlap == Overlap::Skip || entry.queued.is_some()) =>
            {
                Some(Skipped::Overlap)
            }
            () => None,
        };
        if let Some(reason) = skipped {
            // Recorded as dealt with, it would make a restart forget what is to be caught up, or is when the run is cut off.
            let until = if entry.running.is_some() {
                entry.passed = Some(due.occurrence);
                None
            } else {
                let last = entry.passed.take().max(Some(due.occurrence));
                last.filter(|_| entry.missed.is_none())
            };
            drop(state);
            self.skip(&due.job, until, reason);
            return;
        }
        if running.is_some() {
            entry.queued = Some(due.occurrence);
            return;
        }
        // It stands for what was missed before it.
        entry.missed = None;
        let order = RunParams {
            trigger: Trigger::Schedule,
            scheduled_for: Some(due.occurrence),
            ..RunParams::manual(&entry.spec)
        };
        self.launch(entry, order, None);
    }

    /// Counts what was due as skipped, and remembers that all until then is dealt with.
    fn skip(self: &Arc<Self>, job: &str, until: Option<Timestamp>, reason: Skipped) {
        tracing::debug!(job, %reason, "{job}: what was due is skipped: {reason}");
        self.metrics.jobs.update(job, |series| *series.skipped.entry(reason).or_default() += 1);
        if let Some(until) = until {
            self.dealt_with(job, until);
        }
    }

    /// Remembers that an occurrence and all before it will not be run any more.
    fn dealt_with(self: &Arc<Self>, job: &str, until: Timestamp) {
        let (supervisor, job) = (Arc::clone(self), job.to_owned());
        self.tasks.spawn(async move {
            if let Err(error) = supervisor.runner.history.dealt_with(&job, until).await {
                tracing::error!("{job}: a skipped occurrence cannot be recorded: {error}");
            }
        });
    }

    /// Starts a run and answers what it tells. The entry is not running.
    fn launch(
        self: &Arc<Self>,
        entry: &mut Entry,
        order: RunParams,
        listener: Option<mpsc::UnboundedSender<Event>>,
    ) {
        let stop = Stop::default();
        let catches_up = order.scheduled_for.filter(|_| order.trigger == Trigger::CatchUp);
        entry.running = Some(Running { stop: stop.clone(), catches_up, begun: false, run: None });
        let (supervisor, spec, place) =
            (Arc::clone(self), Arc::clone(&entry.spec), entry.place.clone());
        self.tasks
            .spawn(async move { supervisor.carry_out(spec, place, order, stop, listener).await });
    }

    async fn carry_out(
        self: Arc<Self>,
        mut spec: Arc<JobSpec>,
        mut place: HomeserverHandle,
        mut order: RunParams,
        stop: Stop,
        listener: Option<mpsc::UnboundedSender<Event>>,
    ) {
        let job = spec.name.clone();
        if order.trigger == Trigger::Schedule && !spec.splay().is_zero() {
            self.metrics.jobs.update(&job, |series| series.waiting = true);
            stop.sleep(spec.splay()).await;
            self.metrics.jobs.update(&job, |series| series.waiting = false);
            // It goes by the config of now: a job that was set to dry-run while it waited must not make changes.
            if let Some(entry) = self.state().jobs.get(&job) {
                (spec, place) = (Arc::clone(&entry.spec), entry.place.clone());
                let RunParams { mode, max_changes, .. } = RunParams::manual(&spec);
                (order.mode, order.max_changes) = (mode, max_changes);
            }
        }
        let (log, supervisor) = (run_log::log(&spec.name, &spec.homeserver), Arc::clone(&self));
        let (name, heard) = (job.clone(), listener.clone());
        let tell = Arc::new(move |event: Event| {
            supervisor.hear(&name, &event);
            if let Some(heard) = &heard {
                let _ = heard.send(event.clone());
            }
            log(event);
        });
        let mut cut_off = false;
        if stop.is_asked() && order.trigger != Trigger::Manual {
            // Nothing has begun. What a restart cut off still counts as missed, what somebody cancelled does not.
            match (order.scheduled_for, stop.outcome()) {
                (Some(occurrence), Some(Outcome::Cancelled)) => self.dealt_with(&job, occurrence),
                _ => cut_off = true,
            }
        } else if order.trigger != Trigger::Manual && !spec.common.enabled {
            tracing::info!(%job, "{job}: it was disabled before its run began: the run is given up");
        } else if let Some((occurrence, reason)) = self.overtaken(&spec, &order) {
            self.skip(&job, Some(occurrence), reason);
        } else {
            match self.runner.run(&spec, &place, &order, &stop, tell).await {
                Ok(report) => cut_off = report.outcome == Some(Outcome::Interrupted),
                Err(busy) => {
                    tracing::warn!(%job, "{busy}");
                    if let Some(occurrence) = order.scheduled_for {
                        self.skip(&job, Some(occurrence), Skipped::Overlap);
                    }
                }
            }
        }
        let mut queued = None;
        {
            let mut state = self.state();
            state.leaving.remove(&job);
            if let Some(entry) = state.jobs.get_mut(&job) {
                entry.running = None;
                if order.trigger == Trigger::CatchUp {
                    entry.missed = None;
                }
                queued = entry.queued.take();
                if queued.is_none()
                    && !cut_off
                    && let Some(passed) = entry.passed.take()
                {
                    self.dealt_with(&job, passed);
                }
            }
        }
        // Whoever listens hears the end when the job may be run again, and not before.
        drop(listener);
        if let Some(occurrence) = queued {
            self.due(&Due { job: job.into(), occurrence });
        }
    }

    /// What keeps a scheduled run from starting that came about while it waited.
    fn overtaken(&self, spec: &JobSpec, order: &RunParams) -> Option<(Timestamp, Skipped)> {
        let occurrence = order.scheduled_for?;
        match () {
            () if self.is_paused() => Some((occurrence, Skipped::Paused)),
            () if spec.is_outside_window(self.clock.now()) => Some((occurrence, Skipped::Window)),
            () => None,
        }
    }

    /// Starts a run by hand; what it tells comes out of the channel, and ends with the run.
    pub fn run(
        self: &Arc<Self>,
        job: &str,
        asked: &RunOverrides,
    ) -> Result<mpsc::UnboundedReceiver<Event>, Refusal> {
        let mut state = self.state();
        if self.draining.is_cancelled() {
            return Err(Refusal::Draining);
        }
        let entry = entry(&mut state, job)?;
        if let Some(running) = &entry.running {
            return Err(Refusal::Running { job: job.to_owned(), run: running.run });
        }
        if asked.fingerprint.as_ref().is_some_and(|fingerprint| *fingerprint != entry.fingerprint) {
            return Err(Refusal::Edited(job.to_owned()));
        }
        if asked.max_changes.is_some() && !entry.spec.job.kind().counts {
            return Err(Refusal::Usage(format!(
                "max_changes means nothing for {}, which cannot count beforehand",
                entry.spec.job.kind().name
            )));
        }
        let mut order = RunParams::manual(&entry.spec);
        order.mode = asked.mode.unwrap_or(order.mode);
        order.max_changes = asked.max_changes.map_or(order.max_changes, Limit::Of);
        if asked.ignore_window {
            order.window = WindowRule::Ignore;
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        self.launch(entry, order, Some(sender));
        Ok(receiver)
    }

    /// Ends a job's run at its next change boundary, or gives up what waits to be caught up.
    ///
    /// `by` reads well after "cancelled by".
    pub fn cancel(self: &Arc<Self>, job: &str, by: &str) -> Result<(), Refusal> {
        let mut state = self.state();
        let entry = entry(&mut state, job)?;
        if let Some(running) = &entry.running {
            tracing::info!(job, by, "{job}: its run is cancelled by {by}");
            running.stop.cancelled_by(by);
        } else if entry.missed.take().is_some() {
            tracing::info!(job, by, "{job}: what it missed is not caught up: cancelled by {by}");
            self.dealt_with(job, self.clock.now());
        } else {
            return Err(Refusal::NotRunning(job.to_owned()));
        }
        Ok(())
    }

    /// Stops or restarts all scheduled runs, beyond a restart of the daemon.
    pub async fn pause(&self, paused: bool) -> Result<(), history::Error> {
        let before = self.state().pause;
        let resumed_at = match before.paused && !paused {
            true => Some(self.clock.now()),
            false => before.resumed_at,
        };
        let pause = Pause { paused, resumed_at };
        self.runner.history.set_pause(pause).await?;
        {
            let mut state = self.state();
            (state.pause, state.pause_assumed) = (pause, false);
        }
        self.metrics.paused.set(f64::from(u8::from(paused)));
        tracing::warn!(
            "scheduled runs are {}",
            if paused {
                "paused: nothing runs on schedule until `microglia resume`"
            } else {
                "resumed"
            }
        );
        self.refresh_due();
        Ok(())
    }

    pub fn is_paused(&self) -> bool {
        self.state().pause.paused
    }

    /// The jobs as `jobs --json` lists them.
    pub async fn job_list(&self) -> Result<Vec<ListedJob>, history::Error> {
        let last_runs = self.runner.history.last_runs().await?;
        let specs: Vec<JobSpec> =
            self.state().jobs.values().map(|entry| (*entry.spec).clone()).collect();
        Ok(job_list(&specs, last_runs, self.clock.now()))
    }

    /// What runs next, in words.
    pub fn next_in_words(&self) -> String {
        let first = self.agenda().first();
        let (count, running, paused) = {
            let state = self.state();
            let running = state.jobs.values().filter(|entry| entry.running.is_some()).count();
            (state.jobs.len(), running, state.pause.paused)
        };
        let next = match first {
            _ if paused => "paused".to_owned(),
            Some(due) => {
                format!("next {} at {}", due.job, crate::values::clock::format_time(due.occurrence))
            }
            None => "nothing scheduled".to_owned(),
        };
        let jobs = crate::values::text::format_count(count as u64, "job", "jobs");
        format!("{jobs}, {running} running, {next}")
    }

    /// Starts nothing more, ends runs at their next change boundary and, after `grace`, wherever they are.
    pub async fn drain(&self, grace: Duration) {
        let stops: Vec<Stop> = {
            let state = self.state();
            self.draining.cancel();
            state
                .jobs
                .values()
                .filter_map(|entry| entry.running.as_ref())
                .chain(state.leaving.values())
                .map(|running| running.stop.clone())
                .collect()
        };
        self.tasks.close();
        if !stops.is_empty() {
            tracing::info!(
                "{} under way: up to {} s to reach the end or the next change boundary",
                crate::values::text::format_count(stops.len() as u64, "run", "runs"),
                grace.as_secs()
            );
        }
        for stop in &stops {
            stop.at_boundary(Outcome::Interrupted);
        }
        if tokio::time::timeout(grace, self.tasks.wait()).await.is_err() {
            for stop in &stops {
                stop.now(Outcome::Interrupted, "when `shutdown_grace` was over");
            }
            let _ = tokio::time::timeout(LAST_WORDS, self.tasks.wait()).await;
        }
    }
}

fn entry<'a>(state: &'a mut State, job: &str) -> Result<&'a mut Entry, Refusal> {
    let names: Vec<String> = state.jobs.keys().cloned().collect();
    state.jobs.get_mut(job).ok_or_else(|| {
        Refusal::Unknown(unknown("job", job, &names.iter().map(String::as_str).collect::<Vec<_>>()))
    })
}
