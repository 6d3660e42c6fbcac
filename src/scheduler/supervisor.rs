//! The scheduler as the rest of the daemon sees it: a handle to the task that owns the jobs.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, broadcast, mpsc, oneshot};
use tokio_util::task::TaskTracker;

use super::agenda::{Agenda, Due};
use super::job_event::JobEvent;
use super::job_list::{ListedJob, job_list};
use super::job_view::JobView;
use super::lease_times::LeaseTimes;
use super::message::Message;
use super::owner::{Owner, Parts};
use super::recollection::{Recollection, Standings};
use super::request::{Adopted, Refusal, RunOverrides};
use crate::config::{Config, JobSpec};
use crate::history::{self, History, Others, Pause};
use crate::http::Transport;
use crate::observe::metrics::Metrics;
use crate::plan::report::{Event, Mode, Outcome, Report};
use crate::plan::round::Plans;
use crate::runner::round_files::{self, IdleFile};
use crate::runner::{Runner, Stop};
use crate::values::clock::{Clock, Timestamp};
use crate::values::text::format_count;

/// Runs jobs when they are due or requested. Used through an `Arc`.
pub struct Supervisor {
    messages: mpsc::UnboundedSender<Message>,
    runner: Runner,
    metrics: Arc<Metrics>,
    clock: Clock,
    pub agenda: Arc<Mutex<Agenda>>,
    pub(super) tasks: TaskTracker,
    events: broadcast::Sender<JobEvent>,
    /// Wakes the lease keeper.
    pub(super) wake_keeper: Arc<Notify>,
    /// Wakes who looks after plans that wait for a person.
    pub(super) tend_plans: Notify,
}

/// How far a subscriber to the events of all runs may fall behind before it misses some.
const EVENTS_KEPT: usize = 1024;
/// How long runs may take to record that they were interrupted.
pub const RECORD_TIMEOUT: Duration = Duration::from_secs(5);

impl Supervisor {
    /// The handle, and the task that has to be run for it to do anything.
    pub fn new(runner: Runner, metrics: Arc<Metrics>, clock: Clock) -> (Arc<Self>, Owner) {
        let (messages, received) = mpsc::unbounded_channel();
        let (agenda, tasks) = (Arc::<Mutex<Agenda>>::default(), TaskTracker::new());
        let (events, wake_keeper) = (broadcast::Sender::new(EVENTS_KEPT), Arc::<Notify>::default());
        let owner = Owner::new(Parts {
            runner: runner.clone(),
            metrics: Arc::clone(&metrics),
            clock: clock.clone(),
            agenda: Arc::clone(&agenda),
            tasks: tasks.clone(),
            messages: received,
            sender: messages.downgrade(),
            events: events.clone(),
            wake_keeper: Arc::clone(&wake_keeper),
        });
        let supervisor = Self {
            messages,
            runner,
            metrics,
            clock,
            agenda,
            tasks,
            events,
            wake_keeper,
            tend_plans: Notify::new(),
        };
        (Arc::new(supervisor), owner)
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Returns what the ticker calls with what is due.
    pub fn wakes(&self) -> impl Fn(Due) + Send + Sync + use<> {
        let messages = self.messages.clone();
        move |due| drop(messages.send(Message::Wake(due)))
    }

    pub(super) async fn ask<T>(
        &self,
        message: impl FnOnce(oneshot::Sender<T>) -> Message,
    ) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        let _ = self.messages.send(message(reply));
        answer.await.ok()
    }

    /// Adopts the first configuration, and applies what the history knows: a pause, interrupted runs, missed occurrences.
    pub async fn start(&self, config: &Arc<Config>) -> Result<Adopted, anyhow::Error> {
        let pause = self.runner.history.last_pause().await;
        self.recall_pause(pause).await;
        if self.runner.history.is_shared() {
            // With its first leases it learns the rest.
            let adopted = self.take_config(config).await?;
            self.describe().await;
            return Ok(adopted);
        }
        let ended = self.end_interrupted().await;
        let adopted = self.take_config(config).await?;
        self.describe().await;
        let _ = self.messages.send(Message::CountInterrupted { runs: ended });
        self.recall(false).await;
        Ok(adopted)
    }

    /// Starts new and changed jobs, retires removed ones, and leaves the others alone.
    ///
    /// A changed job's running run ends with the old definition; a removed job's run ends at its next change boundary.
    /// All or nothing: a homeserver that cannot be set up leaves everything as it was.
    pub async fn adopt(&self, config: &Arc<Config>) -> Result<Adopted, anyhow::Error> {
        let adopted = self.take_config(config).await?;
        self.recall(false).await;
        self.describe().await;
        Ok(adopted)
    }

    async fn take_config(&self, config: &Arc<Config>) -> Result<Adopted, anyhow::Error> {
        let taken = Arc::clone(config);
        let adopted = self
            .ask(|reply| Message::Adopt { config: taken, reply })
            .await
            .unwrap_or_else(|| Err(anyhow::anyhow!("the daemon is stopping")))?;
        self.remove_round_files(config).await;
        Ok(adopted)
    }

    /// Removes what is kept of rounds that no run continues; a job that still ends its run keeps it until the next time.
    async fn remove_round_files(&self, config: &Config) {
        let Some(dir) = &self.runner.dir else { return };
        let files = round_files::idle(dir).unwrap_or_else(|error| {
            tracing::warn!(target: "microglia::history", "cannot look for files of rounds in {}: {error}", dir.directory().display());
            Vec::new()
        });
        if files.is_empty() {
            return;
        }
        // Read after the files: a run that has ended in the meantime is in it.
        let rounds = self.runner.history.rounds().await.ok();
        for IdleFile { path, job, mode } in files {
            let continues = config.job(&job).is_some_and(|spec| {
                let rounds = spec.job.rounds();
                // A dry run of a job in apply mode previews the round of that mode.
                rounds.is_some_and(|rounds| rounds.plans == Plans::WholeList)
                    && (mode == Mode::Apply || mode == spec.common.mode)
            });
            let is_open = rounds.as_ref().is_none_or(|rounds| {
                rounds.get(&(job, mode)).is_some_and(|round| round.position.is_some())
            });
            if !continues || !is_open {
                round_files::remove_file(&path);
            }
        }
    }

    async fn specs(&self) -> Vec<Arc<JobSpec>> {
        self.ask(|reply| Message::Specs { reply }).await.unwrap_or_default()
    }

    /// Records the scheduled jobs in the history, and sends the owner what the history knows about them.
    async fn recall(&self, reopened: bool) {
        let recollection = match self.recollect(self.others()).await {
            Ok(recollection) => recollection,
            Err(error) => Recollection {
                known: usable(Err(error)),
                interrupted: usable(self.interrupted().await),
                plans: usable(self.runner.history.waiting_plans().await),
            },
        };
        self.tell_recollection(recollection, reopened).await;
    }

    pub(super) async fn tell_recollection(&self, recollection: Recollection, reopened: bool) {
        self.ask(|reply| Message::Recall { recollection, reopened, reply }).await;
    }

    fn others(&self) -> Others {
        match self.runner.history.is_shared() {
            true => Others::Keep,
            false => Others::Delete,
        }
    }

    pub(super) async fn recollect(&self, others: Others) -> Result<Recollection, history::Error> {
        let specs = self.specs().await;
        let scheduled: Vec<(String, String)> = specs
            .iter()
            .filter(|spec| spec.common.enabled)
            .filter_map(|spec| {
                let schedule = spec.schedule.as_ref()?.as_str();
                Some((spec.name.clone(), format!("{schedule} {}", spec.zone)))
            })
            .collect();
        let known = self.runner.history.upsert_schedules(&scheduled, others).await?;
        let plans = self.runner.history.waiting_plans().await?;
        Ok(Recollection { known, interrupted: self.interrupted().await?, plans })
    }

    /// The runs that were cut off for the first time.
    async fn interrupted(&self) -> Result<Vec<Report>, history::Error> {
        let history = &self.runner.history;
        let mut first = Vec::new();
        for run in history.interrupted().await? {
            let Some(occurrence) = run.scheduled_for else { continue };
            if history.interruptions(&run.job, occurrence).await? <= 1 {
                first.push(run);
            }
        }
        Ok(first)
    }

    /// Opens a history that is not open; runs that were refused in the meantime count as missed.
    pub async fn open_history(&self) -> Result<(), history::Error> {
        let history = &self.runner.history;
        let mut recalled = None;
        history.open_now(|pause| recalled = Some(pause)).await?;
        tracing::info!(target: "microglia::scheduler", "the history is open: runs in apply mode are no longer refused");
        if let Some(pause) = recalled {
            let pause = self.recall_pause(pause).await;
            if pause.paused {
                // It may be another history than the one in which that was written.
                usable(history.set_pause(pause).await);
            }
        }
        let ended = self.end_interrupted().await;
        self.describe().await;
        let _ = self.messages.send(Message::CountInterrupted { runs: ended });
        self.recall(true).await;
        Ok(())
    }

    async fn recall_pause(&self, pause: Result<Pause, history::Error>) -> Pause {
        let pause = pause.map_err(|error| error.to_string());
        self.ask(|reply| Message::RecallPause { pause, reply }).await.unwrap_or_default()
    }

    /// Marks every run as interrupted that ended with its process.
    async fn end_interrupted(&self) -> Vec<Report> {
        usable(self.try_end_interrupted().await)
    }

    pub(super) async fn try_end_interrupted(&self) -> Result<Vec<Report>, history::Error> {
        let Some(dir) = &self.runner.dir else { return Ok(Vec::new()) };
        let ended = self.runner.history.end_interrupted(dir).await?;
        for run in &ended {
            let (job, id) = (&run.job, run.id.unwrap_or_default());
            let message = run.message.as_deref().unwrap_or_default();
            tracing::warn!(target: "microglia::run", %job, homeserver = %run.homeserver, run = id, outcome = "interrupted", "{job}: run {id} interrupted: {message}");
        }
        Ok(ended)
    }

    pub(super) fn count_interrupted(&self, runs: Vec<Report>) {
        let _ = self.messages.send(Message::CountInterrupted { runs });
    }

    /// Shows how many replicas have another configuration.
    pub(super) fn show_differing(&self, replicas: usize) {
        self.metrics.differing_replicas.set(f64::from(u32::try_from(replicas).unwrap_or(u32::MAX)));
    }

    pub(super) fn history(&self) -> &History {
        &self.runner.history
    }

    /// Takes over whether scheduled runs are paused where another replica was told.
    pub(super) async fn follow_pause(&self, recorded: impl AsyncFnOnce() -> Option<Pause>) {
        let before = self.ask(|reply| Message::GetPause { reply }).await;
        let Some(pause) = recorded().await else { return };
        let after = self.ask(|reply| Message::GetPause { reply }).await;
        // One that was set here meanwhile is newer than what was read.
        if before == after && after.is_some_and(|known| known.paused != pause.paused) {
            self.ask(|reply| Message::SetPause { pause, reply }).await;
        }
    }

    /// Gives each job its series in the metrics, with what the history knows about it.
    pub(super) async fn describe(&self) {
        let history = &self.runner.history;
        let needed = self.ask(|reply| Message::NeedsStandings { reply }).await == Some(true);
        let standings = match needed && history.problem().is_none() {
            true => Some(Standings {
                last_runs: usable(history.last_runs().await),
                by_mode: usable(history.standings().await),
                rounds: usable(history.rounds().await),
            }),
            false => None,
        };
        self.ask(|reply| Message::Describe { standings, reply }).await;
    }

    /// Starts a run if this replica runs the job; its events come out of the channel, which closes when the run has ended.
    pub(super) async fn run_here(
        &self,
        job: &str,
        overrides: RunOverrides,
    ) -> Result<mpsc::UnboundedReceiver<Event>, Refusal> {
        let job = job.to_owned();
        let reply = self.ask(|reply| Message::Run { job, overrides, reply }).await;
        reply.unwrap_or(Err(Refusal::Draining))
    }

    /// Returns the events of all runs from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<JobEvent> {
        self.events.subscribe()
    }

    /// Ends a job's run at its next change boundary, or drops its waiting run, if this replica runs the job.
    pub(super) async fn cancel_here(&self, job: &str, by: &str) -> Result<(), Refusal> {
        let (job, by) = (job.to_owned(), by.to_owned());
        let reply = self.ask(|reply| Message::Cancel { job, by, reply }).await;
        reply.unwrap_or(Err(Refusal::Draining))
    }

    /// Stops or restarts all scheduled runs, beyond a restart of the daemon.
    pub async fn pause(&self, paused: bool) -> Result<(), history::Error> {
        let before = self.ask(|reply| Message::GetPause { reply }).await.unwrap_or_default();
        let resumed_at = match before.paused && !paused {
            true => Some(self.clock.now()),
            false => before.resumed_at,
        };
        let pause = Pause { paused, resumed_at };
        self.runner.history.set_pause(pause).await?;
        self.ask(|reply| Message::SetPause { pause, reply }).await;
        Ok(())
    }

    /// The jobs as `jobs --json` lists them, on one homeserver or on all.
    pub async fn job_list(
        &self,
        homeserver: Option<&str>,
    ) -> Result<Vec<ListedJob>, history::Error> {
        let history = &self.runner.history;
        let mut last_runs = history.last_runs().await?;
        for run in last_runs.values_mut().filter(|run| run.outcome.is_none()) {
            // The lease tells whether a run on another replica is in progress.
            if history.is_under_way(run.id.unwrap_or_default()).await? == Some(false) {
                *run = history.as_interrupted(run.clone()).await?;
            }
        }
        let replicas = history.replicas(LeaseTimes::default().ttl).await?;
        let addresses = self.ask(|reply| Message::Addresses { reply }).await.unwrap_or_default();
        let specs = self.specs().await;
        let listed = specs
            .iter()
            .map(Arc::as_ref)
            .filter(|spec| homeserver.is_none_or(|homeserver| spec.homeserver == homeserver));
        let waits = self.ask(|reply| Message::Waits { reply }).await.unwrap_or_default();
        Ok(job_list(listed, last_runs, waits, &(replicas, addresses), self.clock.now()))
    }

    /// The jobs as the status page shows them, sorted by name.
    pub async fn views(&self) -> Vec<JobView> {
        self.ask(|reply| Message::Views { reply }).await.unwrap_or_default()
    }

    /// The connection to a homeserver; `None` where it is not configured, or another replica works on it.
    pub async fn homeserver(&self, name: &str) -> Option<Arc<Transport>> {
        let name = name.to_owned();
        self.ask(|reply| Message::Homeserver { name, reply }).await.flatten()
    }

    /// Whether scheduled runs are paused.
    pub async fn is_paused(&self) -> bool {
        self.ask(|reply| Message::GetPause { reply }).await.unwrap_or_default().paused
    }

    /// What runs next, in words.
    pub async fn status(&self) -> String {
        self.ask(|reply| Message::Status { reply }).await.unwrap_or_default()
    }

    /// The metrics as text.
    pub fn metrics_text(&self, ticked: Timestamp) -> Result<String, prometheus::Error> {
        self.metrics.text(ticked, self.runner.history.write_errors())
    }

    /// Probes every homeserver, one shortly after the other; the metrics keep the results.
    pub fn probe_all(&self) {
        let _ = self.messages.send(Message::ProbeAll);
    }

    /// Probes the homeserver whose turn it is, and returns how many there are.
    pub async fn probe_next(&self) -> usize {
        self.ask(|reply| Message::ProbeNext { reply }).await.unwrap_or_default()
    }

    /// Starts no more runs, ends active ones at their next change boundary and, after `grace`, immediately.
    pub async fn drain(&self, grace: Duration) {
        let stops: Vec<Stop> = self.ask(|reply| Message::Drain { reply }).await.unwrap_or_default();
        self.tasks.close();
        if !stops.is_empty() {
            tracing::info!(
                target: "microglia::scheduler",
                "stopping {}: up to {} s to reach the end or the next change boundary",
                format_count(stops.len() as u64, "run", "runs"),
                grace.as_secs()
            );
        }
        for stop in &stops {
            stop.at_boundary(Outcome::Interrupted);
        }
        if tokio::time::timeout(grace, self.tasks.wait()).await.is_err() {
            for stop in &stops {
                stop.now(Outcome::Interrupted, "when `shutdown_grace` expired");
            }
            let _ = tokio::time::timeout(RECORD_TIMEOUT, self.tasks.wait()).await;
        }
        let written = self.ask(|reply| Message::Flush { reply });
        let _ = tokio::time::timeout(RECORD_TIMEOUT, written).await;
    }
}

/// A history that cannot be used keeps no schedule from running; it is counted, logged, and shown in `/readyz`.
fn usable<T: Default>(result: Result<T, history::Error>) -> T {
    result.unwrap_or_else(|error| {
        tracing::error!(target: "microglia::scheduler", "cannot use the history: {error}");
        T::default()
    })
}
