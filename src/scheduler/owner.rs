//! The one task that owns the state of every job: it takes messages, decides, and carries out what was decided.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, broadcast, mpsc};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::agenda::{Agenda, Due};
use super::held::{Handover, Leases};
use super::homeservers::Homeservers;
use super::job_event::JobEvent;
use super::job_list::ListedWait;
use super::job_state::{
    Decision, Ending, Event as StateEvent, Interrupted, JobState, Now, Recalled, Start, Timing, Why,
};
use super::job_view::JobView;
use super::message::{ApprovedRun, Listener, Message, RunReply};
use super::recollection::Recollection;
use super::request::{Refusal, RunOverrides};
use super::run_task::RunTask;
use super::watermarks::{Remember, write_watermarks};
use crate::config::JobSpec;
use crate::history::Pause;
use crate::observe::metrics::Metrics;
use crate::plan::report::{Event, Trigger};
use crate::runner::{HomeserverHandle, RunParams, Runner, Stop};
use crate::values::clock::{Clock, Timestamp, format_time};
use crate::values::duration::HumanDuration;
use crate::values::fingerprint::Fingerprint;
use crate::values::text::{format_count, unknown};

/// Owns the jobs. Runs until every [`super::supervisor::Supervisor`] is gone.
pub struct Owner {
    pub(super) runner: Runner,
    pub(super) metrics: Arc<Metrics>,
    pub(super) clock: Clock,
    pub(super) agenda: Arc<Mutex<Agenda>>,
    pub(super) tasks: TaskTracker,
    pub(super) messages: mpsc::UnboundedReceiver<Message>,
    /// For the runs, which send their events. It does not keep the owner alive.
    pub(super) sender: mpsc::WeakUnboundedSender<Message>,
    /// Boxed: the nodes of a map that is filled in order stay half empty.
    pub(super) jobs: BTreeMap<String, Box<Entry>>,
    /// Jobs that were removed, until their runs end.
    pub(super) leaving: BTreeMap<String, Box<Entry>>,
    pub(super) homeservers: Homeservers,
    pub(super) pause: Pause,
    /// Whether the pause state could not be read and is only assumed.
    pub(super) pause_assumed: bool,
    pub(super) draining: bool,
    /// `None` where nobody shares the history.
    pub(super) leases: Option<Leases>,
    pub(super) handover: Handover,
    /// The fingerprint of all jobs and homeservers.
    pub(super) config: String,
    /// For subscribers to the events of all runs.
    events: broadcast::Sender<JobEvent>,
    pub(super) remember: mpsc::UnboundedSender<Remember>,
}

/// A job, its state, and its run.
pub(super) struct Entry {
    pub spec: Arc<JobSpec>,
    pub fingerprint: Fingerprint,
    pub homeserver: HomeserverHandle,
    /// Since when the job is known with its present schedule.
    pub since: Timestamp,
    pub state: JobState,
    pub running: Option<Running>,
    /// The overrides of a requested run, until it is started.
    requested: Option<(RunOverrides, Listener)>,
    /// The approved plan, until the run that applies it is started, and who waits for that.
    pub(super) approved: Option<(ApprovedRun, Option<Listener>)>,
    /// When a run was last started to apply one: one that cannot begin is not tried all the time.
    pub(super) approved_tried_at: Option<Timestamp>,
}

pub(super) struct Running {
    pub stop: Stop,
    /// The address of the homeserver that it works on, whatever a reload makes of the job.
    pub address: String,
    /// `None` before it is recorded.
    pub run: Option<i64>,
    /// Whether its `Started` event has arrived.
    pub started: bool,
}

/// What an owner is made of.
pub(super) struct Parts {
    pub runner: Runner,
    pub metrics: Arc<Metrics>,
    pub clock: Clock,
    pub agenda: Arc<Mutex<Agenda>>,
    pub tasks: TaskTracker,
    pub messages: mpsc::UnboundedReceiver<Message>,
    pub sender: mpsc::WeakUnboundedSender<Message>,
    pub events: broadcast::Sender<JobEvent>,
    pub wake_keeper: Arc<Notify>,
}

impl Owner {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { runner, metrics, clock, agenda, tasks, messages, sender, events, wake_keeper } =
            parts;
        let is_shared = runner.history.is_shared();
        Self {
            runner,
            metrics,
            clock,
            agenda,
            tasks,
            messages,
            sender,
            events,
            // Until it runs nobody listens, and nothing is decided.
            remember: mpsc::unbounded_channel().0,
            jobs: BTreeMap::new(),
            leaving: BTreeMap::new(),
            homeservers: Homeservers::default(),
            pause: Pause::default(),
            pause_assumed: false,
            draining: false,
            leases: is_shared.then(Leases::default),
            handover: Handover { wake_keeper, ..Handover::default() },
            config: String::new(),
        }
    }

    /// Takes messages until nobody can send any.
    pub async fn run(mut self) {
        let (remember, watermarks) = mpsc::unbounded_channel();
        self.remember = remember;
        let mut writer = AbortOnDropHandle::new(tokio::spawn(write_watermarks(
            self.runner.history.clone(),
            watermarks,
        )));
        loop {
            tokio::select! {
                message = self.messages.recv() => match message {
                    Some(message) => self.take(message),
                    None => return,
                },
                // Without it a restart would run again what was skipped.
                _ = &mut writer => {
                    tracing::error!(target: "microglia::scheduler", "a bug in microglia, please report it: watermarks are no longer written");
                    return;
                }
            }
        }
    }

    #[expect(clippy::too_many_lines, reason = "an arm for each message")]
    fn take(&mut self, message: Message) {
        match message {
            Message::Wake(due) => self.wake(&due),
            Message::Adopt { config, reply } => drop(reply.send(self.adopt(&config))),
            Message::Recall { recollection, reopened, reply } => {
                self.recall(&recollection, reopened);
                let _ = reply.send(());
            }
            Message::RecallPause { pause, reply } => {
                self.recall_pause(pause);
                let _ = reply.send(self.pause);
            }
            Message::SetPause { pause, reply } => {
                self.set_pause(pause);
                let _ = reply.send(());
            }
            Message::GetPause { reply } => drop(reply.send(self.pause)),
            Message::Specs { reply } => {
                let specs = self.jobs.values().map(|entry| Arc::clone(&entry.spec));
                let _ = reply.send(specs.collect());
            }
            Message::Views { reply } => drop(reply.send(self.views())),
            Message::Waits { reply } => drop(reply.send(self.waits())),
            Message::Addresses { reply } => {
                let addresses = self.homeservers.addresses();
                let addresses = addresses.map(|(name, address)| (name.into(), address.into()));
                let _ = reply.send(addresses.collect());
            }
            Message::Describe { standings, reply } => {
                self.describe(standings);
                let _ = reply.send(());
            }
            Message::NeedsStandings { reply } => drop(reply.send(self.needs_standings())),
            Message::CountInterrupted { runs } => self.count_interrupted(&runs),
            Message::Run { job, overrides, reply } => {
                let _ = reply.send(self.request(&job, overrides));
            }
            Message::PlanDefinition { job, reply } => {
                let _ = reply.send(self.plan_definition(&job));
            }
            Message::Approved { job, plan, reply } => {
                let _ = reply.send(self.approved(&job, plan));
            }
            Message::WaitingPlans { plans, reply } => {
                let _ = reply.send(self.waiting_plans(&plans));
            }
            Message::Cancel { job, by, reply } => drop(reply.send(self.cancel(&job, &by))),
            Message::Event { job, event, listener } => {
                self.on_run_event(&job, event, listener.as_ref());
            }
            Message::Ended { job, ending, listener } => {
                self.ended(&job, ending);
                drop(listener);
            }
            Message::Wanted { reply } => drop(reply.send(self.wanted())),
            Message::Leases { leases, reply } => {
                self.take_leases(leases);
                let _ = reply.send(());
            }
            Message::StandDown { surplus, reply } => drop(reply.send(self.stand_down(surplus))),
            Message::Homeserver { name, reply } => drop(reply.send(self.homeserver(&name))),
            Message::ProbeAll => self.homeservers.probe_all(&self.metrics, &self.clock),
            Message::ProbeNext { reply } => {
                let _ = reply.send(self.homeservers.probe_next(&self.metrics, &self.clock));
            }
            Message::Status { reply } => drop(reply.send(self.status())),
            Message::Drain { reply } => drop(reply.send(self.drain())),
            Message::Flush { reply } => drop(self.remember.send(Remember::Flush(reply))),
        }
    }

    pub(super) fn agenda(&self) -> MutexGuard<'_, Agenda> {
        self.agenda.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self, entry: &Entry) -> Now {
        Now {
            time: self.clock.now(),
            paused: self.pause.paused,
            draining: self.draining,
            standby: self.is_standby(entry),
        }
    }

    fn wake(&mut self, due: &Due) {
        if due.set_back {
            let all: Vec<String> = self.jobs.keys().cloned().collect();
            for job in all {
                self.on(&job, StateEvent::ClockSetBack);
            }
        }
        for job in &due.jobs {
            self.on(job, StateEvent::Wake);
        }
    }

    fn wake_all(&mut self) {
        let all: Vec<String> = self.jobs.keys().cloned().collect();
        for job in all {
            self.on(&job, StateEvent::Wake);
        }
    }

    /// Has a job decide what follows from an event, and carries that out.
    pub(super) fn on(&mut self, job: &str, event: StateEvent) {
        self.react(job, event, self.draining);
    }

    /// As [`on`](Self::on); `draining` starts nothing.
    fn react(&mut self, job: &str, event: StateEvent, draining: bool) {
        let Some(entry) = self.jobs.get(job).or_else(|| self.leaving.get(job)) else { return };
        let now = Now { draining, ..self.now(entry) };
        let entry = match self.jobs.get_mut(job) {
            Some(entry) => entry,
            None => match self.leaving.get_mut(job) {
                Some(entry) => entry,
                None => return,
            },
        };
        let (state, decisions) = entry.state.clone().decide(now, event);
        entry.state = state;
        let wake_at = entry.state.wake_at(now.time);
        self.agenda().set(job, wake_at);
        for decision in decisions {
            self.carry_out(job, decision);
        }
        self.publish(job);
    }

    fn carry_out(&mut self, job: &str, decision: Decision) {
        match decision {
            Decision::Start(start) => self.start(job, start),
            Decision::Skip(reason) => {
                tracing::debug!(target: "microglia::scheduler", job, %reason, "{job}: occurrence skipped: {reason}");
                self.metrics
                    .jobs
                    .update(job, |series| *series.skipped.entry(reason).or_default() += 1);
            }
            Decision::Remember(until) => {
                let _ = self.remember.send(Remember::Until(job.to_owned(), until));
            }
            Decision::Missed { occurrence, opens } => {
                let when = opens
                    .map(|opens| format!(" when its window opens at {}", format_time(opens)))
                    .unwrap_or_default();
                tracing::info!(
                    target: "microglia::scheduler",
                    job,
                    "{job}: the occurrence of {} was missed or interrupted and will be caught up{when}",
                    format_time(occurrence)
                );
            }
            Decision::GivenUp(Why::Redefined) => tracing::info!(
                target: "microglia::scheduler",
                job,
                "{job}: waiting run dropped because the job was disabled or rescheduled"
            ),
            // Who cancels logs it and stops the run, because only there it is known by whom.
            Decision::Stop | Decision::GivenUp(Why::Cancelled) => {}
        }
    }

    fn start(&mut self, job: &str, start: Start) {
        let Some(entry) = self.jobs.get_mut(job) else { return };
        let mut params = RunParams {
            trigger: start.trigger,
            scheduled_for: start.occurrence,
            attempts_made: start.attempts_made,
            ..RunParams::manual(&entry.spec)
        };
        let mut listener = None;
        if start.trigger == Trigger::Manual
            && let Some((overrides, asker)) = entry.requested.take()
        {
            overrides.apply(&mut params);
            listener = Some(asker);
        }
        if start.plan.is_some() {
            let Some((approved, asker)) = entry.approved.take() else {
                return self.on(job, StateEvent::Ended(Ending::Finished));
            };
            entry.approved_tried_at = Some(self.clock.now());
            let ApprovedRun { plan, max_changes } = approved;
            params = RunParams::of_approved(&entry.spec, plan, max_changes);
            listener = asker;
        }
        let stop = Stop::default();
        let address = entry.address().to_owned();
        entry.running = Some(Running { stop: stop.clone(), address, run: None, started: false });
        let Some(messages) = self.sender.upgrade() else { return };
        let run = RunTask {
            runner: self.runner.clone(),
            spec: Arc::clone(&entry.spec),
            homeserver: entry.homeserver.clone(),
            params,
            stop,
            listener,
            messages,
            events: self.events.clone(),
        };
        self.tasks.spawn(run.carry_out());
    }

    fn request(&mut self, job: &str, overrides: RunOverrides) -> RunReply {
        if self.draining {
            return Err(Refusal::Draining);
        }
        let is_elsewhere = self.jobs.get(job).is_some_and(|entry| self.is_elsewhere(entry));
        let entry = entry(&mut self.jobs, job)?;
        if entry.state.is_running() && !is_elsewhere {
            let run = entry.running.as_ref().and_then(|running| running.run);
            return Err(Refusal::Running { job: job.to_owned(), run });
        }
        if overrides.fingerprint.as_ref().is_some_and(|expected| *expected != entry.fingerprint) {
            return Err(Refusal::Edited(job.to_owned()));
        }
        if let Some(problem) = overrides.problem(&entry.spec) {
            return Err(Refusal::Usage(problem));
        }
        if is_elsewhere {
            return Err(entry.elsewhere());
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        entry.requested = Some((overrides, sender));
        self.on(job, StateEvent::Requested);
        Ok(receiver)
    }

    fn cancel(&mut self, job: &str, by: &str) -> Result<(), Refusal> {
        let is_elsewhere = self.jobs.get(job).is_some_and(|entry| self.is_elsewhere(entry));
        let entry = entry(&mut self.jobs, job)?;
        if let Some(running) = &entry.running {
            tracing::info!(target: "microglia::scheduler", job, by, "{job}: run cancelled by {by}");
            running.stop.cancelled_by(by);
        } else if entry.state.is_waiting() {
            tracing::info!(target: "microglia::scheduler", job, by, "{job}: waiting run cancelled by {by}");
        } else if is_elsewhere {
            return Err(entry.elsewhere());
        } else {
            return Err(Refusal::NotRunning(job.to_owned()));
        }
        self.on(job, StateEvent::Cancelled);
        Ok(())
    }

    /// Handles an event of a run.
    fn on_run_event(&mut self, job: &str, event: Event, listener: Option<&Listener>) {
        if let Event::Started(report) = &event {
            if let Some(running) = self.running(job) {
                (running.started, running.run) = (true, report.id);
            }
            self.on(job, StateEvent::Started { recorded: report.id.is_some() });
        }
        self.observe(job, &event);
        if self.events.receiver_count() > 0 {
            let _ = self.events.send(JobEvent { job: job.to_owned(), event: event.clone() });
        }
        if let Some(listener) = listener {
            let _ = listener.send(event);
        }
    }

    fn running(&mut self, job: &str) -> Option<&mut Running> {
        let entry = match self.jobs.get_mut(job) {
            Some(entry) => Some(entry),
            None => self.leaving.get_mut(job),
        };
        entry?.running.as_mut()
    }

    fn ended(&mut self, job: &str, ending: Ending) {
        if self.leaving.remove(job).is_some() && !self.jobs.contains_key(job) {
            return;
        }
        if let Some(entry) = self.jobs.get_mut(job) {
            entry.running = None;
        }
        let Some(address) = self.to_leave_after(job) else {
            return self.on(job, StateEvent::Ended(ending));
        };
        // What was skipped is remembered before the next holder reads it, and nothing more starts.
        self.react(job, StateEvent::Ended(ending), true);
        self.leave(&address, false);
    }

    fn recall(&mut self, recollection: &Recollection, reopened: bool) {
        let Recollection { known, interrupted, plans } = recollection;
        self.recall_approved(plans);
        let jobs: Vec<String> = self.jobs.keys().cloned().collect();
        for job in jobs {
            let (Some(entry), Some(known)) = (self.jobs.get_mut(&job), known.get(&job)) else {
                continue;
            };
            entry.since = known.since;
            if !reopened && !entry.state.is_unknown() {
                continue;
            }
            let spec = &entry.spec;
            let interrupted = interrupted
                .iter()
                .find(|run| run.job == job && run.mode == spec.common.mode)
                // What must not be sent twice may have been sent when the run was cut off.
                .filter(|run| spec.job.is_repeatable() || run.done + run.failed == 0)
                .and_then(|run| {
                    let attempts = run.attempts.min(spec.common.retries.attempts - 1);
                    Some(Interrupted { occurrence: run.scheduled_for?, attempts })
                });
            let recalled = Recalled { since: known.since, watermark: known.watermark, interrupted };
            self.on(&job, StateEvent::Recalled(recalled));
        }
    }

    /// Applies the recorded pause state. If it cannot be read, runs count as paused, because someone may have stopped something destructive.
    fn recall_pause(&mut self, pause: Result<Pause, String>) {
        match pause {
            Ok(pause) => {
                if pause.paused {
                    tracing::warn!(
                        target: "microglia::scheduler",
                        "scheduled runs have been paused since before the start: nothing runs on schedule until `microglia resume`"
                    );
                }
                if std::mem::take(&mut self.pause_assumed) {
                    self.pause = pause;
                } else {
                    // A pause that was requested since the start stays.
                    self.pause.paused |= pause.paused;
                    self.pause.resumed_at = self.pause.resumed_at.max(pause.resumed_at);
                }
            }
            Err(error) => {
                tracing::error!(
                    target: "microglia::scheduler",
                    "cannot read the pause state ({error}); assuming paused: nothing runs on schedule until it can be read, or `microglia resume`"
                );
                self.pause_assumed |= !self.pause.paused;
                self.pause.paused = true;
            }
        }
        self.metrics.paused.set(f64::from(u8::from(self.pause.paused)));
    }

    fn set_pause(&mut self, pause: Pause) {
        (self.pause, self.pause_assumed) = (pause, false);
        self.metrics.paused.set(f64::from(u8::from(pause.paused)));
        let state = match pause.paused {
            true => "paused: nothing runs on schedule until `microglia resume`",
            false => "resumed",
        };
        tracing::warn!(target: "microglia::scheduler", "scheduled runs are {state}");
        self.wake_all();
        self.refresh_due();
    }

    fn views(&self) -> Vec<JobView> {
        let now = self.clock.now();
        let view = |entry: &Entry| JobView {
            spec: Arc::clone(&entry.spec),
            fingerprint: entry.fingerprint.clone(),
            next: entry.state.next(),
            wait: entry.state.waiting(now).map(Into::into),
            is_running: entry.running.is_some(),
        };
        self.jobs.values().map(|entry| view(entry)).collect()
    }

    fn waits(&self) -> HashMap<String, ListedWait> {
        let now = self.clock.now();
        let waiting = self
            .jobs
            .iter()
            .filter_map(|(job, entry)| Some((job.clone(), entry.state.waiting(now)?.into())));
        waiting.collect()
    }

    /// What runs next, in words.
    fn status(&self) -> String {
        let running = self.jobs.values().filter(|entry| entry.running.is_some()).count();
        let first =
            self.jobs.iter().filter_map(|(job, entry)| Some((entry.state.next()?, job))).min();
        let next = match first {
            _ if self.pause.paused => "paused".to_owned(),
            Some((occurrence, job)) => format!("next {job} at {}", format_time(occurrence)),
            None => "nothing scheduled".to_owned(),
        };
        let jobs = format_count(self.jobs.len() as u64, "job", "jobs");
        format!("{jobs}, {running} running, {next}")
    }

    fn drain(&mut self) -> Vec<Stop> {
        self.draining = true;
        self.handover.wake_keeper.notify_one();
        let entries = self.jobs.values().chain(self.leaving.values());
        let running = entries.filter_map(|entry| entry.running.as_ref());
        running.map(|running| running.stop.clone()).collect()
    }
}

impl Entry {
    /// The address of its homeserver, to which leases belong.
    pub(super) fn address(&self) -> &str {
        self.homeserver.transport.address.as_str()
    }

    /// Has another replica asked instead of this one.
    pub(super) fn elsewhere(&self) -> Refusal {
        let (homeserver, fingerprint) = (self.address().to_owned(), self.fingerprint.clone());
        Refusal::Elsewhere { homeserver, fingerprint }
    }

    pub(super) fn new(
        spec: &JobSpec,
        fingerprint: Fingerprint,
        homeserver: HomeserverHandle,
        now: Timestamp,
    ) -> Self {
        Self {
            spec: Arc::new(spec.clone()),
            fingerprint,
            homeserver,
            since: now,
            state: JobState::new(timing(spec), now),
            running: None,
            requested: None,
            approved: None,
            approved_tried_at: None,
        }
    }
}

/// The part of a definition that determines when the job runs.
pub(super) fn timing(spec: &JobSpec) -> Timing {
    let splay = chrono::TimeDelta::from_std(spec.splay()).unwrap_or_default();
    Timing {
        schedule: spec.schedule.clone(),
        zone: spec.zone,
        window: spec.common.window,
        enabled: spec.common.enabled,
        overlap: spec.common.overlap,
        catch_up: spec.common.catch_up.0.map(HumanDuration::as_chrono),
        splay,
    }
}

pub(super) fn entry<'a>(
    jobs: &'a mut BTreeMap<String, Box<Entry>>,
    job: &str,
) -> Result<&'a mut Entry, Refusal> {
    if !jobs.contains_key(job) {
        let names: Vec<&str> = jobs.keys().map(String::as_str).collect();
        return Err(Refusal::Unknown(unknown("job", job, &names)));
    }
    jobs.get_mut(job).map(Box::as_mut).ok_or_else(|| Refusal::NotRunning(job.to_owned()))
}
