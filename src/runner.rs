//! One run: attempts, guards, limits, changes, and the report.

mod changes;
mod ended;
mod judging;
mod reading;
mod settle;
mod waiting;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use reading::Reading;
pub use settle::Settle;

use crate::config::JobSpec;
use crate::history::state_dir::{Held, Lock, StateDir};
use crate::history::{self, History};
use crate::jobs::job::{Budget, Context, Memory, PlanError};
use crate::plan::change::Plan;
use crate::plan::report::{ChangeRecord, Event, Mode, Outcome, Report, State, Trigger, WaitReason};
use crate::synapse::{self, Reader, Transport};
use crate::values::clock::{Clock, Timestamp};
use crate::values::duration::format_duration;
use crate::values::schedule::Window;
use crate::values::schema::Limit;

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
pub struct RunParams {
    pub mode: Mode,
    pub max_changes: Limit<u32>,
    pub window: WindowRule,
    pub trigger: Trigger,
    pub scheduled_for: Option<Timestamp>,
    /// Attempts of the interrupted run that this one goes on with.
    pub attempts_made: u32,
}

/// Whether a run keeps to its job's window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowRule {
    Keep,
    /// A person who started the run lifted the window for it.
    Ignore,
}

/// A homeserver as runs use it.
#[derive(Debug, Clone)]
pub struct HomeserverHandle {
    pub transport: Arc<Transport>,
    pub places: RunSlots,
    pub max_concurrent_requests: u32,
}

/// How many runs a homeserver takes at a time.
#[derive(Debug, Clone)]
pub enum RunSlots {
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
    asked: Arc<OnceLock<StopRequest>>,
    /// Why the run was not given the time to reach a boundary.
    hurry: Arc<OnceLock<String>>,
}

#[derive(Debug)]
struct StopRequest {
    outcome: Outcome,
    /// Who asked, where a person did.
    by: Option<String>,
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
        self.ask(StopRequest { outcome, by: None });
    }

    /// Cancels the run between two changes; `by` reads well after "cancelled by".
    pub fn cancelled_by(&self, by: &str) {
        self.ask(StopRequest { outcome: Outcome::Cancelled, by: Some(by.to_owned()) });
    }

    fn ask(&self, request: StopRequest) {
        let _ = self.asked.set(request);
        self.at_boundary.cancel();
    }

    /// Ends the run without waiting for the change under way, whose fate is then unknown.
    ///
    /// `why` reads well after "stopped at once".
    pub fn now(&self, outcome: Outcome, why: &str) {
        let _ = self.hurry.set(why.to_owned());
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
            .then(|| self.asked.get().map_or(Outcome::Cancelled, |asked| asked.outcome))
    }

    /// `cancelled by root (uid 0)`.
    fn in_words(&self) -> String {
        match self.asked.get() {
            Some(StopRequest { outcome: Outcome::Interrupted, .. }) => {
                "interrupted by the shutdown of the daemon".to_owned()
            }
            Some(StopRequest { by: Some(by), .. }) => format!("cancelled by {by}"),
            _ => "cancelled".to_owned(),
        }
    }
}

impl RunParams {
    /// What the config says, started by hand.
    pub fn manual(spec: &JobSpec) -> Self {
        Self {
            mode: spec.common.mode,
            max_changes: spec.common.max_changes,
            window: WindowRule::Keep,
            trigger: Trigger::Manual,
            scheduled_for: None,
            attempts_made: 0,
        }
    }

    /// The job's window, where the run keeps to it.
    fn window_of(&self, spec: &JobSpec) -> Option<Window> {
        spec.common.window.filter(|_| self.window == WindowRule::Keep)
    }
}

/// What a run does at present, for what is said where it is stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Reading,
    /// For what.
    Waiting(String),
    Changing,
}

/// One run under way.
struct Run<'a> {
    runner: &'a Runner,
    spec: &'a JobSpec,
    order: &'a RunParams,
    reader: Reader,
    stop: &'a Stop,
    deadline: Instant,
    window_end: Option<Timestamp>,
    tell: Listener,
    concurrency: usize,
    report: Mutex<Report>,
    phase: Mutex<Phase>,
    /// The wait under way, which counts also where the run ends in it.
    wait: Mutex<Option<(WaitReason, Instant)>>,
    /// Sentences for the message, of the last attempt.
    notes: Mutex<Vec<String>>,
    /// Whether some target could be read and needs nothing.
    some_fine: AtomicBool,
    /// How far the attempt has read; `None` while it does something else.
    reading: Mutex<Option<Reading>>,
    /// Items that `at_most` left out of the last plan.
    left_by_at_most: AtomicU64,
    /// Targets of the last plan that could not be worked on.
    problems: AtomicU64,
    /// Whether a plan passed the guards.
    judged: AtomicBool,
    lost: Mutex<Vec<changes::Lost>>,
    /// Targets that a change skipped when it looked again, with their things.
    skipped: Mutex<Vec<(String, u64)>>,
    /// Whether it was told that answers take long.
    slow: AtomicBool,
    /// What keeps other runs from doing the same, as long as it is held.
    locks: Mutex<Vec<Weak<Lock>>>,
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
    RunOverrides(Outcome),
    TimeLimit,
    Window,
}

/// The local clock may be this far from the homeserver's before a run that sends moments is refused.
const CLOCK_TOLERANCE: chrono::TimeDelta = chrono::TimeDelta::seconds(60);
/// How often to look whether another run made room.
const LOOK_FOR_PLACE: Duration = Duration::from_millis(250);

impl Runner {
    /// Runs a job to its end and reports; the report is complete whatever happened, even a panic.
    pub async fn run(
        &self,
        spec: &JobSpec,
        place: &HomeserverHandle,
        order: &RunParams,
        stop: &Stop,
        tell: Listener,
    ) -> Result<Report, Busy> {
        let locked = match &self.dir {
            Some(dir) => match job_lock(dir, &spec.name).await {
                Ok(None) => return Err(self.busy(&spec.name).await),
                Ok(lock) => Ok(lock.map(Arc::new)),
                Err(error) => Err(history::Error::Io(error)),
            },
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
            waited_seconds: 0.0,
            waited_for: Vec::new(),
            waiting: None,
            planned: None,
            done: 0,
            failed: 0,
            skipped: 0,
            remaining: None,
            bytes_planned: None,
            bytes_freed: None,
            left_alone: BTreeMap::new(),
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
            window_end: order.window_of(spec).map(|window| window.end_after(started_at, spec.zone)),
            tell: Arc::clone(&tell),
            concurrency: place.max_concurrent_requests as usize,
            report: Mutex::new(report),
            phase: Mutex::new(Phase::Reading),
            wait: Mutex::default(),
            notes: Mutex::default(),
            some_fine: AtomicBool::new(false),
            reading: Mutex::default(),
            left_by_at_most: AtomicU64::new(0),
            problems: AtomicU64::new(0),
            judged: AtomicBool::new(false),
            lost: Mutex::default(),
            skipped: Mutex::default(),
            slow: AtomicBool::new(false),
            locks: Mutex::new(locked.iter().flatten().map(Arc::downgrade).collect()),
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

/// Who only looks whether the job is at work holds its lock for an instant: that is no other run.
async fn job_lock(dir: &StateDir, job: &str) -> std::io::Result<Option<Lock>> {
    const LOOKS: u32 = 3;
    const LOOK_AGAIN: Duration = Duration::from_millis(20);
    for _ in 1..LOOKS {
        if let Some(lock) = dir.try_lock(job)? {
            return Ok(Some(lock));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    dir.try_lock(job)
}

impl Run<'_> {
    /// Makes sure that the locks still keep other runs out; the error says why they do not.
    fn hold_locks(&self) -> Result<(), String> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|lock| lock.strong_count() > 0);
        for lock in locks.iter().filter_map(Weak::upgrade) {
            let path = lock.path();
            match lock.hold() {
                Ok(Held::Still) => {}
                Ok(Held::Again) => {
                    tracing::warn!("{} was deleted or replaced: locked again", path.display());
                }
                Ok(Held::Lost) => {
                    return Err(format!(
                        "{} was deleted or replaced, and another process holds it: another run may make the same changes",
                        path.display()
                    ));
                }
                Err(error) => {
                    return Err(format!(
                        "{} was deleted or replaced, and cannot be locked again: {error}",
                        path.display()
                    ));
                }
            }
        }
        Ok(())
    }

    fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reading(&self) -> MutexGuard<'_, Option<Reading>> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells what happened, after a word about the pace where that has changed.
    fn tell(&self, event: Event) {
        let slow = self.reader.is_slow();
        if self.slow.swap(slow, Ordering::Relaxed) != slow {
            (self.tell)(Event::Slow(slow));
        }
        if let (Event::Reading { what, done, total }, Some(reading)) =
            (&event, self.reading().as_mut())
        {
            reading.advance(what, *done, *total, self.reader.completed_requests());
        }
        (self.tell)(event);
    }

    async fn to_the_end(&self, places: &RunSlots) -> (Outcome, Option<String>) {
        let attempts = AssertUnwindSafe(self.attempts(places)).catch_unwind();
        tokio::select! {
            ended = attempts => ended.unwrap_or_else(|panic| (Outcome::Panicked, Some(format!("a bug in microglia, please report it: {}", panic_text(&*panic))))),
            () = self.stop.now.cancelled() => self.stopped_at_once(),
            never = self.watch_answers() => match never {},
        }
    }

    async fn attempts(&self, places: &RunSlots) -> (Outcome, Option<String>) {
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
            if wait >= self.deadline.saturating_duration_since(Instant::now()) {
                return self.verdict(Ending::Failed(format!(
                    "{because} (no time is left for another try)"
                )));
            }
            let failed = because.clone();
            // Where the run waits, it says why.
            self.report().message = Some(failed.clone());
            self.tell(Event::Retrying {
                attempt: attempt + 1,
                attempts: retries.attempts,
                wait_seconds: wait.as_secs(),
                because,
            });
            let next = format!(
                "attempt {} of {} at {}",
                attempt + 1,
                retries.attempts,
                crate::values::clock::format_time(self.runner.clock.now() + wait)
            );
            let waited = self.waits(WaitReason::Retry, next, self.pause(wait)).await;
            self.report().message = None;
            match waited {
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

    fn enter(&self, phase: Phase) -> Phase {
        std::mem::replace(&mut *self.phase.lock().unwrap_or_else(PoisonError::into_inner), phase)
    }

    async fn attempt(&self) -> Ending {
        self.enter(Phase::Reading);
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
                started_at: at,
                reader: &self.reader,
                memory: Memory::new(&self.runner.history, &server),
                emit: &tell,
                media_in_object_storage: self.spec.media_in_object_storage,
                concurrency: self.concurrency,
                budget: Budget {
                    requests_per_second: self.reader.requests_per_second(),
                    time_limit: self.spec.common.time_limit,
                },
            };
            *self.reading() = Some(Reading::begin(self.reader.completed_requests()));
            let planned = self.spec.job.plan(&context, &mut plan).await;
            planned.map_err(|failure| self.not_planned(failure))?;
            Ok((plan, server, media))
        };
        let read = self.wait_for(read).await;
        if read.is_ok() {
            *self.reading() = None;
        }
        match read {
            Ok(Ok((plan, server, _media))) => {
                self.work_off(plan, &server).await.unwrap_or_else(|ending| ending)
            }
            Ok(Err(ending)) => ending,
            Err(stopped) => Ending::Stopped(stopped),
        }
    }

    fn not_planned(&self, failure: PlanError) -> Ending {
        match failure {
            PlanError::Refused(why) => Ending::Refused(why),
            PlanError::History(error) => {
                Ending::Failed(format!("the history cannot be read: {error}"))
            }
            PlanError::Synapse(error) => self.ending_of(&error),
        }
    }

    fn outside_window(&self, at: Timestamp) -> Option<String> {
        let window = self.order.window_of(self.spec)?;
        let now = self.runner.clock.now();
        (self.order.mode == Mode::Apply && !window.contains(now, self.spec.zone)).then(|| {
            let opens = window.start_after(at, self.spec.zone).with_timezone(&self.spec.zone.0);
            format!("it is outside the job's window {window}, which opens at {}; a dry run may look at any time, and `--ignore-window` lifts that once", opens.format("%Y-%m-%d %H:%M %Z"))
        })
    }

    /// Refuses where version, accounts or clock do not allow the kind; answers the server's name.
    async fn guard_homeserver(&self) -> Result<String, PlanError> {
        let needs = self.spec.job.kind().needs;
        let identity = self.reader.identity().await?;
        if identity.version < needs.synapse {
            return Err(PlanError::Refused(format!(
                "{} runs Synapse {}, and {} needs {} or later: upgrade Synapse",
                self.spec.homeserver,
                identity.version_text,
                self.spec.job.kind().name,
                needs.synapse
            )));
        }
        if let Some(why) = needs.not_under_mas.filter(|_| identity.mas) {
            return Err(PlanError::Refused(why.to_owned()));
        }
        if let Some(ahead) =
            identity.clock_ahead.filter(|ahead| needs.clock && ahead.abs() > CLOCK_TOLERANCE)
        {
            let direction = if ahead > chrono::TimeDelta::zero() { "ahead of" } else { "behind" };
            return Err(PlanError::Refused(format!(
                "the clock here is {} {direction} that of {}: moments would be counted wrongly; set the clocks right (NTP) first",
                format_duration(ahead.abs().to_std().unwrap_or_default()),
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
}

fn record(
    change: &dyn crate::plan::change::Change,
    state: State,
    detail: Option<String>,
) -> ChangeRecord {
    ChangeRecord {
        action: change.action(),
        target: change.target(),
        count: change.count(),
        state,
        detail,
        answer: None,
        before: None,
    }
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
