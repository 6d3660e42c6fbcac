//! One run: attempts, guards, limits, changes, and the report.

mod changes;
mod settle;

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use settle::Settle;

use crate::change::{Plan, Work};
use crate::clock::{Clock, Timestamp};
use crate::config::JobSpec;
use crate::history::{self, History};
use crate::job::{Context, Failure, Memory};
use crate::keys::Limit;
use crate::length::spoken;
use crate::report::{CHANGES_SHOWN, ChangeRecord, Event, Mode, Outcome, Report, State, Trigger};
use crate::state_dir::StateDir;
use crate::synapse::{self, Reader, Transport};
use crate::words::{counted, grouped};

/// Runs jobs, one run of a job at a time in the whole state directory.
#[derive(Debug, Clone)]
pub struct Runner {
    pub history: History,
    /// `None` where there is no state directory to use: only a dry run goes on then.
    pub dir: Option<StateDir>,
    pub clock: Clock,
    pub settle: Settle,
}

/// How this run differs from what the config says.
#[derive(Debug, Clone)]
pub struct Order {
    pub mode: Mode,
    pub max_changes: Limit<u32>,
    pub trigger: Trigger,
    pub scheduled_for: Option<Timestamp>,
    /// Attempts of the interrupted run that this one goes on with.
    pub attempts_made: u32,
}

/// A homeserver as runs use it.
#[derive(Debug, Clone)]
pub struct Place {
    pub transport: Arc<Transport>,
    pub places: Places,
    pub max_concurrent_requests: u32,
}

/// How many runs a homeserver takes at a time.
#[derive(Debug, Clone)]
pub enum Places {
    /// Shared by all runs of this process, which is the only one that runs: the daemon.
    Shared(Arc<Semaphore>),
    /// Shared by all processes, through locks in the state directory.
    Locks(u32),
}

/// Ends a run, at the next boundary between two changes or at once.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    at_boundary: CancellationToken,
    now: CancellationToken,
    outcome: Arc<OnceLock<Outcome>>,
}

pub type Listener = Arc<dyn Fn(Event) + Send + Sync>;

/// The job runs already.
#[derive(Debug, thiserror::Error)]
#[error("{job} is running already{}", run.map(|id| format!(" (run {id})")).unwrap_or_default())]
pub struct Busy {
    pub job: String,
    pub run: Option<i64>,
}

impl Stop {
    /// Ends the run between two changes. The first word counts: a run is `cancelled` or `interrupted`, not both.
    pub fn at_boundary(&self, outcome: Outcome) {
        let _ = self.outcome.set(outcome);
        self.at_boundary.cancel();
    }

    /// Ends the run without waiting for the change under way, whose fate is then unknown.
    pub fn now(&self, outcome: Outcome) {
        self.at_boundary(outcome);
        self.now.cancel();
    }

    pub fn is_asked(&self) -> bool {
        self.at_boundary.is_cancelled()
    }

    /// Sleeps, or until the run is to stop.
    pub async fn sleep(&self, wait: Duration) {
        let _ = tokio::time::timeout(wait, self.at_boundary.cancelled()).await;
    }

    pub fn outcome(&self) -> Option<Outcome> {
        self.at_boundary
            .is_cancelled()
            .then(|| self.outcome.get().copied().unwrap_or(Outcome::Cancelled))
    }
}

impl Order {
    /// What the config says, started by hand.
    pub fn manual(spec: &JobSpec) -> Self {
        Self {
            mode: spec.common.mode,
            max_changes: spec.common.max_changes,
            trigger: Trigger::Manual,
            scheduled_for: None,
            attempts_made: 0,
        }
    }
}

/// One run under way.
struct Run<'a> {
    runner: &'a Runner,
    spec: &'a JobSpec,
    order: &'a Order,
    reader: Reader,
    stop: &'a Stop,
    deadline: Instant,
    window_end: Option<Timestamp>,
    tell: Listener,
    concurrency: usize,
    report: Mutex<Report>,
    /// Sentences for the message, of the last attempt.
    notes: Mutex<Vec<String>>,
    /// Whether some target could be read and needs nothing.
    some_fine: AtomicBool,
    /// Targets of the last plan that could not be worked on.
    problems: AtomicU64,
    /// Whether a plan passed the guards.
    judged: AtomicBool,
    lost: Mutex<Vec<changes::Lost>>,
    /// Targets that a change skipped when it looked again, with their things.
    skipped: Mutex<Vec<(String, u64)>>,
    /// Whether it was told that answers take long.
    slow: AtomicBool,
}

/// How an attempt ended.
enum Ending {
    /// The plan was worked off, or only shown.
    Finished,
    /// The run was stopped between two changes.
    Stopped(Stopped),
    Refused(String),
    /// Nothing that trying again would mend.
    Failed(String),
    /// Something that may pass.
    Again {
        because: String,
        retry_after: Option<Duration>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stopped {
    Asked(Outcome),
    TimeLimit,
    Window,
}

/// The local clock may be this far from the homeserver's before a run that sends moments is refused.
const CLOCK_TOLERANCE: chrono::TimeDelta = chrono::TimeDelta::seconds(60);
/// How often to look whether another run made room.
const LOOK_FOR_PLACE: Duration = Duration::from_millis(250);
/// How often to look whether the window is over while something is waited for.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(1);

impl Runner {
    /// Runs a job to its end and reports; the report is complete whatever happened, even a panic.
    pub async fn run(
        &self,
        spec: &JobSpec,
        place: &Place,
        order: &Order,
        stop: &Stop,
        tell: Listener,
    ) -> Result<Report, Busy> {
        let locked = match self.dir.as_ref().map(|dir| dir.try_lock(&spec.name)) {
            Some(Ok(None)) => return Err(self.busy(&spec.name).await),
            Some(Ok(lock)) => Ok(lock),
            Some(Err(error)) => Err(history::Error::Io(error)),
            None => Ok(None),
        };
        let started_at = self.clock.now();
        let mut report = Report {
            id: None,
            job: spec.name.clone(),
            kind: spec.job.kind().name.to_owned(),
            homeserver: spec.homeserver.clone(),
            mode: order.mode,
            trigger: order.trigger,
            scheduled_for: order.scheduled_for,
            started_at: truncated(started_at),
            finished_at: None,
            attempts: order.attempts_made,
            outcome: None,
            message: None,
            planned: None,
            done: 0,
            failed: 0,
            skipped: 0,
            remaining: 0,
            bytes_planned: None,
            bytes_freed: None,
            sample: Vec::new(),
            changes: None,
        };
        let begun = match &locked {
            Ok(_) => self.begin(&mut report).await,
            // Without the job's lock nobody knows whether another run of it is at work.
            Err(error) if order.mode == Mode::Apply => Err(history::Error::NotKept(
                format!("the job's lock cannot be used ({error})").into(),
            )),
            Err(error) => {
                tracing::warn!(
                    "this dry run is not recorded: the job's lock cannot be used ({error})"
                );
                Ok(())
            }
        };
        tell(Event::Started(Box::new(report.clone())));
        let run = Run {
            runner: self,
            spec,
            order,
            reader: Reader::new(Arc::clone(&place.transport), self.clock.clone()),
            stop,
            deadline: Instant::now() + spec.common.time_limit.0,
            window_end: spec.common.window.map(|window| window.end_after(started_at, spec.zone)),
            tell: Arc::clone(&tell),
            concurrency: place.max_concurrent_requests as usize,
            report: Mutex::new(report),
            notes: Mutex::default(),
            some_fine: AtomicBool::new(false),
            problems: AtomicU64::new(0),
            judged: AtomicBool::new(false),
            lost: Mutex::default(),
            skipped: Mutex::default(),
            slow: AtomicBool::new(false),
        };
        let (outcome, message) = match begun {
            Ok(()) => run.to_the_end(&place.places).await,
            Err(error) => (
                Outcome::Refused,
                Some(format!(
                    "the history cannot be written, and what cannot be recorded is not done: {error}"
                )),
            ),
        };
        let report = run.close(outcome, message).await;
        tell(Event::Ended(Box::new(report.clone())));
        Ok(report)
    }

    async fn busy(&self, job: &str) -> Busy {
        let run = self
            .history
            .runs(Some(job), 1)
            .await
            .ok()
            .and_then(|runs| runs.into_iter().next())
            .filter(|run| run.outcome.is_none())
            .and_then(|run| run.id);
        Busy { job: job.to_owned(), run }
    }

    /// Opens the record of a run; a dry run goes on without one.
    async fn begin(&self, report: &mut Report) -> Result<(), history::Error> {
        let begun = match self.history.interrupt(&report.job).await {
            Ok(()) => self.history.begin(report).await,
            Err(error) => Err(error),
        };
        match begun {
            Ok(id) => report.id = Some(id),
            Err(error) if report.mode == Mode::Apply => return Err(error),
            Err(error) => tracing::warn!("this dry run is not recorded: {error}"),
        }
        Ok(())
    }
}

impl Run<'_> {
    fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells what happened, after a word about the pace where that has changed.
    fn tell(&self, event: Event) {
        let slow = self.reader.is_slow();
        if self.slow.swap(slow, Ordering::Relaxed) != slow {
            (self.tell)(Event::Slow(slow));
        }
        (self.tell)(event);
    }

    async fn to_the_end(&self, places: &Places) -> (Outcome, Option<String>) {
        let attempts = AssertUnwindSafe(self.attempts(places)).catch_unwind();
        tokio::select! {
            ended = attempts => ended.unwrap_or_else(|panic| (Outcome::Panicked, Some(format!("a bug in microglia, please report it: {}", panic_text(&*panic))))),
            () = self.stop.now.cancelled() => (self.stop.outcome().unwrap_or(Outcome::Cancelled), Some("stopped at once, without waiting for the change under way".to_owned())),
        }
    }

    async fn attempts(&self, places: &Places) -> (Outcome, Option<String>) {
        let retries = &self.spec.common.retries;
        loop {
            let attempt = {
                let mut report = self.report();
                report.attempts += 1;
                report.attempts
            };
            if attempt > self.order.attempts_made + 1 {
                let report = self.report().clone();
                // The count of attempts must outlive the program; a failure is met again at the next write.
                let _ = self.runner.history.save(&report).await;
            }
            let ending = match self.place(places).await {
                Ok(_place) => self.attempt().await,
                Err(ending) => ending,
            };
            let (because, retry_after) = match ending {
                Ending::Again { because, retry_after } => (because, retry_after),
                ending => return self.verdict(ending),
            };
            if attempt >= retries.attempts {
                return self.verdict(Ending::Failed(because));
            }
            let bound = retries
                .first_delay
                .0
                .saturating_mul(1 << (attempt - 1).min(20))
                .min(retries.max_delay.0);
            let wait = bound.mul_f64(fastrand::f64()).max(retry_after.unwrap_or_default());
            if Instant::now() + wait >= self.deadline {
                return self.verdict(Ending::Failed(format!(
                    "{because} (no time is left for another try)"
                )));
            }
            let failed = because.clone();
            self.tell(Event::Retrying {
                attempt: attempt + 1,
                wait_seconds: wait.as_secs(),
                because,
            });
            match self.pause(wait).await {
                Ok(()) => {}
                Err(Stopped::Window) => {
                    return self.verdict(Ending::Failed(format!(
                        "{failed} (the job's window ended before another try)"
                    )));
                }
                Err(stopped) => return self.verdict(Ending::Stopped(stopped)),
            }
            self.tell(Event::Resumed);
        }
    }

    /// Waits for one of the homeserver's places for runs; it is given back on drop.
    async fn place(&self, places: &Places) -> Result<Box<dyn Send>, Ending> {
        if let Some(place) = self.free_place(places)? {
            return Ok(place);
        }
        self.tell(Event::Waiting(format!("for another run on {} to end", self.spec.homeserver)));
        let place: Box<dyn Send> = match places {
            // In the order in which they came.
            Places::Shared(places) => tokio::select! {
                place = Arc::clone(places).acquire_owned() => Box::new(place),
                stopped = self.until_stopped() => return Err(Ending::Stopped(stopped)),
            },
            Places::Locks(_) => loop {
                self.pause(LOOK_FOR_PLACE).await.map_err(Ending::Stopped)?;
                if let Some(place) = self.free_place(places)? {
                    break place;
                }
            },
        };
        self.tell(Event::Resumed);
        Ok(place)
    }

    fn free_place(&self, places: &Places) -> Result<Option<Box<dyn Send>>, Ending> {
        match places {
            Places::Shared(places) => {
                let place = Arc::clone(places).try_acquire_owned().ok();
                Ok(place.map(|place| Box::new(place) as Box<dyn Send>))
            }
            Places::Locks(places) => self.locked_place(*places),
        }
    }

    /// Waits until the run has to end before its next change.
    async fn until_stopped(&self) -> Stopped {
        loop {
            if let Some(stopped) = self.stopped() {
                return stopped;
            }
            // The clock may be set, so that the end of the window is no moment that a timer knows.
            let look = match self.window_end {
                Some(_) => self.deadline.min(Instant::now() + LOOK_AT_CLOCK),
                None => self.deadline,
            };
            tokio::select! {
                () = self.stop.at_boundary.cancelled() => {}
                () = tokio::time::sleep_until(look) => {}
            }
        }
    }

    fn locked_place(&self, places: u32) -> Result<Option<Box<dyn Send>>, Ending> {
        let Some(dir) = &self.runner.dir else { return Ok(Some(Box::new(()))) };
        for place in 0..places {
            match dir.try_lock(&format!("homeserver-{}.{place}", self.spec.homeserver)) {
                Ok(Some(lock)) => return Ok(Some(Box::new(lock))),
                Ok(None) => {}
                Err(error) if self.order.mode == Mode::DryRun => {
                    tracing::warn!("the locks in the state directory cannot be used: {error}");
                    return Ok(Some(Box::new(())));
                }
                Err(error) => {
                    return Err(Ending::Refused(format!(
                        "the locks in the state directory cannot be used: {error}"
                    )));
                }
            }
        }
        Ok(None)
    }

    /// Sleeps, unless the run is to stop first.
    async fn pause(&self, wait: Duration) -> Result<(), Stopped> {
        self.wait_for(tokio::time::sleep(wait)).await
    }

    /// Waits for something that changes nothing, unless the run is to stop first.
    async fn wait_for<T>(&self, ready: impl Future<Output = T>) -> Result<T, Stopped> {
        let ready = tokio::select! {
            stopped = self.until_stopped() => return Err(stopped),
            ready = ready => ready,
        };
        match self.stopped() {
            Some(stopped) => Err(stopped),
            None => Ok(ready),
        }
    }

    /// Whether the run has to end before its next change.
    fn stopped(&self) -> Option<Stopped> {
        if let Some(outcome) = self.stop.outcome() {
            return Some(Stopped::Asked(outcome));
        }
        if Instant::now() >= self.deadline {
            return Some(Stopped::TimeLimit);
        }
        let over = self.order.mode == Mode::Apply
            && self.window_end.is_some_and(|end| self.runner.clock.now() >= end);
        over.then_some(Stopped::Window)
    }

    async fn attempt(&self) -> Ending {
        let at = self.report().started_at;
        if let Some(refusal) = self.outside_window(at) {
            return Ending::Refused(refusal);
        }
        let read = async {
            let needs = self.spec.job.kind().needs;
            let server = if needs.plans_offline && self.order.mode == Mode::DryRun {
                String::new()
            } else {
                self.guard_homeserver().await.map_err(|failure| self.not_planned(failure))?
            };
            let media = if needs.media && self.order.mode == Mode::Apply {
                self.media_place(&server).await.map_err(|abort| self.aborted(abort))?
            } else {
                None
            };
            let mut plan = Plan::default();
            let tell = |event| self.tell(event);
            let context = Context {
                at,
                reader: &self.reader,
                memory: Memory::new(&self.runner.history, &server),
                tell: &tell,
                concurrency: self.concurrency,
            };
            let planned = self.spec.job.plan(&context, &mut plan).await;
            planned.map_err(|failure| self.not_planned(failure))?;
            Ok((plan, server, media))
        };
        match self.wait_for(read).await {
            Ok(Ok((plan, server, _media))) => {
                self.work_off(plan, &server).await.unwrap_or_else(|ending| ending)
            }
            Ok(Err(ending)) => ending,
            Err(stopped) => Ending::Stopped(stopped),
        }
    }

    fn not_planned(&self, failure: Failure) -> Ending {
        match failure {
            Failure::Refused(why) => Ending::Refused(why),
            Failure::History(error) => {
                Ending::Failed(format!("the history cannot be read: {error}"))
            }
            Failure::Synapse(error) => self.ending_of(&error),
        }
    }

    fn outside_window(&self, at: Timestamp) -> Option<String> {
        let window = self.spec.common.window?;
        let now = self.runner.clock.now();
        (self.order.mode == Mode::Apply && !window.contains(now, self.spec.zone)).then(|| {
            let opens = window.start_after(at, self.spec.zone).with_timezone(&self.spec.zone.0);
            format!("it is outside the job's window {window}, which opens at {}; a dry run may look at any time", opens.format("%Y-%m-%d %H:%M %Z"))
        })
    }

    /// Refuses where version, accounts or clock do not allow the kind; answers the server's name.
    async fn guard_homeserver(&self) -> Result<String, Failure> {
        let needs = self.spec.job.kind().needs;
        let identity = self.reader.identity().await?;
        if identity.version < needs.synapse {
            return Err(Failure::Refused(format!(
                "{} runs Synapse {}, and {} needs {} or later: upgrade Synapse",
                self.spec.homeserver,
                identity.version_text,
                self.spec.job.kind().name,
                needs.synapse
            )));
        }
        if let Some(why) = needs.not_under_mas.filter(|_| identity.mas) {
            return Err(Failure::Refused(why.to_owned()));
        }
        if let Some(ahead) =
            identity.clock_ahead.filter(|ahead| needs.clock && ahead.abs() > CLOCK_TOLERANCE)
        {
            let direction = if ahead > chrono::TimeDelta::zero() { "ahead of" } else { "behind" };
            return Err(Failure::Refused(format!(
                "the clock here is {} {direction} that of {}: moments would be counted wrongly; set the clocks right (NTP) first",
                spoken(ahead.abs().to_std().unwrap_or_default()),
                self.spec.homeserver
            )));
        }
        Ok(identity.server_name.clone())
    }

    fn ending_of(&self, error: &synapse::Error) -> Ending {
        match () {
            () if error.is_unrecognized() && self.report().done == 0 => {
                Ending::Refused(error.to_string())
            }
            () if error.is_transient() => {
                Ending::Again { because: error.to_string(), retry_after: error.retry_after() }
            }
            () => Ending::Failed(error.to_string()),
        }
    }

    /// Judges the plan, and makes its changes unless this is a dry run.
    async fn work_off(&self, mut plan: Plan, server: &str) -> Result<Ending, Ending> {
        let unrecorded = |error: history::Error| {
            Ending::Failed(format!("the history cannot be written: {error}"))
        };
        let unknown = self.resolve_lost(&plan, server).await.map_err(unrecorded)?;
        let problems = plan.problems.len() as u64 + unknown;
        self.problems.store(problems, Ordering::Relaxed);
        self.some_fine.store(plan.some_fine, Ordering::Relaxed);
        let count = plan.count();
        let (done, cut) = {
            let mut report = self.report();
            (report.failed, report.remaining) = (problems, 0);
            report.sample.clone_from(&plan.sample);
            let before = report.done + report.skipped;
            report.planned = count.map(|count| before + count + problems);
            report.bytes_planned = plan.bytes.map(|bytes| bytes + report.bytes_freed.unwrap_or(0));
            if plan.bytes.is_some() {
                report.bytes_freed.get_or_insert(0);
            }
            (before, self.spec.common.at_most.filter(|_| count.is_some()))
        };
        let mut notes = std::mem::take(&mut plan.notes);
        let kept = match cut {
            Some(most) => {
                let most = u64::from(most).saturating_sub(done);
                let kept = plan.keep(most);
                let left = count.unwrap_or(0) - kept.min(count.unwrap_or(0));
                self.report().remaining = left;
                if kept == 0 && left > 0 && most > 0 {
                    notes.push(format!("at_most = {} is too small: the first of the plan go together and are more, so nothing can be done", most + done));
                }
                Some(kept)
            }
            None => count,
        };
        *self.notes.lock().unwrap_or_else(PoisonError::into_inner) = notes;
        let planned = self.report().planned;
        self.tell(Event::Planned { planned, bytes: plan.bytes });
        if let (Some(kept), Limit::Of(most)) = (kept, self.order.max_changes)
            && self.spec.job.kind().counts
            && kept + done > u64::from(most)
        {
            let sum = kept + done;
            let refusal = format!(
                "the plan has {}, more than max_changes = {most}: {}; if it is right, run it once with `--max-changes {sum}`, raise max_changes, or set at_most to work it off in parts",
                counted(sum, "thing", "things"),
                match self.order.mode {
                    Mode::DryRun => "in apply mode nothing of it would be made".to_owned(),
                    Mode::Apply =>
                        format!("look at it with `microglia run {} --dry-run`", self.spec.name),
                }
            );
            self.record_plan(&plan).await.map_err(unrecorded)?;
            return Ok(Ending::Refused(refusal));
        }
        let first = self.record_plan(&plan).await.map_err(unrecorded)?;
        if self.order.mode == Mode::DryRun {
            return Ok(Ending::Finished);
        }
        let report = self.report().clone();
        self.runner.history.save(&report).await.map_err(unrecorded)?;
        self.judged.store(true, Ordering::Relaxed);
        Ok(self.make_all(plan, first, server).await)
    }

    /// Writes the plan into the history; a dry run that cannot goes on.
    async fn record_plan(&self, plan: &Plan) -> Result<i64, history::Error> {
        let mut records: Vec<ChangeRecord> = match &plan.work {
            Work::Changes(changes) => {
                changes.iter().map(|change| record(change.as_ref(), State::Planned, None)).collect()
            }
            // A walk is recorded call by call while it is made.
            Work::Walk(_) if self.order.mode == Mode::Apply => Vec::new(),
            Work::Walk(walk) if walk.left() == Some(0) => Vec::new(),
            Work::Walk(walk) => vec![ChangeRecord {
                action: walk.action(),
                target: walk.target(),
                count: walk.left().unwrap_or(0),
                state: State::Planned,
                detail: None,
                before: None,
            }],
        };
        records.extend(plan.problems.iter().map(crate::change::Problem::record));
        let (id, report) = {
            let report = self.report();
            (report.id, report.clone())
        };
        let recorded = async {
            let first = self.runner.history.plan(id, &records).await?;
            // So that a run which is cut off is known to have planned so much.
            self.runner.history.save(&report).await?;
            Ok(first)
        }
        .await;
        // What nobody can read in the history, the report carries itself.
        self.report().changes = (id.is_none() || recorded.is_err()).then(|| {
            records.truncate(CHANGES_SHOWN as usize);
            records
        });
        match recorded {
            Err(error) if self.order.mode == Mode::DryRun => {
                tracing::warn!("the plan is not recorded: {error}");
                Ok(0)
            }
            recorded => recorded,
        }
    }

    fn verdict(&self, ending: Ending) -> (Outcome, Option<String>) {
        let mut report = self.report();
        self.count_remaining(&mut report);
        let changed = report.done + report.skipped > 0;
        let problems = self.problems.load(Ordering::Relaxed);
        // Targets that need nothing are half of the truth only where no change was tried and failed.
        let rest_is_fine = report.failed == problems
            && (self.some_fine.load(Ordering::Relaxed)
                || (report.mode == Mode::DryRun && report.planned > Some(problems)));
        match ending {
            Ending::Finished if report.failed == 0 => (Outcome::Succeeded, None),
            Ending::Finished if changed || rest_is_fine => {
                (Outcome::Partial, Some(failures(report.failed)))
            }
            Ending::Finished => (Outcome::Failed, Some(failures(report.failed))),
            Ending::Stopped(Stopped::Window) if !self.judged.load(Ordering::Relaxed) => {
                (Outcome::Failed, Some("the job's window ended before it could begin".to_owned()))
            }
            Ending::Stopped(Stopped::Window) if report.failed == 0 => (
                Outcome::Succeeded,
                Some(format!(
                    "stopped at the end of the job's window; {} left",
                    grouped(report.remaining)
                )),
            ),
            Ending::Stopped(Stopped::Window) => (
                Outcome::Partial,
                Some(format!(
                    "stopped at the end of the job's window; {} left",
                    grouped(report.remaining)
                )),
            ),
            Ending::Stopped(Stopped::TimeLimit) => (
                Outcome::TimedOut,
                Some(format!("the time limit of {} was reached", self.spec.common.time_limit)),
            ),
            Ending::Stopped(Stopped::Asked(outcome)) => {
                (outcome, Some("stopped between two changes".to_owned()))
            }
            // Refused means that nothing was changed.
            Ending::Refused(why) if report.done == 0 => (Outcome::Refused, Some(why)),
            Ending::Refused(why) | Ending::Failed(why) | Ending::Again { because: why, .. } => {
                (Outcome::Failed, Some(why))
            }
        }
    }

    fn count_remaining(&self, report: &mut Report) {
        if self.order.mode == Mode::Apply
            && let Some(planned) = report.planned
        {
            report.remaining = planned.saturating_sub(report.done + report.failed + report.skipped);
        }
    }

    async fn close(&self, outcome: Outcome, message: Option<String>) -> Report {
        let history = &self.runner.history;
        let (id, mode) = {
            let report = self.report();
            (report.id, report.mode)
        };
        let unknown = if mode == Mode::Apply {
            history.abandon(id, "no answer came before the run ended: it may have been made").await
        } else {
            Ok(0)
        };
        let mut report = self.report().clone();
        let unknown = unknown.unwrap_or(0);
        report.failed += unknown;
        let outcome = match outcome {
            Outcome::Succeeded if unknown > 0 => Outcome::Partial,
            outcome => outcome,
        };
        if unknown > 0 {
            let job = &report.job;
            tracing::warn!(target: "microglia::audit", %job, run = id.unwrap_or_default(), "{job}: run {}: {} may have been made: no answer came", id.unwrap_or_default(), counted(unknown, "thing", "things"));
        }
        self.count_remaining(&mut report);
        report.finished_at = Some(truncated(self.runner.clock.now()));
        report.outcome = Some(outcome);
        let notes = std::mem::take(&mut *self.notes.lock().unwrap_or_else(PoisonError::into_inner));
        let sentences: Vec<String> = message.into_iter().chain(notes).collect();
        report.message = (!sentences.is_empty()).then(|| sentences.join("; "));
        if let Err(error) = history.save(&report).await {
            tracing::error!(job = %report.job, "the end of run {} cannot be recorded: {error}", id.unwrap_or_default());
        }
        if let (Some(id), None) = (id, &report.changes)
            && let Ok(Some(stored)) = history.run(id, history::Page::default()).await
        {
            report.changes = stored.changes;
        }
        report.changes.get_or_insert_default();
        report
    }
}

fn record(
    change: &dyn crate::change::Change,
    state: State,
    detail: Option<String>,
) -> ChangeRecord {
    ChangeRecord {
        action: change.action(),
        target: change.target(),
        count: change.count(),
        state,
        detail,
        before: None,
    }
}

fn failures(failed: u64) -> String {
    format!("{} failed: the changes say why", counted(failed, "target", "targets"))
}

fn truncated(moment: Timestamp) -> Timestamp {
    Timestamp::from_timestamp_millis(moment.timestamp_millis()).unwrap_or(moment)
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "it says nothing".to_owned())
}
